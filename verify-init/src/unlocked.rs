//! The stage of the encrypted volumes: each is opened, measured and mapped, in their sealed order. Then what opened them is
//! put out of reach, before anything that they hold is looked at.

use iofs_luks::{Header, VolumeKey};
use iofs_policy::{
    boot_record::UnlockedVolume,
    failure::{FailureReport, Stage},
    manifest::{SrkPublic, Volume, VolumeName, VolumeUse},
    measurement::{Measurement, VolumeKeyEvent},
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

mod console;
mod map;
mod open;
mod source;
mod tokens;

use open::Opened;
use source::Source;

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

/// Opens, measures and maps one volume.
fn unlock<S: System>(
    boot: &mut Boot<'_, S>,
    srk: Option<&SrkPublic>,
    volume: &Volume,
    device: &BlockDevice,
) -> Result<OpenVolume, FailureReport> {
    let header = read_header(boot, volume, device)?;
    check_header(volume, device, &header)?;
    let opened = open::open(boot, srk, volume, device, &header)?;
    check_key(volume, device, &header, &opened.key)?;
    latch(boot, volume, &header, &opened.key)?;
    let mapped = map::map(boot, volume, device, &header, &opened.key)?;
    let record = record(volume, device, &header, &mapped, &opened);
    Ok(OpenVolume { device: mapped, record })
}

fn record(
    volume: &Volume,
    device: &BlockDevice,
    header: &Header,
    mapped: &BlockDevice,
    opened: &Opened,
) -> UnlockedVolume {
    UnlockedVolume {
        name: volume.name.clone(),
        usage: volume.usage.name().to_owned(),
        device: device.path.clone(),
        mapping: mapped.path.clone(),
        luks_uuid: header.uuid,
        by: opened.by,
        keyslot: opened.slot.get().into(),
        token: opened.token.map(|token| token.get().into()),
        integrity: header.segment().integrity.is_some(),
    }
}

fn read_header<S: System>(
    boot: &mut Boot<'_, S>,
    volume: &Volume,
    device: &BlockDevice,
) -> Result<Header, FailureReport> {
    let header = Header::read(&mut Source::new(boot, device), device.bytes).map_err(|error| {
        let fact = format!("volume {}: the header on {} is refused", volume.name, device.path);
        let expected = "a LUKS2 header, intact, whose cipher, keyslots and layout are on the list of what is opened";
        let next = "restore the header from its backup (cryptsetup luksHeaderRestore), or make the volume anew";
        refusal(STAGE, fact, expected, error.to_string(), next)
    })?;
    for note in &header.notes {
        boot.warn(format!("volume {}: {note}", volume.name));
    }
    Ok(header)
}

/// What can be refused before a key is derived.
fn check_header(volume: &Volume, device: &BlockDevice, header: &Header) -> Result<(), FailureReport> {
    if let Some(sealed) = volume.luks_uuid.filter(|sealed| *sealed != header.uuid) {
        let fact = format!("volume {}: {} holds another LUKS2 volume", volume.name, device.path);
        let (expected, found) = (format!("LUKS UUID {sealed}, as sealed"), format!("LUKS UUID {}", header.uuid));
        return Err(refusal(STAGE, fact, expected, found, "attach the disk that belongs to this machine"));
    }
    if matches!(volume.usage, VolumeUse::Upper(_)) && header.segment().integrity.is_none() {
        let fact = format!("volume {}: what is written to the root would not be protected", volume.name);
        let found = format!("{} without integrity", header.segment().encryption);
        let next = "make the volume anew with cryptsetup luksFormat --integrity hmac-sha256";
        return Err(refusal(STAGE, fact, "an integrity-protected volume for an upper layer", found, next));
    }
    Ok(())
}

/// A volume by somebody else may have the same UUID, and a token that this TPM answers. Its key is another one.
fn check_key(volume: &Volume, device: &BlockDevice, header: &Header, key: &VolumeKey) -> Result<(), FailureReport> {
    let found = key.id(volume.name.as_str(), &header.uuid);
    match volume.volume_key {
        Some(sealed) if sealed != found => {
            let fact = format!("volume {}: {} is not the sealed volume", volume.name, device.path);
            let next =
                "attach the disk that belongs to this machine; if it was made anew, seal an image with its key's id";
            let (expected, found) = (format!("volume key {sealed}"), format!("volume key {found}"));
            Err(refusal(STAGE, fact, expected, found, next))
        }
        _ => Ok(()),
    }
}

/// Into register 15, however it was opened: whoever runs later cannot say that it was not.
fn latch<S: System>(
    boot: &mut Boot<'_, S>,
    volume: &Volume,
    header: &Header,
    key: &VolumeKey,
) -> Result<(), FailureReport> {
    let name = &volume.name;
    let event = VolumeKeyEvent::new(name, &header.uuid, |bank| key.measured(bank, name.as_str(), &header.uuid));
    measured::measure(boot, STAGE, &Measurement::VolumeKey(event))
}
