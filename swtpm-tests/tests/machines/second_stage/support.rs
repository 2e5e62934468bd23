//! A second stage that goes on as initramfs-tools does, to a root that tells what is left.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use anyhow::{Result, ensure};
use iofs_policy::{
    failure::FailureAction,
    manifest::{MediumKind, Role},
};
use iofs_sign::seal::config::{PlaceSection, PlaceText};
use swtpm_tests::{
    Disk, Ending, Line, Machine, ScratchDisk, Vm,
    chain::{Chain, tiny_root},
    medium::{self, Medium},
    shared,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const STAGE_REACHED: &str = "SECOND STAGE";
pub(crate) const REAL_ROOT: &str = "REAL ROOT";

/// What a distribution's scripts do: mount what an initramfs finds unmounted, find the root, and run run-init.
const INIT: &str = r#"#!/bin/sh
echo 'SECOND STAGE'
# As systemd asks before it mounts them, with what a shell has: a mount is on another device than the folder above.
for place in dev proc sys root; do [ "$(stat -c %d /$place)" = "$(stat -c %d /)" ] || echo "LEFT mounted: /$place"; done
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs udev /dev && echo 'STARTED BARE'
[ -e /run/iofs/boot.json ] && echo 'RUN KEPT'
case " $(cat /proc/cmdline) " in
*' iofs.wait '*)
    echo 'WAITING'
    read -r line
    cat /ballast >/dev/null && echo 'BALLAST READ'
    poweroff -f
    ;;
esac
mount -t tmpfs tmpfs /run
mount -t tmpfs root /root
mkdir /root/bin /root/sbin /root/dev /root/proc /root/sys /root/run /root/mnt
cp -a /bin /root
cp /real-init /root/sbin/init
run-init -n /root /sbin/nothing 2>/dev/null || run-init -n /root /sbin/init && echo 'INIT CHECKED'
for place in run dev sys proc; do mount -o move "/$place" "/root/$place"; done
exec run-init /root /sbin/init
"#;

const REAL_INIT: &str = r#"#!/bin/sh
echo 'REAL ROOT'
sleep 1
[ -e /run/iofs/boot.json ] && echo 'RECORD HANDED ON'
for name in /sys/block/dm-* /sys/block/loop*/loop; do [ ! -e "$name" ] || echo "LEFT $name"; done
grep -E ' (erofs|overlay) |/run/iofs' /proc/mounts && echo 'LEFT mounts'
case " $(cat /proc/cmdline) " in
*' iofs.medium='*)
    kind=$(sed 's/.*iofs.medium=\([a-z0-9]*\).*/\1/' /proc/cmdline)
    mount -t "$kind" /dev/vda /mnt && touch /mnt/written && echo 'MEDIUM WRITABLE'
    ;;
esac
echo 'TOLD ALL'
poweroff -f
"#;

fn tree(folder: &Path) -> Result<()> {
    tiny_root(folder, "")?;
    for applet in ["mkdir", "cp", "grep", "sed", "stat"] {
        std::os::unix::fs::symlink("busybox", folder.join("bin").join(applet))?;
    }
    let program = |path: &str, text: &str| {
        fs::write(folder.join(path), text)?;
        fs::set_permissions(folder.join(path), fs::Permissions::from_mode(0o755))
    };
    for name in ["root", "usr", "usr/bin"] {
        fs::create_dir(folder.join(name))?;
    }
    program("init", INIT)?;
    program("real-init", REAL_INIT)?;
    // What stands for klibc's: it must not run.
    program("usr/bin/run-init", "#!/bin/sh\necho 'KLIBC RAN'\nexit 1\n")?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Seals the stage for this place; none for the partitions that are the default.
pub(crate) fn sealed(suite: &str, place: Option<&str>) -> Result<Chain> {
    let root = tempfile::tempdir()?;
    tree(root.path())?;
    let place = place.map(|place| Ok::<_, anyhow::Error>(PlaceText(place.parse()?))).transpose()?;
    Chain::seal(suite, root.path(), |request| {
        request.config.image.role = Role::InitOverlay;
        request.config.image.id = Some("second-stage".parse().expect("valid"));
        request.config.boot.device_timeout = 20;
        request.config.boot.on_failure = FailureAction::PowerOff;
        request.config.place = PlaceSection { data: place.clone(), tree: place };
    })
}

/// The chain whose image is a file on an ext4 file system that is found by its own id: what most attacks are against.
pub(crate) fn in_a_file() -> Result<Arc<Chain>> {
    static CHAIN: Mutex<Weak<Chain>> = Mutex::new(Weak::new());
    shared(&CHAIN, || sealed("trixie", Some(&medium::place(MediumKind::Ext4))))
}

/// Its machine, with a file system of that content as its first disk.
pub(crate) fn with_medium(chain: &Chain, name: &str, medium: &Medium) -> Result<(Machine, ScratchDisk)> {
    let disk = medium.disk(MediumKind::Ext4)?;
    let machine = chain.machine(name, &disk).append("rd.timeout=5");
    Ok((machine, disk))
}

/// Boots to the real root, which says these lines too and finds nothing left of what was before it.
pub(crate) fn boots(machine: &Machine, lines: &[&str]) -> Result<()> {
    let mut vm = machine.start()?;
    for line in [STAGE_REACHED, "STARTED BARE", "RUN KEPT", "INIT CHECKED", REAL_ROOT, "RECORD HANDED ON"] {
        vm.wait_for_line(&Line::exactly(line), PATIENCE)?;
    }
    for line in lines.iter().chain(&["TOLD ALL"]) {
        vm.wait_for_line(&Line::exactly(line), PATIENCE)?;
    }
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    for never in ["LEFT ", "KLIBC RAN", "verify-init: warning"] {
        let said = vm.console().find(&Line::containing(never));
        ensure!(said.is_none(), "{}", said.map(|line| line.text).unwrap_or_default());
    }
    Ok(())
}

/// Boots, and checks that the boot is refused for this reason before anything of the image ran.
pub(crate) fn refused(machine: &Machine, stage: &str, block: [&str; 3]) -> Result<()> {
    let mut vm = machine.start()?;
    vm.says_why(stage, block, PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    never_ran(&vm)
}

/// Boots, and checks that the kernel stops at the first block that was changed.
pub(crate) fn stops_at_corruption(machine: &Machine) -> Result<()> {
    let mut vm = machine.start()?;
    let ended = vm.wait_for_end(PATIENCE)?;
    ensure!(matches!(&ended, Ending::Panicked(why) if why.contains("dm-verity device corrupted")), "{ended:?}");
    never_ran(&vm)
}

fn never_ran(vm: &Vm) -> Result<()> {
    ensure!(vm.console().find(&Line::exactly(STAGE_REACHED)).is_none(), "the second stage ran");
    Ok(())
}

/// A disk that is not written to.
pub(crate) fn untouched(disk: &ScratchDisk) -> Disk {
    Disk::raw(disk.path()).discarding_writes()
}
