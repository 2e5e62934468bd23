//! The EFI system partition: a FAT file system with one program at the path that firmware looks for by itself.
//!
//! UEFI 2.10, sections 13.3 (FAT32 on a system partition) and 3.5.1.1 (the path).

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use iofs_policy::manifest::Architecture;

use super::{ALIGNMENT, copy_sparse, fat32::Layout};
use crate::{
    atomic,
    pe::Headers,
    report::{ExitStatus, Failure, Progress},
    sealed::bad_input,
};

/// FAT32 begins at 65,525 clusters; with clusters of one sector, both tables and the reserved sectors that is less than
/// this. Bytes.
const MINIMUM: u64 = 34 << 20;
/// Sectors and clusters are counted in 32 bits, and some firmware counts bytes so. Bytes.
const MAXIMUM: u64 = 4 << 30;

/// What the partition is to hold.
#[derive(Debug)]
pub(super) struct Esp {
    path: PathBuf,
    uki: Vec<u8>,
    architecture: Architecture,
    volume_id: u32,
}

impl Esp {
    /// Reads the image, which must be one for this processor.
    pub(super) fn new(path: &Path, architecture: Architecture, volume_id: u32) -> Result<Self, Failure> {
        let uki = atomic::read(path)?;
        let headers = Headers::parse(&uki).map_err(|error| bad_input(path, &error))?;
        if headers.machine.architecture() != architecture {
            let found = headers.machine.name();
            return Err(bad_input(path, &format_args!("expected an image for {architecture}, found one for {found}"))
                .next("assemble it from the kernel that was sealed: iofs-sign uki"));
        }
        Ok(Self { path: path.to_owned(), uki, architecture, volume_id })
    }

    /// As asked, or with room for a second image, so that an update can be written beside the one that runs.
    pub(super) fn partition_size(&self, asked: Option<u64>) -> Result<u64, Failure> {
        let image = self.uki.len() as u64;
        let least = with_tables(image);
        let size = asked.map_or_else(|| with_tables(2 * image), |asked| asked.next_multiple_of(ALIGNMENT));
        if (least..=MAXIMUM).contains(&size) {
            return Ok(size);
        }
        let path = self.path.display();
        let fact = format!(
            "EFI system partition: expected {least} bytes, which {path} needs on FAT32, to {MAXIMUM}, found {size}"
        );
        Err(Failure::new(ExitStatus::Usage, fact)
            .next("give another --esp-size; by default there is room for two images"))
    }

    /// Makes the file system in a part of a file that reads as zeros.
    pub(super) fn write(&self, file: &mut File, offset: u64, size: u64, progress: &Progress) -> io::Result<()> {
        let layout = Layout::new(size, self.volume_id);
        for (at, bytes) in layout.structures(default_name(self.architecture), self.uki.len() as u64) {
            copy_sparse(&mut &bytes[..], file, offset + at, progress)?;
        }
        copy_sparse(&mut &self.uki[..], file, offset + layout.file_offset(), progress)
    }
}

/// What so many bytes of files need: tables, 8 bytes a cluster, and some room for folders.
fn with_tables(files: u64) -> u64 {
    (files + files / 64 + ALIGNMENT).next_multiple_of(ALIGNMENT).max(MINIMUM)
}

/// As a directory entry has it: eight bytes, then three.
fn default_name(architecture: Architecture) -> &'static [u8; 11] {
    match architecture {
        Architecture::X86_64 => b"BOOTX64 EFI",
        Architecture::Arm64 => b"BOOTAA64EFI",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_be_enough_has_room_for_the_file() {
        for files in (0..3000).map(|number| number * 1_000_003) {
            let size = with_tables(files);
            let end = Layout::new(size, 0).file_offset() + files.next_multiple_of(4096);
            assert!(end <= size || size > MAXIMUM, "{files} bytes: {end} of {size}");
        }
    }

    #[test]
    fn each_processor_has_a_path_of_its_own() {
        assert_eq!(default_name(Architecture::X86_64), b"BOOTX64 EFI");
        assert_eq!(default_name(Architecture::Arm64), b"BOOTAA64EFI");
    }
}
