//! `iofs-sign predict`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use iofs_attest::{
    base::{self, BaseError, NextBoot},
    tcg::{self, EventLog},
};
use iofs_policy::{
    digest::Sha256Digest,
    dsse::PayloadType,
    manifest::{ImageIdentity, Manifest, VolumeName},
    measurement::{PredictedEvent, Predictor},
    pcr::{PcrBank, PcrDigest},
    release::Release,
};
use iofs_sign::{
    attest::{self, references},
    report::{ExitStatus, Failure, Output},
    sealed::{self, SealedDirectory, bad_input},
    x509::SigningCertificate,
};
use serde::Serialize;

/// Print the register values that a boot of a release leads to
///
/// Says what is measured, in its order, and what each register holds after it: per bank, and for each command line that the
/// release is meant to boot with. That is what verify-init measures, and before it what systemd's stub measures of the release's
/// unified kernel image, where it has one.
///
/// Register 15 is the machine's own, unless the manifest beside the statement pins the key of each volume: then what the volumes add
/// to it is predicted, in the SHA-256 bank.
///
/// With the firmware log of the machine, from a boot of anything, firmware's registers are predicted too: its events, with
/// those replaced that depend on the image (4, the signer in 7, the kernel's own in 9).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign predict sealed --key release.pub.pem
  iofs-sign predict release.dsse.json --key release.pub.pem --bank sha256 --command-line 'quiet ro'
  iofs-sign predict sealed --key release.pub.pem --firmware-log binary_bios_measurements

'iofs-sign attest explain' shows the same beside what a device measured.")]
pub(crate) struct Arguments {
    /// The release statement, or the directory that 'iofs-sign seal' wrote
    release: PathBuf,
    /// A public key that must have signed (SubjectPublicKeyInfo PEM)
    #[arg(long, value_name = "PUBLIC", required = true)]
    key: Vec<PathBuf>,
    /// How many of the keys must have signed
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: u8,
    /// A bank: sha1, sha256, sha384 or sha512 [default: all of them]
    #[arg(long, value_name = "BANK", value_delimiter = ',')]
    bank: Vec<PcrBank>,
    /// A kernel command line, as /proc/cmdline shows it [default: those of the release]
    #[arg(long, value_name = "TEXT")]
    command_line: Vec<String>,
    /// The log of the machine's firmware: /sys/kernel/security/tpm0/binary_bios_measurements
    #[arg(long, value_name = "FILE")]
    firmware_log: Option<PathBuf>,
    /// Who signs the image for Secure Boot [default: secure-boot.crt of the directory]
    #[arg(long, value_name = "FILE", requires = "firmware_log")]
    secure_boot_certificate: Option<PathBuf>,
}

