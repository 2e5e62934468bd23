//! What an accepted quote proves.

use std::collections::BTreeSet;

use iofs_policy::{digest::Sha256Digest, manifest::ImageIdentity, pcr::PcrBank};
use serde::Serialize;

use super::{Verification, userspace::Booted};
use crate::{enrolment::Counters, quote::Quote};

/// Proof that a device runs an image. Only [`super::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attested {
    device: String,
    image: ImageIdentity,
    manifest_digest: Sha256Digest,
    release: String,
    statement: Sha256Digest,
    command_line: String,
    phases: Vec<String>,
    banks: Vec<&'static str>,
    pcrs: Vec<u8>,
    ignored_pcrs: Vec<u8>,
    notes: Vec<String>,
    counters: Counters,
    tpm_firmware_version: u64,
}

impl Attested {
    pub(super) fn new(
        request: &Verification<'_>,
        quote: &Quote,
        banks: &BTreeSet<PcrBank>,
        booted: Booted<'_>,
        mut notes: Vec<String>,
    ) -> Self {
        let release = booted.reference.release();
        notes.extend(booted.notes);
        if !quote.clock.safe {
            notes.push("the TPM's clock is catching up after a power cut".to_owned());
        }
        Self {
            device: request.device.name.clone(),
            image: release.image.clone(),
            manifest_digest: release.manifest_digest,
            release: booted.reference.name(),
            statement: booted.reference.statement(),
            command_line: booted.command_line,
            phases: booted.phases,
            banks: banks.iter().map(|bank| bank.name()).collect(),
            pcrs: request.policy.pcrs.iter().map(|pcr| pcr.get()).collect(),
            ignored_pcrs: request.policy.firmware.ignore.iter().map(|pcr| pcr.get()).collect(),
            notes,
            counters: quote.clock.counters,
            tpm_firmware_version: quote.firmware_version,
        }
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The image that it runs.
    pub fn image(&self) -> &ImageIdentity {
        &self.image
    }

    /// SHA-256 of the manifest that its boot verified.
    pub fn manifest_digest(&self) -> Sha256Digest {
        self.manifest_digest
    }

    /// The release, `ID VERSION`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// SHA-256 of the release statement.
    pub fn statement(&self) -> Sha256Digest {
        self.statement
    }

    /// The kernel command line that it booted with.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// What was measured behind `leave-initrd`: how far the real system got.
    pub fn phases(&self) -> &[String] {
        &self.phases
    }

    /// The registers that may hold anything: nothing is proven about what firmware measured there.
    pub fn ignored_pcrs(&self) -> &[u8] {
        &self.ignored_pcrs
    }

    /// What is odd or unproven without being a reason to refuse. It takes unsigned labels into account: for people only.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The quote's counters, for [`crate::enrolment::Device::last_seen`]: keep them, so that no older quote passes.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The version of the TPM's firmware, as its vendor counts.
    pub fn tpm_firmware_version(&self) -> u64 {
        self.tpm_firmware_version
    }
}
