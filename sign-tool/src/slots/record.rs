//! The record of tries on its partition, with the confirmed keys behind it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use iofs_policy::{
    keys::KeyHistory,
    slots::{ConfirmedKeys, ConfirmedKeysError, HistoryArea, RECORD_COPIES, RECORD_SIZE, SlotRecord, StateError},
};

use super::storage::{Disk, Storage};
use crate::{
    report::{ExitStatus, Failure},
    verity,
};

/// The partition with the record, open and locked against other processes of this system.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    file: File,
    /// The record. What changes it calls [`RecordFile::save`].
    pub record: SlotRecord,
    /// Why the record began anew, where neither copy could be read.
    pub damaged: Option<StateError>,
    write_first: usize,
}

impl RecordFile {
    /// Opens and reads it. A record that nobody wrote yet, or of which nothing is left, begins anew: no boot depends on it.
    ///
    /// # Errors
    /// The device cannot be opened, locked or read.
    pub fn open(path: &Path, write: bool) -> Result<Self, Failure> {
        let fail = |error: io::Error| Failure::io(format_args!("open the slots' state {}", path.display()), &error);
        let file = OpenOptions::new().read(true).write(write).open(path).map_err(fail)?;
        let lock =
            if write { rustix::fs::FlockOperation::LockExclusive } else { rustix::fs::FlockOperation::LockShared };
        rustix::fs::flock(&file, lock).map_err(|error| fail(error.into()))?;
        let mut bytes = vec![0; RECORD_COPIES * RECORD_SIZE];
        file.read_exact_at(&mut bytes, 0).map_err(fail)?;
        let (record, write_first) = SlotRecord::newest(&bytes);
        let (record, damaged) = record.map_or_else(|why| (SlotRecord::default(), Some(why)), |record| (record, None));
        Ok(Self { path: path.to_owned(), file, record, damaged, write_first })
    }

    /// The open device.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The key history that was confirmed, if the keys were ever moved.
    ///
    /// # Errors
    /// It is damaged.
    pub fn key_history(&self) -> Result<Option<KeyHistory>, ConfirmedKeysError> {
        let Some(keys) = self.record.keys else { return Ok(None) };
        let mut bytes = vec![0; keys.size()];
        // What cannot be read is as good as damaged.
        let read = self.file.read_exact_at(&mut bytes, keys.area.offset());
        keys.history(if read.is_ok() { &bytes } else { &[] }).map(Some)
    }

    /// Refuses a partition that ends before what keeps confirmed keys.
    ///
    /// # Errors
    /// It is too small.
    pub fn check_room(&self) -> Result<(), Failure> {
        let size = verity::size(&self.file).map_err(|error| Failure::io(self.doing("find the size of"), &error))?;
        let least = HistoryArea::Second.end();
        if size < least {
            let fact =
                format!("{}: expected at least {least} bytes, to keep moved keys, found {size}", self.path.display());
            return Err(Failure::new(ExitStatus::System, fact)
                .next("enlarge the partition with the record of tries: 'iofs-sign disk' gives it 1 MiB"));
        }
        Ok(())
    }

    /// Writes a key history into the area that the record does not name, and names it: the old one counts until the record is
    /// saved.
    ///
    /// # Errors
    /// There is no room, or the device cannot be written.
    pub fn write_key_history(&mut self, storage: &dyn Storage, history: &KeyHistory) -> Result<(), Failure> {
        self.check_room()?;
        let area = self.record.keys.map_or(HistoryArea::First, |keys| keys.area.other());
        let bytes = history.to_bytes();
        let written = storage.write(&self.file, &bytes, area.offset()).and_then(|()| storage.sync(&self.file));
        written.map_err(|error| Failure::io(self.doing("write the confirmed keys behind"), &error))?;
        self.record.keys = Some(ConfirmedKeys::new(history, &bytes, area));
        Ok(())
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} the slots' state {}", self.path.display())
    }

    /// Writes both copies, one after the other, so that one of them is whole at any moment.
    ///
    /// # Errors
    /// The device cannot be written.
    pub fn save(&mut self) -> Result<(), Failure> {
        self.save_through(&Disk)
    }

    /// The same, in whichever way is given.
    ///
    /// # Errors
    /// The device cannot be written.
    pub fn save_through(&mut self, storage: &dyn Storage) -> Result<(), Failure> {
        self.record.sequence += 1;
        let bytes = self.record.encode();
        let write = |copy: usize| {
            storage.write(&self.file, &bytes, (copy * RECORD_SIZE) as u64)?;
            storage.sync(&self.file)
        };
        [self.write_first, 1 - self.write_first]
            .into_iter()
            .try_for_each(write)
            .map_err(|error: io::Error| Failure::io(self.doing("write"), &error))
    }
}
