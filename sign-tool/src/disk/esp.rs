//! The EFI system partition: a FAT file system with one program at the path that firmware looks for by itself.
//!
//! UEFI 2.10, sections 13.3 (FAT32 on a system partition) and 3.5.1.1 (the path).

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use iofs_policy::manifest::Architecture;

use super::{ALIGNMENT, SECTOR};
use crate::{
    initramfs::elf::Machine,
    pe::Headers,
    report::{ExitStatus, Failure},
    sealed::bad_input,
};

/// FAT32 begins at 65,525 clusters; with clusters of one sector, both tables and the reserved sectors that is less than
/// this. Bytes.
const MINIMUM: u64 = 34 << 20;
/// Sectors and clusters are counted in 32 bits, and some firmware counts bytes so. Bytes.
const MAXIMUM: u64 = 4 << 30;
const LABEL: &[u8; 11] = b"ESP        ";

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
        let uki = std::fs::read(path).map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
        let headers = Headers::parse(&uki).map_err(|error| bad_input(path, &error))?;
        if machine(architecture) != headers.machine {
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
        let Some(asked) = asked else { return Ok(with_tables(2 * image)) };
        let size = asked.next_multiple_of(ALIGNMENT);
        if (least..=MAXIMUM).contains(&size) {
            return Ok(size);
        }
        let path = self.path.display();
        let fact =
            format!("--esp-size: expected {least} bytes, which {path} needs on FAT32, to {MAXIMUM}, found {asked}");
        Err(Failure::new(ExitStatus::Usage, fact).next("omit it for twice the image's size"))
    }

    /// Makes the file system in a part of a file that reads as zeros.
    pub(super) fn write(&self, file: &mut File, offset: u64, size: u64) -> io::Result<()> {
        let mut part = Part { file, offset, size, position: 0 };
        let options = FormatVolumeOptions::new()
            .fat_type(FatType::Fat32)
            .bytes_per_sector(SECTOR as u16)
            .bytes_per_cluster(cluster(size))
            .volume_id(self.volume_id)
            .volume_label(*LABEL);
        fatfs::format_volume(&mut part, options)?;
        part.position = 0;
        // Without a clock, entries have the first day of FAT's calendar: the same input gives the same bytes.
        let file_system = FileSystem::new(part, FsOptions::new())?;
        let folder = file_system.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
        folder.create_file(default_name(self.architecture))?.write_all(&self.uki)?;
        drop(folder);
        file_system.unmount()
    }
}

/// What so many bytes of files need: tables, 8 bytes a cluster, and some room for folders.
fn with_tables(files: u64) -> u64 {
    (files + files / 64 + ALIGNMENT).next_multiple_of(ALIGNMENT).max(MINIMUM)
}

/// Small ones until tables would take more than some megabytes.
fn cluster(size: u64) -> u32 {
    if size > 260 << 20 { 4096 } else { SECTOR as u32 }
}

fn machine(architecture: Architecture) -> Machine {
    match architecture {
        Architecture::X86_64 => Machine::X86_64,
        Architecture::Arm64 => Machine::Arm64,
    }
}

fn default_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "BOOTX64.EFI",
        Architecture::Arm64 => "BOOTAA64.EFI",
    }
}

/// A part of a file, as if it were a whole one.
struct Part<'a> {
    file: &'a mut File,
    offset: u64,
    size: u64,
    position: u64,
}

impl Part<'_> {
    /// How much of so many bytes lies within it, with the file at its position.
    fn room(&mut self, wanted: usize) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(self.offset + self.position))?;
        Ok(wanted.min(usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX)))
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len())?;
        let count = self.file.read(&mut buffer[..room])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Part<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(bytes.len())?;
        let count = self.file.write(&bytes[..room])?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
