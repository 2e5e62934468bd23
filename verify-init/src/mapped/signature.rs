//! The kernel's own check of the root hash: it takes the signature from a keyring, and refuses the table where the signature is
//! by nobody that it or firmware trusts.
//!
//! Linux `Documentation/admin-guide/device-mapper/verity.rst`, `root_hash_sig_key_desc`.

use std::io;

use iofs_policy::{
    failure::FailureReport,
    manifest::{RootHashSignature, SealedVerity},
    paths::ROOT_HASH_SIGNATURE,
    verity::{DeviceNumber, VerityTable},
};
use nix::errno::Errno;

use super::{STAGE, load, not_mapped, table};
use crate::{
    boot::Boot,
    found::ImageDevices,
    report::{refusal, text},
    system::{KeyKind, System},
};

/// No signature of one signer is larger, in bytes.
const LIMIT: usize = 16 * 1024;
/// What the key is called in the keyring.
const DESCRIPTION: &str = "iofs:roothash";
const OPTION: &str = "root_hash_sig_key_desc";

/// What was mapped.
pub(super) struct Loaded {
    pub(super) table: VerityTable,
    pub(super) number: DeviceNumber,
    /// Whether the kernel accepted the signature.
    pub(super) signed: bool,
}

/// Maps the device with the kernel's check as it is sealed; without it where it is only preferred and cannot be had.
pub(super) fn create<S: System>(
    boot: &mut Boot<'_, S>,
    name: &str,
    image: &ImageDevices,
    sealed: &SealedVerity,
) -> Result<Loaded, FailureReport> {
    if sealed.root_hash_signature != RootHashSignature::Off {
        let table = table(image, sealed, &[OPTION, DESCRIPTION])?;
        match checked(boot, name, sealed, &table) {
            Ok(number) => return Ok(Loaded { table, number, signed: true }),
            Err(error) if sealed.root_hash_signature == RootHashSignature::Required => return Err(refused(&error)),
            Err(error) => boot.warn(format!("the kernel does not check the signed root hash: {}", reason(&error))),
        }
    }
    let table = table(image, sealed, &[])?;
    let number = load(boot, name, sealed, &table).map_err(|error| not_mapped(&table, &error))?;
    Ok(Loaded { table, number, signed: false })
}

fn checked<S: System>(
    boot: &mut Boot<'_, S>,
    name: &str,
    sealed: &SealedVerity,
    table: &VerityTable,
) -> io::Result<DeviceNumber> {
    let signature = boot.system.read(ROOT_HASH_SIGNATURE, LIMIT)?;
    let key = boot.system.add_key(KeyKind::User, DESCRIPTION, &signature)?;
    let loaded = load(boot, name, sealed, table);
    // It is no secret; but nobody needs it any more.
    if let Err(error) = boot.system.remove_key(key) {
        boot.warn(format!("the signature of the root hash stays in the keyring of this process: {}", text(&error)));
    }
    loaded
}

/// What the kernel means by an error number here (`verity_verify_root_hash`, `pkcs7_verify`).
fn reason(error: &io::Error) -> String {
    let meaning = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => "there is no signature in the initramfs",
        Some(Errno::ENOKEY) => "it is by no key that this kernel looks for",
        Some(Errno::EKEYREJECTED | Errno::EBADMSG) => "it does not verify",
        Some(Errno::EINVAL) => "this kernel cannot check it",
        _ => return text(error),
    };
    format!("{meaning} ({})", text(error))
}

fn refused(error: &io::Error) -> FailureReport {
    refusal(
        STAGE,
        "the kernel does not accept the signature of the root hash",
        "a signature by a key in the kernel's keyrings; or in firmware's db, where the kernel looks there \
         (CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG_PLATFORM_KEYRING)",
        reason(error),
        "sign the root hash with such a key, or seal verity.root_hash_signature as preferred",
    )
}
