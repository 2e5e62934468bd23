//! Measuring: what boots here, into the TPM, before anything of it is looked for; and the end of the initramfs phase,
//! before anything of it runs.

use std::{collections::BTreeSet, time::Duration};

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{RollbackIndex, RollbackRule, TpmRules, TpmUse},
    measurement::Measurement,
    measurement_log::Record,
    paths::MEASUREMENT_LOG,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};
use iofs_tpm::{
    Tpm,
    pcr::{self, ActiveBanks, ExtendError, Judgement, PcrValues, ReadError},
    presence::{Facts, Presence},
    rollback::CounterError,
    transport::{Transport, TransportError},
};

use crate::{
    boot::Boot,
    mounted::Mounted,
    report::{refusal, text},
    system::System,
    verified::Verified,
};

#[cfg_attr(feature = "full", path = "measured/pinned.rs")]
#[cfg_attr(not(feature = "full"), path = "measured/unpinned.rs")]
mod pinned;

use pinned::Session;

/// Where the kernel shows a TPM whose driver is bound.
const DRIVER: &str = "/sys/class/tpm";
/// Where it shows what firmware says of one.
const TABLE: &str = "/sys/firmware/acpi/tables";
/// Where systemd keeps the measurement log.
const LOG_FOLDER: &str = "/run/log/systemd";
/// Driver and device node of a TPM that firmware told of take less.
const PATIENCE: Duration = Duration::from_secs(5);
/// A required TPM may be one that firmware does not tell of.
const MORE_PATIENCE: Duration = Duration::from_secs(15);
/// As much of an event as a report shows.
const MAX_EVENT_TEXT: usize = 120;

/// What runs was measured, as far as the sealed rules demand it.
pub(crate) struct Measured {
    pub(crate) verified: Verified,
}

/// The initramfs phase is over.
pub(crate) struct Capped {
    pub(crate) mounted: Mounted,
}

impl Verified {
    /// Measures the phase, the command line and the manifest.
    pub(crate) fn measure<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Measured, FailureReport> {
        let rules = self.manifest.manifest().tpm.clone();
        let index = self.manifest.manifest().image.rollback_index;
        let what = match open(boot, &rules, index) {
            Ok(Some(measuring)) => {
                boot.measuring = Some(measuring);
                let debug = self.manifest.manifest().image.debug;
                let [enter, line, manifest, _] =
                    Measurement::of_boot(&self.raw_command_line, self.manifest.digest(), debug);
                for measurement in [enter, line, manifest] {
                    measure(boot, Stage::Measured, &measurement)?;
                }
                boot.measuring.as_ref().map_or(String::new(), Measuring::description)
            }
            Ok(None) => "measured nothing: no TPM".to_owned(),
            Err(refusal) if rules.usage == TpmUse::Required => return Err(refusal),
            Err(refusal) => {
                boot.warn(format!("{}: {}", refusal.fact, refusal.found));
                "measured nothing".to_owned()
            }
        };
        boot.reached(Stage::Measured, &what);
        Ok(Measured { verified: self })
    }
}

impl Mounted {
    /// Ends the initramfs phase, unless it ended when the last volume was opened, and makes sure of it: what was bound to it
    /// is out of reach of whatever comes next.
    pub(crate) fn cap<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Capped, FailureReport> {
        let what = match &boot.measuring {
            None => "capped nothing",
            Some(measuring) if measuring.closed.is_some() => "confirmed the end of the initramfs phase",
            Some(_) => "capped the initramfs phase",
        };
        match boot.measuring.as_ref().and_then(|measuring| measuring.closed.clone()) {
            Some(closed) => confirm(boot, &closed)?,
            None => measure(boot, Stage::Capped, &Measurement::LeaveInitrd)?,
        }
        if let Some(session) = boot.measuring.as_mut().and_then(|measuring| measuring.session.take()) {
            // What could not be removed is in nobody's way: the TPM forgets it with the next reset.
            session.close(&mut Tpm::new(Wire(boot.system)));
        }
        boot.reached(Stage::Capped, what);
        Ok(Capped { mounted: self })
    }
}

