//! What `iofs-sign enroll` binds a key to.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use iofs_policy::{
    manifest::{RollbackIndex, RollbackRule},
    paths::BOOT_RECORD,
    pcr::{PcrBank, PcrDigest, PcrIndex},
    pcr_signature::PcrSignatures,
    release::Release,
};
use iofs_sign::{
    attest::{self, references},
    enroll::{
        registers::{self, Registers},
        rollback,
        tpm::{SignedPlan, TpmPlan, TpmSide},
        volume::Volume,
    },
    report::{ExitStatus, Failure, Output},
    sealed::bad_input,
    status,
};
use iofs_tpm::rollback::DEFAULT_INDEX;

use super::attest_tpm::{Handle, parse_nv_index};

/// The largest file of signatures, in bytes.
const MAX_SIGNATURES: usize = 1 << 20;
/// The registers that verify-init measures into before it opens volumes.
const PREDICTED: [PcrIndex; 3] = [PcrIndex::PHASES, PcrIndex::COMMAND_LINE, PcrIndex::MANIFEST];

/// What the TPM is to look at.
#[derive(Debug, clap::Args)]
pub(super) struct RegisterArguments {
    /// The release that boots: the registers 11 to 13 are bound to what it measures (a release statement, or the directory
    /// that 'iofs-sign seal' wrote)
    #[arg(long, value_name = "RELEASE", requires = "key")]
    release: Option<PathBuf>,
    /// A public key that must have signed the release (SubjectPublicKeyInfo PEM)
    #[arg(long, value_name = "PUBLIC", requires = "release")]
    key: Vec<PathBuf>,
    /// How many of the keys must have signed
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: u8,
    /// The kernel command line that it boots with, as /proc/cmdline shows it [default: that of the release]
    #[arg(long, value_name = "TEXT", requires = "release")]
    command_line: Option<String>,
    /// Registers whose values are sealed, as 7+11:sha256: 11 to 13 as the release predicts them, others as they are now
    /// [default: 11+12+13 with --release, else none]
    #[arg(long, value_name = "PCRS")]
    pcrs: Option<Registers>,
    /// End with the TPM's rollback counter: once 'mark-good' confirmed a release with a higher rollback index, the TPM opens
    /// the volume for this one no more. With --pcr-policy the key's signatures have the release's index in them, and one
    /// enrolment is for 64 of them. The counter is made where there is none [default index: 0x0180494f]
    #[arg(long, value_name = "INDEX", value_parser = parse_nv_index, num_args = 0..=1, require_equals = true)]
    rollback_counter: Option<Option<Handle>>,
    /// The lowest rollback index that opens the volume, with --pcr-policy [default: that of --release, else of the running
    /// release]
    #[arg(long, value_name = "N", requires = "rollback_counter", requires = "pcr_policy", conflicts_with = "release")]
    rollback_index: Option<u64>,
    /// A public key (PEM) whose signatures say what registers may hold, so that an update needs no new enrolment
    #[arg(long, value_name = "PUBLIC")]
    pcr_policy: Option<PathBuf>,
    /// The registers that it signs
    #[arg(long, value_name = "PCRS", default_value = "11", requires = "pcr_policy")]
    pcr_policy_pcrs: Registers,
    /// What it signed (tpm2-pcr-signature.json), to prove the enrolment with
    #[arg(long, value_name = "FILE", requires = "pcr_policy")]
    pcr_signature: Option<PathBuf>,
}

impl RegisterArguments {
    /// Whether it was said what the key is bound to, were it nothing.
    pub(super) fn are_given(&self) -> bool {
        self.release.is_some() || self.pcrs.is_some() || self.pcr_policy.is_some()
    }

    /// Whether the key ends with a rollback counter.
    pub(super) fn have_counter(&self) -> bool {
        self.rollback_counter.is_some()
    }

