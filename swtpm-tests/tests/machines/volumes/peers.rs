//! Both directions with systemd's own programs: their tokens open in `verify-init`, ours open with theirs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use iofs_policy::{boot_record::UnlockedBy, measurement_log, paths::MEASUREMENT_LOG};
use serde_json::json;
use swtpm_tests::{
    TpmState,
    chain::Chain,
    volume::{VolumeFile, data_volume, disk_of},
    workshop::{self, Workshop, measured_at_unlock},
};

use super::support::{
    ASKS_PIN, Identity, PASSPHRASE, PIN, answer, boot_record, by_tpm, command_line, enroll, file_with, is_latched,
    machine, opened, sealed_volumes, with_signatures,
};

/// The registers that a release decides.
const REGISTERS: &str = "--tpm2-pcrs=11+12+13";
/// Where the volumes are mounted, by the names of their partitions.
const VOLUMES: [(&str, &str); 4] = [("registers", "/srv"), ("signed", "/mnt"), ("pin", "/opt"), ("ours", "/home")];
/// systemd's programs are not in the same place in both releases.
const ATTACH: &str =
    "$(ls /usr/bin/systemd-cryptsetup /usr/lib/systemd/systemd-cryptsetup 2>/dev/null | head -n 1) attach";

#[test]
fn tokens_of_systemd_252_open_at_boot_and_ours_open_with_its_programs() -> Result<()> {
    exchange("bookworm", &["--systemd-252"], false)
}

#[test]
fn tokens_of_systemd_257_open_at_boot_and_ours_open_with_its_programs() -> Result<()> {
    exchange("trixie", &[], true)
}

/// `words`: what this systemd needs of `iofs-sign enroll`. `measures`: whether this systemd measures the volumes that it opens, which it does since 253.
fn exchange(suite: &str, words: &[&str], measures: bool) -> Result<()> {
    let (tpm, folder) = (TpmState::new()?, tempfile::tempdir()?);
    let chain = workshop::device(suite, |request| {
        let unlock = [by_tpm(), by_tpm(), json!({ "tpm": false, "pin": true }), by_tpm()];
        let volumes = VOLUMES.iter().zip(&unlock).map(|((name, path), unlock)| data_volume(name, path, unlock));
        request.config.volumes = sealed_volumes(&volumes.collect::<Vec<_>>());
    })?;
    let volumes = VOLUMES.map(|(name, _)| VolumeFile::with_file(PASSPHRASE, "name", name));
    let [registers, signed, pin, ours] = volumes;
    let (registers, signed, pin, ours) = (registers?, signed?, pin?, ours?);
    let keys = SigningKey::new(folder.path())?;
    enroll_ours(&ours, &tpm, &chain, &keys, &file_with(folder.path(), "pin", PIN)?, words)?;
    let disk = disk_of(&[("registers", &registers), ("signed", &signed), ("pin", &pin), ("ours", &ours)])?;

    let mut workshop = Workshop::open(&format!("workshop_{suite}"), suite, &tpm, &[&disk])?;
    let signatures = keys.sign_phase(&mut workshop)?;
    workshop.reach(&measured_at_unlock(&chain, &command_line())?)?;
    theirs(&mut workshop, &signatures)?;
    open_ours(&mut workshop)?;
    if measures {
        // systemd opened this one volume, and measured what we say that it measures.
        is_latched(&mut workshop, &[Identity::of("ours", &ours)?])?;
    }
    workshop.close()?;

    let (root, _) = chain.disk()?;
    let machine = machine(&format!("peers_{suite}"), &chain, &root, &disk, &tpm);
    let machine = with_signatures(machine, &chain, &signatures, folder.path())?;
    let mut vm = machine.start()?;
    answer(&mut vm, ASKS_PIN, "pin", 1, 3, PIN)?;
    let mut device = Workshop::of(vm, root)?;
    let record = boot_record(&mut device)?;
    let by = [UnlockedBy::Tpm, UnlockedBy::Tpm, UnlockedBy::Pin, UnlockedBy::Tpm];
    let expected: Vec<_> = VOLUMES.iter().zip(by).map(|((name, _), by)| ((*name).to_owned(), by)).collect();
    ensure!(opened(&record) == expected, "{record:#?}");
    for (name, path) in VOLUMES {
        ensure!(device.run(&format!("cat {path}/name"))? == name, "{path} is another volume");
    }
    let opened = [("registers", &registers), ("signed", &signed), ("pin", &pin), ("ours", &ours)];
    let identities = opened.map(|(name, volume)| Identity::of(name, volume));
    is_latched(&mut device, &identities.into_iter().collect::<Result<Vec<_>>>()?)?;
    if measures {
        the_log_goes_on(&mut device)?;
    }
    device.close()
}

/// Three tokens of ours in one volume: bound to registers, to registers and a PIN, and to a signed policy.
fn enroll_ours(
    ours: &VolumeFile,
    tpm: &TpmState,
    chain: &Chain,
    keys: &SigningKey,
    pin: &str,
    words: &[&str],
) -> Result<()> {
    enroll(ours, tpm, chain, words)?;
    enroll(ours, tpm, chain, &[words, &["--pin", "--pin-file", pin]].concat())?;
    ours.enroll(tpm, &[words, &["--pcr-policy", &keys.public]].concat())
}

