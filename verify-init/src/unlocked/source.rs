//! A device, as the reader of headers sees it.

use std::io;

use iofs_luks::ReadAt;

use crate::{boot::Boot, devices::BlockDevice, system::System};

pub(super) struct Source<'a, S> {
    system: &'a mut S,
    path: &'a str,
}

impl<'a, S: System> Source<'a, S> {
    pub(super) fn new(boot: &'a mut Boot<'_, S>, device: &'a BlockDevice) -> Self {
        Self { system: &mut *boot.system, path: &device.path }
    }
}

impl<S: System> ReadAt for Source<'_, S> {
    fn read_at(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.system.read_at(self.path, offset, length)
    }
}
