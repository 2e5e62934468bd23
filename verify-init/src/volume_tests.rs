//! Boots with encrypted volumes on the machine in memory. The volumes are real ones, by cryptsetup.

use std::{fs, path::Path, process::Command, sync::OnceLock};

use iofs_policy::{
    boot_record::{BootRecord, UnlockedBy},
    digest::Sha256Digest,
    failure::Stage,
    hex,
    manifest::{DataUse, FileSystem, Manifest, Place, UnlockRules, UpperUse, Volume, VolumeUse},
    measurement_log,
    paths::{BOOT_RECORD, MEASUREMENT_LOG},
    pcr::{PcrBank, PcrDigest, PcrIndex, extend},
};
use nix::errno::Errno;
use uuid::Uuid;

use crate::{
    boot,
    fake::{Fake, manifest},
    fake_tpm::FakeTpm,
    system::Access,
    tests::{booted, each_failing_call, refused_by, report, with_sata},
};

const PASSPHRASE: &str = "correct horse";
const UUID: &str = "11111111-2222-3333-4444-555555555555";
const BYTES: usize = 2 << 20;

/// A device that cryptsetup formatted, and its volume key.
struct Formatted {
    bytes: Vec<u8>,
    key: Vec<u8>,
}

fn formatted() -> &'static Formatted {
    static FORMATTED: OnceLock<Formatted> = OnceLock::new();
    FORMATTED.get_or_init(|| {
        let home = tempfile::tempdir().unwrap();
        let [device, passphrase, key] = ["device", "passphrase", "key"].map(|name| home.path().join(name));
        fs::write(&device, vec![0; BYTES]).unwrap();
        fs::write(&passphrase, PASSPHRASE).unwrap();
        let small = ["--luks2-metadata-size=16k", "--luks2-keyslots-size=512k", "--pbkdf=pbkdf2"];
        let cheap = ["--pbkdf-force-iterations=1000", "--uuid", UUID];
        cryptsetup("luksFormat", &passphrase, &[&["--type=luks2"][..], &small, &cheap].concat(), &device);
        let dump = ["--dump-volume-key", "--volume-key-file", key.to_str().unwrap()];
        cryptsetup("luksDump", &passphrase, &dump, &device);
        Formatted { bytes: fs::read(&device).unwrap(), key: fs::read(&key).unwrap() }
    })
}

