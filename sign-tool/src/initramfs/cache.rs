//! Compressed archives, kept for the next image of the same kernel: level 19 takes longer than everything else about a small image.
//!
//! A file's name follows from what it unpacks to and from how it was compressed, so that nothing in the folder ever grows old, and
//! all of it may be removed at any time. What is found is unpacked and compared, to its last byte: behind an archive the kernel
//! would take whatever follows for another.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Format, XZ_PRESET, ZSTD_LEVEL, ZSTD_WINDOW_LOG};
use crate::atomic;

/// A folder of compressed archives, or none.
#[derive(Debug, Clone, Default)]
pub struct SegmentCache(Option<PathBuf>);

impl SegmentCache {
    /// The caller's own: `iofs-sign` below `XDG_CACHE_HOME`, or below `.cache` of the home (XDG Base Directory Specification). None
    /// without a home.
    pub fn of_user() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let place = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        Self(place.map(|place| place.join("iofs-sign")))
    }

    /// Keeps nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// A folder, made when something is kept.
    pub fn at(place: &Path) -> Self {
        Self(Some(place.to_owned()))
    }

    /// The folder, where there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// What `compress` makes of `plain`, from the folder where it is there. A folder that cannot be used is as good as none.
    pub(super) fn compressed(
        &self,
        plain: &[u8],
        format: Format,
        compress: impl FnOnce(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let place = self.0.as_ref().filter(|_| format != Format::None);
        let Some(place) = place else { return compress(plain) };
        let path = place.join(name(plain, format));
        if let Some(found) = fs::read(&path).ok().filter(|found| unpacks_to(found, plain, format)) {
            return Ok(found);
        }
        let bytes = compress(plain)?;
        // Under its name at once, so that nobody finds a part.
        let _ = fs::create_dir_all(place).map(|()| atomic::write(&path, 0o600, &bytes));
        Ok(bytes)
    }
}

fn name(plain: &[u8], format: Format) -> String {
    let made_by = match format {
        Format::Zstd => format!("zstd {} {ZSTD_LEVEL} {ZSTD_WINDOW_LOG}", zstd::zstd_safe::version_string()),
        Format::Xz => format!("xz {} {XZ_PRESET}", env!("CARGO_PKG_VERSION")),
        Format::Gzip | Format::None => format!("{format:?} {}", env!("CARGO_PKG_VERSION")),
    };
    let digest = Sha256::new().chain_update(made_by).chain_update([0]).chain_update(plain).finalize();
    format!("segment-{}", iofs_policy::hex::encode(&digest))
}

/// Whether `bytes` is one frame or member, of `plain` and nothing else.
fn unpacks_to(bytes: &[u8], plain: &[u8], format: Format) -> bool {
    let mut rest = bytes;
    let same = match format {
        Format::Zstd => {
            zstd::Decoder::with_buffer(&mut rest).is_ok_and(|decoder| is(&mut decoder.single_frame(), plain))
        }
        Format::Xz => is(&mut liblzma::bufread::XzDecoder::new(&mut rest), plain),
        Format::Gzip => is(&mut flate2::bufread::GzDecoder::new(&mut rest), plain),
        Format::None => false,
    };
    same && rest.is_empty()
}

fn is(unpacked: &mut impl Read, plain: &[u8]) -> bool {
    let mut found = Vec::with_capacity(plain.len() + 1);
    let limit = plain.len() as u64 + 1;
    unpacked.take(limit).read_to_end(&mut found).is_ok() && found == plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initramfs::compress;

    const COMPRESSED: [Format; 3] = [Format::Zstd, Format::Xz, Format::Gzip];

    fn fails(_: &[u8]) -> io::Result<Vec<u8>> {
        Err(io::Error::other("compressed once more"))
    }

    #[test]
    fn an_archive_is_compressed_once_and_kept_for_the_next_image() {
        let folder = tempfile::tempdir().unwrap();
        let cache = SegmentCache::at(&folder.path().join("new"));
        let plain = vec![7; 100_000];
        for format in COMPRESSED {
            let first = cache.compressed(&plain, format, |plain| compress(plain, format)).unwrap();
            assert_eq!(first, compress(&plain, format).unwrap());
            assert_eq!(cache.compressed(&plain, format, fails).unwrap(), first);
            assert!(cache.compressed(&plain[1..], format, fails).is_err());
            assert!(SegmentCache::none().compressed(&plain, format, fails).is_err());
        }
        let names: Vec<_> = fs::read_dir(folder.path().join("new")).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(
            names.len() == COMPRESSED.len()
                && names.iter().all(|entry| entry.file_name().to_str().unwrap().starts_with("segment-"))
        );
    }

    #[test]
    fn what_somebody_else_put_into_the_folder_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = SegmentCache::at(folder.path());
        let plain = vec![7; 100_000];
        for format in COMPRESSED {
            let good = compress(&plain, format).unwrap();
            let path = folder.path().join(name(&plain, format));
            let appended = [&good[..], &compress(b"070701", format).unwrap()[..]].concat();
            let padded = [&good[..], &[0; 4][..]].concat();
            let other = compress(&vec![8; 100_000], format).unwrap();
            for bad in [&appended[..], &padded[..], &other[..], &good[..good.len() - 1], &[]] {
                fs::write(&path, bad).unwrap();
                assert_eq!(cache.compressed(&plain, format, |plain| compress(plain, format)).unwrap(), good);
                assert_eq!(fs::read(&path).unwrap(), good, "and kept");
            }
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_as_good_as_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = SegmentCache::at(&file.path().join("below a file"));
        let format = Format::Zstd;
        assert!(cache.compressed(b"content", format, |plain| compress(plain, format)).is_ok());
    }
}
