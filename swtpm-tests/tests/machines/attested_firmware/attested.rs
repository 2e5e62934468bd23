//! A verifier that knows a release and what firmware does, without anything of the machine's own.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use swtpm_tests::{
    DeviceShell, Disk, Machine, SecureBoot, TpmState, cache, chain::Chain, command_line, verifier::Verifier,
};

use super::{
    predicted::start,
    support::{BOOT, attester},
};

/// A device that was enrolled, and a policy that pins its firmware.
struct Enrolled {
    verifier: Verifier,
    record: PathBuf,
    policy: PathBuf,
}

fn enrol(name: &str, shell: &mut DeviceShell, chain: &Chain) -> Result<Enrolled> {
    let verifier = Verifier::new()?;
    let record = verifier.enrol(name, shell, None)?;
    let quoted = verifier.ask(shell, "")?;
    let policy = verifier.file("policy.toml");
    let mut learn = vec!["attest".into(), "learn".into(), "--evidence".into(), quoted.evidence.into()];
    learn.extend(["--device".into(), record.clone().into(), "--nonce".into(), quoted.nonce.into()]);
    learn.extend(verifier.references(&[chain]));
    learn.extend(["--out".into(), policy.clone().into()]);
    let learnt = verifier.run(&learn)?;
    ensure!(learnt.code == 0, "{}", learnt.stderr);
    Ok(Enrolled { verifier, record, policy })
}

#[test]
fn a_machine_with_secure_boot_is_attested_from_its_release_and_its_firmware() -> Result<()> {
    let (keys, tpm) = (SecureBoot::new()?, TpmState::new()?);
    let chain = attester(&keys, "quiet", |_| ())?;
    let mut started = start("attested_secure_boot", &chain, &keys, &tpm)?;
    let mut shell = started.vm.device_shell(BOOT)?;
    let Enrolled { verifier, record, policy } = enrol("secure", &mut shell, &chain)?;
    let options = ["--policy", policy.to_str().context("UTF-8")?, "--update"];
    let quoted = verifier.ask(&mut shell, "")?;
    let verdict = verifier.decide(&record, &quoted, &[&chain], &options)?.attested()?;
    ensure!(verdict["ignored_pcrs"].as_array().is_some_and(Vec::is_empty), "{verdict:#}");
    drop((shell, started));

    // The next release, by the same key: nothing has to be learnt anew.
    let next =
        attester(&keys, "quiet next=1", |request| request.config.image.version = Some("8".parse().expect("valid")))?;
    let mut started = start("attested_next_release", &next, &keys, &tpm)?;
    let quoted = verifier.ask(&mut started.vm.device_shell(BOOT)?, "")?;
    verifier.decide(&record, &quoted, &[&chain, &next], &options)?.attested()?;
    verifier
        .decide(&record, &quoted, &[&chain], &[])?
        .refused("image: expected the manifest of a reference release")?;
    drop(started);

    // The first release's manifest in an image with another command line, signed by the right key.
    let uki = chain.uki(&cache::stub("trixie")?, "quiet other=1", None)?;
    let (disk, _) = chain.disk_that_starts(&keys.image_signer().sign(&uki)?)?;
    let machine = Machine::named("attested_other_line").disk(Disk::raw(disk.path())).memory_mib(1024);
    let mut vm = machine.secure_boot(&keys).tpm(&tpm).start()?;
    let quoted = verifier.ask(&mut vm.device_shell(BOOT)?, "")?;
    verifier.decide(&record, &quoted, &[&chain], &["--update"])?.refused("command line")?;
    let policy = fs::read_to_string(&policy)?;
    let accepting = verifier.file("accepting.toml");
    fs::write(
        &accepting,
        policy.replace("command_lines = []", &format!("command_lines = [{:?}]", command_line("quiet other=1"))),
    )?;
    let options = ["--policy", accepting.to_str().context("UTF-8")?];
    let because = "in PCR 11: expected .cmdline contents of org.example.attester 7's unified kernel image, found sha";
    verifier.decide(&record, &quoted, &[&chain], &options)?.refused(because)?;

    let mut explain = vec!["attest".into(), "explain".into(), "--evidence".into(), quoted.evidence.into()];
    explain.extend(verifier.references(&[&chain]));
    let explained = verifier.run(&explain)?;
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    ensure!(text.contains("predicted: .cmdline contents, sha"), "{text}");
    Ok(())
}
