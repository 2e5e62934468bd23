//! Quotes: registers, signed by the attestation key.

use std::collections::{BTreeMap, BTreeSet};

use iofs_policy::pcr::{PcrBank, PcrDigest, PcrIndex};
use tss_esapi::{
    structures::{AttestInfo, Data, PcrSelectSize, PcrSelection, PcrSelectionList, PcrSlot, SignatureScheme},
    traits::Marshall,
    tss2_esys::TPML_PCR_SELECTION,
};

use super::{AttestationKey, Host, HostError, capability};

/// How often a quote is made again where registers change between reading and quoting.
const ATTEMPTS: u32 = 8;

/// Which registers of which banks.
pub type Selection = BTreeMap<PcrBank, BTreeSet<PcrIndex>>;

/// What a TPM signed, and the values that it is about.
#[derive(Debug, Clone)]
pub struct Quote {
    /// TPMS_ATTEST: the bytes that were signed.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// The registers' values. The digest in `attest` is the one over them.
    pub values: BTreeMap<(PcrBank, PcrIndex), PcrDigest>,
}

impl Host {
    /// Quotes exactly these registers (TPM2_Quote, Part 3, section 18.4), in one quote for all banks, and reads their values
    /// beside it: again until the quote is about what was read.
    ///
    /// # Errors
    /// [`HostError::Selection`] where a register is not there, [`HostError::Changing`] where registers do not hold still.
    pub fn quote(&mut self, ak: &AttestationKey, nonce: &[u8], selection: &Selection) -> Result<Quote, HostError> {
        for _ in 0..ATTEMPTS {
            let values = self.read_registers(selection)?;
            if let Some(quote) = self.quote_of(ak, nonce, selection, values)? {
                return Ok(quote);
            }
        }
        Err(HostError::Changing(ATTEMPTS))
    }

    /// `None` where the quote is about other values.
    fn quote_of(
        &mut self,
        ak: &AttestationKey,
        nonce: &[u8],
        selection: &Selection,
        values: BTreeMap<(PcrBank, PcrIndex), PcrDigest>,
    ) -> Result<Option<Quote>, HostError> {
        let command = "TPM2_Quote";
        let failed = |source| HostError::command(command, source);
        let nonce = Data::try_from(nonce.to_vec()).map_err(failed)?;
        let list = selection_list(selection).map_err(failed)?;
        // TPM_ALG_NULL stands for the key's own scheme.
        let (attest, signature) =
            self.password(command, |context| context.quote(ak.handle, nonce, SignatureScheme::Null, list))?;
        let AttestInfo::Quote { info } = attest.attested() else {
            return Err(HostError::Answer { command, expected: "a quote" });
        };
        if selected(info.pcr_selection()) != *selection {
            return Err(HostError::Selection);
        }
        // The hash algorithm is that of the signature: SHA-256 for all keys that are made here. BTreeMap has the order in
        // which the TPM hashes: bank by bank as selected, then by register.
        let bytes: Vec<&[u8]> = values.values().map(PcrDigest::as_bytes).collect();
        if info.pcr_digest().value() != PcrDigest::of(PcrBank::Sha256, &bytes).as_bytes() {
            return Ok(None);
        }
        let attest = attest.marshall().map_err(failed)?;
        let signature = signature.marshall().map_err(failed)?;
        Ok(Some(Quote { attest, signature, values }))
    }

    /// Reads registers. They may change between two commands: whoever needs them at one time compares with a quote.
    ///
    /// # Errors
    /// [`HostError::Selection`] where a register is not there.
    pub fn read_registers(
        &mut self,
        selection: &Selection,
    ) -> Result<BTreeMap<(PcrBank, PcrIndex), PcrDigest>, HostError> {
        let mut missing = selection.clone();
        let mut values = BTreeMap::new();
        while missing.values().any(|registers| !registers.is_empty()) {
            let read = self.read_some(&missing)?;
            if read.is_empty() {
                return Err(HostError::Selection);
            }
            for (bank, index) in read.keys() {
                missing.entry(*bank).or_default().remove(index);
            }
            values.extend(read);
        }
        Ok(values)
    }

    /// One command, which reads eight registers at most.
    fn read_some(&mut self, wanted: &Selection) -> Result<BTreeMap<(PcrBank, PcrIndex), PcrDigest>, HostError> {
        let command = "TPM2_PCR_Read";
        let list = selection_list(wanted).map_err(|source| HostError::command(command, source))?;
        let (_, selection, digests) = self.plain(command, |context| context.pcr_read(list))?;
        let read = selected(&selection);
        let registers = read.iter().flat_map(|(bank, registers)| registers.iter().map(|index| (*bank, *index)));
        let registers: Vec<(PcrBank, PcrIndex)> = registers.collect();
        let unexpected = || HostError::Answer { command, expected: "values of the registers that were asked for" };
        let asked = |(bank, index): &(PcrBank, PcrIndex)| wanted.get(bank).is_some_and(|set| set.contains(index));
        if registers.len() != digests.len() || !registers.iter().all(asked) {
            return Err(unexpected());
        }
        let values = registers.into_iter().zip(digests.value()).map(|((bank, index), digest)| {
            Ok(((bank, index), PcrDigest::new(bank, digest.value()).map_err(|_| unexpected())?))
        });
        values.collect()
    }
}

/// The list in the order of the banks' numbers. libtss2's binding has a builder whose order differs from run to run.
fn selection_list(selection: &Selection) -> tss_esapi::Result<PcrSelectionList> {
    let mut list = TPML_PCR_SELECTION::from(PcrSelectionList::builder().build()?);
    let wanted = selection.iter().filter(|(_, registers)| !registers.is_empty());
    for (slot, (bank, registers)) in list.pcrSelections.iter_mut().zip(wanted) {
        let slots: tss_esapi::Result<Vec<PcrSlot>> =
            registers.iter().map(|index| PcrSlot::try_from(1_u32 << index.get())).collect();
        *slot = PcrSelection::create(capability::algorithm(*bank), PcrSelectSize::ThreeOctets, &slots?)?.into();
        list.count += 1;
    }
    PcrSelectionList::try_from(list)
}

fn selected(list: &PcrSelectionList) -> Selection {
    let mut selection = Selection::new();
    for one in list.get_selections() {
        let registers: BTreeSet<PcrIndex> = one.selected().into_iter().filter_map(capability::register).collect();
        if let Some(bank) = capability::bank(one.hashing_algorithm()).filter(|_| !registers.is_empty()) {
            selection.entry(bank).or_default().extend(registers);
        }
    }
    selection
}
