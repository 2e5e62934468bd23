//! Telling file systems apart by the ids in their superblocks: a few bytes at fixed places, and nothing else of them.
//!
//! What is read here is not verified and decides nothing but which device is mounted to look for the sealed file.

use iofs_policy::manifest::{MediumKind, MediumUuid};
use uuid::Uuid;

/// How much of a device is read: up to the end of what is compared.
pub const HEAD: usize = 2048;
/// ext4 and erofs leave this much for boot loaders.
const SUPERBLOCK: usize = 1024;
/// `s_magic` and `s_uuid` of ext4 (kernel documentation, `filesystems/ext4/super.rst`).
const EXT4_MAGIC: (usize, &[u8]) = (SUPERBLOCK + 0x38, &[0x53, 0xef]);
const EXT4_UUID: usize = SUPERBLOCK + 0x68;
/// `magic` and `uuid` of erofs (`fs/erofs/erofs_fs.h`).
const EROFS_MAGIC: (usize, &[u8]) = (SUPERBLOCK, &[0xe2, 0xe1, 0xf5, 0xe0]);
const EROFS_UUID: usize = SUPERBLOCK + 48;
/// The end of a FAT's boot sector, the names of its kinds and its volume id (Microsoft's FAT specification, section 3).
const FAT_MAGIC: (usize, &[u8]) = (510, &[0x55, 0xaa]);
const FAT32: ((usize, &[u8]), usize) = ((82, b"FAT32   "), 67);
const FAT16: ((usize, &[u8]), usize) = ((54, b"FAT"), 39);

/// The id that the first [`HEAD`] bytes of a device show, if they are of such a file system.
pub fn id(kind: MediumKind, head: &[u8]) -> Option<MediumUuid> {
    match kind {
        MediumKind::Ext4 => has(head, EXT4_MAGIC).then(|| uuid(head, EXT4_UUID))?,
        MediumKind::Erofs => has(head, EROFS_MAGIC).then(|| uuid(head, EROFS_UUID))?,
        MediumKind::Vfat => {
            let (_, at) = [FAT32, FAT16].into_iter().find(|(name, _)| has(head, FAT_MAGIC) && has(head, *name))?;
            let volume_id = head.get(at..at + 4)?.try_into().ok()?;
            Some(MediumUuid::of_volume_id(u32::from_le_bytes(volume_id)))
        }
    }
}

fn has(head: &[u8], (at, magic): (usize, &[u8])) -> bool {
    head.get(at..at + magic.len()) == Some(magic)
}

fn uuid(head: &[u8], at: usize) -> Option<MediumUuid> {
    Uuid::from_slice(head.get(at..at + 16)?).ok().map(MediumUuid::of_uuid)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;

    /// The id that each maker of file systems was told, as read by us.
    fn made(program: &str, arguments: &[&str], kind: MediumKind) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let path_of_program = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
        let mut command = Command::new(program);
        command.env("PATH", path_of_program).args(arguments).arg(&path);
        if kind == MediumKind::Erofs {
            command.arg(folder.path().join("empty"));
            fs::create_dir(folder.path().join("empty")).unwrap();
        }
        let made =
            command.output().unwrap_or_else(|error| panic!("{program}: {error}\n  run: scripts/install-deps test"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let head = fs::read(&path).unwrap();
        id(kind, &head[..HEAD.min(head.len())]).map(|id| id.to_string())
    }

    #[test]
    fn the_ids_are_those_that_the_makers_of_file_systems_were_told() {
        let uuid = "01020304-0506-4708-890a-0b0c0d0e0f10";
        assert_eq!(made("mkfs.ext4", &["-q", "-U", uuid], MediumKind::Ext4).as_deref(), Some(uuid));
        assert_eq!(made("mkfs.erofs", &["-U", uuid], MediumKind::Erofs).as_deref(), Some(uuid));
        for size in ["12", "16", "32"] {
            let arguments = ["-F", size, "-i", "12ab34cd"];
            assert_eq!(made("mkfs.vfat", &arguments, MediumKind::Vfat).as_deref(), Some("12AB-34CD"), "FAT{size}");
        }
    }

    proptest! {
        #[test]
        fn hostile_filesystem_bytes_without_a_magic_are_of_none(head in prop::collection::vec(any::<u8>(), 0..HEAD + 1)) {
            for kind in MediumKind::ALL {
                prop_assert!(id(kind, &head).is_none() || head.len() > 510);
            }
        }
    }
}
