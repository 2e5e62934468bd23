//! The stage in which the image is mounted, the overlay over it, and the data volumes in that.

use iofs_policy::{
    failure::{FailureReport, Stage},
    manifest::{DataUse, Manifest, MountOption, Role, UpperUse, VolumeUse},
    verity::check_status,
};
use nix::{errno::Errno, mount::MsFlags};

use crate::{
    boot::Boot,
    mapped::Mapped,
    report::{refusal, text},
    system::{Access, Mount, System},
    unlocked::{OpenVolume, Unlocked},
};

#[cfg(not(feature = "full"))]
use crate::lean::spread;
#[cfg(feature = "full")]
use crate::second_stage::spread;

const STAGE: Stage = Stage::Mounted;
/// Where the new root is put together.
pub(crate) const NEW_ROOT: &str = "/sysroot";
/// The image below an overlay. `/run` is moved, so that it stays within reach.
pub(crate) const LOWER: &str = "/run/iofs/lower";
/// What holds the upper layer of the overlay: for root alone, since whoever writes to it writes to all of the system.
pub(crate) const WRITABLE: &str = "/run/iofs/overlay";
/// The image under its overlay, for a second stage: before it is spread over a root in memory.
pub(crate) const WHOLE: &str = "/run/iofs/second-stage";
/// A volume's file system has a root folder of its own mode, so that it is mounted below one that nobody else enters.
const KEPT: &str = "/run/iofs/overlay/volume";
pub(crate) const FOLDER: &str = "/run/iofs";
/// What systemd keeps between its programs.
pub(crate) const SYSTEMD_FOLDER: &str = "/run/systemd";
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
        let writable = Writable::of(manifest, &self.volumes)?;
        folder(boot, FOLDER)?;
        folder(boot, NEW_ROOT)?;
        let image = Mount {
            source: &self.path,
            target: if writable.is_some() { LOWER } else { NEW_ROOT },
            kind: "erofs",
            flags: flags | MsFlags::MS_RDONLY,
            options: &options,
        };
        folder(boot, image.target)?;
        let mounted = mount(boot, &image, "an erofs image that this kernel reads, and mount options that it knows");
        let role = manifest.image.role;
        mounted.map_err(|refusal| corruption(boot, role).unwrap_or(refusal))?;
        if let Some(writable) = &writable {
            self.mount_overlay(boot, writable, flags, role)?;
        }
        let init = self.verified.command_line.init.clone().unwrap_or_else(|| manifest.init.to_string());
        check_init(boot, &init).map_err(|refusal| corruption(boot, role).unwrap_or(refusal))?;
        let mut what = writable.as_ref().map_or("read-only".to_owned(), Writable::description);
        for place in mount_volumes(boot, manifest, &self.volumes)? {
            what.push_str(&format!(", {place}"));
        }
        boot.reached(STAGE, &format!("mounted {} {what}", self.path));
        Ok(Mounted { writable: manifest.is_writable(), mapped: self, init })
    }
}

impl Mapped {
    /// The image under its writable layer: as the new root, or spread over one that is in memory.
    fn mount_overlay<S: System>(
        &self,
        boot: &mut Boot<'_, S>,
        writable: &Writable<'_>,
        flags: MsFlags,
        role: Role,
    ) -> Result<(), FailureReport> {
        match (role, writable) {
            (Role::InitOverlay, Writable::Memory(size)) => {
                folder(boot, WHOLE)?;
                mount_overlay(boot, writable, flags, WHOLE)?;
                spread(boot, size)
            }
            _ => {
                mount_overlay(boot, writable, flags, NEW_ROOT)?;
                tell_systemd(boot, &format!("/dev/block/{}", self.data));
                Ok(())
            }
        }
    }
}

/// What the overlay keeps what is written on.
enum Writable<'a> {
    /// Memory, of that size.
    Memory(&'a str),
    /// An integrity-protected volume.
    Volume(&'a UpperUse, &'a OpenVolume),
}

impl<'a> Writable<'a> {
    fn of(manifest: &'a Manifest, volumes: &'a [OpenVolume]) -> Result<Option<Self>, FailureReport> {
        let Some((volume, upper)) = manifest.upper() else {
            return Ok(manifest.overlay.as_ref().map(|overlay| Self::Memory(overlay.tmpfs_size.as_str())));
        };
        // It is not optional, and was refused without integrity; here is where that counts.
        match Unlocked::find(volumes, &volume.name) {
            Some(open) if open.record.integrity => Ok(Some(Self::Volume(upper, open))),
            _ => {
                let fact = format!("volume {}: what is written to the root would not be protected", volume.name);
                let expected = "an integrity-protected volume for an upper layer";
                Err(refusal(STAGE, fact, expected, "none that is open", "make the volume anew"))
            }
        }
    }

    fn description(&self) -> String {
        match self {
            Self::Memory(size) => format!("under an overlay of {size}"),
            Self::Volume(_, open) => format!("under an overlay on volume {}", open.record.name),
        }
    }
}

