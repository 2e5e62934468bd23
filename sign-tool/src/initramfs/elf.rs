//! The little of ELF that the build must know: for which machine a binary is, whether it is static, a module's `.modinfo`.

use iofs_policy::manifest::Architecture;

/// A processor that this toolkit boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Machine {
    /// x86-64.
    #[serde(rename = "x86-64")]
    X86_64,
    /// 64-bit Arm.
    #[serde(rename = "arm64")]
    Arm64,
}

impl Machine {
    /// The name in this project's manifests and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "arm64",
        }
    }

    /// The same in manifests.
    pub fn architecture(self) -> Architecture {
        match self {
            Self::X86_64 => Architecture::X86_64,
            Self::Arm64 => Architecture::Arm64,
        }
    }

    fn from_elf(number: u16) -> Option<Self> {
        match number {
            62 => Some(Self::X86_64),
            183 => Some(Self::Arm64),
            _ => None,
        }
    }
}

/// Program headers that name an interpreter make a binary dynamic.
const PT_INTERP: u32 = 3;
/// `e_type` of executables; a static PIE is an `ET_DYN` without interpreter.
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;

/// A 64-bit little-endian ELF file.
#[derive(Debug, Clone, Copy)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    /// For which machine it is.
    pub machine: Machine,
}

impl<'a> Elf<'a> {
    /// Checks the identification; `None` for anything but 64-bit little-endian ELF of a known machine.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"\x7fELF\x02\x01\x01") {
            return None;
        }
        Some(Self { bytes, machine: Machine::from_elf(u16_at(bytes, 18)?)? })
    }

    /// Whether the kernel can start it without any other file. `None` if the headers are cut off.
    pub fn is_static_executable(&self) -> Option<bool> {
        let kind = u16_at(self.bytes, 16)?;
        let entry = u64_at(self.bytes, 24)?;
        let table = usize::try_from(u64_at(self.bytes, 32)?).ok()?;
        let (size, count) = (u16_at(self.bytes, 54)?, u16_at(self.bytes, 56)?);
        for number in 0..usize::from(count) {
            let header = table.checked_add(number * usize::from(size))?;
            if u32_at(self.bytes, header)? == PT_INTERP {
                return Some(false);
            }
        }
        Some(matches!(kind, ET_EXEC | ET_DYN) && entry != 0)
    }

    /// The contents of the section of that name. `None` if there is none, or the tables point outside the file.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let table = usize::try_from(u64_at(self.bytes, 40)?).ok()?;
        let (size, count) = (usize::from(u16_at(self.bytes, 58)?), usize::from(u16_at(self.bytes, 60)?));
        let names = self.contents(table.checked_add(usize::from(u16_at(self.bytes, 62)?) * size)?)?;
        for number in 0..count {
            let header = table.checked_add(number * size)?;
            let own = names.get(usize::try_from(u32_at(self.bytes, header)?).ok()?..)?;
            if own.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
                return self.contents(header);
            }
        }
        None
    }

    /// What the section header at `header` points at.
    fn contents(&self, header: usize) -> Option<&'a [u8]> {
        let start = usize::try_from(u64_at(self.bytes, header.checked_add(24)?)?).ok()?;
        let size = usize::try_from(u64_at(self.bytes, header.checked_add(32)?)?).ok()?;
        self.bytes.get(start..start.checked_add(size)?)
    }
}

/// What a module says about itself in `.modinfo` (`include/linux/moduleinfo.h`, written by the kernel's modpost).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// The kernel release that it was built for: the first word of `vermagic`.
    pub release: String,
    /// The modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Modules, or aliases of modules, to load before it.
    pub pre: Vec<String>,
    /// Modules, or aliases of modules, to load after it.
    pub post: Vec<String>,
    /// What it answers to.
    pub aliases: Vec<String>,
}

