//! Unified kernel images: kernel, mini-initramfs and command line as sections of one PE image that firmware starts.
//!
//! UAPI.5, Unified Kernel Image. The first code is systemd's stub (systemd-stub(7)), which measures every section, in an
//! order of its own, and hands them to the kernel.

use std::{fmt, fs, path::Path};

use iofs_policy::{
    digest::Sha256Digest,
    hex,
    pcr::{PcrBank, PcrDigest, PcrError, extend},
    uki::{BankDigests, UkiMeasurements, UkiSection},
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

mod initrd;

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
    /// All of them, in the stub's order.
    pub const ALL: [Self; 10] = [
        Self::Linux,
        Self::OsRelease,
        Self::CommandLine,
        Self::Initrd,
        Self::Microcode,
        Self::Splash,
        Self::Devicetree,
        Self::Uname,
        Self::PcrSignature,
        Self::PcrPublicKey,
    ];

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

/// Where Debian and others put systemd's stubs.
const STUBS: &str = "/usr/lib/systemd/boot/efi";

/// Reads systemd's stub: this one, or the installed one for a processor.
///
/// # Errors
/// It cannot be read.
pub fn read_stub(path: Option<&Path>, machine: Machine) -> Result<Vec<u8>, Failure> {
    let name = match machine {
        Machine::X86_64 => "linuxx64.efi.stub",
        Machine::Arm64 => "linuxaa64.efi.stub",
    };
    let default = Path::new(STUBS).join(name);
    let stub = path.unwrap_or(&default);
    fs::read(stub).map_err(|error| {
        let failure = Failure::io(format_args!("read {}", stub.display()), &error);
        match path {
            Some(_) => failure,
            None => Failure { status: ExitStatus::Missing, ..failure }.next("apt-get install systemd-boot-efi"),
        }
    })
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
/// The first release of systemd whose stub measures sections that are chosen as it starts: [`UNPREDICTED`].
const CHOSEN_SECTIONS: u32 = 257;
/// Sections of which the machine or its user chooses as it starts, and with them what is measured: profiles of an image, which may
/// each have sections of their own, and devicetrees and firmware by the hardware that they are for.
const UNPREDICTED: [&str; 4] = [".profile", ".dtbauto", ".hwids", ".efifw"];
/// The boot's phases after the stub, whose words systemd measures into register 11 (systemd-pcrphase.service(8)).
pub const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];

/// What register 11 holds in a phase of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseValue {
    /// The words measured since the stub, as systemd-measure(1) writes them: none, then each behind the others.
    pub phase: String,
    /// The value in hexadecimal, without its bank.
    pub value: String,
}

impl PhaseValue {
    fn new(phase: String, value: &PcrDigest) -> Self {
        Self { phase, value: hex::encode(value.as_bytes()) }
    }
}

/// Predicts register 11 in each phase from an assembled image, of which nothing is [`unpredicted`].
///
/// # Errors
/// The bank has no such digest; which no image causes.
pub fn predict(headers: &Headers, image: &[u8], bank: PcrBank) -> Result<Vec<PhaseValue>, PcrError> {
    let mut value = after_stub(headers, image, bank)?;
    let mut values = vec![PhaseValue::new(String::new(), &value)];
    let mut words: Vec<&str> = Vec::new();
    for word in PHASES {
        words.push(word);
        value = after_word(&value, word)?;
        values.push(PhaseValue::new(words.join(":"), &value));
    }
    Ok(values)
}

/// Predicts what register 11 holds when the stub starts the kernel.
///
/// # Errors
/// As [`predict`].
pub fn after_stub(headers: &Headers, image: &[u8], bank: PcrBank) -> Result<PcrDigest, PcrError> {
    let mut value = PcrDigest::zero(bank);
    for section in measured(headers, image) {
        let name = [section.name.as_bytes(), &[0]].concat();
        for bytes in [&name[..], section.contents(image)] {
            value = extend(&value, &PcrDigest::of(bank, &[bytes]))?;
        }
    }
    Ok(value)
}

/// What register 11 holds after one more word of a phase.
///
/// # Errors
/// As [`predict`].
pub fn after_word(value: &PcrDigest, word: &str) -> Result<PcrDigest, PcrError> {
    extend(value, &PcrDigest::of(value.bank(), &[word.as_bytes()]))
}