/// Ends the initramfs phase right after the last secret was taken from the TPM, and sees to it that every bank shows that:
/// a bank that was left out would give the secret again.
pub(crate) fn leave<S: System>(boot: &mut Boot<'_, S>, stage: Stage) -> Result<(), FailureReport> {
    let before = read_phases(boot);
    measure(boot, stage, &Measurement::LeaveInitrd)?;
    let (Some(measuring), Some(before)) = (&boot.measuring, before) else { return Ok(()) };
    let digests = measuring.digests(&Measurement::LeaveInitrd);
    let after = read_phases(boot);
    let closed = before.and_then(|before| {
        let after = after.unwrap_or_else(|| Err("the TPM is gone".to_owned()))?;
        match pcr::judge(&before, &after, PcrIndex::PHASES, &digests) {
            Judgement::Extended => Ok(after),
            Judgement::NotExtended => Err("every bank holds what it held before".to_owned()),
            Judgement::Other => Err(format!("the banks hold {}", listed(&after))),
        }
    });
    match closed {
        Ok(after) => {
            if let Some(measuring) = &mut boot.measuring {
                measuring.closed = Some(after);
            }
            Ok(())
        }
        Err(why) => not_closed(boot, stage, &why),
    }
}

/// The register of the phases holds what it held when the phase was closed, in every bank.
fn confirm<S: System>(boot: &mut Boot<'_, S>, closed: &PcrValues) -> Result<(), FailureReport> {
    let found = read_phases(boot).unwrap_or_else(|| Err("the TPM is gone".to_owned()));
    let same = |found: &PcrValues| found.iter().eq(closed.iter());
    match found {
        Ok(found) if same(&found) => Ok(()),
        Ok(found) => not_closed(boot, Stage::Capped, &format!("{} instead of {}", listed(&found), listed(closed))),
        Err(why) => not_closed(boot, Stage::Capped, &why),
    }
}

/// Closes the phase once more, for what that is worth, and says what is wrong.
fn not_closed<S: System>(boot: &mut Boot<'_, S>, stage: Stage, why: &str) -> Result<(), FailureReport> {
    measure(boot, stage, &Measurement::LeaveInitrd)?;
    let fact = "the end of the initramfs phase cannot be confirmed in every bank of the TPM";
    if boot.measuring.as_ref().is_none_or(|measuring| measuring.must_hold) {
        let next = "switch the machine off and on; if this repeats, the TPM or the way to it is failing or manipulated";
        return Err(refusal(stage, fact, "register 11 extended by leave-initrd in each active bank", why, next));
    }
    boot.warn(format!("{fact}: {why}"));
    Ok(())
}

fn listed(values: &PcrValues) -> String {
    values.iter().map(|(index, digest)| format!("{index}:{digest}")).collect::<Vec<_>>().join(", ")
}

/// The register of the phases in every bank. Nothing where nothing is measured.
fn read_phases<S: System>(boot: &mut Boot<'_, S>) -> Option<Result<PcrValues, String>> {
    let mut measuring = boot.measuring.take()?;
    let wanted = measuring.banks.banks().map(|bank| (bank, PcrIndex::PHASES)).collect();
    let values = measuring.read(&mut Tpm::new(Wire(boot.system)), &wanted);
    boot.measuring = Some(measuring);
    Some(values.map_err(|error| error.to_string()))
}

/// The TPM of this boot.
pub(crate) struct Measuring {
    banks: ActiveBanks,
    /// Whether what cannot be measured stops the boot: where that is sealed, and once the TPM gave a secret.
    must_hold: bool,
    /// The register of the phases, once the initramfs phase was closed before its time.
    closed: Option<PcrValues>,
    /// What was measured so far, for people.
    events: Vec<(PcrIndex, String)>,
    /// A session that only the pinned TPM can answer, where one is pinned.
    session: Option<Session>,
}

impl Measuring {
    /// The names of the banks, in order.
    pub(crate) fn bank_names(&self) -> Vec<String> {
        self.banks.banks().map(|bank| bank.name().to_owned()).collect()
    }

    /// From here on every measurement must succeed: the TPM gave a secret to this boot.
    #[cfg(feature = "full")]
    pub(crate) fn hold(&mut self) {
        self.must_hold = true;
    }

