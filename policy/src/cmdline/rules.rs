//! One rule per known parameter: it passes, or the rule says what the sealed configuration expects instead.

use std::time::Duration;

use super::{AcceptedCommandLine, Parameter};
use crate::{
    manifest::{Manifest, Place, Role, Volume},
    verity::CorruptionAction,
};

/// What a rule says: fine, or what would have been.
type Rule = Result<(), String>;

/// Applies the rule for one parameter.
pub(super) fn apply(parameter: &Parameter, sealed: &Manifest, accepted: &mut AcceptedCommandLine) -> Rule {
    let value = parameter.value.as_deref().unwrap_or_default();
    match bare_name(&parameter.name) {
        "quiet" => accepted.quiet = true,
        "rd.debug" => accepted.debug = !parameter.is_off(),
        "rd.timeout" => timeout(value, sealed, accepted),
        "rd.emergency" => equal(value, sealed.on_failure.name())?,
        "roothash" => equal(value, &sealed.verity.root_hash.to_string())?,
        "init" => equal(value, real_init(sealed))?,
        "rdinit" => equal(value, "/init")?,
        name if sealed.image.role == Role::InitOverlay && is_of_the_root(name) => {}
        "rootfstype" => equal(value, "erofs")?,
        "rootflags" => mount_options(value, sealed)?,
        "root" => root(value, sealed)?,
        "rw" if !sealed.is_writable() => {
            accepted
                .warnings
                .push("kernel command line: rw: the sealed root has no overlay and stays read-only".into());
        }
        "systemd.volatile" => volatile(value, sealed)?,
        "rd.overlay" => overlay(parameter, sealed)?,
        "rd.driver.blacklist" => accepted.module_blacklist.extend(value.split(',').map(|name| name.replace('-', "_"))),
        name if name.contains("verity") || name == "usrhash" => verity(name, parameter, sealed)?,
        name if luks_option(name).is_some() && sealed.image.role == Role::Root && !sealed.volumes.is_empty() => {
            luks(luks_option(name).unwrap_or_default(), parameter, sealed, accepted)?;
        }
        name if takes_over(name, parameter) => return Err("nothing: it would take the system over".into()),
        name => others(name, parameter, accepted),
    }
    Ok(())
}

/// In an initrd, systemd reads `rd.systemd.x` and `systemd.x` alike.
fn bare_name(name: &str) -> &str {
    match name.strip_prefix("rd.") {
        Some(rest) if rest.starts_with("systemd.") => rest,
        _ => name,
    }
}

/// What is to run in the end. The sealed init of a second stage is not that of the root that it goes on to.
fn real_init(sealed: &Manifest) -> &str {
    match sealed.image.role {
        Role::Root => sealed.init.as_str(),
        Role::InitOverlay => "/sbin/init",
    }
}

/// What says where the root is and how it is mounted: the business of a second stage, which goes on to it.
fn is_of_the_root(name: &str) -> bool {
    matches!(name, "root" | "rootfstype" | "rootflags" | "rw" | "systemd.volatile" | "rd.overlay")
}

fn equal(found: &str, expected: &str) -> Rule {
    if found == expected { Ok(()) } else { Err(format!("{expected:?}, as sealed")) }
}

fn timeout(value: &str, sealed: &Manifest, accepted: &mut AcceptedCommandLine) {
    match value.parse() {
        Ok(seconds) if (1..=sealed.device_timeout).contains(&seconds) => {
            accepted.device_timeout = Some(Duration::from_secs(seconds.into()));
        }
        _ => accepted.warnings.push(format!(
            "kernel command line: rd.timeout={value}: expected 1 to {} seconds, the sealed deadline, which stays",
            sealed.device_timeout
        )),
    }
}

fn mount_options(value: &str, sealed: &Manifest) -> Rule {
    let known = |option: &str| option == "ro" || sealed.mount_options.iter().any(|one| one.as_str() == option);
    match value.split(',').find(|option| !known(option)) {
        None => Ok(()),
        Some(_) => Err(format!("options among ro and the sealed {:?}", sealed.mount_options)),
    }
}

