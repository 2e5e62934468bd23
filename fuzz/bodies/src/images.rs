//! Images that others made: erofs, kernels.

use iofs_sign::{
    erofs::superblock::{self, Superblock},
    initramfs::kernel::KernelImage,
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