fn cryptsetup(verb: &str, passphrase: &Path, options: &[&str], device: &Path) {
    let mut command = Command::new("cryptsetup");
    command.args([verb, "--batch-mode", "--key-file"]).arg(passphrase).args(options).arg(device);
    let output = command.output().expect("cryptsetup: apt-get install cryptsetup-bin");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// HMAC by the volume key with a bank's hash, as openssl would: `printf TEXT | openssl mac -digest … -macopt hexkey:… HMAC`.
fn hmac(bank: PcrBank, text: &str) -> PcrDigest {
    let block = if matches!(bank, PcrBank::Sha1 | PcrBank::Sha256) { 64 } else { 128 };
    let mut key = formatted().key.clone();
    key.resize(block, 0);
    let pad = |mask: u8| key.iter().map(|byte| byte ^ mask).collect::<Vec<u8>>();
    let inner = PcrDigest::of(bank, &[&pad(0x36), text.as_bytes()]);
    PcrDigest::of(bank, &[&pad(0x5c), inner.as_bytes()])
}

fn key_id() -> Sha256Digest {
    let digest = hmac(PcrBank::Sha256, &format!("cryptsetup:state:{UUID}"));
    Sha256Digest::from_bytes(digest.as_bytes().try_into().unwrap())
}

pub(crate) fn state() -> Volume {
    Volume {
        name: "state".parse().unwrap(),
        place: Place::Disk("vdb".parse().unwrap()),
        luks_uuid: Some(UUID.parse().unwrap()),
        volume_key: Some(key_id()),
        usage: VolumeUse::Data(DataUse {
            path: "/var/lib/app".parse().unwrap(),
            file_system: FileSystem::Ext4,
            options: vec!["nodev".parse().unwrap(), "commit=60".parse().unwrap()],
        }),
        unlock: UnlockRules { tpm: false, passphrase: true, ..UnlockRules::default() },
        optional: false,
    }
}

fn with_volume(change: impl FnOnce(&mut Manifest)) -> Manifest {
    let mut manifest = manifest();
    manifest.volumes = vec![state()];
    change(&mut manifest);
    assert_eq!(manifest.check(), Ok(()));
    manifest
}

/// A machine with the volume on a second disk, a TPM, and somebody who types these.
fn machine(manifest: &Manifest, answers: &[Option<&'static str>]) -> Fake {
    let mut fake = Fake::sealed(manifest);
    fake.crypt = true;
    fake.add_disk("vdb", BYTES as u64, &[]);
    fake.put("/dev/vdb", &formatted().bytes);
    fake.put("/proc/meminfo", b"MemTotal: 500000 kB\nMemAvailable: 400000 kB\n");
    fake.put("/sys/class/tpm/tpm0/tpm_version_major", b"2\n");
    fake.tpm = Some(FakeTpm::with_banks(&[PcrBank::Sha1, PcrBank::Sha256]));
    fake.answers = answers.iter().copied().collect();
    fake
}

fn opened(change: impl FnOnce(&mut Manifest)) -> Fake {
    let mut fake = machine(&with_volume(change), &[Some(PASSPHRASE)]);
    assert_eq!(boot(&mut fake), booted(), "{}", fake.console);
    fake
}

fn record(fake: &Fake) -> BootRecord {
    serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap()
}

fn at(fake: &Fake, call: &str) -> usize {
    fake.calls
        .iter()
        .position(|one| one.starts_with(call))
        .unwrap_or_else(|| panic!("no call {call}: {:#?}", fake.calls))
}

#[test]
fn a_passphrase_opens_a_data_volume_and_it_is_mounted_in_the_new_root() {
    let fake = opened(|_| {});
    let record = record(&fake);
    let volume = &record.volumes[0];
    assert_eq!((volume.by, volume.keyslot, volume.token), (UnlockedBy::Passphrase, 0, None));
    assert_eq!((volume.device.as_str(), volume.mapping.as_str()), ("/dev/vdb", "/dev/dm-3"));
    assert!(record.stages.iter().any(|time| time.stage == Stage::Unlocked));
    let mounted = "mount_in_root /sysroot ext4 /dev/dm-3 /var/lib/app 0x4 commit=60";
    assert!(at(&fake, "mount overlay") < at(&fake, mounted) && at(&fake, mounted) < at(&fake, "move_mount"));
    assert_eq!(fake.count("link /dev/mapper/state -> ../dm-3"), 1);
    assert_eq!(fake.count("create_folder /sysroot/var/lib/app"), 1);
    assert_eq!(record.warnings, [""; 0]);
}

#[test]
fn who_may_be_asked_has_a_keyboard_whatever_bus_it_is_on() {
    let mut fake = with_sata(machine(&with_volume(|_| {}), &[Some(PASSPHRASE)]));
    assert_eq!(boot(&mut fake), booted(), "{}", fake.console);
    assert!(at(&fake, "load_module /lib/modules/6.1.0-test/scsi_mod.ko") < at(&fake, "ask_secret"));
}

#[test]
fn the_key_is_in_the_keyring_while_the_table_is_loaded_and_nowhere_else() {
    let fake = opened(|_| {});
    let key = hex::encode(&formatted().key);
    assert_eq!(fake.keys_seen, [formatted().key.clone()]);
    assert!(fake.keys.is_empty(), "it was taken out");
    assert!(at(&fake, "add_key") < at(&fake, "create_mapping state"));
    assert_eq!(at(&fake, "remove_key"), at(&fake, "create_mapping state") + 1);
    let (access, table) = &fake.tables["state"];
    assert_eq!(*access, Access::ReadWrite);
    assert!(
        table.text.starts_with(&format!("aes-xts-plain64 :64:logon:cryptsetup:{UUID}-d0 0 253:0 ")),
        "{}",
        table.text
    );
    assert_eq!(fake.count(&format!("create_mapping state CRYPT-LUKS2-{}-state", UUID.replace('-', ""))), 1);
    let files = fake.files.iter().filter(|(path, _)| path.as_str() != "/dev/vdb");
    let said = [fake.console.clone(), fake.log.join("\n"), fake.calls.join("\n"), table.text.clone()].concat();
    assert!(!said.contains(&key) && !said.contains(PASSPHRASE));
    for (path, bytes) in files {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(&key) && !text.contains(PASSPHRASE), "{path}");
        assert!(!bytes.windows(64).any(|window| window == formatted().key), "{path}");
    }
}

#[test]
fn rogue_root_every_open_is_latched_in_each_bank_by_passphrase_too() {
    let fake = opened(|_| {});
    let text = format!("cryptsetup:state:{UUID}");
    for bank in [PcrBank::Sha1, PcrBank::Sha256] {
        let expected = extend(&PcrDigest::zero(bank), &hmac(bank, &text)).unwrap();
        assert_eq!(fake.tpm.as_ref().unwrap().value(PcrIndex::new(15).unwrap(), bank), expected);
    }
    let records = measurement_log::parse(&fake.files[MEASUREMENT_LOG]).unwrap();
    let types: Vec<_> = records.iter().map(|record| record.content.event_type.clone().unwrap()).collect();
    assert_eq!(types, ["phase", "iofs-command-line", "iofs-manifest", "volume-key", "phase"]);
    assert_eq!(records[3].content.string.as_deref(), Some(text.as_str()));
}

#[test]
fn rogue_root_a_volume_with_another_key_is_refused_before_it_is_mapped() {
    let other = Sha256Digest::of(b"another");
    let fake = machine(&with_volume(|it| it.volumes[0].volume_key = Some(other)), &[Some(PASSPHRASE)]);
    let (text, fake) = refused_by(fake);
    let lines = report(&text);
    assert_eq!(lines[0], "BOOT REFUSED before stage \"unlocked\": volume state: /dev/vdb is not the sealed volume");
    assert_eq!(lines[1..3], [format!("volume key {other}"), format!("volume key {}", key_id())]);
    assert_eq!(fake.count("add_key") + fake.count("create_mapping"), 0);
    let other = Uuid::from_u128(7);
    let fake = machine(&with_volume(|it| it.volumes[0].luks_uuid = Some(other)), &[Some(PASSPHRASE)]);
    let (text, fake) = refused_by(fake);
    assert_eq!(report(&text)[2], format!("LUKS UUID {UUID}"));
    assert_eq!(fake.count("ask_secret"), 0, "nobody is asked for it");
}

#[test]
fn luks_cipher_null_a_header_that_names_another_cipher_is_refused_before_anybody_is_asked() {
    let mut fake = machine(&with_volume(|_| {}), &[Some(PASSPHRASE)]);
    let device = fake.device("/dev/vdb");
    for start in [0, 16384] {
        let header = &mut device[start..start + 16384];
        let text = String::from_utf8_lossy(&header[4096..]).replace("\"aes-xts-plain64\"", "\"cipher_null-ecb\"");
        let json = text.trim_end_matches('\0').as_bytes();
        header[4096..].fill(0);
        header[4096..4096 + json.len()].copy_from_slice(json);
        let signed = iofs_luks::with_checksum(header.to_vec());
        header.copy_from_slice(&signed);
    }
    let (text, fake) = refused_by(fake);
    assert_eq!(
        report(&text)[0],
        "BOOT REFUSED before stage \"unlocked\": volume state: the header on /dev/vdb is refused"
    );
    assert!(report(&text)[2].contains("cipher_null"), "{text}");
    assert_eq!(fake.count("ask_secret"), 0);
}

#[test]
fn overlay_upper_without_integrity_is_refused_before_anybody_is_asked() {
    let upper = VolumeUse::Upper(UpperUse { file_system: FileSystem::Ext4, options: vec![] });
    let manifest = with_volume(|it| (it.overlay, it.volumes[0].usage) = (None, upper));
    let (text, fake) = refused_by(machine(&manifest, &[Some(PASSPHRASE)]));
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"unlocked\": volume state: what is written to the root would not be protected",
            "an integrity-protected volume for an upper layer",
            "aes-xts-plain64 without integrity"
        ]
    );
    assert_eq!(fake.count("ask_secret") + fake.count("create_mapping"), 0);
}