fn root(value: &str, sealed: &Manifest) -> Rule {
    if value == "/dev/mapper/root" || names(value, &sealed.data) {
        return Ok(());
    }
    Err(format!("/dev/mapper/root or {}, as sealed", sealed.data))
}

/// Whether a command line's device is the sealed place.
fn names(value: &str, place: &Place) -> bool {
    match place {
        Place::PartUuid(uuid) => {
            let uuid = uuid.to_string();
            [value.strip_prefix("PARTUUID="), value.strip_prefix("/dev/disk/by-partuuid/")]
                .into_iter()
                .flatten()
                .any(|found| found.eq_ignore_ascii_case(&uuid))
        }
        Place::PartLabel(label) => [value.strip_prefix("PARTLABEL="), value.strip_prefix("/dev/disk/by-partlabel/")]
            .into_iter()
            .flatten()
            .any(|found| found == label.as_str()),
        Place::Disk(name) => value.strip_prefix("/dev/") == Some(name.as_str()),
        Place::Volume(name) => value.strip_prefix("/dev/mapper/") == Some(name.as_str()),
        // Nothing but verify-init finds a file that is an image, and knows which slot it takes.
        Place::File(_) | Place::Memory | Place::Slot => false,
    }
}

fn volatile(value: &str, sealed: &Manifest) -> Rule {
    match (value, &sealed.overlay) {
        ("overlay", Some(_)) | ("no" | "0" | "false" | "off", None) => Ok(()),
        (_, Some(_)) => Err("\"overlay\", as sealed".into()),
        (_, None) => Err("\"no\": the sealed root has no overlay".into()),
    }
}

fn overlay(parameter: &Parameter, sealed: &Manifest) -> Rule {
    let Some(overlay) = &sealed.overlay else {
        if let Some((volume, _)) = sealed.upper() {
            let repeats = parameter.switch() == Some(true);
            return if repeats { Ok(()) } else { Err(format!("the overlay on the volume {}, as sealed", volume.name)) };
        }
        return if parameter.is_off() { Ok(()) } else { Err("no overlay, as sealed".into()) };
    };
    let size = parameter.value.as_deref().and_then(|value| value.strip_prefix("tmpfs:size="));
    if parameter.switch() == Some(true) || size == Some(overlay.tmpfs_size.as_str()) {
        return Ok(());
    }
    Err(format!("tmpfs:size={}, as sealed", overlay.tmpfs_size))
}

/// What follows `luks` in the parameters of systemd's and dracut's disk encryption: nothing, `uuid`, `name`, …
fn luks_option(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("rd.").unwrap_or(name).strip_prefix("luks")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('.') }
}

/// Which volumes are opened, and how, is sealed. A line may repeat it: `rd.luks.uuid=` and `rd.luks.name=` as systemd and
/// dracut have them. Images of a second stage leave these to the system that follows.
fn luks(option: &str, parameter: &Parameter, sealed: &Manifest, accepted: &mut AcceptedCommandLine) -> Rule {
    let value = parameter.value.as_deref().unwrap_or_default();
    match option {
        "" if parameter.switch() == Some(true) => Ok(()),
        "" => Err("disk encryption on, as sealed".into()),
        "uuid" | "name" => {
            let (uuid, name) = value.split_once('=').map_or((value, None), |(uuid, name)| (uuid, Some(name)));
            let uuid = uuid.strip_prefix("luks-").unwrap_or(uuid).parse().ok();
            let same = |volume: &Volume| {
                (volume.luks_uuid.is_none() || volume.luks_uuid == uuid)
                    && name.is_none_or(|name| name == volume.name.as_str())
            };
            match sealed.volumes.iter().find(|volume| uuid.is_some() && same(volume)) {
                Some(volume) if volume.luks_uuid.is_none() => accepted.warnings.push(format!(
                    "kernel command line: {}: without effect: no LUKS UUID is sealed for the volume {}",
                    parameter.text, volume.name
                )),
                Some(_) => {}
                None => {
                    let volumes: Vec<String> = sealed.volumes.iter().map(known_volume).collect();
                    return Err(format!("{}, as sealed", volumes.join(" or ")));
                }
            }
            Ok(())
        }
        _ => Err("nothing: how volumes are opened is sealed".into()),
    }
}

