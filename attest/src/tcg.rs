//! Firmware's binary event log, as Linux shows it in `binary_bios_measurements`.
//!
//! Source: TCG PC Client Platform Firmware Profile, revisions 1.05 and 1.06 (PFP below), section 10. Digests decide. Types
//! and data are labels that nobody signs: they are shown to people, and where the profile says that a digest is the data's
//! hash, a label that contradicts its digest is named ([`Event::data_check`]).

mod describe;
mod event;

pub(crate) use describe::{shown, variable_value};
pub use event::{DataCheck, Event, EventType};

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};

use crate::bytes::{FieldError, Reader};

/// The largest log that is read, in bytes. Real ones have 20 to 200 KiB.
pub const MAX_SIZE: usize = 4 << 20;
/// The most events that are read. Real logs have up to some hundreds.
pub const MAX_EVENTS: usize = 16_384;
/// The most digest algorithms that a header may name. TPMs have up to five banks.
const MOST_ALGORITHMS: u32 = 16;
/// The largest digest of an algorithm that is unknown here, in bytes.
const LARGEST_DIGEST: u16 = 128;

/// What the first event of a crypto-agile log begins with (PFP, section 10.4.5.1).
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";
/// How the event of the startup locality begins (PFP, section 10.4.5.3).
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// SHA-1 digests in the first event, which is of the old format.
const SHA1_SIZE: usize = 20;

/// A command line as the kernel's EFI stub measures it: in UTF-16, with the NUL at its end.
pub(crate) fn load_options(line: &str) -> Vec<u8> {
    line.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// A digest algorithm that a log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithm {
    /// Its number (`TPM_ALG_ID`).
    pub id: u16,
    /// The size of its digests in bytes.
    pub size: u16,
}

impl Algorithm {
    /// The bank, where this toolkit knows it.
    pub fn bank(&self) -> Option<PcrBank> {
        PcrBank::from_algorithm_id(self.id)
    }
}

/// A whole log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    /// The algorithms that its header names.
    pub algorithms: Vec<Algorithm>,
    /// The locality that started the TPM: register 0 begins with it. 0 where no event says otherwise.
    pub startup_locality: u8,
    /// The events behind the header, those that extend nothing included.
    pub events: Vec<Event>,
}

/// Why a log was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TcgError {
    /// It is too large.
    #[error("firmware log: expected at most {MAX_SIZE} bytes in {MAX_EVENTS} events, found more")]
    TooLarge,
    /// It ends early.
    #[error("firmware log: event {event}: {error}")]
    Field {
        /// The event, counted from 0: the header.
        event: usize,
        /// What is missing.
        error: FieldError,
    },
    /// It is of the format before TPM 2.0.
    #[error(
        "firmware log: expected a crypto-agile log (\"Spec ID Event03\"), found one of the old format, with SHA-1 only"
    )]
    OldFormat,
    /// The header's algorithms are not believable.
    #[error("firmware log: header: {0}")]
    Header(String),
    /// An event's register does not exist.
    #[error("firmware log: event {event}: PCRIndex: expected 0 to 23, found {found}")]
    Pcr {
        /// The event.
        event: usize,
        /// The number.
        found: u32,
    },
    /// An event has more digests than there are algorithms.
    #[error("firmware log: event {event}: digests: expected at most {expected}, found {found}")]
    DigestCount {
        /// The event.
        event: usize,
        /// How many algorithms the header has.
        expected: usize,
        /// How many the event has.
        found: u32,
    },
    /// An algorithm that the header does not name.
    #[error("firmware log: event {event}: digests: algorithm {algorithm:04x} is not in the header")]
    Algorithm {
        /// The event.
        event: usize,
        /// The algorithm.
        algorithm: u16,
    },
    /// Two digests of one algorithm.
    #[error("firmware log: event {event}: digests: algorithm {algorithm:04x} is there twice")]
    DigestTwice {
        /// The event.
        event: usize,
        /// The algorithm.
        algorithm: u16,
    },
    /// The startup locality is none that may start a TPM, or a second one, or comes too late.
    #[error("firmware log: event {event}: StartupLocality: {fault}")]
    StartupLocality {
        /// The event.
        event: usize,
        /// What is wrong.
        fault: String,
    },
}

