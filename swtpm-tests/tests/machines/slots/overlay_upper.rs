//! What a device wrote lasts across its updates, on a volume that is protected from changes.

use std::path::Path;

use anyhow::{Result, ensure};
use iofs_policy::manifest::TpmUse;
use iofs_sign::seal::SealRequest;
use serde_json::{Value, json};
use swtpm_tests::{
    BASE_COMMAND_LINE, Disk, ScratchDisk, TpmState,
    attester::{self, SHELL_INIT},
    chain::Chain,
    volume::disk_of,
    workshop::{self, Workshop},
};

use super::{
    support::{Device, slot_that_runs},
    updates::{debian_with, stick, update},
};

const PASSPHRASE: &str = "correct horse battery staple";
/// A file of the release that the device changes, one that it removes, and one that only the device has.
const WRITE: &str = "set -e; echo changed >/etc/hostname; rm /etc/issue; mkdir /etc/own; echo 1 >/etc/own/boots; sync";
const READ: &str = "cat /etc/hostname /etc/own/boots; [ -e /etc/issue ] || echo gone";

/// A release that boots right into the shell.
fn shell(version: u64) -> Result<Chain> {
    debian_with(version, |_: &Path| Ok(()), ask)
}

fn ask(request: &mut SealRequest) {
    let config = &mut request.config;
    config.boot.init = Some(SHELL_INIT.parse().expect("valid"));
    config.boot.command_lines = attester::command_lines();
    config.tpm.usage = TpmUse::Required;
    let upper = json!({ "name": "upper", "place": "PARTLABEL=upper", "use": { "upper": { "file_system": "ext4" } } });
    config.volumes = vec![serde_json::from_value(upper).expect("a volume")];
}

struct Owned {
    tpm: TpmState,
    upper: ScratchDisk,
    stick: ScratchDisk,
}

impl Owned {
    /// Boots, and checks which release runs in which slot over what the device wrote.
    fn boot(&self, device: &Device<'_>, version: u64, slot: &str) -> Result<Workshop> {
        let machine = device.machine().tpm(&self.tpm).memory_mib(1024);
        let machine = machine.disk(Disk::raw(self.stick.path())).disk(Disk::raw(self.upper.path()));
        let mut shell = Workshop::of(machine.start()?, ScratchDisk::empty(4096)?)?;
        ensure!(shell.run("cat /etc/version")? == version.to_string());
        let status: Value = serde_json::from_str(&shell.run("iofs-sign status --json")?)?;
        ensure!(slot_that_runs(&status, true)?["name"] == slot, "{status:#}");
        ensure!(shell.run("grep ' / ' /proc/mounts")?.contains("redirect_dir=nofollow"));
        Ok(shell)
    }
}

#[test]
fn overlay_upper_what_a_device_wrote_lasts_across_an_update_and_back() -> Result<()> {
    let (first, second, tpm) = (shell(1)?, shell(2)?, TpmState::new()?);
    let volume = workshop::protected(&tpm, PASSPHRASE)?;
    for release in [&first, &second] {
        volume.enroll_for(release, &BASE_COMMAND_LINE.join(" "), &tpm, &[])?;
    }
    let owned = Owned { upper: disk_of(&[("upper", &volume)])?, stick: stick(&[(2, &second)])?, tpm };
    let device = Device::new("slots_overlay_upper", first)?;

    let mut shell = owned.boot(&device, 1, "a")?;
    shell.run(WRITE)?;
    shell.run("iofs-sign mark-good")?;
    println!("1 to 2: {}", update(&mut shell, 2)?);
    shell.close()?;
    // The release in slot b is never confirmed: two tries, then back.
    for (boot, version, slot) in [(2, 2, "b"), (3, 2, "b"), (4, 1, "a")] {
        let mut shell = owned.boot(&device, version, slot)?;
        let found = shell.run(&format!("echo {boot} >>/etc/own/boots; sync; {READ}"))?;
        let boots: String = (1..=boot).map(|boot| format!("{boot}\n")).collect();
        ensure!(found == format!("changed\n{boots}gone"), "boot {boot}: {found}");
        let told = shell.run("iofs-sign status")?;
        let gave_up = told.contains("slot b:    2 (rollback index 2), not confirmed, no tries left");
        ensure!(gave_up || slot == "b", "{told}");
        shell.close()?;
    }
    Ok(())
}
