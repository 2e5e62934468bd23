//! Reading and extending platform configuration registers (Part 1, section 17).

use std::collections::{BTreeMap, BTreeSet};

use iofs_policy::pcr::{self, PCR_COUNT, PcrBank, PcrDigest, PcrIndex};

use zeroize::Zeroizing;

use crate::{
    client::{CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    reader::Reader,
    response::ResponseError,
    session::{Auth, ended},
    transport::Transport,
};

/// What runs a command: with a session or without.
pub(crate) type Run<'r> = dyn FnMut(&Command) -> Result<Zeroizing<Vec<u8>>, CommandError> + 'r;

/// `TPM_CAP_PCRS` (Part 2, section 6.12): which registers each bank has.
const CAPABILITY_PCRS: u32 = 5;
/// More banks than any TPM has, so that none is left out of an answer.
const MAX_BANKS: u32 = 64;
/// Registers of one bank as a bit map (TPMS_PCR_SELECTION, Part 2, section 10.6.2), in bytes.
const MAP_SIZE: u8 = PCR_COUNT.div_ceil(8);
/// A larger bit map than any TPM has, in bytes.
const MAX_MAP_SIZE: u8 = 32;
/// A TPML_DIGEST has at most this many (Part 2, section 10.9.5).
const MAX_DIGESTS: u32 = 8;
/// How often reading starts over where registers change meanwhile. Only the kernel's IMA extends while PID 1 runs.
const READ_ATTEMPTS: u32 = 8;

/// The banks in which a TPM has registers. It comes from a TPM only, so that what is extended is what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveBanks {
    banks: BTreeMap<PcrBank, BTreeSet<PcrIndex>>,
    unknown: Vec<u16>,
}

impl ActiveBanks {
    /// The active banks that this toolkit knows, in order; at least one.
    pub fn banks(&self) -> impl Iterator<Item = PcrBank> {
        self.banks.keys().copied()
    }

    /// The registers of a bank: none where it is not active.
    pub fn registers(&self, bank: PcrBank) -> impl Iterator<Item = PcrIndex> {
        self.banks.get(&bank).into_iter().flatten().copied()
    }

    /// The algorithms (`TPM_ALG_ID`, Part 2, section 6.3) of active banks that this toolkit does not know. [`extend`] leaves
    /// them as they are, so that policies on these banks are not closed by it; [`event`] extends them too.
    pub fn unknown(&self) -> &[u16] {
        &self.unknown
    }
}

/// Why the active banks are not known.
#[derive(Debug, thiserror::Error)]
pub enum BanksError {
    /// The TPM did not say.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// There is no active bank that this toolkit knows: whatever is measured would be lost.
    #[error("TPM2_GetCapability: expected an active PCR bank of sha1, sha256, sha384 or sha512, found none of them")]
    None,
}

/// Asks for the active banks (TPM2_GetCapability, Part 3, section 30.2).
///
/// # Errors
/// See [`BanksError`].
pub fn active_banks<T: Transport>(tpm: &mut Tpm<T>) -> Result<ActiveBanks, BanksError> {
    banks_by(&mut |command| tpm.run(command))
}

pub(crate) fn banks_by(run: &mut Run<'_>) -> Result<ActiveBanks, BanksError> {
    let command = Command::new(CommandCode::GetCapability).u32(CAPABILITY_PCRS).u32(0).u32(MAX_BANKS);
    let parameters = run(&command)?;
    let active = parse_banks(&parameters).map_err(|source| malformed(command.code(), source))?;
    if active.banks.is_empty() { Err(BanksError::None) } else { Ok(active) }
}

pub(crate) fn parse_banks(parameters: &[u8]) -> Result<ActiveBanks, ResponseError> {
    let mut reader = Reader::new(parameters);
    let more = reader.u8("moreData")?;
    if more != 0 {
        return Err(value("moreData", "0, since all banks were asked for", more.into()));
    }
    let capability = reader.u32("capability")?;
    if capability != CAPABILITY_PCRS {
        return Err(value("capability", "TPM_CAP_PCRS (5)", capability));
    }
    let mut active = ActiveBanks { banks: BTreeMap::new(), unknown: Vec::new() };
    let mut seen = BTreeSet::new();
    for selection in selections(&mut reader, "assignedPCR")? {
        if !seen.insert(selection.algorithm) {
            return Err(value("assignedPCR", "each bank once", selection.algorithm.into()));
        }
        match PcrBank::from_algorithm_id(selection.algorithm) {
            _ if selection.map.iter().all(|byte| *byte == 0) => {}
            Some(bank) => {
                active.banks.insert(bank, selection.registers()?);
            }
            None => active.unknown.push(selection.algorithm),
        }
    }
    reader.end("TPM2_GetCapability's parameters")?;
    Ok(active)
}

