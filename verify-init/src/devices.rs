//! Block devices as sysfs shows them. Nothing is probed: no file system, no signature, no partition's contents.

use std::{collections::BTreeMap, fmt};

use iofs_policy::{
    manifest::{FilePlace, Medium, MediumKind, MediumUuid, PartitionLabel, Place},
    verity::DeviceNumber,
};
use uuid::Uuid;

use crate::{gpt, medium, system::System, uevent};

/// Where the kernel lists whole disks, each with its partitions as folders.
const DISKS: &str = "/sys/block";
/// A sysfs file has at most one page; the largest page of any supported architecture is this.
const MAX_SYSFS: usize = 65536;
/// sysfs counts in these, whatever the device's blocks are.
const SECTOR: u64 = 512;

/// A disk or a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name, such as `vda1`.
    pub name: String,
    /// Its node.
    pub path: String,
    /// Its number.
    pub number: DeviceNumber,
    /// Its size in bytes.
    pub bytes: u64,
    /// What only partitions have.
    pub partition: Option<Partition>,
    /// The file systems that it may hold, by what its first bytes say: where somebody looks for one.
    pub media: Vec<(MediumKind, MediumUuid)>,
}

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the disk's table, from 1.
    pub number: u32,
    /// Its name as the kernel spells it.
    pub label: Vec<u8>,
    /// Its unique id, where it is known.
    pub uuid: Option<Uuid>,
}

impl BlockDevice {
    /// Whether this is the sealed place.
    pub fn is(&self, place: &Place) -> bool {
        match (place, &self.partition) {
            (Place::PartUuid(uuid), Some(partition)) => partition.has_id(uuid),
            (Place::PartLabel(label), Some(partition)) => partition.is_called(label),
            (Place::Disk(name), None) => self.name == name.as_str(),
            (Place::File(file), partition) => cfg!(feature = "full") && self.holds(file, partition.as_ref()),
            _ => false,
        }
    }
}

impl BlockDevice {
    fn holds(&self, file: &FilePlace, partition: Option<&Partition>) -> bool {
        match (&file.on, partition) {
            (Medium::Uuid(uuid), _) => self.media.iter().any(|(kind, one)| *kind == file.kind && one == uuid),
            (Medium::PartUuid(uuid), Some(partition)) => partition.has_id(uuid),
            (Medium::PartLabel(label), Some(partition)) => partition.is_called(label),
            _ => false,
        }
    }
}

impl Partition {
    fn has_id(&self, uuid: &Uuid) -> bool {
        self.uuid.as_ref() == Some(uuid)
    }

    fn is_called(&self, label: &PartitionLabel) -> bool {
        self.label == kernel_spelling(label.as_str())
    }
}

/// What is looked for, besides what sysfs tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Looked {
    /// Partitions by their unique ids: the partition table is read of disks whose partitions lack them. Kernels up to
    /// 6.12 do not tell them.
    pub unique_ids: bool,
    /// File systems by their ids: the superblock is read of each device that has one.
    pub media: bool,
}

impl Looked {
    /// What it takes to find these places.
    pub fn at<'a>(places: impl Iterator<Item = &'a Place>) -> Self {
        let mut looked = Self::default();
        for place in places {
            match place {
                Place::PartUuid(_) | Place::File(FilePlace { on: Medium::PartUuid(_), .. }) => looked.unique_ids = true,
                Place::File(FilePlace { on: Medium::Uuid(_), .. }) => looked.media = true,
                _ => {}
            }
        }
        looked
    }
}

/// For people: node, label and unique id.
impl fmt::Display for BlockDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.path)?;
        let Some(partition) = &self.partition else { return Ok(()) };
        if !partition.label.is_empty() {
            write!(formatter, " PARTLABEL={}", partition.label.escape_ascii())?;
        }
        partition.uuid.map_or(Ok(()), |uuid| write!(formatter, " PARTUUID={uuid}"))
    }
}

/// A GPT name as the kernel shows it: the low byte of each UTF-16 unit, `!` for what Latin-1 cannot print
/// (`utf16_le_to_7bit` in `block/partitions/efi.c`). Names that become alike are told apart by nothing else here; a wrong
/// one fails at its root hash.
fn kernel_spelling(label: &str) -> Vec<u8> {
    let low = label.encode_utf16().map(|unit| (unit & 0xff) as u8).take_while(|byte| *byte != 0);
    low.map(|byte| if matches!(byte, 0x20..=0x7e | 0xa0..) { byte } else { b'!' }).collect()
}

/// Finds block devices, and remembers the partition tables that it read.
#[derive(Debug, Default)]
pub struct Scanner {
    tables: BTreeMap<String, Vec<Uuid>>,
    media: BTreeMap<String, Vec<(MediumKind, MediumUuid)>>,
    /// Tables that could not be read or were damaged, for the report.
    pub damaged: BTreeMap<String, String>,
}

