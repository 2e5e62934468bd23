//! Which partitions there are, and where.

use std::{fs, path::Path};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{Architecture, Manifest, Place, Role},
    verity::RootHash,
};
use uuid::{Uuid, uuid};

use super::{
    ALIGNMENT, Additions, Content, DiskPartition, Planned, READ_ONLY, ROOT_SIGNATURE, SECTOR, UKI, esp::Esp,
    root_signature,
};
use crate::{
    report::{ExitStatus, Failure},
    sealed::{self, SealedDirectory},
};

/// The type of an EFI system partition (UEFI 2.10, section 5.3.3).
pub const ESP_TYPE: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// The types of signatures of a root's root hash (Discoverable Partitions Specification): x86-64, arm64.
pub const ROOT_SIGNATURE_TYPES: [Uuid; 2] =
    [uuid!("41092b05-9fc8-4523-994f-2def0408b176"), uuid!("6db69de6-29f4-4758-a7a5-962190f00ce3")];

/// A partition before it has its place.
struct Wanted {
    label: String,
    partuuid: Uuid,
    type_uuid: Uuid,
    flags: u64,
    size: u64,
    content: Content,
}

/// Where everything goes. What firmware reads comes first: it stays where it is when the rest is rewritten.
pub(super) fn plan(
    directory: &SealedDirectory,
    manifest: &Manifest,
    additions: &Additions,
) -> Result<Vec<Planned>, Failure> {
    let mut wanted: Vec<Wanted> = esp(directory, manifest, additions)?.into_iter().collect();
    wanted.extend(sealed_partitions(directory, manifest)?);
    wanted.extend(signature(directory, manifest, additions)?);
    Ok(placed(wanted))
}

fn placed(wanted: Vec<Wanted>) -> Vec<Planned> {
    let (mut number, mut end) = (0, ALIGNMENT);
    let place = |wanted: Wanted| {
        let Wanted { label, partuuid, type_uuid, flags, size, content } = wanted;
        number += 1;
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + size;
        Planned { partition: DiskPartition { number, label, partuuid, type_uuid, offset, size }, flags, content }
    };
    wanted.into_iter().map(place).collect()
}

/// The EFI system partition, where there is an image to start.
fn esp(directory: &SealedDirectory, manifest: &Manifest, additions: &Additions) -> Result<Option<Wanted>, Failure> {
    let path = match &additions.uki {
        Some(path) => path.clone(),
        None if directory.has(UKI) => directory.file(UKI),
        None if additions.esp_size.is_some() => {
            let fact = format!("{}: no {UKI} in it, so there is no EFI system partition", directory.path().display());
            return Err(Failure::new(ExitStatus::Usage, fact).next("give the image with --uki, or omit --esp-size"));
        }
        None => return Ok(None),
    };
    let root_hash = &manifest.verity.root_hash;
    let volume_id = derived("iofs esp volume id", root_hash);
    let volume_id = u32::from_le_bytes(*volume_id.as_bytes().first_chunk().expect("4 of 32 bytes"));
    let esp = Esp::new(&path, manifest.image.architecture, volume_id)?;
    Ok(Some(Wanted {
        label: "esp".to_owned(),
        partuuid: derived_uuid("iofs esp partuuid", root_hash),
        type_uuid: ESP_TYPE,
        // Updates write it.
        flags: 0,
        size: esp.partition_size(additions.esp_size)?,
        content: Content::Esp(esp),
    }))
}

