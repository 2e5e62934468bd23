//! What firmware's registers will hold when a machine boots a release's unified kernel image, from the log of a boot of
//! something else on that machine: what depends on the image is replaced, all else stays.
//!
//! It is a prediction for people and build systems. Types in the log decide what is replaced here, which a verifier never
//! lets them do.

use iofs_policy::{
    manifest::VolumeName,
    measurement::{Measurement, PredictedEvent, Predictor},
    pcr::{PcrBank, PcrDigest, PcrError, PcrIndex},
    release::Release,
    uki::UkiMeasurements,
};

use crate::{
    bytes::{FieldError, Reader},
    tcg::{Event, EventLog, EventType, load_options, variable_value},
};

/// Where firmware measures the programs that it starts, and its Secure Boot policy.
const PROGRAMS: u8 = 4;
const SECURE_BOOT: u8 = 7;
/// Where the kernel's EFI stub measures.
const KERNEL_STUB: u8 = 9;
/// What firmware says before it starts the first program (PFP, section 10.4.4).
const BOOT_ACTION: &[u8] = b"Calling EFI Application from Boot Option";
/// EFI_IMAGE_SECURITY_DATABASE_GUID, of the variables db and dbx (UEFI, section 32.6.1), as it lies in memory.
const SECURITY_DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// EFI_CERT_X509_GUID (UEFI, section 32.4.1), as it lies in memory.
const X509: [u8; 16] = [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
/// `db` in UTF-16.
const DB: &[u8] = b"d\0b\0";

/// Why nothing can be predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// The release has no such image.
    #[error("release {0}: it has no unified kernel image, which firmware could start")]
    NoUki(String),
    /// The log lacks the bank.
    #[error("firmware log: event {event}: expected a digest of bank {bank}, found none")]
    Bank {
        /// The event.
        event: usize,
        /// The bank.
        bank: PcrBank,
    },
    /// Secure Boot was on, and the signer is not in db.
    #[error(
        "firmware log: db: expected the signer's certificate in it, found others: this machine would not start the image"
    )]
    NotInDb,
    /// A variable in the log cannot be read.
    #[error("firmware log: db: {0}")]
    Db(#[from] FieldError),
    /// Digests of two banks.
    #[error(transparent)]
    Pcr(#[from] PcrError),
}

/// What a boot will be.
#[derive(Debug, Clone, Copy)]
pub struct NextBoot<'a> {
    /// The release, with its image.
    pub release: &'a Release,
    /// The command line of the image.
    pub command_line: &'a str,
    /// The certificate of who signed the image for Secure Boot, in DER; none where nobody did.
    pub signer: Option<&'a [u8]>,
    /// What its volumes add to register 15, where [`Manifest::measured_volumes`] knows it in the bank that is predicted.
    ///
    /// [`Manifest::measured_volumes`]: iofs_policy::manifest::Manifest::measured_volumes
    pub volumes: &'a [(VolumeName, PcrDigest)],
}

/// Predicts every event of that boot, firmware's first, with the values that follow.
///
/// Register 5 keeps the partition table that the log has; 9 is what the kernel's own EFI stub measures, and is predicted where the
/// log has such events.
///
/// # Errors
/// [`BaseError`].
pub fn predict(log: &EventLog, next: &NextBoot<'_>, bank: PcrBank) -> Result<Vec<PredictedEvent>, BaseError> {
    let release = next.release;
    let uki = release.uki.as_ref().ok_or_else(|| BaseError::NoUki(release.image.id.to_string()))?;
    let mut predictor = Predictor::new(bank);
    PcrIndex::all().for_each(|pcr| predictor.start(pcr, log.initial_value(bank, pcr)));
    let mut rebase = Rebase { log, next, uki, bank, predictor, booting: false, started: false };
    log.events.iter().try_for_each(|event| rebase.event(event))?;
    rebase.started()?;
    let measurements = Measurement::of_boot(next.command_line.as_bytes(), release.manifest_digest, release.image.debug);
    rebase.predictor.boot_with_volumes(&measurements, next.volumes)?;
    Ok(rebase.predictor.finish())
}

struct Rebase<'a> {
    log: &'a EventLog,
    next: &'a NextBoot<'a>,
    uki: &'a UkiMeasurements,
    bank: PcrBank,
    predictor: Predictor,
    /// Whether firmware tries its boot options.
    booting: bool,
    /// Whether the image was started.
    started: bool,
}

