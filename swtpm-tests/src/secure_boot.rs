//! Secure Boot with keys of our own: who signs, and the variables of firmware that trusts them.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Result, ensure};
use iofs_policy::{digest::Sha256Digest, hex, pcr::PcrBank, pcr_signature::PcrSignatures};
use iofs_sign::{
    pcr_policy::{self, Phase, PolicySigner},
    seal::{SealRequest, UkiRequest},
    uki::Part,
    x509::X509Signer,
};
use tempfile::TempDir;

use crate::{attester::run, cache, command_line, image::rebuilt, tools};

/// Firmware's variables as Debian's package `ovmf` has them: without keys, in setup mode.
pub(crate) const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// The owner of the keys, as firmware lists them. Nothing depends on it.
const OWNER: &str = "6f1e7d52-3b0c-4f0e-9c57-0d1f6a2b8e43";

/// A private key with its certificate.
#[derive(Debug)]
pub struct Signer {
    key: PathBuf,
    certificate: PathBuf,
    folder: TempDir,
}

impl Signer {
    /// Makes a new one, RSA-2048 as all firmware takes it.
    ///
    /// # Errors
    ///
    /// Where `openssl` is not installed.
    pub fn new(name: &str) -> Result<Self> {
        let openssl = tools::require("openssl", "apt-get install openssl")?;
        let folder = tempfile::tempdir()?;
        let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("certificate.pem"));
        let mut command = Command::new(openssl);
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "3650", "-batch"]);
        command.args(["-subj", &format!("/CN=test {name}/")]).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        run(&mut command)?;
        Ok(Self { key, certificate, folder })
    }

    /// The private key, PEM.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The certificate, PEM.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// The key and its certificate, as `seal` takes them.
    ///
    /// # Errors
    ///
    /// Where they are not what OpenSSL writes.
    pub fn x509(&self) -> Result<X509Signer> {
        Ok(X509Signer::read(&self.key, &self.certificate)?)
    }

    /// The image with this signature, by `sbsign`.
    ///
    /// # Errors
    ///
    /// Where `sbsign` is not installed, or finds no PE image.
    pub fn sign(&self, image: &[u8]) -> Result<Vec<u8>> {
        let sbsign = tools::require("sbsign", "apt-get install sbsigntool")?;
        let unsigned = tempfile::NamedTempFile::new_in(self.folder.path())?;
        let signed = tempfile::NamedTempFile::new_in(self.folder.path())?;
        fs::write(unsigned.path(), image)?;
        let mut command = Command::new(sbsign);
        command.arg("--key").arg(&self.key).arg("--cert").arg(&self.certificate);
        run(command.arg("--output").args([signed.path(), unsigned.path()]))?;
        Ok(fs::read(signed.path())?)
    }
}

/// Firmware's variables with Secure Boot enforced, and the keys in them.
#[derive(Debug)]
pub struct SecureBoot {
    store: PathBuf,
    image_signer: Arc<Signer>,
    _folder: TempDir,
}

impl SecureBoot {
    /// Makes a platform key, a key exchange key and a key for images, and a variable store that trusts these and no others.
    ///
    /// # Errors
    ///
    /// Where a program or the firmware is not installed.
    pub fn new() -> Result<Self> {
        ensure!(Path::new(OVMF_VARIABLES).exists(), "{OVMF_VARIABLES} is missing\n  run: apt-get install ovmf");
        let folder = tempfile::tempdir_in(cache::target_folder("vm-scratch")?)?;
        let store = folder.path().join("variables.fd");
        let [platform, exchange, image_signer] = ["PK", "KEK", "db"].map(Signer::new);
        let (platform, exchange, image_signer) = (platform?, exchange?, image_signer?);
        let mut command = virt_fw_vars()?;
        command.args(["--secure-boot", "--input", OVMF_VARIABLES, "--output"]).arg(&store);
        for (option, signer) in [("--set-pk", &platform), ("--add-kek", &exchange), ("--add-db", &image_signer)] {
            command.args([option, OWNER]).arg(&signer.certificate);
        }
        run(&mut command)?;
        Ok(Self { store, image_signer: Arc::new(image_signer), _folder: folder })
    }

    /// Who signs images that this firmware starts.
    pub fn image_signer(&self) -> &Signer {
        &self.image_signer
    }

    /// The same keys in firmware whose menu has Secure Boot switched off.
    ///
    /// # Errors
    ///
    /// Where `virt-fw-vars` fails.
    pub fn switched_off(&self) -> Result<Self> {
        self.changed(["--set-false", "SecureBootEnable"].map(OsStr::new))
    }

    /// The same keys and one more: the firmware that its owner told to start what this signer signs, too.
    ///
    /// # Errors
    ///
    /// Where `virt-fw-vars` fails.
    pub fn trusting_also(&self, signer: &Signer) -> Result<Self> {
        self.changed([OsStr::new("--add-db"), OsStr::new(OWNER), signer.certificate.as_os_str()])
    }

