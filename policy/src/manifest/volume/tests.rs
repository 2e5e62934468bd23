use super::*;
use crate::manifest::tests::manifest;

fn volume(name: &str, usage: VolumeUse) -> Volume {
    Volume {
        name: name.parse().unwrap(),
        place: Place::PartLabel(name.parse().unwrap()),
        luks_uuid: None,
        volume_key: None,
        usage,
        unlock: UnlockRules::default(),
        optional: false,
    }
}

fn data(path: &str) -> VolumeUse {
    VolumeUse::Data(DataUse {
        path: path.parse().unwrap(),
        file_system: FileSystem::Ext4,
        options: vec!["nodev".parse().unwrap()],
    })
}

fn upper() -> VolumeUse {
    VolumeUse::Upper(UpperUse { file_system: FileSystem::Xfs, options: vec![] })
}

/// A manifest with a volume for each use.
fn sealed() -> Manifest {
    let mut sealed = manifest();
    sealed.overlay = None;
    sealed.volumes =
        vec![volume("system", VolumeUse::Image), volume("upper", upper()), volume("state", data("/var/lib/app"))];
    let inside = Place::Volume("system".parse().unwrap());
    (sealed.data, sealed.tree) = (inside.clone(), inside);
    sealed.verity.hash_offset = 1000 * 4096;
    sealed
}

fn refused(change: impl FnOnce(&mut Manifest)) -> String {
    let mut changed = sealed();
    change(&mut changed);
    changed.check().unwrap_err().to_string()
}

#[test]
fn volumes_survive_their_json_form() {
    let sealed = sealed();
    assert_eq!(sealed.check(), Ok(()));
    assert_eq!(Manifest::from_json(&sealed.to_json()).unwrap(), sealed);
    assert!(sealed.is_writable() && sealed.upper().is_some());
    let without = String::from_utf8(manifest().to_json()).unwrap();
    assert!(!without.contains("volumes"), "images without volumes stay what they were");
}

#[test]
fn fields_that_are_left_out_have_their_defaults_and_unknown_ones_are_refused() {
    let json = r#"{"name": "state", "place": {"partlabel": "state"}, "use": {"data": {"path": "/var", "file_system": "ext4"}}}"#;
    let volume: Volume = serde_json::from_str(json).unwrap();
    assert_eq!(
        volume.unlock,
        UnlockRules { tpm: true, pin: false, passphrase: false, tries: 3, max_memory_kib: 1 << 20 }
    );
    assert!(!volume.optional && volume.volume_key.is_none());
    for (from, to) in [
        ("\"place\"", "\"plaec\""),
        ("\"path\"", "\"pth\""),
        ("ext4", "vfat"),
        ("\"data\"", "\"swap\""),
        ("state\", \"place", "st/te\", \"place"),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json);
        assert!(serde_json::from_str::<Volume>(&changed).is_err(), "{changed}");
    }
}

#[test]
fn names_that_are_taken_or_mean_something_else_are_refused() {
    for bad in ["", "root", "control", "a/b", "a:b", ".x", "x_dif", "ä", &"x".repeat(65)] {
        assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
    }
    assert_eq!("state".parse::<VolumeName>().unwrap().integrity_mapping(), "state_dif");
}

#[test]
fn overlay_upper_beside_an_overlay_in_memory_or_twice_is_refused() {
    let overlay = manifest().overlay;
    assert_eq!(
        refused(|it| it.overlay = overlay),
        "manifest: volume upper: use: expected no upper beside an overlay in memory, found both"
    );
    assert_eq!(
        refused(|it| it.volumes.push(volume("second", upper()))),
        "manifest: volumes: expected each use once, found upper again"
    );
    assert!(refused(|it| it.volumes[1].optional = true).contains("optional: expected false"));
}

#[test]
fn two_volumes_share_nothing() {
    assert!(refused(|it| it.volumes[2].name = "upper".parse().unwrap()).contains("each name once, found upper"));
    assert!(refused(|it| it.volumes[2].place = it.volumes[1].place.clone()).contains("each place once"));
    let same = |it: &mut Manifest| it.volumes.iter_mut().for_each(|one| one.luks_uuid = Some(Uuid::from_u128(1)));
    assert!(refused(same).contains("each LUKS UUID once"));
    assert!(refused(|it| it.volumes.push(volume("more", data("/var/lib/app")))).contains("each use once"));
    assert!(refused(|it| it.volumes = vec![volume("x", data("/x")); 17]).contains("at most 16, found 17"));
}

