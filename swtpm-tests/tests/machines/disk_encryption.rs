//! Encrypted volumes, opened by the real verify-init on real kernels.

use std::time::Duration;

use anyhow::{Result, ensure};
use iofs_policy::manifest::TpmUse;
use iofs_sign::seal::config::Config;
use serde_json::json;
use swtpm_tests::{
    Disk, Ending, Line,
    chain::{Chain, ROOT_REACHED},
    volume::{VolumeFile, data_volume, disk_of},
};

const BOOT: Duration = Duration::from_secs(90);
const PASSPHRASE: &str = "correct horse battery";

/// A chain that opens the volume `state` by a passphrase, and shows a file in it.
fn chain(suite: &str) -> Result<Chain> {
    let script = "cat /state/greeting; cat /proc/keys; dmesg | grep -c horse; cat /run/iofs/boot.json";
    Chain::tiny(suite, script, |request| {
        let volume = data_volume("state", "/state", &json!({ "tpm": false, "passphrase": true, "tries": 2 }));
        let text = json!({ "volume": [volume] });
        let config: Config = serde_json::from_value(text).expect("a valid volume");
        request.config.volumes = config.volumes;
        request.config.tpm.usage = TpmUse::Off;
    })
}

fn volume() -> Result<VolumeFile> {
    VolumeFile::with_file(PASSPHRASE, "greeting", "FROM THE VOLUME\n")
}

fn a_passphrase_opens_a_volume(suite: &str) -> Result<()> {
    let chain = chain(suite)?;
    let (disk, _) = chain.disk()?;
    let state = disk_of(&[("state", &volume()?)])?;
    let machine = chain.machine(&format!("a_passphrase_opens_a_volume_{suite}"), &disk).disk(Disk::raw(state.path()));
    let mut vm = machine.start()?;
    vm.console().wait_for_prompt("Passphrase or recovery key for volume state (try 1 of 2): ", BOOT)?;
    vm.type_line("wrong")?;
    vm.console().wait_for_prompt("Passphrase or recovery key for volume state (try 2 of 2): ", BOOT)?;
    vm.type_line(PASSPHRASE)?;
    vm.wait_for_line(&Line::containing("unlocked volume state by a passphrase (keyslot 0)"), BOOT)?;
    vm.wait_for_line(&Line::exactly(ROOT_REACHED), BOOT)?;
    vm.wait_for_line(&Line::exactly("FROM THE VOLUME"), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    let console = vm.console();
    ensure!(console.find(&Line::containing(PASSPHRASE)).is_none(), "the passphrase was shown");
    ensure!(console.find(&Line::containing("logon     cryptsetup:")).is_none(), "the key is still in a keyring");
    Ok(())
}

#[test]
fn a_passphrase_on_the_console_opens_a_data_volume_on_debian_12() -> Result<()> {
    a_passphrase_opens_a_volume("bookworm")
}

#[test]
fn a_passphrase_on_the_console_opens_a_data_volume_on_debian_13() -> Result<()> {
    a_passphrase_opens_a_volume("trixie")
}

#[test]
fn debug_shell_wrong_passphrases_power_the_machine_off() -> Result<()> {
    let chain = chain("trixie")?;
    let (disk, _) = chain.disk()?;
    let state = disk_of(&[("state", &volume()?)])?;
    let mut vm = chain.machine("debug_shell_wrong_passphrases", &disk).disk(Disk::raw(state.path())).start()?;
    for number in [1, 2] {
        vm.console().wait_for_prompt(&format!("(try {number} of 2): "), BOOT)?;
        // Held keys, and what interrupts a program on other terminals.
        vm.type_line("\u{3}\u{1c}\u{1a}")?;
    }
    vm.wait_for_line(&Line::containing("BOOT REFUSED before stage \"unlocked\": volume state stays shut"), BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff);
    ensure!(vm.console().find(&Line::exactly(ROOT_REACHED)).is_none());
    Ok(())
}
