//! Logs of real firmware (`tests/data/make-firmware-logs`), and what tpm2_eventlog makes of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use iofs_attest::tcg::{DataCheck, EventLog};
use iofs_policy::{
    hex,
    pcr::{PcrBank, PcrDigest, PcrIndex, extend},
};

const FIRMWARE: [&str; 2] = ["ovmf", "seabios"];
/// IMA extends it when the kernel starts.
const IMA: u8 = 10;

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub(crate) fn log(name: &str) -> Vec<u8> {
    fs::read(data(&format!("{name}.bin"))).unwrap()
}

/// What the events lead to.
fn replay(log: &EventLog) -> BTreeMap<(PcrBank, u8), String> {
    let mut values = BTreeMap::new();
    for bank in PcrBank::ALL {
        for pcr in PcrIndex::all() {
            let events = log.events.iter().filter(|event| event.extends() == Some(pcr));
            let digests = events.map(|event| event.digest(bank).unwrap());
            let value = digests.fold(log.initial_value(bank, pcr), |value, digest| extend(&value, &digest).unwrap());
            values.insert((bank, pcr.get()), hex::encode(value.as_bytes()));
        }
    }
    values
}

#[test]
fn logs_of_real_boots_replay_to_the_registers() {
    for name in FIRMWARE {
        let values = replay(&EventLog::parse(&log(name)).unwrap());
        let registers = fs::read_to_string(data(&format!("{name}.pcrs"))).unwrap();
        assert_eq!(registers.lines().count(), 4 * 16);
        for line in registers.lines() {
            let [bank, pcr, value] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let pcr: u8 = pcr.parse().unwrap();
            if pcr != IMA {
                assert_eq!(values[&(bank.parse().unwrap(), pcr)], value, "{name}: {bank} {pcr}");
            }
        }
    }
}

#[test]
fn logs_of_real_boots_agree_with_tpm2_eventlog() {
    for name in FIRMWARE {
        let values = replay(&EventLog::parse(&log(name)).unwrap());
        let output = Command::new("tpm2_eventlog").arg(data(&format!("{name}.bin"))).output();
        let output = output.expect("tpm2_eventlog is not installed\n  run: apt-get install tpm2-tools");
        let text = String::from_utf8(output.stdout).unwrap();
        let (mut bank, mut compared) = (None, 0);
        for line in text.lines().skip_while(|line| *line != "pcrs:") {
            if let Some(name) = line.trim().strip_suffix(':').filter(|_| line.starts_with("  ")) {
                bank = Some(name.parse::<PcrBank>().unwrap());
            } else if let Some((pcr, value)) = line.split_once(": 0x") {
                let register = (bank.unwrap(), pcr.trim().parse().unwrap());
                assert_eq!(values[&register], value.trim(), "{name}: {register:?}");
                compared += 1;
            }
        }
        assert!(compared >= 4 * 8, "{name}: {compared}\n{text}");
    }
}

#[test]
fn the_initramfs_is_found_in_the_log_of_a_real_boot() {
    let parsed = EventLog::parse(&log("ovmf")).unwrap();
    let expected = fs::read_to_string(data("ovmf.initrd")).unwrap();
    let event = parsed.events.iter().find(|event| event.description() == "Linux initrd").unwrap();
    assert_eq!(event.extends().unwrap().get(), 9);
    assert_eq!(event.digest(PcrBank::Sha256).unwrap().to_string(), format!("sha256:{}", expected.trim()));
}

#[test]
fn labels_of_real_firmware_are_what_was_measured() {
    for name in FIRMWARE {
        let parsed = EventLog::parse(&log(name)).unwrap();
        assert!(parsed.events.iter().all(|event| event.data_check() != DataCheck::Contradicts));
        assert!(parsed.events.iter().filter(|event| event.data_check() == DataCheck::Matches).count() >= 8);
        for mut event in parsed.events {
            let before = event.data_check();
            event.data.push(1);
            let expected = if before == DataCheck::Matches { DataCheck::Contradicts } else { DataCheck::Undefined };
            assert_eq!(event.data_check(), expected, "{event:?}");
        }
    }
}

#[test]
fn events_of_a_real_boot_are_described() {
    let parsed = EventLog::parse(&log("ovmf")).unwrap();
    let lines: Vec<String> =
        parsed.events.iter().map(|event| format!("{}: {}", event.kind, event.description())).collect();
    for expected in [
        "EV_EFI_VARIABLE_DRIVER_CONFIG: variable SecureBoot, off",
        "EV_EFI_VARIABLE_BOOT: variable BootOrder",
        "EV_EFI_BOOT_SERVICES_APPLICATION: image kernel",
        "EV_EFI_ACTION: Exit Boot Services Returned with Success",
        "EV_EVENT_TAG: LOADED_IMAGE::LoadOptions",
        "EV_SEPARATOR: separator",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
    }
}

#[test]
fn no_byte_of_a_real_log_makes_the_parser_panic() {
    for name in FIRMWARE {
        let log = log(name);
        for end in 0..log.len() {
            let cut = EventLog::parse(&log[..end]);
            // A log that ends between two events is a shorter log: only registers tell.
            assert!(
                cut.is_ok_and(|cut| cut.events.len() < EventLog::parse(&log).unwrap().events.len())
                    || EventLog::parse(&log[..end]).is_err()
            );
        }
        for byte in 0..log.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = log.clone();
                changed[byte] = value;
                if let Ok(parsed) = EventLog::parse(&changed) {
                    parsed.events.iter().for_each(|event| assert!(event.description().chars().count() < 200));
                }
            }
        }
    }
}

#[test]
fn other_banks_start_at_zero_but_register_0_has_the_locality() {
    let mut bytes = crate::support::firmware_header(&[PcrBank::Sha256]);
    let locality = [&b"StartupLocality\0"[..], &[3]].concat();
    let digests = [PcrDigest::zero(PcrBank::Sha256)];
    bytes.extend(crate::support::firmware_event(0, crate::support::NO_ACTION, &digests, &locality));
    let parsed = EventLog::parse(&bytes).unwrap();
    assert_eq!(parsed.startup_locality, 3);
    let value = |pcr| hex::encode(parsed.initial_value(PcrBank::Sha256, PcrIndex::new(pcr).unwrap()).as_bytes());
    assert_eq!(value(0), format!("{}03", "00".repeat(31)));
    assert_eq!(value(1), "00".repeat(32));
    assert_eq!(value(17), "ff".repeat(32));
}
