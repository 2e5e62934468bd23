//! The mini-initramfs: verify-init, the modules it may need, the manifest and the keys it trusts. Nothing else: no shell.
//!
//! It is two archives, compressed each on its own, since the kernel unpacks one after the other. The first depends on
//! the kernel and verify-init only, so that it can be kept per kernel; the small second one belongs to one image.

pub mod cache;
pub mod elf;
pub mod init;
pub mod kernel;
pub mod modules;
pub mod newc;
pub mod profile;
mod tree;

use std::io::{self, Write};

use clap::ValueEnum;
use iofs_policy::paths;
use liblzma::stream::{Check, Stream};
use serde::{Deserialize, Serialize};

use self::{
    cache::SegmentCache,
    elf::Machine,
    modules::ModuleSet,
    newc::{Archive, PathError},
};
use crate::report::{ExitStatus, Failure};

/// Mount points, and the folder of the second archive.
const DIRECTORIES: [&str; 7] = ["dev", "etc/iofs", "proc", "run", "sys", "sysroot", "tmp"];
/// Each archive begins on a multiple of this; the kernel skips zeros between them.
const ALIGNMENT: usize = 4;
/// Level 19 is the highest that needs no more memory in the kernel than a window of 8 MiB.
const ZSTD_LEVEL: i32 = 19;
const ZSTD_WINDOW_LOG: u32 = 23;
/// Level 9, the extreme variant. The kernel's window is as large as what is unpacked, whatever the level allows.
const XZ_PRESET: u32 = 9 | liblzma::stream::PRESET_EXTREME;

/// How the archives are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Zstandard, level 19 (kernels from 5.9 on, CONFIG_RD_ZSTD)
    #[default]
    Zstd,
    /// xz, level 9: a tenth smaller, for slow storage: the kernel takes longer to unpack it (CONFIG_RD_XZ)
    Xz,
    /// gzip, level 9
    Gzip,
    /// Not at all, where something else compresses
    None,
}

impl Format {
    /// The name, as options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

/// A file for the second archive.
#[derive(Debug, Clone)]
pub struct EmbeddedFile {
    /// Where, without leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// The contents.
    pub bytes: Vec<u8>,
}

/// What to put into an initramfs.
#[derive(Debug, Clone)]
pub struct InitramfsPlan<'a> {
    /// The modules, and with them kernel and machine.
    pub modules: &'a ModuleSet,
    /// The static binary that becomes `/init`.
    pub init: &'a [u8],
    /// The files of the image: [`paths::MANIFEST`], [`paths::TRUST`]. Without any there is no second archive.
    pub files: &'a [EmbeddedFile],
    /// The compression.
    pub format: Format,
    /// The timestamp of every entry, seconds since 1970.
    pub mtime: u32,
    /// Where the first archive may be found compressed.
    pub cache: SegmentCache,
}

/// An initramfs.
#[derive(Debug, Clone)]
pub struct Initramfs {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What is in it.
    pub report: Report,
}

/// What is in an initramfs, for people and scripts.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The kernel that it belongs to.
    pub kernel: String,
    /// The machine.
    pub machine: Machine,
    /// The compression.
    pub compression: Format,
    /// Size in bytes.
    pub size: usize,
    /// The archives in it, in order.
    pub segments: Vec<Segment>,
    /// Optional modules that this kernel does not have.
    pub absent_modules: Vec<String>,
}

/// One archive of an initramfs.
#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    /// Where it begins, in bytes.
    pub offset: usize,
    /// How long it is there, in bytes, with what fills it up to the next archive.
    pub compressed: usize,
    /// Its size uncompressed, in bytes.
    pub uncompressed: usize,
    /// The files in it.
    pub files: Vec<FileSize>,
}

/// A file in an archive.
#[derive(Debug, Clone, Serialize)]
pub struct FileSize {
    /// Where it is, without leading slash.
    pub path: String,
    /// Its size in bytes.
    pub size: usize,
}

