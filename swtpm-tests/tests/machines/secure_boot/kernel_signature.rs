//! The kernel's own check of the signed root hash: by the keys that firmware trusts, in kernels that look there.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use iofs_policy::manifest::RootHashSignature::{self, Preferred, Required};
use swtpm_tests::{
    Disk, Ending, FirmwareImage, Line, Machine, SecureBoot, Signer, Vm,
    chain::{Chain, ROOT_REACHED},
    tools,
};

use super::support::{FIRMWARE, TINY};

/// What the kernel says of its table, which verify-init read back.
const OPTION: &str = " root_hash_sig_key_desc iofs:roothash";
const SIGNED: &str = ", signed as the kernel demands";
/// ENOKEY, in verify-init's words.
const NO_KEY: &str = "it is by no key that this kernel looks for (Required key not available (126))";

/// An image that firmware with these keys starts, and whose root hash `root_hash` signed.
fn sealed(suite: &str, wanted: RootHashSignature, keys: &SecureBoot, root_hash: &Signer) -> Result<Chain> {
    sealed_with(suite, "cat /run/iofs/boot.json", wanted, keys, root_hash)
}

/// The same with what the root does.
fn sealed_with(
    suite: &str,
    script: &str,
    wanted: RootHashSignature,
    keys: &SecureBoot,
    root_hash: &Signer,
) -> Result<Chain> {
    let (image, signer) = (FirmwareImage::new(keys, suite, "")?, root_hash.x509()?);
    Chain::tiny(suite, script, |request| {
        image.ask(request);
        request.certificates.root_hash = Some(signer.certificate().clone());
        request.keys.x509.push(signer);
        request.config.verity.root_hash_signature = wanted;
    })
}

