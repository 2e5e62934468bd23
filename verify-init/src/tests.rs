//! Whole boots on the machine in memory.

use std::collections::BTreeMap;

use iofs_policy::{
    boot_record::BootRecord,
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    failure::{FailureAction, Stage},
    hex,
    manifest::{Manifest, Place, RollbackIndex, SrkPublic, TpmRules, TpmUse},
    measurement::{Measurement, predict},
    measurement_log,
    paths::{BOOT_RECORD, MANIFEST, MEASUREMENT_LOG, MODULE_INDEX, TRUST},
    pcr::{PcrBank, PcrIndex},
};
use nix::errno::Errno;

use crate::{
    boot,
    fake::{End, Fake, manifest, partition_id},
    fake_tpm::FakeTpm,
    system::Access,
};

/// Calls whose failure is not the boot's: it goes on. Those in sysfs come again with the next look.
pub(crate) const COSMETIC: [&str; 29] = [
    "open_console",
    "print",
    "log",
    "watch_devices",
    "next_event",
    "list /sys/",
    "read /sys/",
    "read_at /dev/vda ",
    "link /dev/mapper/root",
    "link /run/systemd/volatile-root",
    "create_folder /run/systemd ",
    "create_folder /sysroot/",
    "write /run/iofs/boot.json",
    "read /.extra/",
    "load_module /lib/modules/6.1.0-test/dm-mod.ko",
    "load_module /lib/modules/6.1.0-test/virtio.ko",
    "delete_initramfs",
    // Second stages alone. klibc's own program still leaves one whose root the kernel takes for memory.
    "unmount /",
    "remove_mapping_later initoverlay",
    "mount_in_root /sysroot  /init ",
    // Volumes alone.
    "link /dev/mapper/",
    "remove_key",
    "read /proc/meminfo",
    "read /proc/sys/kernel/random/boot_id",
    // One of the two headers is enough.
    "read_at /dev/vdb 0 ",
    "read_at /dev/vdb 4096 ",
    "read_at /dev/vdb 16384 ",
    "mount overlay overlay /sysroot 0x4 lowerdir=/run/iofs/lower,upperdir=/run/iofs/overlay/upper,\
     workdir=/run/iofs/overlay/work,redirect_dir=nofollow,metacopy=off,volatile",
    "mount overlay overlay /run/iofs/second-stage 0x4 lowerdir=/run/iofs/lower,upperdir=/run/iofs/overlay/upper,\
     workdir=/run/iofs/overlay/work,redirect_dir=nofollow,metacopy=off,volatile",
];

const STAGES: [Stage; 8] = [
    Stage::Started,
    Stage::Verified,
    Stage::Measured,
    Stage::Found,
    Stage::Mapped,
    Stage::Mounted,
    Stage::Capped,
    Stage::Switched,
];

pub(crate) fn booted() -> End {
    End::Init("/sbin/init".to_owned(), vec!["one".to_owned(), "two".to_owned()])
}

fn sealed() -> Fake {
    Fake::sealed(&manifest())
}

/// A boot of a changed machine, which must be refused. Returns the report and the machine.
fn refused(change: impl FnOnce(&mut Fake)) -> (String, Fake) {
    let mut fake = sealed();
    change(&mut fake);
    refused_by(fake)
}

fn refused_with(change: impl FnOnce(&mut Manifest)) -> (String, Fake) {
    let mut manifest = manifest();
    change(&mut manifest);
    refused(|fake| fake.seal(&manifest))
}

pub(crate) fn refused_by(mut fake: Fake) -> (String, Fake) {
    let end = boot(&mut fake);
    assert!(matches!(end, End::Stopped(_)), "{end:?}: {}", fake.console);
    assert_eq!(fake.count("exec"), 0);
    let at = fake.console.find("BOOT REFUSED before stage ").expect("a report");
    (fake.console[at..].to_owned(), fake)
}

/// The report's lines without their labels.
pub(crate) fn report(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.trim_end().lines().collect();
    for (line, label) in lines.iter_mut().skip(1).zip(["  expected: ", "  found:    ", "  next:     ", "  action:   "])
    {
        *line = line.strip_prefix(label).unwrap_or_else(|| panic!("{line:?} lacks {label:?}"));
    }
    lines
}

