//! Which partitions there are, and where.

use std::{
    fs,
    path::{Path, PathBuf},
};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{Architecture, Manifest, Place, Role},
    slots::{Chooser, SlotName},
    verity::RootHash,
};
use uuid::Uuid;

use super::{
    ALIGNMENT, Additions, Content, DiskPartition, Piece, Planned, READ_ONLY, SECTOR,
    esp::Esp,
    root_signature, slots,
    types::{self, RootTypes},
};
use crate::{
    report::{ExitStatus, Failure},
    sealed::{self, ROOT_HASH_SIGNATURE, SealedDirectory, UKI},
    slots::loader,
};

/// A partition before it has its place.
pub(super) struct Wanted {
    pub(super) label: String,
    pub(super) partuuid: Uuid,
    pub(super) type_uuid: Uuid,
    pub(super) flags: u64,
    pub(super) size: u64,
    pub(super) content: Content,
}

/// Where everything goes. What firmware reads comes first: it stays where it is when the rest is rewritten.
pub(super) fn plan(
    directory: &SealedDirectory,
    manifest: &Manifest,
    additions: &Additions,
) -> Result<Vec<Planned>, Failure> {
    let mut wanted: Vec<Wanted> = esp(directory, manifest, additions)?.into_iter().collect();
    wanted.extend(sealed_partitions(directory, manifest, additions)?);
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
    let architecture = manifest.image.architecture;
    let esp = match loader(directory, manifest, additions)? {
        None => Esp::new(&path, architecture, volume_id)?,
        Some((loader, name)) => Esp::new(&loader, architecture, volume_id)?.with_image(name, &path, architecture)?,
    };
    Ok(Some(Wanted {
        label: "esp".to_owned(),
        partuuid: derived_uuid("iofs esp partuuid", root_hash),
        type_uuid: types::ESP,
        // Updates write it.
        flags: 0,
        size: esp.partition_size(additions.esp_size)?,
        content: Content::Esp(esp),
    }))
}

/// The boot loader, where that chooses among slots, and what the image of slot a is called for it.
fn loader(
    directory: &SealedDirectory,
    manifest: &Manifest,
    additions: &Additions,
) -> Result<Option<(PathBuf, String)>, Failure> {
    let rules = if manifest.data == Place::Slot { directory.trust()?.slots } else { None };
    let chosen = rules.filter(|rules| rules.chooser == Chooser::BootLoader);
    match (chosen, &additions.boot_loader) {
        (Some(rules), given) => {
            let loader = given.clone().map_or_else(|| installed_loader(manifest.image.architecture), Ok)?;
            let name = loader::on_trial(&manifest.image.id, SlotName::A, rules.tries);
            Ok(Some((loader, name)))
        }
        (None, Some(given)) => {
            let fact =
                format!("{}: a boot loader is for slots among which it chooses: there are none", given.display());
            Err(Failure::new(ExitStatus::Usage, fact)
                .next("omit --boot-loader, or seal with slots.chooser = \"boot-loader\""))
        }
        (None, None) => Ok(None),
    }
}

/// systemd-boot, as its package has it.
fn installed_loader(architecture: Architecture) -> Result<PathBuf, Failure> {
    let name = match architecture {
        Architecture::X86_64 => "systemd-bootx64.efi",
        Architecture::Arm64 => "systemd-bootaa64.efi",
    };
    let path = Path::new("/usr/lib/systemd/boot/efi").join(name);
    if path.exists() {
        return Ok(path);
    }
    let fact = format!("boot loader: expected {}, found none", path.display());
    Err(Failure::new(ExitStatus::Missing, fact)
        .next("apt-get install systemd-boot-efi; for Secure Boot give a signed one with --boot-loader"))
}