    /// A copy of the variables that these options of `virt-fw-vars` change.
    fn changed<const N: usize>(&self, options: [&OsStr; N]) -> Result<Self> {
        let folder = tempfile::tempdir_in(cache::target_folder("vm-scratch")?)?;
        let store = folder.path().join("variables.fd");
        let mut command = virt_fw_vars()?;
        command.arg("--input").arg(&self.store).args(options).arg("--output").arg(&store);
        run(&mut command)?;
        Ok(Self { store, image_signer: Arc::clone(&self.image_signer), _folder: folder })
    }

    /// From now on this firmware starts the image of this Authenticode digest, signed or not.
    ///
    /// # Errors
    ///
    /// Where `virt-fw-vars` fails.
    pub fn trust(&self, digest: &Sha256Digest) -> Result<()> {
        self.list("--add-db-hash", digest)
    }

    /// From now on this firmware does not start the image of this Authenticode digest, whoever signed it.
    ///
    /// # Errors
    ///
    /// Where `virt-fw-vars` fails.
    pub fn revoke(&self, digest: &Sha256Digest) -> Result<()> {
        self.list("--add-dbx-hash", digest)
    }

    /// An image by this stub with other signatures for register 11 in it, or with none, signed for firmware once more.
    ///
    /// # Errors
    ///
    /// Where it is no unified kernel image, or the cache lacks the stub.
    pub fn resigned(&self, image: &[u8], stub: &str, signatures: Option<&PcrSignatures>) -> Result<Vec<u8>> {
        let signatures = signatures.map(PcrSignatures::to_json);
        let image = rebuilt(image, stub, |part, before| match part {
            Part::PcrSignature => signatures.clone(),
            _ => before,
        })?;
        self.image_signer().sign(&image)
    }

    fn list(&self, option: &str, digest: &Sha256Digest) -> Result<()> {
        let digest = hex::encode(digest.as_bytes());
        run(virt_fw_vars()?.arg("--inplace").arg(&self.store).args([option, OWNER, &digest])).map(drop)
    }

    /// The variable store.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }
}

/// A key that signs what register 11 will hold.
#[derive(Debug)]
pub struct PcrKey {
    private: PathBuf,
    _folder: TempDir,
}

impl PcrKey {
    /// A new one on P-256, as our documents have it.
    ///
    /// # Errors
    ///
    /// Where `openssl` is not installed.
    pub fn p256() -> Result<Self> {
        Self::new(&["EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    /// A new one for RSA, as systemd's documents have it: its programs take signatures of no other kind.
    ///
    /// # Errors
    ///
    /// As [`PcrKey::p256`].
    pub fn rsa() -> Result<Self> {
        Self::new(&["RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
    }

    fn new(kind: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let private = folder.path().join("pcr.pem");
        let openssl = tools::require("openssl", "apt-get install openssl")?;
        run(Command::new(openssl).args(["genpkey", "-algorithm"]).args(kind).arg("-out").arg(&private))?;
        Ok(Self { private, _folder: folder })
    }

    /// The key, as `seal` takes it.
    ///
    /// # Errors
    ///
    /// Where it is not what OpenSSL writes.
    pub fn signer(&self) -> Result<PolicySigner> {
        Ok(PolicySigner::read(&self.private)?)
    }

    /// Signatures for an image in these phases of its boot.
    ///
    /// # Errors
    ///
    /// Where it is no unified kernel image.
    pub fn sign(&self, image: &[u8], phases: &[&str]) -> Result<PcrSignatures> {
        let phases = phases.iter().map(|phase| Ok(phase.parse::<Phase>()?)).collect::<Result<_>>()?;
        Ok(pcr_policy::sign_image(image, &self.signer()?, &BTreeSet::from([PcrBank::Sha256]), &phases, None)?)
    }
}

/// The image for firmware that `seal` is to make.
#[derive(Debug)]
pub struct FirmwareImage {
    stub: PathBuf,
    signer: X509Signer,
    command_line: String,
    pcr: Vec<PolicySigner>,
}

impl FirmwareImage {
    /// One that firmware with these keys starts, by the stub of a Debian suite, with these words on its command line.
    ///
    /// # Errors
    ///
    /// Where the cache lacks the stub.
    pub fn new(keys: &SecureBoot, suite: &str, words: &str) -> Result<Self> {
        let (stub, signer) = (cache::stub(suite)?, keys.image_signer().x509()?);
        Ok(Self { stub, signer, command_line: command_line(words), pcr: Vec::new() })
    }

    /// The same with signatures for register 11 by this key. The image holds the public half of the first one.
    #[must_use]
    pub fn with_registers(mut self, key: PolicySigner) -> Self {
        self.pcr.push(key);
        self
    }

    /// Asks `seal` for it.
    pub fn ask(self, request: &mut SealRequest) {
        let pcr_public_key = self.pcr.first().map(|key| key.public_pem().to_owned());
        request.uki = Some(UkiRequest { stub: Some(self.stub), pcr_public_key });
        request.certificates.secure_boot = Some(self.signer.certificate().clone());
        request.keys.x509.push(self.signer);
        request.keys.pcr = self.pcr;
        request.config.boot.command_lines = vec![self.command_line];
    }
}

/// Not the program's own script, whose first line names the folder that it was installed in.
fn virt_fw_vars() -> Result<Command> {
    let mut command = Command::new(cache::virt_firmware_python()?);
    command.args(["-m", "virt.firmware.vars"]);
    Ok(command)
}
