//! A volume that is bound to a release opens for that release, and for no other until its owner is there.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use iofs_policy::{boot_record::UnlockedBy, manifest::TpmUse};
use iofs_sign::seal::SealRequest;
use serde_json::{Value, json};
use swtpm_tests::{
    Ending, Line, ScratchDisk, TpmState, Vm,
    chain::Chain,
    volume::{VolumeFile, data_volume, disk_of},
    workshop::{self, Workshop},
};

use super::support::{
    ASKS_PASSPHRASE, BOOT, Identity, PASSPHRASE, answer, boot_record, by_tpm, command_line, enroll, is_latched,
    machine, opened, refused, sealed_volumes, told,
};

/// A whole Debian boot under emulation, on a busy machine.
const WHOLE_BOOT: Duration = Duration::from_secs(300);
/// What is said of a key that is bound to other registers' values.
const CHANGED: &str = "expected the values of enrolment in registers sha256:11+12+13, found others";
/// What is said where nothing opens the volume.
const SHUT: &str = "BOOT REFUSED before stage \"unlocked\": volume state stays shut";
/// Ctrl-D: there is no answer, and none will come.
const CLOSED: &str = "\u{4}";
/// Where the volume is mounted.
const PLACE: &str = "/srv";

/// A Debian 13 with one volume, `state`.
fn device(unlock: &Value, change: impl FnOnce(&mut SealRequest)) -> Result<Chain> {
    workshop::device("trixie", |request| {
        request.config.volumes = sealed_volumes(&[data_volume("state", PLACE, unlock)]);
        change(request);
    })
}

/// A volume that is bound to a chain, on a disk, and the TPM that it is bound by.
struct Enrolled {
    tpm: TpmState,
    volume: VolumeFile,
    disk: ScratchDisk,
}

impl Enrolled {
    fn to(chain: &Chain) -> Result<Self> {
        Self::with(chain, &[])
    }

    fn with(chain: &Chain, words: &[&str]) -> Result<Self> {
        let (tpm, volume) = (TpmState::new()?, VolumeFile::with_file(PASSPHRASE, "name", "state")?);
        enroll(&volume, &tpm, chain, words)?;
        let disk = disk_of(&[("state", &volume)])?;
        Ok(Self { tpm, volume, disk })
    }

    fn boot(&self, name: &str, chain: &Chain, words: &str) -> Result<(Vm, ScratchDisk)> {
        let (root, _) = chain.disk()?;
        let machine = machine(name, chain, &root, &self.disk, &self.tpm);
        let machine = if words.is_empty() { machine } else { machine.append(words) };
        Ok((machine.start()?, root))
    }
}

