//! Attacks on a sealed chain, each performed on a real kernel under QEMU: each is refused with a message of its own,
//! before anything of the image ran.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, ensure};
use iofs_policy::{
    dsse::{Envelope, PayloadType},
    failure::FailureAction,
    manifest::{Architecture, Role},
    verity::{CorruptionAction, Geometry},
};
use iofs_sign::{disk::DiskPartition, seal::SealRequest, sealed};
use swtpm_tests::{
    Disk, Ending, Line, Machine, ScratchDisk, Vm,
    chain::{Chain, ROOT_REACHED, example_key},
};

const PATIENCE: Duration = Duration::from_secs(90);

/// What is said of a signature by a trusted key that does not verify.
const BAD_SIGNATURE: [&str; 3] =
    ["the manifest's signature does not verify", "the bytes that the trusted key signed", "signature by trusted key"];

/// The chain that most tests attack: sealed once, never changed.
fn chain() -> Result<&'static Chain> {
    static CHAIN: OnceLock<Result<Chain, String>> = OnceLock::new();
    let chain = CHAIN.get_or_init(|| {
        Chain::tiny("trixie", "cat /ballast >/dev/null && echo 'BALLAST READ'", |request| {
            request.config.boot.device_timeout = 20;
        })
        .map_err(|error| format!("{error:#}"))
    });
    chain.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Boots, and checks that the boot is refused with this block of text before the root's init ran, and how it ended.
fn refused(machine: &Machine, stage: &str, block: [&str; 3], ending: &Ending) -> Result<()> {
    let mut vm = machine.start()?;
    vm.says_why(stage, block, PATIENCE)?;
    let ended = vm.wait_for_end(PATIENCE)?;
    ensure!(ended == *ending, "expected the machine to end as {ending:?}, found {ended:?}");
    never_reached_the_root(&vm)
}

fn never_reached_the_root(vm: &Vm) -> Result<()> {
    ensure!(vm.console().find(&Line::containing(ROOT_REACHED)).is_none(), "the refused image's init ran");
    Ok(())
}

fn with_manifest(name: &str, envelope: Option<&[u8]>) -> Result<(Machine, ScratchDisk)> {
    let (disk, _) = chain()?.disk()?;
    let machine = chain()?.machine(name, &disk).initrd(chain()?.initramfs_with_manifest(envelope)?);
    Ok((machine, disk))
}

fn envelope() -> Result<Vec<u8>> {
    Ok(chain()?.directory().read(sealed::MANIFEST, 1 << 20)?)
}

/// Flips a bit inside the base64 of a field of the envelope, at a fraction of its length.
fn flipped_in(field: &str, at: f64) -> Result<Vec<u8>> {
    let mut bytes = envelope()?;
    let text = String::from_utf8(bytes.clone())?;
    let start = text.find(&format!("\"{field}\":\"")).context("no such field")? + field.len() + 4;
    let length = text[start..].find('"').context("no end of the field")?;
    let position = start + (length as f64 * at) as usize;
    // Another letter of the alphabet, so that what changes is the value and not the encoding.
    bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
    Ok(bytes)
}

