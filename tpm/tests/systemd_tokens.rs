//! Tokens that the real `systemd-cryptenroll` wrote are unsealed: those of Debian 13's release in `data`, with the state of the
//! TPM that they were written with, and live ones of this machine's (252 on Debian 12, which keeps no storage root key).

mod host_common;
mod unlock_common;

use std::{env, fs, path::PathBuf, process::Command};

use host_common::SoftwareTpm;
use iofs_luks::{PrimaryAlg, Token, Tpm2Token};
use iofs_policy::{
    pcr::{PcrBank, PcrDigest},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{
    PinnedSrk,
    name::Public,
    pin::pin_auth,
    policy_key::PolicyKey,
    sealed::Sealed,
    srk::LegacyParent,
    unlock::{Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest},
};
use unlock_common::{counted, lean};
use zeroize::Zeroizing;

fn data(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

/// What a token says, in the client's terms.
struct Read {
    sealed: Sealed,
    pin: Option<(u32, PinnedSrk)>,
    key: Option<PolicyKey>,
    token: Tpm2Token,
}

impl Read {
    fn new(text: &str) -> Self {
        let token = match Token::parse(text) {
            Token::SystemdTpm2(token) => *token,
            other => panic!("{other:?}"),
        };
        let sealed = Sealed::parse(&token.blobs[0]).unwrap();
        assert_eq!(sealed.public().policy(), token.policy_hashes[0]);
        let pin = token.srk.as_ref().map(|srk| {
            let public = Public::parse_sized(&srk.public).unwrap();
            assert_eq!(public.name().as_bytes(), srk.name);
            (srk.handle, PinnedSrk::new(public).unwrap())
        });
        let key = token.signed.as_ref().map(|signed| PolicyKey::from_pem(&signed.public_key_pem).unwrap());
        Self { sealed, pin, key, token }
    }

    fn auth_value(&self, pin: &str) -> Option<Zeroizing<[u8; 32]>> {
        self.token.pin.then(|| pin_auth(pin.as_bytes(), self.token.salt.as_deref()))
    }

    fn request<'a>(&'a self, auth_value: Option<&'a [u8]>, signatures: &'a PcrSignatures) -> UnsealRequest<'a> {
        let bank = self.token.bank.unwrap();
        let parent = match (&self.pin, self.token.primary_alg) {
            (Some((handle, pin)), _) => Parent::Pinned { handle: *handle, pin },
            (None, PrimaryAlg::Ecc) => Parent::Legacy { kind: LegacyParent::Ecc, salt: None },
            (None, PrimaryAlg::Rsa) => Parent::Legacy { kind: LegacyParent::Rsa, salt: None },
        };
        let signed = self.token.signed.as_ref().zip(self.key.as_ref());
        let signed = signed.map(|(signed, key)| SignedPolicy { bank, registers: signed.pcrs.clone(), key, signatures });
        let registers = self.token.pcrs.iter().map(|index| (bank, *index)).collect();
        let policy = UnsealPolicy { signed, registers, auth_value, rollback: None };
        UnsealRequest { parent, sealed: &self.sealed, persistent: None, policy }
    }

    /// The keyslot's passphrase, and how many commands that took.
    fn passphrase(
        &self,
        software: &SoftwareTpm,
        pin: &str,
        signatures: &PcrSignatures,
    ) -> (Result<String, UnsealError>, usize) {
        let auth_value = self.auth_value(pin);
        let auth_value = auth_value.as_ref().map(|value| &value[..]);
        let (secret, commands) = counted(software, &self.request(auth_value, signatures));
        let text = |secret: Zeroizing<Vec<u8>>| String::from_utf8(Tpm2Token::passphrase(&secret).to_vec()).unwrap();
        (secret.map(text), commands.len())
    }
}

/// A TPM with the state that belongs to the fixtures.
fn debian_13() -> (SoftwareTpm, Vec<Read>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tpm2-00.permall"), data("debian-13.state")).unwrap();
    let tokens: serde_json::Value = serde_json::from_slice(&data("debian-13.tokens.json")).unwrap();
    let tokens = (0..5).map(|number| Read::new(&tokens[number.to_string()].to_string())).collect();
    let passphrases = String::from_utf8(data("debian-13.passphrases")).unwrap();
    (SoftwareTpm::on(folder), tokens, passphrases.lines().map(str::to_owned).collect())
}

