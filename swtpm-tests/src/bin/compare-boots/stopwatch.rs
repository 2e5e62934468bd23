//! What `guest/stopwatch` says.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use iofs_policy::boot_record::BootRecord;
use swtpm_tests::{Line, Machine, Vm, cache};

/// Where images have it.
pub(crate) const STOPWATCH: &str = "/usr/sbin/stopwatch";
/// The kernel's parameters that boots are measured with, which images have to allow.
pub(crate) const PARAMETERS: [&str; 3] = ["trace_event", "idle", NO_SELF_TESTS];
/// The kernel tests its ciphers while it boots, in the background, for as long as all else takes. This one keeps it from that.
pub(crate) const NO_SELF_TESTS: &str = "cryptomgr.notests";
/// It notes who became which program when. An emulator that counts instructions goes on to the next timer's time where the
/// processor rests, and a disk's answer would seem to take that long: it never rests.
const WORDS: &str = "quiet trace_event=sched:sched_process_exec idle=poll";
/// An emulator that counts instructions takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// Milliseconds since the kernel's start.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    /// When PID 1 became the initramfs' init.
    pub(crate) pid1: f64,
    /// When it became the real one.
    pub(crate) real_init: f64,
    /// When everything was read that the image has to be read.
    pub(crate) all_read: f64,
    /// Of 512 bytes, until then.
    pub(crate) sectors: u64,
    /// What verify-init says itself.
    pub(crate) record: Option<BootRecord>,
}

impl Times {
    /// From the one to the other.
    pub(crate) fn between(&self) -> f64 {
        self.real_init - self.pid1
    }

    /// Each stage's share of that time.
    pub(crate) fn print_stages(&self) {
        for stage in self.record.iter().flat_map(|record| &record.stages) {
            let took = stage.took_ns as f64 / 1e6;
            let share = 100.0 * took / self.between();
            println!("    {:20} {took:8.1} {share:10.1} %", stage.stage.to_string());
        }
    }
}

/// Where the project has it.
pub(crate) fn program() -> PathBuf {
    cache::workspace().join("swtpm-tests/guest/stopwatch")
}

/// Boots a machine whose real init is the stopwatch.
pub(crate) fn boot(machine: &Machine) -> Result<Times> {
    let mut vm = machine.clone().deterministic().append(WORDS).start()?;
    vm.wait_for_line(&Line::exactly("STOPWATCH end"), PATIENCE)?;
    let times = read(&vm);
    vm.wait_for_end(PATIENCE)?;
    times
}

fn read(vm: &Vm) -> Result<Times> {
    let lines = vm.console().lines();
    let all = |what: &str| {
        let start = format!("STOPWATCH {what} ");
        let found = lines.iter().filter_map(|line| line.text.strip_prefix(&start).map(str::to_owned));
        found.collect::<Vec<_>>()
    };
    let one = |what: &str| all(what).pop().with_context(|| format!("the stopwatch says nothing of {what}"));
    let at = |what: &str| {
        let log = all("log");
        let line = log.iter().find(|line| line.contains(what));
        line.and_then(|line| milliseconds(line)).with_context(|| format!("neither log nor trace has {what:?}"))
    };
    let root = one("root")?;
    ensure!(["erofs", "overlay", "rootfs"].contains(&&*root), "the root is {root}");
    Ok(Times {
        pid1: at(" pid=1 ")?,
        real_init: at(&format!("filename={STOPWATCH} pid=1 "))?,
        all_read: at("stopwatch: all read")?,
        sectors: one("sectors")?.parse().context("sectors")?,
        record: all("record").pop().map(|json| serde_json::from_str(&json)).transpose().context("the boot record")?,
    })
}

/// The time in a line of `dmesg`, `[    0.412345] …`, or of the kernel's trace, `sh-1 [000] .....     0.412345: …`.
fn milliseconds(line: &str) -> Option<f64> {
    let mut words = line.split_whitespace().map(|word| word.trim_matches(['[', ']', ':']));
    words
        .find(|word| word.contains('.') && word.starts_with(char::is_numeric))?
        .parse::<f64>()
        .ok()
        .map(|seconds| seconds * 1e3)
}
