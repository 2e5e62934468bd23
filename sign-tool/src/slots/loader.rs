//! What a boot loader that counts tries starts: a unified kernel image for each slot, whose name says how many tries are left.
//!
//! The names are systemd-boot's ("Automatic Boot Assessment", and type 2 of the Boot Loader Specification): on trial
//! `ID-SLOT+LEFT-DONE.efi`, and `ID-SLOT.efi` once it is good. Which image lies in which slot the image itself tells: its
//! initramfs holds the manifest, and verify-init takes the slot that has the same one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use iofs_policy::{
    manifest::ImageId,
    slots::{Chooser, SlotName},
    trust::TrustPolicy,
};
use serde::Serialize;

use super::rules;
use crate::{
    atomic::AtomicFile,
    install::boot::BOOT_FOLDERS,
    report::{ExitStatus, Failure},
};

/// Where the loader looks for unified kernel images.
pub const FOLDER: &str = "EFI/Linux";
/// What the file system itself may need for a new file: FAT's table and folder. Bytes.
const ROOM: u64 = 64 * 1024;

/// The files of one product on the loader's file system.
#[derive(Debug, Clone)]
pub struct LoaderFiles {
    folder: PathBuf,
    id: ImageId,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoaderFile {
    /// Its path.
    pub path: PathBuf,
    /// The slot that its release lies in.
    pub slot: SlotName,
    /// How many tries it has left; nothing once it was confirmed.
    pub tries_left: Option<u32>,
}

impl LoaderFiles {
    /// Finds the loader's file system of a machine whose loader chooses; `asked` is where it is mounted.
    ///
    /// # Errors
    /// Nothing is mounted at any of the usual places.
    pub fn find(trust: &TrustPolicy, asked: Option<&Path>) -> Result<Option<Self>, Failure> {
        if rules::of(trust)?.chooser == Chooser::VerifyInit {
            return Ok(None);
        }
        let places = asked.map_or_else(|| BOOT_FOLDERS.map(Path::new).to_vec(), |asked| vec![asked]);
        let found = places.iter().map(|place| place.join(FOLDER)).find(|folder| folder.is_dir());
        let missing = || {
            let looked = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            let fact = format!("boot loader: expected the folder {FOLDER} in {looked}, found none");
            Failure::new(ExitStatus::Missing, fact)
                .next("mount the EFI system partition, and say where with --esp-path")
        };
        let folder = found.ok_or_else(missing)?;
        Ok(Some(Self { folder, id: trust.image_id.clone() }))
    }

    /// The name of a slot's image that is good.
    fn good(&self, slot: SlotName) -> String {
        format!("{}-{slot}.efi", self.id)
    }

    /// Every file of ours, in the order of their names. More than one of a slot is what an interrupted rename left.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<LoaderFile>, Failure> {
        let fail = |error| Failure::io(format_args!("read {}", self.folder.display()), &error);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            files.extend(name.to_str().and_then(|name| self.parse(name)));
        }
        files.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(files)
    }

    /// What a name stands for, if it is one of ours.
    fn parse(&self, name: &str) -> Option<LoaderFile> {
        let rest = name.strip_prefix(self.id.as_str())?.strip_prefix('-')?.strip_suffix(".efi")?;
        let (slot, counter) = rest.split_once('+').map_or((rest, None), |(slot, counter)| (slot, Some(counter)));
        let slot = SlotName::ALL.into_iter().find(|known| known.to_string() == slot)?;
        let tries_left = counter.map(tries_left).transpose().ok()?;
        Some(LoaderFile { path: self.folder.join(name), slot, tries_left })
    }

    fn of_slot(&self, slot: SlotName) -> Result<Vec<LoaderFile>, Failure> {
        Ok(self.list()?.into_iter().filter(|file| file.slot == slot).collect())
    }

    /// Whether the loader has something with tries left to start for a slot.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn starts(&self, slot: SlotName) -> Result<bool, Failure> {
        Ok(self.of_slot(slot)?.iter().any(|file| file.tries_left != Some(0)))
    }

    /// Refuses an image for which there is no room, once what the slot has now is removed.
    ///
    /// # Errors
    /// There is too little, or the file system cannot be asked.
    pub fn check_room(&self, slot: SlotName, size: u64) -> Result<(), Failure> {
        let path = self.folder.display();
        let fail = |error: io::Error| Failure::io(format_args!("find the free space of {path}"), &error);
        let free = rustix::fs::statvfs(&self.folder).map_err(|error| fail(error.into()))?;
        let sizes = self.of_slot(slot)?.into_iter().map(|file| Ok(file.path.metadata()?.len()));
        let freed: u64 = sizes.sum::<io::Result<u64>>().map_err(fail)?;
        let (found, needed) = (free.f_bavail * free.f_frsize + freed, size + ROOM);
        if found < needed {
            let fact = format!("{path}: expected room for {needed} bytes, found {found}");
            return Err(Failure::new(ExitStatus::System, fact).next("nothing was written: remove what is not needed"));
        }
        Ok(())
    }

    /// Removes a slot's images, so that the loader starts nothing of what is about to be written.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, slot: SlotName) -> Result<(), Failure> {
        self.remove_but(slot, None)
    }

    fn remove_but(&self, slot: SlotName, kept: Option<&Path>) -> Result<(), Failure> {
        for file in self.of_slot(slot)?.iter().filter(|file| Some(&*file.path) != kept) {
            let removed = fs::remove_file(&file.path).and_then(|()| self.sync());
            removed.map_err(|error| Failure::io(format_args!("remove {}", file.path.display()), &error))?;
        }
        Ok(())
    }

    /// Returns once the names are safe from a power cut.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Writes a slot's image, with so many tries, in the place of what was there; it is there whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, slot: SlotName, image: &[u8], tries: u8) -> Result<(), Failure> {
        self.remove(slot)?;
        let path = self.folder.join(on_trial(&self.id, slot, tries));
        let mut file = AtomicFile::create(&path, 0o644)?;
        file.file().write_all(image).map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))?;
        file.replace()
    }

    /// Ends the trial of a slot's image: from now on the loader starts it however often that takes. Without a file of that slot
    /// there is nothing to end.
    ///
    /// # Errors
    /// The system's.
    pub fn confirm(&self, slot: SlotName) -> Result<(), Failure> {
        let good = self.folder.join(self.good(slot));
        if let Some(file) = self.of_slot(slot)?.iter().rfind(|file| file.tries_left.is_some())
            && !good.exists()
        {
            let renamed = fs::rename(&file.path, &good).and_then(|()| self.sync());
            renamed.map_err(|error| {
                Failure::io(format_args!("rename {} to {}", file.path.display(), good.display()), &error)
            })?;
        }
        // What firmware's file system driver or a power cut left beside it would be started as well.
        if good.exists() { self.remove_but(slot, Some(&good)) } else { Ok(()) }
    }
}

