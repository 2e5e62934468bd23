//! Tokens that the real `systemd-cryptenroll` wrote: those of Debian 12 and 13 as they lie in a header, and live ones of this
//! machine's version, with a software TPM.

mod common;
#[path = "../../tpm/tests/host_common/ports.rs"]
mod ports;

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    CHEAP, PASSPHRASE, Volume,
    edit::{Both, DEBIAN_12, DEBIAN_13},
    run, slot,
};
use iofs_luks::{Header, PrimaryAlg, SignedPcrs, Token, TokenSrk, Tpm2Token};
use iofs_policy::{
    digest::Sha256Digest,
    hex,
    manifest::{RollbackIndex, RollbackRule},
    pcr::{PcrBank, PcrIndex},
};
use ports::Ports;
use proptest::prelude::*;
use tempfile::TempDir;

fn tpm2(header: &Header) -> Vec<&Tpm2Token> {
    let tokens = header.tokens().filter_map(|(_, token)| match token {
        Token::SystemdTpm2(token) => Some(&**token),
        _ => None,
    });
    tokens.collect()
}

fn registers(set: &BTreeSet<PcrIndex>) -> Vec<u8> {
    set.iter().map(|index| index.get()).collect()
}

/// What all of them have in common.
fn check(token: &Tpm2Token, keyslot: u8) {
    assert_eq!(token.keyslots, [slot(keyslot)]);
    assert_eq!((token.blobs.len(), token.policy_hashes.len(), token.policy_hashes[0].len()), (1, 1, 32));
    assert_eq!((token.bank, token.primary_alg), (Some(PcrBank::Sha256), PrimaryAlg::Ecc));
    assert_eq!((token.pcrlock, token.persistent, token.unknown.len()), (false, None, 0));
    // The public area behind the private one: KEYEDHASH, named by SHA-256, with the policy's digest.
    let private = usize::from(u16::from_be_bytes([token.blobs[0][0], token.blobs[0][1]])) + 2;
    let public = &token.blobs[0][private..];
    assert_eq!(public[2..6], [0x00, 0x08, 0x00, 0x0b]);
    assert_eq!(public[12..44], token.policy_hashes[0]);
}

/// The three tokens of `make-fixtures`: literal registers, a PIN, signed registers.
fn check_three(tokens: &[&Tpm2Token]) {
    let [literal, pin, signed] = tokens else { panic!("{} tokens", tokens.len()) };
    tokens.iter().zip(1..).for_each(|(token, keyslot)| check(token, keyslot));
    assert_eq!((registers(&literal.pcrs), literal.pin, &literal.signed), (vec![7, 11], false, &None));
    assert_eq!((registers(&pin.pcrs), pin.pin, &pin.signed), (vec![11], true, &None));
    let policy = signed.signed.as_ref().unwrap();
    assert_eq!((registers(&signed.pcrs), registers(&policy.pcrs), signed.pin), (vec![], vec![11], false));
    assert!(policy.public_key_pem.starts_with(b"-----BEGIN PUBLIC KEY-----\n"));
    assert!(policy.public_key_pem.ends_with(b"-----END PUBLIC KEY-----\n"));
}

#[test]
fn tokens_of_systemd_252_have_neither_storage_root_key_nor_salt() {
    let header = Both::of(DEBIAN_12).read().unwrap();
    let tokens = tpm2(&header);
    check_three(&tokens);
    assert!(tokens.iter().all(|token| token.srk.is_none() && token.salt.is_none()));
}

#[test]
fn tokens_of_systemd_257_pin_the_storage_root_key_and_salt_the_pin() {
    let header = Both::of(DEBIAN_13).read().unwrap();
    let tokens = tpm2(&header);
    check_three(&tokens);
    assert_eq!(tokens[1].salt.as_ref().unwrap().len(), 32);
    assert!(tokens[0].salt.is_none() && tokens[2].salt.is_none());
    for token in tokens {
        let srk = token.srk.as_ref().unwrap();
        assert_eq!((srk.handle, srk.name.len(), &srk.name[..2]), (0x8100_0001, 34, &[0x00, 0x0b][..]));
        // TPM2B_PUBLIC: its size, then an ECC key named by SHA-256.
        assert_eq!(srk.public[..6], [0x00, 0x5a, 0x00, 0x23, 0x00, 0x0b]);
    }
}

