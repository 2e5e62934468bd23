//! The third stage: modules are loaded, and the sealed devices are there.

use std::time::Duration;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{Manifest, Place},
    verity::{Geometry, HashArea},
};

use crate::{
    boot::Boot,
    devices::{BlockDevice, Looked, Scanner},
    measured::Measured,
    modules::Modules,
    report::{refusal, text},
    system::System,
    uevent,
    verified::Verified,
};

#[cfg(feature = "full")]
use crate::attached::attach;
#[cfg(not(feature = "full"))]
use crate::lean::attach;

const STAGE: Stage = Stage::Found;
/// What device-mapper must be able to do, with the modules that bring it. The others than the first are for volumes.
const TARGETS: [(&str, &str); 2] = [("verity", "dm-verity"), ("crypt", "dm-crypt")];
/// Devices are looked for again after this time without an event: sysfs may be complete only after its event.
const RESCAN: Duration = Duration::from_millis(250);

/// How long to wait for an optional volume once everything else is there.
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(3);

/// The sealed devices are there.
pub(crate) struct Found {
    pub(crate) verified: Verified,
    /// Where the image lies, unless it is in a volume.
    pub(crate) image: Option<ImageDevices>,
    /// The volumes' devices, one for each in the manifest; none for an optional one that is not there.
    pub(crate) volumes: Vec<Option<BlockDevice>>,
}

/// Where data and tree are, large enough for both.
pub(crate) struct ImageDevices {
    pub(crate) data: BlockDevice,
    pub(crate) tree: BlockDevice,
    /// The tree's first block on its device.
    pub(crate) hash_start_block: u64,
}

impl ImageDevices {
    /// Checks that the areas fit.
    pub(crate) fn new(
        stage: Stage,
        manifest: &Manifest,
        data: BlockDevice,
        tree: BlockDevice,
    ) -> Result<Self, FailureReport> {
        let hash_start_block = check_sizes(stage, manifest, &data, &tree)?;
        Ok(Self { data, tree, hash_start_block })
    }
}

impl Measured {
    /// Loads modules and waits for the devices, within one deadline.
    pub(crate) fn find<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Found, FailureReport> {
        let verified = self.verified;
        let manifest = verified.manifest.manifest();
        // Who chose a slot has searched already, with the same modules: without volumes nothing is left to be found.
        let mut devices = match boot.slots.is_some() && manifest.volumes.is_empty() {
            true => Vec::new(),
            false => search(boot, &verified, wanted(manifest))?,
        }
        .into_iter();
        let image = image(boot, manifest, devices.next().flatten(), devices.next().flatten())?;
        let volumes: Vec<Option<BlockDevice>> = devices.collect();
        boot.reached(STAGE, &description(manifest, image.as_ref(), &volumes));
        for (volume, _) in manifest.volumes.iter().zip(&volumes).filter(|(_, device)| device.is_none()) {
            boot.warn(format!("volume {}: no device {}: the boot goes on without it", volume.name, volume.place));
        }
        Ok(Found { verified, image, volumes })
    }
}

/// Loads modules and waits for what is at these places: nothing for what is optional and not there.
pub(crate) fn search<S: System>(
    boot: &mut Boot<'_, S>,
    verified: &Verified,
    wanted: Vec<Wanted<'_>>,
) -> Result<Vec<Option<BlockDevice>>, FailureReport> {
    // Before the first look, so that nothing comes unseen between look and wait.
    if let Err(error) = boot.system.watch_devices() {
        boot.warn(format!("device events: {}: looking again and again instead", text(&error)));
    }
    let manifest = verified.manifest.manifest();
    let mut search = Search::new(verified, wanted, boot)?;
    search.modules.load_first(boot)?;
    // Who may be asked for a passphrase needs a keyboard.
    if manifest.volumes.iter().any(|volume| volume.unlock.pin || volume.unlock.passphrase) {
        search.modules.load_postponed(boot)?;
    }
    check_mapper(boot, manifest)?;
    // What came with those modules asks for others.
    search.take_events(boot, Duration::ZERO)?;
    let found = search.wait(boot)?;
    boot.modules = Some(search.modules);
    Ok(found)
}