/// The machine whose boot is predicted.
struct MachineBase {
    log: EventLog,
    /// The signer's certificate in DER.
    signer: Option<Vec<u8>>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Prediction {
    image: ImageIdentity,
    manifest_digest: Sha256Digest,
    predictions: Vec<OfCommandLine>,
    /// What cannot be predicted, and why.
    notes: Vec<String>,
}

/// What a boot with one command line leads to.
#[derive(Debug, Serialize)]
struct OfCommandLine {
    command_line: String,
    banks: BTreeMap<&'static str, Vec<PredictedEvent>>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let keys = references::trusted_keys(&arguments.key, arguments.threshold)?;
    for key in keys.keys() {
        super::warn_example(key.id(), output);
    }
    let release = references::release(&arguments.release, &keys)?;
    let lines = if arguments.command_line.is_empty() { &release.command_lines } else { &arguments.command_line };
    if lines.is_empty() {
        let fact = format!("{}: it names no command line", arguments.release.display());
        return Err(
            Failure::new(ExitStatus::Usage, fact).next("give the one that the device boots with: --command-line")
        );
    }
    let banks: BTreeSet<PcrBank> = match &arguments.bank[..] {
        [] => PcrBank::ALL.into(),
        asked => asked.iter().copied().collect(),
    };
    let machine = machine(arguments)?;
    let (volumes, notes) = volumes(arguments, &release, &banks)?;
    let boot = Boot { release: &release, volumes, machine: machine.as_ref() };
    let predictions = lines.iter().map(|line| boot.predict(line, &banks)).collect::<Result<_, _>>()?;
    let (image, manifest_digest) = (release.image.clone(), release.manifest_digest);
    let prediction = Prediction { image, manifest_digest, predictions, notes };
    output.result(&prediction, || describe(&prediction));
    Ok(())
}

/// What is known of the machine.
fn machine(arguments: &Arguments) -> Result<Option<MachineBase>, Failure> {
    let Some(path) = &arguments.firmware_log else { return Ok(None) };
    let log = EventLog::parse(&attest::read(path, tcg::MAX_SIZE)?).map_err(|error| bad_input(path, &error))?;
    let beside = arguments.release.join(sealed::SECURE_BOOT_CERTIFICATE);
    let certificate = arguments.secure_boot_certificate.clone().or_else(|| beside.is_file().then_some(beside));
    let signer = certificate.map(|path| Ok::<_, Failure>(SigningCertificate::read(&path)?.to_der())).transpose()?;
    Ok(Some(MachineBase { log, signer }))
}

/// What the volumes add to register 15, by bank.
type Volumes = BTreeMap<PcrBank, Vec<(VolumeName, PcrDigest)>>;

/// What the manifest decides of register 15, and notes about what it does not.
fn volumes(
    arguments: &Arguments,
    release: &Release,
    banks: &BTreeSet<PcrBank>,
) -> Result<(Volumes, Vec<String>), Failure> {
    let Some(manifest) = manifest(arguments, release)? else {
        let note = "PCR 15 is the machine's own: whether the release opens volumes is in its manifest; give the whole directory";
        return Ok((Volumes::new(), vec![note.to_owned()]));
    };
    let (mut known, mut notes) = (Volumes::new(), Vec::new());
    for bank in banks {
        match manifest.measured_volumes(*bank) {
            Ok(volumes) => drop(known.insert(*bank, volumes)),
            Err(unknown) => notes.push(format!("PCR 15 ({bank}) is the machine's own: {unknown}")),
        }
    }
    let pinned = known.values().any(|volumes| !volumes.is_empty());
    if pinned {
        notes
            .push("PCR 15 is predicted until leave-initrd: systemd may add the machine-id and file systems".to_owned());
    }
    Ok((known, notes))
}

/// The manifest beside the statement, which must be the one that it is of.
fn manifest(arguments: &Arguments, release: &Release) -> Result<Option<Manifest>, Failure> {
    let directory = SealedDirectory::new(&arguments.release);
    if !arguments.release.is_dir() || !directory.has(sealed::MANIFEST) {
        return Ok(None);
    }
    let path = directory.file(sealed::MANIFEST);
    let envelope = directory.envelope(sealed::MANIFEST, PayloadType::Manifest)?;
    let (expected, found) = (release.manifest_digest, Sha256Digest::of(envelope.unverified_payload()));
    if found != expected {
        let fact = format!("{}: expected the release's manifest, {expected}, found {found}", path.display());
        return Err(Failure::new(ExitStatus::NotVerified, fact).next("give the directory as 'iofs-sign seal' wrote it"));
    }
    directory.manifest_in(&envelope).map(Some)
}

/// What boots.
struct Boot<'a> {
    release: &'a Release,
    volumes: Volumes,
    machine: Option<&'a MachineBase>,
}

impl Boot<'_> {
    fn predict(&self, line: &str, banks: &BTreeSet<PcrBank>) -> Result<OfCommandLine, Failure> {
        let of_bank = |bank: &PcrBank| Ok((bank.name(), self.events(line, *bank)?));
        let banks = banks.iter().map(of_bank).collect::<Result<_, BaseError>>();
        let banks = banks.map_err(|error| Failure::new(ExitStatus::BadInput, error.to_string()))?;
        Ok(OfCommandLine { command_line: line.to_owned(), banks })
    }

    fn events(&self, line: &str, bank: PcrBank) -> Result<Vec<PredictedEvent>, BaseError> {
        let (release, volumes) = (self.release, self.volumes.get(&bank).map_or(&[][..], Vec::as_slice));
        if let Some(MachineBase { log, signer }) = self.machine {
            let next = NextBoot { release, command_line: line, signer: signer.as_deref(), volumes };
            return base::predict(log, &next, bank);
        }
        let mut predictor = Predictor::new(bank);
        release.uki.as_ref().map(|uki| predictor.stub(uki)).transpose()?;
        predictor.boot_with_volumes(&release.measurements(line), volumes)?;
        Ok(predictor.finish())
    }
}

fn describe(prediction: &Prediction) -> String {
    let mut text = format!("release:      {} {}\n", prediction.image.id, prediction.image.version);
    for of_line in &prediction.predictions {
        text += &format!("command line: {}\n", of_line.command_line);
        for (bank, events) in &of_line.banks {
            text += &format!("{bank}\n");
            for event in events {
                text += &format!("  {:2}  {:<17}  {}\n", event.pcr, event.event_type, shorten(&event.text));
                text += &format!("      {}\n", event.value);
            }
        }
    }
    prediction.notes.iter().for_each(|note| text += &format!("note:         {note}\n"));
    text
}

/// A digest in full says no more than its beginning: the whole one is in JSON.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
