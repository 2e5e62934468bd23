//! The EFI system partition: a FAT file system with a program at the path that firmware looks for by itself: a unified kernel
//! image, or a boot loader that starts one.
//!
//! UEFI 2.10, sections 13.3 (FAT32 on a system partition) and 3.5.1.1 (the path).

use std::{fs::File, io, path::Path};

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
const DEFAULT_FOLDER: &str = "/EFI/BOOT";
/// Where a boot loader looks for unified kernel images.
const LOADED_FOLDER: &str = "/EFI/Linux";

/// What the partition is to hold.
#[derive(Debug)]
pub(super) struct Esp {
    files: Vec<EspFile>,
    volume_id: u32,
}

#[derive(Debug)]
struct EspFile {
    folder: &'static str,
    name: String,
    contents: Vec<u8>,
}

impl Esp {
    /// With a program that firmware starts by itself, which must be one for this processor.
    pub(super) fn new(started: &Path, architecture: Architecture, volume_id: u32) -> Result<Self, Failure> {
        let name = default_name(architecture).to_owned();
        let file = EspFile { folder: DEFAULT_FOLDER, name, contents: program(started, architecture)? };
        Ok(Self { files: vec![file], volume_id })
    }

    /// And with a unified kernel image of this name, which that program starts.
    pub(super) fn with_image(mut self, name: String, path: &Path, architecture: Architecture) -> Result<Self, Failure> {
        self.files.push(EspFile { folder: LOADED_FOLDER, name, contents: program(path, architecture)? });
        Ok(self)
    }

    /// As asked, or with room for everything once more, so that an update can be written beside what runs.
    pub(super) fn partition_size(&self, asked: Option<u64>) -> Result<u64, Failure> {
        let files: u64 = self.files.iter().map(|file| file.contents.len() as u64).sum();
        let least = with_tables(files);
        let size = asked.map_or_else(|| with_tables(2 * files), |asked| asked.next_multiple_of(ALIGNMENT));
        if (least..=MAXIMUM).contains(&size) {
            return Ok(size);
        }
        let fact = format!(
            "EFI system partition: expected {least} bytes, which its {files} bytes of files need on FAT32, to {MAXIMUM}, found {size}"
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
        for EspFile { folder, name, contents } in &self.files {
            volume.create_dir_all(folder)?;
            volume.write(format!("{folder}/{name}"), contents)?;
        }
        volume.lock()?.sync()?;
        Ok(())
    }
}

/// Reads a program, which must be one for this processor.
fn program(path: &Path, architecture: Architecture) -> Result<Vec<u8>, Failure> {
    let bytes = atomic::read(path)?;
    let headers = Headers::parse(&bytes).map_err(|error| bad_input(path, &error))?;
    if headers.machine.architecture() == architecture {
        return Ok(bytes);
    }
    let found = headers.machine.name();
    Err(bad_input(path, &format_args!("expected an image for {architecture}, found one for {found}"))
        .next("assemble it from the kernel that was sealed: iofs-sign uki"))
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
