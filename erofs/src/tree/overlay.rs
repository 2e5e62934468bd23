//! A tree over another as overlayfs shows it (Linux `Documentation/filesystems/overlayfs.rst`).

use super::{
    Device, InodeId, Kind, Tree, TreeError,
    error::printable,
    merge::{Effect, merge},
};

/// Where overlayfs keeps what it knows: the second with the mount option `userxattr`.
const PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// What overlayfs puts into the names of attributes that only look like its own.
const ESCAPE: &[u8] = b"overlay.";

/// An upper tree that cannot be put over another.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// It says by an attribute that it is more than it seems, which only its own lower layers can tell.
    #[error(
        "{}: {}: expected an upper layer that is whole without its lower ones, found the value {}; make it with \
         redirect_dir=off,metacopy=off",
        printable(.path), printable(.attribute), printable(.value)
    )]
    Attribute {
        /// The file or directory.
        path: Vec<u8>,
        /// The attribute.
        attribute: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// The tree is full.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Puts `upper` over `base`, which becomes what a mount of both shows.
///
/// Directories join, with the metadata of the upper one. Anything else takes the place of what has its name. A character
/// device with the numbers 0 and 0 removes what has its name, and a directory with the attribute `trusted.overlay.opaque` or
/// `user.overlay.opaque` of the value `y` hides all that is in the one below; the root's has no effect. Attributes of these
/// two families are not seen in the result, and lose the escape that overlays in overlays have. No symbolic link is followed.
///
/// # Errors
/// Attributes by which files and directories are elsewhere in the layers below (`redirect`, `metacopy`), or whiteouts as
/// attributes. The base is then as it was.
pub fn overlay(base: &mut Tree, upper: Tree) -> Result<(), OverlayError> {
    let mut upper = upper.into_walked();
    let opaque = take_marks(&mut upper)?;
    let effect = |id: InodeId| match upper.node(id).kind {
        Kind::CharacterDevice(Device { major: 0, minor: 0 }) => Effect::Remove,
        _ if opaque[id.index()] => Effect::Replace,
        _ => Effect::Join,
    };
    merge(base, Tree::ROOT, &upper, effect)?;
    Ok(())
}

/// Takes overlayfs' attributes away, and tells which directories are opaque.
fn take_marks(upper: &mut Tree) -> Result<Vec<bool>, OverlayError> {
    for id in upper.ids() {
        if let Some((attribute, value)) = unknown_mark(upper, id) {
            return Err(OverlayError::Attribute { path: upper.path(id), attribute, value });
        }
    }
    let ids = upper.ids();
    Ok(ids.map(|id| take_mark(upper, id)).collect())
}

fn unknown_mark(upper: &Tree, id: InodeId) -> Option<(Vec<u8>, Vec<u8>)> {
    let xattrs = &upper.node(id).metadata.xattrs;
    let unknown = xattrs.iter().find(|(name, value)| match own(name) {
        Some(b"redirect" | b"metacopy" | b"whiteout") => true,
        Some(b"opaque") => *value != b"y",
        _ => false,
    });
    unknown.map(|(name, value)| (name.clone(), value.clone()))
}

fn take_mark(upper: &mut Tree, id: InodeId) -> bool {
    let xattrs = &mut upper.metadata_mut(id).xattrs;
    let opaque = xattrs.keys().any(|name| own(name) == Some(b"opaque"));
    let kept = std::mem::take(xattrs).into_iter().filter_map(|(name, value)| Some((shown(name)?, value)));
    *xattrs = kept.collect();
    opaque
}

/// What an attribute is called within overlayfs' own.
fn own(name: &[u8]) -> Option<&[u8]> {
    PREFIXES.into_iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// The name under which an overlay shows an attribute of a layer, if it does.
fn shown(name: Vec<u8>) -> Option<Vec<u8>> {
    let Some(rest) = own(&name) else { return Some(name) };
    let escaped = rest.strip_prefix(ESCAPE)?;
    Some([&name[..name.len() - rest.len()], escaped].concat())
}