impl Scanner {
    /// All disks and partitions. What vanishes meanwhile, or cannot be read, is left out.
    pub fn scan(&mut self, system: &mut impl System, looked: Looked) -> Vec<BlockDevice> {
        let mut devices = Vec::new();
        for disk in system.list(DISKS).unwrap_or_default() {
            let folder = format!("{DISKS}/{disk}");
            let Some(whole) = device(system, &folder, &disk).filter(|device| device.bytes > 0) else { continue };
            let path = whole.path.clone();
            devices.push(whole);
            let mut partitions = partitions(system, &folder, &disk);
            if looked.unique_ids {
                self.complete(system, &folder, &path, &mut partitions);
            }
            devices.append(&mut partitions);
        }
        // Without it no file is opened, and no file system looked for.
        if cfg!(feature = "full") && looked.media {
            devices.iter_mut().for_each(|device| self.read_medium(system, device));
        }
        devices
    }

    /// Reads a device's first bytes once.
    fn read_medium(&mut self, system: &mut impl System, device: &mut BlockDevice) {
        if !self.media.contains_key(&device.path)
            && let Ok(head) = system.read_at(&device.path, 0, medium::HEAD)
        {
            let ids = MediumKind::ALL.into_iter().filter_map(|kind| Some((kind, medium::id(kind, &head)?)));
            self.media.insert(device.path.clone(), ids.collect());
        }
        device.media = self.media.get(&device.path).cloned().unwrap_or_default();
    }

    /// Fills in the unique ids that the kernel did not tell, with at most one read of the disk's table per scan.
    fn complete(&mut self, system: &mut impl System, folder: &str, disk: &str, devices: &mut [BlockDevice]) {
        let unknown = |devices: &[BlockDevice]| {
            devices.iter().flat_map(|device| &device.partition).any(|partition| partition.uuid.is_none())
        };
        if !unknown(devices) {
            return;
        }
        fill(devices, self.tables.get(disk).map(Vec::as_slice).unwrap_or_default());
        if !unknown(devices) {
            return;
        }
        match read_table(system, folder, disk) {
            Ok(ids) => {
                fill(devices, &ids);
                self.damaged.remove(disk);
                self.tables.insert(disk.to_owned(), ids);
            }
            Err(why) => {
                self.damaged.insert(disk.to_owned(), why);
            }
        }
    }
}

fn fill(devices: &mut [BlockDevice], ids: &[Uuid]) {
    for partition in devices.iter_mut().flat_map(|device| &mut device.partition) {
        let position = partition.number.checked_sub(1).and_then(|index| ids.get(index as usize));
        if let Some(id) = position.filter(|id| !id.is_nil()) {
            partition.uuid = Some(*id);
        }
    }
}

fn read_table(system: &mut impl System, folder: &str, disk: &str) -> Result<Vec<Uuid>, String> {
    let block = number(system, &format!("{folder}/queue/logical_block_size")).ok_or("logical block size is unknown")?;
    let block = gpt::check_block_size(block).map_err(|error| error.to_string())?;
    let unreadable = |error| format!("partition table cannot be read: {error}");
    let header = system.read_at(disk, block as u64, block).map_err(unreadable)?;
    let header = gpt::Header::parse(&header).map_err(|error| error.to_string())?;
    let entries = system.read_at(disk, header.offset, header.length).map_err(unreadable)?;
    header.unique_ids(&entries).map_err(|error| error.to_string())
}

fn partitions(system: &mut impl System, folder: &str, disk: &str) -> Vec<BlockDevice> {
    let mut devices = Vec::new();
    for name in system.list(folder).unwrap_or_default() {
        // The attribute decides; the name only saves looking for it in `queue`, `power` and their like.
        if name.starts_with(disk) {
            devices.extend(device(system, &format!("{folder}/{name}"), &name).filter(|one| one.partition.is_some()));
        }
    }
    devices
}

fn device(system: &mut impl System, folder: &str, name: &str) -> Option<BlockDevice> {
    let uevent = system.read(&format!("{folder}/uevent"), MAX_SYSFS).ok()?;
    let text = |key| uevent::value(&uevent, b'\n', key).and_then(|value| std::str::from_utf8(value).ok());
    let number_of = |key| text(key)?.parse().ok();
    let partition = (text("DEVTYPE") == Some("partition")).then(|| Partition {
        number: number_of("PARTN").unwrap_or(0),
        label: uevent::value(&uevent, b'\n', "PARTNAME").unwrap_or_default().to_owned(),
        uuid: text("PARTUUID").and_then(|uuid| Uuid::parse_str(uuid).ok()),
    });
    Some(BlockDevice {
        name: name.to_owned(),
        path: format!("/dev/{}", text("DEVNAME")?),
        number: DeviceNumber { major: number_of("MAJOR")?, minor: number_of("MINOR")? },
        bytes: number(system, &format!("{folder}/size"))?.saturating_mul(SECTOR),
        partition,
        media: Vec::new(),
    })
}

