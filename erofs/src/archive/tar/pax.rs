//! pax extended headers: records `LENGTH KEY=VALUE\n` whose values are any bytes.

use std::collections::{BTreeMap, btree_map::Entry};

use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::STANDARD_NO_PAD};

use super::header::Header;
use crate::archive::{
    entry::{Extent, TextAcl, Timestamp, Xattr, printable},
    error::ArchiveError,
};

/// Keys that change what a file is: in a global header they would change all files, which no common writer does.
const MEANINGFUL: [&[u8]; 11] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"SCHILY.",
    b"GNU.sparse.",
    b"LIBARCHIVE.xattr.",
    b"RHT.security.",
    b"LIBARCHIVE.symlinktype",
];

/// The records of one extended header.
#[derive(Default)]
pub(super) struct Extensions {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) acls: Vec<TextAcl>,
    /// Where the attribute of a name is in `xattrs`: a header has room for hundreds of thousands, too many to search.
    places: BTreeMap<Vec<u8>, usize>,
}

/// What overrides a field of the header.
#[derive(Default)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) sparse: Sparse,
}

/// GNU's records about sparse files, versions 0.0 (`extents`), 0.1 (`map`) and 1.0 (`major`, map in the content).
#[derive(Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Option<Vec<Extent>>,
    pub(super) extents: Vec<Extent>,
    pending: Option<u64>,
}

impl Extensions {
    /// Splits the records.
    pub(super) fn parse(mut bytes: &[u8], header: &Header) -> Result<Self, ArchiveError> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let Some((record, rest)) = record(bytes) else {
                let start = printable(&bytes[..bytes.len().min(32)]);
                return Err(header.error("pax record", "`LENGTH KEY=VALUE`, newline".into(), start));
            };
            records.push(record);
            bytes = rest;
        }
        Ok(Self { records, ..Self::default() })
    }

    /// Accepts a global header only if nothing in it touches files (`comment`, as git writes it).
    pub(super) fn refuse_global(&self, header: &Header) -> Result<(), ArchiveError> {
        let touches = |key: &[u8]| MEANINGFUL.iter().any(|known| key.starts_with(known));
        match self.records.iter().find(|(key, _)| touches(key)) {
            Some((key, _)) => Err(header.unsupported(format!("{} in a global pax header", printable(key)))),
            None => Ok(()),
        }
    }

    /// Moves the known records out; the rest (atime, comments, statistics) has no place in an image.
    pub(super) fn take_overrides(&mut self, header: &Header) -> Result<Overrides, ArchiveError> {
        let mut overrides = Overrides::default();
        let mut encoded = Vec::new();
        for (key, value) in std::mem::take(&mut self.records) {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                self.set_xattr(unescape_gnu(name), value);
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                encoded.push((unescape_all(name), value));
            } else if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                overrides.sparse_record(field, value, header)?;
            } else {
                self.plain_record(&key, value, &mut overrides, header)?;
            }
        }
        for (name, value) in encoded {
            self.encoded_xattr(name, &value, header)?;
        }
        Ok(overrides)
    }

    fn plain_record(
        &mut self,
        key: &[u8],
        value: Vec<u8>,
        overrides: &mut Overrides,
        header: &Header,
    ) -> Result<(), ArchiveError> {
        let id = |field, limit: u64| integer(field, &value, limit, header).map(|id| Some(id as u32));
        let most = u64::from(u32::MAX - 1);
        match key {
            // GNU.sparse.name is the true name, whatever the order.
            b"path" => overrides.path = overrides.path.take().or(Some(value)),
            b"linkpath" => overrides.link = Some(value),
            b"size" => overrides.size = Some(integer("pax size", &value, i64::MAX as u64, header)?),
            b"uid" => overrides.uid = id("pax uid", most)?,
            b"gid" => overrides.gid = id("pax gid", most)?,
            b"mtime" => overrides.mtime = Some(time(&value, header)?),
            b"SCHILY.acl.access" => self.acls.push(TextAcl { is_default: false, text: value }),
            b"SCHILY.acl.default" => self.acls.push(TextAcl { is_default: true, text: value }),
            b"SCHILY.acl.ace" => return Err(header.unsupported("an NFSv4 access control list")),
            // GNU tar writes the label without the NUL that libselinux stores.
            b"RHT.security.selinux" => {
                let mut label = value;
                if label.last() != Some(&0) {
                    label.push(0);
                }
                self.set_xattr(b"security.selinux".to_vec(), label);
            }
            _ => {}
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        match self.places.entry(name) {
            Entry::Occupied(place) => self.xattrs[*place.get()].value = value,
            Entry::Vacant(place) => {
                self.xattrs.push(Xattr { name: place.key().clone(), value });
                place.insert(self.xattrs.len() - 1);
            }
        }
    }

    /// bsdtar writes each attribute in both encodings; the plain one is exact.
    fn encoded_xattr(&mut self, name: Vec<u8>, value: &[u8], header: &Header) -> Result<(), ArchiveError> {
        if self.places.contains_key(&name) {
            return Ok(());
        }
        let decoded = STANDARD.decode(value).or_else(|_| STANDARD_NO_PAD.decode(value));
        let value = decoded.map_err(|_| header.error("LIBARCHIVE.xattr", "base64 text".into(), printable(value)))?;
        self.set_xattr(name, value);
        Ok(())
    }
}