#[test]
fn a_sealed_machine_boots_to_its_init() {
    let mut fake = sealed();
    assert_eq!(boot(&mut fake), booted());
    assert_eq!(fake.console, "", "quiet");
    assert_eq!(fake.armed, [FailureAction::PowerOff, FailureAction::Reboot, FailureAction::Halt]);
    let record: BootRecord = serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap();
    assert_eq!((record.data_device.as_str(), record.hash_device.as_str()), ("/dev/vda1", "/dev/vda2"));
    assert_eq!(record.warnings, [""; 0]);
    let stages: Vec<Stage> = record.stages.iter().map(|time| time.stage).collect();
    assert_eq!(stages, STAGES);
}

#[test]
fn each_stage_says_one_line_unless_quiet() {
    let mut fake = sealed();
    fake.put("/proc/cmdline", b"console=ttyS0\n");
    boot(&mut fake);
    let lines: Vec<&str> = fake.console.lines().collect();
    assert_eq!(lines.len(), 8, "{}", fake.console);
    for (line, start) in lines.iter().zip([
        "verify-init: started version 0.1.0 on kernel 6.1.0-test ",
        "verify-init: verified manifest of test 1.2 (key ",
        "verify-init: measured nothing: no TPM ",
        "verify-init: found data on /dev/vda1 and tree on /dev/vda2 ",
        "verify-init: mapped /dev/dm-3 with root hash 0102030405060708 ",
        "verify-init: mounted /dev/dm-3 under an overlay of 50% ",
        "verify-init: capped nothing ",
        "verify-init: switching to /sbin/init at ",
    ]) {
        assert!(line.starts_with(start) && line.ends_with(" ms"), "{line}");
    }
}

#[test]
fn modules_load_in_rounds_hardwares_first_and_with_the_command_lines_parameters() {
    let mut fake = sealed();
    fake.put("/proc/cmdline", b"virtio_blk.queue_depth=3 erofs.x=1 dm-mod.y=1 rd.driver.blacklist=dm-mod,erofs");
    assert!(matches!(boot(&mut fake), End::Init(..)));
    let loaded: Vec<String> = fake
        .modules
        .iter()
        .map(|(path, options)| format!("{} {options}", path.rsplit('/').next().unwrap()).trim_end().to_owned())
        .collect();
    assert_eq!(
        loaded,
        [
            "virtio.ko",
            "dm-mod.ko",
            "erofs.ko",
            "overlay.ko",
            "virtio_pci.ko",
            "dm-verity.ko",
            "virtio_blk.ko a=1 queue_depth=3"
        ]
    );
}

/// A machine that has SATA as well, by a module that needs another.
pub(crate) fn with_sata(mut fake: Fake) -> Fake {
    let index = String::from_utf8(fake.files[MODULE_INDEX].clone()).unwrap();
    let sata = "module ahci ahci.ko\nbefore scsi_mod\nalias pci:v00008086d*\n";
    let index = index.replace("module dm_mod", &format!("{sata}module dm_mod"));
    let index = index.replace("module virtio ", "module scsi_mod scsi_mod.ko\nmodule virtio ");
    fake.put(MODULE_INDEX, index.as_bytes());
    fake.put("/sys/bus/pci/devices/0000:00:01.0/uevent", b"MODALIAS=pci:v00008086d00002922\n");
    fake
}

#[test]
fn sata_waits_until_the_sealed_devices_are_known_to_be_elsewhere() {
    let mut fake = with_sata(sealed());
    assert_eq!(boot(&mut fake), booted());
    let loaded = |name: &str| fake.modules.iter().any(|(path, _)| path.ends_with(name));
    assert!(loaded("/virtio_blk.ko") && !loaded("/ahci.ko") && !loaded("/scsi_mod.ko"), "{:?}", fake.modules);
}

