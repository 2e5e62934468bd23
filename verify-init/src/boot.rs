//! The boot, from the first instruction to the real init or to the sealed failure action.

use std::time::Duration;

use iofs_policy::{
    boot_record::StageTime,
    failure::{FailureAction, FailureReport, Stage},
};

use crate::{
    measured::{self, Measuring},
    modules::Modules,
    report,
    slots::{Trial, action_after},
    started::Started,
    system::System,
};

/// More warnings than these are dropped: their sources (modules, the command line) are not all ours.
const MAX_WARNINGS: usize = 64;

/// Boots: ends in the real init, or reports and takes the sealed action. A real system never returns.
pub fn boot<S: System>(system: &mut S) -> S::Gone {
    let mut boot = Boot::new(system);
    match stages(&mut boot) {
        Ok(gone) => gone,
        Err(refusal) => boot.refuse(&refusal),
    }
}

/// Each stage takes what the one before returned, so that none can be skipped or moved.
fn stages<S: System>(boot: &mut Boot<'_, S>) -> Result<S::Gone, FailureReport> {
    Started::start(boot)? // kernel file systems, sealed files
        .verify(boot)? // signature, identity, rollback floor, command line
        .choose(boot)? // one of two slots, where there are some; then phase, command line and manifest, into the TPM
        .find(boot)? // modules, devices
        .unlock(boot)? // LUKS2 volumes; then the initramfs phase ends, where there are any
        .map(boot)? // dm-verity
        .mount(boot)? // erofs, overlay
        .cap(boot)? // the initramfs phase has ended
        .switch(boot) // the real root and its init
}

/// How much is said on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum Verbosity {
    /// Warnings and refusals.
    Quiet,
    /// One line for each stage.
    Normal,
    /// Each module and mount too.
    Debug,
}

/// The machine, and what is known of this boot whatever its stage.
pub(crate) struct Boot<'a, S> {
    pub(crate) system: &'a mut S,
    pub(crate) stages: Vec<StageTime>,
    pub(crate) warnings: Vec<String>,
    /// From when on something was measured.
    pub(crate) measuring: Option<Measuring>,
    /// From when on one of two slots was chosen.
    pub(crate) slots: Option<Trial>,
    /// Once devices were searched: what is loaded already is not loaded again.
    pub(crate) modules: Option<Modules>,
    action: FailureAction,
    /// Unknown until the command line was accepted: what was said before waits in `pending`.
    verbosity: Option<Verbosity>,
    pending: Vec<String>,
    since: Duration,
}

impl<'a, S: System> Boot<'a, S> {
    pub(crate) fn new(system: &'a mut S) -> Self {
        // Nothing was read yet that could say otherwise, and a machine that is off does no harm.
        let action = FailureAction::PowerOff;
        system.arm(action);
        let since = system.now();
        let (stages, warnings, pending) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            system,
            stages,
            warnings,
            measuring: None,
            slots: None,
            modules: None,
            action,
            verbosity: None,
            pending,
            since,
        }
    }

    /// Sets what a failure does from here on.
    pub(crate) fn set_action(&mut self, action: FailureAction) {
        self.action = action;
        self.system.arm(action);
    }

    /// Sets how much is said, and says what waited for it.
    pub(crate) fn set_verbosity(&mut self, verbosity: Verbosity) {
        self.verbosity = Some(verbosity);
        let pending = std::mem::take(&mut self.pending);
        if verbosity >= Verbosity::Normal {
            pending.iter().for_each(|line| self.print(line));
        }
    }

    /// Notes that a stage was reached, and says so.
    pub(crate) fn reached(&mut self, stage: Stage, what: &str) {
        let now = self.system.now();
        let took = now.saturating_sub(self.since);
        self.since = now;
        self.stages.push(StageTime { stage, reached_ns: nanoseconds(now), took_ns: nanoseconds(took) });
        let line = format!("verify-init: {what} {} ms", report::milliseconds(took));
        match self.verbosity {
            None => self.pending.push(line),
            Some(verbosity) if verbosity >= Verbosity::Normal => self.print(&line),
            Some(_) => {}
        }
    }

    /// Says what is of interest when something does not work.
    pub(crate) fn debug(&mut self, text: &str) {
        if self.verbosity == Some(Verbosity::Debug) {
            self.print(&format!("verify-init: {text}"));
        }
    }

    /// Remembers something odd and says it, on quiet consoles too.
    pub(crate) fn warn(&mut self, text: String) {
        let line = format!("verify-init: warning: {text}");
        self.print(&line);
        self.log(report::WARNING, &line);
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(text);
        }
    }

    fn print(&mut self, line: &str) {
        // A console that cannot be written to must not stop a boot.
        let _ = self.system.print(&format!("{line}\n"));
    }

    fn log(&mut self, priority: &str, text: &str) {
        for record in report::records(priority, text) {
            let _ = self.system.log(&record);
        }
    }

    /// Reports and stops. What was said so far comes first, `quiet` or not, and the block stands in one piece: the
    /// kernel prints its log's records whenever it likes.
    fn refuse(mut self, refusal: &FailureReport) -> S::Gone {
        let pending = std::mem::take(&mut self.pending);
        pending.iter().for_each(|line| self.print(line));
        if let Some(why) = measured::cap_after_failure(&mut self) {
            self.warn(format!("the initramfs phase was not closed in the TPM: {why}"));
        }
        let (stage, sealed) = (refusal.stage, self.action);
        let action = action_after(&mut self, stage, sealed);
        if action != sealed {
            self.set_action(action);
        }
        let text = format!("{refusal}\n  action:   {}", self.action);
        self.print(&format!("\n{text}\n"));
        self.log(report::ERROR, &text);
        self.system.stop(self.action)
    }
}

/// 584 years fit.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
