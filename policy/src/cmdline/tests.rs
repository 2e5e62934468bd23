use super::*;
use crate::manifest::{
    DataUse, FileSystem, Manifest, Overlay, OverlaySize, Role, UnlockRules, Volume, VolumeUse, tests::manifest,
};

fn check(line: &str) -> Result<AcceptedCommandLine, String> {
    AcceptedCommandLine::check_against(line, &manifest()).map_err(|error| error.to_string())
}

#[test]
fn a_line_that_repeats_the_sealed_configuration_is_accepted() {
    let hash = "07".repeat(32);
    let accepted = check(&format!(
        "BOOT_IMAGE=/vmlinuz console=ttyS0,115200 root=/dev/mapper/root ro quiet roothash={hash} \
         root=PARTUUID=01010101-0101-0101-0101-010101010101 systemd.verity=yes rootfstype=erofs rootflags=ro \
         init=/sbin/init rd.shell=0 systemd.volatile=overlay rd.overlay=1 rd.overlay=tmpfs:size=50% \
         systemd.verity_root_options=panic-on-corruption rd.emergency=poweroff panic=-1"
    ))
    .unwrap();
    assert!(accepted.quiet);
    assert_eq!(accepted.warnings, [""; 0]);
}

#[test]
fn cmdline_injection_every_parameter_that_weakens_the_chain_is_refused() {
    for parameter in [
        "init=/bin/sh",
        "rdinit=/bin/sh",
        "systemd.verity=0",
        "rd.systemd.verity=no",
        "systemd.verity",
        "systemd.verity=",
        "systemd.verity_root_options=ignore-corruption",
        "systemd.verity_root_options=panic-on-corruption,ignore-corruption",
        "systemd.verity_root_options=restart-on-corruption",
        "systemd.verity-root-data=/dev/vdb",
        "systemd.verity_root_hash=/dev/vdb",
        "dm_verity.require_signatures=0",
        "dm-mod.create=x",
        "roothash=00",
        "roothash",
        "usrhash=00",
        "systemd.verity_usr_data=/dev/vdb",
        "rd.break",
        "rd.break=pre-mount",
        "rd.shell",
        "rd.shell=1",
        "rd.shell=maybe",
        "root=/dev/vdb1",
        "root=UUID=1234",
        "rootfstype=ext4",
        "rootflags=rw",
        "rd.emergency=reboot",
        "systemd.volatile=state",
        "rd.overlay=/dev/vdb",
        "systemd.debug-shell",
        "systemd.unit=rescue.target",
        "systemd.run=/bin/sh",
        "systemd.mask=x.service",
        "rescue",
        "single",
        "1",
        "\"init=/bin/sh\"",
        "init=\"/bin/sh\"",
    ] {
        if parameter == "systemd.verity" {
            // A bare switch means yes.
            assert!(check(parameter).is_ok());
            continue;
        }
        let error = check(&format!("quiet {parameter} ro")).expect_err(parameter);
        assert!(
            error.starts_with(&format!("kernel command line: {}: expected", parameter.replace('"', ""))),
            "{error}"
        );
    }
}

#[test]
fn a_debug_image_lets_them_through_with_a_warning() {
    let mut debug = manifest();
    debug.image.debug = true;
    let accepted = AcceptedCommandLine::check_against("init=/bin/sh rd.shell", &debug).unwrap();
    assert_eq!(accepted.init.as_deref(), Some("/bin/sh"));
    assert_eq!(accepted.warnings.len(), 2);
}

#[test]
fn the_sealed_configuration_can_allow_a_parameter_by_name_or_value() {
    let mut sealed = manifest();
    sealed.allowed_parameters = vec!["systemd.unit=multi-user.target".into(), "rd.break".into()];
    assert!(AcceptedCommandLine::check_against("systemd.unit=multi-user.target rd.break=mount", &sealed).is_ok());
    assert!(AcceptedCommandLine::check_against("systemd.unit=rescue.target", &sealed).is_err());
}

#[test]
fn unknown_parameters_are_left_alone_and_ours_draw_a_warning() {
    let accepted = check("nomodeset rd.lvm=0 rd.iofs.frobnicate=1 rd.luks=0 mitigations=off").unwrap();
    assert_eq!(accepted.warnings, ["kernel command line: rd.iofs.frobnicate=1: unknown, and without effect"]);
}

#[test]
fn module_parameters_and_blacklists_are_collected() {
    let accepted = check("nvme-core.io_timeout=10 rd.driver.blacklist=uas,usb-storage -- x \"y z\"").unwrap();
    assert_eq!(accepted.module_parameters, [("nvme_core".to_owned(), "io_timeout=10".to_owned())]);
    assert_eq!(accepted.module_blacklist, ["uas", "usb_storage"]);
    assert_eq!(accepted.init_arguments, ["x", "y z"]);
}

