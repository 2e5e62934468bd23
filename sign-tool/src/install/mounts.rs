//! Mounted file systems (`/proc/self/mountinfo`, proc(5)) and the devices below them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::sysroot::Sysroot;
use crate::report::{ExitStatus, Failure};

/// A mount, as the system sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device's numbers, as `8:2`.
    pub device: String,
    /// The folder of the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What was mounted: a device's path, mostly.
    pub source: String,
}

/// Parses `mountinfo`. A later mount covers an earlier one of the same place.
///
/// # Errors
/// A line that is none.
pub fn parse(text: &str) -> Result<Vec<Mount>, Failure> {
    text.lines().map(|line| mount(line).ok_or_else(|| malformed(line))).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let after: Vec<&str> = after.split(' ').collect();
    Some(Mount {
        device: (*before.get(2)?).to_owned(),
        root: unescape(before.get(3)?).into(),
        point: unescape(before.get(4)?).into(),
        kind: (*after.first()?).to_owned(),
        source: unescape(after.get(1)?),
    })
}

fn malformed(line: &str) -> Failure {
    Failure::new(ExitStatus::BadInput, format!("/proc/self/mountinfo: expected a mount, found {line:?}"))
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain += &part[3..];
            }
            None => plain += part,
        }
    }
    plain
}

/// The mount that a path lies on.
pub fn covering<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let covers = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    covers.max_by_key(|mount| mount.point.components().count())
}

/// Reads the system's mounts.
///
/// # Errors
/// `/proc` is not mounted, or says what nobody understands.
pub fn read(sysroot: &Sysroot) -> Result<Vec<Mount>, Failure> {
    let path = sysroot.path("/proc/self/mountinfo");
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::io(format_args!("read {}", path.display()), &error)
            .next("mount proc and devtmpfs in that system first")
    })?;
    parse(&text)
}

/// What stands between a file system and its disk, as far as no early boot can look through it; none for a partition or disk.
pub fn layer(sysroot: &Sysroot, mount: &Mount) -> Option<&'static str> {
    let device = sysroot.path("/sys/dev/block").join(&mount.device);
    // sysfs knows: names are only habits.
    if device.join("md").exists() {
        return Some("a RAID array");
    }
    let uuid = fs::read_to_string(device.join("dm/uuid")).ok()?;
    Some(match uuid.split('-').next().unwrap_or_default() {
        "LVM" => "LVM",
        "CRYPT" => "an encrypted volume",
        _ => "a device-mapper device",
    })
}

/// The name of a device in `/dev/disk/by-KIND`, where it has one.
pub fn disk_name(sysroot: &Sysroot, mount: &Mount, kind: &str) -> Option<String> {
    let folder = format!("/dev/disk/by-{kind}");
    let device = sysroot.resolve(&mount.source).ok()?;
    let entries = fs::read_dir(sysroot.path(&folder)).ok()?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names.into_iter().find(|name| sysroot.resolve(format!("{folder}/{name}")).is_ok_and(|found| found == device))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "\
22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro
90 28 8:2 / /boot rw,relatime shared:44 - ext4 /dev/sda2 rw
93 90 8:1 / /boot/efi rw,relatime shared:46 - vfat /dev/sda1 rw,fmask=0077
97 28 8:9 /sub /mnt/a\\040b ro - ext4 /dev/sda9 ro
";

    #[test]
    fn the_deepest_mount_covers_a_path() {
        let mounts = parse(DEBIAN).unwrap();
        let source = |path: &str| covering(&mounts, Path::new(path)).unwrap().source.clone();
        assert_eq!(source("/boot/iofs"), "/dev/sda2");
        assert_eq!(source("/boot/efi/EFI/Linux"), "/dev/sda1");
        assert_eq!(source("/bootstrap"), "/dev/mapper/vg-root", "a name that only begins alike");
        let space = covering(&mounts, Path::new("/mnt/a b/c")).unwrap();
        assert_eq!((space.root.as_path(), space.kind.as_str()), (Path::new("/sub"), "ext4"));
    }

    #[test]
    fn a_line_that_is_no_mount_is_an_error() {
        assert!(parse("28 1 254:0 / / rw").unwrap_err().fact.contains("expected a mount"));
    }
}
