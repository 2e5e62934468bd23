//! The registry of measurements: who measures what into which register, why and in which order; and the values that
//! follow from a release.
//!
//! One place says it, so that what `verify-init` extends, what `iofs-sign predict` prints and what a verifier demands
//! cannot drift apart. The schema has a version ([`SCHEMA_VERSION`]); what is measured under one version never changes.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    digest::Sha256Digest,
    hex,
    manifest::VolumeName,
    pcr::{PcrBank, PcrDigest, PcrError, PcrIndex, extend},
    release::Release,
    uki::UkiMeasurements,
};

/// The version of what [`Measurement`] says.
pub const SCHEMA_VERSION: u32 = 1;

/// The type of a volume key's event, as systemd has it.
const VOLUME_KEY: &str = "volume-key";

/// Something that `verify-init` measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measurement<'a> {
    /// The mini-initramfs runs. The word is systemd's, so that policies for it are exchangeable.
    EnterInitrd,
    /// The kernel command line as `/proc/cmdline` shows it, without the newline at its end.
    CommandLine(Cow<'a, [u8]>),
    /// The manifest that was verified.
    Manifest {
        /// SHA-256 of the signed payload.
        digest: Sha256Digest,
        /// Whether it is of a debug image: those are measured as such.
        debug: bool,
    },
    /// A volume was opened, however that was done.
    VolumeKey(VolumeKeyEvent),
    /// The mini-initramfs is done: whatever is bound to `enter-initrd` is out of reach from here on.
    LeaveInitrd,
}

impl<'a> Measurement<'a> {
    /// All measurements that every release decides, in their order. The last one is made right after the last volume was opened,
    /// and before the real root is entered; the others before any device is looked for. What the opened volumes add to
    /// register 15 is the machine's own, unless the manifest pins it.
    pub fn of_boot(command_line: &'a [u8], manifest: Sha256Digest, debug: bool) -> [Self; 4] {
        let manifest = Self::Manifest { digest: manifest, debug };
        [Self::EnterInitrd, Self::CommandLine(Cow::Borrowed(command_line)), manifest, Self::LeaveInitrd]
    }

    /// The register.
    pub fn pcr(&self) -> PcrIndex {
        match self {
            Self::EnterInitrd | Self::LeaveInitrd => PcrIndex::PHASES,
            Self::CommandLine(_) => PcrIndex::COMMAND_LINE,
            Self::Manifest { .. } => PcrIndex::MANIFEST,
            Self::VolumeKey(_) => PcrIndex::SYSTEM_IDENTITY,
        }
    }

    /// The event's type in the log: a label for people, which nothing may rely on.
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::EnterInitrd | Self::LeaveInitrd => "phase",
            Self::CommandLine(_) => "iofs-command-line",
            Self::Manifest { .. } => "iofs-manifest",
            Self::VolumeKey(_) => VOLUME_KEY,
        }
    }

    /// The bytes whose digest the register is extended by. A prefix keeps one kind from passing for another. Of a volume
    /// key, these are the bytes whose HMAC by that key it is extended by.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::EnterInitrd => b"enter-initrd".to_vec(),
            Self::LeaveInitrd => b"leave-initrd".to_vec(),
            Self::VolumeKey(event) => event.text.clone().into_bytes(),
            Self::CommandLine(line) => [b"command-line:", line.as_ref()].concat(),
            Self::Manifest { digest, debug } => {
                let prefix = if *debug { "debug-manifest:" } else { "manifest:" };
                format!("{prefix}{}", hex::encode(digest.as_bytes())).into_bytes()
            }
        }
    }

    /// What the register is extended by in a bank.
    pub fn digest(&self, bank: PcrBank) -> PcrDigest {
        match self {
            Self::VolumeKey(event) => event.digest(bank),
            _ => PcrDigest::of(bank, &[&self.bytes()]),
        }
    }
}

/// That a volume was opened, in systemd's form: `cryptsetup:NAME:UUID` under an HMAC by the volume key, with each bank's
/// own hash. The key itself is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeKeyEvent {
    text: String,
    /// One for each bank, in the order of [`PcrBank::ALL`].
    digests: Vec<PcrDigest>,
}

impl VolumeKeyEvent {
    /// The event of a volume; `digest` says the HMAC over this text in a bank.
    pub fn new(name: &VolumeName, uuid: &Uuid, digest: impl Fn(PcrBank) -> PcrDigest) -> Self {
        // Systemd escapes colons, which no name here has.
        Self { text: format!("cryptsetup:{name}:{uuid}"), digests: PcrBank::ALL.map(digest).to_vec() }
    }

    fn digest(&self, bank: PcrBank) -> PcrDigest {
        let digest = self.digests.iter().find(|digest| digest.bank() == bank);
        digest.copied().unwrap_or(PcrDigest::zero(bank))
    }
}