#[test]
fn a_deadline_can_be_shortened_and_not_extended() {
    assert_eq!(check("rd.timeout=7").unwrap().device_timeout, Some(Duration::from_secs(7)));
    for longer in ["rd.timeout=31", "rd.timeout=0", "rd.timeout=", "rd.timeout=x"] {
        let accepted = check(longer).unwrap();
        assert_eq!((accepted.device_timeout, accepted.warnings.len()), (None, 1), "{longer}");
    }
}

#[test]
fn a_root_without_overlay_stays_without_one() {
    let mut sealed = manifest();
    sealed.overlay = None;
    for line in ["systemd.volatile=overlay", "rd.overlay", "rd.overlay=tmpfs:size=1g"] {
        assert!(AcceptedCommandLine::check_against(line, &sealed).is_err(), "{line}");
    }
    sealed.overlay = Some(Overlay { tmpfs_size: OverlaySize::try_from("1g".to_owned()).unwrap() });
    assert!(AcceptedCommandLine::check_against("rd.overlay=tmpfs:size=1g", &sealed).is_ok());
    assert!(AcceptedCommandLine::check_against("rd.overlay=tmpfs:size=2g", &sealed).is_err());
}

fn with_volume(luks_uuid: Option<&str>) -> Manifest {
    let mut sealed = manifest();
    let usage = DataUse { path: "/var".parse().unwrap(), file_system: FileSystem::Ext4, options: vec![] };
    sealed.volumes.push(Volume {
        name: "state".parse().unwrap(),
        place: sealed.tree.clone(),
        luks_uuid: luks_uuid.map(|uuid| uuid.parse().unwrap()),
        volume_key: None,
        usage: VolumeUse::Data(usage),
        unlock: UnlockRules::default(),
        optional: false,
    });
    sealed
}

#[test]
fn cmdline_injection_disk_encryption_is_as_sealed() {
    const UUID: &str = "11111111-2222-3333-4444-555555555555";
    let sealed = with_volume(Some(UUID));
    let check = |line: &str| AcceptedCommandLine::check_against(line, &sealed);
    let repeats = format!("rd.luks=1 rd.luks.uuid=luks-{UUID} luks.uuid={UUID} rd.luks.name={UUID}=state");
    assert_eq!(check(&repeats).unwrap().warnings, [""; 0]);
    for bad in [
        "rd.luks=0",
        "luks=no",
        "rd.luks.uuid=99999999-2222-3333-4444-555555555555",
        "rd.luks.uuid=",
        "rd.luks.name=11111111-2222-3333-4444-555555555555=other",
        "rd.luks.options=discard",
        "luks.options=11111111-2222-3333-4444-555555555555=header=/x",
        "rd.luks.key=/key:/dev/vdb",
        "rd.luks.data=11111111-2222-3333-4444-555555555555=/dev/vdb",
        "rd.luks.crypttab=no",
    ] {
        let error = check(bad).expect_err(bad).to_string();
        assert!(error.starts_with(&format!("kernel command line: {bad}: expected ")), "{error}");
    }
    // Where no UUID is sealed there is nothing to compare with, and nothing that it could change.
    let unpinned = with_volume(None);
    let accepted = AcceptedCommandLine::check_against(&format!("rd.luks.uuid={UUID}"), &unpinned).unwrap();
    assert!(accepted.warnings[0].contains("without effect"), "{:?}", accepted.warnings);
}

#[test]
fn a_second_stage_has_its_own_disk_encryption() {
    let mut sealed = with_volume(None);
    sealed.image.role = Role::InitOverlay;
    assert!(AcceptedCommandLine::check_against("rd.luks=0 rd.luks.options=discard", &sealed).is_ok());
}

#[test]
fn a_second_stage_finds_its_root_by_the_command_line() {
    let mut manifest = manifest();
    manifest.image.role = Role::InitOverlay;
    manifest.init = "/init".parse().unwrap();
    let check = |line: &str| AcceptedCommandLine::check_against(line, &manifest).map_err(|error| error.to_string());
    let line = "root=UUID=1234 rootfstype=ext4 rootflags=subvol=@ rw systemd.volatile=no rd.overlay init=/sbin/init \
                rd.luks.uuid=5678 rd.lvm.lv=vg/root";
    assert_eq!(check(line).unwrap().warnings, [""; 0]);
    for parameter in ["init=/init", "init=/bin/sh", "rd.break", "break=premount", "systemd.verity=0", "rd.shell"] {
        assert!(check(parameter).is_err(), "{parameter}");
    }
}
