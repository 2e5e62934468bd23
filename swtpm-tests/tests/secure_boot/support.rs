//! A tiny sealed root, firmware that trusts keys of ours, and the image that firmware starts.

use std::time::Duration;

use anyhow::Result;
use swtpm_tests::{Disk, Line, Machine, ScratchDisk, SecureBoot, TpmState, Vm, cache, chain::Chain};

/// From power-on to what firmware or verify-init say first, on a busy host.
pub(crate) const FIRMWARE: Duration = Duration::from_secs(120);
/// The whole boot of a tiny root.
pub(crate) const TINY: Duration = Duration::from_secs(120);

/// What the tests change.
pub(crate) struct Sealed {
    pub(crate) chain: Chain,
    pub(crate) keys: SecureBoot,
}

impl Sealed {
    /// For Debian 13's kernel.
    pub(crate) fn tiny() -> Result<Self> {
        let script = "echo \"COMMAND LINE $(cat /proc/cmdline)\"; find / -xdev -name '*.cred'";
        Ok(Self { chain: Chain::tiny("trixie", script, |_| ())?, keys: SecureBoot::new()? })
    }

    /// The image as the owner signs it, by Debian 13's stub.
    pub(crate) fn signed_uki(&self) -> Result<Vec<u8>> {
        self.keys.image_signer().sign(&self.unsigned_uki()?)
    }

    pub(crate) fn unsigned_uki(&self) -> Result<Vec<u8>> {
        self.chain.uki(&cache::stub("trixie")?, "quiet", None)
    }

    /// A disk with this image on its system partition.
    pub(crate) fn disk(&self, uki: &[u8]) -> Result<ScratchDisk> {
        Ok(self.chain.disk_that_starts(uki)?.0)
    }

    /// A machine with the firmware, a new TPM and this disk.
    pub(crate) fn machine(&self, name: &str, disk: &ScratchDisk, tpm: &TpmState) -> Machine {
        Machine::named(name).secure_boot(&self.keys).tpm(tpm).memory_mib(1024).disk(Disk::raw(disk.path()))
    }
}

/// Whether a kernel, or anything behind it, has said something.
pub(crate) fn kernel_has_started(vm: &Vm) -> bool {
    ["EFI stub:", "Linux version", "verify-init:"]
        .iter()
        .any(|word| vm.console().find(&Line::containing(word)).is_some())
}
