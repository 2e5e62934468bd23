//! TPMS_ATTEST (section 10.12.12) of the type `TPM_ST_ATTEST_QUOTE`.

use std::collections::BTreeSet;

use iofs_policy::pcr::{PCR_COUNT, PcrBank, PcrIndex};

use crate::{
    bytes::{FieldError, Reader},
    enrolment::Counters,
};

/// `TPM_GENERATED_VALUE` (section 6.2): a restricted key signs no bytes from outside that begin with it.
const GENERATED: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE` (section 6.9)
const ATTEST_QUOTE: u16 = 0x8018;
/// The bytes of a selection of 24 registers (PC Client Platform TPM Profile, section 4.6).
const SELECT_SIZE: u8 = PCR_COUNT / 8;
/// The most banks of a selection. Real TPMs have up to five.
const MOST_BANKS: u32 = 16;

/// What a TPM says of its registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// The qualified name of the signing key. It is not relied on: the key itself is compared.
    pub qualified_signer: Vec<u8>,
    /// What the asker sent along: the nonce.
    pub extra_data: Vec<u8>,
    /// Where the TPM is in its life.
    pub clock: ClockInfo,
    /// The version of the TPM's firmware, as its vendor counts.
    pub firmware_version: u64,
    /// The registers that are covered, in the order in which the digest takes them.
    pub selection: Vec<BankSelection>,
    /// The hash of their values in a row, by the algorithm of the signature.
    pub pcr_digest: Vec<u8>,
}

/// TPMS_CLOCK_INFO (section 10.11.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockInfo {
    /// The counters.
    pub counters: Counters,
    /// Whether the clock's value was never shown before. It is not after power was cut, until it has caught up.
    pub safe: bool,
}

/// The registers of one bank (TPMS_PCR_SELECTION, section 10.6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BankSelection {
    /// The bank's algorithm, known here or not.
    pub algorithm: u16,
    /// The registers.
    pub pcrs: BTreeSet<PcrIndex>,
}

impl BankSelection {
    /// The bank, where this toolkit knows it.
    pub fn bank(&self) -> Option<PcrBank> {
        PcrBank::from_algorithm_id(self.algorithm)
    }
}

/// Why bytes are no quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// A TPM did not make it.
    #[error("quote: magic: expected ff544347 (TPM_GENERATED), found {0:08x}")]
    Magic(u32),
    /// It is another attestation.
    #[error("quote: type: expected 8018 (TPM_ST_ATTEST_QUOTE), found {0:04x}")]
    Type(u16),
    /// It ends early or late.
    #[error("quote: {0}")]
    Field(#[from] FieldError),
    /// A truth value is neither.
    #[error("quote: clockInfo.safe: expected 0 or 1, found {0}")]
    Safe(u8),
    /// More banks than there can be.
    #[error("quote: pcrSelect: expected at most {MOST_BANKS} banks, found {0}")]
    Banks(u32),
    /// A selection of another size than that of 24 registers.
    #[error("quote: pcrSelect: sizeofSelect: expected {SELECT_SIZE}, found {0}")]
    SelectSize(u8),
    /// A bank is there twice.
    #[error("quote: pcrSelect: bank {0:04x} is selected twice")]
    BankTwice(u16),
}

impl Quote {
    /// Reads a quote, all bytes of it.
    ///
    /// # Errors
    /// [`QuoteError`], by the first field that is not what it must be.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32_be("magic")?;
        if magic != GENERATED {
            return Err(QuoteError::Magic(magic));
        }
        let kind = reader.u16_be("type")?;
        if kind != ATTEST_QUOTE {
            return Err(QuoteError::Type(kind));
        }
        let quote = Self {
            qualified_signer: reader.sized("qualifiedSigner")?.to_vec(),
            extra_data: reader.sized("extraData")?.to_vec(),
            clock: clock_info(&mut reader)?,
            firmware_version: reader.u64_be("firmwareVersion")?,
            selection: selection(&mut reader)?,
            pcr_digest: reader.sized("pcrDigest")?.to_vec(),
        };
        reader.end("pcrDigest")?;
        Ok(quote)
    }
}

fn clock_info(reader: &mut Reader<'_>) -> Result<ClockInfo, QuoteError> {
    let clock = reader.u64_be("clockInfo.clock")?;
    let reset_count = reader.u32_be("clockInfo.resetCount")?;
    let restart_count = reader.u32_be("clockInfo.restartCount")?;
    let safe = match reader.u8("clockInfo.safe")? {
        0 => false,
        1 => true,
        other => return Err(QuoteError::Safe(other)),
    };
    Ok(ClockInfo { counters: Counters { reset_count, restart_count, clock }, safe })
}

/// TPML_PCR_SELECTION (section 10.9.7).
fn selection(reader: &mut Reader<'_>) -> Result<Vec<BankSelection>, QuoteError> {
    let count = reader.u32_be("pcrSelect.count")?;
    if count > MOST_BANKS {
        return Err(QuoteError::Banks(count));
    }
    let mut banks = Vec::<BankSelection>::new();
    for _ in 0..count {
        let algorithm = reader.u16_be("pcrSelect.hash")?;
        if banks.iter().any(|bank| bank.algorithm == algorithm) {
            return Err(QuoteError::BankTwice(algorithm));
        }
        banks.push(BankSelection { algorithm, pcrs: registers(reader)? });
    }
    Ok(banks)
}

fn registers(reader: &mut Reader<'_>) -> Result<BTreeSet<PcrIndex>, QuoteError> {
    let size = reader.u8("pcrSelect.sizeofSelect")?;
    if size != SELECT_SIZE {
        return Err(QuoteError::SelectSize(size));
    }
    let [low, middle, high] = reader.array("pcrSelect.pcrSelect")?;
    let bits = u32::from_le_bytes([low, middle, high, 0]);
    Ok(PcrIndex::all().filter(|index| bits >> index.get() & 1 == 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quote of registers 0 and 23 of the SHA-256 bank.
    fn quote() -> Vec<u8> {
        let mut bytes = b"\xff\x54\x43\x47\x80\x18\x00\x01N\x00\x02no".to_vec();
        bytes.extend(b"\0\0\0\0\0\0\x03\xe8\0\0\0\x05\0\0\0\x06\x01\0\0\0\0\0\0\0\x07");
        bytes.extend(b"\0\0\0\x01\x00\x0b\x03\x01\x00\x80\x00\x03abc");
        bytes
    }

    /// Where things are: the safe byte, the number of banks, the size of the selection.
    const SAFE: usize = 29;
    const COUNT: usize = 41;
    const SIZE: usize = 44;

    #[test]
    fn every_field_is_read() {
        let quote = Quote::parse(&quote()).unwrap();
        assert_eq!((&quote.qualified_signer[..], &quote.extra_data[..]), (&b"N"[..], &b"no"[..]));
        assert_eq!(quote.clock.counters, Counters { reset_count: 5, restart_count: 6, clock: 1000 });
        assert!(quote.clock.safe);
        assert_eq!((quote.firmware_version, &quote.pcr_digest[..]), (7, &b"abc"[..]));
        let pcrs: Vec<u8> = quote.selection[0].pcrs.iter().map(|pcr| pcr.get()).collect();
        assert_eq!((quote.selection[0].bank(), pcrs), (Some(PcrBank::Sha256), vec![0, 23]));
    }

    #[test]
    fn what_is_malformed_is_named() {
        let changed = |at: usize, value: u8| {
            let mut bytes = quote();
            bytes[at] = value;
            Quote::parse(&bytes).unwrap_err().to_string()
        };
        assert_eq!(changed(SAFE, 2), "quote: clockInfo.safe: expected 0 or 1, found 2");
        assert_eq!(changed(COUNT, 17), "quote: pcrSelect: expected at most 16 banks, found 17");
        assert_eq!(changed(SIZE, 4), "quote: pcrSelect: sizeofSelect: expected 3, found 4");
        assert_eq!(changed(6, 0xff), "quote: qualifiedSigner: expected 65281 bytes, found 45");
        let mut twice = quote();
        twice[COUNT] = 2;
        twice.splice(COUNT + 1..COUNT + 1, *b"\x00\x0b\x03\x00\x00\x00");
        assert_eq!(Quote::parse(&twice), Err(QuoteError::BankTwice(0x0b)));
    }

    #[test]
    fn no_quote_is_cut_or_longer() {
        let quote = quote();
        for end in 0..quote.len() {
            assert!(Quote::parse(&quote[..end]).is_err(), "{end}");
        }
        assert!(Quote::parse(&[&quote[..], &[0]].concat()).is_err());
    }
}