/// Mounts the data volumes that are open, in their sealed order. Says where.
fn mount_volumes<S: System>(
    boot: &mut Boot<'_, S>,
    manifest: &Manifest,
    volumes: &[OpenVolume],
) -> Result<Vec<String>, FailureReport> {
    let mut places = Vec::new();
    for volume in &manifest.volumes {
        let (VolumeUse::Data(data), Some(open)) = (&volume.usage, Unlocked::find(volumes, &volume.name)) else {
            continue;
        };
        match mount_data(boot, data, open, manifest.is_writable()) {
            Ok(()) => places.push(format!("{} on {}", volume.name, data.path)),
            Err(refusal) if volume.optional => boot.warn(format!("{}: {}", refusal.fact, refusal.found)),
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(places)
}

fn mount_data<S: System>(
    boot: &mut Boot<'_, S>,
    data: &DataUse,
    open: &OpenVolume,
    writable: bool,
) -> Result<(), FailureReport> {
    let (path, kind) = (data.path.as_str(), data.file_system.name());
    if writable {
        // If that fails, so does the mount, which then says why.
        let _ = boot.system.create_folder(&format!("{NEW_ROOT}{path}"), 0o755);
    }
    let (flags, options) = split(&data.options);
    let to = Mount { source: &open.device.path, target: path, kind, flags, options: &options };
    boot.system.mount_in_root(NEW_ROOT, &to).map_err(|error| {
        let fact = format!("volume {}: {kind} cannot be mounted on {path}", open.record.name);
        let expected =
            format!("a file system {kind} in the volume, and a folder {path} in the root without links on the way");
        let next = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENODEV => format!("build the initramfs with the module {kind}, or boot a kernel that has it"),
            Errno::ENOENT => format!("seal an image that has {path}, or one with an overlay"),
            Errno::ELOOP => format!("seal the path that {path} leads to"),
            _ => format!("see the kernel's messages above; a volume that was never used needs mkfs.{kind}"),
        };
        refusal(STAGE, fact, expected, text(&error), next)
    })
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
    folder_of(boot, path, 0o755)
}

fn folder_of<S: System>(boot: &mut Boot<'_, S>, path: &str, mode: u32) -> Result<(), FailureReport> {
    boot.system.create_folder(path, mode).map_err(|error| {
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

fn mount_overlay<S: System>(
    boot: &mut Boot<'_, S>,
    writable: &Writable<'_>,
    flags: MsFlags,
    target: &str,
) -> Result<(), FailureReport> {
    let below = match writable {
        Writable::Memory(size) => {
            folder(boot, WRITABLE)?;
            let options = format!("mode=0700,size={size}");
            let memory = Mount {
                source: "overlay",
                target: WRITABLE,
                kind: "tmpfs",
                flags: MsFlags::empty(),
                options: &options,
            };
            mount(boot, &memory, "memory for the sealed size of the overlay")?;
            WRITABLE
        }
        Writable::Volume(upper, open) => {
            let (flags, options) = split(&upper.options);
            let (source, kind) = (open.device.path.as_str(), upper.file_system.name());
            let volume = Mount { source, target: KEPT, kind, flags, options: &options };
            folder_of(boot, WRITABLE, 0o700)?;
            folder(boot, KEPT)?;
            mount(boot, &volume, &format!("a file system {kind} in the volume {}", open.record.name))?;
            KEPT
        }
    };
    let (upper, work) = (format!("{below}/upper"), format!("{below}/work"));
    folder(boot, &upper)?;
    folder(boot, &work)?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work},redirect_dir=nofollow,metacopy=off");
    let flags = flags - MsFlags::MS_RDONLY;
    let over = |options| Mount { source: "overlay", target, kind: "overlay", flags, options };
    match writable {
        // What is written is gone at the next boot, so neither redirects nor metacopies are ever met that are not ours.
        // Kernels before 5.10 do not know `volatile`, which only saves syncing a tmpfs.
        Writable::Memory(_) => match boot.system.mount(&over(&format!("{options},volatile"))) {
            Ok(()) => Ok(()),
            Err(_) => mount(boot, &over(&options), "an overlay over the image"),
        },
        // The next image has other files: an index of those of this one would make the kernel refuse it.
        Writable::Volume(..) => mount(boot, &over(&format!("{options},index=off")), "an overlay over the image"),
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
fn corruption<S: System>(boot: &mut Boot<'_, S>, role: Role) -> Option<FailureReport> {
    let targets = boot.system.mapping_status(role.mapping(), Access::ReadOnly).ok()?;
    let error = targets.iter().find_map(|target| check_status(&target.text).err())?;
    let next = "write the sealed image to the disk again; if this repeats, the disk is failing";
    Some(refusal(STAGE, "the image on the disk is corrupted", "blocks that verify", error.to_string(), next))
}

/// Whether that is the mode of a file that can be run.
pub(crate) fn is_program(mode: u32) -> bool {
    mode & FILE_TYPE == REGULAR && mode & EXECUTABLE != 0
}

/// The initramfs is only left for a root that has an init.
fn check_init<S: System>(boot: &mut Boot<'_, S>, init: &str) -> Result<(), FailureReport> {
    let found = match boot.system.mode_in_root(NEW_ROOT, init) {
        Ok(mode) if is_program(mode) => return Ok(()),
        Ok(mode) => format!("a file of mode {mode:o}"),
        Err(error) => text(&error),
    };
    let next = "seal an image that has this init, or seal the path of the one that it has";
    Err(refusal(STAGE, format!("the image has no init {init}"), "an executable file", found, next))
}