impl EventLog {
    /// Reads a whole log. An empty one has no header and is refused: who has none sends none.
    ///
    /// # Errors
    /// [`TcgError`], with the event's number.
    pub fn parse(log: &[u8]) -> Result<Self, TcgError> {
        if log.len() > MAX_SIZE {
            return Err(TcgError::TooLarge);
        }
        let mut reader = Reader::new(log);
        let algorithms = header(&mut reader)?;
        let mut parsed = Self { algorithms, startup_locality: 0, events: Vec::new() };
        let mut located = false;
        while !reader.is_empty() {
            if parsed.events.len() == MAX_EVENTS {
                return Err(TcgError::TooLarge);
            }
            let number = parsed.events.len() + 1;
            let event = event(&mut reader, number, &parsed.algorithms)?;
            if let Some(locality) = startup_locality(&event) {
                parsed.locate(number, locality?, located)?;
                located = true;
            }
            parsed.events.push(event);
        }
        Ok(parsed)
    }

    /// What a register holds in a bank before the first event (PC Client Platform TPM Profile, section 4.6.2).
    pub fn initial_value(&self, bank: PcrBank, index: PcrIndex) -> PcrDigest {
        initial_value(bank, index, self.startup_locality)
    }

    fn locate(&mut self, event: usize, locality: u8, located: bool) -> Result<(), TcgError> {
        let fault = |fault: &str| Err(TcgError::StartupLocality { event, fault: fault.to_owned() });
        if located {
            return fault("found a second one");
        }
        if self.events.iter().any(|event| event.extends().is_some_and(|pcr| pcr.get() == 0)) {
            return fault("expected it before the first event of register 0");
        }
        self.startup_locality = locality;
        Ok(())
    }
}

/// What a register holds before the first event. Register 0 ends with the locality that started the TPM; the registers of
/// a dynamic launch are all ones until there is one.
pub(crate) fn initial_value(bank: PcrBank, index: PcrIndex, startup_locality: u8) -> PcrDigest {
    let mut bytes = vec![if matches!(index.get(), 17..=22) { 0xff } else { 0 }; bank.digest_size()];
    if let (0, Some(last)) = (index.get(), bytes.last_mut()) {
        *last = startup_locality;
    }
    PcrDigest::new(bank, &bytes).unwrap_or(PcrDigest::zero(bank))
}

/// The first event: TCG_PCR_EVENT with TCG_EfiSpecIDEvent (PFP, sections 10.2.1 and 10.4.5.1).
fn header(reader: &mut Reader<'_>) -> Result<Vec<Algorithm>, TcgError> {
    let field = |error| TcgError::Field { event: 0, error };
    let pcr = reader.u32_le("PCRIndex").map_err(field)?;
    let kind = EventType(reader.u32_le("EventType").map_err(field)?);
    reader.bytes("Digest", SHA1_SIZE).map_err(field)?;
    let size = reader.u32_le("EventSize").map_err(field)?;
    let data = reader.bytes("Event", size as usize).map_err(field)?;
    if pcr != 0 || kind != EventType::NO_ACTION || !data.starts_with(SIGNATURE) {
        return Err(TcgError::OldFormat);
    }
    algorithms(&mut Reader::new(&data[SIGNATURE.len()..]))
}

fn algorithms(reader: &mut Reader<'_>) -> Result<Vec<Algorithm>, TcgError> {
    let field = |error| TcgError::Field { event: 0, error };
    // platformClass, specVersionMinor, specVersionMajor, specErrata, uintnSize: nothing here depends on them.
    reader.bytes("platformClass", 8).map_err(field)?;
    let count = reader.u32_le("numberOfAlgorithms").map_err(field)?;
    if !(1..=MOST_ALGORITHMS).contains(&count) {
        let fault = format!("numberOfAlgorithms: expected 1 to {MOST_ALGORITHMS}, found {count}");
        return Err(TcgError::Header(fault));
    }
    let mut algorithms = Vec::<Algorithm>::new();
    for _ in 0..count {
        let id = reader.u16_le("algorithmId").map_err(field)?;
        let algorithm = Algorithm { id, size: reader.u16_le("digestSize").map_err(field)? };
        check_algorithm(&algorithms, algorithm)?;
        algorithms.push(algorithm);
    }
    let vendor = reader.u8("vendorInfoSize").map_err(field)?;
    reader.bytes("vendorInfo", vendor.into()).map_err(field)?;
    reader.end("vendorInfo").map_err(field)?;
    Ok(algorithms)
}

