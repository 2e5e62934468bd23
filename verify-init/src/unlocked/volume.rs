//! One encrypted volume: its header is read, its key found, checked and measured, and the device mapped.

use iofs_luks::{Header, VolumeKey};
use iofs_policy::{
    boot_record::UnlockedVolume,
    failure::FailureReport,
    manifest::{SrkPublic, Volume, VolumeUse},
    measurement::{Measurement, VolumeKeyEvent},
};

use super::{
    OpenVolume, STAGE, map,
    open::{self, Opened},
    source::Source,
};
use crate::{boot::Boot, devices::BlockDevice, measured, report::refusal, system::System};

/// Opens, measures and maps one volume.
pub(super) fn unlock<S: System>(
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
