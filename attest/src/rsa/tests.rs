use std::collections::BTreeMap;

use iofs_policy::hex;

use super::*;

/// Keys and signatures by OpenSSL: the file says how they were made.
const VECTORS: &str = include_str!("../testdata/rsa.vectors");
const MESSAGE: &[u8] = b"the message";
const BITS: [&str; 3] = ["2047", "2048", "2049"];

fn lines() -> impl Iterator<Item = Vec<&'static str>> {
    VECTORS.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect())
}

/// A key and its private exponent, which only tests have.
fn key(bits: &str) -> (RsaKey, BoxedUint) {
    let line = lines().find(|line| line[..2] == ["key", bits]).unwrap();
    let [modulus, private] = [line[2], line[3]].map(|digits| hex::decode(digits).unwrap());
    (RsaKey::new(&modulus, 65537).unwrap(), BoxedUint::from_be_slice_vartime(&private))
}

/// What the holder of the key makes of a block, whatever is in it.
fn by_private_key((key, private): &(RsaKey, BoxedUint), block: &[u8]) -> Vec<u8> {
    let params = BoxedMontyParams::new_vartime(key.modulus.clone());
    let number = BoxedUint::from_be_slice(block, params.bits_precision()).unwrap();
    assert!(number < *key.modulus.as_ref());
    let bytes = BoxedMontyForm::new(number, &params).pow(private).retrieve().to_be_bytes();
    bytes[bytes.len() - key.size..].to_vec()
}

fn digest(bank: PcrBank) -> PcrDigest {
    PcrDigest::of(bank, &[MESSAGE])
}

fn verify(key: &RsaKey, padding: &str, digest: &PcrDigest, signature: &[u8]) -> Result<(), RsaError> {
    match padding {
        "pkcs1" => key.verify_pkcs1(digest, signature),
        "pss" => key.verify_pss(digest, signature),
        _ => panic!("{padding}"),
    }
}

#[test]
fn signatures_by_openssl_hold_for_their_key_padding_digest_and_message_only() {
    let keys: BTreeMap<_, _> = BITS.map(|bits| (bits, key(bits).0)).into();
    let signatures = lines().filter(|line| line[0] != "key").map(|line| <[&str; 5]>::try_from(line).unwrap());
    let mut count = 0;
    for [bits, padding, bank, salt, signature] in signatures {
        let (bank, signature) = (bank.parse().unwrap(), hex::decode(signature).unwrap());
        verify(&keys[bits], padding, &digest(bank), &signature).unwrap_or_else(|_| panic!("{bits} {padding} {salt}"));
        let refused = |key: &RsaKey, padding, digest: &PcrDigest, signature: &[u8]| {
            assert_eq!(verify(key, padding, digest, signature), Err(RsaError::Signature), "{bits} {padding} {salt}");
        };
        refused(&keys[bits], padding, &PcrDigest::of(bank, &[b"a message"]), &signature);
        let other = if padding == "pss" { "pkcs1" } else { "pss" };
        refused(&keys[bits], other, &digest(bank), &signature);
        for other in PcrBank::ALL.into_iter().filter(|other| *other != bank) {
            refused(&keys[bits], padding, &digest(other), &signature);
        }
        for other in BITS.into_iter().filter(|other| *other != bits) {
            refused(&keys[other], padding, &digest(bank), &signature);
        }
        for size in [0, 1, signature.len() - 1] {
            refused(&keys[bits], padding, &digest(bank), &signature[..size]);
        }
        refused(&keys[bits], padding, &digest(bank), &[&[0], &signature[..]].concat());
        for bit in (0..8 * signature.len()).step_by(37) {
            let mut changed = signature.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            refused(&keys[bits], padding, &digest(bank), &changed);
        }
        count += 1;
    }
    assert_eq!(count, 14);
}

/// The signature plus the modulus is the same number to the arithmetic.
#[test]
fn a_number_that_is_not_below_the_modulus_is_no_signature() {
    let (key, private) = key("2049");
    let block = key.signature_block(&digest(PcrBank::Sha256)).unwrap();
    let signature = by_private_key(&(key.clone(), private), &block);
    key.verify_pkcs1(&digest(PcrBank::Sha256), &signature).unwrap();
    let sum = BoxedUint::from_be_slice_vartime(&signature).wrapping_add(key.modulus.as_ref()).to_be_bytes();
    let sum = &sum[sum.len() - key.size..];
    assert_eq!(key.verify_pkcs1(&digest(PcrBank::Sha256), sum), Err(RsaError::Signature));
}

