//! The fourth stage: dm-verity stands over the data. No byte of the image is read before that.

use std::{fmt, io};

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{Manifest, SealedVerity},
    verity::{DeviceNumber, LoadedTarget, Superblock, VerityTable, check_status},
};

use crate::{
    boot::Boot,
    found::ImageDevices,
    report::{refusal, text},
    superblock,
    system::{Access, Mapping, System},
    unlocked::{OpenVolume, Unlocked},
    verified::Verified,
};

mod signature;
#[cfg(feature = "full")]
mod whole;

use signature::Loaded;
#[cfg(feature = "full")]
pub(crate) use whole::read_all;

const STAGE: Stage = Stage::Mapped;
const TARGET: &str = "verity";
const SEAL: &str = "write the sealed image and its tree to the disk again";
/// As many digits of the root hash as people compare.
const SHORT: usize = 16;

/// The verity device runs, and the kernel confirmed its table.
pub(crate) struct Mapped {
    pub(crate) verified: Verified,
    pub(crate) volumes: Vec<OpenVolume>,
    /// The node of the mapped device.
    pub(crate) path: String,
    pub(crate) data: DeviceNumber,
    pub(crate) data_device: String,
    pub(crate) hash_device: String,
    pub(crate) table: String,
}

impl Unlocked {
    /// Maps, and reads back what was mapped.
    pub(crate) fn map<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Mapped, FailureReport> {
        let manifest = self.verified.manifest.manifest();
        let ImageDevices { data, tree, .. } = &self.image;
        compare_superblock(boot, &manifest.verity, &tree.path)?;
        let name = manifest.image.role.mapping();
        let Loaded { table, number, signed } = signature::create(boot, name, &self.image, &manifest.verity)?;
        let confirmed = confirm(boot, name, &table, data.number, tree.number)?;
        let path = format!("/dev/dm-{}", number.minor);
        // For tools that look for the name; udev makes the same link later.
        let link = format!("/dev/mapper/{name}");
        if let Err(error) = boot.system.link(&format!("../dm-{}", number.minor), &link) {
            boot.warn(format!("{link}: {}", text(&error)));
        }
        boot.reached(STAGE, &description(manifest, &path, signed));
        let Self { verified, image: ImageDevices { data, tree, .. }, volumes } = self;
        let (data_device, hash_device, data) = (data.path, tree.path, data.number);
        Ok(Mapped { verified, volumes, path, data, data_device, hash_device, table: confirmed })
    }
}

/// The table, with these options besides the sealed ones.
fn table(image: &ImageDevices, sealed: &SealedVerity, more: &[&str]) -> Result<VerityTable, FailureReport> {
    let devices = [image.data.number.to_string(), image.tree.number.to_string()];
    let options = sealed.on_corruption.option().into_iter().chain(more.iter().copied()).map(str::to_owned).collect();
    let (parameters, root_hash) = (sealed.parameters.clone(), sealed.root_hash.clone());
    VerityTable::new(devices, parameters, image.hash_start_block, root_hash, options).map_err(|error| {
        refusal(
            STAGE,
            "the sealed verity device is impossible",
            "a table that the kernel takes",
            error.to_string(),
            "seal the image again",
        )
    })
}

/// Asks the kernel for the device.
fn load<S: System>(
    boot: &mut Boot<'_, S>,
    name: &str,
    sealed: &SealedVerity,
    table: &VerityTable,
) -> io::Result<DeviceNumber> {
    boot.system.create_mapping(&Mapping {
        name,
        uuid: &mapper_uuid(name, sealed),
        sectors: table.sectors(),
        target: TARGET,
        parameters: &table.to_string(),
        access: Access::ReadOnly,
    })
}

fn not_mapped(table: &VerityTable, error: &io::Error) -> FailureReport {
    let fact = "the verity device cannot be mapped";
    refusal(STAGE, fact, table.to_string(), text(error), "see the kernel's messages above")
}

fn description(manifest: &Manifest, path: &str, signed: bool) -> String {
    let root_hash = manifest.verity.root_hash.to_string();
    let by_kernel = if signed { ", signed as the kernel demands" } else { "" };
    format!("mapped {path} with root hash {}{by_kernel}", &root_hash[..SHORT.min(root_hash.len())])
}

/// cryptsetup's form, by which it and systemd know a verity device.
fn mapper_uuid(name: &str, sealed: &SealedVerity) -> String {
    match sealed.superblock_uuid {
        Some(uuid) => format!("CRYPT-VERITY-{}-{name}", uuid.simple()),
        None => format!("CRYPT-VERITY-{name}"),
    }
}

/// Other tools would believe the superblock, so one that differs from the sealed values is a reason to stop.
fn compare_superblock<S: System>(
    boot: &mut Boot<'_, S>,
    sealed: &SealedVerity,
    device: &str,
) -> Result<(), FailureReport> {
    let Some(uuid) = sealed.superblock_uuid else { return Ok(()) };
    let expected = Superblock { parameters: sealed.parameters.clone(), uuid };
    let found = boot.system.read_at(device, sealed.hash_offset, Superblock::SIZE).map_err(|error| {
        let expected = format!("{} bytes at byte {} of {device}", Superblock::SIZE, sealed.hash_offset);
        refusal(STAGE, "the verity superblock cannot be read", expected, text(&error), SEAL)
    })?;
    match superblock::difference(&expected, &found) {
        None => Ok(()),
        Some(difference) => {
            let fact = format!("the verity superblock on {device} differs from the sealed one: {}", difference.field);
            Err(refusal(STAGE, fact, difference.expected, difference.found, SEAL))
        }
    }
}

/// Reads table and status back, and returns the table as the kernel tells it.
fn confirm<S: System>(
    boot: &mut Boot<'_, S>,
    name: &str,
    table: &VerityTable,
    data: DeviceNumber,
    tree: DeviceNumber,
) -> Result<String, FailureReport> {
    let differs = |found: &dyn fmt::Display| {
        let next = "start the machine again; if this repeats, its kernel cannot be trusted";
        refusal(STAGE, "the kernel's verity device is not the sealed one", table.to_string(), found.to_string(), next)
    };
    let targets = boot.system.mapping_table(name, Access::ReadOnly).map_err(|error| differs(&text(&error)))?;
    let [target] = targets.as_slice() else { return Err(differs(&format!("{} targets", targets.len()))) };
    let loaded =
        LoadedTarget { start: target.start, sectors: target.sectors, target: &target.target, parameters: &target.text };
    table.check_loaded(&loaded, data, tree).map_err(|error| differs(&error))?;
    let status = boot.system.mapping_status(name, Access::ReadOnly).map_err(|error| differs(&text(&error)))?;
    let [one] = status.as_slice() else { return Err(differs(&format!("{} statuses", status.len()))) };
    check_status(&one.text).map_err(|error| differs(&error))?;
    Ok(format!("{} {} {} {}", target.start, target.sectors, target.target, target.text))
}

#[cfg(test)]
mod tests;
