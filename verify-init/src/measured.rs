//! Measuring: what boots here, into the TPM, before anything of it is looked for; and the end of the initramfs phase,
//! before anything of it runs.

use std::time::Duration;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{SrkPublic, TpmRules, TpmUse},
    measurement::Measurement,
    measurement_log::Record,
    paths::MEASUREMENT_LOG,
    pcr::PcrDigest,
};
use iofs_tpm::{
    PinnedSrk, Protected, Suspended, Tpm,
    name::Public,
    pcr::{self, ActiveBanks, ExtendError},
    presence::{Facts, Presence},
    transport::{Transport, TransportError},
};

use crate::{
    boot::Boot,
    mounted::Mounted,
    report::{refusal, text},
    system::System,
    verified::Verified,
};

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
        let what = match open(boot, &rules) {
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
    /// Ends the initramfs phase: what was bound to it is out of reach of whatever comes next.
    pub(crate) fn cap<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Capped, FailureReport> {
        let what = if boot.measuring.is_some() { "capped the initramfs phase" } else { "capped nothing" };
        measure(boot, Stage::Capped, &Measurement::LeaveInitrd)?;
        if let Some(session) = boot.measuring.as_mut().and_then(|measuring| measuring.session.take()) {
            // What could not be removed is in nobody's way: the TPM forgets it with the next reset.
            let _ = session.resume(&mut Tpm::new(Wire(boot.system))).close();
        }
        boot.reached(Stage::Capped, what);
        Ok(Capped { mounted: self })
    }
}

/// The TPM of this boot.
pub(crate) struct Measuring {
    banks: ActiveBanks,
    usage: TpmUse,
    /// A session that only the pinned TPM can answer, where one is pinned.
    session: Option<Suspended>,
}

impl Measuring {
    /// The names of the banks, in order.
    pub(crate) fn bank_names(&self) -> Vec<String> {
        self.banks.banks().map(|bank| bank.name().to_owned()).collect()
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
        let mut protected = session.resume(tpm);
        let extended = protected.extend(&self.banks, measurement.pcr(), digests);
        self.session = Some(protected.suspend());
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
fn measure<S: System>(
    boot: &mut Boot<'_, S>,
    stage: Stage,
    measurement: &Measurement<'_>,
) -> Result<(), FailureReport> {
    let Some(mut measuring) = boot.measuring.take() else {
        return Ok(());
    };
    let result = extend(boot, &mut measuring, measurement);
    let usage = measuring.usage;
    boot.measuring = Some(measuring);
    let Err(why) = result else {
        return Ok(());
    };
    let (index, kind) = (measurement.pcr(), measurement.event_type());
    let fact = format!("register {index} was not extended by the event {kind}");
    if usage == TpmUse::Required {
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
    let digests: Vec<PcrDigest> = measuring.banks.banks().map(|bank| measurement.digest(bank)).collect();
    let begun = boot.system.begin_log_record();
    let extended = measuring.extend(&mut Tpm::new(Wire(boot.system)), measurement, &digests);
    let log = |error| format!("{MEASUREMENT_LOG}: {}", text(&error));
    let boot_id = boot_id(boot);
    let microseconds = u64::try_from(boot.system.now().as_micros()).unwrap_or(u64::MAX);
    // A register whose state is unknown leaves the log torn, as it is.
    extended.map_err(|error| error.to_string())?;
    begun.map_err(log)?;
    let record = Record::new(measurement, &digests, boot_id, microseconds);
    boot.system.finish_log_record(&record.to_bytes()).map_err(log)
}

fn boot_id<S: System>(boot: &mut Boot<'_, S>) -> Option<String> {
    let text = boot.system.read("/proc/sys/kernel/random/boot_id", 64).ok()?;
    Some(String::from_utf8(text).ok()?.trim_end().replace('-', ""))
}

/// Finds the TPM and its banks. `None` where there is none and none is required.
fn open<S: System>(boot: &mut Boot<'_, S>, rules: &TpmRules) -> Result<Option<Measuring>, FailureReport> {
    let Some(patience) = patience(boot, rules.usage) else {
        return Ok(None);
    };
    let fail = |found: String| {
        let next = "switch the TPM on in the firmware's settings, or seal an image with another [tpm] use";
        refusal(Stage::Measured, "there is no TPM to measure into", "a TPM 2.0 with an active bank", found, next)
    };
    boot.system.open_tpm(patience).map_err(|error| fail(error.to_string()))?;
    let session = rules.srk.as_ref().map(|srk| protect(boot, srk)).transpose()?;
    let tpm = &mut Tpm::new(Wire(boot.system));
    let banks = pcr::active_banks(tpm).map_err(|error| fail(error.to_string()))?;
    if !banks.unknown().is_empty() {
        let unknown = banks.unknown();
        boot.warn(format!("the TPM has active banks of unknown algorithms {unknown:04x?}: they stay as they are"));
    }
    boot.system.create_folder(LOG_FOLDER, 0o755).map_err(|error| fail(text(&error)))?;
    Ok(Some(Measuring { banks, usage: rules.usage, session }))
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

/// Starts a session that only the TPM with the pinned key can answer.
fn protect<S: System>(boot: &mut Boot<'_, S>, srk: &SrkPublic) -> Result<Suspended, FailureReport> {
    let refused = |found: String| {
        let next = "boot the image on the machine that it was sealed for, or seal one for this machine; if it is that \
                    machine, somebody replaced its TPM, cleared it, or sits on the way to it";
        let fact = "this TPM is not the pinned one";
        refusal(Stage::Measured, fact, "the TPM with the sealed storage root key", found, next)
    };
    let public = Public::parse_sized(srk.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let pin = PinnedSrk::new(public).map_err(|error| refused(error.to_string()))?;
    let mut tpm = Tpm::new(Wire(boot.system));
    let protected = Protected::start(&mut tpm, &pin).map_err(|error| refused(error.to_string()))?;
    Ok(protected.suspend())
}

/// Commands go through the system.
struct Wire<'a, S>(&'a mut S);

impl<S: System> Transport for Wire<'_, S> {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.0.tpm(command)
    }
}