/// Data, tree, then the volumes. What lies in a volume is not looked for.
fn wanted(manifest: &Manifest) -> Vec<Wanted<'_>> {
    let image = [(&manifest.data, "data"), (&manifest.tree, "tree")];
    let mut wanted: Vec<Wanted<'_>> =
        image.into_iter().map(|(place, what)| Wanted::new(place, what.to_owned(), in_volume(manifest))).collect();
    wanted.extend(
        manifest
            .volumes
            .iter()
            .map(|volume| Wanted::new(&volume.place, format!("volume {}", volume.name), volume.optional)),
    );
    wanted
}

/// The image's devices, unless it lies in a volume. What lies at one place is one device.
fn image<S: System>(
    boot: &mut Boot<'_, S>,
    manifest: &Manifest,
    data: Option<BlockDevice>,
    tree: Option<BlockDevice>,
) -> Result<Option<ImageDevices>, FailureReport> {
    let role = manifest.image.role;
    let data = attach(boot, role, "data", &manifest.data, data)?;
    let tree = match manifest.is_one_piece() {
        true => data.clone(),
        false => attach(boot, role, "tree", &manifest.tree, tree)?,
    };
    let devices = data.zip(tree).map(|(data, tree)| ImageDevices::new(STAGE, manifest, data, tree));
    devices.transpose()
}

/// Whether something is at a place that is looked for among the devices.
fn is_looked_for(place: &Place) -> bool {
    !matches!(place, Place::Volume(_) | Place::Memory | Place::Slot)
}

/// Whether the image lies in a volume.
fn in_volume(manifest: &Manifest) -> bool {
    matches!(manifest.data, Place::Volume(_))
}

fn description(manifest: &Manifest, image: Option<&ImageDevices>, volumes: &[Option<BlockDevice>]) -> String {
    let mut found = Vec::new();
    found.extend(image.map(|image| format!("data on {} and tree on {}", image.data.path, image.tree.path)));
    let there = manifest.volumes.iter().zip(volumes).filter_map(|(volume, device)| Some((volume, device.as_ref()?)));
    found.extend(there.map(|(volume, device)| format!("volume {} on {}", volume.name, device.path)));
    format!("found {}", found.join(", "))
}

fn check_mapper<S: System>(boot: &mut Boot<'_, S>, manifest: &Manifest) -> Result<(), FailureReport> {
    let needed: &[(&str, &str)] = if manifest.volumes.is_empty() { &TARGETS[..1] } else { &TARGETS };
    let missing = match boot.system.mapper_targets() {
        Ok(targets) => needed
            .iter()
            .find(|(target, _)| !targets.iter().any(|one| one == target))
            .map(|missing| (missing, format!("targets {}", targets.join(", ")))),
        Err(error) => needed.first().map(|target| (target, text(&error))),
    };
    let Some(((target, module), found)) = missing else { return Ok(()) };
    let next = format!("build the initramfs with the module {module}, or boot a kernel that has it");
    Err(refusal(STAGE, format!("kernel without {module}"), format!("the device-mapper target {target}"), found, next))
}

/// Something that is looked for.
pub(crate) struct Wanted<'a> {
    place: &'a Place,
    what: String,
    optional: bool,
}

impl<'a> Wanted<'a> {
    /// At a place, by what reports call it; without what is optional the boot goes on.
    pub(crate) fn new(place: &'a Place, what: String, optional: bool) -> Self {
        Self { place, what, optional }
    }
}

/// One search for all places.
struct Search<'a> {
    modules: Modules,
    scanner: Scanner,
    wanted: Vec<Wanted<'a>>,
    limit: Duration,
}