#[test]
fn a_whole_debian_13_finds_its_state_on_an_encrypted_volume_with_nobody_present() -> Result<()> {
    const POWER_OFF: &str = "iofs.test=poweroff";
    let line = format!("{} {POWER_OFF}", command_line());
    let chain = Chain::seal("trixie", &workshop::image("trixie")?, |request| {
        request.config.volumes = sealed_volumes(&[data_volume("state", "/var/lib/state", &by_tpm())]);
        request.config.tpm.usage = TpmUse::Required;
    })?;
    let (tpm, volume) = (TpmState::new()?, VolumeFile::with_file(PASSPHRASE, "name", "state")?);
    volume.enroll_for(&chain, &line, &tpm, &[])?;
    let (disk, (root, _)) = (disk_of(&[("state", &volume)])?, chain.disk()?);
    let mut vm = machine("debian_13_with_a_volume", &chain, &root, &disk, &tpm).append(POWER_OFF).start()?;
    told(&vm, &["verify-init: unlocked volume state by the TPM"])?;
    // In the order of the report.
    for report in ["state running", "failed none"] {
        vm.wait_for_line(&Line::containing(&format!("IOFS-REPORT {report}")), WHOLE_BOOT)?;
    }
    told(&vm, &["IOFS-REPORT boot ", &volume.uuid()?])?;
    ensure!(vm.wait_for_end(WHOLE_BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn an_enrolled_volume_opens_with_nobody_present_and_keeps_its_data_over_a_power_cut() -> Result<()> {
    let chain = device(&by_tpm(), |_| ())?;
    let enrolled = Enrolled::to(&chain)?;
    for boot in 1..=2 {
        let (vm, root) = enrolled.boot("nobody_present", &chain, "")?;
        let mut device = Workshop::of(vm, root)?;
        ensure!(opened(&boot_record(&mut device)?) == [("state".to_owned(), UnlockedBy::Tpm)]);
        is_latched(&mut device, &[Identity::of("state", &enrolled.volume)?])?;
        let boots = device
            .run(&format!("cat {PLACE}/name; echo; echo boot {boot} >>{PLACE}/boots; sync; cat {PLACE}/boots"))?;
        let all: String = (1..=boot).map(|boot| format!("\nboot {boot}")).collect();
        ensure!(boots == format!("state{all}"), "{boots}");
        device.cut_power();
    }
    Ok(())
}

/// The refusal names this register as the only one that differs, with what was measured into it.
fn one_differs(vm: &Vm, register: u8, event: &str) -> Result<()> {
    let line = vm.wait_for_line(&Line::containing(CHANGED), BOOT)?.text;
    for index in [11, 12, 13] {
        let (_, told) = line.split_once(&format!("register {index} holds ")).context("each register is told")?;
        let told = told.split(", register ").next().unwrap_or(told);
        ensure!(told.contains("DIFFERS from ") == (index == register), "register {index}: {told}");
        ensure!(told.contains(event) == (index == register), "register {index}: {told}");
    }
    Ok(())
}

#[test]
fn another_manifest_is_refused_with_the_register_that_differs_and_the_recovery_key_opens() -> Result<()> {
    let unlock = json!({ "passphrase": true });
    let chain = device(&unlock, |_| ())?;
    let folder = tempfile::tempdir()?;
    let kept = folder.path().join("recovery-key");
    let words = ["--recovery-key", "--recovery-key-file", kept.to_str().context("UTF-8")?];
    let enrolled = Enrolled::with(&chain, &words)?;
    let key = fs::read_to_string(kept)?;
    let other = device(&unlock, |request| request.config.image.version = Some("other".parse().expect("valid")))?;
    let (mut vm, root) = enrolled.boot("another_manifest", &other, "")?;
    one_differs(&vm, 13, "(manifest:")?;
    answer(&mut vm, ASKS_PASSPHRASE, "state", 1, 3, key.trim_end())?;
    let mut device = Workshop::of(vm, root)?;
    ensure!(opened(&boot_record(&mut device)?) == [("state".to_owned(), UnlockedBy::Passphrase)]);
    // Opened by a recovery key, the volume is measured all the same.
    is_latched(&mut device, &[Identity::of("state", &enrolled.volume)?])?;
    ensure!(device.run(&format!("cat {PLACE}/name"))? == "state");
    device.cut_power();
    Ok(())
}

#[test]
fn a_debug_image_of_the_same_release_is_refused() -> Result<()> {
    let chain = device(&by_tpm(), |_| ())?;
    let enrolled = Enrolled::to(&chain)?;
    let debug = device(&by_tpm(), |request| request.config.image.debug = true)?;
    let (mut vm, _root) = enrolled.boot("a_debug_image_unlocks_nothing", &debug, "")?;
    one_differs(&vm, 13, "(debug-manifest:")?;
    refused(&vm, &[SHUT])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn debug_shell_another_command_line_and_wrong_passphrases_end_in_a_refusal_and_no_shell() -> Result<()> {
    let chain = device(&json!({ "passphrase": true, "tries": 2 }), |_| ())?;
    let enrolled = Enrolled::to(&chain)?;
    let (mut vm, _root) = enrolled.boot("another_command_line", &chain, "mitigations=off")?;
    one_differs(&vm, 12, "no_timer_check mitigations=off)")?;
    for (number, wrong) in [(1, "open sesame"), (2, "exec /bin/sh")] {
        answer(&mut vm, ASKS_PASSPHRASE, "state", number, 2, wrong)?;
    }
    refused(&vm, &[SHUT])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    // What was typed is nowhere on the console.
    for line in vm.console().lines() {
        ensure!(!line.text.contains("open sesame"), "the console shows what was typed: {}", line.text);
    }
    Ok(())
}

#[test]
fn debug_shell_a_held_enter_key_uses_up_the_tries_and_opens_nothing() -> Result<()> {
    let chain = device(&json!({ "tpm": false, "passphrase": true }), |_| ())?;
    let enrolled = Enrolled::to(&chain)?;
    let (mut vm, _root) = enrolled.boot("a_held_enter_key", &chain, "")?;
    for number in 1..=3 {
        answer(&mut vm, ASKS_PASSPHRASE, "state", number, 3, "")?;
        // What comes before a question answers none.
        vm.type_line(&"\r".repeat(100))?;
    }
    refused(&vm, &[SHUT])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn debug_shell_a_closed_console_opens_nothing() -> Result<()> {
    let chain = device(&json!({ "tpm": false, "passphrase": true }), |_| ())?;
    let enrolled = Enrolled::to(&chain)?;
    let (mut vm, _root) = enrolled.boot("a_closed_console", &chain, "")?;
    answer(&mut vm, ASKS_PASSPHRASE, "state", 1, 3, CLOSED)?;
    refused(&vm, &[SHUT, "the console was closed, or gave no answer"])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn debug_shell_a_machine_without_console_opens_nothing_and_waits_for_nobody() -> Result<()> {
    let chain = device(&json!({ "tpm": false, "passphrase": true }), |_| ())?;
    let enrolled = Enrolled::to(&chain)?;
    let (root, _) = chain.disk()?;
    // Only the kernel's own first messages find the serial port: no driver gives it to /dev/console.
    let words = "console=null earlycon=uart8250,io,0x3f8,115200 keep_bootcon panic=-1 no_timer_check";
    let machine = machine("no_console", &chain, &root, &enrolled.disk, &enrolled.tpm);
    let mut vm = machine.argument("-append").argument(words).start()?;
    refused(&vm, &[SHUT, "the console cannot be asked"])?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    Ok(())
}
