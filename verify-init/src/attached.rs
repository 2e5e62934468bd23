//! Images that are files: their file system is mounted for as long as it takes to open them, and a loop device stands for
//! each from then on.
//!
//! Nobody has verified that file system. It is mounted read-only and without what it could be used for; the file is
//! opened once, so that what happens to its name later does not matter, and each block of it is verified when it is read.

use std::io;

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{FilePlace, MediumKind, Place, Role},
    paths,
};
use nix::{errno::Errno, mount::MsFlags};

use crate::{
    boot::Boot,
    devices::BlockDevice,
    mounted::FOLDER,
    report::{refusal, text},
    slots::Trial,
    system::{Attached, Mount, System},
};

const STAGE: Stage = Stage::Found;
const PLAIN: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);

/// The device for what lies at a place: the partition or disk that was found, or a loop device.
pub(crate) fn attach<S: System>(
    boot: &mut Boot<'_, S>,
    role: Role,
    what: &str,
    place: &Place,
    found: Option<BlockDevice>,
) -> Result<Option<BlockDevice>, FailureReport> {
    match (place, found) {
        (Place::Slot, _) => match boot.slots.as_ref().and_then(Trial::device) {
            Some(device) => Ok(Some(device.clone())),
            None => Err(no_slot(what)),
        },
        (Place::Memory, _) => attach_file(boot, "/", paths::IMAGE, "build the initramfs again").map(Some),
        (Place::File(file), Some(medium)) => from_medium(boot, role, what, file, &medium).map(Some),
        (_, found) => Ok(found),
    }
}

/// The manifest of a slot, in an initramfs that knows of none.
fn no_slot(what: &str) -> FailureReport {
    let (fact, expected) = (format!("{what}: the image is sealed for a slot"), "slots in the trust policy");
    refusal(STAGE, fact, expected, "none", "seal the image with [slots], or with another place")
}

fn from_medium<S: System>(
    boot: &mut Boot<'_, S>,
    role: Role,
    what: &str,
    file: &FilePlace,
    medium: &BlockDevice,
) -> Result<BlockDevice, FailureReport> {
    let folder = format!("{FOLDER}/{what}");
    mount(boot, file.kind, medium, &folder)?;
    let next = "write the sealed image there again: iofs-sign install";
    let attached = attach_file(boot, &folder, file.path.as_str(), next);
    // The real system mounts it for writing, which the kernel refuses as long as it is mounted otherwise. The image of a
    // root is needed until the end; that of a second stage goes with it.
    if (role == Role::InitOverlay || attached.is_err())
        && let Err(error) = boot.system.unmount(&folder)
    {
        boot.warn(format!("{folder} stays mounted: {}", text(&error)));
    }
    attached
}

fn mount<S: System>(
    boot: &mut Boot<'_, S>,
    kind: MediumKind,
    medium: &BlockDevice,
    folder: &str,
) -> Result<(), FailureReport> {
    // Its journal stays as it is, and what it says about errors does not count here.
    let options = if kind == MediumKind::Ext4 { "noload,errors=continue" } else { "" };
    let mount = Mount { source: &medium.path, target: folder, kind: kind.name(), flags: PLAIN, options };
    let system = &mut *boot.system;
    system.create_folder(folder, 0o700).and_then(|()| system.mount(&mount)).map_err(|error| {
        let fact = format!("the file system of the image on {} cannot be mounted", medium.path);
        let expected = format!("a sound {}", kind.name());
        let next = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENODEV => "build the initramfs with the module of that file system, or boot a kernel that has it",
            _ => "see the kernel's messages above; check it with fsck, or make it anew and write the image there again",
        };
        refusal(STAGE, fact, expected, text(&error), next)
    })
}

fn attach_file<S: System>(
    boot: &mut Boot<'_, S>,
    folder: &str,
    path: &str,
    next: &str,
) -> Result<BlockDevice, FailureReport> {
    let attached = boot.system.attach_file(folder, path).map_err(|error: io::Error| {
        let (expected, next) = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENXIO | Errno::ENODEV => {
                ("a kernel with loop devices", "build the initramfs with the module loop, or boot a kernel that has it")
            }
            _ => ("a regular file, and no link on the way to it", next),
        };
        refusal(STAGE, format!("the image {path} cannot be opened"), expected, text(&error), next)
    })?;
    let Attached { path: node, number, bytes, direct } = attached;
    let how = if direct { "directly" } else { "through the page cache" };
    boot.debug(&format!("attached {path} of {bytes} bytes as {node}, read {how}"));
    let name = node.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(BlockDevice { name, path: node, number, bytes, partition: None, media: Vec::new() })
}
