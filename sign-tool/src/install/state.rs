//! `/var/lib/iofs/install.json`: what `install` wrote, and what was there before.

use std::{collections::BTreeMap, fs, io, os::unix::fs::PermissionsExt, path::PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use iofs_policy::digest::Sha256Digest;
use serde::{Deserialize, Serialize};

use super::{boot::LoaderKind, sysroot::Sysroot};
use crate::report::{ExitStatus, Failure};

/// Where the record lies.
pub const STATE: &str = "/var/lib/iofs/install.json";

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The loader that was told.
    pub loader: LoaderKind,
    /// The folder with a folder for each kernel.
    pub folder: PathBuf,
    /// What is installed for which kernel, by its release.
    pub kernels: BTreeMap<String, InstalledKernel>,
    /// Every file that was written, changed or removed besides, in that order.
    pub files: Vec<Written>,
}

/// What is installed for a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstalledKernel {
    /// Of everything that was sealed: where it is the same, nothing need be sealed again.
    pub inputs: Sha256Digest,
    /// The kernel's own file of the loader, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<PathBuf>,
    /// Sizes before and after.
    pub sizes: Sizes,
}

/// How much a boot loader loads, before and after, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// The distribution's initramfs.
    pub stock_initramfs: u64,
    /// The mini-initramfs.
    pub initramfs: u64,
    /// The sealed image with its tree; it is read block by block, as far as it is used. In memory, a part of the mini-initramfs.
    pub image: u64,
}

/// A file that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// What it was; none where it was not there.
    pub before: Option<FileContent>,
    /// What it became; none where it was removed.
    pub after: Option<FileContent>,
}

/// A small file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileContent {
    /// Its permissions.
    pub mode: u32,
    #[serde(with = "as_base64")]
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl FileContent {
    /// Reads a file; none where there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(sysroot: &Sysroot, path: &std::path::Path) -> Result<Option<Self>, Failure> {
        let path = sysroot.path(path);
        let read = || -> io::Result<Self> {
            Ok(Self { mode: fs::metadata(&path)?.permissions().mode() & 0o7777, bytes: fs::read(&path)? })
        };
        match read() {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(format_args!("read {}", path.display()), &error)),
        }
    }
}

impl State {
    /// Reads the record; none where nothing is installed.
    ///
    /// # Errors
    /// It is malformed or cannot be read.
    pub fn read(sysroot: &Sysroot) -> Result<Option<Self>, Failure> {
        let path = sysroot.path(STATE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Failure::new(ExitStatus::BadInput, format!("{STATE}: {error}"))
                    .next("remove what 'install' wrote by hand: /boot/iofs, /etc/grub.d/09_iofs, loader/entries/iofs-*")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(format_args!("read {}", path.display()), &error)),
        }
    }

    /// The record's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a record always serialises");
        json.push(b'\n');
        json
    }

    /// Notes a change of a file. Of one that was changed before, what was there first still counts.
    pub fn note(&mut self, path: PathBuf, before: Option<FileContent>, after: Option<FileContent>) {
        match self.files.iter_mut().find(|written| written.path == path) {
            Some(written) => written.after = after,
            None => self.files.push(Written { path, before, after }),
        }
    }
}

mod as_base64 {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{BASE64_STANDARD, Engine};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        BASE64_STANDARD.encode(bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_first_is_kept_over_any_number_of_changes() {
        let content = |text: &str| Some(FileContent { mode: 0o644, bytes: text.as_bytes().to_vec() });
        let mut state = State {
            loader: LoaderKind::Grub,
            folder: "/boot/iofs".into(),
            kernels: BTreeMap::new(),
            files: Vec::new(),
        };
        state.note("/a".into(), content("stock"), content("ours"));
        state.note("/a".into(), content("ours"), content("ours, later"));
        let [written] = &state.files[..] else { panic!("{:?}", state.files) };
        assert_eq!((&written.before, &written.after), (&content("stock"), &content("ours, later")));
        assert_eq!(serde_json::from_slice::<State>(&state.to_json()).unwrap(), state);
    }
}
