//! The public areas (TPMT_PUBLIC, Part 2, section 12.2.4) that keys are made from.

use super::KeyKind;

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const EK_ATTRIBUTES: u32 = 0x0003_00b2;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign: what `tpm2_createak` sets, and noDA. There is no
/// password to guess, and wrong ones for other objects must not stop a machine from proving what it is.
pub(super) const AK_ATTRIBUTES: u32 = 0x0005_0472;

/// PolicySecret(TPM_RH_ENDORSEMENT) with SHA-256 (TCG EK Credential Profile, appendix B.3.1, PolicyA).
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// TPM_ALG_SHA256, which all names use.
const SHA256: [u8; 2] = [0, 0x0b];
/// TPM_ALG_AES, 128 bits, TPM_ALG_CFB.
const AES_128_CFB: [u8; 6] = [0, 6, 0, 128, 0, 0x43];
/// TPM_ALG_NULL.
const NULL: [u8; 2] = [0, 0x10];
/// 2048 bits, and the exponent 65537 as 0.
const RSA_2048: [u8; 6] = [8, 0, 0, 0, 0, 0];
/// TPM_ECC_NIST_P256, and no key derivation.
const P256: [u8; 4] = [0, 3, 0, 0x10];

fn type_of(kind: KeyKind) -> [u8; 2] {
    match kind {
        KeyKind::Rsa2048 => [0, 1],
        KeyKind::EccP256 => [0, 0x23],
    }
}

/// Templates L-1 (RSA 2048) and L-2 (ECC NIST P-256) of the TCG EK Credential Profile, appendix B.3: the same inputs give
/// the same key on the same TPM, which is how it fits its certificate.
pub(super) fn endorsement_key(kind: KeyKind) -> Vec<u8> {
    let head = [&type_of(kind)[..], &SHA256, &EK_ATTRIBUTES.to_be_bytes(), &[0, 32], &EK_POLICY, &AES_128_CFB, &NULL];
    let unique_256 = [&[1, 0][..], &[0; 256]].concat();
    let unique_32 = [&[0, 32][..], &[0; 32]].concat();
    let tail = match kind {
        KeyKind::Rsa2048 => [&RSA_2048[..], &unique_256].concat(),
        KeyKind::EccP256 => [&P256[..], &unique_32, &unique_32].concat(),
    };
    [head.concat(), tail].concat()
}

/// What `tpm2_createak` makes with `-g sha256 -s ecdsa` or `-s rsassa`, and noDA.
pub(super) fn attestation_key(kind: KeyKind) -> Vec<u8> {
    let head = [&type_of(kind)[..], &SHA256, &AK_ATTRIBUTES.to_be_bytes(), &[0, 0], &NULL].concat();
    let tail = match kind {
        // TPM_ALG_RSASSA with SHA-256.
        KeyKind::Rsa2048 => [&[0, 0x14, 0, 0x0b][..], &RSA_2048, &[0, 0]].concat(),
        // TPM_ALG_ECDSA with SHA-256.
        KeyKind::EccP256 => [&[0, 0x18, 0, 0x0b][..], &P256, &[0, 0, 0, 0]].concat(),
    };
    [head, tail].concat()
}

/// The storage root key as systemd makes it (TCG TPM v2.0 Provisioning Guidance, section 7.5.1, with an empty `unique`):
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt.
pub(super) fn storage_root_key() -> Vec<u8> {
    let attributes = 0x0003_0472_u32.to_be_bytes();
    [&type_of(KeyKind::EccP256)[..], &SHA256, &attributes, &[0, 0], &AES_128_CFB, &NULL, &P256, &[0; 4]].concat()
}

/// The key that systemd before 253 made anew each time: the same without noDA.
pub(super) fn legacy_parent() -> Vec<u8> {
    const ATTRIBUTES: usize = 4;
    let mut template = storage_root_key();
    // noDA is bit 10 (Part 2, section 8.3).
    template[ATTRIBUTES + 2] &= !0x04;
    template
}

/// Sealed data that this policy alone opens: fixedTPM, fixedParent; noDA where there is no authorization value to guess.
pub(super) fn sealed(policy: &[u8; 32], has_auth_value: bool) -> Vec<u8> {
    const NO_DA: u32 = 1 << 10;
    let attributes: u32 = if has_auth_value { 0x12 } else { 0x12 | NO_DA };
    [&[0, 8][..], &SHA256, &attributes.to_be_bytes(), &[0, 32], policy, &NULL, &[0, 0]].concat()
}
