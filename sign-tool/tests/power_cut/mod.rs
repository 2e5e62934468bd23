//! Power lost at any byte that is written. Whatever was written since the last time that the device was told to store it may be
//! there or not, sector by sector, as on disks with a cache.
#![allow(dead_code)]

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Mutex,
};

use iofs_sign::slots::storage::Storage;

use crate::seal_common::Random;

/// How many moments are tried: each beginning and each end of a write, and bytes within.
const POINTS: usize = 300;
const SECTOR: usize = 512;

/// What was there before a write that nobody has stored yet.
pub(crate) struct Unstored {
    file: File,
    offset: u64,
    before: Vec<u8>,
}

/// Devices that lose their power after so many bytes.
pub(crate) struct Cut(pub(crate) Mutex<State>);

pub(crate) struct State {
    left: u64,
    unstored: Vec<Unstored>,
    /// The lengths of all writes.
    pub(crate) writes: Vec<u64>,
    pub(crate) syncs: usize,
}

impl Cut {
    pub(crate) fn after(bytes: u64) -> Self {
        Self(Mutex::new(State { left: bytes, unstored: Vec::new(), writes: Vec::new(), syncs: 0 }))
    }

    /// Has each sector that was not stored fall back to what it was, or not.
    pub(crate) fn lose(self, random: &mut Random) {
        let mut state = self.0.into_inner().unwrap();
        while let Some(Unstored { file, offset, before }) = state.unstored.pop() {
            for (number, sector) in before.chunks(SECTOR).enumerate() {
                if random.below(2) == 0 {
                    file.write_all_at(sector, offset + (number * SECTOR) as u64).unwrap();
                }
            }
        }
    }
}

fn power() -> io::Error {
    io::Error::other("the power is gone")
}

impl Storage for Cut {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let now = (bytes.len() as u64).min(state.left) as usize;
        let mut before = vec![0; now];
        file.read_exact_at(&mut before, offset).unwrap();
        state.unstored.push(Unstored { file: file.try_clone().unwrap(), offset, before });
        file.write_all_at(&bytes[..now], offset).unwrap();
        state.left -= now as u64;
        state.writes.push(now as u64);
        if now == bytes.len() { Ok(()) } else { Err(power()) }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.left == 0 {
            return Err(power());
        }
        let stored = file.metadata().unwrap().ino();
        state.unstored.retain(|one| one.file.metadata().unwrap().ino() != stored);
        state.syncs += 1;
        Ok(())
    }
}

/// Every end of a write, and the byte behind it, and others.
pub(crate) fn points(writes: &[u64], random: &mut Random) -> Vec<u64> {
    let mut end = 0;
    let mut points = vec![0];
    for length in writes {
        end += length;
        points.extend([end, end + 1]);
    }
    // Half of the others lie within the short writes, which are the ones that decide.
    while points.len() < POINTS {
        let number = random.below(writes.len() as u64) as usize;
        let start: u64 = writes[..number].iter().sum();
        points.push(if points.len().is_multiple_of(2) {
            start + random.below(writes[number])
        } else {
            random.below(end)
        });
    }
    points
}
