//! The modules of a mini-initramfs: what was asked for with all that it needs, read, checked and indexed.
//!
//! Dependencies and softdeps come from each module's own `.modinfo`, which is what depmod reads, too; `modules.dep`
//! must agree. So a package that was only unpacked works, and a stale `modules.dep` is noticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use iofs_policy::modules::{Module, ModuleIndex, ModuleIndexError, normalise};

use super::{
    elf::{Elf, Machine, ModInfo},
    kernel::{KernelImage, KernelRelease},
    profile::{Need, Request, config_option},
    tree::{self, Location, ModuleTree},
};
use crate::report::{ExitStatus, Failure};

/// The modules to embed.
#[derive(Debug, Clone)]
pub struct ModuleSet {
    /// The kernel's release.
    pub release: KernelRelease,
    /// The kernel's machine.
    pub machine: Machine,
    /// What travels with them.
    pub index: ModuleIndex,
    /// The uncompressed files by their names in the index.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Optional modules that the kernel has neither built in nor as a file, sorted.
    pub absent: Vec<String>,
}

/// Why the modules cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// Reading failed.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are no modules of the kernel's release.
    #[error("{}: no modules of kernel {release}; found: {}", given.display(), if found.is_empty() { "none" } else { found })]
    NoFolder {
        /// Where they were searched.
        given: PathBuf,
        /// The kernel's release.
        release: KernelRelease,
        /// The releases that are there.
        found: String,
    },
    /// A required module is not there.
    #[error("kernel {release} has no module {name}{needed_by}, neither built in nor in {}", folder.display())]
    Missing {
        /// The module.
        name: String,
        /// ` (needed by …)`, or nothing.
        needed_by: String,
        /// The kernel.
        release: KernelRelease,
        /// Where it was searched.
        folder: PathBuf,
    },
    /// A module is not for this kernel.
    #[error("{}: built for {found}, the kernel is {expected}", path.display())]
    OtherKernel {
        /// The module.
        path: PathBuf,
        /// The kernel's release or machine.
        expected: String,
        /// The module's.
        found: String,
    },
    /// A file is no module.
    #[error("{}: no 64-bit kernel module with a .modinfo section", path.display())]
    NoModule {
        /// The file.
        path: PathBuf,
    },
    /// `modules.dep` contradicts a module.
    #[error("{}: needs {dependency}, which modules.dep does not say", path.display())]
    Stale {
        /// The module.
        path: PathBuf,
        /// What it needs.
        dependency: String,
    },
    /// Without `modules.dep` nothing says which of two files counts.
    #[error("{}: module {name} is there twice, also as {}", folder.display(), path.display())]
    Twice {
        /// The module.
        name: String,
        /// The folder.
        folder: PathBuf,
        /// One of the two.
        path: PathBuf,
    },
    /// The index cannot hold them.
    #[error(transparent)]
    Index(#[from] ModuleIndexError),
}

impl ModulesError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } | Self::Index(_) => return None,
            Self::NoFolder { .. } => {
                "give the folder lib/modules/VERSION that was built with this kernel, or the root that holds it".into()
            }
            Self::Missing { name, .. } => match config_option(name) {
                Some(option) => format!("install the kernel's full set of modules, or build it with {option}=m or =y"),
                None => "install the package that has it, or leave out --add-module".into(),
            },
            Self::OtherKernel { .. } | Self::NoModule { .. } => {
                "install kernel and modules from the same build, then run depmod".into()
            }
            Self::Stale { .. } | Self::Twice { .. } => "run depmod for this folder: depmod -b ROOT VERSION".into(),
        })
    }
}

impl From<ModulesError> for Failure {
    fn from(error: ModulesError) -> Self {
        let status = match error {
            ModulesError::Read { .. } => ExitStatus::System,
            ModulesError::Missing { .. } | ModulesError::NoFolder { .. } => ExitStatus::Missing,
            _ => ExitStatus::BadInput,
        };
        let failure = Self::new(status, error.to_string());
        match error.advice() {
            Some(advice) => failure.next(advice),
            None => failure,
        }
    }
}

impl ModuleSet {
    /// Collects the requested modules of `kernel` from `given`: `lib/modules/VERSION`, or a root that has it.
    ///
    /// # Errors
    /// If a required module is missing, or files belong to another kernel or contradict each other.
    pub fn collect(kernel: &KernelImage, given: &Path, requests: &[Request]) -> Result<Self, ModulesError> {
        let folder = tree::find_folder(given, &kernel.release)?;
        let tree = ModuleTree::open(&folder)?;
        let mut closure = Closure { kernel, folder: &folder, tree: &tree, taken: BTreeMap::new() };
        let mut absent = BTreeSet::new();
        for request in requests {
            if !closure.request(request)? {
                absent.insert(normalise(&request.name));
            }
        }
        closure.finish(absent)
    }
}

/// A module that was taken.
struct Taken {
    module: Module,
    bytes: Vec<u8>,
    /// The first so many of `module.before` are pre-softdeps.
    soft: usize,
}

struct Closure<'a> {
    kernel: &'a KernelImage,
    folder: &'a Path,
    tree: &'a ModuleTree,
    taken: BTreeMap<String, Taken>,
}