/// The name of a slot's image that has so many tries.
pub fn on_trial(id: &ImageId, slot: SlotName, tries: u8) -> String {
    format!("{id}-{slot}+{tries}.efi")
}

/// The tries left of `LEFT` or `LEFT-DONE`.
fn tries_left(counter: &str) -> Result<u32, std::num::ParseIntError> {
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    done.parse::<u32>()?;
    left.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, LoaderFiles) {
        let esp = tempfile::tempdir().unwrap();
        let folder = esp.path().join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        (esp, LoaderFiles { folder, id: "org.example.gateway".parse().unwrap() })
    }

    fn names(files: &LoaderFiles) -> Vec<String> {
        let name = |file: LoaderFile| file.path.file_name().unwrap().to_str().unwrap().to_owned();
        files.list().unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn names_are_read_as_systemd_boot_writes_them_and_others_are_left_alone() {
        let (_esp, files) = files();
        let read = |name: &str| files.parse(name).map(|file| (file.slot, file.tries_left));
        for (name, expected) in [
            ("org.example.gateway-a.efi", Some((SlotName::A, None))),
            ("org.example.gateway-b+3.efi", Some((SlotName::B, Some(3)))),
            ("org.example.gateway-b+2-1.efi", Some((SlotName::B, Some(2)))),
            ("org.example.gateway-b+0-3.efi", Some((SlotName::B, Some(0)))),
            ("org.example.gateway-c.efi", None),
            ("org.example.gateway-b+x.efi", None),
            ("org.example.gateway-b+1-x.efi", None),
            ("org.example.gateway-b.efi.new", None),
            ("org.example.gateway.efi", None),
            ("org.example.other-a.efi", None),
        ] {
            assert_eq!(read(name), expected, "{name}");
        }
    }

    #[test]
    fn a_slot_has_one_file_whose_name_counts_until_it_is_confirmed() {
        let (_esp, files) = files();
        fs::write(files.folder.join("distribution.efi"), "kept").unwrap();
        files.write(SlotName::A, b"first", 3).unwrap();
        files.write(SlotName::B, b"second", 2).unwrap();
        assert_eq!(names(&files), ["org.example.gateway-a+3.efi", "org.example.gateway-b+2.efi"]);
        fs::rename(
            files.folder.join("org.example.gateway-a+3.efi"),
            files.folder.join("org.example.gateway-a+2-1.efi"),
        )
        .unwrap();
        files.confirm(SlotName::A).unwrap();
        files.confirm(SlotName::A).unwrap();
        assert_eq!(names(&files), ["org.example.gateway-a.efi", "org.example.gateway-b+2.efi"]);
        assert_eq!(fs::read(files.folder.join("org.example.gateway-a.efi")).unwrap(), b"first");
        files.remove(SlotName::B).unwrap();
        files.confirm(SlotName::B).unwrap();
        assert!(!files.starts(SlotName::B).unwrap() && files.starts(SlotName::A).unwrap());
        files.write(SlotName::A, b"third", 1).unwrap();
        assert_eq!(names(&files), ["org.example.gateway-a+1.efi"]);
        assert!(files.folder.join("distribution.efi").exists());
    }

    #[test]
    fn what_has_used_up_its_tries_is_not_started() {
        let (_esp, files) = files();
        fs::write(files.folder.join("org.example.gateway-b+0-3.efi"), "").unwrap();
        assert!(!files.starts(SlotName::B).unwrap());
    }

    #[test]
    fn an_image_without_room_is_refused() {
        let (_esp, files) = files();
        assert!(files.check_room(SlotName::A, 1).is_ok());
        let refused = files.check_room(SlotName::A, 1 << 60).unwrap_err();
        assert!(refused.fact.contains("expected room for"), "{refused}");
    }
}
