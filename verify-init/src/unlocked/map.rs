//! The opened volume's device. The key goes from here into the kernel's keyring, and into no table.

use iofs_luks::{Below, CryptTable, Header, IntegritySuperblock, IntegrityTable, KeyReference, VolumeKey};
use iofs_policy::{
    failure::FailureReport,
    manifest::{Volume, VolumeUse},
    verity::{DeviceNumber, LoadedTarget, TableError},
};

use super::{STAGE, source::Source};
use crate::{
    boot::Boot,
    devices::BlockDevice,
    report::{refusal, text},
    system::{Access, KeyKind, MappedTarget, Mapping, System},
};

const SECTOR: u64 = 512;

/// Maps, and reads back what was mapped. What was mapped before something failed is removed.
pub(super) fn map<S: System>(
    boot: &mut Boot<'_, S>,
    volume: &Volume,
    device: &BlockDevice,
    header: &Header,
    key: &VolumeKey,
) -> Result<BlockDevice, FailureReport> {
    let job = Job { volume, device, header };
    if header.segment().integrity.is_none() {
        return job.crypt(boot, device, Below::Device { bytes: device.bytes }, key);
    }
    let (table, below) = job.integrity(boot)?;
    let mapped = job.crypt(boot, &below, Below::Integrity(&table), key);
    if mapped.is_err() {
        let _ = boot.system.remove_mapping(&volume.name.integrity_mapping());
    }
    mapped
}

struct Job<'a> {
    volume: &'a Volume,
    device: &'a BlockDevice,
    header: &'a Header,
}

impl Job<'_> {
    fn refused(&self, what: &str, expected: impl Into<String>, found: impl Into<String>) -> FailureReport {
        let fact = format!("volume {}: {what}", self.volume.name);
        let next = match self.header.segment().integrity {
            None => "see the kernel's messages above",
            Some(_) => "see the kernel's messages above; without dm-integrity, seal with \"integrity\" in modules.with",
        };
        refusal(STAGE, fact, expected, found, next)
    }

    /// A table that the header does not allow for.
    fn impossible(&self, error: &TableError) -> FailureReport {
        let fact = format!("volume {}: it cannot lie on {}", self.volume.name, self.device.path);
        let next = "write the whole volume to the disk again, or make it anew";
        refusal(STAGE, fact, "a device that fits its header", error.to_string(), next)
    }

    /// dm-integrity, whose superblock is as little to be believed as the header: a wrong one gives tags that do not fit.
    fn integrity<S: System>(&self, boot: &mut Boot<'_, S>) -> Result<(IntegrityTable, BlockDevice), FailureReport> {
        let superblock = IntegritySuperblock::read(&mut Source::new(boot, self.device), self.header.segment());
        let superblock = superblock.map_err(|error| {
            self.refused("its integrity superblock is refused", "a superblock of dm-integrity", error.to_string())
        })?;
        let number = self.device.number;
        let table = self.header.integrity_table(&number.to_string(), self.device.bytes, &superblock);
        let table = table.map_err(|error| self.impossible(&error))?;
        let name = self.volume.name.integrity_mapping();
        // The form by which cryptsetup knows a device that only another one stands on.
        let uuid = format!("CRYPT-SUBDEV-{}-{name}", self.header.uuid.simple());
        let (sectors, parameters) = (table.sectors(), table.to_string());
        let access = Access::ReadWrite;
        let mapping = Mapping {
            name: &name,
            uuid: &uuid,
            sectors,
            target: IntegrityTable::TARGET,
            parameters: &parameters,
            access,
        };
        let mapped = self.create(boot, &mapping)?;
        self.confirm(boot, &mapping, |loaded| table.check_loaded(loaded, number))?;
        Ok((table, mapped))
    }

    fn crypt<S: System>(
        &self,
        boot: &mut Boot<'_, S>,
        on: &BlockDevice,
        below: Below<'_>,
        key: &VolumeKey,
    ) -> Result<BlockDevice, FailureReport> {
        let (name, uuid) = (self.volume.name.as_str(), self.header.uuid);
        let description = format!("cryptsetup:{uuid}-d0");
        let reference = KeyReference { bytes: key.as_bytes().len(), description: description.clone() };
        let table = self.header.crypt_table(&on.number.to_string(), below, &reference);
        let table = table.map_err(|error| self.impossible(&error))?;
        let serial = boot.system.add_key(KeyKind::Logon, &description, key.as_bytes()).map_err(|error| {
            self.refused("its key cannot be given to the kernel", "room for a key in the keyring", text(&error))
        })?;
        let (uuid, parameters) = (format!("CRYPT-LUKS2-{}-{name}", uuid.simple()), table.to_string());
        // Nothing writes to an image.
        let access = if self.volume.usage == VolumeUse::Image { Access::ReadOnly } else { Access::ReadWrite };
        let (sectors, target) = (table.sectors(), CryptTable::TARGET);
        let mapping = Mapping { name, uuid: &uuid, sectors, target, parameters: &parameters, access };
        let mapped = self.create(boot, &mapping);
        // dm-crypt has a copy by now, or never will.
        if let Err(error) = boot.system.remove_key(serial) {
            boot.warn(format!("volume {name}: its key stays in the keyring of this process: {}", text(&error)));
        }
        let mapped = mapped?;
        self.confirm(boot, &mapping, |loaded| table.check_loaded(loaded, on.number))?;
        // For tools that look for the name; udev makes the same link later.
        if let Err(error) = boot.system.link(&format!("../{}", mapped.name), &format!("/dev/mapper/{name}")) {
            boot.warn(format!("/dev/mapper/{name}: {}", text(&error)));
        }
        Ok(mapped)
    }

    fn create<S: System>(&self, boot: &mut Boot<'_, S>, mapping: &Mapping<'_>) -> Result<BlockDevice, FailureReport> {
        let number = boot.system.create_mapping(mapping).map_err(|error| {
            self.refused(&format!("{} cannot be mapped", mapping.name), mapping.parameters, text(&error))
        })?;
        Ok(mapped_device(number, mapping.sectors))
    }

    /// Holds what the kernel reports against what was loaded, and removes what is not that.
    fn confirm<S: System>(
        &self,
        boot: &mut Boot<'_, S>,
        mapping: &Mapping<'_>,
        check: impl Fn(&LoadedTarget<'_>) -> Result<(), TableError>,
    ) -> Result<(), FailureReport> {
        let targets = boot.system.mapping_table(mapping.name, mapping.access).map_err(|error| text(&error));
        let checked = targets.and_then(|targets| check_one(&targets, check));
        checked.map_err(|found| {
            let _ = boot.system.remove_mapping(mapping.name);
            let what = format!("the kernel's device {} is not the one that was asked for", mapping.name);
            self.refused(&what, mapping.parameters, found)
        })
    }
}

fn check_one(
    targets: &[MappedTarget],
    check: impl Fn(&LoadedTarget<'_>) -> Result<(), TableError>,
) -> Result<(), String> {
    let [target] = targets else { return Err(format!("{} targets", targets.len())) };
    let loaded =
        LoadedTarget { start: target.start, sectors: target.sectors, target: &target.target, parameters: &target.text };
    check(&loaded).map_err(|error| error.to_string())
}

fn mapped_device(number: DeviceNumber, sectors: u64) -> BlockDevice {
    let name = format!("dm-{}", number.minor);
    let (path, bytes) = (format!("/dev/{name}"), sectors.saturating_mul(SECTOR));
    BlockDevice { name, path, number, bytes, partition: None, media: Vec::new() }
}
