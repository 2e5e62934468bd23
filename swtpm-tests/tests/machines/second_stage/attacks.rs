//! What somebody can do who writes the disk that the image is a file on.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use iofs_policy::manifest::MediumKind;
use swtpm_tests::{
    Disk, Ending, Line,
    medium::{self, Medium, Partition, find_block, partitioned},
    tools,
};

use super::support::{PATIENCE, in_a_file, refused, sealed, stops_at_corruption, with_medium};

const NO_FILE: [&str; 2] = ["the image /iofs/image cannot be opened", "a regular file, and no link on the way to it"];
/// Where ext4's superblock has the binary logarithm of its block size, less 10.
const LOG_BLOCK_SIZE: u64 = 1024 + 0x18;

#[test]
fn hostile_filesystem_a_crafted_boot_file_system_is_refused() -> Result<()> {
    let chain = in_a_file()?;
    // The kernel's parser is what reads it: it has to say no to a superblock that contradicts itself, and nothing runs.
    let (machine, disk) = with_medium(&chain, "hostile_filesystem_superblock", &Medium::of(&chain)?)?;
    disk.write(LOG_BLOCK_SIZE, &[0xff; 4])?;
    let fact = "the file system of the image on /dev/vda cannot be mounted";
    refused(&machine, "found", [fact, "a sound ext4", ""])
}

#[test]
fn hostile_filesystem_a_link_in_the_place_of_the_image_is_not_followed() -> Result<()> {
    let chain = in_a_file()?;
    let medium = Medium::of(&chain)?;
    fs::rename(medium.image(), medium.image().with_file_name("other"))?;
    symlink("other", medium.image())?;
    let (machine, _disk) = with_medium(&chain, "hostile_filesystem_link", &medium)?;
    refused(&machine, "found", [NO_FILE[0], NO_FILE[1], "Too many symbolic links"])
}

#[test]
fn hostile_filesystem_a_pipe_in_the_place_of_the_image_does_not_hold_the_boot_up() -> Result<()> {
    let chain = in_a_file()?;
    let medium = Medium::of(&chain)?;
    fs::remove_file(medium.image())?;
    let mkfifo = tools::require("mkfifo", "apt-get install coreutils")?;
    ensure!(std::process::Command::new(mkfifo).arg(medium.image()).status()?.success());
    let (machine, _disk) = with_medium(&chain, "hostile_filesystem_pipe", &medium)?;
    refused(&machine, "found", [NO_FILE[0], NO_FILE[1], "it is no regular file"])
}

#[test]
fn hostile_filesystem_a_truncated_image_is_refused_before_it_is_mapped() -> Result<()> {
    let chain = in_a_file()?;
    let medium = Medium::of(&chain)?;
    fs::File::options().write(true).open(medium.image())?.set_len(1 << 20)?;
    let (machine, _disk) = with_medium(&chain, "hostile_filesystem_truncated", &medium)?;
    refused(&machine, "found", ["the data device /dev/loop0 is too small", "at least ", "1048576 bytes"])
}

#[test]
fn hostile_filesystem_another_image_in_its_place_does_not_run() -> Result<()> {
    let chain = in_a_file()?;
    let medium = Medium::of(&chain)?;
    // The superblock in the tree is the sealed one, so that only the blocks tell.
    let mut image = fs::read(medium.image())?;
    image[..1 << 20].fill(0x5a);
    fs::write(medium.image(), image)?;
    let (machine, _disk) = with_medium(&chain, "hostile_filesystem_another_image", &medium)?;
    stops_at_corruption(&machine)
}