#[test]
fn a_sealed_device_behind_sata_is_found() {
    let mut fake = with_sata(sealed());
    fake.after_module.remove(0);
    fake.after_module[0].0 = "/lib/modules/6.1.0-test/ahci.ko";
    assert_eq!(boot(&mut fake), booted());
    let loaded: Vec<&str> = fake.modules.iter().map(|(path, _)| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(loaded[loaded.len() - 2..], ["scsi_mod.ko", "ahci.ko"]);
}

#[test]
fn a_blacklisted_hardware_module_is_not_loaded() {
    let (text, fake) = refused(|fake| fake.put("/proc/cmdline", b"rd.driver.blacklist=virtio-blk"));
    assert_eq!(fake.count("load_module /lib/modules/6.1.0-test/virtio_blk.ko"), 0);
    assert_eq!(report(&text)[2], "no block device");
}

#[test]
fn each_failing_call_is_either_cosmetic_or_a_refusal() {
    each_failing_call(sealed, &[Errno::EIO, Errno::EINVAL, Errno::ENOENT]);
}

/// Boots once for each call of a boot and each error, with that call failing.
pub(crate) fn each_failing_call(machine: impl Fn() -> Fake, errors: &[Errno]) {
    let mut clean = machine();
    let booted = boot(&mut clean);
    assert!(matches!(booted, End::Init(..)), "{}", clean.console);
    for number in 0..clean.calls.len() {
        for error in errors {
            let mut fake = machine();
            fake.fail = Some((number, *error));
            let end = boot(&mut fake);
            let call = fake.calls[number].clone();
            let no_modules = call == format!("read {MODULE_INDEX}") && *error == Errno::ENOENT;
            if COSMETIC.iter().any(|cosmetic| format!("{call} ").starts_with(cosmetic)) && !no_modules {
                assert_eq!(end, booted, "{call}: {error}\n{}", fake.console);
                continue;
            }
            assert!(matches!(end, End::Stopped(_)), "{call}: {error}: booted");
            assert_eq!(
                fake.calls.iter().filter(|one| one.starts_with("exec")).count(),
                usize::from(call.starts_with("exec"))
            );
            assert!(fake.console.contains("BOOT REFUSED before stage "), "{call}: {error}: no report");
            assert!(fake.log.iter().all(|record| record.starts_with("<3>") || record.starts_with("<4>")));
            assert!(fake.log.iter().any(|record| record.starts_with("<3>BOOT REFUSED before stage ")), "{call}");
            assert_eq!(end, End::Stopped(*fake.armed.last().unwrap()), "{call}");
        }
    }
}

#[test]
fn nothing_is_loaded_or_looked_at_before_the_signature_holds() {
    let (text, fake) = refused(|fake| {
        let envelope = String::from_utf8(fake.files[MANIFEST].clone()).unwrap();
        let at = envelope.find("\"sig\":\"").unwrap() + 12;
        let letter = if &envelope[at..=at] == "A" { "B" } else { "A" };
        fake.put(MANIFEST, format!("{}{letter}{}", &envelope[..at], &envelope[at + 1..]).as_bytes());
    });
    let lines = report(&text);
    assert_eq!(lines[0], "BOOT REFUSED before stage \"verified\": the manifest's signature does not verify");
    assert!(lines[2].starts_with("signature by trusted key "), "{text}");
    assert_eq!(lines[4], "reboot", "the trust policy's action, since the manifest's cannot be believed");
    for call in
        ["load_module", "read_at", "list", "read /sys", "read /etc/iofs/modules", "watch", "mapper", "create_mapping"]
    {
        assert_eq!(fake.count(call), 0, "{call}");
    }
}

#[test]
fn without_a_trust_policy_the_machine_is_turned_off() {
    let (text, fake) = refused(|fake| drop(fake.files.remove(TRUST)));
    assert_eq!(report(&text)[0], "BOOT REFUSED before stage \"started\": /etc/iofs/trust.json cannot be read");
    assert_eq!(fake.armed, [FailureAction::PowerOff]);
    let (text, _) = refused(|fake| fake.put(TRUST, b"{}"));
    assert!(text.contains("the trust policy is malformed"), "{text}");
    let (text, _) = refused(|fake| fake.put(MANIFEST, &vec![b' '; 300_000]));
    assert!(text.contains("expected: a file of at most 262144 bytes"), "{text}");
}

#[test]
fn rollback_violation_fails_the_boot() {
    let (text, _) = refused_with(|manifest| manifest.image.rollback_index = RollbackIndex(4));
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"verified\": the image is older than this machine accepts",
            "rollback index 5 or higher",
            "rollback index 4"
        ]
    );
}