#[test]
fn debug_shell_wrong_passphrases_end_in_the_sealed_action() {
    let answers = [Some("wrong"), Some(""), Some("Correct horse"), Some(PASSPHRASE)];
    let (text, fake) = refused_by(machine(&with_volume(|_| {}), &answers));
    let lines = report(&text);
    assert_eq!(lines[0], "BOOT REFUSED before stage \"unlocked\": volume state stays shut");
    assert_eq!(lines[1], "what opens it, by a passphrase");
    assert!(lines[2].contains("passphrase, try 1: ") && lines[2].contains("passphrase, try 3: "), "{text}");
    assert_eq!(lines[4], "halt");
    assert_eq!((fake.count("ask_secret"), fake.count("create_mapping")), (3, 0));
    let mut second = machine(&with_volume(|_| {}), &[Some("wrong"), Some(PASSPHRASE)]);
    assert_eq!(boot(&mut second), booted());
}

#[test]
fn debug_shell_a_closed_console_ends_in_the_sealed_action() {
    let (text, fake) = refused_by(machine(&with_volume(|_| {}), &[None, Some(PASSPHRASE)]));
    assert_eq!(report(&text)[2], "Passphrase or recovery key: the console was closed, or gave no answer");
    assert_eq!(fake.count("ask_secret"), 1);
}

