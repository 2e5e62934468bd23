//! Keys that the kernel holds: add_key(2) and keyctl(2), of which neither std nor nix have a safe form.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, c_long},
    io,
};

use nix::libc::{KEY_SPEC_THREAD_KEYRING, KEYCTL_REVOKE, KEYCTL_UNLINK, SYS_add_key, SYS_keyctl, syscall};

use crate::system::{KeyKind, KeySerial};

/// Adds a key to this thread's keyring: the kernel's own code finds it there while this thread asks for something. No program
/// can read a logon key back. The keyring goes when the thread becomes another program.
pub(super) fn add(kind: KeyKind, description: &str, key: &[u8]) -> io::Result<KeySerial> {
    let description = CString::new(description)?;
    let kind = match kind {
        KeyKind::Logon => c"logon",
        KeyKind::User => c"user",
    };
    let keyring = c_long::from(KEY_SPEC_THREAD_KEYRING);
    // SAFETY: all texts end with a zero byte and live until the call returns; the kernel reads `key.len()` bytes at
    // `key`, and writes to none of them.
    let serial = unsafe { syscall(SYS_add_key, kind.as_ptr(), description.as_ptr(), key.as_ptr(), key.len(), keyring) };
    if serial < 0 {
        return Err(io::Error::last_os_error());
    }
    // A serial is an i32 in the kernel (key_serial_t).
    i32::try_from(serial).map(KeySerial).map_err(io::Error::other)
}

/// Revokes a key, which frees its bytes, and takes it out of the keyring.
pub(super) fn remove(KeySerial(serial): KeySerial) -> io::Result<()> {
    control(KEYCTL_REVOKE.into(), serial, 0)?;
    control(KEYCTL_UNLINK.into(), serial, KEY_SPEC_THREAD_KEYRING)
}

fn control(operation: c_long, serial: i32, keyring: i32) -> io::Result<()> {
    // SAFETY: both operations take numbers alone.
    match unsafe { syscall(SYS_keyctl, operation, c_long::from(serial), c_long::from(keyring)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_there_until_it_is_removed() {
        let key = add(KeyKind::Logon, "iofs:test", &[7; 64])
            .expect("a kernel with keyrings, and a sandbox that allows add_key(2)");
        remove(key).unwrap();
        assert!(remove(key).is_err(), "it is gone");
        assert!(add(KeyKind::Logon, "no colon", &[7; 64]).is_err(), "a logon key's description has a prefix");
        remove(add(KeyKind::User, "no colon", &[7; 64]).unwrap()).unwrap();
    }
}