#[test]
fn another_image_fails_the_boot() {
    let (text, _) = refused_with(|manifest| manifest.image.id = "other".parse().unwrap());
    assert_eq!(
        report(&text)[..3],
        ["BOOT REFUSED before stage \"verified\": the manifest is for another image id", "test", "other"]
    );
}

#[test]
fn cmdline_injection_fails_the_boot() {
    let (text, _) = refused(|fake| fake.put("/proc/cmdline", b"quiet init=/bin/sh"));
    assert_eq!(
        report(&text),
        [
            "BOOT REFUSED before stage \"verified\": the kernel command line contradicts the sealed configuration",
            "\"/sbin/init\", as sealed",
            "init=/bin/sh",
            "remove the parameter in the boot loader, or seal an image that allows it",
            "halt"
        ]
    );
}

#[test]
fn another_kernel_fails_the_boot() {
    let (text, _) = refused_with(|manifest| manifest.kernel_release = Some("6.1.0-other".into()));
    assert_eq!(report(&text)[0], "BOOT REFUSED before stage \"verified\": this is not the sealed kernel");
    let mut unsealed = manifest();
    unsealed.kernel_release = None;
    let (text, _) = refused(|fake| {
        fake.seal(&unsealed);
        fake.put("/proc/sys/kernel/osrelease", b"6.1.0-other\n");
    });
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"found\": kernel and modules are of different releases",
            "modules for kernel 6.1.0-other",
            "modules for 6.1.0-test"
        ]
    );
}

#[test]
fn a_module_that_is_always_needed_is_named_when_it_fails() {
    let (text, _) = refused(|fake| fake.broken.push(("load_module /lib/modules/6.1.0-test/erofs.ko", Errno::ENOENT)));
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"found\": kernel module erofs cannot be loaded",
            "erofs.ko of this kernel, unchanged",
            "No such file or directory (2)"
        ]
    );
}

#[test]
fn a_kernel_without_verity_is_named() {
    let (text, _) = refused(|fake| drop(fake.files.remove(MODULE_INDEX)));
    assert_eq!(
        report(&text),
        [
            "BOOT REFUSED before stage \"found\": kernel without dm-verity",
            "the device-mapper target verity",
            "targets linear",
            "build the initramfs with the module dm-verity, or boot a kernel that has it",
            "halt"
        ]
    );
}

#[test]
fn a_hardware_module_that_fails_is_a_warning() {
    let mut fake = sealed();
    fake.put("/sys/bus/pci/devices/0000:00:03.0/uevent", b"MODALIAS=pci:v00001AF4d00001005\n");
    fake.broken.push(("load_module /lib/modules/6.1.0-test/virtio.ko", Errno::ENODEV));
    assert_eq!(boot(&mut fake), booted());
    assert!(fake.console.contains("verify-init: warning: module virtio: No such device (19)"), "{}", fake.console);
    let record: BootRecord = serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap();
    assert_eq!(record.warnings, ["module virtio: No such device (19)"]);
}

#[test]
fn an_absent_device_is_named_with_all_that_are_there() {
    let mut other = manifest();
    other.data = Place::PartLabel("elsewhere".parse().unwrap());
    let (text, fake) = refused(|fake| fake.seal(&other));
    let lines = report(&text);
    assert_eq!(lines[0], "BOOT REFUSED before stage \"found\": a sealed device did not appear within 30 s");
    assert_eq!(lines[1], "PARTLABEL=elsewhere (data)");
    let [data, tree] = [0, 1].map(|half| partition_id(&other, half));
    assert_eq!(
        lines[2],
        format!("/dev/vda; /dev/vda1 PARTLABEL=root PARTUUID={data}; /dev/vda2 PARTLABEL=root-verity PARTUUID={tree}")
    );
    assert!(fake.count("list /sys/block ") == 0 && fake.count("next_event") > 100, "looked again until the deadline");
}

#[test]
fn the_deadline_of_the_command_line_counts_if_it_is_shorter() {
    let (text, _) = refused(|fake| {
        fake.put("/proc/cmdline", b"rd.timeout=2 rd.driver.blacklist=virtio_blk");
    });
    assert!(text.contains("did not appear within 2 s"), "{text}");
}