/// Why an initramfs cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The init binary would not start.
    #[error("the init binary: {0}")]
    Init(String),
    /// Two files have one path, or a path is not clean.
    #[error("initramfs entry: {0}")]
    Path(#[from] PathError),
    /// The compressor failed.
    #[error("compress the initramfs: {0}")]
    Compress(#[from] io::Error),
}

impl From<InitramfsError> for Failure {
    fn from(error: InitramfsError) -> Self {
        match error {
            InitramfsError::Init(_) => Self::new(ExitStatus::BadInput, error.to_string())
                .next("build verify-init for this machine with -C target-feature=+crt-static"),
            InitramfsError::Path(_) => Self::new(ExitStatus::BadInput, error.to_string()),
            InitramfsError::Compress(_) => Self::new(ExitStatus::System, error.to_string()),
        }
    }
}

/// Builds the initramfs. The same plan gives the same bytes.
///
/// # Errors
/// If the init binary is not a static executable for the kernel's machine, or files collide.
pub fn build(plan: &InitramfsPlan<'_>) -> Result<Initramfs, InitramfsError> {
    let (mut bytes, first) = base_segment(plan.modules, plan.init, plan.format, plan.mtime, &plan.cache)?;
    let mut segments = vec![first];
    if !plan.files.is_empty() {
        let (second, mut segment) = image_segment(plan.files, plan.format, plan.mtime)?;
        segment.offset = bytes.len();
        bytes.extend_from_slice(&second);
        segments.push(segment);
    }
    let report = Report {
        kernel: plan.modules.release.to_string(),
        machine: plan.modules.machine,
        compression: plan.format,
        size: bytes.len(),
        segments,
        absent_modules: plan.modules.absent.clone(),
    };
    Ok(Initramfs { bytes, report })
}

/// The archive that depends on kernel and init only: keep it for the next image of the same kernel.
///
/// # Errors
/// If the init binary is not a static executable for the kernel's machine.
pub fn base_segment(
    modules: &ModuleSet,
    init: &[u8],
    format: Format,
    mtime: u32,
    cache: &SegmentCache,
) -> Result<(Vec<u8>, Segment), InitramfsError> {
    init::check(init, modules.machine)?;
    let index = modules.index.to_text();
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    // The kernel opens it for PID 1 before anything mounts devtmpfs; without it PID 1 has no standard streams.
    archive.device("dev/console", 5, 1)?;
    archive.file("init", 0o755, init)?;
    archive.file(in_archive(paths::MODULE_INDEX), 0o644, index.as_bytes())?;
    for (name, bytes) in &modules.files {
        archive.file(&format!("lib/modules/{}/{name}", modules.release), 0o644, &bytes[..])?;
    }
    pack(&archive, format, mtime, cache)
}

/// The archive of one image, to be appended to a [`base_segment`].
///
/// # Errors
/// If a path is not clean, or there twice.
pub fn image_segment(files: &[EmbeddedFile], format: Format, mtime: u32) -> Result<(Vec<u8>, Segment), InitramfsError> {
    let mut archive = Archive::default();
    for file in files {
        archive.file(&file.path, file.mode, &file.bytes[..])?;
    }
    pack(&archive, format, mtime, &SegmentCache::none())
}

impl Report {
    /// The report as people read it.
    pub fn to_text(&self) -> String {
        let mut text = format!("initramfs for kernel {} ({}): {} bytes\n", self.kernel, self.machine.name(), self.size);
        for segment in &self.segments {
            let Segment { offset, compressed, uncompressed, files } = segment;
            text.push_str(&format!("archive at {offset}: {compressed} bytes, {uncompressed} unpacked\n"));
            for file in files {
                text.push_str(&format!("{:>9}  {}\n", file.size, file.path));
            }
        }
        text
    }
}

/// An absolute path as archives spell it: without the leading slash.
pub fn in_archive(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn pack(
    archive: &Archive<'_>,
    format: Format,
    mtime: u32,
    cache: &SegmentCache,
) -> Result<(Vec<u8>, Segment), InitramfsError> {
    let plain = archive.to_bytes(mtime);
    let mut bytes = cache.compressed(&plain, format, |plain| compress(plain, format))?;
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let files = archive.files().map(|(path, size)| FileSize { path: path.to_owned(), size }).collect();
    let segment = Segment { offset: 0, compressed: bytes.len(), uncompressed: plain.len(), files };
    Ok((bytes, segment))
}

/// One thread, so that the bytes do not depend on the machine.
fn compress(plain: &[u8], format: Format) -> io::Result<Vec<u8>> {
    match format {
        Format::None => Ok(plain.to_vec()),
        Format::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(plain)?;
            encoder.finish()
        }
        Format::Xz => {
            // The kernel knows no other check (Documentation/staging/xz.rst).
            let stream = Stream::new_easy_encoder(XZ_PRESET, Check::Crc32)?;
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(plain)?;
            encoder.finish()
        }
        Format::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            encoder.window_log(ZSTD_WINDOW_LOG)?;
            encoder.set_pledged_src_size(Some(plain.len() as u64))?;
            encoder.write_all(plain)?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests;
