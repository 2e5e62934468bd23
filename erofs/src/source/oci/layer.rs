//! Layers: archives of what is new, with signs of what is gone (`layer.md`, "Whiteouts").
//!
//! The signs act on the layers below and never on their own, wherever in the archive they stand. So a layer is read to its end
//! before any of it is applied: first what it removes, all of it found in the tree as the layers below left it, then what it
//! adds.

use std::{collections::HashSet, io::Read};

use crate::{
    archive::{
        entry::{Entry, EntryReader, Kind as EntryKind},
        input::Input,
        name::{normalise, split},
        tar::TarReader,
    },
    source::{
        archive::Unpacked,
        unpack::{Builder, EntryProblem, Kept, Store, UnpackError},
    },
    tree::{InodeId, Kind, Resolved, Tree},
};

const PREFIX: &[u8] = b".wh.";
/// What AUFS kept for itself begins so; of that, only the next name has a meaning in layers.
const PRIVATE: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Forty times as many as the largest distributions have files.
const ENTRY_LIMIT: usize = 1 << 22;

/// A tree that grows layer by layer, the lowest first.
pub struct Layers {
    builder: Builder,
    store: Store,
}

impl Default for Layers {
    fn default() -> Self {
        Self::new()
    }
}

impl Layers {
    /// Without any layer: an empty directory.
    pub fn new() -> Self {
        let mut builder = Builder::new();
        builder.replaces_directories = true;
        Self { builder, store: Store::default() }
    }

    /// Adds a layer: a tar archive that is not compressed, which messages call `name`.
    ///
    /// # Errors
    /// A bad archive, or an entry that no tree can hold.
    pub fn add(&mut self, name: &str, stream: impl Read) -> Result<(), UnpackError> {
        let layer = Layer::read(Input::new(stream, name), &mut self.store)?;
        self.apply(layer)
    }

    /// The tree of all layers.
    ///
    /// # Errors
    /// An access control list that names nobody.
    pub fn finish(self) -> Result<Unpacked, UnpackError> {
        let unpacked = self.builder.finish()?;
        Ok(Unpacked { tree: unpacked.tree.into_walked(), ..unpacked })
    }

    pub(super) fn apply(&mut self, layer: Layer) -> Result<(), UnpackError> {
        let hidden: Vec<_> = layer.whiteouts.iter().filter_map(|whiteout| self.hidden(whiteout, &layer)).collect();
        for (directory, name) in hidden {
            self.hide(directory, name);
        }
        self.builder.remarks.extend(layer.remarks);
        layer.entries.iter().try_for_each(|(entry, content)| self.builder.add(entry, content))
    }

    /// The directory in which a whiteout acts, if there is one below.
    fn hidden<'w>(&self, whiteout: &'w Whiteout, layer: &Layer) -> Option<(InodeId, Option<&'w [u8]>)> {
        let tree = &self.builder.tree;
        // Where the layer has a directory in place of a link, names do not lead through that link.
        if first_other(tree, &whiteout.directory).is_some_and(|other| layer.directories.contains(other)) {
            return None;
        }
        let Ok(Resolved::Found(directory)) = self.builder.tree.resolve(&whiteout.directory) else { return None };
        Some((directory, whiteout.name.as_deref()))
    }

    fn hide(&mut self, directory: InodeId, name: Option<&[u8]>) {
        let tree = &mut self.builder.tree;
        let names = match name {
            Some(name) => vec![name.to_vec()],
            None => tree.entries(directory).keys().cloned().collect(),
        };
        for name in names {
            tree.remove_child(directory, &name);
        }
    }
}

/// The shortest start of a path that is there, but is no directory.
fn first_other<'p>(tree: &Tree, path: &'p [u8]) -> Option<&'p [u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
    let (mut at, mut start) = (Tree::ROOT, 0);
    for end in ends {
        at = *tree.entries(at).get(&path[start..end])?;
        if !matches!(tree.node(at).kind, Kind::Directory) {
            return Some(&path[..end]);
        }
        start = end + 1;
    }
    None
}

/// A layer's archive, read to its end.
#[derive(Default)]
pub(super) struct Layer {
    entries: Vec<(Entry, Kept)>,
    whiteouts: Vec<Whiteout>,
    /// The names of its directories.
    directories: HashSet<Vec<u8>>,
    remarks: Vec<String>,
}

/// What a layer removes from those below.
struct Whiteout {
    directory: Vec<u8>,
    /// All that is in the directory, if it is not said.
    name: Option<Vec<u8>>,
}

/// What an entry's name makes of it.
enum Meaning {
    Added,
    Removed(Whiteout),
    Private,
}

impl Layer {
    pub(super) fn read<R: Read>(input: Input<R>, store: &mut Store) -> Result<Self, UnpackError> {
        let mut reader = TarReader::new(input);
        let mut layer = Self::default();
        while let Some(entry) = reader.next_entry()? {
            if layer.entries.len() + layer.whiteouts.len() == ENTRY_LIMIT {
                return Err(EntryProblem::TooMany { limit: ENTRY_LIMIT }.of(&entry));
            }
            let name = normalise(&entry.name).map_err(|found| EntryProblem::Name { found }.of(&entry))?;
            match meaning(&entry, &name).map_err(|found| EntryProblem::Whiteout { found }.of(&entry))? {
                Meaning::Removed(whiteout) => layer.whiteouts.push(whiteout),
                Meaning::Private => layer.remarks.push(format!("{}: private to AUFS, left out", entry.display_name())),
                Meaning::Added => {
                    let content = store.keep(&entry, &mut reader)?;
                    if entry.kind == EntryKind::Directory {
                        layer.directories.insert(name);
                    }
                    layer.entries.push((entry, content));
                }
            }
        }
        Ok(layer)
    }
}

/// Reads a normalised name.
fn meaning(entry: &Entry, name: &[u8]) -> Result<Meaning, String> {
    let (directory, last) = split(name);
    let parts = || directory.split(|byte| *byte == b'/');
    if parts().any(|part| part.starts_with(PRIVATE)) || (last.starts_with(PRIVATE) && last != OPAQUE) {
        return Ok(Meaning::Private);
    }
    if parts().any(|part| part.starts_with(PREFIX)) {
        return Err("a directory of such a name".into());
    }
    let Some(hidden) = last.strip_prefix(PREFIX) else { return Ok(Meaning::Added) };
    if entry.kind == EntryKind::Directory {
        return Err("a directory of such a name".into());
    }
    let name = match hidden {
        _ if last == OPAQUE => None,
        b"" | b"." | b".." => return Err("no name behind it".into()),
        hidden => Some(hidden.to_vec()),
    };
    Ok(Meaning::Removed(Whiteout { directory: directory.to_vec(), name }))
}
