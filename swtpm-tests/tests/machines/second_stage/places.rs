//! Each place boots on 6.1 and 6.12, leaves nothing behind, and is refused in its tampered form.

use std::fs;

use anyhow::{Context, Result};
use iofs_policy::manifest::MediumKind;
use iofs_sign::sealed;
use swtpm_tests::{
    ScratchDisk,
    medium::{self, Medium, Partition, find_block, partitioned},
};

use super::support::{boots, sealed, stops_at_corruption, untouched};

const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// A block that the kernel reads first: erofs' superblock is in it.
const FIRST: usize = 0;
const PARTUUID: &str = "0a0b0c0d-0102-4304-8506-0708090a0b0c";

/// In a file: boots, and the file system can be written to once the second stage is over; then with a changed bit.
fn in_a_file_on(kind: MediumKind) -> Result<()> {
    for suite in SUITES {
        let chain = sealed(suite, Some(&medium::place(kind)))?;
        let medium = Medium::of(&chain)?;
        let disk = medium.disk(kind)?;
        let name = format!("second_stage_in_a_file_{}_{suite}", kind.name());
        let machine = chain.without_disk(&name).append(&format!("iofs.medium={}", kind.name())).disk(untouched(&disk));
        // erofs is never written to.
        let writable: &[&str] = if kind == MediumKind::Erofs { &[] } else { &["MEDIUM WRITABLE"] };
        boots(&machine, writable)?;
        disk.flip_bit(find_block(&disk, &medium.image(), FIRST)? + 1024, 3)?;
        stops_at_corruption(&machine)?;
    }
    Ok(())
}

#[test]
fn a_file_on_ext4_boots_and_its_tampered_form_does_not() -> Result<()> {
    in_a_file_on(MediumKind::Ext4)
}

#[test]
fn a_file_on_vfat_boots_and_its_tampered_form_does_not() -> Result<()> {
    in_a_file_on(MediumKind::Vfat)
}

#[test]
fn a_file_on_erofs_boots_and_its_tampered_form_does_not() -> Result<()> {
    in_a_file_on(MediumKind::Erofs)
}

#[test]
fn partitions_boot_and_their_tampered_form_does_not() -> Result<()> {
    for suite in SUITES {
        let chain = sealed(suite, None)?;
        let (disk, report) = chain.disk()?;
        let name = format!("second_stage_in_partitions_{suite}");
        boots(&chain.machine(&name, &disk), &[])?;
        disk.flip_bit(report.partitions[0].offset + 1024, 3)?;
        stops_at_corruption(&chain.machine(&name, &disk))?;
    }
    Ok(())
}

#[test]
fn data_and_tree_in_one_partition_boot_and_their_tampered_form_does_not() -> Result<()> {
    for (suite, place) in [("bookworm", format!("PARTUUID={PARTUUID}")), ("trixie", "PARTLABEL=system_a".to_owned())] {
        let chain = sealed(suite, Some(&place))?;
        let (disk, report) = chain.disk()?;
        let partition = report.partitions.first().context("a partition")?;
        anyhow::ensure!(report.partitions.len() == 1, "{report:?}");
        let name = format!("second_stage_in_one_partition_{suite}");
        boots(&chain.machine(&name, &disk), &[])?;
        // The tree's root, behind the data and the superblock.
        disk.flip_bit(partition.offset + chain.manifest()?.verity.tree_offset(), 3)?;
        stops_at_corruption(&chain.machine(&name, &disk))?;
    }
    Ok(())
}

#[test]
fn an_image_in_memory_boots_without_a_disk_and_its_tampered_form_does_not() -> Result<()> {
    for suite in SUITES {
        let chain = sealed(suite, Some("memory"))?;
        let name = format!("second_stage_in_memory_{suite}");
        boots(&chain.without_disk(&name), &[])?;
        let directory = chain.directory();
        let initramfs = ScratchDisk::copy_of(directory.file(sealed::INITRAMFS))?;
        let image = fs::read(directory.file(sealed::IMAGE))?;
        let bytes = fs::read(initramfs.path())?;
        let at = bytes.windows(4096).position(|window| window == &image[..4096]).context("the image travels along")?;
        initramfs.flip_bit(at as u64 + 1024, 3)?;
        stops_at_corruption(&chain.without_disk(&name).initrd(initramfs.path()))?;
    }
    Ok(())
}

#[test]
fn a_file_system_is_found_by_its_partition_among_others() -> Result<()> {
    for (suite, on) in [("bookworm", format!("PARTUUID={PARTUUID}")), ("trixie", "PARTLABEL=boot".to_owned())] {
        let chain = sealed(suite, Some(&format!("ext4:{on}:/{}", medium::PATH)))?;
        let medium = Medium::of(&chain)?.disk(MediumKind::Ext4)?;
        // The same file system beside it, of another name and id: it is not looked into.
        let content = medium.path();
        let other = Partition { label: "other", uuid: medium::UUID, content };
        let disk = partitioned(&[other, Partition { label: "boot", uuid: PARTUUID, content }])?;
        boots(&chain.machine(&format!("second_stage_by_partition_{suite}"), &disk), &[])?;
    }
    Ok(())
}
