//! `iofs-sign disk`.

use std::path::PathBuf;

use iofs_sign::{
    disk,
    report::{Failure, Output},
    sealed::SealedDirectory,
};

/// Write a disk image: GPT, with the sealed data and its hash tree in typed partitions
///
/// The same sealed directory gives the same image. It is written sparse, and whole or not at all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  iofs-sign disk sealed --out disk.img")]
pub(crate) struct Arguments {
    /// The directory that 'iofs-sign seal' wrote
    directory: PathBuf,
    /// The image file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let report = disk::write(&SealedDirectory::new(&arguments.directory), &arguments.out, output)?;
    output.result(&report, || {
        let mut text = format!("disk:      {} ({} bytes)\n", report.path.display(), report.size);
        for one in &report.partitions {
            text += &format!(
                "partition: {} {:12} PARTUUID={} at {} ({} bytes)\n",
                one.number, one.label, one.partuuid, one.offset, one.size
            );
        }
        text
    });
    Ok(())
}
