//! What firmware and kernel check by themselves: the unified kernel image, which must hold the kernel and the mini-initramfs
//! that lie beside it, and the signatures by X.509 certificates.

use iofs_policy::{
    manifest::{Manifest, RollbackIndex},
    pcr_signature::{self, PcrSignatures},
};

use super::Check;
use crate::{
    pcr_policy,
    pe::Headers,
    roothash,
    sealed::{self, MAX_IMAGE},
    secure_boot,
    uki::Part,
    x509::SigningCertificate,
};

impl Check<'_> {
    /// Who is to have signed. A certificate without its signature is a problem.
    fn certificate(&mut self, name: &'static str, signed: &str) -> Option<SigningCertificate> {
        if !self.directory.has(name) {
            return None;
        }
        if !self.directory.has(signed) {
            self.problem(name, format_args!("expected {signed} beside it, found none"));
        }
        let certificate = SigningCertificate::read(&self.directory.file(name));
        self.note(name, certificate)
    }

    /// The signature that the kernel checks.
    pub(super) fn root_hash_signature(&mut self, manifest: &Manifest) {
        let certificate = self.certificate(sealed::ROOT_HASH_CERTIFICATE, sealed::ROOT_HASH_SIGNATURE);
        if !self.directory.has(sealed::ROOT_HASH_SIGNATURE) {
            return;
        }
        let Some(certificate) = certificate else {
            return self.problem(sealed::ROOT_HASH_SIGNATURE, "expected its certificate beside it, found none");
        };
        let file = self.directory.read(sealed::ROOT_HASH_SIGNATURE, roothash::MAX_SIZE).map_err(|failure| failure.fact);
        if let Some(file) = self.note(sealed::ROOT_HASH_SIGNATURE, file) {
            let verified = roothash::verify(&file, &manifest.verity.root_hash, &certificate);
            self.note(sealed::ROOT_HASH_SIGNATURE, verified);
        }
    }

    /// The unified kernel image: its parts, and who signed it.
    pub(super) fn uki(&mut self, manifest: &Manifest) {
        let certificate = self.certificate(sealed::SECURE_BOOT_CERTIFICATE, sealed::UKI);
        if !self.directory.has(sealed::UKI) {
            return;
        }
        let image = self.directory.read(sealed::UKI, MAX_IMAGE).map_err(|failure| failure.fact);
        let Some(image) = self.note(sealed::UKI, image) else { return };
        let Some(headers) = self.note(sealed::UKI, Headers::parse(&image)) else { return };
        let section = |part: Part| headers.find(part.section()).map(|section| section.contents(&image));
        for (part, twin) in [(Part::Linux, sealed::KERNEL), (Part::Initrd, sealed::INITRAMFS)] {
            let expected = self.directory.read(twin, MAX_IMAGE).ok();
            if section(part) != expected.as_deref() {
                self.problem(sealed::UKI, format_args!("{part}: expected the bytes of {twin}, found others"));
            }
        }
        let line = String::from_utf8_lossy(section(Part::CommandLine).unwrap_or_default()).into_owned();
        if !manifest.command_lines.contains(&line) {
            let expected = manifest.command_lines.join("\" or \"");
            self.problem(sealed::UKI, format_args!("{}: expected \"{expected}\", found {line:?}", Part::CommandLine));
        }
        self.pcr_signature(&image, section(Part::PcrSignature), manifest.image.rollback_index);
        let Some(signers) = self.note(sealed::UKI, secure_boot::signers(&image)) else { return };
        if signers != certificate.iter().cloned().collect::<Vec<_>>() {
            let name = |one: &SigningCertificate| one.name().to_string();
            let expected = certificate.as_ref().map_or("nobody".to_owned(), name);
            let found: Vec<String> = signers.iter().map(name).collect();
            let found = if found.is_empty() { "nobody".to_owned() } else { found.join(", ") };
            self.problem(sealed::UKI, format_args!("signer: expected {expected}, found {found}"));
        }
    }

    /// The signatures for register 11, which the image holds as well.
    fn pcr_signature(&mut self, image: &[u8], embedded: Option<&[u8]>, rollback: RollbackIndex) {
        let beside = self.directory.has(sealed::PCR_SIGNATURE);
        let beside = beside.then(|| self.directory.read(sealed::PCR_SIGNATURE, pcr_signature::MAX_SIZE).ok()).flatten();
        if beside.as_deref() != embedded {
            let name = sealed::PCR_SIGNATURE;
            return self.problem(
                sealed::UKI,
                format_args!("{}: expected the bytes of {name}, found others", Part::PcrSignature),
            );
        }
        let Some(bytes) = beside else { return };
        if let Some(signatures) = self.note(sealed::PCR_SIGNATURE, PcrSignatures::parse(&bytes)) {
            self.note(sealed::PCR_SIGNATURE, pcr_policy::verify_image(image, &signatures, rollback));
        }
    }
}