impl<'a> Search<'a> {
    fn new<S: System>(
        verified: &Verified,
        wanted: Vec<Wanted<'a>>,
        boot: &mut Boot<'_, S>,
    ) -> Result<Self, FailureReport> {
        let (manifest, command_line) = (verified.manifest.manifest(), &verified.command_line);
        let limit = command_line.device_timeout.unwrap_or(Duration::from_secs(manifest.device_timeout.into()));
        let modules = match boot.modules.take() {
            Some(modules) => modules,
            None => Modules::read(boot, &verified.release, command_line)?,
        };
        Ok(Self { modules, scanner: Scanner::default(), wanted, limit })
    }

    /// The devices, one for each place.
    fn wait<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<Vec<Option<BlockDevice>>, FailureReport> {
        let mut deadline = boot.system.now() + self.limit;
        let looked = Looked::at(self.wanted.iter().map(|wanted| wanted.place));
        let mut complete = false;
        loop {
            let devices = self.scanner.scan(boot.system, looked);
            let found = self.look(boot, &devices)?;
            let missing = |optional: bool| {
                let mut pairs = self.wanted.iter().zip(&found);
                pairs.any(|(wanted, found)| {
                    found.is_none() && wanted.optional == optional && is_looked_for(wanted.place)
                })
            };
            let (required, optional) = (missing(false), missing(true));
            if !required && !optional {
                return Ok(found);
            }
            if self.modules.load_postponed(boot)? {
                continue;
            }
            if !required && !complete {
                complete = true;
                deadline = deadline.min(boot.system.now() + OPTIONAL_PATIENCE);
            }
            let left = deadline.saturating_sub(boot.system.now());
            if left.is_zero() {
                return if required { Err(self.late(&devices, &found)) } else { Ok(found) };
            }
            self.take_events(boot, left.min(RESCAN))?;
        }
    }

    /// Looks once. Two devices at the place of an optional volume are none.
    fn look<S: System>(
        &self,
        boot: &mut Boot<'_, S>,
        devices: &[BlockDevice],
    ) -> Result<Vec<Option<BlockDevice>>, FailureReport> {
        let mut found = Vec::new();
        for wanted in &self.wanted {
            match only(devices, wanted.place) {
                Ok(device) => found.push(device.cloned()),
                Err(refusal) if wanted.optional => {
                    boot.debug(&format!("{}: {}: {}", wanted.what, refusal.fact, refusal.found));
                    found.push(None);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(found)
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

    fn late(&self, devices: &[BlockDevice], found: &[Option<BlockDevice>]) -> FailureReport {
        let missing = self.wanted.iter().zip(found).filter(|(wanted, found)| found.is_none() && !wanted.optional);
        let awaited: Vec<String> = missing.map(|(wanted, _)| format!("{} ({})", wanted.place, wanted.what)).collect();
        let mut seen: Vec<String> = devices.iter().map(BlockDevice::to_string).collect();
        seen.extend(self.scanner.damaged.iter().map(|(disk, why)| format!("{disk}: {why}")));
        let found = if seen.is_empty() { "no block device".to_owned() } else { seen.join("; ") };
        let fact = format!("a sealed device did not appear within {} s", self.limit.as_secs());
        let next = "attach the sealed disk; without any disk in the list its kernel module is missing (a wider \
                    profile of modules has more), and a disk without partitions has a damaged table or was truncated";
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
fn check_sizes(
    stage: Stage,
    manifest: &Manifest,
    data: &BlockDevice,
    tree: &BlockDevice,
) -> Result<u64, FailureReport> {
    let verity = &manifest.verity;
    let impossible = |error: iofs_policy::verity::ParameterError| {
        refusal(
            stage,
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
            return Err(refusal(stage, fact, expected, found, "write the whole image to the disk again"));
        }
    }
    area.start_block(verity.parameters.hash_block_size).map_err(impossible)
}
