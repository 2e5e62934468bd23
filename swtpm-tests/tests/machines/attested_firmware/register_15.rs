//! Register 15 of a machine with Secure Boot: learnt once, predicted where the manifest pins it, and demanded ever after.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use iofs_attest::{base64_bytes::Base64Bytes, evidence::Evidence};
use iofs_luks::VolumeKey;
use iofs_policy::{
    hex,
    measurement_log::{self, Record},
    pcr::PcrBank,
};
use serde_json::Value;
use swtpm_tests::{
    ScratchDisk, cache,
    chain::Chain,
    verifier::{Quoted, Verifier},
    volume::{VolumeFile, disk_of},
};
use zeroize::Zeroizing;

use super::support::{COMMAND, Enrolled, Hardware, PASSPHRASE, PCRS, attester, volume, volume_section};

/// What systemd does where its stub measured the kernel, on a system that does not run it otherwise.
const MEASURE_MACHINE_ID: &str = "echo 0123456789abcdef0123456789abcdef >/etc/machine-id && \
     SYSTEMD_FORCE_MEASURE=1 /usr/lib/systemd/systemd-pcrextend --machine-id";
const MACHINE_ID: &str = "machine-id:0123456789abcdef0123456789abcdef";

/// The volume on a disk of volumes.
fn first_volume(disk: &ScratchDisk) -> Result<VolumeFile> {
    let size = fs::metadata(volume()?.path())?.len();
    VolumeFile::of_partition(disk, 0, size, PASSPHRASE)
}

/// What a manifest pins of it.
fn pin(volume: &VolumeFile) -> Result<String> {
    let key = VolumeKey::from_bytes(Zeroizing::new(volume.volume_key()?));
    Ok(hex::encode(key.id("state", &volume.uuid()?.parse()?).as_bytes()))
}

/// `iofs-sign predict` of a sealed directory.
fn predicted(verifier: &Verifier, chain: &Chain) -> Result<Value> {
    let key = cache::workspace().join("keys-example/DO-NOT-SHIP-example-1.pub.pem");
    let directory = chain.directory().path().to_owned();
    let ran = verifier.run(&["--json".into(), "predict".into(), directory.into(), "--key".into(), key.into()])?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    Ok(serde_json::from_slice(&ran.stdout)?)
}

/// The last predicted value of register 15.
fn of_15(predicted: &Value, bank: PcrBank) -> Option<&str> {
    let events = predicted["predictions"][0]["banks"][bank.name()].as_array()?;
    events.iter().rfind(|event| event["pcr"] == 15)?["value"].as_str()
}

#[test]
fn the_next_release_is_attested_with_the_machine_s_own_register_15_and_its_pinned_volume_is_predicted() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let pinned = pin(&first_volume(&enrolled.volumes)?)?;
    let next = attester(&enrolled.keys, "quiet next=1", |request| {
        request.config.image.version = Some("8".parse().expect("valid"));
        let mut volume = volume_section().expect("valid");
        volume.volume_key = Some(pinned.parse().expect("a digest"));
        request.config.volumes = vec![volume];
    })?;
    let tpm = enrolled.tpm.copied()?;
    let mut running = enrolled.hardware(&tpm).boot("next_release", &next, &next.firmware_image()?, PASSPHRASE)?;
    let ask = |shell: &mut _| enrolled.verifier.ask(shell, &format!("--pcrs {PCRS}"));
    let quoted = ask(&mut running.shell)?;
    let both = [&enrolled.chain, &next];
    enrolled.attested(&quoted, &enrolled.policy, &both)?;

    // Known beforehand in the bank whose event is pinned, and in no other.
    let known = predicted(&enrolled.verifier, &next)?;
    let evidence = Evidence::from_json(&fs::read(&quoted.evidence)?)?;
    ensure!(of_15(&known, PcrBank::Sha256) == Some(evidence.pcrs["sha256"][&15].as_str()), "{known:#}");
    ensure!(of_15(&known, PcrBank::Sha384).is_none(), "{known:#}");
    ensure!(
        known["notes"].to_string().contains("PCR 15 (sha384) is the machine's own: a pinned volume_key"),
        "{known:#}"
    );
    let unpinned = predicted(&enrolled.verifier, &enrolled.chain)?;
    ensure!(of_15(&unpinned, PcrBank::Sha256).is_none(), "{unpinned:#}");
    let notes = unpinned["notes"].to_string();
    ensure!(notes.contains("PCR 15 (sha256) is the machine's own: volume state: no volume_key is pinned"), "{notes}");

    // Another release's manifest, where only the first one is known.
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "unknown-image", "{}", told.message);
    let [expected, found] = [&enrolled.chain, &next].map(|chain| chain.release().map(|it| it.manifest_digest));
    let expected = format!("PCR 13 event 1: predicted manifest:{}", expected?);
    told.explains(&[&expected, &format!("the log has manifest:{}", found?)])?;

    // What systemd adds is one event more, until it is learnt.
    running.shell.output(MEASURE_MACHINE_ID, COMMAND)?;
    let quoted = ask(&mut running.shell)?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &both)?;
    ensure!(told.reason == "identity", "{}", told.message);
    told.explains(&["PCR 15 event 2: expected nothing more, as learnt", MACHINE_ID])?;
    let with_machine_id = enrolled.verifier.file("with-machine-id.toml");
    enrolled.learn(&quoted, &enrolled.policy, &with_machine_id, &both)?;
    enrolled.attested(&quoted, &with_machine_id, &both)?;
    lies_are_refused(&enrolled, &quoted, &with_machine_id, &both)
}

