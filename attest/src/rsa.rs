//! What a verifier does with RSA (RFC 8017): check signatures by PKCS#1 v1.5 and by PSS, and encrypt a seed by OAEP.
//!
//! All work on public keys alone, so that no secret exponent and no padding oracle is in reach.

use crypto_bigint::{
    BoxedUint, Odd,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use iofs_policy::pcr::{PcrBank, PcrDigest};
use zeroize::Zeroizing;

/// The sizes of moduli that are used, in bytes: 2048 to 4096 bits.
const SIZES: std::ops::RangeInclusive<usize> = 256..=512;

/// Why nothing was computed, or what does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RsaError {
    /// The key is too small, too large, or none.
    #[error("RSA key: expected an odd modulus of 2048 to 4096 bits and an odd exponent above 1, found {0} bits")]
    Key(usize),
    /// The system has no random numbers to give.
    #[error("the system's random numbers: {0}")]
    Random(getrandom::Error),
    /// The message does not fit.
    #[error("RSA-OAEP: expected at most {most} bytes, found {found}")]
    TooLong {
        /// How many bytes fit.
        most: usize,
        /// How many there are.
        found: usize,
    },
    /// The signature is another's.
    #[error("the RSA signature does not verify")]
    Signature,
}

/// A public key.
#[derive(Debug, Clone)]
pub struct RsaKey {
    modulus: Odd<BoxedUint>,
    exponent: u32,
    size: usize,
}

impl RsaKey {
    /// Takes a big-endian modulus and an exponent.
    ///
    /// # Errors
    /// [`RsaError::Key`] for keys that nobody should use.
    pub fn new(modulus: &[u8], exponent: u32) -> Result<Self, RsaError> {
        let modulus = &modulus[modulus.iter().take_while(|byte| **byte == 0).count()..];
        let error = RsaError::Key(modulus.len() * 8);
        if !SIZES.contains(&modulus.len()) || exponent < 3 || exponent.is_multiple_of(2) {
            return Err(error);
        }
        let number = BoxedUint::from_be_slice_vartime(modulus);
        let number = Option::from(Odd::new(number)).ok_or(error)?;
        Ok(Self { modulus: number, exponent, size: modulus.len() })
    }

    /// Verifies a signature by RSASSA-PKCS1-v1_5 over a digest: the whole block that must come out is built and compared.
    ///
    /// # Errors
    /// [`RsaError::Signature`].
    pub fn verify_pkcs1(&self, digest: &PcrDigest, signature: &[u8]) -> Result<(), RsaError> {
        let expected = self.signature_block(digest).ok_or(RsaError::Signature)?;
        if self.block_of(signature)? == expected { Ok(()) } else { Err(RsaError::Signature) }
    }

    /// Verifies a signature by RSASSA-PSS over a digest, whose algorithm masks, too (RFC 8017, sections 8.1.2 and 9.1.2).
    /// TPMs make the salt as long as the digest, or as long as the key lets them (Part 1, annex B.7): any length passes.
    ///
    /// # Errors
    /// [`RsaError::Signature`].
    pub fn verify_pss(&self, digest: &PcrDigest, signature: &[u8]) -> Result<(), RsaError> {
        let block = self.block_of(signature)?;
        // The block is one bit shorter than the modulus.
        let bits = self.modulus.bit_width() as usize - 1;
        let (before, block) = block.split_at(self.size - bits.div_ceil(8));
        let first_bits = 0xff >> (8 * block.len() - bits);
        if before.iter().all(|byte| *byte == 0) && pss_holds(digest, block, first_bits) {
            Ok(())
        } else {
            Err(RsaError::Signature)
        }
    }

    /// What was signed, as long as the modulus.
    fn block_of(&self, signature: &[u8]) -> Result<Vec<u8>, RsaError> {
        let whole = Some(signature).filter(|signature| signature.len() == self.size);
        whole.and_then(|signature| self.power(signature)).ok_or(RsaError::Signature)
    }

    /// EMSA-PKCS1-v1_5 (RFC 8017, section 9.2).
    fn signature_block(&self, digest: &PcrDigest) -> Option<Vec<u8>> {
        let info = [digest_info(digest.bank())?, digest.as_bytes()].concat();
        let padding = self.size.checked_sub(info.len() + 3)?;
        Some([&[0, 1][..], &vec![0xff; padding], &[0], &info].concat())
    }

