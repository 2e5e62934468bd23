//! The first stage: the kernel's file systems, and the sealed files, each read once.

use std::io;

use iofs_policy::{
    dsse::MAX_ENVELOPE_SIZE,
    failure::{FailureReport, Stage},
    paths::{MANIFEST, TRUST},
    trust::{MAX_TRUST_SIZE, TrustPolicy},
};
use nix::mount::MsFlags;

use crate::{
    boot::Boot,
    report::{refusal, text},
    system::{Mount, System},
};

const STAGE: Stage = Stage::Started;
/// More than any architecture's `COMMAND_LINE_SIZE`.
const MAX_COMMAND_LINE: usize = 64 * 1024;
/// The kernel's limit is 64.
const MAX_RELEASE: usize = 128;
const REBUILD: &str = "build the initramfs again with iofs-sign, and check how it is loaded";

/// With the options that systemd gives them, for they are moved into the real root and stay.
const MOUNTS: [Mount<'static>; 4] = [
    Mount { source: "dev", target: "/dev", kind: "devtmpfs", flags: MsFlags::MS_NOSUID, options: "mode=0755" },
    Mount { source: "proc", target: "/proc", kind: "proc", flags: PLAIN, options: "" },
    Mount { source: "sys", target: "/sys", kind: "sysfs", flags: PLAIN, options: "" },
    Mount { source: "run", target: "/run", kind: "tmpfs", flags: RUN, options: "mode=0755,size=20%,nr_inodes=800k" },
];
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const RUN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_STRICTATIME);

/// Everything that the verdict depends on was read. None of it but the trust policy is believed yet.
pub(crate) struct Started {
    pub(crate) trust: TrustPolicy,
    pub(crate) envelope: Vec<u8>,
    pub(crate) command_line: String,
    /// The same as the kernel has it, without the newline at its end: what is measured.
    pub(crate) raw_command_line: Vec<u8>,
    pub(crate) release: String,
}

impl Started {
    /// Mounts and reads.
    pub(crate) fn start<S: System>(boot: &mut Boot<'_, S>) -> Result<Self, FailureReport> {
        for mount in &MOUNTS {
            mount_one(boot, mount)?;
            // With /dev comes the console, for the report should the next one fail.
            if mount.kind == "devtmpfs" {
                let _ = boot.system.open_console();
            }
        }
        let trust = read(boot, TRUST, MAX_TRUST_SIZE)?;
        let trust = TrustPolicy::parse(&trust).map_err(|error| {
            refusal(
                STAGE,
                "the trust policy is malformed",
                format!("a trust policy in {TRUST}"),
                error.to_string(),
                REBUILD,
            )
        })?;
        boot.set_action(trust.on_failure);
        let envelope = read(boot, MANIFEST, MAX_ENVELOPE_SIZE)?;
        let line = read(boot, "/proc/cmdline", MAX_COMMAND_LINE)?;
        let started = Self {
            trust,
            envelope,
            command_line: characters(&line),
            raw_command_line: line.strip_suffix(b"\n").unwrap_or(&line).to_vec(),
            release: characters(&read(boot, "/proc/sys/kernel/osrelease", MAX_RELEASE)?).trim_end().to_owned(),
        };
        let version = env!("CARGO_PKG_VERSION");
        boot.reached(STAGE, &format!("started version {version} on kernel {}", started.release));
        Ok(started)
    }
}

fn mount_one<S: System>(boot: &mut Boot<'_, S>, mount: &Mount<'_>) -> Result<(), FailureReport> {
    let system = &mut *boot.system;
    system.create_folder(mount.target, 0o755).and_then(|()| system.mount(mount)).map_err(|error| {
        let (kind, target) = (mount.kind, mount.target);
        let fact = format!("{kind} cannot be mounted on {target}");
        refusal(STAGE, fact, format!("a kernel with {kind}"), text(&error), "boot a kernel that has it")
    })
}

fn read<S: System>(boot: &mut Boot<'_, S>, path: &str, limit: usize) -> Result<Vec<u8>, FailureReport> {
    boot.system.read(path, limit).map_err(|error: io::Error| {
        let expected = format!("a file of at most {limit} bytes");
        refusal(STAGE, format!("{path} cannot be read"), expected, text(&error), REBUILD)
    })
}

/// Bytes as the kernel takes them. It has Latin-1's idea of a space, so that a no-break space (0xa0) ends a word even
/// in the middle of a UTF-8 letter: then each byte is a character. Else UTF-8 is kept, for it may name a partition.
pub(crate) fn characters(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.contains(&0xa0) => text.to_owned(),
        _ => bytes.iter().copied().map(char::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_break_space_cannot_hide_a_parameter() {
        assert_eq!(characters("root=PARTLABEL=Größe".as_bytes()), "root=PARTLABEL=Größe");
        assert_eq!(characters(b"x\xa0init=/bin/sh"), "x\u{a0}init=/bin/sh");
        // 'à' is c3 a0: the kernel ends the word inside it.
        assert_eq!(characters("à init=x".as_bytes()), "\u{c3}\u{a0} init=x");
    }
}