#[test]
fn recovery_keys_are_typed_and_secrets_of_a_tpm_are_not() {
    for header in [DEBIAN_12, DEBIAN_13] {
        let header = Both::of(header).read().unwrap();
        let last = header.tokens().last().unwrap().1;
        assert_eq!(last, &Token::Recovery { keyslots: vec![slot(4)] });
        assert_eq!(header.passphrase_slots(), [slot(0), slot(4)]);
    }
}

#[test]
fn a_token_written_anew_is_the_same() {
    for header in [DEBIAN_12, DEBIAN_13] {
        for token in tpm2(&Both::of(header).read().unwrap()) {
            assert_eq!(Token::parse(&token.to_json()), Token::SystemdTpm2(Box::new(token.clone())));
        }
    }
}

/// What is said of the first token of Debian 13's header, after one change.
#[track_caller]
fn says(from: &str, to: &str, expected: &str) {
    let json = Both::of(DEBIAN_13).json();
    let (before, tokens) = json.split_at(json.find(r#""tokens":{"#).unwrap());
    assert!(tokens.contains(from), "{from} is not in {tokens}");
    let header = Both::of(DEBIAN_13).with_area(format!("{before}{}", tokens.replacen(from, to, 1)).as_bytes());
    let header = header.read().unwrap();
    let Token::Broken { why, .. } = header.tokens().next().unwrap().1 else { panic!("the token is not broken") };
    assert_eq!(why.to_string(), format!("tokens.0{expected}"));
    // The others are not stopped by it.
    assert_eq!(tpm2(&header).len(), 2);
    assert!(header.passphrase_slots().contains(&slot(4)));
}

#[test]
fn a_broken_token_says_why_and_stops_no_other() {
    says(r#"{"type":"systemd-tpm2","#, "{", ".type: expected a text, found nothing");
    says(r#""keyslots":["1"]"#, r#""keyslots":"1""#, ".keyslots: expected a list, found \"1\"");
    says(r#""keyslots":["1"]"#, r#""keyslots":[1]"#, ".keyslots.0: expected a text, found 1");
    says(r#""keyslots":["1"]"#, r#""keyslots":[]"#, ".keyslots: expected one or more, found a list of 0");
    says(r#""keyslots":["1"]"#, r#""keyslots":["9"]"#, ".keyslots: expected keyslots that exist, found 9");
    says(r#""tpm2-blob":""#, r#""tpm2-blob":"","x":""#, ".tpm2-blob: expected base64 of 1 to 8192 bytes, found \"\"");
    says(r#""tpm2-blob":""#, r#""tpm2-blob":"=","x":""#, ".tpm2-blob: expected base64, found \"=\"");
    says(
        r#""tpm2-blob":""#,
        r#""tpm2-blob":[],"x":""#,
        ".tpm2-blob: expected a text, or a list of texts, found a list of 0",
    );
    says(r#""tpm2-blob":""#, r#""x":""#, ".tpm2-blob: expected a text, or a list of texts, found nothing");
    let hash = hex::encode(&tpm2(&Both::of(DEBIAN_13).read().unwrap())[0].policy_hashes[0]);
    let expected = format!(".tpm2-policy-hash: expected as many as blobs, 2, found {:?}…", &hash[..60]);
    says(r#""tpm2-blob":""#, r#""tpm2-blob":["AA==","AA=="],"x":""#, &expected);
    says(r#""tpm2-pcrs":[7,11]"#, r#""tpm2-pcrs":[24]"#, ".tpm2-pcrs.0: expected a number from 0 to 23, found 24");
    says(r#""tpm2-pcrs":[7,11]"#, r#""tpm2-pcrs":7"#, ".tpm2-pcrs: expected a list, found 7");
    says(r#""tpm2-pcrs":[7,11],"#, "", ".tpm2-pcrs: expected a list, found nothing");
    says(
        r#""sha256","tpm2-primary"#,
        r#""sm3","tpm2-primary"#,
        ".tpm2-pcr-bank: expected sha1, sha256, sha384 or sha512, found \"sm3\"",
    );
    says(
        r#""tpm2-primary-alg":"ecc""#,
        r#""tpm2-primary-alg":"dsa""#,
        ".tpm2-primary-alg: expected ecc or rsa, found \"dsa\"",
    );
    says(
        r#""tpm2-policy-hash":""#,
        r#""tpm2-policy-hash":"ABC","x":""#,
        ".tpm2-policy-hash: expected 64 lower-case hexadecimal digits, found \"ABC\"",
    );
    says(
        r#""tpm2-pcr-bank""#,
        r#""tpm2-pin":"yes","tpm2-pcr-bank""#,
        ".tpm2-pin: expected true or false, found \"yes\"",
    );
    says(
        r#""tpm2-pcr-bank""#,
        r#""tpm2_salt":"","tpm2-pcr-bank""#,
        ".tpm2_salt: expected base64 of 1 to 8192 bytes, found \"\"",
    );
    says(
        r#""tpm2-pcr-bank""#,
        r#""tpm2_pubkey_pcrs":[11],"tpm2-pcr-bank""#,
        ".tpm2_pubkey: expected the key that signs registers, found nothing",
    );
    says(
        r#""tpm2-pcr-bank""#,
        r#""tpm2_pubkey":"AAAA","tpm2-pcr-bank""#,
        ".tpm2_pubkey_pcrs: expected registers, which the key signs, found nothing",
    );
    says(
        r#""tpm2-pcr-bank""#,
        r#""iofs-handle":1,"tpm2-pcr-bank""#,
        ".iofs-handle: expected a number from 2164260864 to 2181038079, found 1",
    );
    says(
        r#""tpm2_srk":""#,
        r#""tpm2_srk":"AAAA","x":""#,
        ".tpm2_srk: expected base64 of a handle, TPM2B_NAME, 1 and TPM2B_PUBLIC, found \"AAAA\"",
    );
}

#[test]
fn a_storage_root_key_whose_name_is_another_is_refused() {
    let header = Both::of(DEBIAN_13).read().unwrap();
    let mut token = tpm2(&header)[0].clone();
    let good = token.srk.clone().unwrap();
    let mut broken = |srk| {
        token.srk = Some(srk);
        match Token::parse(&token.to_json()) {
            Token::Broken { why, .. } => why.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let mut srk = good.clone();
    *srk.public.last_mut().unwrap() ^= 1;
    let found = hex::encode(&good.name);
    let text = broken(srk);
    assert!(text.starts_with("tpm2_srk: expected the Name of the public key in it, 000b"), "{text}");
    assert!(text.ends_with(&format!(", found {found}")), "{text}");
    let mut srk = good.clone();
    srk.name.truncate(33);
    assert!(broken(srk).starts_with("tpm2_srk: expected the Name of the public key in it"));
    let mut srk = good.clone();
    srk.public.push(0);
    assert!(broken(srk).starts_with("tpm2_srk: expected base64 of a handle"));
    let mut srk = good;
    srk.handle = 0x4000_0001;
    assert!(
        broken(srk).starts_with("tpm2_srk: expected a persistent handle, 0x81000000 to 0x81ffffff, found 0x40000001")
    );
}

#[test]
fn what_later_versions_add_is_passed_over_and_named() {
    let both = Both::of(DEBIAN_13)
        .replace(r#""tpm2-pcrs":[7,11]"#, r#""tpm2-pcrs":[7,11],"tpm2_later":{"a":[1]},"iofs-handle":2164326401"#);
    let header = both.read().unwrap();
    let token = tpm2(&header)[0];
    assert_eq!((token.unknown.as_slice(), token.persistent), (&["tpm2_later".to_owned()][..], Some(0x8101_0001)));
}

#[test]
fn a_policy_of_pcrlock_is_told() {
    for field in [r#""tpm2_pcrlock":true"#, r#""tpm2_pcrlock_nv":"AAAA""#] {
        let both = Both::of(DEBIAN_13).replace(r#""tpm2-pcrs":[7,11]"#, &format!(r#""tpm2-pcrs":[],{field}"#));
        assert!(tpm2(&both.read().unwrap())[0].pcrlock);
    }
}

#[test]
fn secrets_in_parts_are_taken() {
    let both = Both::of(DEBIAN_13).read().unwrap();
    let mut token = tpm2(&both)[0].clone();
    token.blobs = vec![vec![1; 200], vec![2; 200]];
    token.policy_hashes = vec![vec![3; 32], vec![4; 32]];
    assert_eq!(Token::parse(&token.to_json()), Token::SystemdTpm2(Box::new(token)));
}

#[test]
fn a_passphrase_is_the_base64_text_of_the_secret() {
    assert_eq!(Tpm2Token::passphrase(&[0xfb; 32]).as_slice(), b"+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=");
    assert_eq!(Tpm2Token::passphrase(&[0; 64]).len(), 88);
    assert!(Tpm2Token::passphrase(&[]).is_empty());
}

#[test]
fn tokens_of_other_types_keep_their_keyslots() {
    let token = Token::parse(r#"{"type":"clevis","keyslots":["3"],"jwe":{"ciphertext":""}}"#);
    assert_eq!(token, Token::Other { kind: "clevis".to_owned(), keyslots: vec![slot(3)] });
    let Token::Broken { why, .. } = Token::parse("[]") else { panic!("taken") };
    assert_eq!(why.to_string(), "JSON: expected an object, found a list of 0");
    let Token::Broken { why, .. } = Token::parse("[") else { panic!("taken") };
    assert_eq!(why.to_string(), "token: expected JSON, found EOF while parsing a list at line 1 column 1");
}

prop_compose! {
    fn tokens()(
        parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..300), any::<[u8; 32]>()), 1..8),
        slots in prop::collection::btree_set(0_u8..32, 1..5),
        pcrs in prop::collection::btree_set(0_u8..24, 0..24),
        bank in prop::option::of(0..PcrBank::ALL.len()),
        rsa in any::<bool>(),
        pin in any::<bool>(),
        salt in prop::option::of(prop::collection::vec(any::<u8>(), 1..64)),
        signed in prop::option::of((prop::collection::btree_set(0_u8..24, 1..5), prop::collection::vec(any::<u8>(), 1..900))),
        public in prop::option::of((0x8100_0000..=0x81ff_ffff_u32, prop::collection::vec(any::<u8>(), 1..120))),
        persistent in prop::option::of(0x8100_0000..=0x81ff_ffff_u32),
        values in prop::collection::vec(any::<[u8; 32]>(), 0..24),
        rollback in prop::option::of((0x0100_0000_u32..0x0200_0000, any::<u64>(), any::<u64>())),
    ) -> Tpm2Token {
        let registers = |set: BTreeSet<u8>| set.into_iter().map(|index| PcrIndex::new(index).unwrap()).collect();
        let (blobs, policy_hashes) = parts.into_iter().map(|(blob, hash)| (blob, hash.to_vec())).unzip();
        Tpm2Token {
            keyslots: slots.into_iter().map(slot).collect(),
            blobs,
            policy_hashes,
            pcrs: registers(pcrs),
            bank: bank.map(|bank| PcrBank::ALL[bank]),
            primary_alg: if rsa { PrimaryAlg::Rsa } else { PrimaryAlg::Ecc },
            pin,
            salt,
            signed: signed.map(|(pcrs, public_key_pem)| SignedPcrs { pcrs: registers(pcrs), public_key_pem }),
            srk: public.map(|(handle, public)| TokenSrk {
                handle,
                name: [&[0x00, 0x0b], &Sha256Digest::of(&public).as_bytes()[..]].concat(),
                public: [&(public.len() as u16).to_be_bytes()[..], &public].concat(),
            }),
            pcrlock: false,
            persistent,
            pcr_values: values.into_iter().map(|value| value.to_vec()).collect(),
            rollback: rollback.map(|(counter, value, index)| RollbackRule { counter, value, index: RollbackIndex(index) }),
            unknown: Vec::new(),
        }
    }
}

proptest! {
    #[test]
    fn any_token_is_the_same_once_it_was_written(token in tokens()) {
        prop_assert_eq!(Token::parse(&token.to_json()), Token::SystemdTpm2(Box::new(token)));
    }
}

/// A software TPM on TCP, as tools ask for one with `swtpm:host=…,port=…`.
struct Swtpm {
    process: Child,
    ports: Ports,
    _state: TempDir,
}

impl Swtpm {
    fn start() -> Self {
        let state = TempDir::new().unwrap();
        // Other programs may take them meanwhile, so that some are tried.
        for _ in 0..100 {
            let ports = Ports::take();
            let port = ports.first;
            let child = Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
                .arg(format!("dir={}", state.path().display()))
                .args(["--server", &format!("type=tcp,port={port}"), "--ctrl", &format!("type=tcp,port={}", port + 1)])
                .stderr(Stdio::null())
                .spawn();
            let mut process = child.expect("swtpm; 'scripts/install-deps test' installs what the tests need");
            if listens(&mut process, &ports) {
                return Self { process, ports, _state: state };
            }
        }
        panic!("no free pair of ports for swtpm");
    }
}

fn listens(process: &mut Child, ports: &Ports) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline && process.try_wait().unwrap().is_none() {
        if ports.listen() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn enroll(volume: &Volume, options: &[&str]) {
    let tpm = Swtpm::start();
    let mut command = Command::new("systemd-cryptenroll");
    command.envs([("PASSWORD", PASSPHRASE), ("PIN", "1234"), ("NEWPIN", "1234")]);
    run(command
        .arg(format!("--tpm2-device=swtpm:host=127.0.0.1,port={}", tpm.ports.first))
        .args(options)
        .arg(volume.path()));
}

#[test]
fn what_systemd_cryptenroll_writes_now_is_read() {
    let volume = Volume::format(&CHEAP);
    let (private, public) = (volume.file("private.pem"), volume.file("public.pem"));
    run(Command::new("openssl").args(["genrsa", "-out"]).arg(&private).arg("2048"));
    run(Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public));
    enroll(&volume, &["--tpm2-pcrs=7+11"]);
    enroll(&volume, &["--tpm2-pcrs=11", "--tpm2-with-pin=yes"]);
    let key = format!("--tpm2-public-key={}", common::text(&public));
    enroll(&volume, &["--tpm2-pcrs=", &key, "--tpm2-public-key-pcrs=11"]);
    let mut command = Command::new("systemd-cryptenroll");
    let recovery_key = run(command.env("PASSWORD", PASSPHRASE).arg("--recovery-key").arg(volume.path()));
    let header = volume.header().unwrap();
    let tokens = tpm2(&header);
    check_three(&tokens);
    assert_eq!(tokens[2].signed.as_ref().unwrap().public_key_pem, fs::read(public).unwrap());
    assert_eq!(header.passphrase_slots(), [slot(0), slot(4)]);
    // Nobody but its owner has to know that this one is no passphrase.
    let opened = volume.open(4, recovery_key.trim()).unwrap();
    assert_eq!(opened.as_bytes(), volume.volume_key());
}