fn signatures() -> PcrSignatures {
    PcrSignatures::parse(&data("debian-13.signature.json")).unwrap()
}

/// What the stub and systemd's phases make of register 11 for the fixtures' signatures.
fn enter_initrd(software: &SoftwareTpm) {
    for event in [&b".linux\0"[..], b"linux", b"enter-initrd"] {
        software.extend(11, PcrDigest::of(PcrBank::Sha256, &[event]).as_bytes());
    }
}

#[test]
fn tokens_of_systemd_257_are_unsealed() {
    let (software, tokens, passphrases) = debian_13();
    let none = PcrSignatures::default();
    // Before an object that counts towards the lockout is used for the first time, the TPM writes that down, and asks for
    // the command again (TPM_RC_RETRY).
    for (number, commands) in [(0, 5), (1, 7), (1, 6)] {
        let (found, count) = tokens[number].passphrase(&software, "1234", &none);
        assert_eq!((found.unwrap(), count), (passphrases[number].clone(), commands), "token {number}");
    }
    enter_initrd(&software);
    // Four for a signed policy, and one more to choose among its four signatures, one a phase. Literal
    // registers beside signed ones take a command of their own.
    for (number, commands) in [(2, 5 + 4 + 1), (3, 6 + 4 + 1 + 1)] {
        let (found, count) = tokens[number].passphrase(&software, "1234", &signatures());
        assert_eq!((found.unwrap(), count), (passphrases[number].clone(), commands), "token {number}");
    }
    let error = tokens[0].passphrase(&software, "", &none).0.unwrap_err();
    assert!(matches!(error, UnsealError::RegistersChanged { .. }), "{error}");
}

#[test]
fn an_object_that_systemd_made_without_the_tpm_is_imported() {
    let (software, tokens, passphrases) = debian_13();
    let (found, count) = tokens[4].passphrase(&software, "", &PcrSignatures::default());
    assert_eq!((found.unwrap(), count), (passphrases[4].clone(), 6));
}

#[test]
fn signatures_for_other_phases_do_not_open() {
    let (software, tokens, _) = debian_13();
    let error = tokens[2].passphrase(&software, "", &signatures()).0.unwrap_err();
    let UnsealError::NoSignature { found: 4, current: Some(current), .. } = &error else { panic!("{error}") };
    assert_eq!(current.get(PcrBank::Sha256, unlock_common::index(11)), Some(PcrDigest::zero(PcrBank::Sha256)));
    let key = PolicyKey::from_pem(&data("debian-13.pem")).unwrap().fingerprint();
    let text = format!("expected a signature by key {key} for what registers sha256:11 hold, found 4 for other values");
    assert!(error.to_string().contains(&text), "{error}");
    // Alone it is not compared beforehand.
    let registers = unlock_common::indices(&[11]);
    let all = signatures();
    let mut one = PcrSignatures::default();
    one.insert(PcrBank::Sha256, all.find(PcrBank::Sha256, &registers, key).next().unwrap().clone());
    let error = tokens[2].passphrase(&software, "", &one).0.unwrap_err();
    assert!(matches!(error, UnsealError::NoSignature { found: 1, .. }), "{error}");
    let error = tokens[2].passphrase(&software, "", &PcrSignatures::default()).0.unwrap_err();
    assert!(matches!(error, UnsealError::NoSignature { found: 0, .. }), "{error}");
}

#[test]
fn a_signature_that_was_changed_does_not_open() {
    let (software, tokens, _) = debian_13();
    enter_initrd(&software);
    let mut changed = PcrSignatures::default();
    for (bank, signature) in signatures().iter() {
        let mut signature = signature.clone();
        signature.signature[100] ^= 1;
        changed.insert(bank, signature);
    }
    let error = tokens[2].passphrase(&software, "", &changed).0.unwrap_err();
    assert!(matches!(error, UnsealError::BadSignature { .. }), "{error}");
    let mut short = PcrSignatures::default();
    for (bank, signature) in signatures().iter() {
        let mut signature = signature.clone();
        signature.signature.pop();
        short.insert(bank, signature);
    }
    let error = tokens[2].passphrase(&software, "", &short).0.unwrap_err();
    assert!(matches!(error, UnsealError::BadSignature { .. }), "{error}");
}

