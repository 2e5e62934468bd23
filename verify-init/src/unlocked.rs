//! The stage of the encrypted volumes: each is opened, measured and mapped, in their sealed order. Then what opened them is
//! put out of reach, before anything that they hold is looked at.

use iofs_policy::{
    boot_record::UnlockedVolume,
    failure::{FailureReport, Stage},
    manifest::{VolumeName, VolumeUse},
};

use crate::{
    boot::Boot,
    devices::BlockDevice,
    found::{Found, ImageDevices},
    measured,
    report::refusal,
    system::System,
    verified::Verified,
};

#[cfg(feature = "full")]
mod console;
#[cfg(feature = "full")]
mod map;
#[cfg(feature = "full")]
mod open;
#[cfg(feature = "full")]
mod source;
#[cfg(feature = "full")]
mod tokens;
#[cfg(feature = "full")]
mod volume;

#[cfg(any(test, not(feature = "full")))]
mod absent;

#[cfg(not(feature = "full"))]
use absent::unlock;
#[cfg(feature = "full")]
use volume::unlock;

const STAGE: Stage = Stage::Unlocked;

/// The volumes are open, as far as the boot needs them, and the initramfs phase is over where there were any.
pub(crate) struct Unlocked {
    pub(crate) verified: Verified,
    pub(crate) image: ImageDevices,
    pub(crate) volumes: Vec<OpenVolume>,
}

/// A volume that is open.
pub(crate) struct OpenVolume {
    /// The decrypted device.
    pub(crate) device: BlockDevice,
    pub(crate) record: UnlockedVolume,
}

impl Found {
    /// Opens the sealed volumes.
    pub(crate) fn unlock<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Unlocked, FailureReport> {
        let Self { verified, image, volumes: devices } = self;
        let manifest = verified.manifest.manifest();
        let mut volumes = Vec::new();
        for (volume, device) in manifest.volumes.iter().zip(&devices) {
            let Some(device) = device else { continue };
            match unlock(boot, manifest.tpm.srk.as_ref(), volume, device) {
                Ok(open) => volumes.push(open),
                Err(refusal) if volume.optional => boot.warn(format!("{}: {}", refusal.fact, refusal.found)),
                Err(refusal) => return Err(refusal),
            }
        }
        if !manifest.volumes.is_empty() {
            // Nothing else is to be opened: from here on the TPM gives nobody what it gave us.
            measured::leave(boot, STAGE)?;
            boot.reached(STAGE, &description(&volumes));
        }
        let image = match image {
            Some(image) => image,
            None => image_in_volume(&verified, &volumes)?,
        };
        Ok(Unlocked { verified, image, volumes })
    }
}

impl Unlocked {
    /// The volume of that name, if it is open.
    pub(crate) fn find<'a>(volumes: &'a [OpenVolume], name: &VolumeName) -> Option<&'a OpenVolume> {
        volumes.iter().find(|volume| volume.record.name == *name)
    }
}

fn description(volumes: &[OpenVolume]) -> String {
    let each = volumes.iter().map(|OpenVolume { record, .. }| {
        let token = record.token.map(|token| format!(", token {token}")).unwrap_or_default();
        format!("volume {} by {} (keyslot {}{token})", record.name, record.by, record.keyslot)
    });
    let each: Vec<String> = each.collect();
    if each.is_empty() { "unlocked nothing".to_owned() } else { format!("unlocked {}", each.join(" and ")) }
}

/// Data and tree lie one behind the other in the opened volume.
fn image_in_volume(verified: &Verified, volumes: &[OpenVolume]) -> Result<ImageDevices, FailureReport> {
    let manifest = verified.manifest.manifest();
    let image = volumes.iter().find(|volume| volume.record.usage == VolumeUse::Image.name());
    let Some(image) = image else {
        let (fact, found) = ("the image's volume is not open", "none of use \"image\"");
        return Err(refusal(STAGE, fact, manifest.data.to_string(), found, "seal the image again"));
    };
    ImageDevices::new(STAGE, manifest, image.device.clone(), image.device.clone())
}