fn value(field: &'static str, expected: &'static str, found: u32) -> ResponseError {
    ResponseError::Value { field, expected, found }
}

/// A TPMS_PCR_SELECTION (Part 2, section 10.6.2).
struct Selection<'a> {
    algorithm: u16,
    /// Bit n of byte m stands for register 8 m + n.
    map: &'a [u8],
}

impl Selection<'_> {
    fn registers(&self) -> Result<BTreeSet<PcrIndex>, ResponseError> {
        let bits = self
            .map
            .iter()
            .enumerate()
            .flat_map(|(byte, bits)| (0..8).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| byte * 8 + bit));
        bits.map(|bit| {
            let index = u8::try_from(bit).ok().and_then(|index| PcrIndex::new(index).ok());
            // MAX_MAP_SIZE keeps a bit's number below 256.
            index.ok_or(value("pcrSelect", "registers 0 to 23", bit as u32))
        })
        .collect()
    }
}

/// A TPML_PCR_SELECTION (Part 2, section 10.9.7).
fn selections<'a>(reader: &mut Reader<'a>, field: &'static str) -> Result<Vec<Selection<'a>>, ResponseError> {
    (0..reader.count(field, MAX_BANKS)?)
        .map(|_| {
            let algorithm = reader.u16("hash")?;
            let size = reader.u8("sizeofSelect")?;
            if size > MAX_MAP_SIZE {
                return Err(value("sizeofSelect", "at most 32 bytes", size.into()));
            }
            Ok(Selection { algorithm, map: reader.bytes("pcrSelect", size.into())? })
        })
        .collect()
}

/// Values of registers, all read at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrValues {
    update_counter: u32,
    values: BTreeMap<(PcrBank, PcrIndex), PcrDigest>,
}

impl PcrValues {
    /// What a register held: `None` where it was not asked for.
    pub fn get(&self, bank: PcrBank, index: PcrIndex) -> Option<PcrDigest> {
        self.values.get(&(bank, index)).copied()
    }

    /// All values, by bank and then by register.
    pub fn iter(&self) -> impl Iterator<Item = (PcrIndex, PcrDigest)> {
        self.values.iter().map(|((_, index), digest)| (*index, *digest))
    }

    /// `pcrUpdateCounter`: how many changes of registers the TPM had counted by then. Registers that are meant to change
    /// often (16 and 21 to 23 on a PC) are not counted.
    pub fn update_counter(&self) -> u32 {
        self.update_counter
    }
}

/// Why registers were not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The TPM did not say.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The TPM has no such register.
    #[error("TPM2_PCR_Read: expected a value of register {index} in the {bank} bank, found none: is the bank active?")]
    Absent {
        /// The bank.
        bank: PcrBank,
        /// The register.
        index: PcrIndex,
    },
    /// Registers changed each time that they were read.
    #[error("TPM2_PCR_Read: expected registers that hold still, found changes in each of {attempts} attempts")]
    Changing {
        /// How many times reading was started.
        attempts: u32,
    },
}

/// Reads registers (TPM2_PCR_Read, Part 3, section 22.4), all of them at one time: it takes several commands, and starts
/// over where the update counter says that something changed between them.
///
/// # Errors
/// See [`ReadError`].
pub fn read<T: Transport>(tpm: &mut Tpm<T>, wanted: &BTreeSet<(PcrBank, PcrIndex)>) -> Result<PcrValues, ReadError> {
    read_by(&mut |command| tpm.run(command), wanted)
}

pub(crate) fn read_by(run: &mut Run<'_>, wanted: &BTreeSet<(PcrBank, PcrIndex)>) -> Result<PcrValues, ReadError> {
    for _ in 0..READ_ATTEMPTS {
        if let Some(values) = read_unless_changed(run, wanted)? {
            return Ok(values);
        }
    }
    Err(ReadError::Changing { attempts: READ_ATTEMPTS })
}