impl ModInfo {
    /// Reads the section: NUL-terminated `key=value` strings.
    pub fn parse(section: &[u8]) -> Self {
        let mut info = Self::default();
        for item in section.split(|byte| *byte == 0) {
            let item = String::from_utf8_lossy(item);
            match item.split_once('=') {
                Some(("vermagic", value)) => info.release = value.split(' ').next().unwrap_or_default().to_owned(),
                Some(("depends", value)) => info.depends.extend(words(value, ',')),
                Some(("softdep", value)) => info.softdep(value),
                Some(("alias", value)) => info.aliases.push(value.to_owned()),
                _ => {}
            }
        }
        info
    }

    /// `pre: a b post: c`. Words before either are ignored, as modprobe does.
    fn softdep(&mut self, value: &str) {
        let mut list = None;
        for word in words(value, ' ') {
            match word.as_str() {
                "pre:" => list = Some(&mut self.pre),
                "post:" => list = Some(&mut self.post),
                _ => list.iter_mut().for_each(|list| list.push(word.clone())),
            }
        }
    }
}

fn words(value: &str, separator: char) -> impl Iterator<Item = String> + '_ {
    value.split(separator).filter(|word| !word.is_empty()).map(str::to_owned)
}

/// A little-endian number at an offset, if the bytes reach that far.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

/// See [`u16_at`].
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A module with nothing but `.modinfo`: header, names, section contents, three section headers.
    pub(crate) fn module_with(modinfo: &[u8]) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.shstrtab\0.modinfo\0";
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16..20].copy_from_slice(&[1, 0, 62, 0]);
        let table = 64 + NAMES.len() + modinfo.len();
        bytes[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        bytes[58..64].copy_from_slice(&[64, 0, 3, 0, 1, 0]);
        bytes.extend_from_slice(NAMES);
        bytes.extend_from_slice(modinfo);
        bytes.extend_from_slice(&[0; 64]);
        for (name, start, size) in [(1u32, 64, NAMES.len()), (11, 64 + NAMES.len(), modinfo.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            bytes.extend_from_slice(&header);
        }
        bytes
    }

    /// An executable with one program header of that type.
    pub(crate) fn executable_with(segment: u8, machine: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16..20].copy_from_slice(&[2, 0, machine, 0]);
        bytes[24] = 1;
        bytes[32] = 64;
        bytes[54..58].copy_from_slice(&[56, 0, 1, 0]);
        bytes[64] = segment;
        bytes
    }

    #[test]
    fn modinfo_is_found_and_read() {
        let module =
            module_with(b"vermagic=6.1.0 SMP\0depends=a,b-c\0softdep=x pre: p q post: r\0alias=scsi:t-0x00*\0");
        let info = ModInfo::parse(Elf::parse(&module).unwrap().section(".modinfo").unwrap());
        assert_eq!(info.release, "6.1.0");
        assert_eq!(info.depends, ["a", "b-c"]);
        assert_eq!(info.pre, ["p", "q"]);
        assert_eq!(info.post, ["r"]);
        assert_eq!(info.aliases, ["scsi:t-0x00*"]);
    }

    #[test]
    fn an_interpreter_makes_an_executable_dynamic() {
        assert_eq!(Elf::parse(&executable_with(1, 62)).unwrap().is_static_executable(), Some(true));
        assert_eq!(Elf::parse(&executable_with(3, 183)).unwrap().is_static_executable(), Some(false));
        assert_eq!(Elf::parse(&module_with(b"")).unwrap().is_static_executable(), Some(false));
        assert!(Elf::parse(b"\x7fELF\x01\x01\x01").is_none());
    }

    #[test]
    fn cut_files_are_no_panic() {
        for whole in [module_with(b"depends=a\0"), executable_with(1, 62)] {
            for length in 0..whole.len() {
                if let Some(elf) = Elf::parse(&whole[..length]) {
                    let _ = (elf.is_static_executable(), elf.section(".modinfo"));
                }
            }
        }
    }
}
