//! Images that others made: erofs, kernels, unified kernel images.

use iofs_policy::pcr::PcrBank;
use iofs_sign::{
    erofs::superblock::{self, Superblock},
    initramfs::kernel::KernelImage,
    pe::{Headers, NewSection, Section, append},
    uki,
};

/// An erofs superblock that decodes has a block size that a kernel takes; and where its checksum holds, no single bit
/// of what the checksum covers can change without being noticed. The input stands for the image from byte 1024 on.
pub fn erofs_superblock(data: &[u8]) -> bool {
    let Ok(found) = Superblock::decode(data) else { return false };
    assert!(found.block_size.is_power_of_two() && (512..=65536).contains(&found.block_size));
    let (least, feature) = found.least_kernel();
    assert!(least >= iofs_sign::erofs::KernelRelease::new(5, 4) && !feature.is_empty());
    assert_eq!(found.incompatible_features().is_empty(), found.feature_incompat == 0);
    if found.checksum_holds == Some(true) {
        let last = covered(found.block_size).min(data.len()) - 1;
        // Byte 12 is the block size itself: it decides what is covered. Bit 0 of byte 8 says that there is a checksum.
        for at in [4, 9, 16, 48, 127, last] {
            let mut changed = data.to_vec();
            changed[at] ^= 0x10;
            let again = Superblock::decode(&changed).expect("neither magic nor block size changed");
            assert_eq!(again.checksum_holds, Some(false), "byte {at}");
        }
    }
    true
}

fn covered(block_size: u32) -> usize {
    let (size, start) = (block_size as usize, superblock::OFFSET as usize);
    if size > start { size - start } else { size }
}

/// A kernel image that is identified has a release that can be a folder's name and no path.
pub fn kernel_image(data: &[u8]) -> bool {
    let Ok(image) = KernelImage::parse(data) else { return false };
    let release = image.release.as_str();
    assert!(release.is_ascii() && (3..=64).contains(&release.len()));
    assert!(!release.contains(['/', '\0', ' ', '\n']) && !release.starts_with('.'));
    let (major, minor) = image.release.version();
    let (first, rest) = release.split_once('.').expect("two numbers");
    assert_eq!(first.parse(), Ok(major));
    assert!(rest.trim_start_matches(['0', '+']).starts_with(minor.to_string().trim_start_matches('0')));
    true
}

/// Sections of a PE image lie within it, and register 11 has a value for each phase. What is appended is read back, and
/// leaves the sections before it as they are; signatures that are appended leave every predicted value as it is.
pub fn unified_kernel_image(data: &[u8]) -> bool {
    let Ok(headers) = Headers::parse(data) else { return false };
    for section in &headers.sections {
        assert!(section.raw.end <= data.len() && section.contents(data).len() <= section.size as usize);
    }
    let predict = |headers: &Headers, image: &[u8]| uki::predict(headers, image, PcrBank::Sha256).expect("one bank");
    let values = predict(&headers, data);
    assert_eq!(values.len(), 1 + uki::PHASES.len());
    assert!(values.iter().all(|value| value.value.len() == 64));
    if let Ok(longer) = append(data, &[NewSection { name: ".pcrsig", contents: b"{}" }]) {
        let after = Headers::parse(&longer).expect("what was written is read");
        assert_eq!(after.find(".pcrsig").expect("it was appended").contents(&longer), b"{}");
        // A section that claims the headers as its contents changes with them.
        let kept = |(before, after): (&Section, &Section)| before.contents(data) == after.contents(&longer);
        if headers.sections.iter().zip(&after.sections).all(kept) {
            assert_eq!(predict(&after, &longer), values);
        }
    }
    uki::stub_version(&headers, data).is_some()
}