/// Data and tree; what travels in the initramfs needs no partition.
fn sealed_partitions(
    directory: &SealedDirectory,
    manifest: &Manifest,
    additions: &Additions,
) -> Result<Vec<Wanted>, Failure> {
    let hash = manifest.verity.root_hash.as_bytes();
    let (first, last) = (&hash[..16], &hash[hash.len() - 16..]);
    let [data_type, tree_type] = partition_types(manifest);
    let sealed = |place: &Place, names: &[&str], label: &str, id: &[u8], type_uuid| {
        let id = Uuid::from_slice(id).expect("16 bytes are a UUID");
        let (label, partuuid) = match place {
            Place::PartUuid(uuid) => (label.to_owned(), *uuid),
            Place::PartLabel(label) => (label.to_string(), id),
            Place::Volume(_) | Place::Disk(_) | Place::File(_) | Place::Memory | Place::Slot => {
                return Err(no_partition(directory, manifest, place, names[0]));
            }
        };
        let mut size = 0;
        let mut files = Vec::new();
        for (name, offset) in names.iter().zip([0, manifest.verity.hash_offset]) {
            let path = directory.file(name);
            size = (offset + file_size(&path)?).next_multiple_of(SECTOR);
            files.push((Piece::File(path), offset));
        }
        Ok(Wanted { label, partuuid, type_uuid, flags: READ_ONLY, size, content: Content::Pieces(files) })
    };
    match manifest.data {
        Place::Memory => return Ok(Vec::new()),
        Place::Slot => return slots::partitions(directory, manifest, data_type, additions.slot_size),
        _ => {}
    }
    if manifest.is_one_piece() {
        return Ok(vec![sealed(&manifest.data, &[sealed::IMAGE, sealed::TREE], "root", first, data_type)?]);
    }
    Ok(vec![
        sealed(&manifest.data, &[sealed::IMAGE], "root", first, data_type)?,
        sealed(&manifest.tree, &[sealed::TREE], "root-verity", last, tree_type)?,
    ])
}

fn no_partition(directory: &SealedDirectory, manifest: &Manifest, place: &Place, name: &str) -> Failure {
    let path = directory.file(name);
    let refused = |fact: String, next: String| Failure::new(ExitStatus::Usage, fact).next(next);
    match place {
        Place::Volume(volume) => {
            let seek = if name == sealed::TREE { manifest.verity.hash_offset } else { 0 };
            let path = path.display();
            refused(
                format!("{name} is sealed to lie in the encrypted volume {volume}"),
                format!("open the volume, then: dd if={path} of=/dev/mapper/{volume} oflag=seek_bytes seek={seek}"),
            )
        }
        Place::File(file) => refused(
            format!("{name} is sealed to lie in the file {} of a {} that is not ours", file.path, file.kind.name()),
            "seal a partition as its place, or let 'iofs-sign install' write the file".to_owned(),
        ),
        _ => refused(
            format!("{name} is sealed to lie on the whole disk {place}"),
            format!("write it there as it is: dd if={} of={place}", path.display()),
        ),
    }
}

/// The signature of the root hash, for systemd's tools. They look for a root's alone.
fn signature(
    directory: &SealedDirectory,
    manifest: &Manifest,
    additions: &Additions,
) -> Result<Option<Wanted>, Failure> {
    if !directory.has(ROOT_HASH_SIGNATURE) {
        return match &additions.root_certificate {
            Some(path) => {
                let fact = format!("{}: a certificate without {ROOT_HASH_SIGNATURE} to go with it", path.display());
                Err(Failure::new(ExitStatus::Usage, fact)
                    .next(format!("put {ROOT_HASH_SIGNATURE} into {}", directory.path().display())))
            }
            None => Ok(None),
        };
    }
    if manifest.image.role != Role::Root {
        return Ok(None);
    }
    let root_hash = &manifest.verity.root_hash;
    let bytes = root_signature::partition(directory, root_hash, additions.root_certificate.as_deref())?;
    Ok(Some(Wanted {
        label: "root-verity-sig".to_owned(),
        partuuid: derived_uuid("iofs root signature partuuid", root_hash),
        type_uuid: RootTypes::of(manifest.image.architecture).signature,
        flags: READ_ONLY,
        size: bytes.len() as u64,
        content: Content::Pieces(vec![(Piece::Bytes(bytes), 0)]),
    }))
}

fn file_size(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path);
    Ok(metadata.map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?.len())
}

/// A second stage is nobody's root: systemd must not take it for one.
fn partition_types(manifest: &Manifest) -> [Uuid; 2] {
    let root = RootTypes::of(manifest.image.architecture);
    match manifest.image.role {
        Role::Root => [root.data, root.tree],
        Role::InitOverlay => [types::GENERIC, types::GENERIC],
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