    /// What this boot added to a register.
    #[cfg(feature = "full")]
    pub(crate) fn added(&self, index: PcrIndex) -> String {
        let of_register = self.events.iter().filter(|(register, _)| *register == index);
        of_register.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", then ")
    }

    /// Command lines are long, and not all of them is of interest.
    fn remember(&mut self, measurement: &Measurement<'_>) {
        let text: String = String::from_utf8_lossy(&measurement.bytes()).chars().take(MAX_EVENT_TEXT).collect();
        self.events.push((measurement.pcr(), text));
    }

    fn digests(&self, measurement: &Measurement<'_>) -> Vec<PcrDigest> {
        self.banks.banks().map(|bank| measurement.digest(bank)).collect()
    }

    fn read<T: Transport>(
        &mut self,
        tpm: &mut Tpm<T>,
        wanted: &BTreeSet<(PcrBank, PcrIndex)>,
    ) -> Result<PcrValues, ReadError> {
        let Some(session) = self.session.take() else {
            return pcr::read(tpm, wanted);
        };
        let (session, values) = session.read(tpm, wanted);
        self.session = session;
        values
    }

    fn extend<T: Transport>(
        &mut self,
        tpm: &mut Tpm<T>,
        measurement: &Measurement<'_>,
        digests: &[PcrDigest],
    ) -> Result<(), ExtendError> {
        let Some(session) = self.session.take() else {
            return pcr::extend(tpm, &self.banks, measurement.pcr(), digests);
        };
        let (session, extended) = session.extend(tpm, &self.banks, measurement.pcr(), digests);
        self.session = session;
        extended
    }

    fn description(&self) -> String {
        let session = if self.session.is_some() { ", by the pinned TPM" } else { "" };
        format!("measured command line and manifest ({}{session})", self.bank_names().join(", "))
    }
}

/// After a failure: what is bound to the initramfs phase is out of reach, whatever the machine does next. Says why where
/// that could not be done.
pub(crate) fn cap_after_failure<S: System>(boot: &mut Boot<'_, S>) -> Option<String> {
    let mut measuring = boot.measuring.take()?;
    let protected = measuring.session.is_some();
    let why = extend(boot, &mut measuring, &Measurement::LeaveInitrd).err()?;
    // A session that failed stays useless. Without one, whoever is on the bus can still undo this, but need not be there.
    measuring.session = None;
    if protected { extend(boot, &mut measuring, &Measurement::LeaveInitrd).err() } else { Some(why) }
}

/// Measures and logs. Without a TPM nothing is done.
pub(crate) fn measure<S: System>(
    boot: &mut Boot<'_, S>,
    stage: Stage,
    measurement: &Measurement<'_>,
) -> Result<(), FailureReport> {
    let Some(mut measuring) = boot.measuring.take() else {
        return Ok(());
    };
    let result = extend(boot, &mut measuring, measurement);
    let must_hold = measuring.must_hold;
    boot.measuring = Some(measuring);
    let Err(why) = result else {
        return Ok(());
    };
    let (index, kind) = (measurement.pcr(), measurement.event_type());
    let fact = format!("register {index} was not extended by the event {kind}");
    if must_hold {
        let next = "switch the machine off and on; if this repeats, the TPM or the way to it is failing or manipulated";
        return Err(refusal(stage, fact, "a measurement in each active bank, and its record", why, next));
    }
    boot.warn(format!("{fact}: {why}"));
    Ok(())
}

/// Extends the register in all banks, between the two halves of writing the log: whoever is stopped in between leaves a log
/// that says so.
fn extend<S: System>(
    boot: &mut Boot<'_, S>,
    measuring: &mut Measuring,
    measurement: &Measurement<'_>,
) -> Result<(), String> {
    let digests = measuring.digests(measurement);
    let begun = boot.system.begin_log_record();
    let extended = measuring.extend(&mut Tpm::new(Wire(boot.system)), measurement, &digests);
    let log = |error| format!("{MEASUREMENT_LOG}: {}", text(&error));
    let boot_id = boot_id(boot);
    let microseconds = u64::try_from(boot.system.now().as_micros()).unwrap_or(u64::MAX);
    // A register whose state is unknown leaves the log torn, as it is.
    extended.map_err(|error| error.to_string())?;
    measuring.remember(measurement);
    begun.map_err(log)?;
    let record = Record::new(measurement, &digests, boot_id, microseconds);
    boot.system.finish_log_record(&record.to_bytes()).map_err(log)
}

fn boot_id<S: System>(boot: &mut Boot<'_, S>) -> Option<String> {
    let text = boot.system.read("/proc/sys/kernel/random/boot_id", 64).ok()?;
    Some(String::from_utf8(text).ok()?.trim_end().replace('-', ""))
}