/// Reaches the root, with the kernel's check or, after a warning, without.
fn boots(machine: &Machine, checked: bool) -> Result<()> {
    let mut vm = machine.start()?;
    if !checked {
        let warning = format!("warning: the kernel does not check the signed root hash: {NO_KEY}");
        vm.wait_for_line(&Line::containing(&warning), FIRMWARE)?;
    }
    let mapped = vm.wait_for_line(&Line::containing("verify-init: mapped /dev/dm-0 with root hash"), FIRMWARE)?;
    ensure!(mapped.text.contains(SIGNED) == checked, "{}", mapped.text);
    vm.wait_for_line(&Line::containing(ROOT_REACHED), TINY)?;
    let table = vm.wait_for_line(&Line::containing("\"verity_table\""), TINY)?;
    ensure!(table.text.contains(OPTION) == checked, "{}", table.text);
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

fn is_refused(machine: &Machine) -> Result<()> {
    let mut vm = machine.start()?;
    for text in [
        "BOOT REFUSED before stage \"mapped\": the kernel does not accept the signature of the root hash",
        "expected: a signature by a key in the kernel's keyrings; or in firmware's db",
        &format!("found:    {NO_KEY}"),
        "next:     ",
    ] {
        vm.wait_for_line(&Line::containing(text), FIRMWARE)?;
    }
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    never_reached_the_root(&vm)
}

fn never_reached_the_root(vm: &Vm) -> Result<()> {
    ensure!(vm.console().find(&Line::containing(ROOT_REACHED)).is_none(), "the refused image's init ran");
    Ok(())
}

/// Boots an image under Secure Boot whose root hash was signed by the key that firmware trusts, or by another.
fn under_secure_boot(
    name: &str,
    suite: &str,
    wanted: RootHashSignature,
    by_another: bool,
    outcome: impl FnOnce(&Machine) -> Result<()>,
) -> Result<()> {
    let (keys, other) = (SecureBoot::new()?, Signer::new("somebody else")?);
    let signer = if by_another { &other } else { keys.image_signer() };
    let chain = sealed(suite, wanted, &keys, signer)?;
    let (disk, _) = chain.disk()?;
    outcome(&Machine::named(name).secure_boot(&keys).memory_mib(1024).disk(Disk::raw(disk.path())))
}

#[test]
fn a_root_hash_signed_by_a_key_that_firmware_trusts_is_accepted_by_the_kernel_of_debian_13() -> Result<()> {
    under_secure_boot("a_signed_root_hash", "trixie", Required, false, |machine| boots(machine, true))
}

#[test]
fn signature_confusion_a_root_hash_signed_by_another_key_is_refused_by_the_kernel_where_its_check_is_required()
-> Result<()> {
    under_secure_boot("a_root_hash_by_another_key", "trixie", Required, true, is_refused)
}

#[test]
fn a_root_hash_signed_by_another_key_is_warned_of_where_the_kernels_check_is_preferred() -> Result<()> {
    under_secure_boot("a_warning_of_another_key", "trixie", Preferred, true, |machine| boots(machine, false))
}

// Debian 12's kernel is configured without DM_VERITY_VERIFY_ROOTHASH_SIG_PLATFORM_KEYRING (Linux 6.12 knows it): it
// checks signatures, but never looks at firmware's keys.

#[test]
fn debian_12s_kernel_knows_no_key_of_firmware_and_boots_with_a_warning_where_its_check_is_preferred() -> Result<()> {
    under_secure_boot("preferred_on_debian_12", "bookworm", Preferred, false, |machine| boots(machine, false))
}

#[test]
fn debian_12s_kernel_knows_no_key_of_firmware_and_is_refused_where_its_check_is_required() -> Result<()> {
    under_secure_boot("required_on_debian_12", "bookworm", Required, false, is_refused)
}

#[test]
fn without_firmware_that_trusts_the_key_the_kernel_does_not_accept_it() -> Result<()> {
    let keys = SecureBoot::new()?;
    let chain = sealed("trixie", Required, &keys, keys.image_signer())?;
    let (disk, _) = chain.disk()?;
    let plain = Machine::named("required_without_secure_boot").uefi().memory_mib(1024).disk(Disk::raw(disk.path()));
    is_refused(&plain)?;
    is_refused(&chain.machine("required_with_a_bios", &disk))
}

/// Lets programs run from volumes alone whose root hash the kernel found signed (`Documentation/admin-guide/LSM/ipe.rst`).
const POLICY: &str = "policy_name=signed_volumes policy_version=0.0.1
DEFAULT action=ALLOW
DEFAULT op=EXECUTE action=DENY
op=EXECUTE dmverity_signature=TRUE action=ALLOW
";

/// A root that brings this policy into force, and says which programs run then: its own, which IPE finds below the overlay, and
/// one that was written into the overlay. It ends without any program.
fn under_policy(policy: &[u8]) -> String {
    let policy = BASE64.encode(policy);
    format!(
        "mount -t securityfs securityfs /sys/kernel/security
cat /sys/kernel/security/lsm; echo
cat /bin/busybox >/tmp/busybox; /bin/busybox chmod 755 /tmp/busybox
/tmp/busybox true && echo 'BEFORE: A COPY RUNS'
echo {policy} | /bin/busybox base64 -d >/run/policy
dd bs=64k if=/run/policy of=/sys/kernel/security/ipe/new_policy
echo 1 >/sys/kernel/security/ipe/policies/signed_volumes/active
/bin/busybox true && echo 'UNDER THE POLICY: THE ROOT RUNS' || echo 'UNDER THE POLICY: THE ROOT IS DENIED'
/tmp/busybox true && echo 'UNDER THE POLICY: A COPY RUNS' || echo 'UNDER THE POLICY: A COPY IS DENIED'
echo o >/proc/sysrq-trigger
while :; do :; done"
    )
}

fn signed(policy: &str, signer: &Signer) -> Result<Vec<u8>> {
    let openssl = tools::require("openssl", "apt-get install openssl")?;
    let folder = tempfile::tempdir()?;
    let (plain, out) = (folder.path().join("policy"), folder.path().join("policy.p7b"));
    fs::write(&plain, policy)?;
    let mut command = Command::new(openssl);
    command.args(["smime", "-sign", "-binary", "-noattr", "-nodetach", "-nosmimecap", "-outform", "der"]);
    command.arg("-signer").arg(signer.certificate()).arg("-inkey").arg(signer.key());
    let output = command.arg("-in").arg(&plain).arg("-out").arg(&out).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::read(out)?)
}

fn runs_under_policy(name: &str, by_another: bool, outcome: &str) -> Result<()> {
    let (keys, other) = (SecureBoot::new()?, Signer::new("somebody else")?);
    let signer = if by_another { &other } else { keys.image_signer() };
    let script = under_policy(&signed(POLICY, keys.image_signer())?);
    let chain = sealed_with("trixie", &script, Preferred, &keys, signer)?;
    let (disk, _) = chain.disk()?;
    let machine = Machine::named(name).secure_boot(&keys).memory_mib(1024).disk(Disk::raw(disk.path()));
    let mut vm = machine.start()?;
    vm.wait_for_line(&Line::containing(ROOT_REACHED), FIRMWARE)?;
    for text in [",ipe", "BEFORE: A COPY RUNS", outcome, "UNDER THE POLICY: A COPY IS DENIED"] {
        vm.wait_for_line(&Line::containing(text), TINY)?;
    }
    ensure!(vm.wait_for_end(TINY)? == Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_policy_of_ipe_lets_programs_of_the_signed_root_run_and_no_others() -> Result<()> {
    runs_under_policy("ipe_and_a_signed_root", false, "UNDER THE POLICY: THE ROOT RUNS")
}

#[test]
fn a_policy_of_ipe_denies_programs_of_a_root_whose_signature_the_kernel_did_not_take() -> Result<()> {
    runs_under_policy("ipe_and_an_unsigned_root", true, "UNDER THE POLICY: THE ROOT IS DENIED")
}
