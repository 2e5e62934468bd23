//! `iofs-sign attest quote`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use iofs_attest::policy_file::DEFAULT_PCRS;
use iofs_policy::pcr::{PcrBank, PcrIndex};
use iofs_sign::{
    attest::{
        self,
        logs::{FIRMWARE_LOG, MEASUREMENT_LOG, Place},
        tpm::QuotePlan,
    },
    report::{Failure, Output},
};
use serde::Serialize;

use super::attest_tpm::{HandleArguments, TpmArguments};

/// On the device: sign what was measured, and gather the logs that explain it
///
/// One quote covers the registers in all active banks. The logs are read at the same time: whoever measures into the
/// measurement log waits meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign attest quote --nonce @nonce --out evidence.json
  iofs-sign attest quote --nonce 5d0f...e1 --pcrs 0-7,11-14 --banks sha256")]
pub(crate) struct Arguments {
    /// What the verifier sent: hexadecimal, or @FILE
    #[arg(long, value_name = "NONCE")]
    nonce: String,
    /// The registers, such as 0-7,11; the verifier demands exactly those of its policy [default: 0-9,11-14]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_range)]
    pcrs: Vec<Range>,
    /// The banks [default: all active ones]
    #[arg(long, value_name = "BANK", value_delimiter = ',')]
    banks: Vec<PcrBank>,
    /// Firmware's log [default: /sys/kernel/security/tpm0/binary_bios_measurements]
    #[arg(long, value_name = "PATH")]
    firmware_log: Option<PathBuf>,
    /// User space's log [default: /run/log/systemd/tpm2-measure.log]
    #[arg(long, value_name = "PATH")]
    measurement_log: Option<PathBuf>,
    /// The evidence [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    handle: HandleArguments,
    #[command(flatten)]
    tpm: TpmArguments,
}

/// The result, where the evidence goes to a file.
#[derive(Debug, Serialize)]
struct Quoted<'a> {
    out: &'a Path,
    banks: Vec<&'a str>,
    pcrs: Vec<u8>,
    firmware_log: bool,
    measurement_log: bool,
}

/// One or more registers in a row.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: PcrIndex,
    last: PcrIndex,
}

fn parse_range(text: &str) -> Result<Range, String> {
    let index = |text: &str| {
        let number: u8 =
            text.parse().map_err(|_| format!("expected a register or two with - between, found {text:?}"))?;
        PcrIndex::new(number).map_err(|error| error.to_string())
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (index(first)?, index(last)?);
    if first > last {
        Err(format!("expected the lower register first, found {text}"))
    } else {
        Ok(Range { first, last })
    }
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let plan = QuotePlan {
        nonce: attest::nonce(&arguments.nonce)?,
        pcrs: registers(&arguments.pcrs),
        banks: arguments.banks.iter().copied().collect(),
        handle: arguments.handle.ak_handle.0,
        firmware_log: Place::of(arguments.firmware_log.as_deref(), FIRMWARE_LOG),
        measurement_log: Place::of(arguments.measurement_log.as_deref(), MEASUREMENT_LOG),
    };
    let mut host = arguments.tpm.open()?;
    let evidence = attest::tpm::evidence(&mut host, &plan)?;
    for (place, absent) in [
        (&plan.firmware_log, evidence.firmware_log.is_none()),
        (&plan.measurement_log, evidence.measurement_log.is_none()),
    ] {
        if absent {
            output.warn(format_args!("{} is not there: the evidence goes without it", place.path().display()));
        }
    }
    if evidence.measurement_log_torn {
        output.warn(
            "the measurement log is torn: somebody was stopped while measuring. A verifier refuses this evidence",
        );
    }
    attest::write(arguments.out.as_deref(), 0o644, &evidence.to_json())?;
    if let Some(out) = arguments.out.as_deref().filter(|path| *path != Path::new("-")) {
        let quoted = Quoted {
            out,
            banks: evidence.pcrs.keys().map(String::as_str).collect(),
            pcrs: plan.pcrs.iter().map(|index| index.get()).collect(),
            firmware_log: evidence.firmware_log.is_some(),
            measurement_log: evidence.measurement_log.is_some(),
        };
        output.result(&quoted, || {
            format!(
                "written: {} ({})\n next: send it to the verifier: iofs-sign attest verify",
                out.display(),
                quoted.banks.join(", ")
            )
        });
    }
    Ok(())
}

fn registers(ranges: &[Range]) -> BTreeSet<PcrIndex> {
    let chosen = |index: &PcrIndex| match ranges {
        [] => DEFAULT_PCRS.contains(&index.get()),
        ranges => ranges.iter().any(|range| (range.first..=range.last).contains(index)),
    };
    PcrIndex::all().filter(chosen).collect()
}
