//! A keyslot's area: decrypted, and merged to the key that was split into it.

use aes::{
    Aes128, Aes256, Block,
    cipher::{Block as CipherBlock, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16},
};
use sha2::{Digest, Sha256, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::cipher::Hash;

const SECTOR: usize = 512;
const BLOCK: usize = 16;

/// Decrypts sectors as dm-crypt's `aes-xts-plain64` does, counted from 0 (IEEE 1619). The key is 32 or 64 bytes, the data
/// whole sectors.
pub(crate) fn decrypt(key: &[u8], data: &mut [u8]) {
    match key.len() {
        32 => decrypt_with::<Aes128>(key, data),
        _ => decrypt_with::<Aes256>(key, data),
    }
}

fn decrypt_with<C>(key: &[u8], data: &mut [u8])
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let (data_key, tweak_key) = key.split_at(key.len() / 2);
    // Keys of other sizes were refused with the header.
    let (Ok(cipher), Ok(tweaks)) = (C::new_from_slice(data_key), C::new_from_slice(tweak_key)) else { return };
    for (number, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        let mut tweak = CipherBlock::<C>::from(u128::from(number as u64).to_le_bytes());
        tweaks.encrypt_block(&mut tweak);
        let mut tweak = u128::from_le_bytes(tweak.into());
        for bytes in sector.chunks_exact_mut(BLOCK) {
            decrypt_block(&cipher, tweak, bytes);
            // Multiplication by x in GF(2^128), without a branch on the secret.
            tweak = tweak << 1 ^ ((tweak >> 127) * 0x87);
        }
    }
}

fn decrypt_block<C>(cipher: &C, tweak: u128, bytes: &mut [u8])
where
    C: BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let mask = tweak.to_le_bytes();
    let mut block = Block::default();
    block.iter_mut().zip(bytes.iter()).zip(&mask).for_each(|((to, from), mask)| *to = from ^ mask);
    cipher.decrypt_block(&mut block);
    bytes.iter_mut().zip(&block).zip(&mask).for_each(|((to, from), mask)| *to = from ^ mask);
    block.zeroize();
}

/// Merges what LUKS's anti-forensic splitter made of a key (LUKS1 On-Disk Format Specification, section 2.4). `split` is
/// one stripe of `size` bytes or more after the other.
pub(crate) fn merge(hash: Hash, split: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; size]);
    let mut stripes = split.chunks_exact(size).peekable();
    while let Some(stripe) = stripes.next() {
        key.iter_mut().zip(stripe).for_each(|(to, from)| *to ^= from);
        if stripes.peek().is_some() {
            diffuse(hash, &mut key);
        }
    }
    key
}

/// Each part of a digest's size becomes its own digest, behind its number.
fn diffuse(hash: Hash, key: &mut [u8]) {
    for (number, part) in key.chunks_mut(hash.size()).enumerate() {
        let number = (number as u32).to_be_bytes();
        match hash {
            Hash::Sha256 => replace::<Sha256>(&number, part),
            Hash::Sha512 => replace::<Sha512>(&number, part),
        }
    }
}

fn replace<D: Digest>(number: &[u8], part: &mut [u8]) {
    let mut digest = D::new().chain_update(number).chain_update(&*part).finalize();
    part.iter_mut().zip(&digest).for_each(|(to, from)| *to = *from);
    digest.as_mut_slice().zeroize();
}

#[cfg(test)]
mod tests {
    use iofs_policy::hex;
    use proptest::prelude::*;

    use super::*;

    /// IEEE 1619-2007, annex B, vector 4: the first two blocks of a sector, each of which is decrypted by itself.
    #[test]
    fn decryption_gives_the_standards_example() {
        let key = hex::decode("2718281828459045235360287471352631415926535897932384626433832795").unwrap();
        let start = hex::decode("27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c").unwrap();
        let mut sector = start;
        sector.resize(SECTOR, 0);
        decrypt(&key, &mut sector);
        assert_eq!(sector[..32], (0..32).collect::<Vec<u8>>());
    }

    /// The inverse of [`merge`], by the specification: all stripes but the last one are chosen, here by the caller.
    fn split(hash: Hash, key: &[u8], chosen: &[u8]) -> Vec<u8> {
        let mut sum = vec![0; key.len()];
        for stripe in chosen.chunks_exact(key.len()) {
            sum.iter_mut().zip(stripe).for_each(|(to, from)| *to ^= from);
            diffuse(hash, &mut sum);
        }
        sum.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
        [chosen, &sum].concat()
    }

    proptest! {
        #[test]
        fn what_was_split_is_merged(
            long in any::<bool>(),
            key in prop::collection::vec(any::<u8>(), 1..130),
            stripes in 0..6_usize,
            seed in any::<u8>(),
        ) {
            let hash = if long { Hash::Sha512 } else { Hash::Sha256 };
            let chosen: Vec<u8> = (0..stripes * key.len()).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
            let stripes = split(hash, &key, &chosen);
            prop_assert_eq!(&*merge(hash, &stripes, key.len()), &key);
        }
    }
}
