//! Kernel modules: those that the boot always needs, and those that the hardware asks for.

use std::{collections::BTreeSet, io};

use iofs_policy::{
    cmdline::AcceptedCommandLine,
    failure::{FailureReport, Stage},
    modules::{MAX_TEXT, Module, ModuleId, ModuleIndex},
    paths::MODULE_INDEX,
};
use nix::errno::Errno;

use crate::{
    boot::Boot,
    report::{milliseconds, refusal, text},
    system::{Loaded, ModuleFile, System},
    uevent,
};

const STAGE: Stage = Stage::Found;
const REBUILD: &str = "build the initramfs again for this kernel";
/// Every bus with its devices: cheaper than walking all of `/sys/devices`.
const BUSES: &str = "/sys/bus";
/// One page, of the largest size that there is.
const MAX_UEVENT: usize = 65536;
/// A hostile bus could make up as many devices as it likes.
const MAX_SEEN: usize = 65536;
/// What needs one of these can wait until it is known that the sealed devices are not elsewhere: SCSI (SATA, too) and USB take
/// the most time to load by far, and their disks a while to answer.
const SLOW: [&str; 2] = ["scsi_mod", "usbcore"];

/// Loads modules of the index, each once.
pub(crate) struct Modules {
    /// None where the initramfs has no modules: everything is built in.
    index: Option<ModuleIndex>,
    /// What the boot cannot do without, with all that it needs: not for the command line to change.
    protected: Vec<ModuleId>,
    blacklist: Vec<String>,
    parameters: Vec<(String, String)>,
    done: Vec<ModuleId>,
    seen: BTreeSet<String>,
    /// What devices asked for and is slow, for as long as that waits.
    postponed: Option<Vec<ModuleId>>,
}

impl Modules {
    /// Reads the index. Slow modules are loaded by [`Self::load_postponed`] alone, the first time.
    pub(crate) fn read<S: System>(
        boot: &mut Boot<'_, S>,
        running: &str,
        command_line: &AcceptedCommandLine,
    ) -> Result<Self, FailureReport> {
        let index = read_index(boot)?;
        if let Some(index) = index.as_ref().filter(|index| index.release() != running) {
            let (expected, found) =
                (format!("modules for kernel {running}"), format!("modules for {}", index.release()));
            return Err(refusal(STAGE, "kernel and modules are of different releases", expected, found, REBUILD));
        }
        Ok(Self {
            protected: index.as_ref().map(|index| index.load_order(&index.always(), &[])).unwrap_or_default(),
            index,
            blacklist: command_line.module_blacklist.clone(),
            parameters: command_line.module_parameters.clone(),
            done: Vec::new(),
            seen: BTreeSet::new(),
            postponed: Some(Vec::new()),
        })
    }

    /// Loads what the devices on all buses ask for, and what the boot always needs.
    pub(crate) fn load_first<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<(), FailureReport> {
        let mut wanted = self.wanted_by_present(boot);
        wanted.extend(self.index.iter().flat_map(ModuleIndex::always));
        self.load(boot, &wanted)
    }

    /// Loads what the devices on all buses ask for.
    pub(crate) fn load_for_present<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<(), FailureReport> {
        let wanted = self.wanted_by_present(boot);
        self.load(boot, &wanted)
    }

    /// Loads what one device asks for.
    pub(crate) fn load_for<S: System>(&mut self, boot: &mut Boot<'_, S>, modalias: &str) -> Result<(), FailureReport> {
        let wanted = self.wanted_by(modalias);
        self.load(boot, &wanted)
    }

    fn wanted_by_present<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Vec<ModuleId> {
        let mut wanted = Vec::new();
        if self.index.is_none() {
            return wanted;
        }
        for bus in boot.system.list(BUSES).unwrap_or_default() {
            let devices = format!("{BUSES}/{bus}/devices");
            for device in boot.system.list(&devices).unwrap_or_default() {
                // Not from `modalias` files: MMC cards have none, and processors, which ask for the fast SHA-256, one
                // for all. A device that vanished meanwhile asks for nothing.
                let uevent = boot.system.read(&format!("{devices}/{device}/uevent"), MAX_UEVENT).unwrap_or_default();
                if let Some(modalias) = uevent::modalias(&uevent) {
                    wanted.extend(self.wanted_by(modalias));
                }
            }
        }
        wanted
    }

