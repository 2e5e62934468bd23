//! What a kernel image says about itself: release and machine, and what its configuration can unpack.

use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    Format,
    elf::{Machine, u16_at, u32_at},
};
use crate::{
    archive::compression::Compression,
    report::{ExitStatus, Failure},
};

/// A larger image is refused; arm64 images of distributions are about 60 MB unpacked.
const MAX_IMAGE: u64 = 512 << 20;
/// `UTS_RELEASE` ends at 64 characters (the kernel's `__NEW_UTS_LEN`).
const MAX_RELEASE: usize = 64;
/// x86 boot protocol (Documentation/arch/x86/boot.rst): "HdrS" at 0x202, `kernel_version` at 0x20e, relative to 0x200.
const X86_MAGIC: usize = 0x202;
const X86_VERSION_POINTER: usize = 0x20e;
const X86_SECTOR: usize = 0x200;
/// arm64 (Documentation/arch/arm64/booting.rst): magic at 56.
const ARM64_MAGIC: (usize, &[u8]) = (56, b"ARM\x64");
/// EFI zboot (drivers/firmware/efi/libstub/zboot-header.S): "zimg" at 4, the payload's offset and size behind it.
const ZBOOT_MAGIC: (usize, &[u8]) = (4, b"zimg");

/// A kernel's release, as `uname -r` says it: `6.1.0-13-amd64`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KernelRelease {
    text: String,
    #[serde(skip)]
    version: (u16, u16),
}

impl KernelRelease {
    /// Reads a release: it begins with two numbers, and it can be the name of a folder.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte);
        if text.len() > MAX_RELEASE || !text.bytes().all(allowed) {
            return None;
        }
        let (major, rest) = text.split_once('.')?;
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { text: text.to_owned(), version: (major.parse().ok()?, rest[..end].parse().ok()?) })
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Major and minor number, to be compared.
    pub fn version(&self) -> (u16, u16) {
        self.version
    }
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// A kernel image, identified.
#[derive(Debug, Clone)]
pub struct KernelImage {
    /// Its release.
    pub release: KernelRelease,
    /// Its machine.
    pub machine: Machine,
    /// Its build configuration, where `config-RELEASE` lies beside the image.
    pub config: Option<String>,
}

/// Why a kernel image is not usable.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed.
    #[error("read kernel {}: {source}", path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither a bzImage nor an arm64 image, or its header is damaged.
    #[error("{}: no kernel image: {reason}", path.display())]
    NotKernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let status = match error {
            KernelError::Read { .. } => ExitStatus::System,
            KernelError::NotKernel { .. } => ExitStatus::BadInput,
        };
        Self::new(status, error.to_string()).next("give the kernel itself, such as /boot/vmlinuz-VERSION")
    }
}

impl KernelImage {
    /// Reads an image, and `config-RELEASE` from the same folder if it is there.
    ///
    /// # Errors
    /// If the file cannot be read or is no kernel of a known machine.
    pub fn read(path: &Path) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Read { path: path.to_owned(), source };
        let bytes = read_bounded(fs::File::open(path).map_err(failed)?).map_err(failed)?;
        let mut image =
            Self::parse(&bytes).map_err(|reason| KernelError::NotKernel { path: path.to_owned(), reason })?;
        // `vmlinuz` is often a link; the configuration lies beside what it points to.
        let real = path.canonicalize().map_err(failed)?;
        image.config = fs::read_to_string(real.with_file_name(format!("config-{}", image.release))).ok();
        Ok(image)
    }

    /// Identifies an image's bytes.
    ///
    /// # Errors
    /// What is missing or damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if magic_at(bytes, (X86_MAGIC, b"HdrS")) {
            return Self::parse_x86(bytes);
        }
        if magic_at(bytes, ZBOOT_MAGIC) {
            return Self::parse_arm64(&unpack(zboot_payload(bytes).ok_or("its payload lies outside the file")?)?);
        }
        match Compression::detect(bytes) {
            Compression::None => Self::parse_arm64(bytes),
            _ => Self::parse_arm64(&unpack(bytes)?),
        }
    }

    /// The compression to take where nobody asks for one.
    pub fn default_format(&self) -> Format {
        if self.unpacks(Format::Zstd) == Some(false) { Format::Gzip } else { Format::Zstd }
    }

    /// Refuses a compression that this kernel does not unpack by its configuration.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_format(&self, format: Format) -> Result<(), Failure> {
        if self.unpacks(format) != Some(false) {
            return Ok(());
        }
        let fact = format!("kernel {} is configured without {} for its initramfs", self.release, format.name());
        Err(Failure::new(ExitStatus::Missing, fact)
            .next("choose another by --compress, or modules.compress in iofs.toml: zstd, xz, gzip or none"))
    }

    /// Whether the configuration says that this kernel unpacks the format; `None` without a configuration.
    pub fn unpacks(&self, format: Format) -> Option<bool> {
        let option = match format {
            Format::Zstd => "CONFIG_RD_ZSTD=y",
            Format::Xz => "CONFIG_RD_XZ=y",
            Format::Gzip => "CONFIG_RD_GZIP=y",
            Format::None => return Some(true),
        };
        self.config.as_ref().map(|config| config.lines().any(|line| line == option))
    }

    fn parse_x86(bytes: &[u8]) -> Result<Self, &'static str> {
        let pointer = u16_at(bytes, X86_VERSION_POINTER).filter(|pointer| *pointer != 0);
        let text = pointer.and_then(|pointer| bytes.get(usize::from(pointer) + X86_SECTOR..));
        let release = first_word(text.ok_or("its header points to no version")?);
        Ok(Self { release: release.ok_or("its version is malformed")?, machine: Machine::X86_64, config: None })
    }

    fn parse_arm64(bytes: &[u8]) -> Result<Self, &'static str> {
        const BANNER: &[u8] = b"Linux version ";
        if !magic_at(bytes, ARM64_MAGIC) {
            return Err("neither the header of an x86 bzImage nor that of an arm64 Image");
        }
        // The banner's format strings ("Linux version %s") are in there as well; they are no release.
        let found = bytes
            .windows(BANNER.len())
            .enumerate()
            .filter(|(_, window)| *window == BANNER)
            .find_map(|(at, _)| first_word(&bytes[at + BANNER.len()..]));
        Ok(Self { release: found.ok_or("it has no version banner")?, machine: Machine::Arm64, config: None })
    }
}