/// `None` where the update counter changed between two commands.
fn read_unless_changed(
    run: &mut Run<'_>,
    wanted: &BTreeSet<(PcrBank, PcrIndex)>,
) -> Result<Option<PcrValues>, ReadError> {
    let mut missing = wanted.clone();
    let first = read_some(run, &mut missing)?;
    let mut read = PcrValues { update_counter: first.update_counter, values: first.values };
    // Each command brings at least one value, so that this ends.
    while !missing.is_empty() {
        let more = read_some(run, &mut missing)?;
        if more.update_counter != read.update_counter {
            return Ok(None);
        }
        read.values.extend(more.values);
    }
    Ok(Some(read))
}

/// One command. Takes what it read out of `missing`.
fn read_some(run: &mut Run<'_>, missing: &mut BTreeSet<(PcrBank, PcrIndex)>) -> Result<PcrValues, ReadError> {
    let command = read_command(missing);
    let parameters = run(&command)?;
    let read = parse_values(&parameters, missing).map_err(|source| malformed(command.code(), source))?;
    if let (true, Some((bank, index))) = (read.values.is_empty(), missing.first().copied()) {
        return Err(ReadError::Absent { bank, index });
    }
    missing.retain(|register| !read.values.contains_key(register));
    Ok(read)
}

fn read_command(wanted: &BTreeSet<(PcrBank, PcrIndex)>) -> Command {
    Command::new(CommandCode::PcrRead).bytes(&selection(wanted))
}

/// TPML_PCR_SELECTION (Part 2, section 10.9.7), bank by bank.
pub(crate) fn selection(wanted: &BTreeSet<(PcrBank, PcrIndex)>) -> Vec<u8> {
    let mut maps: BTreeMap<PcrBank, [u8; MAP_SIZE as usize]> = BTreeMap::new();
    for (bank, index) in wanted {
        maps.entry(*bank).or_default()[usize::from(index.get() / 8)] |= 1 << (index.get() % 8);
    }
    // At most PcrBank::ALL.len() of them.
    let mut bytes = (maps.len() as u32).to_be_bytes().to_vec();
    for (bank, map) in &maps {
        bytes.extend_from_slice(&bank.algorithm_id().to_be_bytes());
        bytes.push(MAP_SIZE);
        bytes.extend_from_slice(map);
    }
    bytes
}

/// The values are in the order of the selection that comes with them: bank by bank, then by register.
pub(crate) fn parse_values(
    parameters: &[u8],
    wanted: &BTreeSet<(PcrBank, PcrIndex)>,
) -> Result<PcrValues, ResponseError> {
    let mut reader = Reader::new(parameters);
    let update_counter = reader.u32("pcrUpdateCounter")?;
    let mut registers = Vec::new();
    for selection in selections(&mut reader, "pcrSelectionOut")? {
        let bank = PcrBank::from_algorithm_id(selection.algorithm);
        let bank = bank.ok_or(value("pcrSelectionOut", "banks that were asked for", selection.algorithm.into()))?;
        registers.extend(selection.registers()?.into_iter().map(|index| (bank, index)));
    }
    let count = reader.count("pcrValues", MAX_DIGESTS)?;
    if usize::try_from(count) != Ok(registers.len()) {
        return Err(value("pcrValues", "as many values as pcrSelectionOut says", count));
    }
    let mut values = BTreeMap::new();
    for (bank, index) in registers {
        let bytes = reader.sized("pcrValues")?;
        let digest = PcrDigest::new(bank, bytes);
        let digest = digest.map_err(|_| value("pcrValues", "the size of the bank's digests", bytes.len() as u32))?;
        if !wanted.contains(&(bank, index)) || values.insert((bank, index), digest).is_some() {
            return Err(value("pcrSelectionOut", "what was asked for, once", index.get().into()));
        }
    }
    reader.end("TPM2_PCR_Read's parameters")?;
    Ok(PcrValues { update_counter, values })
}

