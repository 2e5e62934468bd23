//! What we sign for register 11, as systemd's own programs take it in a Debian that our image booted.

use anyhow::{Context, Result, ensure};
use iofs_attest::base64_bytes::Base64Bytes;
use iofs_policy::{
    manifest::TpmUse,
    pcr::PcrBank,
    pcr_signature::{PcrSignature, PcrSignatures},
};
use iofs_sign::{
    pe::Headers,
    uki::{self, Part},
};
use swtpm_tests::{
    Disk, FirmwareImage, Machine, PcrKey, SecureBoot, TpmState,
    chain::Chain,
    image::section,
    volume::{VolumeFile, disk_of},
    workshop::{self, Workshop},
};

/// The variable by which firmware says that it enforces Secure Boot (UEFI, Globally Defined Variables).
const SECURE_BOOT: &str = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const PASSPHRASE: &str = "correct horse battery staple";
const CONTENT: &str = "behind our signature";
/// While verify-init opens volumes: what `seal` signs.
const INITRAMFS: &str = "enter-initrd";
/// When a Debian is up. verify-init measures the first two words, systemd the others.
const RUNNING: &str = "enter-initrd:leave-initrd:sysinit:ready";
/// Where the running system has what its image brings, and systemd's programs look for it.
const IMAGES_OWN: &str = "/run/systemd/tpm2-pcr-signature.json";
const IMAGES_KEY: &str = "/run/systemd/tpm2-pcr-public-key.pem";
/// Where they are out of the way.
const ASIDE: &str = "/run/signatures.json";
/// What systemd says where the file has signatures, and none that is by this key for what register 11 holds.
const NO_SIGNATURE: &str = "Couldn't find signature for this PCR bank, PCR index and public key.";
/// And where the TPM refuses one.
const NOT_VALID: &str = "Failed to validate signature in TPM: ";

/// A Debian with systemd's programs for volumes, sealed into an image for firmware.
fn sealed(keys: &SecureBoot, pcr: &PcrKey) -> Result<Chain> {
    let image = FirmwareImage::new(keys, "trixie", "quiet")?.with_registers(pcr.signer()?);
    Chain::seal("trixie", &workshop::image("trixie")?, |request| {
        image.ask(request);
        request.config.tpm.usage = TpmUse::Required;
    })
}

/// Its image, with signatures for a system that is up beside those for the initramfs.
fn image(chain: &Chain, keys: &SecureBoot, pcr: &PcrKey) -> Result<Vec<u8>> {
    let sealed = chain.firmware_image()?;
    let signatures = pcr.sign(&sealed, &[INITRAMFS, RUNNING])?;
    keys.resigned(&sealed, "trixie", Some(&signatures))
}

/// The running system must be where the image was signed for: in the last phase.
fn is_in_the_last_phase(device: &mut Workshop, image: &[u8]) -> Result<()> {
    let predicted = uki::predict(&Headers::parse(image)?, image, PcrBank::Sha256)?;
    let found = device.register(PcrBank::Sha256, 11)?;
    let there = predicted.iter().find(|one| one.value == found).map(|one| one.phase.as_str());
    ensure!(there == Some(RUNNING), "register 11: expected that of {RUNNING}, found {found}, that of {there:?}");
    Ok(())
}

/// These signatures, as if this key had made them.
fn claimed(signatures: &PcrSignatures, by: &PcrKey) -> Result<PcrSignatures> {
    let key = by.signer()?.public().fingerprint();
    let mut claimed = PcrSignatures::default();
    for (bank, signature) in signatures.iter() {
        claimed.insert(bank, PcrSignature { key, ..signature.clone() });
    }
    Ok(claimed)
}

/// Opens the volume with systemd's program by the signatures of a file, or else by those that it finds, and says what is in it,
/// or why it stays shut.
fn attach(device: &mut Workshop, signatures: Option<&str>) -> Result<Result<String, String>> {
    let file = signatures.map(|file| format!("tpm2-signature={file},")).unwrap_or_default();
    let options = format!("tpm2-device=auto,{file}headless=1");
    let ran = device.attempt(&format!(
        "set -e; SYSTEMD_LOG_LEVEL=debug systemd-cryptsetup attach state /dev/vdb1 - {options}
         mount -o ro /dev/mapper/state /mnt; cat /mnt/name; umount /mnt; systemd-cryptsetup detach state"
    ))?;
    let opened = String::from_utf8_lossy(&ran.stdout).into_owned();
    Ok(if ran.code == 0 { Ok(opened) } else { Err(opened + &ran.stderr) })
}

#[test]
fn a_volume_opens_with_systemd_257_by_our_signature_for_the_running_system_and_by_no_other() -> Result<()> {
    let (keys, pcr, tpm) = (SecureBoot::new()?, PcrKey::rsa()?, TpmState::new()?);
    let chain = sealed(&keys, &pcr)?;
    let image = image(&chain, &keys, &pcr)?;
    let volumes = disk_of(&[("state", &VolumeFile::with_file(PASSPHRASE, "name", CONTENT)?)])?;
    let (disk, _) = chain.disk_that_starts(&image)?;
    let machine = Machine::named("signed_policy").secure_boot(&keys).tpm(&tpm).memory_mib(1024);
    let vm = machine.disk(Disk::raw(disk.path())).disk(Disk::raw(volumes.path())).start()?;
    let mut device = Workshop::of(vm, disk)?;
    let enforced = device.run(&format!("tail -c 1 /sys/firmware/efi/efivars/{SECURE_BOOT} | od -An -t u1"))?;
    ensure!(enforced.trim() == "1", "Secure Boot: expected 1, found {enforced}");
    is_in_the_last_phase(&mut device, &image)?;

    // The stub put these two into the initramfs, which is gone by now.
    for (path, part) in [(IMAGES_OWN, Part::PcrSignature), (IMAGES_KEY, Part::PcrPublicKey)] {
        let found = device.run(&format!("base64 --wrap=0 {path}"))?;
        ensure!(String::from(Base64Bytes(section(&image, part)?)) == found, "{path} is the image's {part}");
    }
    device.put("/run/passphrase", PASSPHRASE.as_bytes())?;
    device.run(&format!(
        "systemd-cryptenroll --unlock-key-file=/run/passphrase --tpm2-device=/dev/tpmrm0 --tpm2-pcrs= \
         --tpm2-public-key-pcrs=11 --tpm2-signature={IMAGES_OWN} /dev/vdb1"
    ))?;

    // What lies there is taken whatever other file is named.
    device.run(&format!("mv {IMAGES_OWN} {ASIDE}"))?;
    let by_another = PcrKey::rsa()?.sign(&image, &[INITRAMFS, RUNNING])?;
    for (other, signatures, why) in [
        ("/run/another-phase.json", &pcr.sign(&image, &[INITRAMFS, "enter-initrd:leave-initrd"])?, NO_SIGNATURE),
        ("/run/another-key.json", &by_another, NO_SIGNATURE),
        ("/run/forged.json", &claimed(&by_another, &pcr)?, NOT_VALID),
    ] {
        device.put(other, &signatures.to_json())?;
        let told = attach(&mut device, Some(other))?.err().with_context(|| format!("{other} opened it"))?;
        ensure!(told.contains(why), "{other}: {told}");
    }
    device.run(&format!("mv {ASIDE} {IMAGES_OWN}"))?;
    let opened = attach(&mut device, None)?;
    ensure!(opened.as_deref() == Ok(CONTENT), "{opened:?}");
    device.close()
}
