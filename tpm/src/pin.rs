//! What a PIN becomes before a TPM is asked: the authorization value of systemd's sealed objects.

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::crypto::{self, Key};

/// Rounds of PBKDF2 (`PBKDF2_HMAC_SHA256_ITERATIONS` of systemd).
const ROUNDS: u32 = 10_000;

/// The authorization value of a PIN: SHA-256 of it, or of its salted form where the token has a salt: the base64 text of
/// PBKDF2-HMAC-SHA256 of PIN and salt, 10000 rounds, 32 bytes.
///
/// Zeros at the end are no part of an authorization value (Part 1, section 19.6.5). They are left in here, and cut where it
/// is used.
pub fn pin_auth(pin: &[u8], salt: Option<&[u8]>) -> Zeroizing<[u8; 32]> {
    let Some(salt) = salt else { return Zeroizing::new(crypto::sha256(&[pin])) };
    let derived = pbkdf2(pin, salt);
    let mut text = Zeroizing::new([0; 44]);
    // 32 bytes are 44 characters.
    let written = STANDARD.encode_slice(derived.as_slice(), &mut *text).unwrap_or_default();
    Zeroizing::new(crypto::sha256(&[&text[..written]]))
}

/// The first block of PBKDF2 (RFC 8018, section 5.2), which is all of it.
fn pbkdf2(pin: &[u8], salt: &[u8]) -> Key {
    let keyed = crypto::keyed(pin);
    let mut round = Zeroizing::new(crypto::finished(&keyed, &[salt, &1_u32.to_be_bytes()]));
    let mut sum = round.clone();
    for _ in 1..ROUNDS {
        *round = crypto::finished(&keyed, &[round.as_slice()]);
        sum.iter_mut().zip(round.iter()).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum
}

#[cfg(test)]
mod tests {
    use iofs_policy::hex;

    use super::*;

    /// `python3 -c` with hashlib: `sha256(b"1234")`, and `sha256(b64encode(pbkdf2_hmac("sha256", b"1234", bytes(range(32)),
    /// 10000, 32)))`.
    #[test]
    fn a_pin_becomes_what_python_computes() {
        let plain = "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4";
        assert_eq!(hex::encode(&pin_auth(b"1234", None)[..]), plain);
        let salt: Vec<u8> = (0..32).collect();
        let salted = "707057c835474da74bcd75b848540fe2bbbf46d9d30a96b148814aecadeddedd";
        assert_eq!(hex::encode(&pin_auth(b"1234", Some(&salt))[..]), salted);
        assert_ne!(hex::encode(&pin_auth(b"1235", Some(&salt))[..]), salted);
    }
}
