//! `mkfs.erofs` from erofs-utils, 1.5 and later, made reproducible.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;
use walkdir::WalkDir;

use super::{
    BLOCK_SIZE, ImageError, ImageInfo, ImageOptions, ImageWriter, TimeClamp,
    superblock::{self, OFFSET},
    xattr_order,
};
use crate::report::Progress;

/// Overrides the program, for tests.
const PROGRAM: &str = "IOFS_MKFS_EROFS";
/// Separates the image's id from every other digest of it.
const UUID_DOMAIN: &[u8] = b"iofs erofs image uuid v1\0";
/// From 1.8 on, files are compressed in segments by several threads, and only whether there are any changes the bytes.
const WORKERS: &str = "--workers=4";
/// 1.5 cuts names of 255 bytes and fails on the file that it then does not find (`No such file or directory`); where
/// the shorter name exists, it would be that file. Versions that were not tried are not trusted either.
const LONG_NAMES_SINCE: (u32, u32) = (1, 8);
/// Lines of a failed child's messages that go into ours.
const LAST_LINES: usize = 6;

/// An installed `mkfs.erofs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MkfsErofs {
    program: String,
    version: (u32, u32),
    compressors: Vec<String>,
    has_workers: bool,
}

impl MkfsErofs {
    /// Finds the program and asks for its version and abilities.
    ///
    /// # Errors
    /// When it is missing, or not `mkfs.erofs`.
    pub fn find() -> Result<Self, ImageError> {
        let program = std::env::var(PROGRAM).unwrap_or_else(|_| "mkfs.erofs".into());
        // 1.5 prints the version whatever the arguments, and its compressors in the help; later ones print both for -V.
        let text = ask(&program, "-V")? + &ask(&program, "--help")?;
        Self::parse(program, &text)
    }

    fn parse(program: String, text: &str) -> Result<Self, ImageError> {
        let version = text.lines().find_map(version);
        let Some(version) = version.filter(|version| *version >= (1, 5)) else {
            let found = text.lines().next().unwrap_or("nothing").to_owned();
            return Err(ImageError::Version { program, found });
        };
        let has_workers = text.contains("--workers");
        Ok(Self { program, version, compressors: compressors(text), has_workers })
    }

    /// The program and its version, for reports.
    pub fn generator(&self) -> String {
        format!("mkfs.erofs {}.{}", self.version.0, self.version.1)
    }

    /// The compressors that it was built with.
    pub fn compressors(&self) -> &[String] {
        &self.compressors
    }

