//! What the mini-initramfs really holds: it must be the manifest and the trust policy that lie beside it.

use std::{collections::BTreeMap, io::BufReader};

use iofs_policy::{dsse::MAX_ENVELOPE_SIZE, paths, trust::MAX_TRUST_SIZE};

use super::Check;
use crate::{
    archive::{
        entry::{Content, Entry},
        error::ArchiveError,
        initramfs::{Segment, Visitor, walk},
        input::Input,
    },
    initramfs::in_archive,
    roothash, sealed,
};

/// The embedded files that have a twin in the sealed directory.
const TWINS: [(&str, &str, usize); 3] = [
    (paths::MANIFEST, sealed::MANIFEST, MAX_ENVELOPE_SIZE),
    (paths::TRUST, sealed::TRUST, MAX_TRUST_SIZE),
    (paths::ROOT_HASH_SIGNATURE, sealed::ROOT_HASH_SIGNATURE, roothash::MAX_SIZE),
];

/// Collects the twins. A later entry replaces an earlier one, as it does when the kernel unpacks them.
#[derive(Default)]
struct Collector {
    found: BTreeMap<&'static str, Vec<u8>>,
}

impl Visitor for Collector {
    type Error = ArchiveError;

    fn entry(&mut self, _: &Segment, _: u64, entry: &Entry, content: &mut dyn Content) -> Result<(), ArchiveError> {
        let twin = TWINS.iter().find(|(path, ..)| entry.name == in_archive(path).as_bytes());
        let Some((path, _, limit)) = twin else { return Ok(()) };
        let mut bytes = Vec::new();
        let mut buffer = [0; 8192];
        // One byte over the limit tells that the file is too long; more need not be kept.
        while bytes.len() <= *limit {
            match content.read_content(&mut buffer)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        self.found.insert(path, bytes);
        Ok(())
    }
}

impl Check<'_> {
    /// Compares the embedded files with their twins. Both are verified or digested elsewhere.
    pub(super) fn embedded(&mut self) {
        if !self.directory.has(sealed::INITRAMFS) {
            return;
        }
        let file = self.directory.open(sealed::INITRAMFS).map_err(|failure| failure.fact);
        let Some(file) = self.note(sealed::INITRAMFS, file) else { return };
        let mut collector = Collector::default();
        let walked = walk(&mut Input::new(BufReader::new(file), sealed::INITRAMFS), &mut collector);
        if self.note(sealed::INITRAMFS, walked).is_none() {
            return;
        }
        for (path, twin, limit) in TWINS {
            let Ok(expected) = self.directory.read(twin, limit) else { continue };
            let found = collector.found.get(path);
            if found != Some(&expected) {
                let found = if found.is_some() { "others" } else { "no such file" };
                self.problem(sealed::INITRAMFS, format_args!("{path}: expected the bytes of {twin}, found {found}"));
            }
        }
    }
}
