//! Which registers a key is bound to, and the values that they have when verify-init asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use iofs_policy::{
    measurement::{Measurement, predict},
    pcr::{PcrBank, PcrDigest, PcrError, PcrIndex},
    release::Release,
};

/// Registers on the command line: `11+12+13`, `7,11`, `11:sha384`, or nothing for none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registers {
    /// Their numbers.
    pub pcrs: BTreeSet<PcrIndex>,
    /// Their bank, where it was named.
    pub bank: Option<PcrBank>,
}

impl FromStr for Registers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (numbers, bank) = text.split_once(':').map_or((text, None), |(numbers, bank)| (numbers, Some(bank)));
        let bank = bank.map(str::parse).transpose().map_err(|error: PcrError| error.to_string())?;
        if bank == Some(PcrBank::Sha1) {
            return Err("PCR bank: expected sha256, sha384 or sha512; SHA-1 is broken".to_owned());
        }
        let mut pcrs = BTreeSet::new();
        for number in numbers.split(['+', ',']).filter(|_| !numbers.is_empty()) {
            let parsed = number.parse().ok().and_then(|number| PcrIndex::new(number).ok());
            let pcr = parsed.ok_or_else(|| format!("PCR index: expected 0 to 23, found {number:?}"))?;
            if !pcrs.insert(pcr) {
                return Err(format!("PCR {pcr} is named twice"));
            }
        }
        Ok(Self { pcrs, bank })
    }
}

/// What the registers that verify-init measures into hold when it opens the volumes: before `leave-initrd`, so that the
/// running system cannot do the same.
///
/// # Errors
/// None in practice: digests of one bank always extend each other.
pub fn predicted(
    release: &Release,
    command_line: &str,
    bank: PcrBank,
) -> Result<BTreeMap<PcrIndex, PcrDigest>, PcrError> {
    let measurements = release.measurements(command_line);
    let until = measurements.iter().position(|one| *one == Measurement::LeaveInitrd).unwrap_or(measurements.len());
    let mut values = BTreeMap::new();
    for (measurement, event) in measurements[..until].iter().zip(predict(&measurements[..until], bank)?) {
        let value = iofs_policy::hex::decode(&event.value).unwrap_or_default();
        values.insert(measurement.pcr(), PcrDigest::new(bank, &value)?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Vec<u8>, Option<PcrBank>), String> {
        text.parse().map(|Registers { pcrs, bank }| (pcrs.into_iter().map(PcrIndex::get).collect(), bank))
    }

    #[test]
    fn registers_are_numbers_with_a_bank_behind_them() {
        assert_eq!(parse("13+11,12"), Ok((vec![11, 12, 13], None)));
        assert_eq!(parse("7:sha384"), Ok((vec![7], Some(PcrBank::Sha384))));
        assert_eq!(parse(""), Ok((vec![], None)));
        for (text, expected) in [
            ("24", "expected 0 to 23, found \"24\""),
            ("11++12", "found \"\""),
            ("11+x", "found \"x\""),
            ("11+11", "PCR 11 is named twice"),
            ("11:sha1", "SHA-1 is broken"),
            ("11:md5", "PCR bank: expected"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
