//! How many quotes one core verifies in a second, and how that compares with starting tpm2_checkquote for each.
//!
//! The evidence has 60 events: 56 of firmware, and the four of a boot. tpm2_checkquote is given the same quote without the
//! logs, so that it does less: signature and nonce.

#![allow(missing_docs, reason = "criterion_group makes a public function")]

#[path = "../tests/verifier/support.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support;

use std::{
    fs, hint,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iofs_attest::{batch, evidence::Evidence, tcg::EventLog};
use iofs_policy::{hex, measurement_log};
use support::*;

const FIRMWARE_EVENTS: u8 = 56;
/// How often tpm2_checkquote is started.
const STARTS: u32 = 50;

fn evidence() -> (Evidence, Verifier) {
    let release = reference("13.2-4", |_| {});
    let mut machine = Machine::new(SHA256);
    for event in 0..FIRMWARE_EVENTS {
        let text = format!("event {event}");
        machine.firmware(event % 8, EFI_ACTION, text.as_bytes(), text.as_bytes());
    }
    machine.boot(&release, LINE);
    let mut evidence = machine.evidence(&Quoted::new(SHA256));
    evidence.pcrs = machine.registers();
    (evidence, Verifier::new(SHA256, vec![release]))
}

fn quotes(criterion: &mut Criterion) {
    let (evidence, verifier) = evidence();
    assert!(verifier.verify(&evidence).is_ok());
    let mut group = criterion.benchmark_group("verify");
    group.throughput(Throughput::Elements(1));
    group.bench_function("evidence", |bencher| bencher.iter(|| verifier.verify(hint::black_box(&evidence))));
    let Verifier { device, nonce, references, policy } = &verifier;
    let config = batch::Config { references: references.clone(), policy: policy.clone() };
    let input = batch::Input { device: device.clone(), nonce: hex::encode(nonce), evidence: evidence.clone() };
    let line = serde_json::to_vec(&input).unwrap();
    group
        .bench_function("json line", |bencher| bencher.iter(|| batch::verify_line(&config, 1, hint::black_box(&line))));
    group.finish();
    compare(&evidence, &verifier);
}

/// Both logs of a machine, as the verifier and `explain` read them.
fn logs(criterion: &mut Criterion) {
    let (evidence, _) = evidence();
    let (firmware, ours) = (evidence.firmware_log.unwrap().0, evidence.measurement_log.unwrap().0);
    let read = || (EventLog::parse(&firmware).unwrap().events.len(), measurement_log::parse(&ours).unwrap().len());
    assert_eq!(read(), (usize::from(FIRMWARE_EVENTS), 4));
    criterion.bench_function("logs of 60 events", |bencher| bencher.iter(|| hint::black_box(read())));
}

/// Measures both in the same minute, and prints the ratio.
fn compare(evidence: &Evidence, verifier: &Verifier) {
    let folder = tempfile::tempdir().unwrap();
    write_for_tpm2_tools(folder.path(), evidence);
    let check = || {
        let status = Command::new("tpm2_checkquote")
            .args(["-u", "ak.pem", "-m", "msg", "-s", "sig", "-g", "sha256", "-q", &hex::encode(NONCE)])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .status();
        let status = status.expect("tpm2_checkquote is not installed\n  run: apt-get install tpm2-tools");
        assert!(status.success(), "tpm2_checkquote refuses the quote");
    };
    let theirs = each(STARTS, check);
    let ours = each(STARTS * 40, || {
        hint::black_box(verifier.verify(hint::black_box(evidence)).is_ok());
    });
    println!("tpm2_checkquote: {:.3} ms a quote, as a process", theirs.as_secs_f64() * 1e3);
    println!("verify: {:.3} ms a quote: {:.0} a second and core", ours.as_secs_f64() * 1e3, 1.0 / ours.as_secs_f64());
    println!("ratio: {:.1}", theirs.as_secs_f64() / ours.as_secs_f64());
}

fn each(times: u32, mut work: impl FnMut()) -> Duration {
    work();
    let start = Instant::now();
    (0..times).for_each(|_| work());
    start.elapsed() / times
}

/// The public key becomes a SubjectPublicKeyInfo of P-256 (RFC 5480): a fixed beginning, then the point.
fn write_for_tpm2_tools(folder: &Path, evidence: &Evidence) {
    let point = key(1).verifying_key().to_sec1_point(false);
    let start = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
    let der = [&start, point.as_bytes()].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    fs::write(folder.join("ak.pem"), pem).unwrap();
    fs::write(folder.join("msg"), &*evidence.quote).unwrap();
    fs::write(folder.join("sig"), &*evidence.signature).unwrap();
}

criterion_group!(benches, logs, quotes);
criterion_main!(benches);