#[test]
fn debug_shell_nobody_is_asked_where_no_passphrase_is_sealed() {
    let rules = UnlockRules::default();
    let (text, fake) = refused_by(machine(&with_volume(|it| it.volumes[0].unlock = rules), &[Some(PASSPHRASE)]));
    assert_eq!(report(&text)[1..3], ["what opens it, by the TPM", "no token of a TPM without a PIN"]);
    assert_eq!(fake.count("ask_secret"), 0);
}

/// The values of register 11 once the phase is closed.
fn is_closed(fake: &Fake) {
    for bank in [PcrBank::Sha1, PcrBank::Sha256] {
        let words = [b"enter-initrd".as_slice(), b"leave-initrd"];
        let value = words
            .iter()
            .fold(PcrDigest::zero(bank), |value, word| extend(&value, &PcrDigest::of(bank, &[word])).unwrap());
        assert_eq!(fake.tpm.as_ref().unwrap().value(PcrIndex::PHASES, bank), value, "{bank}");
    }
}

#[test]
fn replay_after_switch_root_the_phase_ends_right_after_the_last_volume_is_open() {
    let fake = opened(|_| {});
    is_closed(&fake);
    let extends: Vec<usize> = (0..fake.calls.len()).filter(|at| fake.calls[*at] == "tpm 82").collect();
    assert_eq!(extends.len(), 5);
    assert!(at(&fake, "ask_secret") < extends[3], "the volume's key after it was opened");
    assert!(extends[3] < at(&fake, "add_key"));
    assert!(at(&fake, "create_mapping state") < extends[4] && extends[4] < at(&fake, "create_mapping root"));
    let last_read = fake.calls.iter().rposition(|call| call == "tpm 7e").unwrap();
    assert!(last_read > at(&fake, "mount_in_root"), "and it is confirmed before the root is entered");
}

