//! Block devices as sysfs shows them. Nothing is probed: no file system, no signature, no partition's contents.

use std::{collections::BTreeMap, fmt};

use iofs_policy::{manifest::Place, verity::DeviceNumber};
use uuid::Uuid;

use crate::{gpt, system::System, uevent};

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
            (Place::PartUuid(uuid), Some(partition)) => partition.uuid == Some(*uuid),
            (Place::PartLabel(label), Some(partition)) => partition.label == kernel_spelling(label.as_str()),
            (Place::Disk(name), None) => self.name == name.as_str(),
            _ => false,
        }
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
    /// Tables that could not be read or were damaged, for the report.
    pub damaged: BTreeMap<String, String>,
}

impl Scanner {
    /// All disks and partitions. What vanishes meanwhile, or cannot be read, is left out.
    ///
    /// With `unique_ids` the partition table is read of disks whose partitions lack their unique id: kernels before 6.9
    /// do not tell it.
    pub fn scan(&mut self, system: &mut impl System, unique_ids: bool) -> Vec<BlockDevice> {
        let mut devices = Vec::new();
        for disk in system.list(DISKS).unwrap_or_default() {
            let folder = format!("{DISKS}/{disk}");
            let Some(whole) = device(system, &folder, &disk).filter(|device| device.bytes > 0) else { continue };
            let path = whole.path.clone();
            devices.push(whole);
            let mut partitions = partitions(system, &folder, &disk);
            if unique_ids {
                self.complete(system, &folder, &path, &mut partitions);
            }
            devices.append(&mut partitions);
        }
        devices
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
    })
}

fn number(system: &mut impl System, path: &str) -> Option<u64> {
    std::str::from_utf8(&system.read(path, MAX_SYSFS).ok()?).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn place(label: &str) -> Place {
        Place::PartLabel(label.parse().unwrap())
    }

    fn scan(fake: &mut Fake) -> Vec<BlockDevice> {
        Scanner::default().scan(fake, true)
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
            let devices = scanner.scan(&mut fake, true);
            assert!(devices[2].is(&Place::PartUuid(Uuid::from_u128(2))));
        }
        assert_eq!(fake.count("read_at /dev/vda"), 2, "header and entries, once");
    }

    #[test]
    fn disks_are_not_read_where_no_unique_id_is_wanted() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096)]);
        assert_eq!(Scanner::default().scan(&mut fake, false).len(), 2);
        assert_eq!(fake.count("read_at"), 0);
    }

    #[test]
    fn a_damaged_table_leaves_the_partitions_without_unique_ids() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096)]);
        fake.add_gpt("vda", &[Uuid::from_u128(1)]);
        fake.device("/dev/vda")[520] ^= 1;
        let mut scanner = Scanner::default();
        assert_eq!(scanner.scan(&mut fake, true)[1].partition.as_ref().unwrap().uuid, None);
        assert_eq!(scanner.damaged["/dev/vda"], "partition table: revision is wrong");
    }

    #[test]
    fn disks_without_a_medium_are_left_out() {
        let mut fake = Fake::empty();
        fake.add_disk("sr0", 0, &[]);
        assert_eq!(scan(&mut fake), []);
    }

    #[test]
    fn labels_are_compared_in_the_kernels_spelling() {
        assert_eq!(kernel_spelling("system_a"), b"system_a");
        assert_eq!(kernel_spelling("Größe"), b"Gr\xf6\xdfe");
        assert_eq!(kernel_spelling("a\u{92}b"), b"a!b");
    }
}
