//! What the stub hands to the kernel as its initramfs: the image's own, and archives with what else is in the image. The kernel's
//! EFI stub measures all of it as one, into register 9.
//!
//! systemd's `stub.c` and `cpio.c`, of the releases 252 and 257: microcode, the initramfs, then one archive a file in `/.extra`.

use super::{MORE_SECTIONS, Part, stub_number};
use crate::pe::Headers;

/// The first release of systemd whose stub hands over the os-release, too.
const WITH_OS_RELEASE: u32 = 257;
/// The end of an archive: a header of zeros, one link, and the name of 11 bytes.
const TRAILER: &[u8] =
    b"07070100000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000B00000000\
    TRAILER!!!\0\0\0\0";

/// The initramfs that the kernel gets of an image.
pub(super) fn combined(headers: &Headers, image: &[u8]) -> Vec<u8> {
    let section = |part: Part| headers.find(part.section()).map(|section| section.contents(image));
    let number = stub_number(headers, image);
    let whole =
        [Part::Microcode, Part::Initrd].into_iter().filter(|part| *part == Part::Initrd || number >= MORE_SECTIONS);
    let mut parts: Vec<Vec<u8>> = whole.filter_map(section).map(<[u8]>::to_vec).collect();
    let mut files =
        vec![(Part::PcrSignature, "tpm2-pcr-signature.json"), (Part::PcrPublicKey, "tpm2-pcr-public-key.pem")];
    if number >= WITH_OS_RELEASE {
        files.push((Part::OsRelease, "os-release"));
    }
    parts.extend(files.into_iter().filter_map(|(part, name)| Some(archive(name, section(part)?))));
    if let [alone] = &mut parts[..] {
        return std::mem::take(alone);
    }
    parts.into_iter().fold(Vec::new(), |mut all, part| {
        all.extend(part);
        all.resize(all.len().next_multiple_of(4), 0);
        all
    })
}

/// An archive ("newc") with one file in `.extra`.
fn archive(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, ".extra", 1, 0o40555, &[]);
    entry(&mut archive, &format!(".extra/{name}"), 2, 0o100_444, contents);
    archive.extend(TRAILER);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, inode: u32, mode: u32, contents: &[u8]) {
    // Sections have less than 4 GiB.
    let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
    archive.extend(b"070701");
    for word in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{word:08x}").into_bytes());
    }
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_sizes_that_its_readers_expect() {
        let archive = archive("os-release", b"ID=x\n");
        assert_eq!(TRAILER.len(), 124);
        // Header and name of the folder, of the file, its contents, and the end.
        assert_eq!(archive.len(), (110 + 7 + 3) + (110 + 18) + 8 + 124);
        assert!(archive.windows(18).any(|bytes| bytes == b".extra/os-release\0"));
    }
}
