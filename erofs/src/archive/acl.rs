//! POSIX access control lists: from the text that `tar --acls` stores to the attribute that the kernel keeps.
//!
//! The attribute (Linux `include/uapi/linux/posix_acl_xattr.h`): u32 version 2, then entries of u16 tag, u16 permissions,
//! u32 id, all little endian, sorted by tag and id.

use std::collections::HashMap;

use super::entry::printable;

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
/// An account file of a tree is small: of a bigger one, no more than so many bytes need be read.
pub const ACCOUNTS_LIMIT: usize = 16 << 20;

/// Which of a file's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who may access the file.
    Access,
    /// What files made in the directory inherit.
    Default,
}

impl Kind {
    /// The name of the attribute.
    pub fn attribute(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }
}

/// The names in a tree's `etc/passwd` and `etc/group`: the build machine's are none of its business.
#[derive(Debug, Default)]
pub struct Accounts {
    users: HashMap<Vec<u8>, u32>,
    groups: HashMap<Vec<u8>, u32>,
}

impl Accounts {
    /// Reads the texts of both files.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        Self { users: ids(passwd), groups: ids(group) }
    }
}

fn ids(text: &[u8]) -> HashMap<Vec<u8>, u32> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next()?.to_vec();
            Some((name, number(fields.nth(1)?)?))
        })
        .collect()
}

/// An entry of a list that cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub struct AclError {
    /// What can be.
    pub expected: &'static str,
    /// The entry.
    pub found: String,
}

/// Turns a list in text into the attribute's value; `None` for an empty list, which means no attribute.
///
/// # Errors
/// An entry with another syntax, or with a name that the tree does not know.
pub fn parse(text: &[u8], accounts: &Accounts) -> Result<Option<Vec<u8>>, AclError> {
    let mut entries = Vec::new();
    for line in text.split(|byte| matches!(byte, b'\n' | b',')) {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if !line.is_empty() {
            entries.push(entry(line, accounts)?);
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok(Some(value))
}

/// `TAG:[QUALIFIER]:PERMISSIONS[:ID]`; bsdtar and star append the id, which then decides.
fn entry(line: &[u8], accounts: &Accounts) -> Result<(u16, u32, u16), AclError> {
    let bad = |expected| AclError { expected, found: printable(line) };
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
    let (tag, qualifier, permissions, id) = match fields[..] {
        [tag, qualifier, permissions] => (tag, qualifier, permissions, None),
        [tag, qualifier, permissions, id] => (tag, qualifier, permissions, Some(id)),
        _ => return Err(bad("tag, qualifier and permissions, separated by colons")),
    };
    let permissions = rights(permissions).ok_or_else(|| bad("permissions such as rw-"))?;
    let (tag, names) = match (tag, qualifier.is_empty()) {
        (b"user" | b"u", true) => return Ok((USER_OBJ, NO_ID, permissions)),
        (b"group" | b"g", true) => return Ok((GROUP_OBJ, NO_ID, permissions)),
        (b"mask" | b"m", true) => return Ok((MASK, NO_ID, permissions)),
        (b"other" | b"o", true) => return Ok((OTHER, NO_ID, permissions)),
        (b"user" | b"u", false) => (USER, &accounts.users),
        (b"group" | b"g", false) => (GROUP, &accounts.groups),
        _ => return Err(bad("the tag user, group, mask or other")),
    };
    let id = match id {
        Some(id) => number(id),
        None => names.get(qualifier).copied().or_else(|| number(qualifier)),
    };
    let id = id.ok_or_else(|| bad("a number, or a name in the tree's etc/passwd or etc/group"))?;
    Ok((tag, id, permissions))
}

/// The nine lower bits of the mode that say the same as an access list of owner, group and others alone: the kernel keeps no
/// attribute for such a list. `None` for any other (Linux `fs/posix_acl.c`, `posix_acl_equiv_mode`).
pub fn as_mode(value: &[u8]) -> Option<u16> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() != 3 * 8 {
        return None;
    }
    let expected = [(USER_OBJ, 6), (GROUP_OBJ, 3), (OTHER, 0)];
    entries.chunks(8).zip(expected).try_fold(0, |mode, (entry, (tag, shift))| {
        let field = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        (field(0) == tag && field(2) < 8).then(|| mode | field(2) << shift)
    })
}

/// Gives a list what a new mode says, as `chmod` does: where there is a mask, the group's bits are its own (Linux
/// `fs/posix_acl.c`, `posix_acl_chmod`). What is no list stays as it is.
pub fn set_mode(value: &mut [u8], mode: u16) {
    let Some((version, entries)) = value.split_first_chunk_mut::<4>() else { return };
    if u32::from_le_bytes(*version) != VERSION {
        return;
    }
    let tag = |entry: &[u8]| u16::from_le_bytes([entry[0], entry[1]]);
    let masked = entries.chunks_exact(8).any(|entry| tag(entry) == MASK);
    for entry in entries.chunks_exact_mut(8) {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !masked => 3,
            OTHER => 0,
            _ => continue,
        };
        entry[2..4].copy_from_slice(&(mode >> shift & 7).to_le_bytes());
    }
}

fn rights(text: &[u8]) -> Option<u16> {
    // getfacl's column of effective rights follows after a tab.
    let text = text.split(u8::is_ascii_whitespace).next()?;
    text.iter().try_fold(0, |rights, letter| match letter {
        b'r' => Some(rights | 4),
        b'w' => Some(rights | 2),
        b'x' => Some(rights | 1),
        b'-' => Some(rights),
        _ => None,
    })
}

fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id != NO_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_names_come_from_the_tree() {
        let accounts = Accounts { users: HashMap::from([(b"lisa".to_vec(), 1000)]), groups: HashMap::new() };
        let text = b"user::rwx\nother::r--\nuser:lisa:rw-\nuser:7:r-x\ngroup::r-x\nmask::rwx\n";
        let value = parse(text, &accounts).unwrap().unwrap();
        let mut expected = VERSION.to_le_bytes().to_vec();
        let entries = [(1, 7, NO_ID), (2, 5, 7), (2, 6, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 4, NO_ID)];
        for (tag, rights, id) in entries {
            expected.extend(u16::to_le_bytes(tag));
            expected.extend(u16::to_le_bytes(rights));
            expected.extend(u32::to_le_bytes(id));
        }
        assert_eq!(value, expected);
        assert_eq!(as_mode(&value), None);
        assert_eq!(as_mode(&parse(b"u::rwx,g::r-x,o::--x", &accounts).unwrap().unwrap()), Some(0o751));
        let mut changed = value.clone();
        set_mode(&mut changed, 0o4751);
        let expected = b"user::rwx,other::--x,user:1000:rw-,user:7:r-x,group::r-x,mask::r-x";
        assert_eq!(Some(changed), parse(expected, &accounts).unwrap());
        let mut plain = parse(b"u::rwx,g::r-x,o::--x", &accounts).unwrap().unwrap();
        set_mode(&mut plain, 0o640);
        assert_eq!(as_mode(&plain), Some(0o640));
        assert_eq!(parse(b"\n", &accounts), Ok(None));
        assert!(parse(b"user:bart:rw-", &accounts).is_err());
        assert_eq!(parse(b"user:bart:rw-:5", &accounts).unwrap().unwrap()[8..], 5_u32.to_le_bytes());
        assert!(parse(b"user:lisa", &accounts).is_err());
        assert!(parse(b"lord:lisa:rw-", &accounts).is_err());
    }
}