    /// Encrypts by RSAES-OAEP (RFC 8017, section 7.1.1) with one hash algorithm for all its parts.
    ///
    /// # Errors
    /// [`RsaError::TooLong`], and [`RsaError::Random`].
    pub fn encrypt(&self, hash: PcrBank, label: &[u8], message: &[u8]) -> Result<Vec<u8>, RsaError> {
        let block_size = self.size - 1 - hash.digest_size();
        let most = block_size - hash.digest_size() - 1;
        if message.len() > most {
            return Err(RsaError::TooLong { most, found: message.len() });
        }
        let mut block = Zeroizing::new(PcrDigest::of(hash, &[label]).as_bytes().to_vec());
        block.resize(block_size - message.len() - 1, 0);
        block.push(1);
        block.extend(message);
        let mut seed = Zeroizing::new(vec![0; hash.digest_size()]);
        getrandom::fill(&mut seed).map_err(RsaError::Random)?;
        mask(hash, &seed, &mut block);
        mask(hash, &block, &mut seed);
        let padded = Zeroizing::new([&[0][..], &seed, &block].concat());
        self.power(&padded).ok_or(RsaError::Key(self.size * 8))
    }

    /// The number to the power of the exponent: `None` where it is not below the modulus.
    fn power(&self, number: &[u8]) -> Option<Vec<u8>> {
        let params = BoxedMontyParams::new_vartime(self.modulus.clone());
        let number = BoxedUint::from_be_slice(number, params.bits_precision()).ok()?;
        if number >= *self.modulus.as_ref() {
            return None;
        }
        let bits = u32::BITS - self.exponent.leading_zeros();
        let power =
            BoxedMontyForm::new(number, &params).pow_bounded_exp(&BoxedUint::from(self.exponent), bits).retrieve();
        let bytes = power.to_be_bytes();
        // The precision is a multiple of the machine's words, and the size may not be.
        bytes.get(bytes.len().checked_sub(self.size)?..).map(<[u8]>::to_vec)
    }
}

/// EMSA-PSS-VERIFY (RFC 8017, section 9.1.2): masked zeroes, 1 and salt; then a hash over digest and salt; then 0xbc. Of the
/// first byte only some bits belong to the block.
fn pss_holds(digest: &PcrDigest, block: &[u8], first_bits: u8) -> bool {
    let bank = digest.bank();
    let Some((0xbc, block)) = block.split_last() else { return false };
    let split = block.len().checked_sub(bank.digest_size()).map(|size| block.split_at(size));
    let Some((masked, hash)) = split else { return false };
    let mut data = masked.to_vec();
    mask(bank, hash, &mut data);
    let Some(first) = data.first_mut() else { return false };
    *first &= first_bits;
    let zeroes = data.iter().take_while(|byte| **byte == 0).count();
    let Some((1, salt)) = data[zeroes..].split_first() else { return false };
    masked[0] & !first_bits == 0
        && bank != PcrBank::Sha1
        && PcrDigest::of(bank, &[&[0; 8], digest.as_bytes(), salt]).as_bytes() == hash
}

/// MGF1 (RFC 8017, appendix B.2.1), added to the data.
fn mask(hash: PcrBank, seed: &[u8], data: &mut [u8]) {
    for (counter, chunk) in (0_u32..).zip(data.chunks_mut(hash.digest_size())) {
        let mask = PcrDigest::of(hash, &[seed, &counter.to_be_bytes()]);
        chunk.iter_mut().zip(mask.as_bytes()).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// DER of a DigestInfo up to the digest (RFC 8017, section 9.2, note 1). SHA-1 signs nothing here.
fn digest_info(hash: PcrBank) -> Option<&'static [u8]> {
    match hash {
        PcrBank::Sha1 => None,
        PcrBank::Sha256 => Some(&[0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20]),
        PcrBank::Sha384 => Some(&[0x30, 0x41, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 4, 0x30]),
        PcrBank::Sha512 => Some(&[0x30, 0x51, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 4, 0x40]),
    }
}

#[cfg(test)]
mod tests;
