//! What the tests of `enroll` share: small volumes by cryptsetup, software TPMs, and the look from outside at what was
//! written.
#![allow(dead_code)]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use iofs_luks::{Header, Limits, SlotId, Token, TokenId, Tpm2Token};
use iofs_policy::{
    pcr::{PcrBank, PcrDigest, PcrIndex},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{
    Tpm, pcr,
    pin::pin_auth,
    policy_key::PolicyKey,
    sealed::Sealed,
    srk::PinnedSrk,
    transport::Socket,
    unlock::{Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest, unseal},
};
use serde_json::Value;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::{
    host_common::{SoftwareTpm, require},
    seal_common::{command, passes},
};

pub(crate) const PASSPHRASE: &str = "correct horse";

/// A LUKS2 volume in a file, with the passphrase in the file `pass` beside it.
pub(crate) struct Disk {
    home: TempDir,
}

impl Disk {
    /// A volume whose passphrase costs next to nothing to check.
    pub(crate) fn new() -> Self {
        Self::formatted(&["--type", "luks2"])
    }

    pub(crate) fn formatted(options: &[&str]) -> Self {
        let disk = Self::empty();
        let fast = ["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let files = [disk.text("volume"), disk.text("pass")];
        let arguments: Vec<&str> =
            fast.iter().chain(options).copied().chain(files.iter().map(String::as_str)).collect();
        passes(&cryptsetup(&arguments));
        disk
    }

    pub(crate) fn empty() -> Self {
        let home = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::write(home.path().join("pass"), PASSPHRASE).unwrap();
        File::create(home.path().join("volume")).unwrap().set_len(20 << 20).unwrap();
        Self { home }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    /// One more passphrase, kept in a file of that name, whose path is returned.
    pub(crate) fn add_passphrase(&self, name: &str, passphrase: &[u8]) -> String {
        let file = self.write(name, passphrase);
        let fast = ["luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let files = ["--key-file", &self.text("pass"), &self.text("volume"), &file];
        passes(&cryptsetup(&[&fast[..], &files].concat()));
        file
    }

    /// `enroll` on the volume, which is unlocked by the file `pass`.
    pub(crate) fn command(&self, tcti: &str, arguments: &[&str]) -> Command {
        let mut command = command();
        command.arg("enroll").arg(self.path("volume")).args(arguments).env("TPM2TOOLS_TCTI", tcti);
        if !arguments.contains(&"--unlock-key-file") && !arguments.contains(&"--list") {
            command.arg("--unlock-key-file").arg(self.path("pass"));
        }
        command
    }

    pub(crate) fn enroll(&self, software: &SoftwareTpm, arguments: &[&str]) -> Output {
        self.command(&software.tcti(), arguments).output().unwrap()
    }

    /// Where no TPM is needed there is none.
    pub(crate) fn enroll_without(&self, arguments: &[&str]) -> Output {
        self.command("device:/dev/no-such-tpm", arguments).output().unwrap()
    }

    /// The JSON of a run that must succeed.
    pub(crate) fn enrolled(&self, software: &SoftwareTpm, arguments: &[&str]) -> Value {
        json(&passes(&self.enroll(software, &[arguments, &["--json"]].concat())))
    }

    pub(crate) fn list(&self) -> Value {
        json(&passes(&self.enroll_without(&["--list", "--json"])))
    }

    pub(crate) fn header(&self) -> Header {
        let mut file = File::open(self.path("volume")).unwrap();
        let size = file.metadata().unwrap().len();
        Header::read(&mut file, size).unwrap()
    }

    /// Whether `cryptsetup` opens the volume by the file.
    pub(crate) fn opens_by(&self, file: &str) -> bool {
        let (volume, file) = (self.text("volume"), self.text(file));
        cryptsetup(&["open", "--test-passphrase", "--key-file", &file, &volume]).status.success()
    }

    /// Whether the lean readers open a keyslot.
    pub(crate) fn opens(&self, slot: SlotId, passphrase: &[u8]) -> bool {
        let mut file = File::open(self.path("volume")).unwrap();
        self.header().open(&mut file, slot, passphrase, &Limits::default()).is_ok()
    }

    pub(crate) fn tpm2_tokens(&self) -> Vec<(TokenId, Tpm2Token)> {
        let header = self.header();
        let tokens = header.tokens().filter_map(|(id, token)| match token {
            Token::SystemdTpm2(token) => Some((id, (**token).clone())),
            _ => None,
        });
        tokens.collect()
    }

    /// The tokens that open the volume by the TPM now, as verify-init does it.
    pub(crate) fn opened_by_tpm(&self, software: &SoftwareTpm, pin: Option<&[u8]>) -> Vec<TokenId> {
        let opens = |token: &Tpm2Token| match ask(software, token, pin, &PcrSignatures::default()) {
            Ok(passphrase) => self.opens(token.keyslots[0], &passphrase),
            Err(_) => false,
        };
        self.tpm2_tokens().into_iter().filter(|(_, token)| opens(token)).map(|(id, _)| id).collect()
    }

    /// The kinds of the keyslots, sorted.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let list = self.list();
        let slots = list["keyslots"].as_array().unwrap().iter();
        let mut kinds: Vec<String> = slots.map(|slot| slot["kind"].as_str().unwrap().to_owned()).collect();
        kinds.sort();
        kinds
    }

    pub(crate) fn token_types(&self) -> Vec<String> {
        let list = self.list();
        let tokens = list["tokens"].as_array().unwrap().iter();
        tokens.map(|token| token["type"].as_str().unwrap().to_owned()).collect()
    }
}

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub(crate) fn cryptsetup(arguments: &[&str]) -> Output {
    Command::new(require("cryptsetup", "cryptsetup-bin")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn lean(software: &SoftwareTpm) -> Tpm<Socket> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], software.port()));
    Tpm::new(Socket::tcp(address, Duration::from_secs(60)).unwrap())
}

/// Asks the TPM for a token's passphrase.
pub(crate) fn ask(
    software: &SoftwareTpm,
    token: &Tpm2Token,
    pin: Option<&[u8]>,
    signatures: &PcrSignatures,
) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let srk = token.srk.as_ref().expect("a pinned storage root key");
    let pinned = PinnedSrk::parse(&srk.public[2..]).unwrap();
    let sealed = Sealed::parse(&token.blobs[0]).unwrap();
    let auth = pin.filter(|_| token.pin).map(|pin| pin_auth(pin, token.salt.as_deref()));
    let key = token.signed.as_ref().map(|signed| PolicyKey::from_pem(&signed.public_key_pem).unwrap());
    let bank = token.bank.unwrap_or(PcrBank::Sha256);
    let signed = key.as_ref().zip(token.signed.as_ref()).map(|(key, signed)| SignedPolicy {
        bank,
        registers: signed.pcrs.clone(),
        key,
        signatures,
    });
    let request = UnsealRequest {
        parent: Parent::Pinned { handle: srk.handle, pin: &pinned },
        sealed: &sealed,
        persistent: token.persistent,
        policy: UnsealPolicy {
            signed,
            registers: token.pcrs.iter().map(|pcr| (bank, *pcr)).collect(),
            rollback: token.rollback,
            auth_value: auth.as_ref().map(|auth| auth.as_slice()),
        },
    };
    unseal(&mut lean(software), &request).map(|secret| Tpm2Token::passphrase(&secret))
}

/// Extends a register in all banks.
pub(crate) fn measure(software: &SoftwareTpm, pcr: PcrIndex, bytes: &[u8]) {
    let mut tpm = lean(software);
    let active = pcr::active_banks(&mut tpm).unwrap();
    let digests: Vec<_> = active.banks().map(|bank| PcrDigest::of(bank, &[bytes])).collect();
    pcr::extend(&mut tpm, &active, pcr, &digests).unwrap();
}

/// The handles of what the TPM keeps.
pub(crate) fn kept(software: &SoftwareTpm) -> String {
    software.tool("tpm2_getcap", &["handles-persistent"])
}

/// A file whose bytes are compared later.
pub(crate) fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}