impl Closure<'_> {
    /// Takes a requested module; `false` if the kernel does not have it and that is fine.
    fn request(&mut self, request: &Request) -> Result<bool, ModulesError> {
        let name = normalise(&request.name);
        if self.tree.is_built_in(&name) {
            return Ok(true);
        }
        if self.tree.location(&name).is_none() && request.need != Need::Required {
            return Ok(false);
        }
        self.take(&name, None)?;
        if let Some(taken) = self.taken.get_mut(&name) {
            taken.module.always |= request.need != Need::Hardware;
            if !request.options.is_empty() {
                taken.module.options.clone_from(&request.options);
            }
        }
        Ok(true)
    }

    /// Takes a module and what it needs. It is marked before the descent, so cycles end.
    fn take(&mut self, name: &str, needed_by: Option<&str>) -> Result<(), ModulesError> {
        if self.taken.contains_key(name) || self.tree.is_built_in(name) {
            return Ok(());
        }
        let location = self.tree.location(name).ok_or_else(|| self.missing(name, needed_by))?;
        let taken = self.read(name, location)?;
        let needed: Vec<String> = taken.module.before.iter().chain(&taken.module.after).cloned().collect();
        self.taken.insert(name.to_owned(), taken);
        needed.iter().try_for_each(|other| self.take(other, Some(name)))
    }

    fn read(&self, name: &str, location: &Location) -> Result<Taken, ModulesError> {
        let bytes = tree::read_module(&location.path)?;
        let info = self.checked_info(&location.path, &bytes)?;
        let mut before: Vec<String> = info.pre.iter().flat_map(|word| self.tree.providers(word)).collect();
        let soft = before.len();
        before.extend(self.dependencies(location, &info)?);
        let module = Module {
            name: name.to_owned(),
            file: format!("{name}.ko"),
            before,
            after: info.post.iter().flat_map(|word| self.tree.providers(word)).collect(),
            aliases: info.aliases.into_iter().filter(|alias| names_hardware(alias)).collect(),
            ..Module::default()
        };
        Ok(Taken { module, bytes, soft })
    }

    fn checked_info(&self, path: &Path, bytes: &[u8]) -> Result<ModInfo, ModulesError> {
        let no_module = || ModulesError::NoModule { path: path.to_owned() };
        let elf = Elf::parse(bytes).ok_or_else(no_module)?;
        let info = ModInfo::parse(elf.section(".modinfo").ok_or_else(no_module)?);
        let other = |expected: &str, found: &str| {
            Err(ModulesError::OtherKernel {
                path: path.to_owned(),
                expected: expected.to_owned(),
                found: found.to_owned(),
            })
        };
        if elf.machine != self.kernel.machine {
            return other(self.kernel.machine.name(), elf.machine.name());
        }
        if info.release != self.kernel.release.as_str() {
            return other(self.kernel.release.as_str(), &info.release);
        }
        Ok(info)
    }

    /// What must be loaded before, without what is built in. `modules.dep` also knows what its order must be.
    fn dependencies(&self, location: &Location, info: &ModInfo) -> Result<Vec<String>, ModulesError> {
        let own: Vec<String> = info.depends.iter().map(|name| normalise(name)).collect();
        let mut needs = location.needs.as_ref().unwrap_or(&own).clone();
        needs.retain(|name| !self.tree.is_built_in(name));
        match own.into_iter().find(|name| !self.tree.is_built_in(name) && !needs.contains(name)) {
            Some(dependency) => Err(ModulesError::Stale { path: location.path.clone(), dependency }),
            None => Ok(needs),
        }
    }

    fn missing(&self, name: &str, needed_by: Option<&str>) -> ModulesError {
        ModulesError::Missing {
            name: name.to_owned(),
            needed_by: needed_by.map(|by| format!(" (needed by {by})")).unwrap_or_default(),
            release: self.kernel.release.clone(),
            folder: self.folder.to_owned(),
        }
    }

    /// A pre-softdep that itself needs the module comes after it: hard dependencies win, as they must.
    fn break_cycles(&mut self) {
        for name in self.taken.keys().cloned().collect::<Vec<_>>() {
            let taken = &self.taken[&name];
            let soft = taken.module.before[..taken.soft].to_vec();
            let (late, early): (Vec<_>, Vec<_>) = soft.into_iter().partition(|other| self.reaches(other, &name));
            let taken = self.taken.get_mut(&name).expect("it is one of the keys");
            taken.module.before.splice(..taken.soft, early.iter().cloned());
            taken.module.after.extend(late);
            taken.soft = early.len();
        }
    }

    /// Whether loading `from` would load `goal` first.
    fn reaches(&self, from: &str, goal: &str) -> bool {
        let mut open = vec![from];
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if name == goal {
                return true;
            }
            if seen.insert(name) {
                open.extend(self.taken.get(name).iter().flat_map(|taken| &taken.module.before).map(String::as_str));
            }
        }
        false
    }

    fn finish(mut self, absent: BTreeSet<String>) -> Result<ModuleSet, ModulesError> {
        self.break_cycles();
        let mut files = BTreeMap::new();
        let mut modules = Vec::new();
        for taken in self.taken.into_values() {
            files.insert(taken.module.file.clone(), taken.bytes);
            modules.push(taken.module);
        }
        Ok(ModuleSet {
            release: self.kernel.release.clone(),
            machine: self.kernel.machine,
            index: ModuleIndex::new(self.kernel.release.to_string(), modules)?,
            files,
            absent: absent.into_iter().collect(),
        })
    }
}

/// Whether a device's `MODALIAS` could be what the alias matches: those begin with a bus and a colon. `fs-erofs`,
/// `crypto-xts`, `net-pf-10` or `block-major-8-*` are asked for by name, `devname:` by udev.
fn names_hardware(alias: &str) -> bool {
    alias.split_once(':').is_some_and(|(bus, _)| bus != "devname" && bus != "symbol")
        && alias.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
