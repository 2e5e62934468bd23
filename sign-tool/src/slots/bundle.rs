//! A release as one file: an uncompressed tar with the sealed directory's files, each written in one way only, so that the
//! same release gives the same bytes, and nothing but a release can be in one.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tar::{EntryType, Header};

use crate::{
    atomic::AtomicFile,
    check,
    report::{ExitStatus, Failure, Output, Progress},
    sealed::{self, SealedDirectory},
};

/// The unit of the format: headers are this long, contents are filled up to it with zeros, and two of zeros are the end.
const BLOCK: u64 = 512;
/// What goes first, in this order: what says whether the rest is wanted at all. The rest follows in the order of
/// [`sealed::ARTIFACTS`].
const FIRST: [&str; 6] =
    [sealed::RELEASE, sealed::MANIFEST, sealed::KEY_HISTORY, sealed::TRUST, sealed::TREE, sealed::IMAGE];

/// Where a file lies in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read.
    #[error("read at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// Something ends beyond the end.
    #[error("{what} at byte {offset}: expected {expected} bytes, found the bundle's end at byte {end}")]
    Truncated {
        /// What.
        what: String,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        expected: u64,
        /// Where the bundle ends.
        end: u64,
    },
    /// A file's name is none of a release.
    #[error("header at byte {offset}: name: expected a file of a sealed directory, found {found:?}")]
    Name {
        /// Where.
        offset: u64,
        /// The name.
        found: String,
    },
    /// A file is there twice.
    #[error("header at byte {offset}: expected each file once, found {name:?} again")]
    Twice {
        /// Where.
        offset: u64,
        /// The file.
        name: &'static str,
    },
    /// A header says something that a bundle has no use for: a link, an owner, an extension.
    #[error(
        "header at byte {offset}, {name:?}: expected a regular file, as 'iofs-sign bundle' writes it, found {found}"
    )]
    Header {
        /// Where.
        offset: u64,
        /// The file.
        name: &'static str,
        /// What is there.
        found: String,
    },
    /// Something follows.
    #[error("end at byte {offset}: expected two blocks of zeros and nothing behind them, found {found}")]
    End {
        /// Where.
        offset: u64,
        /// What is there.
        found: String,
    },
}

/// Reads where each file lies, from a bundle of `end` bytes. `read` fills a buffer from an offset.
///
/// # Errors
/// [`BundleError`]: whatever [`write`] would not have written.
pub fn parse(
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    end: u64,
) -> Result<BTreeMap<&'static str, Extent>, BundleError> {
    let mut files = BTreeMap::new();
    let mut offset = 0;
    loop {
        let block = block(&read, offset, end)?;
        if block == [0; BLOCK as usize] {
            return check_end(&read, offset, end).map(|()| files);
        }
        let (name, size) = entry(&block, offset)?;
        let extent = Extent { offset: offset + BLOCK, size };
        let next = extent.offset.checked_add(size).and_then(|after| after.checked_next_multiple_of(BLOCK));
        let next = next.filter(|next| *next <= end).ok_or_else(|| BundleError::Truncated {
            what: name.to_owned(),
            offset: extent.offset,
            expected: size,
            end,
        })?;
        if files.insert(name, extent).is_some() {
            return Err(BundleError::Twice { offset, name });
        }
        offset = next;
    }
}

fn block(
    read: &impl Fn(&mut [u8], u64) -> io::Result<()>,
    offset: u64,
    end: u64,
) -> Result<[u8; BLOCK as usize], BundleError> {
    if offset.checked_add(BLOCK).is_none_or(|after| after > end) {
        return Err(BundleError::Truncated { what: "header".to_owned(), offset, expected: BLOCK, end });
    }
    let mut block = [0; BLOCK as usize];
    read(&mut block, offset).map_err(|source| BundleError::Io { offset, source })?;
    Ok(block)
}

fn check_end(read: &impl Fn(&mut [u8], u64) -> io::Result<()>, offset: u64, end: u64) -> Result<(), BundleError> {
    let found = |what: &dyn fmt::Display| BundleError::End { offset, found: what.to_string() };
    if block(read, offset + BLOCK, end)? != [0; BLOCK as usize] {
        return Err(found(&"one block of zeros"));
    }
    match end - offset - 2 * BLOCK {
        0 => Ok(()),
        more => Err(found(&format_args!("{more} bytes more"))),
    }
}

/// Name and size in a header, which must be byte for byte the one that [`write`] makes for them.
fn entry(block: &[u8; BLOCK as usize], offset: u64) -> Result<(&'static str, u64), BundleError> {
    let found = Header::from_byte_slice(block);
    let path = found.path_bytes();
    let known = FIRST.into_iter().chain(sealed::ARTIFACTS).find(|name| name.as_bytes() == &*path);
    let name = known.ok_or_else(|| BundleError::Name { offset, found: String::from_utf8_lossy(&path).into_owned() })?;
    let refused = |what: String| BundleError::Header { offset, name, found: what };
    let size = found.entry_size().map_err(|error| refused(error.to_string()))?;
    if header(name, size).as_bytes() != block {
        let what = match found.entry_type() {
            EntryType::Regular => "other metadata, or a wrong checksum".to_owned(),
            other => format!("{other:?}"),
        };
        return Err(refused(what));
    }
    Ok((name, size))
}

