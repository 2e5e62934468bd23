//! What is signed with X.509 certificates: the root hash for the kernel, and the unified kernel image for Secure Boot.
//!
//! The certificate lies in the sealed directory from the start, and says that its signature is wanted.

use iofs_policy::{
    digest::Sha256Digest,
    manifest::{Manifest, RollbackIndex},
    pcr_signature::{self, PcrSignatures},
};
use iofs_tpm::policy_key::PolicyKey;

use super::finish::{Pending, SigningKeys};
use crate::{
    atomic, authenticode,
    pcr_policy::{self, PolicySigner},
    pe::Headers,
    report::{ExitStatus, Failure},
    roothash,
    sealed::{self, MAX_IMAGE, SealedDirectory},
    secure_boot,
    uki::{self, Part},
    x509::{SigningCertificate, X509Signer},
};

/// A signature that is wanted: the bytes that it covers, and whose it is. No bytes stand for those of register 11: they are
/// many, one for each bank.
pub(super) type Wanted = (Option<Vec<u8>>, Pending);

/// The certificate whose signature a directory waits for.
fn certificate(directory: &SealedDirectory, name: &str) -> Result<Option<SigningCertificate>, Failure> {
    if !directory.has(name) {
        return Ok(None);
    }
    Ok(Some(SigningCertificate::read(&directory.file(name))?))
}

fn required(directory: &SealedDirectory, name: &str) -> Result<SigningCertificate, Failure> {
    let missing = || Failure::new(ExitStatus::BadInput, format!("{}: no {name} in it", directory.path().display()));
    certificate(directory, name)?.ok_or_else(missing)
}

fn signer<'a>(signers: &'a [X509Signer], certificate: &SigningCertificate) -> Option<&'a X509Signer> {
    signers.iter().find(|signer| signer.certificate() == certificate)
}

fn wanted(document: &'static str, certificate: &SigningCertificate, to_sign: Vec<u8>) -> Wanted {
    let (signer, to_sign_sha256) = (certificate.name().clone(), Sha256Digest::of(&to_sign));
    (Some(to_sign), Pending::X509Signature { document, signer, to_sign_sha256 })
}

/// Signs the root hash, where that is wanted; says so where the key is elsewhere.
pub(super) fn sign_root_hash(
    directory: &SealedDirectory,
    manifest: &Manifest,
    signers: &[X509Signer],
) -> Result<Option<Wanted>, Failure> {
    let Some(certificate) = certificate(directory, sealed::ROOT_HASH_CERTIFICATE)? else { return Ok(None) };
    let root_hash = &manifest.verity.root_hash;
    if directory.has(sealed::ROOT_HASH_SIGNATURE) {
        let file = directory.read(sealed::ROOT_HASH_SIGNATURE, roothash::MAX_SIZE)?;
        roothash::verify(&file, root_hash, &certificate)?;
        return Ok(None);
    }
    let Some(signer) = signer(signers, &certificate) else {
        return Ok(Some(wanted(sealed::ROOT_HASH_SIGNATURE, &certificate, roothash::to_sign(root_hash))));
    };
    atomic::write(&directory.file(sealed::ROOT_HASH_SIGNATURE), 0o644, &roothash::sign(root_hash, signer)?)?;
    Ok(None)
}

/// Completes the unified kernel image, where one is wanted, and signs what of it is to be signed; says so where the key is
/// elsewhere.
pub(super) fn write_uki(
    directory: &SealedDirectory,
    manifest: &Manifest,
    keys: &SigningKeys,
) -> Result<Option<Wanted>, Failure> {
    if !directory.has(sealed::UKI_BASE) {
        return Ok(None);
    }
    if let Some(wanted) = sign_registers(directory, manifest.image.rollback_index, &keys.pcr)? {
        return Ok(Some(wanted));
    }
    let unsigned = unsigned_uki(directory)?;
    let path = directory.file(sealed::UKI);
    let Some(certificate) = certificate(directory, sealed::SECURE_BOOT_CERTIFICATE)? else {
        atomic::write(&path, 0o644, &unsigned)?;
        return Ok(None);
    };
    if directory.has(sealed::UKI) {
        let image = directory.read(sealed::UKI, MAX_IMAGE)?;
        let is_signed = secure_boot::signers(&image).map_err(|error| Failure::from(error).about(&path))?;
        if is_signed == [certificate.clone()] && authenticode::digest(&image) == authenticode::digest(&unsigned) {
            return Ok(None);
        }
    }
    let Some(signer) = signer(&keys.x509, &certificate) else {
        return Ok(Some(wanted(sealed::UKI, &certificate, secure_boot::to_sign(&unsigned)?)));
    };
    atomic::write(&path, 0o644, &secure_boot::sign(&unsigned, signer)?)?;
    Ok(None)
}

