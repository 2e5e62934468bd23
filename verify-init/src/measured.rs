//! Measuring: what boots here, into the TPM, before anything of it is looked for; and the end of the initramfs phase,
//! before anything of it runs.

use std::time::Duration;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{TpmRules, TpmUse},
    measurement::Measurement,
    measurement_log::Record,
    paths::MEASUREMENT_LOG,
    pcr::PcrDigest,
};
use iofs_tpm::{
    Tpm,
    pcr::{self, ActiveBanks},
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
            Ok(Some(banks)) => {
                boot.measuring = Some(Measuring { banks, usage: rules.usage });
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
        boot.reached(Stage::Capped, what);
        Ok(Capped { mounted: self })
    }
}

/// The TPM of this boot.
pub(crate) struct Measuring {
    banks: ActiveBanks,
    usage: TpmUse,
}

impl Measuring {
    /// The names of the banks, in order.
    pub(crate) fn bank_names(&self) -> Vec<String> {
        self.banks.banks().map(|bank| bank.name().to_owned()).collect()
    }

    fn description(&self) -> String {
        format!("measured command line and manifest ({})", self.bank_names().join(", "))
    }
}

/// After a failure: what is bound to the initramfs phase is out of reach, whatever the machine does next. Says why where
/// that could not be done.
pub(crate) fn cap_after_failure<S: System>(boot: &mut Boot<'_, S>) -> Option<String> {
    let measuring = boot.measuring.take()?;
    extend(boot, &measuring.banks, &Measurement::LeaveInitrd).err()
}

/// Measures and logs. Without a TPM nothing is done.
fn measure<S: System>(
    boot: &mut Boot<'_, S>,
    stage: Stage,
    measurement: &Measurement<'_>,
) -> Result<(), FailureReport> {
    let Some(measuring) = boot.measuring.take() else {
        return Ok(());
    };
    let result = extend(boot, &measuring.banks, measurement);
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
fn extend<S: System>(boot: &mut Boot<'_, S>, banks: &ActiveBanks, measurement: &Measurement<'_>) -> Result<(), String> {
    let digests: Vec<PcrDigest> = banks.banks().map(|bank| measurement.digest(bank)).collect();
    let begun = boot.system.begin_log_record();
    let extended = pcr::extend(&mut Tpm::new(Wire(boot.system)), banks, measurement.pcr(), &digests);
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
fn open<S: System>(boot: &mut Boot<'_, S>, rules: &TpmRules) -> Result<Option<ActiveBanks>, FailureReport> {
    if rules.usage == TpmUse::Off {
        return Ok(None);
    }
    let told = [(DRIVER, "tpm0"), (TABLE, "TPM2")]
        .iter()
        .any(|(folder, name)| boot.system.list(folder).is_ok_and(|names| names.iter().any(|one| one == name)));
    let patience = match (rules.usage, told) {
        (TpmUse::Required, _) => MORE_PATIENCE,
        (_, true) => PATIENCE,
        (_, false) => return Ok(None),
    };
    let fail = |found: String| {
        let next = "switch the TPM on in the firmware's settings, or seal an image with another [tpm] use";
        refusal(Stage::Measured, "there is no TPM to measure into", "a TPM 2.0 with an active bank", found, next)
    };
    boot.system.open_tpm(patience).map_err(|error| fail(error.to_string()))?;
    let banks = pcr::active_banks(&mut Tpm::new(Wire(boot.system))).map_err(|error| fail(error.to_string()))?;
    if !banks.unknown().is_empty() {
        boot.warn(format!(
            "the TPM has active banks of unknown algorithms {:04x?}: they stay as they are",
            banks.unknown()
        ));
    }
    boot.system.create_folder("/run/log/systemd", 0o755).map_err(|error| fail(text(&error)))?;
    Ok(Some(banks))
}

/// Commands go through the system.
struct Wire<'a, S>(&'a mut S);

impl<S: System> Transport for Wire<'_, S> {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.0.tpm(command)
    }
}
