//! What verify-init left of this machine's boot, for people.

use std::{fmt::Write, path::Path, time::Duration};

use iofs_policy::boot_record::{BootRecord, StageTime, UnlockedVolume};

use crate::{
    attest,
    report::{ExitStatus, Failure},
};

pub mod timeline;

/// The largest boot record that is read, in bytes.
const MAX_RECORD: usize = 1 << 20;
/// How long the longest stage's bar is, in characters.
const BAR: u128 = 32;

/// Reads a boot record.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read(path: &Path) -> Result<BootRecord, Failure> {
    let bytes = attest::read(path, MAX_RECORD)
        .map_err(|failure| failure.next("run this on the machine, after a boot by verify-init"))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(ExitStatus::BadInput, format!("boot record {}: {error}", path.display()))
            .next("give the record that verify-init left of this boot")
    })
}

/// The record, line by line.
pub fn text(record: &BootRecord) -> String {
    let BootRecord { image_id, image_version, rollback_index, role, architecture, .. } = record;
    let debug = if record.debug { ", DEBUG" } else { "" };
    let mut text = format!(
        "image:     {image_id} {image_version} (rollback index {rollback_index}, {role}, {architecture}{debug})\n"
    );
    let mut line = |label: &str, what: &str| text.push_str(&format!("{:<10} {what}\n", format!("{label}:")));
    line("manifest", &format!("sha256:{}", record.manifest_digest));
    record.signers.iter().for_each(|signer| line("signed by", &signer.to_string()));
    line("root hash", &record.root_hash.to_string());
    line("root", &format!("{}, hash tree on {}", record.data_device, record.hash_device));
    record.volumes.iter().for_each(|volume| line("volume", &describe(volume)));
    let measured = record.measured_banks.join(", ");
    line("measured", if measured.is_empty() { "nothing: no TPM was used" } else { &measured });
    if let Some(rule) = record.rollback {
        let (counter, value, index) = (rule.counter, rule.value, rule.index);
        line("rollback", &format!("TPM counter {counter:#010x}; at {value} it stands for rollback index {index}"));
    }
    line("kernel", &record.kernel_release);
    record.warnings.iter().for_each(|warning| line("warning", warning));
    text + &stages(&record.stages)
}

fn describe(volume: &UnlockedVolume) -> String {
    let UnlockedVolume { name, usage, device, by, keyslot, .. } = volume;
    let token = volume.token.map(|token| format!(", token {token}")).unwrap_or_default();
    let integrity = if volume.integrity { ", integrity-protected" } else { "" };
    format!("{name} ({usage}) on {device}, opened by {by} (keyslot {keyslot}{token}){integrity}")
}

/// When PID 1 began, after the kernel's start.
fn began(stages: &[StageTime]) -> Duration {
    stages.first().map_or(Duration::ZERO, |first| Duration::from_nanos(first.reached_ns.saturating_sub(first.took_ns)))
}

/// A stage's time is what it took since the one before: the first one's, since PID 1 began.
fn stages(stages: &[StageTime]) -> String {
    let Some(last) = stages.last() else { return String::new() };
    let began = began(stages);
    let total = Duration::from_nanos(last.reached_ns).saturating_sub(began);
    let longest = stages.iter().map(|stage| u128::from(stage.took_ns)).max().unwrap_or_default().max(1);
    let mut text =
        format!("timeline:  {} ms of kernel, {} ms of verify-init\n", milliseconds(began), milliseconds(total));
    for stage in stages {
        let took = Duration::from_nanos(stage.took_ns);
        let bar = "#".repeat((u128::from(stage.took_ns) * BAR).div_ceil(longest) as usize);
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {:<10} {:>9} ms  {bar}", stage.stage.name(), milliseconds(took));
    }
    text
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As verify-init writes it.
    pub(crate) fn record() -> BootRecord {
        let record = serde_json::json!({
            "record_version": 1, "verify_init": "0.1.0", "image_id": "org.example.device", "image_version": "7",
            "rollback_index": 3, "role": "root", "architecture": "x86-64", "debug": false,
            "manifest_digest": "00".repeat(32), "signers": ["11".repeat(32)], "root_hash": "22".repeat(32),
            "data_device": "/dev/vda1", "hash_device": "/dev/vda2", "verity_table": "",
            "volumes": [{
                "name": "state", "use": "data", "device": "/dev/vdb1", "mapping": "/dev/dm-1",
                "luks_uuid": "00000000-0000-0000-0000-000000000001", "by": "tpm", "keyslot": 1, "token": 0,
                "integrity": false,
            }],
            "rollback": { "counter": 25_184_591, "value": 5, "index": 3 },
            "measured_banks": ["sha256", "sha384"], "kernel_release": "6.12.1", "warnings": ["a <warning>"],
            "stages": [
                { "stage": "started", "reached_ns": 1_001_000_000_u64, "took_ns": 1_000_000 },
                { "stage": "verified", "reached_ns": 1_003_000_000_u64, "took_ns": 2_000_000 },
                { "stage": "switched", "reached_ns": 1_019_000_000_u64, "took_ns": 16_000_000 },
            ],
        });
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn a_boot_is_told_line_by_line() {
        let told = text(&record());
        for line in [
            "image:     org.example.device 7 (rollback index 3, root, x86-64)",
            "root:      /dev/vda1, hash tree on /dev/vda2",
            "volume:    state (data) on /dev/vdb1, opened by the TPM (keyslot 1, token 0)",
            "measured:  sha256, sha384",
            "rollback:  TPM counter 0x0180494f; at 5 it stands for rollback index 3",
            "warning:   a <warning>",
            "timeline:  1000.0 ms of kernel, 19.0 ms of verify-init",
            "  started          1.0 ms  ##",
            "  switched        16.0 ms  ################################",
        ] {
            assert!(told.lines().any(|found| found == line), "{line}\n{told}");
        }
    }

    #[test]
    fn a_boot_without_tpm_volumes_and_times_is_told_too() {
        let bare = BootRecord {
            volumes: Vec::new(),
            measured_banks: Vec::new(),
            rollback: None,
            stages: Vec::new(),
            debug: true,
            ..record()
        };
        let told = text(&bare);
        assert!(told.contains("measured:  nothing: no TPM was used\n") && told.contains(", DEBUG)\n"), "{told}");
        assert!(!told.contains("timeline"), "{told}");
    }

    #[test]
    fn what_is_no_record_is_named_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.json");
        assert!(read(&path).unwrap_err().fact.contains("boot.json: "));
        std::fs::write(&path, "{}").unwrap();
        let told = read(&path).unwrap_err().fact;
        assert!(told.contains("boot.json: missing field `record_version`"), "{told}");
    }
}