    /// Devices that are alike ask once.
    fn wanted_by(&mut self, modalias: &str) -> Vec<ModuleId> {
        let Some(index) = self.index.as_ref().filter(|_| !self.seen.contains(modalias)) else { return Vec::new() };
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(modalias.to_owned());
        }
        let mut wanted = index.matching(modalias);
        if let Some(postponed) = &mut self.postponed {
            postponed.extend(wanted.extract_if(.., |id| is_slow(index, *id)));
        }
        wanted
    }

    /// Loads what was postponed, if anything was. From then on nothing is.
    pub(crate) fn load_postponed<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<bool, FailureReport> {
        let postponed = self.postponed.take().unwrap_or_default();
        self.load(boot, &postponed)?;
        Ok(!postponed.is_empty())
    }

    fn load<S: System>(&mut self, boot: &mut Boot<'_, S>, wanted: &[ModuleId]) -> Result<(), FailureReport> {
        let Some(index) = &self.index else { return Ok(()) };
        for round in index.load_rounds(wanted, &self.done) {
            self.done.extend(&round);
            let (modules, files): (Vec<&Module>, Vec<ModuleFile>) =
                round.into_iter().filter_map(|id| Some((index.get(id), self.file(boot, index, id)?))).unzip();
            for (module, loaded) in modules.into_iter().zip(boot.system.load_modules(&files)) {
                judge(boot, module, loaded)?;
            }
        }
        Ok(())
    }

    /// What is to be loaded of a module: nothing where the command line asks for that.
    fn file<S: System>(&self, boot: &mut Boot<'_, S>, index: &ModuleIndex, id: ModuleId) -> Option<ModuleFile> {
        let module = index.get(id);
        let protected = self.protected.contains(&id);
        if !protected && self.blacklist.contains(&module.name) {
            boot.debug(&format!("module {}: not loaded, as the command line asks", module.name));
            return None;
        }
        let mut parameters = module.options.clone();
        if !protected {
            add_parameters(&mut parameters, &module.name, &self.parameters);
        }
        Some(ModuleFile { path: format!("/lib/modules/{}/{}", index.release(), module.file), parameters })
    }
}

fn is_slow(index: &ModuleIndex, id: ModuleId) -> bool {
    index.load_order(&[id], &[]).into_iter().any(|id| SLOW.contains(&index.get(id).name.as_str()))
}

fn read_index<S: System>(boot: &mut Boot<'_, S>) -> Result<Option<ModuleIndex>, FailureReport> {
    let malformed = |found: String| {
        let expected = format!("a module index in {MODULE_INDEX}");
        refusal(STAGE, "the module index cannot be used", expected, found, REBUILD)
    };
    match boot.system.read(MODULE_INDEX, MAX_TEXT) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|error| malformed(error.utf8_error().to_string()))?;
            ModuleIndex::parse(&text).map(Some).map_err(|error| malformed(error.to_string()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(malformed(text(&error))),
    }
}

fn add_parameters(options: &mut String, module: &str, parameters: &[(String, String)]) {
    for (_, parameter) in parameters.iter().filter(|(name, _)| name == module) {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str(parameter);
    }
}

/// A boot can do without some hardware, and without a processor's faster variant of something; it cannot do without
/// what it always needs. A dependency's failure shows in the module that needs it.
fn judge<S: System>(boot: &mut Boot<'_, S>, module: &Module, loaded: Loaded) -> Result<(), FailureReport> {
    let Err(error) = loaded.result else {
        boot.debug(&format!("module {}: loaded {} ms", module.name, milliseconds(loaded.took)));
        return Ok(());
    };
    let found = text(&error);
    if module.always && error.raw_os_error() != Some(Errno::ENODEV as i32) {
        let fact = format!("kernel module {} cannot be loaded", module.name);
        return Err(refusal(STAGE, fact, format!("{} of this kernel, unchanged", module.file), found, REBUILD));
    }
    boot.warn(format!("module {}: {found}", module.name));
    Ok(())
}