#[test]
fn replay_after_switch_root_a_volume_that_stays_shut_ends_the_phase_too() {
    let (_, fake) = refused_by(machine(&with_volume(|_| {}), &[None]));
    is_closed(&fake);
    let mut optional = machine(&with_volume(|it| it.volumes[0].optional = true), &[None]);
    assert_eq!(boot(&mut optional), booted());
    is_closed(&optional);
    assert!(record(&optional).warnings.iter().any(|warning| warning.contains("volume state stays shut")));
    assert_eq!(optional.count("mount_in_root"), 0);
}

#[test]
fn replay_after_switch_root_a_bank_that_is_left_out_is_noticed() {
    let required = with_volume(|it| it.tpm.usage = iofs_policy::manifest::TpmUse::Required);
    let mut fake = machine(&required, &[Some(PASSPHRASE)]);
    fake.tpm.as_mut().unwrap().stuck = Some(PcrBank::Sha1);
    let (text, _) = refused_by(fake);
    assert_eq!(
        report(&text)[0],
        "BOOT REFUSED before stage \"unlocked\": the end of the initramfs phase cannot be confirmed in every bank of the TPM"
    );
    let mut preferred = machine(&with_volume(|_| {}), &[Some(PASSPHRASE)]);
    preferred.tpm.as_mut().unwrap().stuck = Some(PcrBank::Sha1);
    assert_eq!(boot(&mut preferred), booted());
    assert!(record(&preferred).warnings.iter().any(|warning| warning.contains("every bank of the TPM")));
}

#[test]
fn an_optional_volume_that_is_not_there_is_a_warning_after_a_short_wait() {
    let mut fake = machine(&with_volume(|it| it.volumes[0].optional = true), &[]);
    fake.files.retain(|path, _| !path.starts_with("/sys/block/vdb"));
    assert_eq!(boot(&mut fake), booted());
    assert_eq!(record(&fake).warnings, ["volume state: no device /dev/vdb: the boot goes on without it"]);
    assert!(fake.count("next_event") < 40);
    let mut required = machine(&with_volume(|_| {}), &[]);
    required.files.retain(|path, _| !path.starts_with("/sys/block/vdb"));
    let (text, _) = refused_by(required);
    assert_eq!(report(&text)[1], "/dev/vdb (volume state)");
}

#[test]
fn a_kernel_without_dm_crypt_is_named() {
    let mut fake = machine(&with_volume(|_| {}), &[]);
    fake.crypt = false;
    let (text, _) = refused_by(fake);
    assert_eq!(report(&text)[0], "BOOT REFUSED before stage \"found\": kernel without dm-crypt");
}

#[test]
fn an_image_in_a_volume_is_verified_inside_it() {
    let manifest = with_volume(|it| {
        it.volumes[0].usage = VolumeUse::Image;
        let inside = Place::Volume("state".parse().unwrap());
        (it.data, it.tree) = (inside.clone(), inside);
        it.verity.hash_offset = 100 * 4096;
        it.verity.superblock_uuid = None;
    });
    let mut fake = machine(&manifest, &[Some(PASSPHRASE)]);
    assert_eq!(boot(&mut fake), booted(), "{}", fake.console);
    assert_eq!(fake.tables["state"].0, Access::ReadOnly);
    assert!(fake.tables["root"].1.text.starts_with("1 252:3 252:3 4096 4096 100 100 sha256 "));
    assert_eq!(record(&fake).data_device, "/dev/dm-3");
}

#[test]
fn each_failing_call_with_a_volume_is_either_cosmetic_or_a_refusal() {
    let manifest = with_volume(|it| it.tpm.usage = iofs_policy::manifest::TpmUse::Required);
    each_failing_call(|| machine(&manifest, &[Some(PASSPHRASE)]), &[Errno::EIO]);
}