#[test]
fn lockout_wrong_pins_lock_the_tpm_and_what_has_no_pin_still_opens() {
    let (software, tokens, passphrases) = debian_13();
    software.tool("tpm2_dictionarylockout", &["--setup-parameters", "-n", "3", "-t", "1000", "-l", "1000"]);
    let none = PcrSignatures::default();
    for _ in 0..3 {
        let error = tokens[1].passphrase(&software, "1235", &none).0.unwrap_err();
        assert!(matches!(error, UnsealError::WrongAuth { counted: true }), "{error}");
        assert_eq!(error.to_string(), "wrong PIN, which the TPM counts towards its lockout");
    }
    let error = tokens[1].passphrase(&software, "1234", &none).0.unwrap_err();
    assert!(matches!(error, UnsealError::Lockout), "{error}");
    assert!(error.to_string().contains("a passphrase or recovery key opens the volume meanwhile"), "{error}");
    // Without a PIN, whether noDA (0) or not (4: made without the TPM, by systemd 257).
    for number in [0, 4] {
        assert_eq!(tokens[number].passphrase(&software, "", &none).0.unwrap(), passphrases[number]);
    }
    software.tool("tpm2_dictionarylockout", &["--clear-lockout"]);
    assert_eq!(tokens[1].passphrase(&software, "1234", &none).0.unwrap(), passphrases[1]);
}

/// A volume on a file, and this machine's systemd-cryptenroll on it.
struct Volume<'s>(&'s SoftwareTpm);

