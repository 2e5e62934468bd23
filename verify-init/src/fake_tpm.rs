//! As much of a TPM as a boot needs: its banks, and registers to extend.

use std::collections::BTreeMap;

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex, extend};

/// `TPM_CC_GetCapability`, `TPM_CC_PCR_Read` and `TPM_CC_PCR_Extend`, their last bytes.
const GET_CAPABILITY: u8 = 0x7a;
const PCR_READ: u8 = 0x7e;
const PCR_EXTEND: u8 = 0x82;

/// The TPM. It refuses what it does not know.
#[derive(Debug)]
pub(crate) struct FakeTpm {
    banks: Vec<PcrBank>,
    values: BTreeMap<(PcrIndex, PcrBank), PcrDigest>,
    /// A bank that extends pass by.
    pub(crate) stuck: Option<PcrBank>,
}

impl FakeTpm {
    pub(crate) fn with_banks(banks: &[PcrBank]) -> Self {
        Self { banks: banks.to_vec(), values: BTreeMap::new(), stuck: None }
    }

    pub(crate) fn value(&self, index: PcrIndex, bank: PcrBank) -> PcrDigest {
        self.values.get(&(index, bank)).copied().unwrap_or(PcrDigest::zero(bank))
    }

    pub(crate) fn answer(&mut self, command: &[u8]) -> Vec<u8> {
        match command[9] {
            GET_CAPABILITY => response(0x8001, &self.banks()),
            PCR_READ => response(0x8001, &self.read(&command[10..])),
            PCR_EXTEND => {
                self.extend(command);
                response(0x8002, &[0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            // TPM_RC_COMMAND_CODE
            _ => vec![0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x43],
        }
    }

    /// All 24 registers in each bank.
    fn banks(&self) -> Vec<u8> {
        let mut parameters = vec![0, 0, 0, 0, 5, 0, 0, 0, u8::try_from(self.banks.len()).unwrap()];
        for bank in &self.banks {
            parameters.extend(bank.algorithm_id().to_be_bytes());
            parameters.extend([3, 0xff, 0xff, 0xff]);
        }
        parameters
    }

    /// The selection again, and a value for each of its registers, in its order.
    fn read(&self, selection: &[u8]) -> Vec<u8> {
        let mut values = Vec::new();
        for entry in selection[4..].chunks(6) {
            let bank = PcrBank::from_algorithm_id(u16::from_be_bytes([entry[0], entry[1]])).unwrap();
            for index in PcrIndex::all() {
                if entry[3 + usize::from(index.get()) / 8] >> (index.get() % 8) & 1 == 1 {
                    values.push(self.value(index, bank));
                }
            }
        }
        let mut parameters = [&[0, 0, 0, 7], selection].concat();
        parameters.extend(u32::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            parameters.extend(u16::try_from(value.as_bytes().len()).unwrap().to_be_bytes());
            parameters.extend(value.as_bytes());
        }
        parameters
    }

    /// Handle at 10, then 13 bytes of authorization, then the digests behind their count.
    fn extend(&mut self, command: &[u8]) {
        let index = PcrIndex::new(command[13]).unwrap();
        let mut rest = &command[31..];
        while !rest.is_empty() {
            let bank = PcrBank::from_algorithm_id(u16::from_be_bytes([rest[0], rest[1]])).unwrap();
            let (digest, more) = rest[2..].split_at(bank.digest_size());
            let value = extend(&self.value(index, bank), &PcrDigest::new(bank, digest).unwrap()).unwrap();
            if self.stuck != Some(bank) {
                self.values.insert((index, bank), value);
            }
            rest = more;
        }
    }
}

fn response(tag: u16, parameters: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + parameters.len()).unwrap();
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &[0; 4], parameters].concat()
}
