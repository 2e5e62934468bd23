//! `iofs-sign sign` and `iofs-sign attach`: signing on another machine.

use std::{fs::File, io::Read, path::PathBuf};

use super::secure_boot::{SecureBootKey, VerityKey};
use iofs_sign::{
    keys::{self, PrivateKey},
    pcr_policy::PolicySigner,
    report::{ExitStatus, Failure, Output},
    seal::finish::{self, KeysBefore, Pending, SigningKeys},
    sealed::{SealedDirectory, TO_SIGN},
    x509::MAX_SIGNATURE,
};

/// The size of an ed25519 signature in bytes.
const SIGNATURE_SIZE: usize = 64;

/// Sign a directory that was sealed with --unsigned, or by fewer keys than it needs
///
/// Signs the root hash, then the manifest, then completes the mini-initramfs and the unified kernel image and signs that, then
/// signs the release statement: what was asked for, and as far as the given keys reach. Run it again with further keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  iofs-sign sign sealed --key release.pem")]
pub(crate) struct SignArguments {
    /// The directory that 'iofs-sign seal --unsigned' wrote
    directory: PathBuf,
    /// A private key (PKCS#8 PEM)
    #[arg(long, value_name = "PRIVATE", required_unless_present_any = ["secure_boot_key", "verity_key", "pcr_key"])]
    key: Vec<PathBuf>,
    /// A key that signs the values of register 11 (RSA or P-256, PEM): the one that the directory waits for, or an earlier one,
    /// for volumes that were enrolled with it
    #[arg(long, value_name = "PRIVATE")]
    pcr_key: Vec<PathBuf>,
    #[command(flatten)]
    secure_boot: SecureBootKey,
    #[command(flatten)]
    verity: VerityKey,
}

pub(crate) fn sign(arguments: &SignArguments, output: Output) -> Result<(), Failure> {
    let keys = arguments.key.iter().map(|path| PrivateKey::read(path)).collect::<Result<Vec<_>, _>>()?;
    for key in &keys {
        super::warn_example(key.public().id(), output);
    }
    let x509 = [arguments.secure_boot.read(output)?, arguments.verity.read(output)?].into_iter();
    let pcr = arguments.pcr_key.iter().map(|path| PolicySigner::read(path)).collect::<Result<_, _>>()?;
    let keys = SigningKeys { release: keys, x509: x509.filter_map(|(_, signer)| signer).collect(), pcr };
    let pending = finish::sign(&SealedDirectory::new(&arguments.directory), &keys)?;
    output.result(&pending, || describe(&pending, &arguments.directory.display().to_string()));
    Ok(())
}

/// Add a signature that another machine or a hardware token made
///
/// DIR/to-sign.bin holds the bytes to be signed. Two ed25519 signatures are needed, one after the other: over the manifest, and
/// over the release statement, which speaks of the signed manifest. Where certificates were given, RSA signatures are needed
/// as well: over the root hash, before the manifest, and over the unified kernel image, behind it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, with OpenSSL in the place of the hardware token:
  openssl pkeyutl -sign -rawin -inkey release.pem -in sealed/to-sign.bin -out signature
  iofs-sign attach sealed --key release.pub.pem --signature signature
where it waits for a certificate's signature:
  openssl dgst -sha256 -sign db.pem -out signature sealed/to-sign.bin
  iofs-sign attach sealed --signature signature")]
pub(crate) struct AttachArguments {
    /// The directory that 'iofs-sign seal --unsigned' wrote
    directory: PathBuf,
    /// The public key of the signer (SubjectPublicKeyInfo PEM), unless it is a certificate's
    #[arg(long, value_name = "PUBLIC")]
    key: Option<PathBuf>,
    /// The signature: raw bytes, 64 by ed25519
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
}

pub(crate) fn attach(arguments: &AttachArguments, output: Output) -> Result<(), Failure> {
    let key = arguments.key.as_deref().map(keys::read_public).transpose()?;
    if let Some(key) = &key {
        super::warn_example(key.id(), output);
    }
    let path = &arguments.signature;
    let mut signature = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIGNATURE as u64 + 1).read_to_end(&mut signature))
        .map_err(|error| Failure::io(format_args!("read {}", path.display()), &error))?;
    if key.is_some() && signature.len() != SIGNATURE_SIZE {
        let found = if signature.len() > MAX_SIGNATURE { "more".to_owned() } else { signature.len().to_string() };
        let path = path.display();
        return Err(Failure::new(
            ExitStatus::BadInput,
            format!("signature {path}: expected {SIGNATURE_SIZE} raw bytes, found {found}"),
        )
        .next("decode it first if it is base64 or hexadecimal"));
    }
    let pending = finish::attach(&SealedDirectory::new(&arguments.directory), key.as_ref(), &signature)?;
    output.result(&pending, || describe(&pending, &arguments.directory.display().to_string()));
    Ok(())
}

/// What a directory waits for, as people read it.
pub(crate) fn describe(pending: &Pending, directory: &str) -> String {
    match pending {
        Pending::Nothing => format!("complete:  {directory}\n next: iofs-sign verify {directory} --key PUBLIC"),
        Pending::Signature { document, signed_by, threshold, keys_before, to_sign_sha256 } => format!(
            "waits for: a signature over {document} (has {}{} of {threshold})\nto sign:   {directory}/{TO_SIGN}\n           \
             sha256:{to_sign_sha256}\n next: iofs-sign sign {directory} --key PRIVATE, or sign these bytes elsewhere and \
             iofs-sign attach",
            keys_before.as_ref().map(before).unwrap_or_default(),
            signed_by.len()
        ),
        Pending::PcrSignature { key } => format!(
            "waits for: signatures for register 11 by key {key}\n next: iofs-sign sign {directory} --pcr-key PRIVATE"
        ),
        Pending::X509Signature { document, signer, to_sign_sha256 } => format!(
            "waits for: a signature for {document} by {signer}\nto sign:   {directory}/{TO_SIGN}\n           \
             sha256:{to_sign_sha256}\n next: iofs-sign sign {directory} with the certificate and its key, or sign these bytes \
             elsewhere (RSASSA-PKCS1-v1_5 with SHA-256) and iofs-sign attach"
        ),
    }
}

/// Where a manifest moves the keys, the signatures of those before come first.
fn before(keys: &KeysBefore) -> String {
    format!("{} of {} of the keys before, and of the next ones ", keys.signed_by.len(), keys.threshold)
}
