//! Access control lists, once the tree is whole.

use super::{Builder, UnpackError};
use crate::archive::acl::{self, ACCOUNTS_LIMIT, Accounts};

impl Builder {
    /// Turns lists in text into the attributes that the kernel stores, unless those are there.
    pub(super) fn resolve_lists(&mut self) -> Result<(), UnpackError> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let text = |path| self.tree.read_file(path, ACCOUNTS_LIMIT).unwrap_or_default();
        let accounts = Accounts::parse(&text(b"etc/passwd"), &text(b"etc/group"));
        for (id, (entry, lists)) in std::mem::take(&mut self.lists) {
            for list in lists {
                let kind = if list.is_default { acl::Kind::Default } else { acl::Kind::Access };
                let fail = |error| UnpackError::Acl { archive: String::new(), entry: entry.clone(), error };
                let value = acl::parse(&list.text, &accounts).map_err(fail)?;
                let xattrs = &mut self.tree.metadata_mut(id).xattrs;
                if let Some(value) = value.filter(|_| !xattrs.contains_key(kind.attribute())) {
                    xattrs.insert(kind.attribute().to_vec(), value);
                }
            }
        }
        Ok(())
    }

    /// Takes lists away that only say what the mode says, as the kernel does.
    pub(super) fn drop_plain_lists(&mut self) {
        for id in self.tree.ids() {
            let metadata = self.tree.metadata_mut(id);
            let Some(mode) = metadata.xattrs.get(acl::Kind::Access.attribute()).and_then(|list| acl::as_mode(list))
            else {
                continue;
            };
            metadata.xattrs.remove(acl::Kind::Access.attribute());
            metadata.mode = metadata.mode & !0o777 | mode;
        }
    }
}
