//! File systems that hold a sealed image as a file, as an attacker who has the disk can make them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use iofs_policy::manifest::MediumKind;
use tempfile::TempDir;

use crate::{ScratchDisk, attester, chain::Chain, tools, volume::with_contents};

/// What the file systems here are called; vfat takes the first eight digits.
pub const UUID: &str = "12ab34cd-0506-4708-890a-0b0c0d0e0f10";
/// Where the image lies in them.
pub const PATH: &str = "iofs/image";
/// Room for a tiny image, and the least that mkfs.vfat makes a FAT32 of.
const SIZE: u64 = 40 << 20;

/// How a place in such a file system is written, by what it is called.
pub fn place(kind: MediumKind) -> String {
    let uuid = if kind == MediumKind::Vfat { "12AB-34CD" } else { UUID };
    format!("{}:UUID={uuid}:/{PATH}", kind.name())
}

/// What goes into a file system: a folder that a test fills, with the image of a chain at [`PATH`].
#[derive(Debug)]
pub struct Medium {
    folder: TempDir,
}

impl Medium {
    /// With a chain's image, its tree behind it.
    ///
    /// # Errors
    ///
    /// Where the chain is damaged or the folder cannot be written.
    pub fn of(chain: &Chain) -> Result<Self> {
        let medium = Self { folder: tempfile::tempdir()? };
        let path = medium.image();
        fs::create_dir_all(path.parent().context("it lies in a folder")?)?;
        chain.directory().write_one_piece(&chain.manifest()?, &mut File::create(path)?)?;
        Ok(medium)
    }

    /// The image, to be changed.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("files").join(PATH)
    }

    /// The file system on a disk of its own.
    ///
    /// # Errors
    ///
    /// Where a maker of file systems is missing or fails.
    pub fn disk(&self, kind: MediumKind) -> Result<ScratchDisk> {
        let disk = ScratchDisk::empty(SIZE)?;
        write(kind, &self.folder.path().join("files"), disk.path())?;
        Ok(disk)
    }
}

/// Makes a file system of what is in a folder, in a file that has its size.
///
/// # Errors
///
/// Where a maker of file systems is missing or fails.
pub fn write(kind: MediumKind, files: &Path, path: &Path) -> Result<()> {
    let tool = |name: &str, package: &str| {
        Ok::<_, anyhow::Error>(Command::new(tools::require(name, &format!("apt-get install {package}"))?))
    };
    let run = |command: &mut Command| attester::run(command).map(drop);
    match kind {
        MediumKind::Ext4 => {
            let mut make = tool("mke2fs", "e2fsprogs")?;
            run(make.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID, "-d"]).args([files, path]))
        }
        MediumKind::Erofs => {
            let mut make = tool("mkfs.erofs", "erofs-utils")?;
            run(make.args(["-U", UUID]).args([path, files]))
        }
        MediumKind::Vfat => {
            run(tool("mkfs.vfat", "dosfstools")?.args(["-F", "32", "-i", "12ab34cd"]).arg(path))?;
            let mut copy = tool("mcopy", "mtools")?;
            run(copy.args(["-s", "-i"]).arg(path).arg(files.join("iofs")).arg("::/"))
        }
    }
}

/// A partition to be made.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    /// Its name.
    pub label: &'a str,
    /// Its unique id.
    pub uuid: &'a str,
    /// What is in it.
    pub content: &'a Path,
}

/// A disk with these partitions.
///
/// # Errors
///
/// Where `sfdisk` is missing or fails.
pub fn partitioned(partitions: &[Partition<'_>]) -> Result<ScratchDisk> {
    let partitions = partitions.iter().map(|one| {
        let Partition { label, uuid, content } = one;
        (format!("name=\"{label}\", uuid={uuid}"), content.to_path_buf())
    });
    with_contents(&partitions.collect::<Vec<_>>())
}

/// Where a block of a file lies on a disk that holds the file: its bytes are there once.
///
/// # Errors
///
/// Where they are not.
pub fn find_block(disk: &ScratchDisk, file: &Path, number: usize) -> Result<u64> {
    const BLOCK: usize = 4096;
    let (file, disk) = (fs::read(file)?, fs::read(disk.path())?);
    let block = file.get(number * BLOCK..(number + 1) * BLOCK).context("the file has that block")?;
    // The smallest unit in which any of the file systems places data.
    let mut places = (0..disk.len() - BLOCK).step_by(512).filter(|at| &disk[*at..at + BLOCK] == block);
    let place = places.next().context("the block is on the disk")?;
    ensure!(places.next().is_none(), "the block is on the disk more than once");
    Ok(place as u64)
}
