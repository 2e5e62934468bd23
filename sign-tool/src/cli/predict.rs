//! `iofs-sign predict`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::ImageIdentity,
    measurement::{self, PredictedEvent},
    pcr::PcrBank,
    release::Release,
};
use iofs_sign::{
    attest::references,
    report::{ExitStatus, Failure, Output},
};
use serde::Serialize;

/// Print the register values that a boot of a release leads to
///
/// Says what verify-init measures, in its order, and what each register holds after it: per bank, and for each command line
/// that the release is meant to boot with. The registers 11 to 13 begin as zeroes where nothing else is measured into them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign predict sealed --key release.pub.pem
  iofs-sign predict release.dsse.json --key release.pub.pem --bank sha256 --command-line 'quiet ro'

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
}

/// The result.
#[derive(Debug, Serialize)]
struct Prediction {
    image: ImageIdentity,
    manifest_digest: Sha256Digest,
    predictions: Vec<OfCommandLine>,
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
    let predictions = lines.iter().map(|line| predict(&release, line, &banks)).collect::<Result<_, _>>()?;
    let prediction = Prediction { image: release.image.clone(), manifest_digest: release.manifest_digest, predictions };
    output.result(&prediction, || describe(&prediction));
    Ok(())
}

fn predict(release: &Release, line: &str, banks: &BTreeSet<PcrBank>) -> Result<OfCommandLine, Failure> {
    let measurements = release.measurements(line);
    let of_bank = |bank: &PcrBank| Ok((bank.name(), measurement::predict(&measurements, *bank)?));
    let banks = banks.iter().map(of_bank).collect::<Result<_, _>>();
    let banks = banks
        .map_err(|error: iofs_policy::pcr::PcrError| Failure::new(ExitStatus::System, format!("predict: {error}")))?;
    Ok(OfCommandLine { command_line: line.to_owned(), banks })
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
    text
}

/// A digest in full says no more than its beginning: the whole one is in JSON.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
