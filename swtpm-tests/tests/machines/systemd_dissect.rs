//! The disk that `iofs-sign disk` writes, as systemd's own program takes it.

use anyhow::{Context, Result, ensure};
use swtpm_tests::{ScratchDisk, Signer, TpmState, chain::Chain, workshop::Workshop};

/// Demands a signature, and lists what is in the root that it is of.
const LIST: &str =
    "SYSTEMD_LOG_LEVEL=debug timeout 30 systemd-dissect --mtree --image-policy=root=signed /run/disk.img";
/// What the list says of some files of the tiny root.
const LISTED: [&str; 3] = [
    "./bin/busybox type=file mode=0755 uid=0 gid=0 size=",
    "./bin/sh type=link uid=0 gid=0 link=busybox",
    "./sbin/init type=file mode=0755 uid=0 gid=0 size=",
];

/// Data, tree and the signature of the root hash.
fn disk(signer: &Signer) -> Result<ScratchDisk> {
    let signer = signer.x509()?;
    let chain = Chain::tiny("trixie", "", |request| {
        request.kernel = None;
        request.certificates.root_hash = Some(signer.certificate().clone());
        request.keys.x509.push(signer);
    })?;
    Ok(chain.disk()?.0)
}

/// Has systemd trust this signer, and nobody else. Firmware of this machine trusts nobody, so that the kernel does not.
fn trust(workshop: &mut Workshop, signer: &Signer) -> Result<()> {
    workshop.run("mkdir -p /etc/verity.d")?;
    workshop.put("/etc/verity.d/signer.crt", &std::fs::read(signer.certificate())?)
}

#[test]
fn systemd_257_takes_our_disk_by_the_certificate_that_signed_its_root_hash_and_by_no_other() -> Result<()> {
    let (signer, other, tpm) = (Signer::new("verity")?, Signer::new("somebody else")?, TpmState::new()?);
    let disk = disk(&signer)?;
    let mut workshop = Workshop::open("systemd_dissect", "trixie", &tpm, &[&disk])?;
    let there = workshop.run("command -v systemd-dissect");
    there.context("cache/roots/trixie-disks.tar is out of date\n  run: make cache")?;
    // It validates files alone, and reads those through loop devices.
    workshop.run("cp --sparse=always /dev/vdb /run/disk.img && modprobe loop")?;
    workshop.run("systemd-dissect --validate --image-policy=root=signed /run/disk.img")?;

    trust(&mut workshop, &other)?;
    let ran = workshop.attempt(LIST)?;
    ensure!(ran.code != 0 && ran.stdout.is_empty(), "taken by another certificate: {}", ran.stderr);
    ensure!(ran.stderr.contains("Activation of signed Verity volume worked neither"), "{}", ran.stderr);

    trust(&mut workshop, &signer)?;
    let ran = workshop.attempt(LIST)?;
    ensure!(ran.code == 0 && ran.stderr.contains("Userspace PKCS#7 validation succeeded"), "{}", ran.stderr);
    let list = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(LISTED.iter().all(|line| list.contains(line)), "{list}");
    workshop.close()
}