/// Why a register was not extended.
#[derive(Debug, thiserror::Error)]
pub enum ExtendError {
    /// The TPM did not do it, or its answer did not come through.
    #[error("extend register {index}: {source}")]
    Command {
        /// The register.
        index: PcrIndex,
        /// What happened.
        source: CommandError,
    },
    /// There is no digest for an active bank. Whoever extends it later could write history in it.
    #[error("extend register {index}: expected a digest for each active bank, found none for {bank}")]
    Missing {
        /// The register.
        index: PcrIndex,
        /// The bank.
        bank: PcrBank,
    },
    /// An active bank lacks the register: the TPM would leave it out without a word.
    #[error("extend register {index}: expected it in each active bank, found none in {bank}")]
    Absent {
        /// The register.
        index: PcrIndex,
        /// The bank.
        bank: PcrBank,
    },
    /// There is a digest too many: of a bank that is not active, or a second one of a bank.
    #[error("extend register {index}: expected one digest for each active bank, found {digest}")]
    Superfluous {
        /// The register.
        index: PcrIndex,
        /// The digest.
        digest: PcrDigest,
    },
    /// A bank's digests have an unknown size, so that the answer to TPM2_PCR_Event could not be read. Nothing was sent.
    #[error("extend register {index}: expected banks of known algorithms, found {algorithm:#06x}")]
    Unknown {
        /// The register.
        index: PcrIndex,
        /// `TPM_ALG_ID`
        algorithm: u16,
    },
    /// The TPM computed another digest of the data.
    #[error("extend register {index}: expected {expected} of the TPM, found another digest or none")]
    Digest {
        /// The register.
        index: PcrIndex,
        /// The digest that was computed here.
        expected: PcrDigest,
    },
}

/// Extends a register in all active banks by one command (TPM2_PCR_Extend, Part 3, section 22.2), authorized by the empty
/// password.
///
/// `digests` has exactly one for each of the active banks, in any order: extending one bank and leaving another would
/// leave what is sealed to that other one open.
///
/// # Errors
/// See [`ExtendError`]. After [`CommandError::Transport`] and [`CommandError::Malformed`] the register may or may not have
/// been extended: read it.
pub fn extend<T: Transport>(
    tpm: &mut Tpm<T>,
    active: &ActiveBanks,
    index: PcrIndex,
    digests: &[PcrDigest],
) -> Result<(), ExtendError> {
    let mut password =
        |command: &Command| tpm.execute(command, &mut [Auth::empty_password()]).map(|answer| answer.parameters);
    extend_by(&mut password, active, index, digests)
}

pub(crate) fn extend_by(
    run: &mut Run<'_>,
    active: &ActiveBanks,
    index: PcrIndex,
    digests: &[PcrDigest],
) -> Result<(), ExtendError> {
    let command = extend_command(active, index, digests)?;
    let done = run(&command).and_then(|parameters| ended(command.code(), &parameters));
    done.map_err(|source| ExtendError::Command { index, source })
}

/// Extends a register in all active banks, those of unknown algorithms too: the TPM is given the data itself, and hashes it
/// in each bank (TPM2_PCR_Event, Part 3, section 22.3). At most 1024 bytes; whoever is on the bus can read them.
///
/// `digests` are those of the data, exactly one for each of the active banks that are known: the TPM's are compared.
///
/// # Errors
/// See [`ExtendError`]. After [`ExtendError::Digest`] the register was extended by something else.
pub fn event<T: Transport>(
    tpm: &mut Tpm<T>,
    active: &ActiveBanks,
    index: PcrIndex,
    data: &[u8],
    digests: &[PcrDigest],
) -> Result<(), ExtendError> {
    let mut password =
        |command: &Command| tpm.execute(command, &mut [Auth::empty_password()]).map(|answer| answer.parameters);
    event_by(&mut password, active, index, data, digests)
}

pub(crate) fn event_by(
    run: &mut Run<'_>,
    active: &ActiveBanks,
    index: PcrIndex,
    data: &[u8],
    digests: &[PcrDigest],
) -> Result<(), ExtendError> {
    // What an extend would refuse is refused here.
    extend_command(active, index, digests)?;
    if let Some(algorithm) = active.unknown.iter().copied().find(|algorithm| digest_size(*algorithm).is_none()) {
        return Err(ExtendError::Unknown { index, algorithm });
    }
    let command = Command::new(CommandCode::PcrEvent).handle(index.get().into()).sized(data);
    let failed = |source| ExtendError::Command { index, source };
    let computed = event_digests(&run(&command).map_err(failed)?);
    let computed = computed.map_err(|source| failed(malformed(command.code(), source)))?;
    match digests.iter().find(|digest| !computed.contains(digest)) {
        Some(digest) => Err(ExtendError::Digest { index, expected: *digest }),
        None => Ok(()),
    }
}