#[test]
fn a_device_whose_event_was_lost_is_found_by_looking_again() {
    let mut fake = sealed();
    fake.broken.push(("watch_devices", Errno::EPROTONOSUPPORT));
    fake.after_module.iter_mut().for_each(|(_, _, event)| *event = b"libudev\0".to_vec());
    assert_eq!(boot(&mut fake), booted());
}

#[test]
fn two_partitions_of_one_name_are_ambiguous() {
    let mut by_label = manifest();
    by_label.data = Place::PartLabel("root".parse().unwrap());
    let (text, _) = refused(|fake| {
        fake.seal(&by_label);
        fake.add_disk("sda", 1 << 20, &[("sda1", "root", None, 1 << 19)]);
        let (_, files, _) = &fake.after_module[1];
        fake.files.extend(files.clone());
    });
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"found\": the sealed device is ambiguous",
            "one device with PARTLABEL=root",
            "/dev/sda1 and /dev/vda1"
        ]
    );
}

#[test]
fn a_truncated_image_is_refused_before_it_is_mapped() {
    let mut larger = manifest();
    larger.verity.parameters.data_blocks = 101;
    let (text, fake) = refused(|fake| fake.seal(&larger));
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"found\": the data device /dev/vda1 is too small",
            "at least 413696 bytes",
            "409600 bytes"
        ]
    );
    assert_eq!(fake.count("create_mapping"), 0);
}

#[test]
fn superblock_swap_fails_the_boot() {
    let (text, fake) = refused(|fake| {
        for (path, bytes) in &mut fake.after_module[1].1 {
            if path == "/dev/vda2" {
                bytes[64..68].copy_from_slice(&512u32.to_le_bytes());
            }
        }
    });
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"mapped\": the verity superblock on /dev/vda2 differs from the sealed one: data block size",
            "4096",
            "512"
        ]
    );
    assert_eq!(fake.count("create_mapping"), 0);
}

#[test]
fn the_table_comes_from_the_manifest_and_is_read_back() {
    let mut fake = sealed();
    boot(&mut fake);
    let (access, table) = &fake.tables["root"];
    assert_eq!(*access, Access::ReadOnly);
    let root_hash = manifest().verity.root_hash;
    assert_eq!(table.text, format!("1 253:1 253:2 4096 4096 100 1 sha256 {root_hash} aabb 1 panic_on_corruption"));
    assert_eq!(fake.count("create_mapping root CRYPT-VERITY-00000000000000000000000000000009-root"), 1);
    let (confirmed, mounted) = (
        fake.calls.iter().position(|call| call == "mapping_status root").unwrap(),
        fake.calls.iter().position(|call| call.starts_with("mount erofs")).unwrap(),
    );
    assert!(confirmed < mounted);
}

#[test]
fn a_corrupted_status_is_refused_before_the_mount() {
    let (text, fake) = refused(|fake| fake.status = "C".to_owned());
    assert_eq!(
        report(&text)[0],
        "BOOT REFUSED before stage \"mapped\": the kernel's verity device is not the sealed one"
    );
    assert_eq!(fake.count("mount erofs"), 0);
}

#[test]
fn a_bad_block_is_named_as_the_reason_of_what_it_breaks() {
    for call in ["mount erofs", "mode_in_root"] {
        let (text, _) = refused(|fake| {
            fake.broken.push((call, Errno::EIO));
            fake.status_once_broken = "C".to_owned();
        });
        assert_eq!(
            report(&text)[..3],
            [
                "BOOT REFUSED before stage \"mounted\": the image on the disk is corrupted",
                "blocks that verify",
                "verity status: expected V (verified), found C (a block was corrupted)"
            ]
        );
    }
}

#[test]
fn sealed_options_reach_the_mounts() {
    let mut fake = sealed();
    boot(&mut fake);
    let mounts: Vec<&str> = fake.calls.iter().filter_map(|call| call.strip_prefix("mount ")).skip(4).collect();
    assert_eq!(
        mounts,
        [
            "erofs /dev/dm-3 /run/iofs/lower 0x5 cache_strategy=readahead",
            "tmpfs overlay /run/iofs/overlay 0x0 mode=0700,size=50%",
            "overlay overlay /sysroot 0x4 lowerdir=/run/iofs/lower,upperdir=/run/iofs/overlay/upper,\
         workdir=/run/iofs/overlay/work,redirect_dir=nofollow,metacopy=off,volatile",
        ]
    );
}