/// What a release states of an image.
///
/// # Errors
/// It is none, or firmware could not hash it.
pub fn measurements(image: &[u8]) -> Result<UkiMeasurements, UkiError> {
    let headers = Headers::parse(image)?;
    let stub = stub_version(&headers, image).ok_or(UkiError::ForeignStub)?;
    let section = |section: &pe::Section| UkiSection {
        name: section.name.clone(),
        digests: BankDigests::of(&[section.contents(image)]),
    };
    let sections = measured(&headers, image).into_iter().map(section).collect();
    let initrd = BankDigests::of(&[&initrd::combined(&headers, image)]);
    Ok(UkiMeasurements { stub, authenticode: authenticode::bank_digests(image)?, initrd, sections })
}

/// The release of systemd that an image's stub is of; 0 where that is not told.
fn stub_number(headers: &Headers, image: &[u8]) -> u32 {
    let version = stub_version(headers, image).unwrap_or_default();
    let number = version.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    number.parse().unwrap_or_default()
}

/// The sections that the stub measures, in its order (systemd's `uki.h`, `unified_section_measure`).
pub fn measured<'a>(headers: &'a Headers, image: &[u8]) -> Vec<&'a pe::Section> {
    const ALL: [&str; 10] =
        [".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"];
    const NEW: [&str; 3] = [".ucode", ".uname", ".sbat"];
    let new = stub_number(headers, image) >= MORE_SECTIONS;
    let known = ALL.into_iter().filter(|name| new || !NEW.contains(name));
    known.filter_map(|name| headers.find(name)).collect()
}

/// A section by which the stub measures what cannot be predicted from the image alone, where it has one.
pub fn unpredicted(headers: &Headers, image: &[u8]) -> Option<&'static str> {
    let chooses = stub_number(headers, image) >= CHOSEN_SECTIONS;
    UNPREDICTED.into_iter().find(|name| chooses && headers.find(name).is_some())
}

/// What is appended last, in this order: what depends on everything before it, then what is signed later than the rest, then
/// the kernel: one that is unpacked in place may use the memory behind it.
const LAST: [Part; 3] = [Part::PcrSignature, Part::Initrd, Part::Linux];

/// Assembles it. The same input gives the same bytes.
///
/// # Errors
/// [`UkiError`].
pub fn assemble(stub: &[u8], parts: &[(Part, &[u8])]) -> Result<Assembled, UkiError> {
    let (last, first): (Vec<_>, Vec<_>) = parts.iter().partition(|(part, _)| LAST.contains(part));
    complete(&base(stub, &first)?, &last)
}

/// The stub with all parts but the signatures for register values, the initramfs and the kernel.
///
/// # Errors
/// [`UkiError`].
pub fn base(stub: &[u8], parts: &[(Part, &[u8])]) -> Result<Vec<u8>, UkiError> {
    let headers = Headers::parse(stub)?;
    stub_version(&headers, stub).ok_or(UkiError::ForeignStub)?;
    append(stub, headers.machine, parts)
}

/// Adds what [`base`] lacks.
///
/// # Errors
/// [`UkiError`], also where a kernel or an initramfs is missing.
pub fn complete(base: &[u8], parts: &[(Part, &[u8])]) -> Result<Assembled, UkiError> {
    let headers = Headers::parse(base)?;
    let version = stub_version(&headers, base).ok_or(UkiError::ForeignStub)?;
    for part in [Part::Linux, Part::Initrd] {
        if parts.iter().all(|(other, _)| *other != part) {
            return Err(UkiError::Part { part, expected: "one".into(), found: "none".into() });
        }
    }
    let bytes = append(base, headers.machine, parts)?;
    let authenticode = authenticode::digest(&bytes)?;
    let parts = assembled_parts(&bytes)?;
    Ok(Assembled { bytes, stub: version, authenticode, parts, signer: None })
}

fn append(image: &[u8], machine: Machine, parts: &[(Part, &[u8])]) -> Result<Vec<u8>, UkiError> {
    let mut parts = parts.to_vec();
    parts.sort_by_key(|(part, _)| (LAST.iter().position(|last| last == part), *part));
    check(machine, &parts)?;
    let sections: Vec<NewSection<'_>> =
        parts.iter().map(|(part, contents)| NewSection { name: part.section(), contents }).collect();
    Ok(pe::append(image, &sections)?)
}

/// The parts of an image, in the stub's order.
fn assembled_parts(image: &[u8]) -> Result<Vec<AssembledPart>, PeError> {
    let headers = Headers::parse(image)?;
    let found = Part::ALL.into_iter().filter_map(|part| {
        let contents = headers.find(part.section())?.contents(image);
        Some(AssembledPart { section: part.section(), size: contents.len(), sha256: Sha256Digest::of(contents) })
    });
    Ok(found.collect())
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
    Ok(())
}