#[test]
fn data_paths_cover_neither_the_kernels_folders_nor_sealed_programs() {
    for bad in ["/", "/run", "/dev/x", "/proc", "/sys/fs", "/usr/lib", "/etc", "/a//b", "/a/./b", "/a/"] {
        let error = refused(|it| it.volumes[2].usage = data(bad));
        assert!(error.starts_with("manifest: volume state: use.data.path: expected a path"), "{bad}: {error}");
    }
    let mut sealed = sealed();
    sealed.volumes[2].usage = data("/runner");
    assert_eq!(sealed.check(), Ok(()));
    let error = refused(|it| it.volumes.push(volume("var", data("/var"))));
    assert!(error.contains("before the volume of /var/lib/app, found /var"), "{error}");
}

#[test]
fn options_that_name_another_device_are_refused() {
    for bad in ["journal_dev=8", "logdev=x", "rtdev=x", "degraded", "bind"] {
        let change = |it: &mut Manifest| {
            if let VolumeUse::Data(data) = &mut it.volumes[2].usage {
                data.options = vec!["noatime".parse().unwrap(), serde_json::from_str(&format!("{bad:?}")).unwrap()];
            }
        };
        assert!(refused(change).contains("options: expected none that names another device"), "{bad}");
    }
}

#[test]
fn an_image_in_a_volume_has_its_data_and_its_tree_there() {
    assert_eq!(
        refused(|it| it.tree = Place::PartLabel("tree".parse().unwrap())),
        "manifest: tree: expected the volume system, whose use is \"image\", found PARTLABEL=tree"
    );
    let other = |it: &mut Manifest| it.data = Place::Volume("state".parse().unwrap());
    assert!(refused(other).starts_with("manifest: data: expected the volume system"));
    assert_eq!(
        refused(|it| drop(it.volumes.remove(0))),
        "manifest: data: expected a place outside, or a volume of use \"image\", found volume:system"
    );
    assert!(refused(|it| it.verity.hash_offset = 4096).contains("verity.hash_offset: expected at least 4096000"));
    assert!(
        refused(|it| it.volumes[2].place = Place::Volume("system".parse().unwrap())).contains("a partition or a disk")
    );
}

#[test]
fn a_volume_that_nothing_can_open_is_refused() {
    let rules = |change: fn(&mut UnlockRules)| refused(|it| change(&mut it.volumes[2].unlock));
    assert!(rules(|it| it.tpm = false).contains("one of tpm, pin and passphrase, found none"));
    assert!(rules(|it| it.tries = 0).contains("unlock.tries: expected 1 to 10, found 0"));
    assert!(rules(|it| it.tries = 11).contains("found 11"));
    assert!(rules(|it| it.max_memory_kib = u32::MAX).contains("unlock.max_memory_kib"));
    assert!(refused(|it| it.tpm.usage = TpmUse::Off).contains("beside tpm.use \"off\""));
}

#[test]
fn pinned_volumes_are_known_beforehand_in_the_sha256_bank() {
    let key = |number: u8| Sha256Digest::of(&[number]);
    let mut pinned = sealed();
    (0..).zip(&mut pinned.volumes).for_each(|(number, volume)| volume.volume_key = Some(key(number)));
    let measured = pinned.measured_volumes(PcrBank::Sha256).unwrap();
    let expected = ["system", "upper", "state"].into_iter().zip(0..).map(|(name, number)| {
        (name.parse().unwrap(), PcrDigest::new(PcrBank::Sha256, key(number).as_bytes()).unwrap())
    });
    assert_eq!(measured, expected.collect::<Vec<_>>());
    for bank in [PcrBank::Sha1, PcrBank::Sha384, PcrBank::Sha512] {
        assert_eq!(pinned.measured_volumes(bank), Err(UnknownIdentity::Bank(bank)));
    }
    pinned.volumes[2].optional = true;
    let name = "state".parse().unwrap();
    assert_eq!(pinned.measured_volumes(PcrBank::Sha256), Err(UnknownIdentity::Optional(name)));
    pinned.volumes[1].volume_key = None;
    let name = "upper".parse().unwrap();
    assert_eq!(pinned.measured_volumes(PcrBank::Sha256), Err(UnknownIdentity::Unpinned(name)));
    // Without volumes nothing is measured, whatever the bank.
    pinned.volumes.clear();
    assert!(PcrBank::ALL.into_iter().all(|bank| pinned.measured_volumes(bank) == Ok(Vec::new())));
}
