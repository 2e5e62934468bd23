//! Kernel modules: those that the boot always needs, and those that the hardware asks for.

use std::{collections::BTreeSet, io, time::Duration};

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
    system::System,
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
    /// Reads the index. Slow modules are loaded at once, or only by [`Self::load_postponed`].
    pub(crate) fn read<S: System>(
        boot: &mut Boot<'_, S>,
        running: &str,
        command_line: &AcceptedCommandLine,
        postpone: bool,
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
            postponed: postpone.then(Vec::new),
        })
    }

    /// Loads what the boot always needs.
    pub(crate) fn load_always<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<(), FailureReport> {
        let wanted = self.index.as_ref().map(ModuleIndex::always).unwrap_or_default();
        self.load(boot, &wanted)
    }

    /// Loads what the devices on all buses ask for.
    pub(crate) fn load_for_present<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<(), FailureReport> {
        if self.index.is_none() {
            return Ok(());
        }
        for bus in boot.system.list(BUSES).unwrap_or_default() {
            let devices = format!("{BUSES}/{bus}/devices");
            for device in boot.system.list(&devices).unwrap_or_default() {
                // Not from `modalias` files: MMC cards have none, and processors, which ask for the fast SHA-256, one
                // for all. A device that vanished meanwhile asks for nothing.
                let uevent = boot.system.read(&format!("{devices}/{device}/uevent"), MAX_UEVENT).unwrap_or_default();
                if let Some(modalias) = uevent::modalias(&uevent) {
                    self.load_for(boot, modalias)?;
                }
            }
        }
        Ok(())
    }

    /// Loads what one device asks for. Devices that are alike ask once.
    pub(crate) fn load_for<S: System>(&mut self, boot: &mut Boot<'_, S>, modalias: &str) -> Result<(), FailureReport> {
        if self.seen.contains(modalias) {
            return Ok(());
        }
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(modalias.to_owned());
        }
        let Some(index) = &self.index else { return Ok(()) };
        let mut wanted = index.matching(modalias);
        if let Some(postponed) = &mut self.postponed {
            postponed.extend(wanted.extract_if(.., |id| is_slow(index, *id)));
        }
        self.load(boot, &wanted)
    }

    /// Loads what was postponed, if anything was. From then on nothing is.
    pub(crate) fn load_postponed<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Result<bool, FailureReport> {
        let postponed = self.postponed.take().unwrap_or_default();
        self.load(boot, &postponed)?;
        Ok(!postponed.is_empty())
    }

    fn load<S: System>(&mut self, boot: &mut Boot<'_, S>, wanted: &[ModuleId]) -> Result<(), FailureReport> {
        let Some(index) = &self.index else { return Ok(()) };
        for id in index.load_order(wanted, &self.done) {
            let module = index.get(id);
            self.done.push(id);
            let protected = self.protected.contains(&id);
            if !protected && self.blacklist.contains(&module.name) {
                boot.debug(&format!("module {}: not loaded, as the command line asks", module.name));
                continue;
            }
            let mut options = module.options.clone();
            if !protected {
                add_parameters(&mut options, &module.name, &self.parameters);
            }
            let path = format!("/lib/modules/{}/{}", index.release(), module.file);
            let before = boot.system.now();
            let loaded = boot.system.load_module(&path, &options);
            let took = boot.system.now().saturating_sub(before);
            judge(boot, module, loaded, took)?;
        }
        Ok(())
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
fn judge<S: System>(
    boot: &mut Boot<'_, S>,
    module: &Module,
    loaded: io::Result<()>,
    took: Duration,
) -> Result<(), FailureReport> {
    let Err(error) = loaded else {
        boot.debug(&format!("module {}: loaded {} ms", module.name, milliseconds(took)));
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
