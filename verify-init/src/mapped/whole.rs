//! Reading a whole image: what the kernel would stop the machine for, it says here.

use iofs_policy::{manifest::SealedVerity, verity::CorruptionAction};

use super::{load, not_mapped, table};
use crate::{boot::Boot, found::ImageDevices, report::text, system::System};

/// Its mapping, which is gone before anything is booted.
const CHECK_MAPPING: &str = "iofs-check";
/// As much is read at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// Reads every block through a mapping of its own, in which a corrupt block is an error and nothing more. Says where the first
/// one is; nothing where all verify, or nobody can tell.
pub(crate) fn read_all<S: System>(
    boot: &mut Boot<'_, S>,
    image: &ImageDevices,
    sealed: &SealedVerity,
) -> Option<String> {
    let sealed = SealedVerity { on_corruption: CorruptionAction::Eio, ..sealed.clone() };
    let mapped = table(image, &sealed, &[])
        .and_then(|table| load(boot, CHECK_MAPPING, &sealed, &table).map_err(|error| not_mapped(&table, &error)));
    let number = match mapped {
        Ok(number) => number,
        Err(refusal) => {
            boot.warn(format!("{}: {}: not read before it is booted", refusal.fact, refusal.found));
            return None;
        }
    };
    let damage = read_device(boot, &format!("/dev/dm-{}", number.minor), &sealed);
    if let Err(error) = boot.system.remove_mapping(CHECK_MAPPING) {
        boot.warn(format!("{CHECK_MAPPING}: {}", text(&error)));
    }
    damage
}

fn read_device<S: System>(boot: &mut Boot<'_, S>, path: &str, sealed: &SealedVerity) -> Option<String> {
    let parameters = &sealed.parameters;
    let end = parameters.data_blocks * u64::from(parameters.data_block_size.bytes());
    let mut offset = 0;
    while offset < end {
        let length = CHUNK.min(end - offset);
        if let Err(error) = boot.system.read_at(path, offset, length as usize) {
            return Some(format!("of {length} bytes at byte {offset} not all verify: {}", text(&error)));
        }
        offset += length;
    }
    None
}
