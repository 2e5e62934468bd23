//! A kernel's folder of modules: where each is, what is built in, what depmod knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use iofs_policy::modules::normalise;

use super::{kernel::KernelRelease, modules::ModulesError};
use crate::archive::compression::Compression;

/// A larger module is refused; the largest of a distribution (a GPU driver) is below 20 MB.
const MAX_MODULE: u64 = 128 << 20;

/// Where a module is and what depmod says it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Location {
    /// The file, maybe compressed.
    pub(super) path: PathBuf,
    /// All that it needs, in load order; `None` where depmod has not run.
    pub(super) needs: Option<Vec<String>>,
}

/// The folder, indexed by normalised names.
#[derive(Debug, Default)]
pub(super) struct ModuleTree {
    locations: BTreeMap<String, Location>,
    built_in: BTreeSet<String>,
    /// Names that softdeps use beside modules' own, such as `crypto-crc32c`.
    aliases: BTreeMap<String, Vec<String>>,
}

impl ModuleTree {
    /// Indexes `folder`. Without `modules.dep` (a package unpacked without depmod) the files are searched and each
    /// module's own `.modinfo` has the dependencies.
    pub(super) fn open(folder: &Path) -> Result<Self, ModulesError> {
        let mut tree = Self::default();
        match read_optional(&folder.join("modules.dep"))? {
            Some(text) if !text.is_empty() => tree.read_dependencies(folder, &text),
            _ => tree.search(folder)?,
        }
        for line in read_optional(&folder.join("modules.builtin"))?.unwrap_or_default().lines() {
            tree.built_in.extend(module_name(Path::new(line)));
        }
        tree.read_aliases(&read_optional(&folder.join("modules.alias"))?.unwrap_or_default());
        tree.read_builtin_aliases(&read_optional(&folder.join("modules.builtin.modinfo"))?.unwrap_or_default());
        Ok(tree)
    }

    pub(super) fn location(&self, name: &str) -> Option<&Location> {
        self.locations.get(name)
    }

    pub(super) fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(name)
    }

    /// The modules that a softdep's word stands for: the module, or those with the alias. None if the kernel has the
    /// ability built in, or not at all.
    pub(super) fn providers(&self, word: &str) -> Vec<String> {
        let name = normalise(word);
        if self.is_built_in(&name) {
            return Vec::new();
        }
        if self.locations.contains_key(&name) {
            return vec![name];
        }
        let named = self.aliases.get(&name).cloned().unwrap_or_default();
        if named.iter().any(|name| self.is_built_in(name)) {
            return Vec::new();
        }
        named.into_iter().filter(|name| self.locations.contains_key(name)).collect()
    }

    /// `kernel/a/b.ko.xz: kernel/c.ko.xz kernel/d.ko.xz`; what is needed first stands last.
    fn read_dependencies(&mut self, folder: &Path, text: &str) {
        for (path, needs) in text.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().rev().filter_map(|path| module_name(Path::new(path))).collect();
            if let Some(name) = module_name(Path::new(path)) {
                self.locations.insert(name, Location { path: folder.join(path), needs: Some(needs) });
            }
        }
    }

    fn search(&mut self, folder: &Path) -> Result<(), ModulesError> {
        for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
            let entry = entry.map_err(|error| ModulesError::read(folder, error.into()))?;
            let Some(name) = module_name(entry.path()).filter(|_| entry.file_type().is_file()) else { continue };
            let location = Location { path: entry.into_path(), needs: None };
            if let Some(other) = self.locations.insert(name.clone(), location) {
                return Err(ModulesError::Twice { name, folder: folder.to_owned(), path: other.path });
            }
        }
        Ok(())
    }

    fn read_aliases(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(alias), Some(name)) = (words.next(), words.next(), words.next()) {
                self.add_alias(alias, name);
            }
        }
    }

    /// NUL-terminated `module.key=value`.
    fn read_builtin_aliases(&mut self, text: &str) {
        for item in text.split('\0') {
            if let Some((name, alias)) = item.split_once(".alias=") {
                self.add_alias(alias, name);
            }
        }
    }

    /// Softdeps name no devices, so patterns are left out.
    fn add_alias(&mut self, alias: &str, name: &str) {
        if !alias.contains([':', '*']) {
            self.aliases.entry(normalise(alias)).or_default().push(normalise(name));
        }
    }
}

/// The folder for `release` that `given` means: itself, or below it as in a root file system.
///
/// # Errors
/// If there is none for that release; the error names those that are there.
pub(super) fn find_folder(given: &Path, release: &KernelRelease) -> Result<PathBuf, ModulesError> {
    let parents = ["lib/modules", "usr/lib/modules", "."].map(|below| given.join(below));
    if let Some(folder) = parents.iter().map(|parent| parent.join(release.as_str())).find(|folder| folder.is_dir()) {
        return Ok(folder);
    }
    let name = given.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let other = name.and_then(|name| KernelRelease::parse(&name)).filter(|named| named != release);
    let is_folder = ["modules.order", "modules.builtin", "modules.dep", "kernel"];
    match other {
        None if is_folder.iter().any(|file| given.join(file).exists()) => Ok(given.to_owned()),
        _ => {
            let mut found: Vec<String> = parents.iter().flat_map(|parent| releases_in(parent)).collect();
            found.extend(other.map(|release| release.to_string()));
            // `lib` is often a link to `usr/lib`.
            found.sort();
            found.dedup();
            Err(ModulesError::NoFolder { given: given.to_owned(), release: release.clone(), found: found.join(", ") })
        }
    }
}

fn releases_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| KernelRelease::parse(name).is_some());
    names.sort();
    names
}

/// Reads a module's file, decompressed; the signature at its end stays with it.
pub(super) fn read_module(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let failed = |source| ModulesError::read(path, source);
    let stored = fs::read(path).map_err(failed)?;
    let reader = Compression::detect(&stored).reader(&stored[..]).map_err(failed)?;
    let mut bytes = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_MODULE {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "more than 128 MiB")));
    }
    Ok(bytes)
}

/// The normalised name of a module's file; `None` for other files.
fn module_name(path: &Path) -> Option<String> {
    let (name, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| normalise(name))
}

fn read_optional(path: &Path) -> Result<Option<String>, ModulesError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModulesError::read(path, error)),
    }
}
