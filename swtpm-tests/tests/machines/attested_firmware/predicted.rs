//! Registers beside what was predicted of them, from a log of another boot.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use iofs_attest::{
    base::{self, NextBoot},
    tcg::EventLog,
};
use iofs_policy::{
    measurement::PredictedEvent,
    pcr::{PcrBank, PcrDigest, PcrIndex},
};
use iofs_sign::{pcr_policy::PolicySigner, sealed};
use swtpm_tests::{
    DeviceShell, Disk, Ending, FirmwareImage, Line, Machine, ScratchDisk, SecureBoot, TpmState, Vm,
    chain::{Chain, tiny_root},
    command_line,
};

use super::support::{BOOT, COMMAND, attester};

/// What a boot of an image decides, and what the kernel's own stub measures of it.
const PREDICTED: [u8; 6] = [4, 7, 9, 11, 12, 13];

/// Prints every register of every bank, behind a word: the kernel's own lines may come in between.
const REGISTERS: &str = "for file in /sys/class/tpm/tpm0/pcr-*/*; do echo \"REGISTER $file $(cat $file)\"; done";

/// A release that prints its registers. Its image holds all that a stub hands on: the root's os-release, and signatures for
/// register 11 with their key.
fn printer(keys: &SecureBoot, suite: &str, stub: &str, words: &str) -> Result<Chain> {
    let root = tempfile::tempdir()?;
    tiny_root(root.path(), REGISTERS)?;
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(root.path().join("etc/os-release"), "ID=printer\nVERSION_ID=1\n")?;
    let image = FirmwareImage::new(keys, stub, words)?;
    let image = image.with_registers(PolicySigner::read(keys.image_signer().key())?);
    Chain::seal(suite, root.path(), |request| image.ask(request))
}

/// A machine under power, and the disk that it started from.
pub(crate) struct Started {
    pub(crate) vm: Vm,
    _disk: ScratchDisk,
}

pub(crate) fn start(name: &str, chain: &Chain, keys: &SecureBoot, tpm: &TpmState) -> Result<Started> {
    let (disk, _) = chain.disk()?;
    let machine = Machine::named(name).disk(Disk::raw(disk.path())).memory_mib(1024);
    Ok(Started { vm: machine.secure_boot(keys).tpm(tpm).start()?, _disk: disk })
}

fn firmware_log(shell: &mut DeviceShell) -> Result<EventLog> {
    Ok(EventLog::parse(&shell.output("cat /sys/kernel/security/tpm0/binary_bios_measurements", COMMAND)?)?)
}

type Registers = BTreeMap<(PcrBank, u8), String>;

/// Reads what [`REGISTERS`] printed.
fn printed(vm: &Vm) -> Result<Registers> {
    let mut registers = Registers::new();
    for bank in PcrBank::ALL {
        for index in PREDICTED {
            let start = format!("REGISTER /sys/class/tpm/tpm0/pcr-{bank}/{index} ");
            // A bank that is off has no folder.
            let Some(line) = vm.console().find(&Line::containing(&start)) else { continue };
            let (_, value) = line.text.split_once(&start).context("the line holds it")?;
            registers.insert((bank, index), value.trim().to_lowercase());
        }
    }
    Ok(registers)
}

/// The last value of each register.
fn values(bank: PcrBank, events: &[PredictedEvent]) -> Registers {
    events.iter().map(|event| ((bank, event.pcr), event.value.clone())).collect()
}

#[test]
fn registers_are_predicted_for_images_that_the_machine_never_ran_from_a_log_of_another() -> Result<()> {
    let (keys, tpm) = (SecureBoot::new()?, TpmState::new()?);
    let first = attester(&keys, "first", |_| ())?;
    let mut started = start("a_log_as_base", &first, &keys, &tpm)?;
    let log = firmware_log(&mut started.vm.device_shell(BOOT)?)?;
    drop(started);
    for (name, suite, stub, words) in [
        ("predicted_6.12_by_257", "trixie", "trixie", "quiet second=1"),
        ("predicted_6.12_by_252", "trixie", "bookworm", "quiet loglevel=3 third=\u{fc}"),
        ("predicted_6.1_by_252", "bookworm", "bookworm", "quiet"),
    ] {
        let chain = printer(&keys, suite, stub, words)?;
        let (release, line) = (chain.release()?, command_line(words));
        let signer = fs::read(chain.directory().file(sealed::SECURE_BOOT_CERTIFICATE))?;
        let next = NextBoot { release: &release, command_line: &line, signer: Some(&signer), volumes: &[] };
        let mut started = start(name, &chain, &keys, &tpm)?;
        ensure!(started.vm.wait_for_end(BOOT)? == Ending::PoweredOff);
        let found = printed(&started.vm)?;
        ensure!(found.len() >= 2 * PREDICTED.len(), "two banks at least: {found:?}");
        for bank in PcrBank::ALL {
            let predicted = values(
                bank,
                &base::predict(&log, &next, bank).or_else(|error| match bank {
                    PcrBank::Sha256 | PcrBank::Sha384 => Err(error),
                    // Firmware has no events of a bank that is off.
                    _ => Ok(Vec::new()),
                })?,
            );
            for ((_, index), found) in found.iter().filter(|((of, _), _)| *of == bank) {
                let predicted = predicted.get(&(bank, *index));
                ensure!(predicted == Some(found), "{name}: {bank} {index}: predicted {predicted:?}, found {found}");
            }
        }
    }
    Ok(())
}

/// Register 0 ends with the locality; what else is zero before its first event is so in a log, too.
#[test]
fn a_prediction_needs_an_image_and_a_log_of_the_bank() -> Result<()> {
    let chain = Chain::tiny("trixie", "", |_| ())?;
    let release = chain.release()?;
    let log = EventLog { algorithms: Vec::new(), startup_locality: 0, events: Vec::new() };
    let next = NextBoot { release: &release, command_line: "quiet", signer: None, volumes: &[] };
    let refused = base::predict(&log, &next, PcrBank::Sha256).expect_err("no image").to_string();
    ensure!(refused.ends_with("it has no unified kernel image, which firmware could start"), "{refused}");
    let zero = PcrDigest::zero(PcrBank::Sha256);
    ensure!(log.initial_value(PcrBank::Sha256, PcrIndex::PHASES) == zero);
    Ok(())
}
