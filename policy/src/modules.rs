//! The module index: which kernel modules a mini-initramfs carries, what each needs, and which hardware asks for it.
//!
//! The build side resolves dependencies once and writes this text to `/etc/iofs/modules`; the boot side only matches
//! `MODALIAS` strings and follows the list. Format, one item a line, modules in ascending order of their names:
//!
//! ```text
//! iofs-modules 1
//! release 6.1.0-13-amd64
//! module dm_verity dm-verity.ko
//! always
//! before dm_mod dm_bufio
//! after some_softdep
//! options key=value
//! alias virtio:d00000002v*
//! ```
//!
//! The lines after a `module` line belong to it and stand in this order; all but `module` may be missing.

mod glob;
mod parse;

pub use glob::{fold, matches};

/// A larger index is refused: the largest real one (every storage driver of a distribution) is below 100 KiB.
pub const MAX_TEXT: usize = 1 << 20;
/// More modules are refused. It also bounds the depth of [`ModuleIndex::load_order`].
pub const MAX_MODULES: usize = 1024;
/// A longer name of a module, a file or a release is refused: the kernel's own limit is 64 - 8 bytes.
pub const MAX_NAME: usize = 64;

/// A module of one [`ModuleIndex`]; meaningless with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(u16);

/// One module. Names in it are normalised: `-` is written `_`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Module {
    /// The name that `/proc/modules` shows.
    pub name: String,
    /// The file below `/lib/modules/RELEASE/`.
    pub file: String,
    /// Load it whatever the hardware is.
    pub always: bool,
    /// Names of the modules to load first, in this order: dependencies and pre-softdeps.
    pub before: Vec<String>,
    /// Names of the modules to load afterwards: post-softdeps.
    pub after: Vec<String>,
    /// The parameters, as `init_module` takes them; empty for none.
    pub options: String,
    /// Glob patterns over devices' `MODALIAS`.
    pub aliases: Vec<String>,
}

/// All modules of a mini-initramfs, checked: names are unique and every dependency is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleIndex {
    release: String,
    modules: Vec<Module>,
}

/// Why a module index is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleIndexError {
    /// The text is longer than [`MAX_TEXT`].
    #[error("module index: {0} bytes, more than {MAX_TEXT}")]
    TooLong(usize),
    /// There are more than [`MAX_MODULES`] modules.
    #[error("module index: more than {MAX_MODULES} modules")]
    TooMany,
    /// A line is not what the format has at this place.
    #[error("module index, line {0}: malformed or out of place")]
    Line(usize),
    /// Names do not ascend: a module is there twice, or the order is another.
    #[error("module index: {0} is there twice or out of order")]
    Order(String),
    /// A dependency is not in the index.
    #[error("module index: {module} needs {missing}, which is not in the index")]
    Dangling {
        /// The module that has the dependency.
        module: String,
        /// What it names.
        missing: String,
    },
    /// A name, file or alias holds something that the format cannot carry.
    #[error("module index: {0:?} is no valid name, alias or option")]
    Word(String),
}

impl ModuleIndex {
    /// An index for the kernel `release`. Sorts the modules by name.
    ///
    /// # Errors
    /// Whatever [`ModuleIndex::parse`] would refuse in the text.
    pub fn new(release: String, mut modules: Vec<Module>) -> Result<Self, ModuleIndexError> {
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        let index = Self { release, modules };
        index.check()?;
        Ok(index)
    }

    /// Reads the text format.
    ///
    /// # Errors
    /// Anything that [`ModuleIndex::to_text`] would not have written.
    pub fn parse(text: &str) -> Result<Self, ModuleIndexError> {
        let index = parse::parse(text)?;
        index.check()?;
        Ok(index)
    }

