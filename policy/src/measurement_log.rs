//! The log of what user space measured: `/run/log/systemd/tpm2-measure.log`, in systemd's format.
//!
//! It is a JSON text sequence (RFC 7464): each record begins with a record separator (0x1E) and ends with a line feed. The
//! fields are those of the Canonical Event Log's JSON form (TCG, CEL 1.0) with systemd's content type. Only register and
//! digests are covered by the TPM: everything in [`Content`] is a label, which nothing may rely on.

use serde::{Deserialize, Serialize};

use crate::{
    hex,
    measurement::Measurement,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};

/// The mode of the file while nobody writes it.
pub const MODE: u32 = 0o600;
/// Set, beside [`MODE`], from before a register is extended until its record stands: a log that has it while nobody holds
/// its lock lacks a record, and is torn.
pub const STICKY: u32 = 0o1000;
/// The largest log that is read, in bytes. A boot writes a few hundred bytes a measurement.
pub const MAX_SIZE: usize = 1 << 20;
/// The most records that are read.
pub const MAX_RECORDS: usize = 4096;

const RECORD_SEPARATOR: u8 = 0x1e;
const LINE_FEED: u8 = b'\n';

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The register.
    pub pcr: u8,
    /// What it was extended by, in each active bank.
    pub digests: Vec<LoggedDigest>,
    /// How to read `content`.
    pub content_type: String,
    /// For people.
    #[serde(default)]
    pub content: Content,
}

/// A digest of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedDigest {
    /// The bank's name, as [`PcrBank::name`] has it. Banks that this toolkit does not know are read too.
    #[serde(rename = "hashAlg")]
    pub algorithm: String,
    /// Hexadecimal.
    pub digest: String,
}

/// What a record says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Content {
    /// What was measured, where that is text and no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
    /// The boot, 32 hexadecimal digits.
    #[serde(default, rename = "bootId", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Microseconds since the kernel's start (CLOCK_BOOTTIME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// The kind of event.
    #[serde(default, rename = "eventType", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
}

/// Why a log was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It is too large.
    #[error("measurement log: expected at most {MAX_SIZE} bytes in {MAX_RECORDS} records, found more")]
    TooLarge,
    /// A record does not begin where one should.
    #[error("measurement log: record {record}: expected a record separator (0x1e), found {found:#04x}")]
    Separator {
        /// The record, counted from 0.
        record: usize,
        /// The byte.
        found: u8,
    },
    /// The last record has no end: whoever wrote it was stopped.
    #[error("measurement log: record {0}: expected a line feed at its end, found the log's end: the log is torn")]
    Torn(usize),
    /// A record is not what it must be.
    #[error("measurement log: record {record}: {fault}")]
    Record {
        /// The record, counted from 0.
        record: usize,
        /// What the JSON parser said.
        fault: String,
    },
    /// A record's register does not exist.
    #[error("measurement log: record {record}: pcr: expected 0 to 23, found {found}")]
    Pcr {
        /// The record, counted from 0.
        record: usize,
        /// The number.
        found: u8,
    },
    /// A digest is malformed, or its bank is there twice.
    #[error(
        "measurement log: record {record}: {algorithm} digest: expected one of the bank's size in hexadecimal, {found}"
    )]
    Digest {
        /// The record, counted from 0.
        record: usize,
        /// The bank's name.
        algorithm: String,
        /// What was found.
        found: String,
    },
}

impl Record {
    /// The record of a measurement.
    pub fn new(measurement: &Measurement<'_>, digests: &[PcrDigest], boot_id: Option<String>, timestamp: u64) -> Self {
        let logged = |digest: &PcrDigest| LoggedDigest {
            algorithm: digest.bank().name().to_owned(),
            digest: hex::encode(digest.as_bytes()),
        };
        Self {
            pcr: measurement.pcr().get(),
            digests: digests.iter().map(logged).collect(),
            content_type: "systemd".to_owned(),
            content: Content {
                string: Some(String::from_utf8_lossy(&measurement.bytes()).into_owned()),
                boot_id,
                timestamp: Some(timestamp),
                event_type: Some(measurement.event_type().to_owned()),
            },
        }
    }