fn known_volume(volume: &Volume) -> String {
    match volume.luks_uuid {
        Some(uuid) => format!("{uuid}={}", volume.name),
        None => format!("the volume {}", volume.name),
    }
}

/// The parameters of systemd's verity generator, for root and for usr.
fn verity(name: &str, parameter: &Parameter, sealed: &Manifest) -> Rule {
    let value = parameter.value.as_deref().unwrap_or_default();
    match name {
        "systemd.verity" if parameter.switch() == Some(true) => Ok(()),
        "systemd.verity" => Err("verity on, as sealed".into()),
        "systemd.verity_root_data" if names(value, &sealed.data) => Ok(()),
        "systemd.verity_root_data" => Err(format!("{}, as sealed", sealed.data)),
        "systemd.verity_root_hash" if names(value, &sealed.tree) => Ok(()),
        "systemd.verity_root_hash" => Err(format!("{}, as sealed", sealed.tree)),
        "systemd.verity_root_options" => verity_options(value, sealed),
        "usrhash" => Err("no verity device for /usr: none is sealed".into()),
        _ if name.starts_with("systemd.verity_usr") => Err("no verity device for /usr: none is sealed".into()),
        // The module's own parameters and the early device-mapper tables.
        _ => Err("no change to verity: the sealed configuration decides".into()),
    }
}

fn verity_options(value: &str, sealed: &Manifest) -> Rule {
    let known = |option: &str| match option {
        "panic-on-corruption" => sealed.verity.on_corruption == CorruptionAction::Panic,
        "restart-on-corruption" => sealed.verity.on_corruption == CorruptionAction::Restart,
        "" => true,
        _ => option.strip_prefix("hash-offset=") == Some(sealed.verity.hash_offset.to_string().as_str()),
    };
    if value.split(',').all(known) {
        return Ok(());
    }
    let action = sealed.verity.on_corruption.option().unwrap_or("none of the actions on corruption");
    Err(format!("{action} and hash-offset={}, as sealed", sealed.verity.hash_offset))
}

/// Parameters that give a shell, or run something that is not sealed: in the initramfs, or in the systemd that follows
/// and reads the same line.
fn takes_over(name: &str, parameter: &Parameter) -> bool {
    match name {
        "rd.shell" | "systemd.debug_shell" | "systemd.break" | "systemd.crash_shell" => !parameter.is_off(),
        "rd.break"
        | "break"
        | "systemd.unit"
        | "systemd.wants"
        | "systemd.run"
        | "systemd.run_success_action"
        | "systemd.run_failure_action"
        | "systemd.setenv"
        | "systemd.mask"
        | "systemd.set_credential"
        | "systemd.set_credential_binary"
        | "systemd.import_credentials"
        | "SYSTEMD_SULOGIN_FORCE"
        | "dm_mod.create" => true,
        // The words for which systemd starts a rescue or emergency shell.
        "emergency" | "rescue" | "single" | "s" | "S" | "1" | "_b" | "_s" => parameter.value.is_none(),
        _ => false,
    }
}

/// What no rule knows: module parameters are remembered, our own prefix deserves a warning, the rest is not ours.
fn others(name: &str, parameter: &Parameter, accepted: &mut AcceptedCommandLine) {
    if name.starts_with("rd.iofs.") {
        accepted.warnings.push(format!("kernel command line: {}: unknown, and without effect", parameter.text));
    } else if let (Some((module, option)), Some(value)) = (name.split_once('.'), &parameter.value)
        && !matches!(module, "rd" | "systemd" | "luks")
    {
        accepted.module_parameters.push((module.to_owned(), format!("{option}={value}")));
    }
}
