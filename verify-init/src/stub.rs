//! What the stub of a unified kernel image leaves in the initramfs for programs of the running system: signatures of register
//! values, and their key.
//!
//! systemd's initramfs copies them to `/run` (tmpfiles.d, `20-systemd-stub.conf`), and its programs look for them there. Nobody
//! vouches for them, here as there: a TPM checks what they say.

use std::io::{self, ErrorKind};

use iofs_policy::pcr_signature::{MAX_SIZE, STUB_PATH};

use crate::{boot::Boot, mounted::SYSTEMD_FOLDER, report::text, system::System};

const HANDED_ON: [(&str, &str); 2] = [
    (STUB_PATH, "/run/systemd/tpm2-pcr-signature.json"),
    ("/.extra/tpm2-pcr-public-key.pem", "/run/systemd/tpm2-pcr-public-key.pem"),
];

/// Copies what is there. A system without it boots all the same.
pub(crate) fn hand_on<S: System>(boot: &mut Boot<'_, S>) {
    for (from, to) in HANDED_ON {
        match copy(boot.system, from, to) {
            Err(error) if error.kind() != ErrorKind::NotFound => boot.warn(format!("{from}: {}", text(&error))),
            _ => {}
        }
    }
}

fn copy<S: System>(system: &mut S, from: &str, to: &str) -> io::Result<()> {
    let bytes = system.read(from, MAX_SIZE)?;
    system.create_folder(SYSTEMD_FOLDER, 0o755)?;
    system.write(to, &bytes)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::fake::Fake;

    #[test]
    fn what_the_stub_left_is_found_in_run_and_what_it_did_not_leave_is_not_missed() {
        let mut machine = Fake::empty();
        hand_on(&mut Boot::new(&mut machine));
        assert_eq!(machine.count("write"), 0);
        machine.put(STUB_PATH, b"{}");
        hand_on(&mut Boot::new(&mut machine));
        assert_eq!(machine.read(HANDED_ON[0].1, MAX_SIZE).unwrap(), b"{}");
        assert!(machine.read(HANDED_ON[1].1, MAX_SIZE).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_stops_nothing() {
        let mut machine = Fake::empty();
        machine.broken.push(("read /.extra/tpm2-pcr-public", Errno::EIO));
        let mut boot = Boot::new(&mut machine);
        hand_on(&mut boot);
        assert!(boot.warnings[0].starts_with("/.extra/tpm2-pcr-public-key.pem: "), "{:?}", boot.warnings);
    }
}