/// What signs policies for registers: made by OpenSSL, as systemd's manual has it.
struct SigningKey {
    private: Vec<u8>,
    public: String,
}

impl SigningKey {
    fn new(folder: &Path) -> Result<Self> {
        let openssl = swtpm_tests::tools::require("openssl", "apt-get install openssl")?;
        let (private, public) = (folder.join("policy.pem"), folder.join("policy.pub.pem"));
        for words in [
            format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {}", private.display()),
            format!("pkey -pubout -in {} -out {}", private.display(), public.display()),
        ] {
            let ran = std::process::Command::new(&openssl).args(words.split(' ')).output()?;
            ensure!(ran.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&ran.stderr));
        }
        let public = public.to_str().context("UTF-8")?.to_owned();
        Ok(Self { private: std::fs::read(private)?, public })
    }

    /// Signs the phase `enter-initrd` after what register 11 holds, which is nothing yet.
    fn sign_phase(&self, workshop: &mut Workshop) -> Result<String> {
        workshop.put("/run/policy.pem", &self.private)?;
        workshop.put("/run/policy.pub.pem", &std::fs::read(&self.public)?)?;
        workshop.run(
            "/usr/lib/systemd/systemd-measure sign --current --phase=enter-initrd --bank=sha256 \
             --private-key=/run/policy.pem --public-key=/run/policy.pub.pem --tpm2-device=/dev/tpmrm0",
        )
    }
}

/// Enrols with systemd's own program, in the state that the boot will have.
fn theirs(workshop: &mut Workshop, signatures: &str) -> Result<()> {
    workshop.put("/run/signatures.json", signatures.as_bytes())?;
    workshop.put("/run/passphrase", PASSPHRASE.as_bytes())?;
    let signed = "--tpm2-pcrs= --tpm2-public-key=/run/policy.pub.pem --tpm2-public-key-pcrs=11 \
                  --tpm2-signature=/run/signatures.json";
    for (environment, words, partition) in [
        ("", REGISTERS, "/dev/vdb1"),
        ("", signed, "/dev/vdb2"),
        (&*format!("NEWPIN={PIN}"), &*format!("{REGISTERS} --tpm2-with-pin=yes"), "/dev/vdb3"),
    ] {
        workshop.run(&format!(
            "{environment} systemd-cryptenroll --unlock-key-file=/run/passphrase --tpm2-device=/dev/tpmrm0 {words} {partition}"
        ))?;
    }
    Ok(())
}

/// Opens what `iofs-sign enroll` wrote: each token with cryptsetup and systemd's plug-in, and the volume with systemd-cryptsetup.
fn open_ours(workshop: &mut Workshop) -> Result<()> {
    workshop.run("mkdir -p /run/systemd && cp /run/signatures.json /run/systemd/tpm2-pcr-signature.json")?;
    for (token, input) in [(0, "</dev/null".to_owned()), (1, format!("<<<'{PIN}'")), (2, "</dev/null".to_owned())] {
        workshop
            .run(&format!("cryptsetup open --test-passphrase --token-only --token-id {token} /dev/vdb4 {input}"))?;
    }
    workshop.run(&format!(
        "set -e; SYSTEMD_FORCE_MEASURE=1 {ATTACH} ours /dev/vdb4 - tpm2-device=/dev/tpmrm0,headless=1,tpm2-measure-pcr=yes
         mount -o ro /dev/mapper/ours /mnt; cat /mnt/name; umount /mnt; cryptsetup close ours"
    ))
    .map(|_| ())
}

/// systemd opens the volume once more in the running system, and its record follows ours.
fn the_log_goes_on(device: &mut Workshop) -> Result<()> {
    let read = format!("cat {MEASUREMENT_LOG}");
    let before = measurement_log::parse(device.attempt(&read)?.stdout.as_slice())?;
    ensure!(before.iter().filter(|record| record.pcr == 15).count() == VOLUMES.len(), "{before:#?}");
    device.put("/run/passphrase", PASSPHRASE.as_bytes())?;
    device.run(&format!(
        "umount /home && dmsetup remove ours && chmod 600 /run/passphrase &&
         SYSTEMD_FORCE_MEASURE=1 {ATTACH} ours /dev/vdb4 /run/passphrase headless=1,tpm2-measure-pcr=yes"
    ))?;
    let after = measurement_log::parse(device.attempt(&read)?.stdout.as_slice())?;
    ensure!(after.len() == before.len() + 1 && after[..before.len()] == before[..], "{after:#?}");
    let (ours, theirs) = (&before[before.len() - 2], &after[before.len()]);
    ensure!(theirs.pcr == 15 && theirs.digests == ours.digests, "systemd: {theirs:#?}, ours: {ours:#?}");
    ensure!(theirs.content.string == ours.content.string, "systemd: {theirs:#?}, ours: {ours:#?}");
    Ok(())
}