/// Data and tree.
fn sealed_partitions(directory: &SealedDirectory, manifest: &Manifest) -> Result<[Wanted; 2], Failure> {
    let hash = manifest.verity.root_hash.as_bytes();
    let (first, last) = (&hash[..16], &hash[hash.len() - 16..]);
    let [data_type, tree_type] = partition_types(manifest);
    let sealed = |place: &Place, name, label: &str, id: &[u8], type_uuid| {
        let id = Uuid::from_slice(id).expect("16 bytes are a UUID");
        let (label, partuuid) = match place {
            Place::PartUuid(uuid) => (label.to_owned(), *uuid),
            Place::PartLabel(label) => (label.to_string(), id),
            Place::Volume(_) | Place::Disk(_) => return Err(no_partition(directory, manifest, place, name)),
        };
        let path = directory.file(name);
        let size = file_size(&path)?.next_multiple_of(SECTOR);
        Ok(Wanted { label, partuuid, type_uuid, flags: READ_ONLY, size, content: Content::File(path) })
    };
    Ok([
        sealed(&manifest.data, sealed::IMAGE, "root", first, data_type)?,
        sealed(&manifest.tree, sealed::TREE, "root-verity", last, tree_type)?,
    ])
}

fn no_partition(directory: &SealedDirectory, manifest: &Manifest, place: &Place, name: &str) -> Failure {
    let path = directory.file(name);
    if let Place::Volume(volume) = place {
        let seek = if name == sealed::TREE { manifest.verity.hash_offset } else { 0 };
        let fact = format!("{name} is sealed to lie in the encrypted volume {volume}");
        return Failure::new(ExitStatus::Usage, fact).next(format!(
            "open the volume, then: dd if={} of=/dev/mapper/{volume} oflag=seek_bytes seek={seek}",
            path.display()
        ));
    }
    Failure::new(ExitStatus::Usage, format!("{name} is sealed to lie on the whole disk {place}"))
        .next(format!("write it there as it is: dd if={} of={place}", path.display()))
}

/// The signature of the root hash, for systemd's tools. They look for a root's alone.
fn signature(
    directory: &SealedDirectory,
    manifest: &Manifest,
    additions: &Additions,
) -> Result<Option<Wanted>, Failure> {
    if !directory.has(ROOT_SIGNATURE) {
        return match &additions.root_certificate {
            Some(path) => {
                let fact = format!("{}: a certificate without {ROOT_SIGNATURE} to go with it", path.display());
                Err(Failure::new(ExitStatus::Usage, fact)
                    .next(format!("put {ROOT_SIGNATURE} into {}", directory.path().display())))
            }
            None => Ok(None),
        };
    }
    let type_uuid = match (manifest.image.role, manifest.image.architecture) {
        (Role::Root, Architecture::X86_64) => ROOT_SIGNATURE_TYPES[0],
        (Role::Root, Architecture::Arm64) => ROOT_SIGNATURE_TYPES[1],
        (Role::InitOverlay, _) => return Ok(None),
    };
    let root_hash = &manifest.verity.root_hash;
    let bytes = root_signature::partition(directory, root_hash, additions.root_certificate.as_deref())?;
    Ok(Some(Wanted {
        label: "root-verity-sig".to_owned(),
        partuuid: derived_uuid("iofs root signature partuuid", root_hash),
        type_uuid,
        flags: READ_ONLY,
        size: bytes.len() as u64,
        content: Content::Bytes(bytes),
    }))
}

fn file_size(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path);
    Ok(metadata.map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?.len())
}

/// Discoverable Partitions Specification: root and root-verity. A second stage is nobody's root.
fn partition_types(manifest: &Manifest) -> [Uuid; 2] {
    match (manifest.image.role, manifest.image.architecture) {
        (Role::Root, Architecture::X86_64) => {
            [uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"), uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")]
        }
        (Role::Root, Architecture::Arm64) => {
            [uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"), uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820")]
        }
        (Role::InitOverlay, _) => {
            // Linux file system data: systemd must not take it for a root.
            let generic = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
            [generic, generic]
        }
    }
}

fn derived(what: &str, root_hash: &RootHash) -> Sha256Digest {
    Sha256Digest::of(&[what.as_bytes(), b"\0", root_hash.as_bytes()].concat())
}

/// An id that follows from the root hash, so that the same input gives the same disk.
pub(super) fn derived_uuid(what: &str, root_hash: &RootHash) -> Uuid {
    let digest = derived(what, root_hash);
    uuid::Builder::from_custom_bytes(*digest.as_bytes().first_chunk().expect("16 of 32 bytes")).into_uuid()
}