#[test]
fn hostile_filesystem_a_second_one_with_the_sealed_id_is_a_doubt_that_stops_the_boot() -> Result<()> {
    let chain = in_a_file()?;
    let content = Medium::of(&chain)?.disk(MediumKind::Ext4)?;
    let partition = |label, uuid| Partition { label, uuid, content: content.path() };
    let first = partition("a", "0a0b0c0d-0102-4304-8506-0708090a0b0c");
    let disk = partitioned(&[first, partition("b", "0a0b0c0d-0102-4304-8506-0708090a0b0d")])?;
    let machine = chain.machine("hostile_filesystem_twins", &disk);
    let expected = format!("one device with {}", medium::place(MediumKind::Ext4));
    refused(&machine, "found", ["the sealed device is ambiguous", &expected, "/dev/vda1 and /dev/vda2"])
}

#[test]
fn hostile_filesystem_a_partition_name_that_the_kernel_spells_alike_is_a_doubt() -> Result<()> {
    let chain = sealed("trixie", Some(&format!("ext4:PARTLABEL=boot:/{}", medium::PATH)))?;
    let content = Medium::of(&chain)?.disk(MediumKind::Ext4)?;
    let partition = |label, uuid| Partition { label, uuid, content: content.path() };
    // The kernel shows the low byte of each unit: that of U+0162 is the letter b.
    let alike = partition("\u{162}oot", "0a0b0c0d-0102-4304-8506-0708090a0b0d");
    let disk = partitioned(&[partition("boot", "0a0b0c0d-0102-4304-8506-0708090a0b0c"), alike])?;
    let machine = chain.machine("hostile_filesystem_partition_name", &disk);
    refused(&machine, "found", ["the sealed device is ambiguous", "one device with ext4:PARTLABEL=boot", "/dev/vda1"])
}

#[test]
fn hostile_filesystem_a_crafted_partition_table_is_neither_believed_nor_fatal() -> Result<()> {
    let place = format!("ext4:PARTUUID=0a0b0c0d-0102-4304-8506-0708090a0b0c:/{}", medium::PATH);
    // 6.1 does not tell unique ids: the table is read.
    let chain = sealed("bookworm", Some(&place))?;
    let content = Medium::of(&chain)?.disk(MediumKind::Ext4)?;
    let uuid = "0a0b0c0d-0102-4304-8506-0708090a0b0c";
    let disk = partitioned(&[Partition { label: "boot", uuid, content: content.path() }])?;
    // An entry that no checksum covers any more.
    disk.write(2 * 512 + 16, &[0xff; 16])?;
    let machine = chain.machine("hostile_filesystem_partition_table", &disk).append("rd.timeout=3");
    refused(&machine, "found", ["a sealed device did not appear within 3 s", &place, "/dev/vda"])
}

#[test]
fn time_of_check_the_image_that_changes_after_it_was_mounted_is_noticed_at_each_read() -> Result<()> {
    let chain = in_a_file()?;
    let medium = Medium::of(&chain)?;
    let disk = medium.disk(MediumKind::Ext4)?;
    let machine = chain.without_disk("time_of_check_a_changed_image").append("iofs.wait");
    let machine = machine.disk(Disk::raw(disk.path()));
    // Untouched, the same machine reads all of it.
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::exactly("WAITING"), PATIENCE)?;
    vm.type_line("")?;
    vm.wait_for_line(&Line::exactly("BALLAST READ"), PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);

    // Verified, mounted and running: now the disk gives other blocks for those that nobody has read yet.
    let blocks = usize::try_from(chain.manifest()?.verity.parameters.data_blocks)?;
    let places = [blocks / 2, blocks / 2 + 40].map(|block| find_block(&disk, &medium.image(), block));
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::exactly("WAITING"), PATIENCE)?;
    for place in places {
        disk.write(place?, &[0x5a; 4096])?;
    }
    vm.type_line("")?;
    let ended = vm.wait_for_end(PATIENCE)?;
    ensure!(matches!(&ended, Ending::Panicked(why) if why.contains("dm-verity device corrupted")), "{ended:?}");
    ensure!(vm.console().find(&Line::exactly("BALLAST READ")).is_none());
    Ok(())
}
