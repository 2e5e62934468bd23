//! The EFI system partition: a FAT file system with one program at the path that firmware looks for by itself.
//!
//! UEFI 2.10, sections 13.3 (FAT32 on a system partition) and 3.5.1.1 (the path).

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use hadris_fat::{
    FatKind, FatOptions, VolumeLabel,
    sync::{FatFs, format},
};
use hadris_fs::{MountOptions, sync::Volume};
use hadris_storage::{Partition, host::FileDevice};
use iofs_policy::manifest::Architecture;

use super::ALIGNMENT;
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
const FOLDER: &str = "/EFI/BOOT";

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
    pub(super) fn write(&self, file: &File, offset: u64, size: u64, progress: &Progress) -> io::Result<()> {
        let device = FileDevice::new(file.try_clone()?)?;
        self.fill(Partition::new(device, offset, size)).map_err(|error| io::Error::other(error.to_string()))?;
        progress.advance(size);
        Ok(())
    }

    /// There is no clock: all times are the first that FAT knows, so that the same input gives the same bytes.
    fn fill(&self, mut device: Partition<FileDevice>) -> Result<(), Box<dyn std::error::Error>> {
        format(&mut device, &options(self.volume_id))?;
        let volume = Volume::new(FatFs::mount(device, MountOptions::new())?);
        volume.create_dir_all(FOLDER)?;
        volume.write(format!("{FOLDER}/{}", default_name(self.architecture)), &self.uki)?;
        volume.lock()?.sync()?;
        Ok(())
    }
}

/// FAT32 whatever the size, as UEFI wants it on a fixed disk.
fn options(volume_id: u32) -> FatOptions {
    let label = VolumeLabel::new("ESP").expect("three letters");
    FatOptions::new().with_kind(FatKind::Fat32).with_label(label).with_serial(volume_id)
}

/// What so many bytes of files need: tables, 8 bytes a cluster, and some room for folders.
fn with_tables(files: u64) -> u64 {
    (files + files / 64 + ALIGNMENT).next_multiple_of(ALIGNMENT).max(MINIMUM)
}

fn default_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "BOOTX64.EFI",
        Architecture::Arm64 => "BOOTAA64.EFI",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_be_enough_has_room_for_the_file() {
        for files in (0..60).map(|number| number * 60_000_003) {
            let size = with_tables(files).min(MAXIMUM);
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            let geometry = format(&mut FileDevice::new(file).unwrap(), &options(0)).unwrap();
            let cluster = u64::from(geometry.cluster_size());
            // They are numbered from 2, and three folders have one each.
            let free = u64::from(geometry.max_cluster() - 4) * cluster;
            assert!(files <= free || size == MAXIMUM, "{files} bytes: {free} of {size}");
        }
    }

    #[test]
    fn each_processor_has_a_path_of_its_own() {
        assert_eq!(default_name(Architecture::X86_64), "BOOTX64.EFI");
        assert_eq!(default_name(Architecture::Arm64), "BOOTAA64.EFI");
    }
}
