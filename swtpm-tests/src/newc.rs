//! The smallest writer of initramfs archives: what a test puts into a machine must not depend on the code under test.

/// A cpio archive in the `newc` form of the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.
#[derive(Debug, Default)]
pub struct Newc {
    bytes: Vec<u8>,
    entries: u32,
}

impl Newc {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder. Parents come first: the kernel makes none by itself.
    #[must_use]
    pub fn folder(self, name: &str) -> Self {
        self.entry(name, 0o040_755, b"")
    }

    /// Adds an executable file.
    #[must_use]
    pub fn program(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, 0o100_755, content)
    }

    /// Adds a plain file.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, 0o100_644, content)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(name, 0o120_777, target.as_bytes())
    }

    /// Ends the archive.
    pub fn finish(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"").bytes
    }

    fn entry(mut self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entries += 1;
        let links = 1;
        let size = u32::try_from(content.len()).expect("a test's file is far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, checksum
        for field in [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes_and_end_with_the_trailer() {
        let archive = Newc::new().folder("dev").file("dev/x", b"12345").finish();
        assert_eq!(archive.len() % 4, 0);
        assert_eq!(&archive[..14], b"07070100000001");
        assert_eq!(&archive[110..114], b"dev\0");
        let trailer = archive.len() - 124;
        assert_eq!(&archive[trailer..trailer + 6], b"070701");
        assert_eq!(&archive[trailer + 110..trailer + 121], b"TRAILER!!!\0");
    }
}
