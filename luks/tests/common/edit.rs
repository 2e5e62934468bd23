//! Headers by real tools, changed in one place, with the right checksum again: what an attacker with the disk writes.
#![allow(dead_code)] // each test file uses a part

use iofs_luks::{Header, HeaderError, with_checksum};

pub(crate) const DEBIAN_12: &[u8] = include_bytes!("../data/debian-12.header");
pub(crate) const DEBIAN_13: &[u8] = include_bytes!("../data/debian-13.header");
/// Of one header with its JSON area.
pub(crate) const SIZE: usize = 16384;
/// Of the volume that the headers came from.
pub(crate) const VOLUME: u64 = 20 << 20;
const BINARY: usize = 4096;

/// Both headers of a volume, of which the second has its own magic and place.
#[derive(Clone)]
pub(crate) struct Both(pub(crate) Vec<u8>);

impl Both {
    pub(crate) fn of(header: &[u8]) -> Self {
        let mut primary = header.to_vec();
        primary.resize(SIZE, 0);
        let mut secondary = primary.clone();
        secondary[..6].copy_from_slice(b"SKUL\xba\xbe");
        secondary[256..264].copy_from_slice(&(SIZE as u64).to_be_bytes());
        Self([primary, with_checksum(secondary)].concat())
    }

    /// Writes bytes at a place in one header, 0 or 1, and makes its checksum anew.
    pub(crate) fn patch(mut self, copy: usize, at: usize, bytes: &[u8]) -> Self {
        let start = copy * SIZE;
        let mut header = self.0[start..start + SIZE].to_vec();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        self.0[start..start + SIZE].copy_from_slice(&with_checksum(header));
        self
    }

    /// Writes another JSON area into both headers.
    pub(crate) fn with_area(mut self, area: &[u8]) -> Self {
        let mut whole = area.to_vec();
        whole.resize(SIZE - BINARY, 0);
        for copy in 0..2 {
            self = self.patch(copy, BINARY, &whole);
        }
        self
    }

    /// The JSON text.
    pub(crate) fn json(&self) -> String {
        let area = &self.0[BINARY..SIZE];
        let length = area.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(area[..length].to_vec()).unwrap()
    }

    /// Replaces the first place in the JSON text of both headers.
    pub(crate) fn replace(self, from: &str, to: &str) -> Self {
        let json = self.json();
        assert!(json.contains(from), "{from:?} is not in {json}");
        let json = json.replacen(from, to, 1);
        self.with_area(json.as_bytes())
    }

    pub(crate) fn read(&self) -> Result<Header, HeaderError> {
        self.read_on(VOLUME)
    }

    pub(crate) fn read_on(&self, bytes: u64) -> Result<Header, HeaderError> {
        Header::read(&mut self.0.as_slice(), bytes)
    }

    pub(crate) fn error(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}