    /// Writes the text format. Reading it back gives an equal index.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\nrelease {}\n", parse::MAGIC, self.release);
        for module in &self.modules {
            parse::write_module(module, &mut text);
        }
        text
    }

    /// The kernel that the modules belong to, as `uname -r` says it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The modules, in ascending order of their names.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// One module.
    ///
    /// # Panics
    /// If `id` comes from a larger index.
    pub fn get(&self, id: ModuleId) -> &Module {
        &self.modules[usize::from(id.0)]
    }

    /// The module of that name; `-` and `_` are one letter.
    pub fn find(&self, name: &str) -> Option<ModuleId> {
        let name = normalise(name);
        self.modules.binary_search_by(|module| module.name.cmp(&name)).ok().map(id_at)
    }

    /// The modules to load whatever the hardware is.
    pub fn always(&self) -> Vec<ModuleId> {
        self.select(|module| module.always)
    }

    /// The modules that a device asks for with the `MODALIAS` of its uevent. Read that, from netlink or from the
    /// `uevent` file, rather than the file `modalias`: devices of the mmc bus have only the former.
    pub fn matching(&self, modalias: &str) -> Vec<ModuleId> {
        self.select(|module| module.aliases.iter().any(|alias| matches(alias, modalias)))
    }

    /// What to load, in this order, to get `wanted`: each with its dependencies around it, none twice, and nothing
    /// that is in `already_loaded`.
    pub fn load_order(&self, wanted: &[ModuleId], already_loaded: &[ModuleId]) -> Vec<ModuleId> {
        let mut seen = vec![false; self.modules.len()];
        for id in already_loaded {
            seen[usize::from(id.0)] = true;
        }
        let mut order = Vec::new();
        for id in wanted {
            self.visit(*id, &mut seen, &mut order);
        }
        order
    }

    /// The load order in rounds: nothing needs anything of its own round, so that a round can be loaded at once.
    pub fn load_rounds(&self, wanted: &[ModuleId], already_loaded: &[ModuleId]) -> Vec<Vec<ModuleId>> {
        let mut rounds: Vec<Vec<ModuleId>> = Vec::new();
        for id in self.load_order(wanted, already_loaded) {
            let module = self.get(id);
            let waits_for = |earlier: &ModuleId| {
                let earlier = self.get(*earlier);
                module.before.contains(&earlier.name) || earlier.after.contains(&module.name)
            };
            let after = rounds.iter().rposition(|round| round.iter().any(waits_for));
            let round = after.map_or(0, |last| last + 1);
            match rounds.get_mut(round) {
                Some(others) => others.push(id),
                None => rounds.push(vec![id]),
            }
        }
        rounds
    }

    /// Marks before it descends, so that a cycle of softdeps ends.
    fn visit(&self, id: ModuleId, seen: &mut [bool], order: &mut Vec<ModuleId>) {
        if std::mem::replace(&mut seen[usize::from(id.0)], true) {
            return;
        }
        let module = self.get(id);
        for name in &module.before {
            self.visit_named(name, seen, order);
        }
        order.push(id);
        for name in &module.after {
            self.visit_named(name, seen, order);
        }
    }

    fn visit_named(&self, name: &str, seen: &mut [bool], order: &mut Vec<ModuleId>) {
        if let Some(id) = self.find(name) {
            self.visit(id, seen, order);
        }
    }

    fn select(&self, wanted: impl Fn(&Module) -> bool) -> Vec<ModuleId> {
        self.modules.iter().enumerate().filter(|(_, module)| wanted(module)).map(|(at, _)| id_at(at)).collect()
    }

    fn check(&self) -> Result<(), ModuleIndexError> {
        if self.modules.len() > MAX_MODULES {
            return Err(ModuleIndexError::TooMany);
        }
        parse::check_word(&self.release)?;
        for pair in self.modules.windows(2) {
            if pair[0].name >= pair[1].name {
                return Err(ModuleIndexError::Order(pair[1].name.clone()));
            }
        }
        self.modules.iter().try_for_each(|module| self.check_module(module))
    }

    fn check_module(&self, module: &Module) -> Result<(), ModuleIndexError> {
        parse::check_module(module)?;
        match module.before.iter().chain(&module.after).find(|name| self.find(name).is_none()) {
            Some(name) => Err(ModuleIndexError::Dangling { module: module.name.clone(), missing: name.clone() }),
            None => Ok(()),
        }
    }
}

/// A module's name as the kernel spells it: with `_` for `-`.
pub fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

/// Positions are below [`MAX_MODULES`], so they fit.
fn id_at(position: usize) -> ModuleId {
    ModuleId(position as u16)
}

#[cfg(test)]
mod tests;
