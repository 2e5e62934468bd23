//! Unified kernel images: kernel, mini-initramfs and command line as sections of one PE image that firmware starts.
//!
//! UAPI.5, Unified Kernel Image. The first code is systemd's stub (systemd-stub(7)), which measures every section, in an
//! order of its own, and hands them to the kernel.

use std::fmt;

use iofs_policy::{
    digest::Sha256Digest,
    pcr::{PcrBank, PcrDigest, PcrError, extend},
};
use serde::Serialize;

use crate::{
    authenticode,
    initramfs::elf::Machine,
    pe::{self, Headers, NewSection, PeError},
    report::{ExitStatus, Failure},
    secure_boot::{self, SecureBootError},
    x509::{SignerName, X509Signer},
};

/// What the stub's magic section begins with; its version follows.
const MAGIC: &str = "#### LoaderInfo: systemd-stub ";

/// A section of a unified kernel image, in the order in which the stub measures them (systemd's `uki.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The kernel.
    Linux,
    /// The `os-release` file of the system.
    OsRelease,
    /// The kernel command line.
    CommandLine,
    /// The initramfs.
    Initrd,
    /// Microcode for the processor, as an initramfs of its own.
    Microcode,
    /// A picture for the screen.
    Splash,
    /// A devicetree.
    Devicetree,
    /// The kernel's release.
    Uname,
    /// Signatures for register values. It is not measured: it depends on what is.
    PcrSignature,
    /// The public key of these signatures.
    PcrPublicKey,
}

impl Part {
    /// The section's name.
    pub fn section(self) -> &'static str {
        match self {
            Self::Linux => ".linux",
            Self::OsRelease => ".osrel",
            Self::CommandLine => ".cmdline",
            Self::Initrd => ".initrd",
            Self::Microcode => ".ucode",
            Self::Splash => ".splash",
            Self::Devicetree => ".dtb",
            Self::Uname => ".uname",
            Self::PcrSignature => ".pcrsig",
            Self::PcrPublicKey => ".pcrpkey",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.section())
    }
}

/// What an image was assembled from.
#[derive(Debug, Serialize)]
pub struct Assembled {
    /// Its bytes.
    #[serde(skip)]
    pub bytes: Vec<u8>,
    /// The stub's version.
    pub stub: String,
    /// What a Secure Boot signature covers: SHA-256 by Authenticode.
    pub authenticode: Sha256Digest,
    /// The parts, in the stub's order.
    pub parts: Vec<AssembledPart>,
    /// Who signed it for Secure Boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<SignerName>,
}

impl Assembled {
    /// Signs it for Secure Boot.
    ///
    /// # Errors
    /// It is signed already.
    pub fn sign(&mut self, signer: &X509Signer) -> Result<(), SecureBootError> {
        self.bytes = secure_boot::sign(&self.bytes, signer)?;
        self.signer = Some(signer.certificate().name().clone());
        Ok(())
    }
}

/// A part of it.
#[derive(Debug, Serialize)]
pub struct AssembledPart {
    /// Which.
    pub section: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// SHA-256 of its contents.
    pub sha256: Sha256Digest,
}

/// Why an image cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// The stub is none.
    #[error("stub: {0}")]
    Stub(#[from] PeError),
    /// The stub is not systemd's.
    #[error("stub: expected systemd's, with a section .sdmagic that names its version, found none")]
    ForeignStub,
    /// A part is empty, given twice, or not what its section holds.
    #[error("{part}: expected {expected}, found {found}")]
    Part {
        /// The section.
        part: Part,
        /// What it holds.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Firmware could not hash it.
    #[error("the assembled image: {0}")]
    Authenticode(#[from] authenticode::AuthenticodeError),
}

impl From<UkiError> for Failure {
    fn from(error: UkiError) -> Self {
        let failure = Self::new(ExitStatus::BadInput, error.to_string());
        match error {
            UkiError::Stub(_) | UkiError::ForeignStub => {
                failure.next("give systemd's stub with --stub: apt-get install systemd-boot-efi")
            }
            _ => failure,
        }
    }
}

/// The version of a systemd stub, such as `252.39-1~deb12u1`.
pub fn stub_version(headers: &Headers, image: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(headers.find(".sdmagic")?.contents(image)).ok()?;
    let version = text.strip_prefix(MAGIC)?.split(' ').next()?;
    Some(version.to_owned())
}

/// The first release of systemd whose stub measures [`Part::Uname`] and the stub's own `.sbat`, and knows microcode: what
/// the stub of an older one does not know, it neither measures nor uses.
const MORE_SECTIONS: u32 = 253;
/// The boot's phases after the stub, whose words systemd measures into register 11 (systemd-pcrphase.service(8)).
pub const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];

/// What register 11 holds in a phase of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseValue {
    /// The words measured since the stub, as systemd-measure(1) writes them: none, then each behind the others.
    pub phase: String,
    /// The value in hexadecimal.
    pub value: String,
}