/// One use of a register on a machine that boots this chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PcrUse {
    /// The registers' numbers.
    pub pcrs: &'static [u8],
    /// Who extends them.
    pub who: &'static str,
    /// What is measured, in this order.
    pub what: &'static str,
    /// What a verifier learns from it.
    pub why: &'static str,
}

/// Who measures what on a machine that boots this chain, in the order of the boot.
pub const REGISTRY: &[PcrUse] = &[
    PcrUse {
        pcrs: &[0, 1, 2, 3, 4, 5, 6, 7],
        who: "firmware",
        what: "its code, configuration, boot choices and Secure Boot policy; the boot programs it starts (4)",
        why: "which firmware ran, and which kernel it started",
    },
    PcrUse {
        pcrs: &[9],
        who: "the kernel's EFI stub",
        what: "the initramfs and the load options, where firmware has a TPM protocol",
        why: "which mini-initramfs runs: it holds verify-init and the trusted keys",
    },
    PcrUse {
        pcrs: &[11],
        who: "systemd's stub, in a unified kernel image",
        what: "each section of the image: its name with a NUL, then its contents, in an order of its own",
        why: "which kernel, initramfs and command line run",
    },
    PcrUse {
        pcrs: &[11],
        who: "verify-init",
        what: "enter-initrd, first of all; leave-initrd, right after the last volume was opened, else before the real root is \
               entered, and when a boot is refused",
        why: "keys bound to enter-initrd are out of reach of the real system",
    },
    PcrUse {
        pcrs: &[12],
        who: "verify-init",
        what: "command-line:LINE, as /proc/cmdline shows it",
        why: "what the boot menu asked for",
    },
    PcrUse {
        pcrs: &[13],
        who: "verify-init",
        what: "manifest:SHA256, or debug-manifest:SHA256 for a debug image; before any device is looked for",
        why: "which image runs: the manifest has its root hash",
    },
    PcrUse {
        pcrs: &[15],
        who: "verify-init",
        what: "cryptsetup:NAME:UUID, as an HMAC by the volume key, for each volume that it opened, in their sealed order",
        why: "which volumes were opened: whoever puts a volume of his own in their place cannot hide it",
    },
    PcrUse {
        pcrs: &[11],
        who: "systemd",
        what: "the phases sysinit, ready, shutdown and final, where the kernel image was measured by systemd's stub",
        why: "how far the real system got",
    },
    PcrUse {
        pcrs: &[15],
        who: "systemd",
        what: "machine-id, file systems and volume keys",
        why: "which machine and which volumes",
    },
];

/// One measurement that is to be expected, and the value that its register has then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictedEvent {
    /// The register.
    pub pcr: u8,
    /// The event's type.
    pub event_type: String,
    /// What is measured, as text.
    pub text: String,
    /// What the register is extended by, in hexadecimal.
    pub digest: String,
    /// What it holds afterwards, in hexadecimal.
    pub value: String,
}

/// The values of registers while events are predicted one after the other. Each is zero before its first event.
#[derive(Debug)]
pub struct Predictor {
    bank: PcrBank,
    values: BTreeMap<PcrIndex, PcrDigest>,
    events: Vec<PredictedEvent>,
}

impl Predictor {
    /// Begins in a bank.
    pub fn new(bank: PcrBank) -> Self {
        Self { bank, values: BTreeMap::new(), events: Vec::new() }
    }

    /// Sets what a register holds before its first event, where that is not zero.
    pub fn start(&mut self, pcr: PcrIndex, value: PcrDigest) {
        self.values.insert(pcr, value);
    }

    /// Adds an event.
    ///
    /// # Errors
    /// The digest is of another bank.
    pub fn extend(&mut self, pcr: PcrIndex, event_type: &str, text: &str, digest: PcrDigest) -> Result<(), PcrError> {
        let value = self.values.entry(pcr).or_insert(PcrDigest::zero(self.bank));
        *value = extend(value, &digest)?;
        self.events.push(PredictedEvent {
            pcr: pcr.get(),
            event_type: event_type.to_owned(),
            text: text.to_owned(),
            digest: hex::encode(digest.as_bytes()),
            value: hex::encode(value.as_bytes()),
        });
        Ok(())
    }

    /// Adds what systemd's stub measures of a unified kernel image.
    ///
    /// # Errors
    /// As [`Predictor::extend`].
    pub fn stub(&mut self, uki: &UkiMeasurements) -> Result<(), PcrError> {
        let measured = uki.measured(self.bank).unwrap_or_default();
        measured.into_iter().try_for_each(|(text, digest)| self.extend(UkiMeasurements::PCR, "EV_IPL", &text, digest))
    }

