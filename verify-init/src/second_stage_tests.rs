//! Boots into a second stage whose image is a file or in memory, on the machine in memory.

use iofs_policy::{
    boot_record::BootRecord,
    manifest::{FilePlace, Manifest, Medium, MediumKind, Place, Role},
    paths::{self, BOOT_RECORD},
};
use nix::errno::Errno;

use crate::{
    boot,
    fake::{End, Fake, manifest, partition_id},
    tests::{each_failing_call, refused_by, report},
};

const IMAGE: &str = "/iofs/image";

/// A second stage that is a file on the first partition.
fn in_a_file() -> Manifest {
    let mut manifest = second_stage();
    let on = Medium::PartUuid(partition_id(&manifest, 0));
    manifest.data = Place::File(FilePlace { kind: MediumKind::Ext4, on, path: IMAGE.parse().unwrap() });
    manifest.tree = manifest.data.clone();
    manifest
}

fn second_stage() -> Manifest {
    let mut manifest = manifest();
    manifest.image.role = Role::InitOverlay;
    manifest.init = "/init".parse().unwrap();
    manifest.verity.hash_offset = manifest.verity.parameters.data_blocks * 4096;
    manifest.data = Place::Memory;
    manifest.tree = Place::Memory;
    manifest
}

fn machine(manifest: &Manifest) -> Fake {
    let mut fake = Fake::sealed(manifest);
    let superblock = iofs_policy::verity::Superblock {
        parameters: manifest.verity.parameters.clone(),
        uuid: manifest.verity.superblock_uuid.unwrap(),
    };
    let data = vec![0; usize::try_from(manifest.verity.hash_offset).unwrap()];
    let image = [&data[..], &superblock.encode(), &[0; 4096 * 3 - 512]].concat();
    let path = if manifest.data == Place::Memory { paths::IMAGE } else { IMAGE };
    fake.put(path, &image);
    fake
}

fn position(fake: &Fake, call: &str) -> usize {
    fake.calls.iter().position(|one| one.starts_with(call)).unwrap_or_else(|| panic!("{call}: {:#?}", fake.calls))
}

#[test]
fn a_second_stage_starts_as_the_kernel_would_start_it_with_run_kept() {
    let mut fake = machine(&in_a_file());
    let init = End::Init("/init".to_owned(), vec!["one".to_owned(), "two".to_owned()]);
    assert_eq!(boot(&mut fake), init, "{}", fake.console);
    assert_eq!(fake.calls.iter().filter(|call| call.starts_with("move_mount")).count(), 1, "/run alone");
    for place in ["/dev", "/proc", "/sys"] {
        assert!(position(&fake, &format!("unmount {place}")) < position(&fake, "enter /sysroot"));
    }
    assert_eq!(fake.count("link /run/systemd/volatile-root"), 0, "it is not the root of the system");
    let record: BootRecord = serde_json::from_slice(&fake.files[BOOT_RECORD]).unwrap();
    assert_eq!((record.data_device.as_str(), record.hash_device.as_str()), ("/dev/loop0", "/dev/loop0"));
    assert_eq!(record.warnings, [""; 0]);
}

#[test]
fn nothing_of_a_second_stage_outlives_it() {
    let mut fake = machine(&in_a_file());
    boot(&mut fake);
    let mounted = position(&fake, "bind_contents /run/iofs/second-stage /sysroot");
    let places = ["second-stage", "lower", "overlay"].map(|name| format!("unmount /run/iofs/{name}"));
    for call in places.iter().map(String::as_str).chain(["remove_mapping_later initoverlay"]) {
        assert!(position(&fake, call) > mounted, "{call}");
    }
    let mount = position(&fake, "mount ext4 /dev/vda1 /run/iofs/data 0xf noload,errors=continue");
    assert!(mount < position(&fake, "attach_file /run/iofs/data /iofs/image"));
    assert!(position(&fake, "unmount /run/iofs/data") < position(&fake, "create_mapping initoverlay"));
}

#[test]
fn the_file_system_of_a_root_in_a_file_stays_within_reach() {
    let mut manifest = in_a_file();
    manifest.image.role = Role::Root;
    manifest.init = "/sbin/init".parse().unwrap();
    let mut fake = machine(&manifest);
    assert!(matches!(boot(&mut fake), End::Init(..)), "{}", fake.console);
    assert_eq!(fake.count("unmount"), 0);
    assert_eq!(fake.count("create_mapping root"), 1);
}

#[test]
fn an_image_in_memory_needs_no_disk() {
    let mut fake = machine(&second_stage());
    fake.after_module.clear();
    assert!(matches!(boot(&mut fake), End::Init(..)), "{}", fake.console);
    assert_eq!(fake.count("attach_file / /etc/iofs/image"), 1);
}

#[test]
fn each_failing_call_of_a_second_stage_is_either_cosmetic_or_a_refusal() {
    let errors = [Errno::EIO, Errno::EINVAL, Errno::ENOENT];
    each_failing_call(|| machine(&in_a_file()), &errors);
    // What no disk needs may fail to load.
    let in_memory = || {
        let mut fake = machine(&second_stage());
        fake.files.retain(|path, _| !path.starts_with("/sys/bus/"));
        fake
    };
    each_failing_call(in_memory, &errors);
}

#[test]
fn hostile_filesystem_one_that_cannot_be_mounted_or_has_no_such_file_is_refused() {
    let refused = |broken, error| {
        let mut fake = machine(&in_a_file());
        fake.broken.push((broken, error));
        let (text, fake) = refused_by(fake);
        assert_eq!(fake.count("create_mapping"), 0);
        report(&text).iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()
    };
    let lines = refused("mount ext4", Errno::EUCLEAN);
    assert!(lines[0].ends_with("the file system of the image on /dev/vda1 cannot be mounted"), "{}", lines[0]);
    assert_eq!(lines[1], "a sound ext4");
    let lines = refused("attach_file", Errno::ELOOP);
    assert!(lines[0].ends_with("the image /iofs/image cannot be opened"), "{}", lines[0]);
    assert_eq!(lines[1], "a regular file, and no link on the way to it");
    let lines = refused("attach_file", Errno::ENXIO);
    assert!(lines[3].contains("the module loop"), "{}", lines[3]);
}

#[test]
fn a_truncated_file_is_refused_before_it_is_mapped() {
    let mut fake = machine(&in_a_file());
    fake.device(IMAGE).truncate(4096 * 50);
    let (text, fake) = refused_by(fake);
    assert!(report(&text)[0].ends_with("the data device /dev/loop0 is too small"), "{text}");
    assert_eq!(fake.count("create_mapping"), 0);
}
