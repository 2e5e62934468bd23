//! In place of [`volume`](super) where this program is built to open none, which most images do not need: the code that
//! opens volumes is a sixth of it.

use iofs_policy::{
    failure::FailureReport,
    manifest::{SrkPublic, Volume},
};

use super::{OpenVolume, STAGE};
use crate::{boot::Boot, devices::BlockDevice, report::refusal, system::System};

/// Refuses. Sealing does so before; this is for an initramfs that was put together by other means.
pub(super) fn unlock<S: System>(
    _boot: &mut Boot<'_, S>,
    _srk: Option<&SrkPublic>,
    volume: &Volume,
    _device: &BlockDevice,
) -> Result<OpenVolume, FailureReport> {
    let fact = format!("volume {}: this verify-init opens no volumes", volume.name);
    let next = "seal the image with verify-init-full, which iofs-sign picks where volumes are sealed";
    Err(refusal(STAGE, fact, "a verify-init that is built in full", "one that is built without", next))
}

#[cfg(test)]
mod tests {
    use iofs_policy::{
        manifest::{Place, UnlockRules, VolumeUse},
        verity::DeviceNumber,
    };

    use super::*;
    use crate::{devices::BlockDevice, fake::Fake};

    #[test]
    fn a_volume_is_refused_and_what_opens_it_is_named() {
        let mut machine = Fake::empty();
        let volume = Volume {
            name: "state".parse().unwrap(),
            place: Place::Disk("vdb".parse().unwrap()),
            usage: VolumeUse::Image,
            luks_uuid: None,
            volume_key: None,
            unlock: UnlockRules::default(),
            optional: false,
        };
        let device = BlockDevice {
            name: "vdb".into(),
            path: "/dev/vdb".into(),
            number: DeviceNumber { major: 254, minor: 16 },
            bytes: 1 << 20,
            partition: None,
            media: Vec::new(),
        };
        let refused = unlock(&mut Boot::new(&mut machine), None, &volume, &device).err().unwrap();
        assert!(refused.next_step.contains("verify-init-full"), "{refused}");
    }
}