    /// Combinations that would do something else than their author thinks.
    pub(super) fn check(&self, pin: bool) -> Result<(), Failure> {
        let usage = |fact: &str, next: &str| Err(Failure::new(ExitStatus::Usage, fact).next(next));
        let literal = self.pcrs.as_ref().map(|registers| &registers.pcrs);
        if literal.is_some_and(BTreeSet::is_empty) && self.pcr_policy.is_none() && !pin {
            return usage(
                "--pcrs: expected registers, found none, and neither --pin nor --pcr-policy: \
                 whoever has the machine would have the data",
                "name registers, add --pin, or use --pcr-policy",
            );
        }
        let predicted = |pcr: &PcrIndex| PREDICTED.contains(pcr);
        if self.release.is_some() && literal.is_some_and(|pcrs| !pcrs.iter().any(predicted)) {
            return usage(
                "--pcrs: expected one of 11, 12 and 13 with --release, found none: the release would not count",
                "leave --pcrs or --release out",
            );
        }
        if self.rollback_counter.is_some() && self.pcr_policy.is_none() {
            if self.release.is_none() {
                return usage(
                    "--rollback-counter: expected what tells this release from older ones, found none",
                    "add --release SEALED --key PUBLIC, or --pcr-policy PUBLIC for signatures with a rollback index",
                );
            }
            if !self.literal().pcrs.contains(&PcrIndex::MANIFEST) {
                return usage(
                    "--rollback-counter: expected register 13 among those whose values are sealed, found others: by it the \
                     TPM tells this release from older ones",
                    "add 13 to --pcrs",
                );
            }
        }
        match self.both_literal_and_signed() {
            Some(both) => usage(
                &format!(
                    "PCR {both} is in --pcr-policy-pcrs and would be sealed too: an update would change it, signed or not"
                ),
                "leave it out of one of them",
            ),
            None => Ok(()),
        }
    }

    /// The registers whose values are sealed.
    fn literal(&self) -> Registers {
        match (&self.pcrs, &self.release) {
            (Some(registers), _) => registers.clone(),
            (None, Some(_)) => Registers { pcrs: PREDICTED.into(), bank: None },
            (None, None) => Registers::default(),
        }
    }

    fn both_literal_and_signed(&self) -> Option<PcrIndex> {
        self.pcr_policy.as_ref()?;
        self.literal().pcrs.intersection(&self.pcr_policy_pcrs.pcrs).next().copied()
    }

    /// What the key is bound to: without PIN and handle.
    ///
    /// # Errors
    /// The release does not verify, a file is malformed, or the TPM lacks the bank.
    pub(super) fn plan(
        &self,
        volume: &Volume,
        dry_run: bool,
        tpm: &mut TpmSide,
        output: Output,
    ) -> Result<TpmPlan, Failure> {
        let literal = self.literal();
        let bank = self.bank(&literal, tpm)?;
        let release = self.release(output)?;
        let mut values = self.predicted(release.as_ref(), bank)?;
        values.retain(|pcr, _| literal.pcrs.contains(pcr));
        let predicted = values.keys().copied().collect();
        let now = literal.pcrs.iter().filter(|pcr| !values.contains_key(pcr)).copied().collect();
        values.extend(tpm.values(bank, &now)?);
        if now.contains(&PcrIndex::PHASES) {
            output
                .warn("PCR 11 is taken as it is now: verify-init opens volumes earlier, when it holds something else");
        }
        let signed = self.signed()?;
        let rollback = self.rollback(volume, dry_run, release.as_ref(), tpm, output)?;
        Ok(TpmPlan { bank, values, predicted, signed, rollback, pin: None, persistent: None, legacy: false })
    }

    /// Where the TPM's counter ends it. A dry run makes no counter.
    fn rollback(
        &self,
        volume: &Volume,
        dry_run: bool,
        release: Option<&Release>,
        tpm: &mut TpmSide,
        output: Output,
    ) -> Result<Option<RollbackRule>, Failure> {
        let Some(counter) = self.rollback_counter else { return Ok(None) };
        let index = self.rollback_index(release)?;
        let counter = counter.map_or(DEFAULT_INDEX, |index| index.0);
        let value = match tpm.rollback_counter(counter)? {
            Some(value) => value,
            None if dry_run => {
                output.warn(format_args!("rollback counter {counter:#010x}: there is none, it would be made"));
                return Ok(None);
            }
            None => tpm.provide_counter(counter)?,
        };
        rollback::limit(counter, value, index, &rollback::known(volume, counter)).map(Some)
    }