/// TPML_DIGEST_VALUES (Part 2, section 10.9.6), without those of banks that are not known.
pub(crate) fn event_digests(parameters: &[u8]) -> Result<Vec<PcrDigest>, ResponseError> {
    let mut reader = Reader::new(parameters);
    let mut digests = Vec::new();
    for _ in 0..reader.count("digests", MAX_BANKS)? {
        let algorithm = reader.u16("hashAlg")?;
        let unknown = value("hashAlg", "an algorithm whose digests have a known size", algorithm.into());
        let bytes = reader.bytes("digest", digest_size(algorithm).ok_or(unknown)?)?;
        let bank = PcrBank::from_algorithm_id(algorithm);
        digests.extend(bank.and_then(|bank| PcrDigest::new(bank, bytes).ok()));
    }
    reader.end("TPM2_PCR_Event's parameters")?;
    Ok(digests)
}

/// TPMT_HA carries no size (Part 2, section 10.3.2): of SM3-256 and SHA-3 it is known too (TCG Algorithm Registry,
/// section 6.2).
fn digest_size(algorithm: u16) -> Option<usize> {
    match algorithm {
        0x0012 | 0x0027 => Some(32),
        0x0028 => Some(48),
        0x0029 => Some(64),
        known => PcrBank::from_algorithm_id(known).map(PcrBank::digest_size),
    }
}

fn extend_command(active: &ActiveBanks, index: PcrIndex, digests: &[PcrDigest]) -> Result<Command, ExtendError> {
    let mut by_bank = BTreeMap::new();
    for digest in digests {
        let known = active.banks.contains_key(&digest.bank());
        if !known || by_bank.insert(digest.bank(), digest).is_some() {
            return Err(ExtendError::Superfluous { index, digest: *digest });
        }
    }
    if let Some(bank) = active.banks().find(|bank| !by_bank.contains_key(bank)) {
        return Err(ExtendError::Missing { index, bank });
    }
    if let Some((bank, _)) = active.banks.iter().find(|(_, registers)| !registers.contains(&index)) {
        return Err(ExtendError::Absent { index, bank: *bank });
    }
    // A register's handle is its number (Part 2, section 7.2). At most PcrBank::ALL.len() digests: TPML_DIGEST_VALUES,
    // Part 2, section 10.9.6.
    let start = Command::new(CommandCode::PcrExtend).handle(index.get().into()).u32(by_bank.len() as u32);
    Ok(by_bank
        .values()
        .fold(start, |command, digest| command.u16(digest.bank().algorithm_id()).bytes(digest.as_bytes())))
}

/// What became of an extend whose answer did not come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// All banks hold what the extend makes of them.
    Extended,
    /// All banks hold what they held before.
    NotExtended,
    /// Something else happened, or cannot be told: a bank whose digests are not computed here and no other to go by, or a
    /// register that was not read.
    Other,
}

/// Tells from values read before and after what became of an extend by these digests, all banks alike.
///
/// A bank whose digests are not computed here counts as extended where it changed.
pub fn judge(before: &PcrValues, after: &PcrValues, index: PcrIndex, digests: &[PcrDigest]) -> Judgement {
    let judged = digests.iter().map(|digest| {
        let (before, after) = (before.get(digest.bank(), index)?, after.get(digest.bank(), index)?);
        let predicted = pcr::extend(&before, digest).ok();
        Some((before == after, predicted.map(|predicted| predicted == after)))
    });
    let judged: Option<Vec<(bool, Option<bool>)>> = judged.collect();
    match judged {
        Some(all) if all.is_empty() => Judgement::Other,
        Some(all) if all.iter().all(|(unchanged, _)| *unchanged) => Judgement::NotExtended,
        Some(all) if !as_predicted(&all) => Judgement::Other,
        Some(_) => Judgement::Extended,
        None => Judgement::Other,
    }
}

fn as_predicted(all: &[(bool, Option<bool>)]) -> bool {
    all.iter().any(|(_, predicted)| *predicted == Some(true))
        && all.iter().all(|(unchanged, predicted)| predicted.unwrap_or(!unchanged))
}

#[cfg(test)]
mod tests;