    /// The record as it is appended to a log.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_SEPARATOR];
        bytes.extend(serde_json::to_vec(self).expect("a record always serialises"));
        bytes.push(LINE_FEED);
        bytes
    }

    /// The register. `None` is not possible in records that [`parse`] gave.
    pub fn index(&self) -> Option<PcrIndex> {
        PcrIndex::new(self.pcr).ok()
    }

    /// What the register was extended by in a bank, if the record says so.
    pub fn digest(&self, bank: PcrBank) -> Option<PcrDigest> {
        let logged = self.digests.iter().find(|logged| logged.algorithm == bank.name())?;
        PcrDigest::new(bank, &hex::decode(&logged.digest).ok()?).ok()
    }

    fn check(&self, record: usize) -> Result<(), LogError> {
        if self.index().is_none() {
            return Err(LogError::Pcr { record, found: self.pcr });
        }
        for (number, logged) in self.digests.iter().enumerate() {
            let error = |found: String| LogError::Digest { record, algorithm: logged.algorithm.clone(), found };
            if self.digests[..number].iter().any(|other| other.algorithm == logged.algorithm) {
                return Err(error("found a second one".to_owned()));
            }
            let bytes = hex::decode(&logged.digest).map_err(|fault| error(fault.to_string()))?;
            let bank = logged.algorithm.parse::<PcrBank>().ok();
            if bank.is_some_and(|bank| bank.digest_size() != bytes.len()) {
                return Err(error(format!("found {} bytes", bytes.len())));
            }
        }
        Ok(())
    }
}

/// Reads a whole log. An empty one has no records.
///
/// # Errors
/// [`LogError`], with the record's number.
pub fn parse(log: &[u8]) -> Result<Vec<Record>, LogError> {
    if log.len() > MAX_SIZE {
        return Err(LogError::TooLarge);
    }
    let mut records = Vec::new();
    let mut rest = log;
    while let Some((&first, body)) = rest.split_first() {
        let number = records.len();
        if number == MAX_RECORDS {
            return Err(LogError::TooLarge);
        }
        if first != RECORD_SEPARATOR {
            return Err(LogError::Separator { record: number, found: first });
        }
        let end = body.iter().position(|byte| *byte == LINE_FEED).ok_or(LogError::Torn(number))?;
        let parsed = serde_json::from_slice::<Record>(&body[..end]);
        let record = parsed.map_err(|error| LogError::Record { record: number, fault: error.to_string() })?;
        record.check(number)?;
        records.push(record);
        rest = &body[end + 1..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let digests = [PcrBank::Sha1, PcrBank::Sha256].map(|bank| Measurement::EnterInitrd.digest(bank));
        Record::new(&Measurement::EnterInitrd, &digests, Some("0".repeat(32)), 7)
    }

    #[test]
    fn what_is_written_is_read() {
        let log = [record().to_bytes(), record().to_bytes()].concat();
        let records = parse(&log).unwrap();
        assert_eq!(records, [record(), record()]);
        assert_eq!(records[0].digest(PcrBank::Sha256), Some(Measurement::EnterInitrd.digest(PcrBank::Sha256)));
        assert_eq!(records[0].digest(PcrBank::Sha384), None);
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn a_log_that_ends_within_a_record_is_torn() {
        let bytes = record().to_bytes();
        for end in 1..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Err(LogError::Torn(0)), "{end}");
        }
    }

    /// As systemd 257 writes it: more fields than are needed, and a bank that is not known here.
    #[test]
    fn records_of_others_are_read() {
        let text = format!(
            "\u{1e}{{\"pcr\":15,\"digests\":[{{\"hashAlg\":\"sm3-256\",\"digest\":\"00\"}},\
             {{\"hashAlg\":\"sha256\",\"digest\":\"{}\"}}],\"content_type\":\"systemd\",\"content\":{{\"string\":\"machine-id:x\",\
             \"bootId\":\"y\",\"timestamp\":1,\"eventType\":\"machine-id\",\"more\":null}}}}\n",
            "ab".repeat(32)
        );
        let records = parse(text.as_bytes()).unwrap();
        assert_eq!(records[0].content.event_type.as_deref(), Some("machine-id"));
        assert!(records[0].digest(PcrBank::Sha256).is_some());
    }

    #[test]
    fn what_is_malformed_is_named() {
        let sha256 = "ab".repeat(32);
        for (log, expected) in [
            ("x".to_owned(), "record 0: expected a record separator (0x1e), found 0x78"),
            ("\u{1e}{\n".to_owned(), "record 0: EOF while parsing"),
            (
                "\u{1e}{\"pcr\":24,\"digests\":[],\"content_type\":\"x\"}\n".to_owned(),
                "pcr: expected 0 to 23, found 24",
            ),
            (
                "\u{1e}{\"pcr\":1,\"digests\":[{\"hashAlg\":\"sha1\",\"digest\":\"00\"}],\"content_type\":\"x\"}\n"
                    .to_owned(),
                "sha1 digest: expected one of the bank's size in hexadecimal, found 1 bytes",
            ),
            (
                format!(
                    "\u{1e}{{\"pcr\":1,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{sha256}\"}},\
                     {{\"hashAlg\":\"sha256\",\"digest\":\"{sha256}\"}}],\"content_type\":\"x\"}}\n"
                ),
                "found a second one",
            ),
        ] {
            let error = parse(log.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(parse(&vec![0x1e; MAX_SIZE + 1]), Err(LogError::TooLarge));
    }
}