#[test]
fn a_root_without_overlay_is_the_image_itself() {
    let mut read_only = manifest();
    read_only.overlay = None;
    let mut fake = Fake::sealed(&read_only);
    assert_eq!(boot(&mut fake), booted());
    assert_eq!(fake.count("mount erofs /dev/dm-3 /sysroot 0x5"), 1);
    assert_eq!(
        fake.count("mount overlay") + fake.count("create_folder /sysroot/") + fake.count("link /run/systemd"),
        0
    );
    let mut fake = Fake::sealed(&read_only);
    fake.broken.push(("move_mount /proc", Errno::ENOENT));
    let (text, _) = refused_by(fake);
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"switched\": /proc cannot be moved into the new root",
            "a folder /proc in the image",
            "No such file or directory (2)"
        ]
    );
}

#[test]
fn an_image_without_its_init_is_refused_before_the_initramfs_is_left() {
    let (text, fake) = refused_with(|manifest| manifest.init = "/etc/passwd".parse().unwrap());
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"mounted\": the image has no init /etc/passwd",
            "an executable file",
            "a file of mode 100644"
        ]
    );
    assert_eq!(fake.count("move_mount") + fake.count("delete_initramfs"), 0);
}

#[test]
fn a_long_report_becomes_short_records() {
    let (_, fake) = refused(|fake| {
        fake.put("/proc/cmdline", format!("systemd.unit={}", "x".repeat(3000)).as_bytes());
    });
    assert!(fake.log.len() > 5 && fake.log.iter().all(|record| record.len() <= 976));
}

/// A machine with a TPM, whose image uses it like that.
fn measuring(usage: TpmUse) -> Fake {
    let mut manifest = manifest();
    manifest.tpm.usage = usage;
    let mut fake = Fake::sealed(&manifest);
    fake.put("/sys/class/tpm/tpm0/tpm_version_major", b"2\n");
    fake.tpm = Some(FakeTpm::with_banks(&[PcrBank::Sha1, PcrBank::Sha256]));
    fake
}

/// What the measurements of the fake's boot lead to.
fn predicted(fake: &Fake, bank: PcrBank, count: usize) -> Vec<(u8, String)> {
    let envelope = Envelope::parse(&fake.files[MANIFEST], PayloadType::Manifest).unwrap();
    let digest = Sha256Digest::of(envelope.unverified_payload());
    let measurements = Measurement::of_boot(b"console=ttyS0 quiet -- one two", digest, false);
    let events = predict(&measurements[..count], bank).unwrap();
    events.into_iter().map(|event| (event.pcr, event.value)).collect()
}

fn holds(fake: &Fake, bank: PcrBank, values: &[(u8, String)]) {
    let last: BTreeMap<u8, &String> = values.iter().map(|(index, value)| (*index, value)).collect();
    for (index, value) in last {
        let found = fake.tpm.as_ref().unwrap().value(PcrIndex::new(index).unwrap(), bank);
        assert_eq!(found.to_string(), format!("{bank}:{value}"), "register {index}");
    }
}

#[test]
fn a_boot_is_measured_as_predicted_in_each_bank() {
    let mut fake = measuring(TpmUse::Required);
    assert_eq!(boot(&mut fake), booted());
    for bank in [PcrBank::Sha1, PcrBank::Sha256] {
        holds(&fake, bank, &predicted(&fake, bank, 4));
    }
    let records = measurement_log::parse(&fake.files[MEASUREMENT_LOG]).unwrap();
    let types: Vec<_> = records.iter().map(|record| record.content.event_type.clone().unwrap()).collect();
    assert_eq!(types, ["phase", "iofs-command-line", "iofs-manifest", "phase"]);
    let record: BootRecord = serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap();
    assert_eq!(record.measured_banks, ["sha1", "sha256"]);
}

#[test]
fn everything_is_measured_before_a_device_is_looked_for_and_capped_before_the_root_is_entered() {
    let mut fake = measuring(TpmUse::Required);
    boot(&mut fake);
    let calls: Vec<&str> = fake.calls.iter().map(String::as_str).collect();
    let extends: Vec<usize> = (0..calls.len()).filter(|at| calls[*at] == "tpm 82").collect();
    let at = |call: &str| calls.iter().position(|one| one.starts_with(call)).unwrap();
    assert_eq!(extends.len(), 4);
    assert!(extends[2] < at("watch_devices") && extends[2] < at("load_module"));
    assert!(at("mode_in_root") < extends[3] && extends[3] < at("move_mount"));
}

