//! `iofs-sign sign-efi`, and the keys that other verbs sign images with.

use std::path::{Path, PathBuf};

use iofs_policy::digest::Sha256Digest;
use iofs_sign::{
    atomic, attest, authenticode,
    report::{ExitStatus, Failure, Output},
    secure_boot,
    x509::{MAX_SIGNATURE, SignerName, SigningCertificate, X509Signer},
};
use serde::Serialize;

/// PE images have less than 4 GiB.
const MAX_IMAGE: usize = u32::MAX as usize;

/// Who signs for Secure Boot.
#[derive(Debug, clap::Args)]
pub(crate) struct SecureBootKey {
    /// An RSA key that signs for Secure Boot (PEM or DER)
    #[arg(long, value_name = "PRIVATE", requires = "secure_boot_certificate")]
    secure_boot_key: Option<PathBuf>,
    /// Its X.509 certificate (PEM or DER)
    #[arg(long, value_name = "FILE")]
    secure_boot_certificate: Option<PathBuf>,
}

impl SecureBootKey {
    /// Reads what is given.
    pub(crate) fn read(&self, output: Output) -> Result<(Option<SigningCertificate>, Option<X509Signer>), Failure> {
        read_pair(self.secure_boot_key.as_deref(), self.secure_boot_certificate.as_deref(), output)
    }
}

/// Who signs root hashes.
#[derive(Debug, clap::Args)]
pub(crate) struct VerityKey {
    /// An RSA key that signs the root hash for the kernel's own check [default: the one for Secure Boot]
    #[arg(long, value_name = "PRIVATE", requires = "verity_certificate")]
    verity_key: Option<PathBuf>,
    /// Its X.509 certificate [default: the one for Secure Boot]
    #[arg(long, value_name = "FILE")]
    verity_certificate: Option<PathBuf>,
}

impl VerityKey {
    /// Reads what is given.
    pub(crate) fn read(&self, output: Output) -> Result<(Option<SigningCertificate>, Option<X509Signer>), Failure> {
        read_pair(self.verity_key.as_deref(), self.verity_certificate.as_deref(), output)
    }
}

fn read_pair(
    key: Option<&Path>,
    certificate: Option<&Path>,
    output: Output,
) -> Result<(Option<SigningCertificate>, Option<X509Signer>), Failure> {
    let Some(path) = certificate else { return Ok((None, None)) };
    let certificate = SigningCertificate::read(path)?;
    warn_example(&certificate, output);
    let signer = key.map(|key| X509Signer::read(key, path)).transpose()?;
    Ok((Some(certificate), signer))
}

/// Says aloud that everybody has the private half of the example key.
pub(crate) fn warn_example(certificate: &SigningCertificate, output: Output) {
    if certificate.is_example() {
        output.warn(format_args!(
            "{} is published with its key: anybody can sign with it. Use it for tests alone",
            certificate.name()
        ));
    }
}

/// Sign a UEFI program, such as a unified kernel image, for Secure Boot
///
/// Firmware starts it where the certificate is in its signature database (db). The same input gives the same bytes: no time
/// is signed. A key on another machine or in a token signs in two steps: --to-sign writes the bytes that the signature has
/// to cover, and --signature puts it in.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign sign-efi uki.efi --key db.pem --certificate db.crt --out signed.efi
  iofs-sign sign-efi uki.efi --to-sign attributes
  openssl dgst -sha256 -sign db.pem -out signature attributes
  iofs-sign sign-efi uki.efi --certificate db.crt --signature signature --out signed.efi

Exit codes: 1 system, 2 usage, 3 malformed input, 4 the signature does not verify.")]
pub(crate) struct Arguments {
    /// The program, without a signature
    image: PathBuf,
    /// The RSA key that signs (PEM or DER)
    #[arg(long, value_name = "PRIVATE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The signer's X.509 certificate (PEM or DER)
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Write the bytes to be signed: RSASSA-PKCS1-v1_5 with SHA-256
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "signature", "out"], required_unless_present_any = ["key", "signature"])]
    to_sign: Option<PathBuf>,
    /// A signature that was made elsewhere, as raw bytes
    #[arg(long, value_name = "FILE", requires = "certificate", conflicts_with = "key")]
    signature: Option<PathBuf>,
    /// The signed program; it may be the unsigned one's own place
    #[arg(long, value_name = "FILE", required_unless_present = "to_sign")]
    out: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Signed {
    /// What was written.
    out: PathBuf,
    /// SHA-256 by Authenticode: what firmware measures.
    authenticode: Sha256Digest,
    /// SHA-256 of the bytes to be signed.
    to_sign_sha256: Sha256Digest,
    /// Who signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<SignerName>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let image = attest::read(&arguments.image, MAX_IMAGE)?;
    let named = |failure: Failure| failure.about(&arguments.image);
    let to_sign = secure_boot::to_sign(&image).map_err(|error| named(error.into()))?;
    let (out, bytes, signer) = match (&arguments.to_sign, &arguments.out) {
        (Some(out), _) => (out, to_sign.clone(), None),
        (None, Some(out)) => {
            let (bytes, signer) = sign(arguments, &image, output).map_err(named)?;
            (out, bytes, Some(signer))
        }
        (None, None) => return Err(Failure::new(ExitStatus::Usage, "nothing to write: give --out or --to-sign")),
    };
    atomic::write(out, 0o644, &bytes)?;
    let signed = Signed {
        out: out.clone(),
        authenticode: authenticode::digest(&image)
            .map_err(|error| Failure::new(ExitStatus::BadInput, error.to_string()))?,
        to_sign_sha256: Sha256Digest::of(&to_sign),
        signer,
    };
    output.result(&signed, || describe(&signed));
    Ok(())
}

fn sign(arguments: &Arguments, image: &[u8], output: Output) -> Result<(Vec<u8>, SignerName), Failure> {
    let certificate = arguments.certificate.as_deref().unwrap_or(Path::new(""));
    if let Some(key) = &arguments.key {
        let signer = X509Signer::read(key, certificate)?;
        warn_example(signer.certificate(), output);
        return Ok((secure_boot::sign(image, &signer)?, signer.certificate().name().clone()));
    }
    let certificate = SigningCertificate::read(certificate)?;
    warn_example(&certificate, output);
    let signature = attest::read(arguments.signature.as_deref().unwrap_or(Path::new("")), MAX_SIGNATURE)?;
    Ok((secure_boot::attach(image, &signature, &certificate)?, certificate.name().clone()))
}

fn describe(signed: &Signed) -> String {
    let Signed { out, authenticode, to_sign_sha256, signer } = signed;
    let out = out.display();
    match signer {
        Some(signer) => format!("signed:       {out}\nAuthenticode: sha256:{authenticode}\nsigner:       {signer}"),
        None => format!(
            "to sign:      {out}\n              sha256:{to_sign_sha256}\nAuthenticode: sha256:{authenticode}\n next: sign these \
             bytes (RSASSA-PKCS1-v1_5 with SHA-256), then add the signature with --certificate and --signature"
        ),
    }
}
