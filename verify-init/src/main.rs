//! The binary: PID 1, or a few words about itself.
#![no_main]

use std::ffi::OsString;

mod entry {
    //! Our own `main`, because that of std does two things that PID 1 must not: it aborts where a standard stream is
    //! closed and `/dev/null` is missing (a machine without console, before `/dev` is there), and it ignores SIGPIPE,
    //! which the real init would inherit.
    #![allow(unsafe_code)]

    use std::{
        ffi::{CStr, OsString, c_char, c_int},
        os::unix::ffi::OsStringExt,
    };

    /// What this binary was built with, for who puts it into an initramfs: words, each followed by a space.
    #[cfg(feature = "full")]
    // SAFETY: a section of its own name, which nothing else reads or writes.
    #[unsafe(link_section = ".iofs.abilities")]
    #[used]
    static ABILITIES: [u8; 5] = *b"full ";

    // SAFETY: C's `main`, with its signature, is what the C runtime calls; no other symbol has this name.
    #[unsafe(no_mangle)]
    extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
        // std knows of them only where the C library is glibc.
        let arguments = (0..usize::try_from(count).unwrap_or(0)).map(|number| {
            // SAFETY: the C runtime passes an array of `count` strings, which stay as long as the program.
            let word = unsafe { CStr::from_ptr(*words.add(number)) };
            OsString::from_vec(word.to_bytes().to_owned())
        });
        super::run(&arguments.collect::<Vec<_>>())
    }
}

const HELP: &str = "\
verify-init: PID 1 of a mini-initramfs. It verifies the signed manifest in /etc/iofs, maps the image with dm-verity,
mounts it and becomes its init. It does nothing unless it is PID 1, but for:

  --find PLACE  say which device a boot would take for PARTUUID=…, PARTLABEL=… or TYPE:UUID=…:/PATH (verify-init-full alone)
  --version     print the version
  --help        print this text

Build an initramfs with it: iofs-sign initramfs
";

/// PID 1 never returns: the kernel would panic.
fn as_pid_1() -> ! {
    verify_init::linux::report_panics();
    verify_init::linux::raise_priority();
    match verify_init::boot(&mut verify_init::Linux::default()) {}
}

fn run(arguments: &[OsString]) -> i32 {
    #[cfg(feature = "full")]
    if verify_init::run_init::is_called(arguments) {
        return verify_init::run_init::run(arguments);
    }
    if std::process::id() == 1 {
        as_pid_1();
    }
    let mut words = arguments.iter().skip(1).map(|word| word.to_str().unwrap_or_default());
    let (text, status) = match words.next() {
        #[cfg(feature = "full")]
        Some("--find") => {
            let place = words.next().unwrap_or_default();
            verify_init::find::find(&mut verify_init::Linux::default(), place)
        }
        Some("--version") => (concat!("verify-init ", env!("CARGO_PKG_VERSION"), "\n").to_owned(), 0),
        Some("--help") => (HELP.to_owned(), 0),
        _ => (HELP.to_owned(), 1),
    };
    // Whoever closed the stream does not want it.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    status
}