impl Overrides {
    fn sparse_record(&mut self, field: &[u8], value: Vec<u8>, header: &Header) -> Result<(), ArchiveError> {
        let number = |name| integer(name, &value, i64::MAX as u64, header);
        let sparse = &mut self.sparse;
        match field {
            b"major" => sparse.major = Some(number("GNU.sparse.major")?),
            b"minor" => sparse.minor = Some(number("GNU.sparse.minor")?),
            b"size" | b"realsize" => sparse.real_size = Some(number("GNU.sparse.realsize")?),
            b"name" => self.path = Some(value),
            b"map" => sparse.map = Some(map(&value, header)?),
            b"offset" => sparse.pending = Some(number("GNU.sparse.offset")?),
            b"numbytes" => {
                let length = number("GNU.sparse.numbytes")?;
                let offset = sparse.pending.take().ok_or_else(|| {
                    header.error("GNU.sparse.numbytes", "GNU.sparse.offset before it".into(), "none".into())
                })?;
                sparse.extents.push(Extent { offset, length });
            }
            b"numblocks" => {
                number("GNU.sparse.numblocks")?;
            }
            other => return Err(header.unsupported(format!("the record GNU.sparse.{}", printable(other)))),
        }
        Ok(())
    }
}

type Record = (Vec<u8>, Vec<u8>);

fn record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = decimal(&bytes[..space])?;
    let length = usize::try_from(length).ok().filter(|length| *length > space + 1 && *length <= bytes.len())?;
    let (record, rest) = bytes.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=').filter(|equals| *equals > 0)?;
    Some(((record[..equals].to_vec(), record[equals + 1..].to_vec()), rest))
}

/// Decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn integer(field: &'static str, value: &[u8], most: u64, header: &Header) -> Result<u64, ArchiveError> {
    decimal(value)
        .filter(|value| *value <= most)
        .ok_or_else(|| header.error(field, format!("a number up to {most}"), printable(value)))
}

/// `[-]SECONDS[.FRACTION]`; digits below a nanosecond are dropped.
fn time(value: &[u8], header: &Header) -> Result<Timestamp, ArchiveError> {
    parse_time(value).ok_or_else(|| {
        header.error("pax mtime", "seconds since 1970, with or without fraction".into(), printable(value))
    })
}

fn parse_time(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |value| (true, value));
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = match parts.next() {
        None | Some([]) => 0,
        Some(digits) => {
            decimal(&digits[..digits.len().min(18)])?;
            let mut nine = [b'0'; 9];
            let count = digits.len().min(9);
            nine[..count].copy_from_slice(&digits[..count]);
            u32::try_from(decimal(&nine)?).ok()?
        }
    };
    Some(match (negative, fraction) {
        (false, nanoseconds) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        (true, fraction) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - fraction },
    })
}

fn map(value: &[u8], header: &Header) -> Result<Vec<Extent>, ArchiveError> {
    let bad = || header.error("GNU.sparse.map", "pairs of offset and size".into(), printable(value));
    let numbers: Option<Vec<u64>> =
        value.split(|byte| *byte == b',').filter(|part| !part.is_empty()).map(decimal).collect();
    let numbers = numbers.filter(|numbers| numbers.len() % 2 == 0).ok_or_else(bad)?;
    Ok(numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

/// GNU tar escapes only what would break the record's syntax.
fn unescape_gnu(name: &[u8]) -> Vec<u8> {
    unescape(name, |code| matches!(code, b'=' | b'%'))
}

fn unescape_all(name: &[u8]) -> Vec<u8> {
    unescape(name, |_| true)
}

fn unescape(name: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match code {
            Some(code) if wanted(code) => {
                plain.push(code);
                rest = &tail[2..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines_and_equal_signs() {
        let bytes = b"11 a=b=c\nd\n6 k=x\n";
        let ((key, value), rest) = record(bytes).unwrap();
        assert_eq!((&key[..], &value[..]), (&b"a"[..], &b"b=c\nd"[..]));
        let ((key, value), rest) = record(rest).unwrap();
        assert_eq!((&key[..], &value[..], rest), (&b"k"[..], &b"x"[..], &b""[..]));
        for bad in [&b"7 k=x\n"[..], b"6 k=xy", b"3 \n", b"+6 k=x\n", b"99 k=x\n", b"5 kx\n"] {
            assert!(record(bad).is_none(), "{}", printable(bad));
        }
    }

    #[test]
    fn a_header_full_of_attributes_is_read_in_no_time() {
        let mut extensions = Extensions::default();
        for round in 0..2 {
            for number in 0..200_000 {
                extensions.set_xattr(format!("user.{number}").into_bytes(), vec![round]);
            }
        }
        assert_eq!(extensions.xattrs.len(), 200_000);
        assert!(extensions.xattrs.iter().all(|one| one.value == [1]), "the last value counts");
    }

    #[test]
    fn times_keep_their_sign_and_nanoseconds() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.0000000019"), Some((12, 1)));
        assert_eq!(time("-1"), Some((-1, 0)));
        assert_eq!(time("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time("1.x"), None);
        assert_eq!(time(""), None);
    }

    #[test]
    fn escapes_of_attribute_names_are_undone() {
        assert_eq!(unescape_gnu(b"user.a%3Db%25%41"), b"user.a=b%%41");
        assert_eq!(unescape_all(b"user.%41%4"), b"user.A%4");
    }
}