fn magic_at(bytes: &[u8], (at, magic): (usize, &[u8])) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// The release that stands before a blank or NUL.
fn first_word(text: &[u8]) -> Option<KernelRelease> {
    let text = &text[..text.len().min(MAX_RELEASE + 1)];
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    KernelRelease::parse(std::str::from_utf8(&text[..end]).ok()?)
}

fn zboot_payload(bytes: &[u8]) -> Option<&[u8]> {
    let start = usize::try_from(u32_at(bytes, 8)?).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(u32_at(bytes, 12)?).ok()?)?)
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    let reader = Compression::detect(bytes).reader(bytes).map_err(|_| "its compression is not supported")?;
    read_bounded(reader).map_err(|_| "its compressed stream is damaged")
}

fn read_bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if reader.take(MAX_IMAGE + 1).read_to_end(&mut bytes)? as u64 > MAX_IMAGE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 512 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(version: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[X86_MAGIC..X86_MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[X86_VERSION_POINTER..X86_VERSION_POINTER + 2].copy_from_slice(&0x200u16.to_le_bytes());
        bytes.extend_from_slice(version);
        bytes
    }

    fn arm64(banner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes.extend_from_slice(banner);
        bytes
    }

    #[test]
    fn a_bzimage_tells_its_release() {
        let image = KernelImage::parse(&bzimage(b"6.12.1+deb13-amd64 (builder) #1 SMP\0")).unwrap();
        assert_eq!(image.release.as_str(), "6.12.1+deb13-amd64");
        assert_eq!(image.release.version(), (6, 12));
        assert_eq!(image.machine, Machine::X86_64);
    }

    #[test]
    fn an_arm64_image_tells_its_release_compressed_or_not() {
        let plain = arm64(b"Linux version %s (%s)\0Linux version 6.1.0-13-arm64 (builder)\0");
        let mut gzip = flate2::read::GzEncoder::new(&plain[..], flate2::Compression::fast());
        let mut packed = Vec::new();
        gzip.read_to_end(&mut packed).unwrap();
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.extend_from_slice(&64u32.to_le_bytes());
        zboot.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        zboot.resize(64, 0);
        zboot.extend_from_slice(&packed);
        for bytes in [plain, packed, zboot] {
            let image = KernelImage::parse(&bytes).unwrap();
            assert_eq!(image.release.as_str(), "6.1.0-13-arm64");
            assert_eq!(image.machine, Machine::Arm64);
        }
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"MZ", &bzimage(b""), &bzimage(b"../../etc \0"), &bzimage(b"6 x"), &arm64(b"")] {
            assert!(KernelImage::parse(bytes).is_err());
        }
    }

    #[test]
    fn the_configuration_decides_what_it_unpacks() {
        let mut image = KernelImage::parse(&bzimage(b"6.1.0 \0")).unwrap();
        assert_eq!(image.unpacks(Format::Zstd), None);
        image.config = Some("CONFIG_RD_GZIP=y\n# CONFIG_RD_ZSTD is not set\n".to_owned());
        assert_eq!(image.unpacks(Format::Zstd), Some(false));
        assert_eq!(image.unpacks(Format::Gzip), Some(true));
        assert_eq!(image.default_format(), Format::Gzip);
        assert!(image.check_format(Format::None).is_ok());
        let failure = image.check_format(Format::Xz).unwrap_err();
        assert_eq!(failure.fact, "kernel 6.1.0 is configured without xz for its initramfs");
    }
}
