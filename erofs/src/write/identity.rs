//! The image's UUID, which follows from all that is in it.

use super::{
    inode::{Body, Context},
    layout::Layout,
    xattrs::SharedXattrs,
};
use crate::tree::Kind;

/// From every inode with all that it has, content by its digest, and from what `superblock` says without the UUID.
pub(super) fn uuid(context: &Context<'_>, layout: &Layout, shared: &SharedXattrs, superblock: &[u8]) -> [u8; 16] {
    let mut hasher = Gathered::new("erofs-image: every inode with all that it has");
    for id in context.tree.ids() {
        let (plan, node) = (layout.plan(id), context.tree.node(id));
        hasher.update(&context.render(id, plan, id.0 + 1));
        hasher.update(&shared.body(&node.metadata.xattrs));
        match (&plan.body, &node.kind) {
            (Body::File(stored), _) => hasher.update(stored.digest.as_bytes()),
            (Body::Symlink { .. }, Kind::Symlink(target)) => hasher.update(target),
            (Body::Directory { .. }, _) => {
                let entries = context.tree.entries(id);
                hasher.update(&(entries.len() as u64).to_le_bytes());
                for (name, child) in entries {
                    // Names have no NUL.
                    hasher.update(name);
                    hasher.update(&[0]);
                    hasher.update(&child.0.to_le_bytes());
                }
            }
            _ => {}
        }
    }
    hasher.update(&shared.bytes);
    hasher.update(superblock);
    version_8(&hasher.finalize())
}

/// Small parts, hashed many at once: BLAKE3 is several times as fast then.
struct Gathered {
    hasher: blake3::Hasher,
    parts: Vec<u8>,
}

impl Gathered {
    const ENOUGH: usize = 64 << 10;

    fn new(context: &str) -> Self {
        Self { hasher: blake3::Hasher::new_derive_key(context), parts: Vec::with_capacity(2 * Self::ENOUGH) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.parts.extend_from_slice(bytes);
        if self.parts.len() >= Self::ENOUGH {
            self.hasher.update(&self.parts);
            self.parts.clear();
        }
    }

    fn finalize(mut self) -> blake3::Hash {
        self.hasher.update(&self.parts).finalize()
    }
}

/// RFC 9562's version 8, whose bits are anyone's own.
fn version_8(digest: &blake3::Hash) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