impl<'s> Volume<'s> {
    fn new(software: &'s SoftwareTpm) -> Self {
        software.write("passphrase", b"correct horse");
        fs::File::create(software.path("volume")).unwrap().set_len(20 << 20).unwrap();
        let volume = Self(software);
        volume.cryptsetup("luksFormat", &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"], "passphrase");
        volume
    }

    fn cryptsetup(&self, verb: &str, options: &[&str], key: &str) -> String {
        let mut command = Command::new(host_common::require("cryptsetup", "cryptsetup-bin"));
        command.args([verb, "--batch-mode", "--type", "luks2", "--key-file"]).arg(self.0.path(key)).args(options);
        run(command.arg(self.0.path("volume")))
    }

    /// Enrols, and returns the token, which is the first one.
    fn enroll(&self, options: &[&str]) -> Read {
        let mut command = Command::new(host_common::require("systemd-cryptenroll", "systemd"));
        command.arg(format!("--tpm2-device={}", self.0.tcti())).args(options).arg(self.0.path("volume"));
        run(command.env("PASSWORD", "correct horse").env("NEWPIN", "1234"));
        // This version leaves its sessions in the TPM, and there is no resource manager that would remove them.
        self.0.flush_sessions();
        let mut command = Command::new("cryptsetup");
        command.args(["token", "export", "--token-id", "0"]).arg(self.0.path("volume"));
        Read::new(&run(&mut command))
    }

    /// The real cryptsetup takes the passphrase for the token's keyslot.
    fn assert_opens(&self, passphrase: &str) {
        self.0.write("unsealed", passphrase.as_bytes());
        self.cryptsetup("open", &["--test-passphrase", "--key-slot", "1"], "unsealed");
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn registers_that_this_machines_systemd_enrolled_open() {
    let software = SoftwareTpm::started();
    let volume = Volume::new(&software);
    software.extend(7, &[7; 32]);
    let read = volume.enroll(&["--tpm2-pcrs=7+11"]);
    let (found, count) = read.passphrase(&software, "", &PcrSignatures::default());
    volume.assert_opens(&found.unwrap());
    if read.pin.is_none() {
        assert_eq!(count, 7, "the key above it is made first");
    }
    software.extend(11, &[7; 32]);
    let error = read.passphrase(&software, "", &PcrSignatures::default()).0.unwrap_err();
    assert!(matches!(error, UnsealError::RegistersChanged { .. }), "{error}");
}

#[test]
fn a_pin_that_this_machines_systemd_enrolled_opens() {
    let software = SoftwareTpm::started();
    let volume = Volume::new(&software);
    let read = volume.enroll(&["--tpm2-pcrs=7", "--tpm2-with-pin=yes"]);
    let error = read.passphrase(&software, "1235", &PcrSignatures::default()).0.unwrap_err();
    assert!(matches!(error, UnsealError::WrongAuth { .. }), "{error}");
    let (found, count) = read.passphrase(&software, "1234", &PcrSignatures::default());
    volume.assert_opens(&found.unwrap());
    if read.pin.is_none() {
        assert_eq!(count, 8, "the wrong one made the TPM write down that there are guesses");
    }
}

#[test]
fn a_policy_that_this_machines_systemd_measure_signed_opens() {
    let software = SoftwareTpm::started();
    let volume = Volume::new(&software);
    software.write("linux", b"linux");
    let at = |name: &str| software.text(name);
    run(Command::new("openssl").args(["genrsa", "-out", &at("key.pem"), "2048"]));
    run(Command::new("openssl").args(["rsa", "-in", &at("key.pem"), "-pubout", "-out", &at("signer.pem")]));
    let mut command = Command::new("/lib/systemd/systemd-measure");
    command.args(["sign", "--bank=sha256", "--bank=sha1", "--phase=enter-initrd", "--phase=enter-initrd:leave-initrd"]);
    command.arg(format!("--linux={}", at("linux"))).arg(format!("--private-key={}", at("key.pem")));
    command.arg(format!("--public-key={}", at("signer.pem")));
    let json = run(command.arg(format!("--tpm2-device={}", software.tcti())));
    software.flush_sessions();
    let signatures = PcrSignatures::parse(json.as_bytes()).unwrap();
    let key = format!("--tpm2-public-key={}", at("signer.pem"));
    let read = volume.enroll(&["--tpm2-pcrs=7", &key, "--tpm2-public-key-pcrs=11"]);
    let error = read.passphrase(&software, "", &signatures).0.unwrap_err();
    assert!(matches!(error, UnsealError::NoSignature { found: 2, .. }), "{error}");
    enter_initrd(&software);
    volume.assert_opens(&read.passphrase(&software, "", &signatures).0.unwrap());
    software.extend(11, &[7; 32]);
    let error = read.passphrase(&software, "", &signatures).0.unwrap_err();
    assert!(matches!(error, UnsealError::NoSignature { .. }), "{error}");
}

/// Of systemd 251 and before, on a TPM without P-256.
#[test]
fn an_object_under_an_rsa_key_that_is_made_anew_opens() {
    let software = SoftwareTpm::started();
    software.write("secret", b"secret");
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt";
    software.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "rsa2048", "-a", attributes, "-c", "parent.ctx"]);
    software.tool("tpm2_createpolicy", &["-Q", "--policy-pcr", "-l", "sha256:7", "-L", "policy"]);
    software.flush_sessions();
    let arguments = ["-Q", "-C", "parent.ctx", "-i", "secret", "-L", "policy", "-u", "seal.pub", "-r", "seal.priv"];
    software.tool("tpm2_create", &[&arguments[..], &["-a", "fixedtpm|fixedparent"]].concat());
    let sealed = Sealed::parse(&[software.read("seal.priv"), software.read("seal.pub")].concat()).unwrap();
    let policy = UnsealPolicy { registers: unlock_common::sha256(&[7]), ..UnsealPolicy::default() };
    let kind = LegacyParent::Rsa;
    let unpinned = Parent::Legacy { kind, salt: None };
    let request = UnsealRequest { parent: unpinned, sealed: &sealed, persistent: None, policy };
    let (secret, commands) = counted(&software, &request);
    // A key on P-256 is made beside it, and flushed.
    assert_eq!((secret.unwrap().as_slice(), commands.len()), (&b"secret"[..], 9));
    // With a key that is known from elsewhere: it is made where it is not there.
    let pin = PinnedSrk::new(iofs_tpm::srk::standard_srk(&mut lean(&software)).unwrap()).unwrap();
    let request = UnsealRequest { parent: Parent::Legacy { kind, salt: Some(&pin) }, ..request };
    assert_eq!(counted(&software, &request).0.unwrap().as_slice(), b"secret");
    let attributes = format!("{attributes}|noda");
    software.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-a", &attributes, "-c", "srk.ctx"]);
    software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "srk.ctx", "0x81000001"]);
    let (secret, commands) = counted(&software, &request);
    assert_eq!((secret.unwrap().as_slice(), commands.len()), (&b"secret"[..], 7));
}
