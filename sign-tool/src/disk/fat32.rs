//! A new FAT32 file system with one file, two folders deep: written by hand, since it is so little.
//!
//! Microsoft, FAT32 File System Specification 1.03. Everything lies in one row of clusters, in the order of [`Cluster`].
//! There is no clock: all times are the first that FAT knows, so that the same input gives the same bytes.

use super::SECTOR;

/// The boot sector, the free space hints, and room for copies of both. Sectors.
const RESERVED: u64 = 32;
/// Where the copy of the boot sector and its successor lies, as everybody expects it. Sectors.
const COPY: u64 = 6;
/// Tables, the second of which is the copy of the first.
const TABLES: u64 = 2;
/// Bytes of an entry of a table.
const LINK: u64 = 4;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
/// A fixed disk.
const MEDIA: u8 = 0xf8;
/// 1 January 1980.
const FIRST_DATE: u16 = 1 << 5 | 1;
const LABEL: &[u8; 11] = b"ESP        ";
/// From here on clusters are larger, so that tables stay small. Bytes.
const LARGE: u64 = 260 << 20;

/// The clusters in use, by their numbers.
enum Cluster {
    Root = 2,
    Efi = 3,
    Boot = 4,
    File = 5,
}

/// How many of them are folders, of one cluster each.
const FOLDERS: usize = 3;

/// Attributes of a directory entry.
enum Attributes {
    Label = 0x08,
    Directory = 0x10,
    Archive = 0x20,
}

/// Where everything lies in a partition of some size.
pub(super) struct Layout {
    sectors: u32,
    sectors_per_cluster: u64,
    sectors_per_table: u64,
    volume_id: u32,
}

impl Layout {
    /// For a partition of at least 34 MiB and at most 4 GiB: with fewer clusters it would not be FAT32.
    pub(super) fn new(size: u64, volume_id: u32) -> Self {
        let sectors = size / SECTOR;
        let sectors_per_cluster = if size > LARGE { 8 } else { 1 };
        // Section "FAT Data Structure", whose formula forgets the two entries of the table's own.
        let own = Cluster::Root as u64 * sectors_per_cluster;
        let sectors_per_table = (sectors - RESERVED + own).div_ceil(sectors_per_cluster * (SECTOR / LINK) + TABLES);
        let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
        Self { sectors, sectors_per_cluster, sectors_per_table, volume_id }
    }

    /// Where the file's contents begin. Bytes.
    pub(super) fn file_offset(&self) -> u64 {
        self.cluster_offset(Cluster::File as u64)
    }

    /// Everything but the file's contents, each piece with its offset in bytes. What lies between reads as zeros.
    pub(super) fn structures(&self, name: &[u8; 11], size: u64) -> Vec<(u64, Vec<u8>)> {
        let table = self.table(size);
        let start = [self.boot_sector(), self.hints(size)].concat();
        let (root, efi, boot) = (Cluster::Root as u32, Cluster::Efi as u32, Cluster::Boot as u32);
        let folder = |name, cluster| entry(name, Attributes::Directory, cluster, 0);
        let file = entry(name, Attributes::Archive, Cluster::File as u32, size as u32);
        // The root is cluster 0 to the folders in it.
        let folders = [
            (root, [entry(LABEL, Attributes::Label, 0, 0), folder(b"EFI        ", efi)].concat()),
            (efi, [folder(b".          ", efi), folder(b"..         ", 0), folder(b"BOOT       ", boot)].concat()),
            (boot, [folder(b".          ", boot), folder(b"..         ", efi), file].concat()),
        ];
        let mut pieces = vec![(0, start.clone()), (COPY * SECTOR, start)];
        let tables = (0..TABLES).map(|number| ((RESERVED + number * self.sectors_per_table) * SECTOR, table.clone()));
        pieces.extend(tables);
        pieces.extend(folders.map(|(cluster, bytes)| (self.cluster_offset(u64::from(cluster)), bytes)));
        pieces
    }

    fn cluster_size(&self) -> u64 {
        self.sectors_per_cluster * SECTOR
    }

    fn data_start(&self) -> u64 {
        RESERVED + TABLES * self.sectors_per_table
    }

    fn cluster_offset(&self, cluster: u64) -> u64 {
        (self.data_start() + (cluster - Cluster::Root as u64) * self.sectors_per_cluster) * SECTOR
    }

    /// How many clusters of data there are.
    fn clusters(&self) -> u64 {
        (u64::from(self.sectors) - self.data_start()) / self.sectors_per_cluster
    }

