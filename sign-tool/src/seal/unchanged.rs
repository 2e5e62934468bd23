//! Lists of sealed files, by which the next image of the same tree takes what looks unchanged from the image before.
//!
//! They lie in the cache's folder, one for each root tree, and may be removed at any time. What they say of the image is compared
//! before it is used; what they say of the files, by inode, size and times, is believed: so they are only used where that is asked for.

use std::{
    fs::{self, File, Metadata},
    io::Read,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use erofs_image::write::{Earlier, Record};
use sha2::{Digest, Sha256};

use crate::{
    atomic,
    erofs::{self, ImageOptions},
    report::{Failure, Output},
    sealed,
};

/// A folder of lists.
#[derive(Debug, Clone)]
pub struct FileLists(PathBuf);

impl FileLists {
    /// A folder, made when something is kept.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// What the list of `root` tells, where there is one of the caller's own, and its image is still there.
    pub(super) fn earlier(&self, root: &Path, options: &ImageOptions) -> Option<Earlier> {
        let mut bytes = Vec::new();
        let mut list = File::open(self.path(root)?).ok()?;
        if !is_own(&list.metadata().ok()?) {
            return None;
        }
        list.read_to_end(&mut bytes).ok()?;
        let record = Record::parse(&bytes).ok()?;
        let image = File::open(record.image()).ok()?;
        erofs::earlier(record, image, options)
    }

    /// Keeps the list of `root`, whose image is now in `sealed`.
    pub(super) fn keep(&self, root: &Path, sealed: &Path, listing: Listing, output: Output) {
        if let Err(failure) = self.try_keep(root, sealed, listing) {
            output.warn(format_args!("{}: the next image will be made of all files anew", failure.fact));
        }
    }

    fn try_keep(&self, root: &Path, sealed: &Path, listing: Listing) -> Result<(), Failure> {
        let failed = |error| Failure::io(format_args!("keep the list of files in {}", self.0.display()), &error);
        let image = sealed.join(sealed::IMAGE).canonicalize().map_err(failed)?;
        fs::create_dir_all(&self.0).map_err(failed)?;
        let Some(path) = self.path(root) else { return Ok(()) };
        atomic::write(&path, 0o600, &listing.record.to_bytes(&image, listing.began))
    }

    fn path(&self, root: &Path) -> Option<PathBuf> {
        let root = root.canonicalize().ok()?;
        let name = iofs_policy::hex::encode(&Sha256::digest(root.as_os_str().as_bytes()));
        Some(self.0.join(format!("files-{name}")))
    }
}

/// Whether nobody else could have written a file: its list would be believed.
fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

/// The files of an image.
#[derive(Debug)]
pub(super) struct Listing {
    /// Before the first of them was listed.
    pub(super) began: SystemTime,
    pub(super) record: Record,
    /// How many were taken from the image before.
    pub(super) unchanged: u64,
}