/// Signed by the right key, and still none: who takes such a block takes forgeries where the exponent is small.
#[test]
fn a_pkcs1_block_that_differs_anywhere_is_refused() {
    let pair = key("2048");
    let digest = digest(PcrBank::Sha256);
    let block = pair.0.signature_block(&digest).unwrap();
    pair.0.verify_pkcs1(&digest, &by_private_key(&pair, &block)).unwrap();
    let info = block[block.len() - 32 - 19..].to_vec();
    let short_padding = [&[0, 1][..], &[0xff; 8], &[0], &info, &vec![0; 256 - 11 - info.len()]].concat();
    let no_parameters = {
        // Without the NULL behind the algorithm.
        let mut info = info.clone();
        info.drain(15..17);
        (info[1], info[3]) = (info[1] - 2, info[3] - 2);
        [&[0, 1][..], &vec![0xff; 256 - 3 - info.len()], &[0], &info].concat()
    };
    let changed = |position: usize, byte| {
        let mut block = block.clone();
        block[position] = byte;
        block
    };
    for block in [short_padding, no_parameters, changed(1, 2), changed(1, 0), changed(2, 0), changed(100, 0xfe)] {
        assert_eq!(pair.0.verify_pkcs1(&digest, &by_private_key(&pair, &block)), Err(RsaError::Signature));
    }
}

/// EMSA-PSS-ENCODE (RFC 8017, section 9.1.1), with a choice of what is at the front of the data block and at the end.
fn pss_block(bits: usize, data: &[u8], salt: &[u8], trailer: u8) -> Vec<u8> {
    let bank = PcrBank::Sha256;
    let hash = PcrDigest::of(bank, &[&[0; 8], digest(bank).as_bytes(), salt]);
    let size = (bits - 1).div_ceil(8);
    let mut block = vec![0; size - 32 - 1 - salt.len() - data.len()];
    block.extend([data, salt].concat());
    mask(bank, hash.as_bytes(), &mut block);
    block[0] &= 0xff >> (8 * size - (bits - 1));
    let before = vec![0; bits.div_ceil(8) - size];
    [&before[..], &block, hash.as_bytes(), &[trailer]].concat()
}

#[test]
fn a_pss_block_that_differs_anywhere_is_refused() {
    for bits in BITS {
        let pair = key(bits);
        let size = bits.parse().unwrap();
        let verify = |block: &[u8]| pair.0.verify_pss(&digest(PcrBank::Sha256), &by_private_key(&pair, block));
        let sound = pss_block(size, &[1], &[7; 20], 0xbc);
        verify(&sound).unwrap();
        verify(&pss_block(size, &[1], &[], 0xbc)).unwrap();
        for block in [
            pss_block(size, &[1], &[7; 20], 0xcc),
            pss_block(size, &[2], &[7; 20], 0xbc),
            pss_block(size, &[1, 0, 1], &[7; 20], 0xbc),
            pss_block(size, &[9, 0, 1], &[7; 20], 0xbc),
            // Zeroes to the end: neither 1 nor salt.
            pss_block(size, &[0], &[], 0xbc),
        ] {
            assert_eq!(verify(&block), Err(RsaError::Signature), "{bits}");
        }
        // The first bit before the block is set, and all else is as it must be.
        let first_bit = BTreeMap::from([("2047", 0x40), ("2048", 0x80), ("2049", 1)])[bits];
        let bent = (0..=u8::MAX).map(|salt| {
            let mut block = pss_block(size, &[1], &[salt; 20], 0xbc);
            block[0] |= first_bit;
            block
        });
        let below = |block: &Vec<u8>| BoxedUint::from_be_slice_vartime(block) < *pair.0.modulus.as_ref();
        assert_eq!(verify(&bent.into_iter().find(below).unwrap()), Err(RsaError::Signature), "{bits}");
    }
}

#[test]
fn what_is_encrypted_is_read_by_the_private_key() {
    for bits in BITS {
        let pair = key(bits);
        for hash in [PcrBank::Sha256, PcrBank::Sha384, PcrBank::Sha512] {
            let encrypted = pair.0.encrypt(hash, b"IDENTITY\0", b"a seed").unwrap();
            assert_ne!(encrypted, pair.0.encrypt(hash, b"IDENTITY\0", b"a seed").unwrap());
            let block = by_private_key(&pair, &encrypted);
            let (seed, data) = block[1..].split_at(hash.digest_size());
            let (mut seed, mut data) = (seed.to_vec(), data.to_vec());
            mask(hash, &data, &mut seed);
            mask(hash, &seed, &mut data);
            let (label, rest) = data.split_at(hash.digest_size());
            assert_eq!((block[0], label), (0, PcrDigest::of(hash, &[b"IDENTITY\0"]).as_bytes()));
            let zeroes = rest.iter().take_while(|byte| **byte == 0).count();
            assert_eq!(&rest[zeroes..], b"\x01a seed");
        }
    }
}

#[test]
fn keys_that_nobody_should_use_are_refused() {
    for (modulus, exponent, bits) in [
        (vec![0xff; 255], 65537, 2040),
        (vec![0xff; 513], 65537, 4104),
        (vec![0xfe; 256], 65537, 2048),
        (vec![0xff; 256], 1, 2048),
        (vec![0xff; 256], 0, 2048),
        (vec![0xff; 256], 65536, 2048),
        (vec![0; 256], 65537, 0),
    ] {
        assert_eq!(RsaKey::new(&modulus, exponent).unwrap_err(), RsaError::Key(bits));
    }
    let key = RsaKey::new(&[&[0; 9], &[0xff; 256][..]].concat(), 3).unwrap();
    let error = key.encrypt(PcrBank::Sha256, b"", &[0; 191]).unwrap_err();
    assert_eq!(error, RsaError::TooLong { most: 190, found: 191 });
}