#[test]
fn with_a_required_tpm_each_failed_measurement_stops_the_boot() {
    let mut probe = measuring(TpmUse::Required);
    boot(&mut probe);
    let begins =
        |call: &str| ["open_tpm", "tpm ", "begin_log", "finish_log"].iter().any(|start| call.starts_with(start));
    let numbers: Vec<usize> = (0..probe.calls.len()).filter(|at| begins(&probe.calls[*at])).collect();
    assert_eq!(numbers.len(), 1 + 1 + 3 * 4);
    for number in numbers {
        let mut fake = measuring(TpmUse::Required);
        fake.fail = Some((number, Errno::EIO));
        let (text, fake) = refused_by(fake);
        let call = &probe.calls[number];
        assert!(report(&text)[0].contains("register") || report(&text)[0].contains("no TPM"), "{call}: {text}");
        assert_eq!(fake.count("exec"), 0);
    }
}

#[test]
fn with_a_preferred_tpm_a_failed_measurement_is_a_warning() {
    let mut fake = measuring(TpmUse::Preferred);
    fake.broken.push(("tpm 82", Errno::EIO));
    assert_eq!(boot(&mut fake), booted());
    let record: BootRecord = serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap();
    assert!(
        record.warnings[0].starts_with("register 11 was not extended by the event phase: "),
        "{:?}",
        record.warnings
    );
    assert!(!fake.files.contains_key(MEASUREMENT_LOG), "what was not extended is not logged");
}

#[test]
fn a_required_tpm_that_is_absent_stops_the_boot() {
    let mut fake = measuring(TpmUse::Required);
    fake.tpm = None;
    let (text, _) = refused_by(fake);
    assert_eq!(
        report(&text)[..3],
        [
            "BOOT REFUSED before stage \"measured\": there is no TPM to measure into",
            "a TPM 2.0 with an active bank",
            "open /dev/tpmrm0: No such file or directory (os error 2) (looked for it for 15s)"
        ]
    );
}

#[test]
fn a_tpm_that_is_off_is_left_alone() {
    let mut fake = measuring(TpmUse::Off);
    assert_eq!(boot(&mut fake), booted());
    assert_eq!(fake.count("open_tpm") + fake.count("tpm "), 0);
}

#[test]
fn debug_shell_a_refused_boot_closes_the_initramfs_phase_first() {
    let mut fake = measuring(TpmUse::Required);
    fake.status = "C".to_owned();
    let (_, fake) = refused_by(fake);
    let mut phases = predicted(&fake, PcrBank::Sha256, 4);
    phases.retain(|(index, _)| *index == 11);
    holds(&fake, PcrBank::Sha256, &phases);
}

#[test]
fn bus_interposer_a_tpm_that_is_not_the_pinned_one_stops_the_boot() {
    let mut pinned = manifest();
    // A point of P-256: the base point.
    let point: Vec<u8> = [
        "0020",
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
        "0020",
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
    ]
    .iter()
    .flat_map(|text| hex::decode(text).unwrap())
    .collect();
    let area = hex::decode("0023000b000304720000000600800043001000030010").unwrap();
    let area = [area, point].concat();
    let size = u16::try_from(area.len()).unwrap().to_be_bytes();
    pinned.tpm = TpmRules {
        usage: TpmUse::Required,
        srk: Some(SrkPublic::new([&size[..], &area].concat()).unwrap()),
        rollback: None,
    };
    let mut fake = Fake::sealed(&pinned);
    fake.tpm = Some(FakeTpm::with_banks(&[PcrBank::Sha256]));
    let (text, fake) = refused_by(fake);
    assert_eq!(
        report(&text)[..2],
        [
            "BOOT REFUSED before stage \"measured\": this TPM is not the pinned one",
            "the TPM with the sealed storage root key"
        ]
    );
    assert!(report(&text)[2].contains("TPM2_CreatePrimary"), "{text}");
    assert_eq!(fake.count("tpm 82"), 0, "nothing was measured");
}