/// Signs the values of register 11, where the image holds a key for that: by that key, and by the others that are at hand.
fn sign_registers(
    directory: &SealedDirectory,
    rollback: RollbackIndex,
    keys: &[PolicySigner],
) -> Result<Option<Wanted>, Failure> {
    let base = directory.read(sealed::UKI_BASE, MAX_IMAGE)?;
    let headers =
        Headers::parse(&base).map_err(|error| sealed::bad_input(&directory.file(sealed::UKI_BASE), &error))?;
    let Some(section) = headers.find(Part::PcrPublicKey.section()) else { return Ok(None) };
    let public = PolicyKey::from_pem(section.contents(&base));
    let public = public.map_err(|error| sealed::bad_input(&directory.file(sealed::UKI_BASE), &error))?.fingerprint();
    let mut signatures = registers_signed(directory)?;
    let has = |signatures: &PcrSignatures, key| signatures.iter().any(|(_, signature)| signature.key == key);
    let missing = |key: &&PolicySigner| !has(&signatures, key.public().fingerprint());
    let missing: Vec<&PolicySigner> = keys.iter().filter(missing).collect();
    if !missing.is_empty() {
        // Signatures are not measured: those that are there already change nothing.
        let image = unsigned_uki(directory)?;
        for key in missing {
            signatures.merge(pcr_policy::sign_for_stub(&image, key, rollback)?);
        }
        atomic::write(&directory.file(sealed::PCR_SIGNATURE), 0o644, &signatures.to_json())?;
    }
    Ok((!has(&signatures, public)).then_some((None, Pending::PcrSignature { key: public })))
}

fn registers_signed(directory: &SealedDirectory) -> Result<PcrSignatures, Failure> {
    if !directory.has(sealed::PCR_SIGNATURE) {
        return Ok(PcrSignatures::default());
    }
    let bytes = directory.read(sealed::PCR_SIGNATURE, pcr_signature::MAX_SIZE)?;
    PcrSignatures::parse(&bytes).map_err(|error| sealed::bad_input(&directory.file(sealed::PCR_SIGNATURE), &error))
}

/// Adds a signature that was made elsewhere.
pub(super) fn attach(directory: &SealedDirectory, document: &str, signature: &[u8]) -> Result<(), Failure> {
    let bytes = if document == sealed::UKI {
        let certificate = required(directory, sealed::SECURE_BOOT_CERTIFICATE)?;
        secure_boot::attach(&unsigned_uki(directory)?, signature, &certificate)?
    } else {
        let certificate = required(directory, sealed::ROOT_HASH_CERTIFICATE)?;
        let text = directory.read(sealed::ROOT_HASH, 256)?;
        let root_hash = String::from_utf8_lossy(&text).parse();
        let root_hash = root_hash.map_err(|error| sealed::bad_input(&directory.file(sealed::ROOT_HASH), &error))?;
        roothash::assemble(&root_hash, signature, &certificate)?
    };
    atomic::write(&directory.file(document), 0o644, &bytes)
}

/// The image without its Secure Boot signature: from what it was begun with, the kernel, the finished mini-initramfs, and the
/// signatures for register 11 once they are there, which that register does not depend on.
fn unsigned_uki(directory: &SealedDirectory) -> Result<Vec<u8>, Failure> {
    let read = |name| directory.read(name, MAX_IMAGE);
    let (base, kernel, initramfs) = (read(sealed::UKI_BASE)?, read(sealed::KERNEL)?, read(sealed::INITRAMFS)?);
    let signatures = directory.has(sealed::PCR_SIGNATURE).then(|| read(sealed::PCR_SIGNATURE)).transpose()?;
    let mut parts: Vec<(Part, &[u8])> = vec![(Part::Initrd, &initramfs), (Part::Linux, &kernel)];
    parts.extend(signatures.as_deref().map(|signatures| (Part::PcrSignature, signatures)));
    Ok(uki::complete(&base, &parts)?.bytes)
}