impl Rebase<'_> {
    fn event(&mut self, event: &Event) -> Result<(), BaseError> {
        let Some(pcr) = event.extends() else { return Ok(()) };
        self.booting |= event.kind == EventType::EFI_ACTION && event.data == BOOT_ACTION;
        let is_replaced = match (pcr.get(), event.kind) {
            (PROGRAMS, EventType::EFI_BOOT_SERVICES_APPLICATION) if self.booting => true,
            (SECURE_BOOT, EventType::EFI_VARIABLE_AUTHORITY) if self.booting => true,
            (KERNEL_STUB, EventType::EVENT_TAG) => return self.kernel_stub(event),
            _ => pcr == UkiMeasurements::PCR,
        };
        if is_replaced {
            return self.started();
        }
        let digest = event.digest(self.bank).ok_or(BaseError::Bank { event: event.number, bank: self.bank })?;
        Ok(self.predictor.extend(pcr, &event.kind.to_string(), &event.description(), digest)?)
    }

    /// The signer, the image and what its stub measures: once, where the log has the first of these.
    fn started(&mut self) -> Result<(), BaseError> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        self.measure_authority()?;
        let lacks = || BaseError::Bank { event: 0, bank: self.bank };
        let digest = self.uki.authenticode.get(self.bank).ok_or_else(lacks)?;
        let kind = EventType::EFI_BOOT_SERVICES_APPLICATION.to_string();
        self.predictor.extend(PcrIndex::new(PROGRAMS)?, &kind, "the release's uki.efi", digest)?;
        Ok(self.predictor.stub(self.uki)?)
    }

    /// Firmware measures the entry of db by which it trusts an image, once for each: not at all where Secure Boot is off.
    fn measure_authority(&mut self) -> Result<(), BaseError> {
        let Some(signer) = self.next.signer.filter(|_| is_enforced(self.log)) else { return Ok(()) };
        let entry = entry_of(self.log, signer)?.ok_or(BaseError::NotInDb)?;
        let size = |bytes: &[u8]| (bytes.len() as u64).to_le_bytes();
        let data = [&SECURITY_DATABASE[..], &2_u64.to_le_bytes(), &size(entry), DB, entry].concat();
        let kind = EventType::EFI_VARIABLE_AUTHORITY.to_string();
        let digest = PcrDigest::of(self.bank, &[&data]);
        Ok(self.predictor.extend(PcrIndex::new(SECURE_BOOT)?, &kind, "variable db: the signer", digest)?)
    }

    /// Linux' EFI stub measures the command line that it gets, and the initramfs.
    fn kernel_stub(&mut self, event: &Event) -> Result<(), BaseError> {
        self.started()?;
        let (pcr, kind) = (PcrIndex::new(KERNEL_STUB)?, event.kind.to_string());
        let text = event.description();
        let digest = if text.contains("LoadOptions") {
            PcrDigest::of(self.bank, &[&load_options(self.next.command_line)])
        } else {
            let digest = self.uki.initrd.get(self.bank);
            digest.ok_or(BaseError::Bank { event: event.number, bank: self.bank })?
        };
        Ok(self.predictor.extend(pcr, &kind, &text, digest)?)
    }
}

/// Whether firmware checks signatures: the first event of the variable `SecureBoot` has a 1.
fn is_enforced(log: &EventLog) -> bool {
    let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut values = log.events.iter().filter(|event| event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG);
    let value = values.find(|event| event.data.get(32..).is_some_and(|data| data.starts_with(&name)));
    value.and_then(|event| variable_value(&event.data)) == Some(&[1])
}

/// The signer's entry in db, EFI_SIGNATURE_DATA: owner, then certificate (UEFI, section 32.4.1).
fn entry_of<'l>(log: &'l EventLog, signer: &[u8]) -> Result<Option<&'l [u8]>, FieldError> {
    let is_db = |event: &&Event| {
        event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG
            && event.data.starts_with(&SECURITY_DATABASE)
            && event.data.get(32..).is_some_and(|data| data.starts_with(DB))
            && event.data.get(16) == Some(&2)
    };
    let Some(db) = log.events.iter().find(is_db).and_then(|event| variable_value(&event.data)) else { return Ok(None) };
    let mut reader = Reader::new(db);
    while !reader.is_empty() {
        let kind = reader.bytes("SignatureType", 16)?;
        let list = reader.u32_le("SignatureListSize")? as usize;
        let header = reader.u32_le("SignatureHeaderSize")? as usize;
        let size = reader.u32_le("SignatureSize")? as usize;
        reader.bytes("SignatureHeader", header)?;
        let entries = reader.bytes("Signatures", list.saturating_sub(28).saturating_sub(header))?;
        let mut entries = if kind == X509 && size > 16 { entries.chunks_exact(size) } else { [].chunks_exact(1) };
        if let Some(entry) = entries.find(|entry| entry[16..] == *signer) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}