/// Predicts register 11 in each phase from an assembled image.
///
/// # Errors
/// The bank has no such digest; which no image causes.
pub fn predict(headers: &Headers, image: &[u8], bank: PcrBank) -> Result<Vec<PhaseValue>, PcrError> {
    let mut value = PcrDigest::zero(bank);
    for section in measured(headers, image) {
        let name = [section.name.as_bytes(), &[0]].concat();
        for bytes in [&name[..], section.contents(image)] {
            value = extend(&value, &PcrDigest::of(bank, &[bytes]))?;
        }
    }
    let mut values = vec![PhaseValue { phase: String::new(), value: value.to_string() }];
    let mut words: Vec<&str> = Vec::new();
    for word in PHASES {
        words.push(word);
        value = extend(&value, &PcrDigest::of(bank, &[word.as_bytes()]))?;
        values.push(PhaseValue { phase: words.join(":"), value: value.to_string() });
    }
    Ok(values)
}

/// The sections that the stub measures, in its order (systemd's `uki.h`, `unified_section_measure`).
pub fn measured<'a>(headers: &'a Headers, image: &[u8]) -> Vec<&'a pe::Section> {
    const ALL: [&str; 10] =
        [".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"];
    const NEW: [&str; 3] = [".ucode", ".uname", ".sbat"];
    let version = stub_version(headers, image).unwrap_or_default();
    let number = version.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    let new = number.parse::<u32>().is_ok_and(|number| number >= MORE_SECTIONS);
    let known = ALL.into_iter().filter(|name| new || !NEW.contains(name));
    known.filter_map(|name| headers.find(name)).collect()
}

/// Assembles it. The same input gives the same bytes.
///
/// The kernel's section comes last: a kernel that is unpacked in place may use the memory behind it.
///
/// # Errors
/// [`UkiError`].
pub fn assemble(stub: &[u8], parts: &[(Part, &[u8])]) -> Result<Assembled, UkiError> {
    let headers = Headers::parse(stub)?;
    let version = stub_version(&headers, stub).ok_or(UkiError::ForeignStub)?;
    let mut parts = parts.to_vec();
    parts.sort_by_key(|(part, _)| *part);
    check(headers.machine, &parts)?;
    let (kernel, others): (Vec<_>, Vec<_>) = parts.iter().partition(|(part, _)| *part == Part::Linux);
    let sections: Vec<NewSection<'_>> = others
        .into_iter()
        .chain(kernel)
        .map(|(part, contents)| NewSection { name: part.section(), contents })
        .collect();
    let bytes = pe::append(stub, &sections)?;
    let authenticode = authenticode::digest(&bytes)?;
    let parts = parts.iter().map(|(part, contents)| AssembledPart {
        section: part.section(),
        size: contents.len(),
        sha256: Sha256Digest::of(contents),
    });
    Ok(Assembled { parts: parts.collect(), bytes, stub: version, authenticode, signer: None })
}

fn check(machine: Machine, parts: &[(Part, &[u8])]) -> Result<(), UkiError> {
    let refuse = |part, expected: String, found: String| Err(UkiError::Part { part, expected, found });
    for (index, (part, contents)) in parts.iter().enumerate() {
        if contents.is_empty() {
            return refuse(*part, "contents".into(), "nothing".into());
        }
        if parts[..index].iter().any(|(before, _)| before == part) {
            return refuse(*part, "one".into(), "two".into());
        }
        let is_text = matches!(part, Part::OsRelease | Part::CommandLine | Part::Uname);
        if is_text && (contents.contains(&0) || std::str::from_utf8(contents).is_err()) {
            return refuse(*part, "UTF-8 without NUL".into(), "other bytes".into());
        }
        if *part == Part::Linux {
            match Headers::parse(contents) {
                Ok(kernel) if kernel.machine == machine => {}
                Ok(kernel) => {
                    return refuse(*part, format!("a kernel for {}", machine.name()), kernel.machine.name().into());
                }
                Err(error) => return refuse(*part, "a kernel that UEFI firmware starts".into(), error.to_string()),
            }
        }
    }
    if parts.iter().all(|(part, _)| *part != Part::Linux) {
        return refuse(Part::Linux, "a kernel".into(), "none".into());
    }
    Ok(())
}
