//! `iofs-sign inspect`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use iofs_sign::{
    atomic::AtomicFile,
    inspect::{self, initramfs},
    report::{Failure, Output},
};

/// Show what a file is and what it says, without believing any of it
///
/// Knows sealed directories, manifests, release statements, trust policies, boot records, verity superblocks, erofs images,
/// LUKS2 volumes (files and devices), initramfs archives, disk images, kernels, module indexes and keys. Signatures are
/// listed, not verified: 'iofs-sign verify' does that.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign inspect sealed/manifest.dsse.json
  iofs-sign inspect sealed/initramfs.img --extract etc/iofs/trust.json
  iofs-sign inspect /dev/vda3
  iofs-sign inspect /boot/initrd.img-6.1.0 --extract-all unpacked")]
pub(crate) struct Arguments {
    /// The file, a device, or a sealed directory
    file: PathBuf,
    /// Write one file of an initramfs to standard output, or to --out
    #[arg(long, value_name = "PATH")]
    extract: Option<String>,
    /// Where --extract writes
    #[arg(long, value_name = "FILE", requires = "extract")]
    out: Option<PathBuf>,
    /// Unpack a whole initramfs into a new directory, with owners and devices (as root)
    #[arg(long, value_name = "DIR", conflicts_with = "extract")]
    extract_all: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    if let Some(name) = &arguments.extract {
        return extract(&arguments.file, name, arguments.out.as_deref());
    }
    if let Some(directory) = &arguments.extract_all {
        for remark in initramfs::extract_all(&arguments.file, directory)? {
            output.warn(remark);
        }
        return Ok(());
    }
    let inspection = inspect::inspect(&arguments.file)?;
    output.result(&inspection, || inspection.to_string());
    Ok(())
}

fn extract(archive: &Path, name: &str, out: Option<&Path>) -> Result<(), Failure> {
    match out {
        None => {
            let mut stdout = std::io::stdout().lock();
            initramfs::extract(archive, name, &mut stdout)?;
            stdout.flush().map_err(|error| Failure::io("write standard output", &error))
        }
        Some(path) => {
            let mut file = AtomicFile::create(path, 0o644)?;
            initramfs::extract(archive, name, file.file())?;
            file.replace()
        }
    }
}