fn number(system: &mut impl System, path: &str) -> Option<u64> {
    std::str::from_utf8(&system.read(path, MAX_SYSFS).ok()?).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const UNIQUE_IDS: Looked = Looked { unique_ids: true, media: false };

    fn place(label: &str) -> Place {
        Place::PartLabel(label.parse().unwrap())
    }

    fn scan(fake: &mut Fake) -> Vec<BlockDevice> {
        Scanner::default().scan(fake, UNIQUE_IDS)
    }

    #[test]
    fn partitions_are_found_by_the_names_of_all_drivers() {
        for (disk, partition) in
            [("sda", "sda1"), ("nvme0n1", "nvme0n1p1"), ("mmcblk0", "mmcblk0p1"), ("loop0", "loop0p1")]
        {
            let mut fake = Fake::empty();
            fake.add_disk(disk, 1 << 20, &[(partition, "root", Some(Uuid::from_u128(7)), 4096)]);
            let devices = scan(&mut fake);
            assert_eq!(devices.len(), 2, "{disk}");
            assert!(devices[1].is(&place("root")) && devices[1].is(&Place::PartUuid(Uuid::from_u128(7))));
            assert!(devices[0].is(&Place::Disk(disk.parse().unwrap())));
            assert!(!devices[1].is(&Place::Disk(partition.parse().unwrap())), "a partition is no disk");
            assert_eq!(
                devices[1].to_string(),
                format!("/dev/{partition} PARTLABEL=root PARTUUID={}", Uuid::from_u128(7))
            );
        }
    }

    #[test]
    fn unique_ids_come_from_the_table_where_the_kernel_does_not_tell_them() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096), ("vda2", "b", None, 4096)]);
        fake.add_gpt("vda", &[Uuid::from_u128(1), Uuid::from_u128(2)]);
        let mut scanner = Scanner::default();
        for _ in 0..3 {
            let devices = scanner.scan(&mut fake, UNIQUE_IDS);
            assert!(devices[2].is(&Place::PartUuid(Uuid::from_u128(2))));
        }
        assert_eq!(fake.count("read_at /dev/vda"), 2, "header and entries, once");
    }

    #[test]
    fn disks_are_not_read_where_no_unique_id_is_wanted() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096)]);
        assert_eq!(Scanner::default().scan(&mut fake, Looked::default()).len(), 2);
        assert_eq!(fake.count("read_at"), 0);
    }

    #[test]
    fn a_damaged_table_leaves_the_partitions_without_unique_ids() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096)]);
        fake.add_gpt("vda", &[Uuid::from_u128(1)]);
        fake.device("/dev/vda")[520] ^= 1;
        let mut scanner = Scanner::default();
        assert_eq!(scanner.scan(&mut fake, UNIQUE_IDS)[1].partition.as_ref().unwrap().uuid, None);
        assert_eq!(scanner.damaged["/dev/vda"], "partition table: revision is wrong");
    }

    #[test]
    fn disks_without_a_medium_are_left_out() {
        let mut fake = Fake::empty();
        fake.add_disk("sr0", 0, &[]);
        assert_eq!(scan(&mut fake), []);
    }

    #[test]
    fn a_file_system_is_found_by_its_own_id_with_one_read_of_each_device() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096), ("vda2", "b", None, 4096)]);
        let mut head = vec![0; medium::HEAD];
        for disk in ["vda", "vda1"] {
            fake.put(&format!("/dev/{disk}"), &head);
        }
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        head[1128..1144].copy_from_slice(Uuid::from_u128(5).as_bytes());
        fake.put("/dev/vda2", &head);
        let place = |kind: &str| format!("{kind}:UUID={}:/image", Uuid::from_u128(5)).parse::<Place>().unwrap();
        let looked = Looked::at([&place("ext4")].into_iter());
        let mut scanner = Scanner::default();
        for _ in 0..3 {
            let devices = scanner.scan(&mut fake, looked);
            let there = |place: &Place| devices.iter().filter(|device| device.is(place)).count();
            assert!(devices[2].is(&place("ext4")) && there(&place("ext4")) == 1 && there(&place("erofs")) == 0);
        }
        assert_eq!(fake.count("read_at"), 3);
    }

    #[test]
    fn labels_are_compared_in_the_kernels_spelling() {
        assert_eq!(kernel_spelling("system_a"), b"system_a");
        assert_eq!(kernel_spelling("Größe"), b"Gr\xf6\xdfe");
        assert_eq!(kernel_spelling("a\u{92}b"), b"a!b");
    }
}