/// Finds the TPM and its banks. `None` where there is none and none is required.
fn open<S: System>(
    boot: &mut Boot<'_, S>,
    rules: &TpmRules,
    image: RollbackIndex,
) -> Result<Option<Measuring>, FailureReport> {
    let Some(patience) = patience(boot, rules.usage) else {
        return Ok(None);
    };
    let fail = |found: String| {
        let next = "switch the TPM on in the firmware's settings, or seal an image with another [tpm] use";
        refusal(Stage::Measured, "there is no TPM to measure into", "a TPM 2.0 with an active bank", found, next)
    };
    boot.system.open_tpm(patience).map_err(|error| fail(error.to_string()))?;
    let mut session = rules.srk.as_ref().map(|srk| Session::start(boot, srk)).transpose()?;
    if let Some(rule) = &rules.rollback {
        // A manifest with the rule pins a TPM. Without a session nothing would be known, and nothing older refused.
        let read = session.take().map(|session| session.counter(&mut Tpm::new(Wire(boot.system)), rule.counter));
        let (kept, counter) = read.unwrap_or((None, Err(CounterError::Absent { index: rule.counter })));
        session = kept;
        not_older(rule, image, counter)?;
    }
    let tpm = &mut Tpm::new(Wire(boot.system));
    let banks = pcr::active_banks(tpm).map_err(|error| fail(error.to_string()))?;
    if !banks.unknown().is_empty() {
        let unknown = banks.unknown();
        boot.warn(format!("the TPM has active banks of unknown algorithms {unknown:04x?}: they stay as they are"));
    }
    boot.system.create_folder(LOG_FOLDER, 0o755).map_err(|error| fail(text(&error)))?;
    Ok(Some(Measuring { banks, must_hold: rules.usage == TpmUse::Required, closed: None, events: Vec::new(), session }))
}

/// The image is not older than what was confirmed on this machine. Before anything is measured: a boot that is refused adds
/// nothing to the registers.
fn not_older(
    rule: &RollbackRule,
    image: RollbackIndex,
    counter: Result<u64, CounterError>,
) -> Result<(), FailureReport> {
    let refused = |fact, expected, found, next| Err(refusal(Stage::Measured, fact, expected, found, next));
    match counter.map(|counter| (counter, rule.floor(counter))) {
        Ok((_, floor)) if image >= floor => Ok(()),
        Ok((counter, floor)) => refused(
            "the image is older than this machine accepts",
            format!("rollback index {floor} or higher, as the TPM's counter says ({counter})"),
            format!("rollback index {image}"),
            "boot the release that was confirmed last, or a newer one",
        ),
        Err(error) => refused(
            "the TPM's rollback counter cannot be read",
            format!("the counter that was enrolled, at NV index {:#010x}", rule.counter),
            error.to_string(),
            "open the volumes with their recovery keys on another system, enrol the counter again with iofs-sign enroll \
             --rollback-counter, and seal a release with what it prints",
        ),
    }
}

/// How long to wait for a TPM, if at all.
fn patience<S: System>(boot: &mut Boot<'_, S>, usage: TpmUse) -> Option<Duration> {
    let mut there =
        |folder: &str, name: &str| boot.system.list(folder).is_ok_and(|names| names.iter().any(|one| one == name));
    match usage {
        TpmUse::Off => None,
        TpmUse::Required => Some(MORE_PATIENCE),
        TpmUse::Preferred => match (Facts { driver: there(DRIVER, "tpm0"), firmware: there(TABLE, "TPM2") }).presence()
        {
            Presence::Ready | Presence::Late => Some(PATIENCE),
            Presence::Absent => None,
        },
    }
}

/// Commands go through the system.
pub(crate) struct Wire<'a, S>(pub(crate) &'a mut S);

impl<S: System> Transport for Wire<'_, S> {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.0.tpm(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollback_an_image_older_than_the_counter_says_is_refused() {
        let rule = RollbackRule { counter: 0x0180_494f, value: 7, index: RollbackIndex(3) };
        let check = |image, counter| not_older(&rule, RollbackIndex(image), counter);
        assert_eq!(check(3, Ok(7)), Ok(()));
        assert_eq!(check(9, Ok(8)), Ok(()));
        let refused = check(3, Ok(8)).unwrap_err().to_string();
        for text in [
            "the image is older than this machine accepts",
            "rollback index 4 or higher, as the TPM's counter says (8)",
            "found:    rollback index 3",
            "boot the release that was confirmed last",
        ] {
            assert!(refused.contains(text), "{refused}");
        }
        let gone = check(3, Err(CounterError::Absent { index: rule.counter })).unwrap_err().to_string();
        assert!(gone.contains("NV index 0x0180494f") && gone.contains("found nothing"), "{gone}");
    }
}