    fn check(&self, options: &ImageOptions) -> Result<(), ImageError> {
        options.check()?;
        match options.compression.compressor() {
            Some((wanted, _)) if !self.compressors.iter().any(|name| name == wanted) => {
                Err(ImageError::Compressor { generator: self.generator(), wanted, available: self.compressors.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Returns the newest modification time in the tree, rounded up to seconds, and refuses what would be mangled.
    fn survey(&self, tree: &Path) -> Result<u64, ImageError> {
        let mut newest = 0;
        for entry in WalkDir::new(tree) {
            let read = entry.and_then(|entry| Ok((entry.metadata()?, entry)));
            let (metadata, entry) = read.map_err(|error| ImageError::Io {
                doing: "read",
                path: error.path().unwrap_or(tree).to_owned(),
                source: error.into(),
            })?;
            if entry.file_name().len() == 255 && self.version < LONG_NAMES_SINCE {
                return Err(ImageError::LongName { generator: self.generator(), path: entry.into_path() });
            }
            if metadata.mtime() < 0 {
                return Err(ImageError::Early { generator: self.generator(), path: entry.into_path() });
            }
            newest = newest.max(metadata.mtime() + i64::from(metadata.mtime_nsec() > 0));
        }
        Ok(newest.unsigned_abs())
    }

    fn run(&self, tree: &Path, image: &Path, options: &ImageOptions, time: u64) -> Result<(), ImageError> {
        let mut command = Command::new(&self.program);
        // Inline attributes only: the order of shared ones follows the file system's order of directories.
        command.args(["--quiet", "--preserve-mtime", "-U", &Uuid::nil().to_string(), "-x", "2147483647"]);
        if let Some((name, level)) = options.compression.compressor() {
            let level = level.map_or_else(String::new, |level| format!(",{level}"));
            command.arg(format!("-z{name}{level}")).arg(format!("-C{}", options.cluster_size));
        }
        if self.has_workers {
            command.arg(WORKERS);
        }
        let paths = absolute(image).and_then(|image| Ok((image, absolute(tree)?)));
        let (image, tree) = paths.map_err(ImageError::io("find", tree))?;
        command.arg(image).arg(tree).env_clear();
        for name in ["PATH", "TMPDIR"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").env("SOURCE_DATE_EPOCH", time.to_string());
        let output = output(&mut command, &self.program)?;
        if output.status.success() {
            return Ok(());
        }
        Err(ImageError::Child {
            generator: self.generator(),
            status: output.status.to_string(),
            stderr: last_lines(&output.stderr, &output.stdout),
        })
    }
}

impl ImageWriter for MkfsErofs {
    fn write(
        &self,
        tree: &Path,
        image: &Path,
        options: &ImageOptions,
        progress: &Progress,
    ) -> Result<ImageInfo, ImageError> {
        self.check(options)?;
        let newest = self.survey(tree)?;
        let time = match options.clamp {
            TimeClamp::Newest => newest,
            TimeClamp::Epoch(time) => time,
        };
        self.run(tree, image, options, time)?;
        let file = File::options().read(true).write(true).open(image).map_err(ImageError::io("open", image))?;
        let size = pad(&file).map_err(ImageError::io("extend", image))?;
        let written = superblock::read(image)?;
        xattr_order::sort(&file, image, &written)?;
        set_uuid(&file, image, written.block_size)?;
        progress.advance(size);
        let found = superblock::read(image)?;
        Ok(ImageInfo {
            size,
            uuid: found.uuid,
            algorithms: found.algorithms(),
            least_kernel: found.least_kernel().0,
            time_limit: time,
            generator: self.generator(),
        })
    }
}

/// Extends the image to whole blocks.
fn pad(file: &File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let padded = size.next_multiple_of(BLOCK_SIZE);
    if padded != size {
        file.set_len(padded)?;
    }
    Ok(padded)
}

/// Derives the id from the image's other bytes, so that it needs no randomness and changes with the content.
///
/// From here on the checksum also covers what was changed in the first block since it was written.
fn set_uuid(file: &File, image: &Path, block_size: u32) -> Result<(), ImageError> {
    let length = (block_size as usize).max(2 * OFFSET as usize) - OFFSET as usize;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, OFFSET).map_err(ImageError::io("read", image))?;
    superblock::set_uuid(&mut bytes, Uuid::nil());
    file.write_all_at(&bytes, OFFSET).map_err(ImageError::io("write", image))?;
    let digest = digest(image).map_err(ImageError::io("read", image))?;
    superblock::set_uuid(&mut bytes, uuid(&digest));
    file.write_all_at(&bytes, OFFSET).map_err(ImageError::io("write", image))
}

fn digest(image: &Path) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new_with_prefix(UUID_DOMAIN);
    let mut file = File::open(image)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Version 8 of RFC 9562: bits of one's own making.
fn uuid(digest: &[u8; 32]) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid::from_bytes(bytes)
}

fn ask(program: &str, argument: &str) -> Result<String, ImageError> {
    let output = output(Command::new(program).arg(argument).env("LC_ALL", "C"), program)?;
    Ok(format!("{}\n{}\n", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

fn output(command: &mut Command, program: &str) -> Result<Output, ImageError> {
    command.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ImageError::Missing { program: program.to_owned() },
        _ => ImageError::Io { doing: "run", path: program.into(), source },
    })
}

/// `mkfs.erofs 1.5` or `mkfs.erofs (erofs-utils) 1.8.6`.
fn version(line: &str) -> Option<(u32, u32)> {
    let rest = line.strip_prefix("mkfs.erofs ")?;
    let rest = rest.strip_prefix("(erofs-utils) ").unwrap_or(rest);
    let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn compressors(text: &str) -> Vec<String> {
    let lists = text.lines().filter_map(|line| {
        let (label, list) = line.split_once(':')?;
        label.trim().to_ascii_lowercase().starts_with("available compressors").then_some(list)
    });
    let mut names: Vec<String> = lists
        .flat_map(|list| list.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn last_lines(stderr: &[u8], stdout: &[u8]) -> String {
    let text = if stderr.trim_ascii().is_empty() { stdout } else { stderr };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("; ")
}

/// A name that begins with a dash would be taken for an option.
fn absolute(path: &Path) -> io::Result<std::path::PathBuf> {
    std::path::absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_compressors_of_old_and_new_programs_are_understood() {
        let parse = |text: &str| MkfsErofs::parse("mkfs.erofs".into(), text);
        let old = parse("mkfs.erofs 1.5\nusage: [options] FILE DIRECTORY\n\nAvailable compressors are: lz4hc, lz4\n")
            .unwrap();
        assert_eq!((old.version, old.has_workers), ((1, 5), false));
        assert_eq!(old.compressors, ["lz4", "lz4hc"]);
        let text = "mkfs.erofs (erofs-utils) 1.8.6\navailable compressors: lz4, lz4hc, deflate, zstd\n --workers=#\n";
        let new = parse(text).unwrap();
        assert_eq!((new.version, new.has_workers), ((1, 8), true));
        assert_eq!(new.compressors, ["deflate", "lz4", "lz4hc", "zstd"]);
        assert!(parse("mkfs.erofs 1.4\n").is_err());
        assert!(parse("BusyBox\n").is_err());
    }
}