fn check_algorithm(known: &[Algorithm], algorithm: Algorithm) -> Result<(), TcgError> {
    let Algorithm { id, size } = algorithm;
    if known.iter().any(|other| other.id == id) {
        return Err(TcgError::Header(format!("algorithm {id:04x} is there twice")));
    }
    let expected = algorithm.bank().map(PcrBank::digest_size);
    match expected {
        Some(expected) if expected != usize::from(size) => {
            let fault = format!("algorithm {id:04x}: digestSize: expected {expected}, found {size}");
            Err(TcgError::Header(fault))
        }
        None if !(1..=LARGEST_DIGEST).contains(&size) => {
            let fault = format!("algorithm {id:04x}: digestSize: expected 1 to {LARGEST_DIGEST}, found {size}");
            Err(TcgError::Header(fault))
        }
        _ => Ok(()),
    }
}

/// TCG_PCR_EVENT2 (PFP, section 10.2.2).
fn event(reader: &mut Reader<'_>, number: usize, algorithms: &[Algorithm]) -> Result<Event, TcgError> {
    let field = |error| TcgError::Field { event: number, error };
    let pcr = reader.u32_le("PCRIndex").map_err(field)?;
    let kind = EventType(reader.u32_le("EventType").map_err(field)?);
    let digests = digests(reader, number, algorithms)?;
    let size = reader.u32_le("EventSize").map_err(field)?;
    let data = reader.bytes("Event", size as usize).map_err(field)?.to_vec();
    let event = Event::new(number, pcr, kind, digests, data);
    // Events that extend nothing may name no register at all (PFP 1.06, section 10.4.5.2).
    if kind != EventType::NO_ACTION && event.extends().is_none() {
        return Err(TcgError::Pcr { event: number, found: pcr });
    }
    Ok(event)
}

/// TPML_DIGEST_VALUES, little-endian. Digests of unknown algorithms are passed over.
fn digests(reader: &mut Reader<'_>, number: usize, algorithms: &[Algorithm]) -> Result<Vec<PcrDigest>, TcgError> {
    let field = |error| TcgError::Field { event: number, error };
    let count = reader.u32_le("digests.count").map_err(field)?;
    if count as usize > algorithms.len() {
        return Err(TcgError::DigestCount { event: number, expected: algorithms.len(), found: count });
    }
    let mut seen = Vec::new();
    let mut digests = Vec::new();
    for _ in 0..count {
        let id = reader.u16_le("digests.hashAlg").map_err(field)?;
        let algorithm = algorithms.iter().find(|algorithm| algorithm.id == id);
        let algorithm = algorithm.ok_or(TcgError::Algorithm { event: number, algorithm: id })?;
        if seen.contains(&id) {
            return Err(TcgError::DigestTwice { event: number, algorithm: id });
        }
        seen.push(id);
        let bytes = reader.bytes("digests.digest", algorithm.size.into()).map_err(field)?;
        digests.extend(algorithm.bank().and_then(|bank| PcrDigest::new(bank, bytes).ok()));
    }
    Ok(digests)
}

/// TCG_EfiStartupLocalityEvent (PFP, section 10.4.5.3), if the event is one.
fn startup_locality(event: &Event) -> Option<Result<u8, TcgError>> {
    if event.kind != EventType::NO_ACTION {
        return None;
    }
    let fault = |fault: String| Some(Err(TcgError::StartupLocality { event: event.number, fault }));
    match event.data.strip_prefix(STARTUP_LOCALITY)? {
        // 4: a hardware core root of trust measured before the start.
        [locality @ (0 | 3 | 4)] => Some(Ok(*locality)),
        [other] => fault(format!("expected 0, 3 or 4, found {other}")),
        other => fault(format!("expected 1 byte, found {}", other.len())),
    }
}

#[cfg(test)]
mod tests;
