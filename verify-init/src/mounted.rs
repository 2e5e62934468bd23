//! The fifth stage: the image is mounted, and the overlay over it.

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{MountOption, Overlay},
    paths::ROOT_MAPPING,
    verity::check_status,
};
use nix::{errno::Errno, mount::MsFlags};

use crate::{
    boot::Boot,
    mapped::Mapped,
    report::{refusal, text},
    system::{Mount, System},
};

const STAGE: Stage = Stage::Mounted;
/// Where the new root is put together.
pub(crate) const NEW_ROOT: &str = "/sysroot";
/// The image below an overlay. `/run` is moved, so that it stays within reach.
const LOWER: &str = "/run/iofs/lower";
/// The tmpfs of the overlay: for root alone, since whoever writes to it writes to all of the system.
const WRITABLE: &str = "/run/iofs/overlay";
const UPPER: &str = "/run/iofs/overlay/upper";
const WORK: &str = "/run/iofs/overlay/work";
const FOLDER: &str = "/run/iofs";
const SYSTEMD_FOLDER: &str = "/run/systemd";
/// What an overlay root stands on, where systemd's generators look for it (systemd's `volatile-root.c`).
const VOLATILE_ROOT: &str = "/run/systemd/volatile-root";
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const EXECUTABLE: u32 = 0o111;

/// The new root is complete.
pub(crate) struct Mounted {
    pub(crate) mapped: Mapped,
    /// The init that was found in it.
    pub(crate) init: String,
    /// Whether missing mount points can be made.
    pub(crate) writable: bool,
}

impl Mapped {
    /// Mounts, and checks for init.
    pub(crate) fn mount<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Mounted, FailureReport> {
        let manifest = self.verified.manifest.manifest();
        let (flags, options) = split(&manifest.mount_options);
        let overlay = manifest.overlay.as_ref();
        folder(boot, FOLDER)?;
        folder(boot, NEW_ROOT)?;
        let image = Mount {
            source: &self.path,
            target: if overlay.is_some() { LOWER } else { NEW_ROOT },
            kind: "erofs",
            flags: flags | MsFlags::MS_RDONLY,
            options: &options,
        };
        folder(boot, image.target)?;
        let mounted = mount(boot, &image, "an erofs image that this kernel reads, and mount options that it knows");
        mounted.map_err(|refusal| corruption(boot).unwrap_or(refusal))?;
        if let Some(overlay) = overlay {
            mount_overlay(boot, overlay, flags)?;
            tell_systemd(boot, &format!("/dev/block/{}", self.data));
        }
        let init = self.verified.command_line.init.clone().unwrap_or_else(|| manifest.init.to_string());
        check_init(boot, &init).map_err(|refusal| corruption(boot).unwrap_or(refusal))?;
        let what =
            overlay.map_or("read-only".to_owned(), |overlay| format!("under an overlay of {}", overlay.tmpfs_size));
        boot.reached(STAGE, &format!("mounted {} {what}", self.path));
        Ok(Mounted { writable: overlay.is_some(), mapped: self, init })
    }
}

/// Separates what mount(2) takes as flags from the file system's own options.
fn split(options: &[MountOption]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

fn folder<S: System>(boot: &mut Boot<'_, S>, path: &str) -> Result<(), FailureReport> {
    boot.system.create_folder(path, 0o755).map_err(|error| {
        refusal(
            STAGE,
            format!("{path} cannot be made"),
            "a writable initramfs and /run",
            text(&error),
            "give the machine more memory",
        )
    })
}

fn mount<S: System>(boot: &mut Boot<'_, S>, mount: &Mount<'_>, expected: &str) -> Result<(), FailureReport> {
    let Err(error) = boot.system.mount(mount) else {
        boot.debug(&format!("mounted {} on {} ({})", mount.kind, mount.target, mount.options));
        return Ok(());
    };
    let (kind, target) = (mount.kind, mount.target);
    let next = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENODEV => format!("build the initramfs with the module {kind}, or boot a kernel that has it"),
        _ => "see the kernel's messages above".to_owned(),
    };
    let options = if mount.options.is_empty() { "none" } else { mount.options };
    let found = format!("{} (options: {options})", text(&error));
    Err(refusal(STAGE, format!("{kind} cannot be mounted on {target}"), expected, found, next))
}

fn mount_overlay<S: System>(boot: &mut Boot<'_, S>, overlay: &Overlay, flags: MsFlags) -> Result<(), FailureReport> {
    folder(boot, WRITABLE)?;
    let options = format!("mode=0700,size={}", overlay.tmpfs_size);
    let writable =
        Mount { source: "overlay", target: WRITABLE, kind: "tmpfs", flags: MsFlags::empty(), options: &options };
    mount(boot, &writable, "memory for the sealed size of the overlay")?;
    folder(boot, UPPER)?;
    folder(boot, WORK)?;
    // What is written is gone at the next boot, so neither redirects nor metacopies are ever met that are not ours.
    let options = format!("lowerdir={LOWER},upperdir={UPPER},workdir={WORK},redirect_dir=nofollow,metacopy=off");
    let volatile = format!("{options},volatile");
    let flags = flags - MsFlags::MS_RDONLY;
    let over = Mount { source: "overlay", target: NEW_ROOT, kind: "overlay", flags, options: &volatile };
    // Kernels before 5.10 do not know `volatile`, which only saves syncing a tmpfs.
    match boot.system.mount(&over) {
        Ok(()) => Ok(()),
        Err(_) => mount(boot, &Mount { options: &options, ..over }, "an overlay over the image"),
    }
}

fn tell_systemd<S: System>(boot: &mut Boot<'_, S>, device: &str) {
    let system = &mut *boot.system;
    let told = system.create_folder(SYSTEMD_FOLDER, 0o755).and_then(|()| system.link(device, VOLATILE_ROOT));
    if let Err(error) = told {
        boot.warn(format!("{VOLATILE_ROOT}: {}", text(&error)));
    }
}

/// If a block of the image was bad, that is the reason for whatever failed after it.
fn corruption<S: System>(boot: &mut Boot<'_, S>) -> Option<FailureReport> {
    let targets = boot.system.mapping_status(ROOT_MAPPING).ok()?;
    let error = targets.iter().find_map(|target| check_status(&target.text).err())?;
    let next = "write the sealed image to the disk again; if this repeats, the disk is failing";
    Some(refusal(STAGE, "the image on the disk is corrupted", "blocks that verify", error.to_string(), next))
}

/// The initramfs is only left for a root that has an init.
fn check_init<S: System>(boot: &mut Boot<'_, S>, init: &str) -> Result<(), FailureReport> {
    let found = match boot.system.mode_in_root(NEW_ROOT, init) {
        Ok(mode) if mode & FILE_TYPE == REGULAR && mode & EXECUTABLE != 0 => return Ok(()),
        Ok(mode) => format!("a file of mode {mode:o}"),
        Err(error) => text(&error),
    };
    let next = "seal an image that has this init, or seal the path of the one that it has";
    Err(refusal(STAGE, format!("the image has no init {init}"), "an executable file", found, next))
}
