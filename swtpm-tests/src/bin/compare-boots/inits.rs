//! One image, three inits.

use std::fs;

use anyhow::{Context, Result, ensure};
use iofs_policy::manifest::TpmUse;
use swtpm_tests::{Machine, ScratchDisk, TpmState, cache, chain::Chain};
use tempfile::TempDir;

use crate::{
    initramfs,
    stopwatch::{self, NO_SELF_TESTS, STOPWATCH, Times},
    with_stopwatch,
};

/// Boots of each beside the kernel's self-tests.
const RUNS: usize = 3;
/// And without them, where boots agree.
const RUNS_WITHOUT: usize = 2;
/// Boots that nothing of the kernel runs beside differ by less. Beside its self-tests a disk's answer, which comes in the host's
/// time, decides who goes on.
const AGREEMENT: f64 = 0.01;
/// systemd starts several programs at once, and which of them the disk answers first is not counted in instructions: 2 % was seen
/// beside another machine.
const SYSTEMD_AGREEMENT: f64 = 0.05;

pub(crate) fn compare(suite: &str) -> Result<()> {
    let boots = Boots::prepare(suite)?;
    println!("kernel and root of Debian's {suite}");
    println!(
        "{:24} {:>8} {:>10} {:>8} {:>8} {:>8} {:>8}",
        "milliseconds", "PID 1", "real init", "between", "min", "max", "spread"
    );
    for (title, words, runs) in [("kernel as it is", "", RUNS), ("without its self-tests", NO_SELF_TESTS, RUNS_WITHOUT)]
    {
        println!("{title}");
        let [bare, ours, dracut] =
            [&boots.bare, &boots.ours, &boots.dracut].map(|machine| Runs::of(&machine.clone().append(words), runs));
        let (bare, ours, dracut) = (bare?, ours?, dracut?);
        for (name, runs, agreement) in [
            ("bare, unverified", &bare, AGREEMENT),
            ("verify-init", &ours, AGREEMENT),
            ("dracut", &dracut, SYSTEMD_AGREEMENT),
        ] {
            runs.print(name);
            ensure!(
                words.is_empty() || runs.spread() < agreement,
                "{name}: boots on one machine differ by {:.2} %",
                runs.spread() * 100.0
            );
        }
        let ours_with_tpm = stopwatch::boot(&boots.measured.0.clone().append(words))?;
        Runs(vec![ours_with_tpm]).print("verify-init and a TPM");
        for (name, other) in [("bare", &bare), ("dracut", &dracut)] {
            let (ours, other) = (ours.median(), other.median());
            let between = other.between() / ours.between();
            println!(
                "  {name} : verify-init      {between:.2} between, {:.2} from the kernel's start",
                other.real_init / ours.real_init
            );
        }
        ours.median().print_stages();
    }
    Ok(())
}

/// The machines, which differ in what is PID 1.
struct Boots {
    bare: Machine,
    ours: Machine,
    dracut: Machine,
    /// Its TPM answers in its own time, which no instruction counts: apart from the others.
    measured: (Machine, TpmState),
    _kept: (TempDir, [(Chain, ScratchDisk); 2]),
}

impl Boots {
    fn prepare(suite: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let seal = |tpm| Chain::seal(suite, &cache::root(suite)?, |request| with_stopwatch(request, tpm));
        let chain = seal(TpmUse::Off)?;
        let (disk, report) = chain.disk()?;
        let partition = |label: &str| {
            let found = report.partitions.iter().find(|partition| partition.label == label);
            found.map(|found| format!("/dev/vda{}", found.number)).with_context(|| format!("no partition {label}"))
        };
        let (data, tree) = (partition("root")?, partition("root-verity")?);
        let ours = chain.machine("compare_boots", &disk);
        let (bare, dracut) = (folder.path().join("bare.img"), folder.path().join("dracut.img"));
        fs::write(&bare, initramfs::bare(suite, &data)?)?;
        initramfs::dracut(suite, &dracut)?;
        let words = format!(
            "root=/dev/mapper/root rootfstype=erofs ro roothash={} systemd.verity_root_data={data} \
             systemd.verity_root_hash={tree} init={STOPWATCH}",
            chain.manifest()?.verity.root_hash
        );
        let measured = seal(TpmUse::Required)?;
        let tpm = TpmState::new()?;
        let (measured_disk, _) = measured.disk()?;
        let with_tpm = measured.machine("compare_boots", &measured_disk).tpm(&tpm);
        Ok(Self {
            bare: ours.clone().initrd(&bare),
            dracut: ours.clone().initrd(&dracut).append(&words),
            ours,
            measured: (with_tpm, tpm),
            _kept: (folder, [(chain, disk), (measured, measured_disk)]),
        })
    }
}

/// Boots of one machine, the quickest first.
struct Runs(Vec<Times>);

impl Runs {
    fn of(machine: &Machine, runs: usize) -> Result<Self> {
        let mut runs = (0..runs).map(|_| stopwatch::boot(machine)).collect::<Result<Vec<_>>>()?;
        runs.sort_by(|a, b| a.between().total_cmp(&b.between()));
        Ok(Self(runs))
    }

    fn median(&self) -> &Times {
        &self.0[self.0.len() / 2]
    }

    /// By how much the slowest took longer from the kernel's start than the quickest.
    fn spread(&self) -> f64 {
        let all = self.0.iter().map(|times| times.real_init);
        let (least, most) = all.fold((f64::MAX, 0.0), |(least, most), time| (time.min(least), time.max(most)));
        most / least - 1.0
    }

    fn print(&self, name: &str) {
        let (times, last) = (self.median(), self.0.len() - 1);
        let (min, max) = (self.0[0].between(), self.0[last].between());
        println!(
            "  {name:22} {:8.1} {:10.1} {:8.1} {min:8.1} {max:8.1} {:6.2} %",
            times.pid1,
            times.real_init,
            times.between(),
            self.spread() * 100.0
        );
    }
}
