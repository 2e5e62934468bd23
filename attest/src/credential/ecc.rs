//! A seed by ephemeral Diffie-Hellman (TPM 2.0 Library, Part 1, section C.6.1).

use iofs_policy::pcr::PcrBank;
use zeroize::Zeroizing;

use super::{CredentialError, IDENTITY, kdf_e};
use crate::bytes::sized;

macro_rules! share {
    ($name:ident, $curve:ident, $size:literal) => {
        /// A seed, and the ephemeral point (TPMS_ECC_POINT) from which the owner of `point` derives it.
        pub(super) fn $name(hash: PcrBank, point: &[u8]) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), CredentialError> {
            use $curve::{PublicKey, SecretKey, elliptic_curve::sec1::ToSec1Point};

            let theirs = PublicKey::from_sec1_bytes(point).map_err(|_| CredentialError::Point)?;
            let ephemeral = loop {
                let mut bytes = Zeroizing::new([0; $size]);
                getrandom::fill(bytes.as_mut()).map_err(CredentialError::Random)?;
                // Zero and what is not below the curve's order: about never.
                if let Ok(key) = SecretKey::from_slice(bytes.as_ref()) {
                    break key;
                }
            };
            let shared =
                $curve::elliptic_curve::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), theirs.as_affine());
            let ours = ephemeral.public_key().to_sec1_point(false);
            let (x, y) = ours.as_bytes()[1..].split_at($size);
            let seed = kdf_e(hash, shared.raw_secret_bytes(), IDENTITY, x, &point[1..=$size]);
            Ok((seed, [sized(x), sized(y)].concat()))
        }
    };
}

share!(share_p256, p256, 32);
share!(share_p384, p384, 48);