    /// Section "Boot Sector and BPB".
    fn boot_sector(&self) -> Vec<u8> {
        let mut sector = vec![0; SECTOR as usize];
        let mut set = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        // Over this header, to where there is no code: firmware of UEFI runs none.
        set(0, &[0xeb, 0x58, 0x90]);
        set(3, b"MSWIN4.1");
        set(11, &(SECTOR as u16).to_le_bytes());
        set(13, &[self.sectors_per_cluster as u8]);
        set(14, &(RESERVED as u16).to_le_bytes());
        set(16, &[TABLES as u8]);
        set(21, &[MEDIA]);
        // Sectors per track and heads, which nobody has used for long but tools want to see.
        set(24, &[63, 0, 255, 0]);
        set(32, &self.sectors.to_le_bytes());
        set(36, &(self.sectors_per_table as u32).to_le_bytes());
        set(44, &(Cluster::Root as u32).to_le_bytes());
        set(48, &1_u16.to_le_bytes());
        set(50, &(COPY as u16).to_le_bytes());
        // A fixed disk, and that the three fields behind it are there.
        set(64, &[0x80, 0, 0x29]);
        set(67, &self.volume_id.to_le_bytes());
        set(71, LABEL);
        set(82, b"FAT32   ");
        set(510, &[0x55, 0xaa]);
        sector
    }

    /// Section "FSInfo Structure": free clusters, and where to look for the next.
    fn hints(&self, size: u64) -> Vec<u8> {
        let used = FOLDERS as u64 + size.div_ceil(self.cluster_size());
        let mut sector = vec![0; SECTOR as usize];
        let mut set = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, b"RRaA");
        set(484, b"rrAa");
        set(488, &((self.clusters() - used) as u32).to_le_bytes());
        set(492, &((used + Cluster::Root as u64) as u32).to_le_bytes());
        set(508, &[0, 0, 0x55, 0xaa]);
        sector
    }

    /// The part of a table that is not zero: two entries of its own, one for each folder, and the file's chain.
    fn table(&self, size: u64) -> Vec<u8> {
        let first = Cluster::File as u32;
        let end = first + size.div_ceil(self.cluster_size()) as u32;
        let own = [0x0fff_ff00 | u32::from(MEDIA), END_OF_CHAIN];
        let folders = [END_OF_CHAIN; FOLDERS];
        let file = (first + 1..end).chain([END_OF_CHAIN]);
        own.into_iter().chain(folders).chain(file).flat_map(u32::to_le_bytes).collect()
    }
}

/// Section "FAT Directory Structure". No entry needs a long name.
fn entry(name: &[u8; 11], attributes: Attributes, cluster: u32, size: u32) -> Vec<u8> {
    let mut entry = name.to_vec();
    entry.resize(32, 0);
    let mut set = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
    set(11, &[attributes as u8]);
    for at in [16, 18, 24] {
        set(at, &FIRST_DATE.to_le_bytes());
    }
    set(20, &((cluster >> 16) as u16).to_le_bytes());
    set(26, &(cluster as u16).to_le_bytes());
    set(28, &size.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fewer clusters are FAT16 to whoever reads it (section "FAT Type Determination").
    const LEAST_CLUSTERS: u64 = 65_525;

    #[test]
    fn every_size_is_fat32_and_its_tables_hold_every_cluster() {
        for mib in 34..=4096 {
            let layout = Layout::new(mib << 20, 0);
            let (clusters, sectors) = (layout.clusters(), u64::from(layout.sectors));
            assert!(clusters >= LEAST_CLUSTERS, "{mib} MiB: {clusters} clusters");
            assert!(layout.sectors_per_table * SECTOR / LINK >= clusters + Cluster::Root as u64, "{mib} MiB");
            assert!(layout.data_start() + clusters * layout.sectors_per_cluster <= sectors, "{mib} MiB");
        }
    }

    #[test]
    fn the_chain_of_a_file_has_its_length_and_an_end() {
        let layout = Layout::new(34 << 20, 0);
        for (size, clusters) in [(1, 1), (512, 1), (513, 2), (5000, 10)] {
            let table = layout.table(size);
            let links: Vec<u32> = table.as_chunks().0.iter().map(|link| u32::from_le_bytes(*link)).collect();
            let mut at = Cluster::File as u32;
            let mut length = 1;
            while links[at as usize] != END_OF_CHAIN {
                (at, length) = (links[at as usize], length + 1);
            }
            assert_eq!((length, links.len()), (clusters, Cluster::File as usize + clusters), "{size} bytes");
        }
    }
}
