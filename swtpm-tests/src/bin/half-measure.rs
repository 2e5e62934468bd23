//! Does what `verify-init` does to measure, up to the middle: the log is locked and marked, the register extended, and the
//! record not yet written. Then it waits to be killed.

use std::{io, thread, time::Duration};

use anyhow::Result;
use iofs_policy::{measurement::Measurement, pcr::PcrDigest};
use iofs_tpm::{
    Tpm, pcr,
    transport::{Transport, TransportError},
};
use verify_init::{Linux, System};

struct Wire(Linux);

impl Transport for Wire {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.0.tpm(command)
    }
}

fn main() -> Result<()> {
    let mut linux = Linux::default();
    linux.open_tpm(Duration::from_secs(1))?;
    linux.begin_log_record()?;
    let mut tpm = Tpm::new(Wire(linux));
    let banks = pcr::active_banks(&mut tpm)?;
    let measurement = Measurement::LeaveInitrd;
    let digests: Vec<PcrDigest> = banks.banks().map(|bank| measurement.digest(bank)).collect();
    pcr::extend(&mut tpm, &banks, measurement.pcr(), &digests)?;
    println!("EXTENDED");
    io::Write::flush(&mut io::stdout())?;
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}
