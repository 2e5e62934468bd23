//! Extended attributes: entries behind the inode, and entries that several inodes share.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// `struct erofs_xattr_ibody_header`. The numbers of shared entries follow, 4 bytes each, then entries.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// `h_name_filter`, zero without the feature
    pub name_filter: U32,
    /// `h_shared_count`
    pub shared: u8,
    /// `h_reserved2`
    pub reserved: [u8; 7],
}

/// `struct erofs_xattr_entry`. The name without its prefix follows, then the value, then padding to 4 bytes.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    /// `e_name_len`
    pub name_size: u8,
    /// `e_name_index`: which prefix.
    pub prefix: u8,
    /// `e_value_size`
    pub value_size: U16,
}

/// Entries, and the numbers of shared ones, are counted in units of this size.
pub const UNIT: usize = 4;
/// `EROFS_XATTR_LONG_PREFIX`: the prefix is one of the image's own.
pub const LONG_PREFIX: u8 = 0x80;

/// `EROFS_XATTR_INDEX_*` and the prefixes that they stand for. Those without a dot at their end are whole names.
pub const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Splits a name into the number of its prefix and the rest; `None` where erofs has no prefix for it.
pub fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

/// The whole name.
pub fn join(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let (_, prefix) = PREFIXES.iter().find(|(known, _)| *known == index)?;
    Some([prefix, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_and_joined() {
        for name in ["user.a", "trusted.overlay.opaque", "security.capability", "system.posix_acl_default"] {
            let (index, rest) = split(name.as_bytes()).unwrap();
            assert_eq!(join(index, rest).unwrap(), name.as_bytes());
        }
    }

    #[test]
    fn names_without_a_prefix_of_erofs_are_refused() {
        for name in ["system.posix_acl_access2", "user.", "system.nfs4_acl", "other"] {
            assert_eq!(split(name.as_bytes()), None, "{name}");
        }
    }
}