/// A label that is not what was measured, and another story.
fn lies_are_refused(enrolled: &Enrolled, quoted: &Quoted, policy: &Path, references: &[&Chain]) -> Result<()> {
    type Forgery = fn(&mut Vec<Record>);
    let forgeries: [(&str, Forgery); 3] = [
        ("relabelled", |log| {
            if let Some(last) = log.last_mut() {
                last.content.string = Some("machine-id:ffffffffffffffffffffffffffffffff".to_owned());
            }
        }),
        ("replay", |log| drop(log.pop())),
        ("replay", |log| log.retain(|record| record.content.event_type.as_deref() != Some("volume-key"))),
    ];
    for (reason, forge) in forgeries {
        let forged = enrolled.verifier.forged(quoted, |evidence| {
            let mut log = measurement_log::parse(evidence.measurement_log.as_deref().context("a log")?)?;
            forge(&mut log);
            evidence.measurement_log = Some(Base64Bytes(log.iter().flat_map(Record::to_bytes).collect()));
            Ok(())
        })?;
        let told = enrolled.refused(&forged, policy, references)?;
        ensure!(told.reason == reason, "{reason}: {}", told.message);
    }
    Ok(())
}

/// The same name, UUID and passphrase: who made it knows what the owner types.
#[test]
fn rogue_root_a_volume_of_somebody_else_in_the_place_of_the_machine_s_own_is_refused() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let (tpm, rogue) = (enrolled.tpm.copied()?, volume()?);
    let uuid = first_volume(&enrolled.volumes)?.uuid()?;
    rogue.cryptsetup(&format!("luksUUID --uuid {uuid}"))?;
    let volumes = disk_of(&[("state", &rogue)])?;
    let hardware = Hardware { volumes: volumes.path(), ..enrolled.hardware(&tpm) };
    let mut running = hardware.boot("rogue_volume", &enrolled.chain, &enrolled.chain.firmware_image()?, PASSPHRASE)?;
    let quoted = enrolled.verifier.ask(&mut running.shell, &format!("--pcrs {PCRS}"))?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "identity", "{}", told.message);
    // The labels are the same: only the digests tell, which take the keys.
    let label = format!("cryptsetup:state:{uuid} (sha");
    ensure!(told.message.matches(&label).count() == 2, "{}", told.message);
    told.explains(&["PCR 15 event 1: expected ", &label, "as learnt; the log has "])
}

#[test]
fn a_machine_whose_volume_stayed_shut_is_refused() -> Result<()> {
    let enrolled = Enrolled::shared()?;
    let tpm = enrolled.tpm.copied()?;
    let hardware = enrolled.hardware(&tpm);
    let mut running =
        hardware.boot("volume_shut", &enrolled.chain, &enrolled.chain.firmware_image()?, "not the passphrase")?;
    let quoted = enrolled.verifier.ask(&mut running.shell, &format!("--pcrs {PCRS}"))?;
    let told = enrolled.refused(&quoted, &enrolled.policy, &[&enrolled.chain])?;
    ensure!(told.reason == "identity" && told.message.ends_with("found the end of the log"), "{}", told.message);
    told.explains(&["PCR 15 event 1: expected cryptsetup:state:", "as learnt; the log has nothing more"])
}