    /// Adds what `verify-init` measures of an image whose volumes are not known, or that opens none.
    ///
    /// # Errors
    /// As [`Predictor::extend`].
    pub fn boot(&mut self, measurements: &[Measurement<'_>]) -> Result<(), PcrError> {
        self.boot_with_volumes(measurements, &[])
    }

    /// Adds what `verify-init` measures of an image that opens volumes: their digests, as
    /// [`Manifest::measured_volumes`](crate::manifest::Manifest::measured_volumes) knows them, come right before the last step.
    ///
    /// # Errors
    /// As [`Predictor::extend`].
    pub fn boot_with_volumes(
        &mut self,
        measurements: &[Measurement<'_>],
        volumes: &[(VolumeName, PcrDigest)],
    ) -> Result<(), PcrError> {
        let (last, first) = measurements.split_last().map_or((None, measurements), |(last, first)| (Some(last), first));
        first.iter().try_for_each(|one| self.measurement(one))?;
        volumes.iter().try_for_each(|(name, digest)| {
            let text = format!("the pinned key of volume {name}");
            self.extend(PcrIndex::SYSTEM_IDENTITY, VOLUME_KEY, &text, *digest)
        })?;
        last.map_or(Ok(()), |one| self.measurement(one))
    }

    fn measurement(&mut self, one: &Measurement<'_>) -> Result<(), PcrError> {
        let text = String::from_utf8_lossy(&one.bytes()).into_owned();
        self.extend(one.pcr(), one.event_type(), &text, one.digest(self.bank))
    }

    /// The events, with the values that they lead to.
    pub fn finish(self) -> Vec<PredictedEvent> {
        self.events
    }
}

/// The measurements of a boot, with the values that they lead to in a bank where the registers are zero before.
///
/// # Errors
/// None in practice: digests of one bank always extend each other.
pub fn predict(measurements: &[Measurement<'_>], bank: PcrBank) -> Result<Vec<PredictedEvent>, PcrError> {
    let mut predictor = Predictor::new(bank);
    predictor.boot(measurements)?;
    Ok(predictor.finish())
}

impl Release {
    /// What a boot of this release with a command line measures.
    pub fn measurements<'a>(&self, command_line: &'a str) -> [Measurement<'a>; 4] {
        Measurement::of_boot(command_line.as_bytes(), self.manifest_digest, self.image.debug)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with coreutils' sha256sum 9.1 and xxd:
    /// `z=$(printf '%064d' 0); x() { z=$(printf '%s%s' $z $(printf "$1" | sha256sum | cut -c-64) | xxd -r -p | sha256sum |
    /// cut -c-64); echo $z; }; x enter-initrd; x leave-initrd`
    const PHASES: [&str; 2] = [
        "d15b0e8e244e65c40f024e95773f2347ce4ef3ffe6b597c9a14b50bbab6df319",
        "75df9c8b17d8a6465f2862028b892ea13a3d7c37685a945e5ff34fb44956c207",
    ];

    #[test]
    fn phases_lead_to_the_values_that_other_tools_compute() {
        let events = predict(&[Measurement::EnterInitrd, Measurement::LeaveInitrd], PcrBank::Sha256).unwrap();
        assert_eq!(events.iter().map(|event| event.value.as_str()).collect::<Vec<_>>(), PHASES);
    }

    #[test]
    fn no_measurement_passes_for_another() {
        let digest = Sha256Digest::of(b"x");
        let [_, line, manifest, _] = Measurement::of_boot(b"quiet", digest, false);
        let debug = Measurement::Manifest { digest, debug: true };
        let forged = format!("manifest:{digest}").into_bytes();
        let lie = Measurement::CommandLine(Cow::Owned(forged));
        let bytes = [&line, &manifest, &debug, &lie].map(Measurement::bytes);
        for (number, one) in bytes.iter().enumerate() {
            assert!(bytes[..number].iter().all(|other| other != one), "{}", String::from_utf8_lossy(one));
        }
    }

    #[test]
    fn a_volume_key_is_measured_as_its_hmac_in_each_bank() {
        let uuid = Uuid::from_u128(0x1234);
        let name = "state".parse().unwrap();
        let key = VolumeKeyEvent::new(&name, &uuid, |bank| PcrDigest::of(bank, &[b"stands for an HMAC"]));
        let measurement = Measurement::VolumeKey(key);
        assert_eq!(measurement.bytes(), b"cryptsetup:state:00000000-0000-0000-0000-000000001234");
        assert_eq!((measurement.pcr().get(), measurement.event_type()), (15, "volume-key"));
        for bank in PcrBank::ALL {
            assert_eq!(measurement.digest(bank), PcrDigest::of(bank, &[b"stands for an HMAC"]));
        }
        assert!(REGISTRY.iter().any(|entry| entry.who == "verify-init" && entry.pcrs == [15]));
    }

    #[test]
    fn the_registry_names_every_register_that_is_measured_into() {
        for measurement in Measurement::of_boot(b"", Sha256Digest::of(b""), false) {
            let pcr = measurement.pcr().get();
            assert!(REGISTRY.iter().any(|entry| entry.who == "verify-init" && entry.pcrs.contains(&pcr)), "{pcr}");
        }
    }
}