    fn rollback_index(&self, release: Option<&Release>) -> Result<RollbackIndex, Failure> {
        if let Some(index) = release.map(|release| release.image.rollback_index) {
            return Ok(index);
        }
        match self.rollback_index {
            Some(index) => Ok(RollbackIndex(index)),
            None => running_index(),
        }
    }

    /// The release, verified.
    fn release(&self, output: Output) -> Result<Option<Release>, Failure> {
        let Some(path) = &self.release else { return Ok(None) };
        let keys = references::trusted_keys(&self.key, self.threshold)?;
        keys.keys().iter().for_each(|key| super::warn_example(key.id(), output));
        let release = references::release(path, &keys)?;
        if release.image.debug {
            output.warn("this is a release of a debug image: whoever sits at its console has a shell");
        }
        Ok(Some(release))
    }

    /// The values that the release leads to.
    fn predicted(&self, release: Option<&Release>, bank: PcrBank) -> Result<BTreeMap<PcrIndex, PcrDigest>, Failure> {
        let (Some(release), Some(path)) = (release, &self.release) else { return Ok(BTreeMap::new()) };
        let line = self.command_line(path, release)?;
        let values = registers::predicted(release, line, bank);
        values.map_err(|error| Failure::new(ExitStatus::System, format!("predict: {error}")))
    }

    fn bank(&self, literal: &Registers, tpm: &mut TpmSide) -> Result<PcrBank, Failure> {
        let bank = match (literal.bank, self.pcr_policy_pcrs.bank) {
            (Some(one), Some(other)) if one != other => {
                let fact = format!("--pcrs and --pcr-policy-pcrs: expected one bank, found {one} and {other}");
                return Err(Failure::new(ExitStatus::Usage, fact).next("name the same bank in both"));
            }
            (one, other) => one.or(other).unwrap_or(PcrBank::Sha256),
        };
        if !tpm.has_bank(bank)? {
            return Err(Failure::new(ExitStatus::Missing, format!("the TPM's {bank} bank is not active"))
                .next("activate it in the firmware's setup, or name another one: --pcrs 11+12+13:sha384"));
        }
        Ok(bank)
    }

    fn command_line<'a>(&'a self, path: &Path, release: &'a Release) -> Result<&'a str, Failure> {
        match (&self.command_line, release.command_lines.as_slice()) {
            (Some(line), _) => Ok(line),
            (None, [only]) => Ok(only),
            (None, lines) => {
                let fact = format!("{}: expected one command line, found {}", path.display(), lines.len());
                Err(Failure::new(ExitStatus::Usage, fact)
                    .next("give the one that this machine boots with: --command-line"))
            }
        }
    }

    fn signed(&self) -> Result<Option<SignedPlan>, Failure> {
        let Some(path) = &self.pcr_policy else { return Ok(None) };
        let (pem, key) = super::read_policy_key(path)?;
        let pcrs = self.pcr_policy_pcrs.pcrs.clone();
        if pcrs.is_empty() {
            return Err(Failure::new(ExitStatus::Usage, "--pcr-policy-pcrs: expected registers, found none")
                .next("leave it out for register 11"));
        }
        let signatures = self.pcr_signature.as_deref().map(read_signatures).transpose()?;
        Ok(Some(SignedPlan { pcrs, pem, key, signatures }))
    }
}

fn running_index() -> Result<RollbackIndex, Failure> {
    let record = status::read(Path::new(BOOT_RECORD)).map_err(|failure| {
        let fact = format!(
            "--rollback-counter: expected --rollback-index or this boot's record, found neither: {}",
            failure.fact
        );
        Failure::new(ExitStatus::Usage, fact)
            .next("say which is the oldest release that is to open the volume: --rollback-index N")
    });
    Ok(record?.rollback_index)
}

fn read_signatures(path: &Path) -> Result<PcrSignatures, Failure> {
    let bytes = attest::read(path, MAX_SIGNATURES)?;
    PcrSignatures::parse(&bytes).map_err(|error| bad_input(path, &error))
}
