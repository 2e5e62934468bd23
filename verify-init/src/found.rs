//! The third stage: modules are loaded, and the sealed devices are there.

use std::time::Duration;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{Manifest, Place},
    verity::{Geometry, HashArea},
};

use crate::{
    boot::Boot,
    devices::{BlockDevice, Scanner},
    measured::Measured,
    modules::Modules,
    report::{refusal, text},
    system::System,
    uevent,
    verified::Verified,
};

const STAGE: Stage = Stage::Found;
const TARGET: &str = "verity";
/// Devices are looked for again after this time without an event: sysfs may be complete only after its event.
const RESCAN: Duration = Duration::from_millis(250);

/// The sealed devices are there, and large enough.
pub(crate) struct Found {
    pub(crate) verified: Verified,
    pub(crate) data: BlockDevice,
    pub(crate) tree: BlockDevice,
    /// The tree's first block on its device.
    pub(crate) hash_start_block: u64,
}

impl Measured {
    /// Loads modules and waits for the devices, within one deadline.
    pub(crate) fn find<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Found, FailureReport> {
        // Before the first look, so that nothing comes unseen between look and wait.
        if let Err(error) = boot.system.watch_devices() {
            boot.warn(format!("device events: {}: looking again and again instead", text(&error)));
        }
        let verified = self.verified;
        if !verified.manifest.manifest().volumes.is_empty() {
            let next = "boot it with the verify-init that it was sealed with";
            let found = "volumes in the manifest";
            return Err(refusal(STAGE, "this verify-init opens no volumes", "no volumes", found, next));
        }
        let mut search = Search::new(&verified, boot)?;
        // Hardware first: disks take their time while the rest is loaded.
        search.modules.load_for_present(boot)?;
        search.modules.load_always(boot)?;
        check_mapper(boot)?;
        let (data, tree) = search.wait(boot)?;
        let hash_start_block = check_sizes(verified.manifest.manifest(), &data, &tree)?;
        boot.reached(STAGE, &format!("found data on {} and tree on {}", data.path, tree.path));
        Ok(Found { verified, data, tree, hash_start_block })
    }
}

fn check_mapper<S: System>(boot: &mut Boot<'_, S>) -> Result<(), FailureReport> {
    let found = match boot.system.mapper_targets() {
        Ok(targets) if targets.iter().any(|target| target == TARGET) => return Ok(()),
        Ok(targets) => format!("targets {}", targets.join(", ")),
        Err(error) => text(&error),
    };
    let next = "build the initramfs with the module dm-verity, or boot a kernel that has it";
    Err(refusal(STAGE, "kernel without dm-verity", "the device-mapper target verity", found, next))
}

/// One search for both places.
struct Search<'a> {
    modules: Modules,
    scanner: Scanner,
    data: &'a Place,
    tree: &'a Place,
    limit: Duration,
}

impl<'a> Search<'a> {
    fn new<S: System>(verified: &'a Verified, boot: &mut Boot<'_, S>) -> Result<Self, FailureReport> {
        let (manifest, command_line) = (verified.manifest.manifest(), &verified.command_line);
        let limit = command_line.device_timeout.unwrap_or(Duration::from_secs(manifest.device_timeout.into()));
        let modules = Modules::read(boot, &verified.release, command_line)?;
        let scanner = Scanner::default();
        Ok(Self { modules, scanner, data: &manifest.data, tree: &manifest.tree, limit })
    }

    fn wait<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<(BlockDevice, BlockDevice), FailureReport> {
        let deadline = boot.system.now() + self.limit;
        let unique_ids = [self.data, self.tree].iter().any(|place| matches!(place, Place::PartUuid(_)));
        loop {
            let devices = self.scanner.scan(boot.system, unique_ids);
            let (data, tree) = (only(&devices, self.data)?, only(&devices, self.tree)?);
            if let (Some(data), Some(tree)) = (data, tree) {
                return Ok((data.clone(), tree.clone()));
            }
            let left = deadline.saturating_sub(boot.system.now());
            if left.is_zero() {
                return Err(self.late(&devices, data.is_none(), tree.is_none()));
            }
            self.take_events(boot, left.min(RESCAN))?;
        }
    }

    /// Waits for an event, and takes all that are there already: they come in crowds.
    fn take_events<S: System>(&mut self, boot: &mut Boot<'_, S>, wait: Duration) -> Result<(), FailureReport> {
        let mut first = true;
        loop {
            match boot.system.next_event(if first { wait } else { Duration::ZERO }) {
                Ok(Some(event)) => {
                    if let Some(modalias) = uevent::new_modalias(&event) {
                        self.modules.load_for(boot, modalias)?;
                    }
                }
                Ok(None) if !first => return Ok(()),
                // A device may have come whose event was lost, or that sysfs did not show at the first look.
                Ok(None) | Err(_) => return self.modules.load_for_present(boot),
            }
            first = false;
        }
    }

    fn late(&self, devices: &[BlockDevice], no_data: bool, no_tree: bool) -> FailureReport {
        let mut awaited = Vec::new();
        awaited.extend(no_data.then(|| format!("{} (data)", self.data)));
        awaited.extend(no_tree.then(|| format!("{} (tree)", self.tree)));
        let mut seen: Vec<String> = devices.iter().map(BlockDevice::to_string).collect();
        seen.extend(self.scanner.damaged.iter().map(|(disk, why)| format!("{disk}: {why}")));
        let found = if seen.is_empty() { "no block device".to_owned() } else { seen.join("; ") };
        let fact = format!("a sealed device did not appear within {} s", self.limit.as_secs());
        let next = "attach the sealed disk; without any disk in the list its kernel module is missing, and a disk \
                    without partitions has a damaged table or was truncated";
        refusal(STAGE, fact, awaited.join(" and "), found, next)
    }
}

/// The one device at that place, if it is there.
fn only<'a>(devices: &'a [BlockDevice], place: &Place) -> Result<Option<&'a BlockDevice>, FailureReport> {
    let mut there = devices.iter().filter(|device| device.is(place));
    let (first, second) = (there.next(), there.next());
    if let (Some(first), Some(second)) = (first, second) {
        let (expected, found) = (format!("one device with {place}"), format!("{} and {}", first.path, second.path));
        let next = "detach the disk that does not belong to this machine";
        return Err(refusal(STAGE, "the sealed device is ambiguous", expected, found, next));
    }
    Ok(first)
}

/// Checks that the areas fit, and says where the tree starts.
fn check_sizes(manifest: &Manifest, data: &BlockDevice, tree: &BlockDevice) -> Result<u64, FailureReport> {
    let verity = &manifest.verity;
    let impossible = |error: iofs_policy::verity::ParameterError| {
        refusal(
            STAGE,
            "the sealed verity device is impossible",
            "a tree that fits",
            error.to_string(),
            "seal the image again",
        )
    };
    let geometry = Geometry::new(&verity.parameters).map_err(impossible)?;
    let area = HashArea { offset: verity.hash_offset, superblock: verity.superblock_uuid.is_some() };
    let range = area.tree_range(&verity.parameters, &geometry).map_err(impossible)?;
    for (what, device, needed) in [("data", data, geometry.data_bytes()), ("tree", tree, range.end)] {
        if device.bytes < needed {
            let fact = format!("the {what} device {} is too small", device.path);
            let (expected, found) = (format!("at least {needed} bytes"), format!("{} bytes", device.bytes));
            return Err(refusal(STAGE, fact, expected, found, "write the whole image to the disk again"));
        }
    }
    area.start_block(verity.parameters.hash_block_size).map_err(impossible)
}
