//! A tiny sealed root, firmware that trusts keys of ours, and the image that firmware starts.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use anyhow::{Context, Result};
use swtpm_tests::{Disk, Line, Machine, ScratchDisk, SecureBoot, TpmState, Vm, cache, chain::Chain, shared};

/// From power-on to what firmware or verify-init say first, on a busy host.
pub(crate) const FIRMWARE: Duration = Duration::from_secs(120);
/// The whole boot of a tiny root.
pub(crate) const TINY: Duration = Duration::from_secs(120);

/// Tells what the TPM holds. Behind a word, since the kernel's own lines may come in between.
const SCRIPT: &str = "for index in 11 12; do
    echo \"REGISTER $index $(cat /sys/class/tpm/tpm0/pcr-sha256/$index)\"
done
find / -xdev -name '*.cred'";

/// What the tests change.
pub(crate) struct Sealed {
    suite: &'static str,
    pub(crate) chain: Chain,
    pub(crate) keys: SecureBoot,
}

impl Sealed {
    /// For Debian 13's kernel and stub. All tests that run at the same time share one: none of them changes it.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Sealed>> = Mutex::new(Weak::new());
        shared(&SHARED, || Self::tiny("trixie"))
    }

    /// For the kernel and the stub of a Debian suite.
    pub(crate) fn tiny(suite: &'static str) -> Result<Self> {
        Ok(Self { suite, chain: Chain::tiny(suite, SCRIPT, |_| ())?, keys: SecureBoot::new()? })
    }

    /// The image as the owner signs it.
    pub(crate) fn signed_uki(&self) -> Result<Vec<u8>> {
        self.keys.image_signer().sign(&self.unsigned_uki()?)
    }

    pub(crate) fn unsigned_uki(&self) -> Result<Vec<u8>> {
        self.chain.uki(&cache::stub(self.suite)?, "quiet", None)
    }

    /// A disk with this image on its system partition.
    pub(crate) fn disk(&self, uki: &[u8]) -> Result<ScratchDisk> {
        Ok(self.chain.disk_that_starts(uki)?.0)
    }

    /// A machine with the firmware, a TPM and this disk.
    pub(crate) fn machine(&self, name: &str, disk: &ScratchDisk, tpm: &TpmState) -> Machine {
        Machine::named(name).secure_boot(&self.keys).tpm(tpm).memory_mib(1024).disk(Disk::raw(disk.path()))
    }
}

/// Waits until the tiny root says what a register holds.
pub(crate) fn register(vm: &Vm, index: u32) -> Result<String> {
    let start = format!("REGISTER {index} ");
    let line = vm.wait_for_line(&Line::containing(&start), TINY)?;
    let (_, value) = line.text.split_once(&start).context("the line holds it")?;
    Ok(value.trim().to_lowercase())
}

/// Whether a kernel, or anything behind it, has said something.
pub(crate) fn kernel_has_started(vm: &Vm) -> bool {
    let words = ["EFI stub:", "Linux version", "verify-init:", "BOOT REFUSED"];
    words.iter().any(|word| vm.console().find(&Line::containing(word)).is_some())
}