fn header(name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_path(name).expect("the names are short");
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct BundleReport {
    /// The bundle.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The files in it, in their order.
    pub files: Vec<&'static str>,
}

/// Checks a sealed directory by its own trust policy, and writes it into one file, which appears whole or not at all.
///
/// # Errors
/// The directory waits for signatures or does not verify; the file cannot be written.
pub fn write(
    directory: &SealedDirectory,
    out: &Path,
    threads: NonZeroUsize,
    output: Output,
) -> Result<BundleReport, Failure> {
    if directory.has(sealed::TO_SIGN) {
        let fact =
            format!("{}: expected a signed release, found one that waits for a signature", directory.path().display());
        return Err(Failure::new(ExitStatus::BadInput, fact)
            .next("sign to-sign.bin and hand the signature to 'iofs-sign attach'"));
    }
    check::check(directory, &directory.trust()?.keys, threads, output)?.into_result()?;
    let names = FIRST.into_iter().chain(sealed::ARTIFACTS.into_iter().filter(|name| !FIRST.contains(name)));
    let files: Vec<&'static str> = names.filter(|name| directory.has(name)).collect();
    let mut bundle = AtomicFile::create(out, 0o644)?;
    let size = fill(directory, &files, bundle.file(), output)?;
    bundle.replace()?;
    Ok(BundleReport { path: out.to_owned(), size, files })
}

fn fill(directory: &SealedDirectory, files: &[&str], out: &mut File, output: Output) -> Result<u64, Failure> {
    let failed = |name: &str, error: io::Error| {
        Failure::io(format_args!("copy {} into the bundle", directory.file(name).display()), &error)
    };
    let open = |name: &&str| {
        let file = directory.open(name)?;
        let size = file.metadata().map_err(|error| failed(name, error))?.len();
        Ok((name.to_string(), file, size))
    };
    let opened = files.iter().map(open).collect::<Result<Vec<_>, Failure>>()?;
    let progress = output.progress("writing the bundle", opened.iter().map(|(_, _, size)| size).sum());
    let mut total = 0;
    for (name, file, size) in opened {
        total += append(out, &name, file, size, &progress).map_err(|error| failed(&name, error))?;
    }
    out.write_all(&[0; 2 * BLOCK as usize]).map_err(|error| failed("its end", error))?;
    progress.finish();
    Ok(total + 2 * BLOCK)
}

/// Writes one file, and returns how many bytes it takes.
fn append(out: &mut File, name: &str, file: File, size: u64, progress: &Progress) -> io::Result<u64> {
    out.write_all(header(name, size).as_bytes())?;
    let copied = io::copy(&mut file.take(size), out)?;
    if copied != size {
        return Err(io::Error::other(format!("expected {size} bytes, found {copied}: it changed meanwhile")));
    }
    let padding = size.next_multiple_of(BLOCK) - size;
    out.write_all(&vec![0; padding as usize])?;
    progress.advance(size);
    Ok(BLOCK + size + padding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bundle: &mut Vec<u8>, header: &Header, content: &[u8]) {
        bundle.extend(header.as_bytes());
        bundle.extend(content);
        bundle.resize(bundle.len().next_multiple_of(BLOCK as usize), 0);
    }

    fn bundle(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bundle = Vec::new();
        files.iter().for_each(|(name, content)| put(&mut bundle, &header(name, content.len() as u64), content));
        bundle.extend([0; 1024]);
        bundle
    }

    fn parsed(bytes: &[u8]) -> Result<BTreeMap<&'static str, Extent>, String> {
        let read = |buffer: &mut [u8], offset: u64| {
            let bytes = bytes.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        parse(read, bytes.len() as u64).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bundle_is_read_as_it_was_written() {
        let bytes = bundle(&[(sealed::RELEASE, b"statement"), (sealed::IMAGE, &[7; 600])]);
        let files = parsed(&bytes).unwrap();
        assert_eq!(files[sealed::RELEASE], Extent { offset: 512, size: 9 });
        assert_eq!(files[sealed::IMAGE], Extent { offset: 1536, size: 600 });
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn every_changed_bit_of_a_header_and_every_truncation_is_refused() {
        let bytes = bundle(&[(sealed::MANIFEST, b"manifest")]);
        for at in (0..512).chain(1024..2048) {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(parsed(&changed).is_err(), "byte {at}, bit {bit}");
            }
        }
        for length in 0..bytes.len() {
            assert!(parsed(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(parsed(&[bytes, vec![0]].concat()).unwrap_err().contains("1 bytes more"));
    }

    #[test]
    fn links_other_names_and_duplicates_are_refused() {
        let with = |header: &Header| {
            let mut bytes = Vec::new();
            put(&mut bytes, header, b"");
            bytes.extend([0; 1024]);
            parsed(&bytes).unwrap_err()
        };
        let mut link = header(sealed::IMAGE, 0);
        link.set_entry_type(EntryType::Symlink);
        link.set_link_name("/etc/shadow").unwrap();
        link.set_cksum();
        assert!(with(&link).contains("found Symlink"), "{}", with(&link));
        for name in ["../image.erofs", "/image.erofs", "./image.erofs", "a/image.erofs", "other", sealed::TO_SIGN, ""] {
            let mut other = header(sealed::IMAGE, 0);
            other.as_mut_bytes()[..100].fill(0);
            other.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            other.set_cksum();
            assert!(with(&other).contains("expected a file of a sealed directory"), "{name}: {}", with(&other));
        }
        let twice = bundle(&[(sealed::TREE, b"1"), (sealed::TREE, b"2")]);
        assert!(parsed(&twice).unwrap_err().contains("found \"image.verity\" again"));
        let huge = header(sealed::IMAGE, u64::MAX >> 1);
        assert!(with(&huge).contains("expected 9223372036854775807 bytes"), "{}", with(&huge));
    }
}
