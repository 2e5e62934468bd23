//! Against a real software TPM, with tpm2-tools as the second opinion.

mod common;

use std::{
    collections::BTreeSet,
    net::TcpListener,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use iofs_policy::{
    hex,
    pcr::{self, PcrBank, PcrDigest, PcrIndex},
};
use iofs_tpm::{
    CommandError, Tpm,
    pcr::{BanksError, ExtendError, Judgement, active_banks, event, extend, judge, read},
    response::ResponseCode,
    transport::{Socket, Transport, TransportError},
};

use common::{PATIENCE, SoftwareTpm, index, require};

fn predict(value: &PcrDigest, digest: &PcrDigest) -> PcrDigest {
    let by_hand = PcrDigest::of(value.bank(), &[value.as_bytes(), digest.as_bytes()]);
    if value.bank() != PcrBank::Sha1 {
        assert_eq!(pcr::extend(value, digest), Ok(by_hand));
    }
    by_hand
}

fn all_registers(banks: &[PcrBank]) -> BTreeSet<(PcrBank, PcrIndex)> {
    banks.iter().flat_map(|bank| PcrIndex::all().map(|index| (*bank, index))).collect()
}

/// What registers hold after a start: PC Client Platform TPM Profile, section 4.6.
fn at_start(bank: PcrBank, index: PcrIndex) -> PcrDigest {
    let byte = if (17..=22).contains(&index.get()) { 0xff } else { 0 };
    PcrDigest::new(bank, &vec![byte; bank.digest_size()]).unwrap()
}

/// `tpm2_pcrread` of one register.
fn tpm2_pcrread(data: &Path, bank: PcrBank, index: PcrIndex) -> String {
    let tcti = format!("swtpm:path={}", data.display());
    let output = Command::new(require("tpm2_pcrread", "tpm2-tools"))
        .args(["--tcti", &tcti, &format!("{bank}:{index}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let value = text.split_once("0x").unwrap_or_else(|| panic!("no value in {text:?}")).1;
    value.trim().to_lowercase()
}

#[test]
fn an_extended_register_has_the_predicted_value_in_all_banks() {
    let mut software = SoftwareTpm::started();
    let mut tpm = software.connect();
    let active = active_banks(&mut tpm).unwrap();
    let banks: Vec<PcrBank> = active.banks().collect();
    assert_eq!(banks, PcrBank::ALL, "swtpm starts with all of them");
    assert!(banks.iter().all(|bank| active.registers(*bank).eq(PcrIndex::all())));
    assert!(active.unknown().is_empty());

    let mut expected: Vec<PcrDigest> = banks.iter().map(|bank| PcrDigest::zero(*bank)).collect();
    for event in [&b"one"[..], b"", b"three"] {
        let digests: Vec<PcrDigest> = banks.iter().map(|bank| PcrDigest::of(*bank, &[event])).collect();
        extend(&mut tpm, &active, index(13), &digests).unwrap();
        expected = expected.iter().zip(&digests).map(|(value, digest)| predict(value, digest)).collect();
    }

    let values = read(&mut tpm, &all_registers(&banks)).unwrap();
    for (index, found) in values.iter() {
        let position = banks.iter().position(|bank| *bank == found.bank()).unwrap();
        let expected = if index.get() == 13 { expected[position] } else { at_start(found.bank(), index) };
        assert_eq!(found, expected, "register {index}");
    }
    assert_eq!(values.iter().count(), 4 * 24);

    drop(tpm);
    for digest in &expected {
        assert_eq!(tpm2_pcrread(&software.data(), digest.bank(), index(13)), hex::encode(digest.as_bytes()));
    }
}

#[test]
fn an_event_is_hashed_by_the_tpm_as_it_is_here() {
    let mut software = SoftwareTpm::started();
    let mut tpm = software.connect();
    let active = active_banks(&mut tpm).unwrap();
    for data in [&b"event"[..], &[7; 1024]] {
        let before = read(&mut tpm, &all_registers(&PcrBank::ALL)).unwrap();
        let digests = PcrBank::ALL.map(|bank| PcrDigest::of(bank, &[data]));
        event(&mut tpm, &active, index(12), data, &digests).unwrap();
        let after = read(&mut tpm, &all_registers(&PcrBank::ALL)).unwrap();
        assert_eq!(judge(&before, &after, index(12), &digests), Judgement::Extended);
    }
    let error = event(&mut tpm, &active, index(12), b"event", &PcrBank::ALL.map(PcrDigest::zero)).unwrap_err();
    assert!(matches!(error, ExtendError::Digest { .. }), "{error}");
}

#[test]
fn values_and_their_counter_hold_until_the_next_extend() {
    let mut software = SoftwareTpm::started();
    let mut tpm = software.connect();
    let active = active_banks(&mut tpm).unwrap();
    let all = all_registers(&PcrBank::ALL);
    let before = read(&mut tpm, &all).unwrap();
    assert_eq!(read(&mut tpm, &all).unwrap(), before);
    let digests = PcrBank::ALL.map(|bank| PcrDigest::of(bank, &[b"event"]));
    extend(&mut tpm, &active, index(11), &digests).unwrap();
    let after = read(&mut tpm, &all).unwrap();
    assert_ne!(after.update_counter(), before.update_counter());
    let changed: Vec<PcrIndex> = before.iter().zip(after.iter()).filter(|(a, b)| a != b).map(|(a, _)| a.0).collect();
    assert_eq!(changed, [index(11); 4]);
}

#[test]
fn a_register_that_locality_0_may_not_extend_is_refused() {
    let mut software = SoftwareTpm::started();
    let mut tpm = software.connect();
    let active = active_banks(&mut tpm).unwrap();
    let error = extend(&mut tpm, &active, index(17), &PcrBank::ALL.map(PcrDigest::zero)).unwrap_err().to_string();
    assert!(error.starts_with("extend register 17: TPM2_PCR_Extend: the TPM answers 0x907 "), "{error}");
}

#[test]
fn a_tpm_that_nobody_started_says_so() {
    let mut software = SoftwareTpm::new("not-need-init");
    let mut tpm = software.connect();
    let error = active_banks(&mut tpm).unwrap_err();
    let BanksError::Command(CommandError::Refused { code: ResponseCode::Initialize, .. }) = &error else {
        panic!("{error}")
    };
    assert!(error.to_string().contains("TPM2_Startup"), "{error}");
}

#[test]
fn a_tpm_that_is_gone_is_an_error() {
    let mut software = SoftwareTpm::started();
    let mut tpm = software.connect();
    active_banks(&mut tpm).unwrap();
    software.process.kill().unwrap();
    software.process.wait().unwrap();
    for _ in 0..2 {
        let error = active_banks(&mut tpm).unwrap_err();
        assert!(matches!(error, BanksError::Command(CommandError::Transport { .. })), "{error}");
    }
}

#[test]
fn a_socket_by_tcp_does_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().canonicalize().unwrap();
    // swtpm gets the connection and not the port's number, so that nobody else takes the port meanwhile. It wants no
    // descriptor below 3.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut tpm = Tpm::new(Socket::tcp(listener.local_addr().unwrap(), PATIENCE).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let process = Command::new("sh")
        .args(["-c", "exec \"$@\" 3<&0 0</dev/null", "sh"])
        .arg(require("swtpm", "swtpm"))
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--fd", "3"])
        .arg("--tpmstate")
        .arg(format!("dir={}", state.display()))
        .stdin(OwnedFd::from(accepted))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let software = SoftwareTpm { process, folder };
    let banks: Vec<PcrBank> = active_banks(&mut tpm).unwrap().banks().collect();
    assert_eq!(banks, PcrBank::ALL);
    drop(software);
}

/// A TPM's answers, each cut by that many bytes.
struct Cutting(Socket, usize);

impl Transport for Cutting {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        let mut response = self.0.exchange(command)?;
        response.truncate(response.len() - self.1);
        Ok(response)
    }
}

#[test]
fn a_cut_answer_of_a_real_tpm_is_an_error() {
    let mut software = SoftwareTpm::started();
    drop(software.connect());
    for (cut, ok) in [(0, true), (1, false), (10, false)] {
        let socket = Socket::unix(software.data(), PATIENCE).unwrap();
        assert_eq!(active_banks(&mut Tpm::new(Cutting(socket, cut))).is_ok(), ok, "{cut} bytes cut");
    }
}