#[test]
fn an_untouched_chain_boots() -> Result<()> {
    let (disk, _) = chain()?.disk()?;
    let mut vm = chain()?.machine("an_untouched_chain_boots", &disk).start()?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), PATIENCE)?;
    vm.wait_for_line(&Line::exactly("BALLAST READ"), PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_changed_bit_of_the_payload_is_refused() -> Result<()> {
    let (machine, _disk) =
        with_manifest("a_changed_bit_of_the_payload_is_refused", Some(&flipped_in("payload", 0.4)?))?;
    refused(&machine, "verified", BAD_SIGNATURE, &Ending::PoweredOff)
}

#[test]
fn a_changed_bit_of_the_signature_is_refused() -> Result<()> {
    let (machine, _disk) = with_manifest("a_changed_bit_of_the_signature_is_refused", Some(&flipped_in("sig", 0.3)?))?;
    refused(&machine, "verified", BAD_SIGNATURE, &Ending::PoweredOff)
}

#[test]
fn a_manifest_by_an_unknown_key_is_refused() -> Result<()> {
    let other = chain()?.signed_manifest(&[example_key(2)?], |_| ())?;
    let (machine, _disk) = with_manifest("a_manifest_by_an_unknown_key_is_refused", Some(&other))?;
    let block = [
        "the manifest is not signed by enough trusted keys",
        "1 of the keys in the trust policy",
        "signatures: expected 1",
    ];
    refused(&machine, "verified", block, &Ending::PoweredOff)
}

#[test]
fn an_initramfs_without_an_envelope_is_refused() -> Result<()> {
    let (machine, _disk) = with_manifest("an_initramfs_without_an_envelope_is_refused", None)?;
    let block = ["/etc/iofs/manifest.dsse.json cannot be read", "a file of at most", "No such file"];
    refused(&machine, "started", block, &Ending::PoweredOff)
}

#[test]
fn an_envelope_that_is_no_envelope_is_refused() -> Result<()> {
    let (machine, _disk) = with_manifest("an_envelope_that_is_no_envelope_is_refused", Some(b"{\"payload\": 1}"))?;
    let block = ["the manifest's envelope is malformed", "a DSSE envelope", "envelope: not a DSSE envelope"];
    refused(&machine, "verified", block, &Ending::PoweredOff)
}

#[test]
fn signature_confusion_a_manifest_of_another_role_is_refused() -> Result<()> {
    let other = chain()?.signed_manifest(&[example_key(1)?], |it| it.image.role = Role::InitOverlay)?;
    let (machine, _disk) = with_manifest("signature_confusion_role", Some(&other))?;
    refused(&machine, "verified", ["the manifest is for another role", "root", "initoverlay"], &Ending::PoweredOff)
}

#[test]
fn signature_confusion_a_manifest_of_another_architecture_is_refused() -> Result<()> {
    let other = chain()?.signed_manifest(&[example_key(1)?], |it| it.image.architecture = Architecture::Arm64)?;
    let (machine, _disk) = with_manifest("signature_confusion_architecture", Some(&other))?;
    refused(&machine, "verified", ["the manifest is for another architecture", "x86-64", "arm64"], &Ending::PoweredOff)
}

#[test]
fn signature_confusion_a_manifest_of_another_image_is_refused() -> Result<()> {
    let other = chain()?.signed_manifest(&[example_key(1)?], |it| it.image.id = "other".parse().expect("valid"))?;
    let (machine, _disk) = with_manifest("signature_confusion_image", Some(&other))?;
    refused(&machine, "verified", ["the manifest is for another image id", "root", "other"], &Ending::PoweredOff)
}

#[test]
fn signature_confusion_a_signed_release_statement_is_no_manifest() -> Result<()> {
    let release = chain()?.directory().envelope(sealed::RELEASE, PayloadType::Release)?.to_json();
    let (machine, _disk) = with_manifest("signature_confusion_release", Some(&release))?;
    let block = ["the manifest's envelope is malformed", "a DSSE envelope", "envelope: payloadType: expected"];
    refused(&machine, "verified", block, &Ending::PoweredOff)?;

    let relabelled = String::from_utf8(release)?.replace(".release.", ".manifest.");
    let (machine, _disk) = with_manifest("signature_confusion_relabelled", Some(relabelled.as_bytes()))?;
    refused(&machine, "verified", BAD_SIGNATURE, &Ending::PoweredOff)
}

#[test]
fn signature_confusion_a_second_signature_that_is_wrong_spoils_the_first() -> Result<()> {
    let both = Chain::tiny("trixie", "", |request: &mut SealRequest| {
        request.trusted = vec![example_key(2).expect("the key is there").public()];
    })?;
    let mut envelope = Envelope::unsigned(PayloadType::Manifest, both.manifest()?.to_json());
    example_key(1)?.sign(&mut envelope)?;
    let signature = envelope.signatures()[0].signature.to_bytes();
    envelope.add(example_key(2)?.public().id(), &signature)?;
    let (disk, _) = both.disk()?;
    let machine = both
        .machine("signature_confusion_second", &disk)
        .initrd(both.initramfs_with_manifest(Some(&envelope.to_json()))?);
    refused(&machine, "verified", BAD_SIGNATURE, &Ending::PoweredOff)
}

#[test]
fn rollback_an_older_image_than_the_floor_is_refused() -> Result<()> {
    let newer = Chain::tiny("trixie", "", |request| request.config.image.rollback_index.0 = 7)?;
    let older = newer.signed_manifest(&[example_key(1)?], |it| it.image.rollback_index.0 = 6)?;
    let (disk, _) = newer.disk()?;
    let initrd = newer.initramfs_with_manifest(Some(&older))?;
    let block = ["the image is older than this machine accepts", "rollback index 7 or higher", "rollback index 6"];
    refused(&newer.machine("an_older_image", &disk).initrd(initrd), "verified", block, &Ending::PoweredOff)
}

#[test]
fn cmdline_injection_every_parameter_that_weakens_the_chain_is_refused() -> Result<()> {
    let (disk, _) = chain()?.disk()?;
    for parameter in
        ["systemd.verity=0", "systemd.verity_root_options=ignore-corruption", "rd.break", "rd.shell", "init=/bin/sh"]
    {
        let machine = chain()?.machine("cmdline_injection", &disk).append(parameter);
        // The kernel keeps `init=` for itself, and so do we: it is on the line all the same.
        let block = ["the kernel command line contradicts the sealed configuration", "", parameter];
        refused(&machine, "verified", block, &Ending::PoweredOff).with_context(|| parameter.to_owned())?;
    }
    Ok(())
}

/// Where the data and the tree lie on a disk.
fn partitions(report: &iofs_sign::disk::DiskReport) -> Result<(&DiskPartition, &DiskPartition)> {
    Ok((report.partitions.first().context("no data")?, report.partitions.get(1).context("no tree")?))
}

#[test]
fn corruption_mode_a_changed_data_block_panics_the_kernel_as_sealed() -> Result<()> {
    let (disk, report) = chain()?.disk()?;
    let (data, _) = partitions(&report)?;
    // The erofs superblock: the first block that is read.
    disk.flip_bit(data.offset + 1030, 3)?;
    let mut vm = chain()?.machine("a_changed_data_block_panics", &disk).start()?;
    vm.wait_for_line(&Line::containing("data block 0 is corrupted"), PATIENCE)?;
    let ended = vm.wait_for_end(PATIENCE)?;
    ensure!(matches!(&ended, Ending::Panicked(why) if why.contains("dm-verity device corrupted")), "{ended:?}");
    never_reached_the_root(&vm)
}

#[test]
fn corruption_mode_a_changed_data_block_restarts_the_machine_where_that_is_sealed() -> Result<()> {
    let chain = Chain::tiny("trixie", "", |request| request.config.boot.on_corruption = CorruptionAction::Restart)?;
    let (disk, report) = chain.disk()?;
    disk.flip_bit(partitions(&report)?.0.offset + 1030, 3)?;
    let mut vm = chain.machine("a_changed_data_block_restarts", &disk).start()?;
    vm.wait_for_line(&Line::containing("data block 0 is corrupted"), PATIENCE)?;
    let ended = vm.wait_for_end(PATIENCE)?;
    ensure!(ended == Ending::Reset, "{ended:?}");
    never_reached_the_root(&vm)
}

#[test]
fn corruption_mode_a_changed_data_block_fails_the_read_where_that_is_sealed() -> Result<()> {
    let chain = Chain::tiny("trixie", "", |request| request.config.boot.on_corruption = CorruptionAction::Eio)?;
    let (disk, report) = chain.disk()?;
    disk.flip_bit(partitions(&report)?.0.offset + 1030, 3)?;
    let machine = chain.machine("a_changed_data_block_fails_the_read", &disk);
    let block =
        ["the image on the disk is corrupted", "blocks that verify", "verity status: expected V (verified), found C"];
    refused(&machine, "mounted", block, &Ending::PoweredOff)
}

#[test]
fn corruption_mode_a_changed_block_of_the_lowest_tree_level_is_refused() -> Result<()> {
    let (disk, report) = chain()?.disk()?;
    let (_, tree) = partitions(&report)?;
    let manifest = chain()?.manifest()?;
    let lowest = Geometry::new(&manifest.verity.parameters)?.levels().first().context("no levels")?.first_block;
    // Its first digest guards data block 0.
    disk.flip_bit(tree.offset + manifest.verity.tree_offset() + lowest * 4096 + 5, 0)?;
    corrupted_metadata("a_changed_block_of_the_lowest_tree_level", &disk)
}

#[test]
fn corruption_mode_a_changed_block_of_the_top_tree_level_is_refused() -> Result<()> {
    let (disk, report) = chain()?.disk()?;
    let (_, tree) = partitions(&report)?;
    let manifest = chain()?.manifest()?;
    let levels = Geometry::new(&manifest.verity.parameters)?.levels().len();
    ensure!(levels >= 2, "the tiny root should have a tree of two levels, found {levels}");
    disk.flip_bit(tree.offset + manifest.verity.tree_offset() + 5, 0)?;
    corrupted_metadata("a_changed_block_of_the_top_tree_level", &disk)
}

fn corrupted_metadata(name: &str, disk: &ScratchDisk) -> Result<()> {
    let mut vm = chain()?.machine(name, disk).start()?;
    vm.wait_for_line(&Line::containing("is corrupted"), PATIENCE)?;
    let ended = vm.wait_for_end(PATIENCE)?;
    ensure!(matches!(&ended, Ending::Panicked(why) if why.contains("dm-verity device corrupted")), "{ended:?}");
    never_reached_the_root(&vm)
}

#[test]
fn superblock_swap_a_superblock_that_differs_is_refused() -> Result<()> {
    let (disk, report) = chain()?.disk()?;
    let (_, tree) = partitions(&report)?;
    // Twice the data block size: what would make the kernel read other blocks, if anybody believed it.
    disk.write(tree.offset + 64, &8192_u32.to_le_bytes())?;
    let block = ["the verity superblock on /dev/vda2 differs from the sealed one: data block size", "4096", "8192"];
    refused(&chain()?.machine("superblock_swap", &disk), "mapped", block, &Ending::PoweredOff)
}

#[test]
fn a_truncated_image_is_refused() -> Result<()> {
    let (disk, report) = chain()?.disk()?;
    let (data, tree) = partitions(&report)?;
    // The data partition one sector short, in a table that is otherwise in order.
    shrink_partition(&disk, data)?;
    ensure!(tree.offset > data.offset);
    let block = [
        "the data device /dev/vda1 is too small",
        &format!("at least {} bytes", data.size),
        &format!("{} bytes", data.size - 512),
    ];
    refused(&chain()?.machine("a_truncated_image", &disk), "found", block, &Ending::PoweredOff)
}

/// Rewrites the disk's table with a partition that is one sector shorter.
fn shrink_partition(disk: &ScratchDisk, partition: &DiskPartition) -> Result<()> {
    let sfdisk = swtpm_tests::tools::require("sfdisk", "apt-get install fdisk")?;
    let dump = std::process::Command::new(&sfdisk).arg("--dump").arg(disk.path()).output()?;
    let before = format!("size={:>12}", partition.size / 512);
    let after = format!("size={:>12}", partition.size / 512 - 1);
    let table = String::from_utf8(dump.stdout)?;
    ensure!(table.contains(&before), "no {before:?} in {table}");
    let script = disk.path().with_extension("sfdisk");
    std::fs::write(&script, table.replacen(&before, &after, 1))?;
    let written = std::process::Command::new(&sfdisk)
        .args(["--quiet", "--no-tell-kernel", "--wipe", "never"])
        .arg(disk.path())
        .stdin(std::fs::File::open(&script)?)
        .output()?;
    std::fs::remove_file(&script)?;
    ensure!(written.status.success(), "sfdisk: {}", String::from_utf8_lossy(&written.stderr));
    Ok(())
}

fn delete_partition(disk: &ScratchDisk, number: u32) -> Result<()> {
    let sfdisk = swtpm_tests::tools::require("sfdisk", "apt-get install fdisk")?;
    let deleted = std::process::Command::new(sfdisk)
        .args(["--quiet", "--no-tell-kernel", "--delete"])
        .arg(disk.path())
        .arg(number.to_string())
        .output()?;
    ensure!(deleted.status.success(), "sfdisk: {}", String::from_utf8_lossy(&deleted.stderr));
    Ok(())
}

#[test]
fn an_absent_device_is_named_with_what_was_seen_instead() -> Result<()> {
    let chain = chain()?;
    let place = chain.manifest()?.data.to_string();
    let fact = "a sealed device did not appear within 3 s";
    let machine = chain.without_disk("an_absent_device_no_disk").append("rd.timeout=3");
    refused(&machine, "found", [fact, &place, "no block device"], &Ending::PoweredOff)?;

    // A disk whose tree is gone: what is there is listed by name and id.
    let (disk, report) = chain.disk()?;
    delete_partition(&disk, 2)?;
    let machine = chain.machine("an_absent_device_other_disk", &disk).append("rd.timeout=3");
    let seen = format!("/dev/vda; /dev/vda1 PARTLABEL=root PARTUUID={}", partitions(&report)?.0.partuuid);
    let tree = format!("{} (tree)", chain.manifest()?.tree);
    refused(&machine, "found", [fact, &tree, &seen], &Ending::PoweredOff)
}

#[test]
fn hostile_filesystem_a_crafted_partition_table_is_neither_believed_nor_fatal() -> Result<()> {
    let (disk, report) = chain()?.disk()?;
    // A header whose checksums hold and whose numbers are absurd would be the parser's own fuzz target; here the
    // kernel's view and ours part: entries that no checksum covers any more.
    disk.write(2 * 512 + 16, &[0xff; 16])?;
    let machine = chain()?.machine("hostile_filesystem_table", &disk).append("rd.timeout=3");
    let place = report.partitions[0].partuuid.to_string();
    let fact = "a sealed device did not appear within 3 s";
    refused(&machine, "found", [fact, &format!("PARTUUID={place}"), "/dev/vda"], &Ending::PoweredOff)
}

#[test]
fn hostile_filesystem_nothing_on_the_disk_is_read_before_the_signature_holds() -> Result<()> {
    // The disk is full of noise, and the manifest is not signed: the refusal speaks of the signature alone.
    let noise = ScratchDisk::empty(4 << 20)?;
    noise.write(
        0,
        &(0..1_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>(),
    )?;
    let other = chain()?.signed_manifest(&[example_key(2)?], |_| ())?;
    let machine = chain()?
        .without_disk("hostile_filesystem_noise")
        .disk(Disk::raw(noise.path()))
        .initrd(chain()?.initramfs_with_manifest(Some(&other))?);
    let mut vm = machine.start()?;
    let block = ["the manifest is not signed by enough trusted keys", "1 of the keys", "signatures: expected 1"];
    vm.says_why("verified", block, PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    // Not even the disk's driver was loaded, so that no partition table was parsed.
    ensure!(vm.console().find(&Line::containing("virtio_blk")).is_none(), "a disk driver was loaded before");
    never_reached_the_root(&vm)
}

#[test]
fn two_disks_with_the_sealed_partition_are_ambiguous() -> Result<()> {
    let (first, _) = chain()?.disk()?;
    let (second, _) = chain()?.disk()?;
    let machine = chain()?.machine("two_disks_are_ambiguous", &first).disk(Disk::raw(second.path()));
    let block = ["the sealed device is ambiguous", "one device with PARTUUID=", "/dev/vda1 and /dev/vdb1"];
    refused(&machine, "found", block, &Ending::PoweredOff)
}

#[test]
fn another_kernel_than_the_sealed_one_is_refused() -> Result<()> {
    let (disk, _) = chain()?.disk()?;
    let kernel = swtpm_tests::cache::kernel("bookworm")?;
    let machine = chain()?.machine("another_kernel", &disk).kernel(kernel.vmlinuz);
    let block = ["this is not the sealed kernel", "kernel 6.12", "kernel 6.1.0"];
    refused(&machine, "verified", block, &Ending::PoweredOff)
}

#[test]
fn a_kernel_without_dm_verity_is_refused() -> Result<()> {
    // The index without its module: what a kernel whose dm-verity was configured away looks like from PID 1.
    let directory = chain()?.directory();
    let index = iofs_sign_extract(&directory.file(sealed::INITRAMFS), "etc/iofs/modules")?;
    let mut parsed = iofs_policy::modules::ModuleIndex::parse(&index)?.modules().to_vec();
    parsed.retain(|module| module.name != "dm_verity");
    let release = iofs_policy::modules::ModuleIndex::parse(&index)?.release().to_owned();
    let without = iofs_policy::modules::ModuleIndex::new(release, parsed)?.to_text();
    let files = [
        (iofs_policy::paths::TRUST, directory.read(sealed::TRUST, 1 << 20)?),
        (iofs_policy::paths::MANIFEST, envelope()?),
        (iofs_policy::paths::MODULE_INDEX, without.into_bytes()),
    ];
    let (disk, _) = chain()?.disk()?;
    let machine = chain()?.machine("a_kernel_without_dm_verity", &disk).initrd(chain()?.initramfs_with(&files)?);
    let block = ["kernel without dm-verity", "the device-mapper target verity", "/dev/mapper/control: No such file"];
    refused(&machine, "found", block, &Ending::PoweredOff)
}

fn iofs_sign_extract(archive: &std::path::Path, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    iofs_sign::inspect::initramfs::extract(archive, name, &mut bytes)?;
    Ok(String::from_utf8(bytes)?)
}

#[test]
fn a_failure_reboots_where_that_is_sealed() -> Result<()> {
    let chain = Chain::tiny("trixie", "", |request| request.config.boot.on_failure = FailureAction::Reboot)?;
    let machine = chain.without_disk("a_failure_reboots").append("rd.timeout=1");
    let block = ["a sealed device did not appear within 1 s", "PARTUUID=", "no block device"];
    refused(&machine, "found", block, &Ending::Reset)
}

#[test]
fn debug_shell_a_failure_stops_with_the_report_and_nobody_answers_the_keyboard() -> Result<()> {
    let chain = Chain::tiny("trixie", "", |request| request.config.boot.on_failure = FailureAction::Halt)?;
    let mut vm = chain.without_disk("a_failure_stops").append("rd.timeout=1").start()?;
    vm.says_why("found", ["a sealed device did not appear within 1 s", "PARTUUID=", "no block device"], PATIENCE)?;
    vm.wait_for_line(&Line::containing("action:   halt"), PATIENCE)?;
    // PID 1 stays: an exit would panic the kernel, and take the report from the screen.
    std::thread::sleep(Duration::from_secs(2));
    ensure!(vm.ended()?.is_none(), "the machine ended");
    vm.type_line("echo is anybody there")?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(vm.console().find(&Line::exactly("is anybody there")).is_none(), "a shell answered");
    never_reached_the_root(&vm)
}

#[test]
fn a_debug_image_says_so_and_lets_parameters_through() -> Result<()> {
    let chain = Chain::tiny("trixie", "cat /run/iofs/boot.json", |request| request.config.image.debug = true)?;
    let (disk, _) = chain.disk()?;
    let mut vm = chain.machine("a_debug_image", &disk).append("rd.shell").start()?;
    vm.wait_for_line(&Line::containing("DEBUG IMAGE"), PATIENCE)?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), PATIENCE)?;
    vm.wait_for_line(&Line::containing("\"debug\": true"), PATIENCE)?;
    ensure!(vm.wait_for_end(PATIENCE)? == Ending::PoweredOff);
    Ok(())
}
