//! `iofs-sign inspect`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use iofs_sign::{
    atomic::AtomicFile,
    inspect::{self, Detail, Inspection, image, initramfs},
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
  iofs-sign inspect sealed/image.erofs --check --list
  iofs-sign inspect /boot/initrd.img-6.1.0 --extract-all unpacked")]
pub(crate) struct Arguments {
    /// The file, a device, or a sealed directory
    file: PathBuf,
    /// List everything in an erofs image (an initramfs is listed anyway)
    #[arg(long, conflicts_with_all = ["extract", "extract_all"])]
    list: bool,
    /// Read everything in an erofs image, to the last byte of each file, and say what is damaged
    #[arg(long, conflicts_with_all = ["extract", "extract_all"])]
    check: bool,
    /// Write one file of an initramfs or erofs image to standard output, or to --out
    #[arg(long, value_name = "PATH")]
    extract: Option<String>,
    /// Where --extract writes
    #[arg(long, value_name = "FILE", requires = "extract")]
    out: Option<PathBuf>,
    /// Unpack a whole initramfs or erofs image into a new directory; owners and devices are kept for root alone
    #[arg(long, value_name = "DIR", conflicts_with = "extract")]
    extract_all: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let file = &arguments.file;
    if let Some(name) = &arguments.extract {
        return extract(file, name, arguments.out.as_deref());
    }
    if let Some(directory) = &arguments.extract_all {
        let left_out = if inspect::is_image(file)? { image::extract_all } else { initramfs::extract_all };
        left_out(file, directory)?.iter().for_each(|remark| output.warn(remark));
        return Ok(());
    }
    let detail = Detail { list: arguments.list, check: arguments.check };
    let inspection = if arguments.check || arguments.list && inspect::is_image(file)? {
        Inspection::Erofs(image::inspect(file, detail)?)
    } else {
        inspect::inspect(file)?
    };
    output.result(&inspection, || inspection.to_string());
    Ok(())
}

fn extract(archive: &Path, name: &str, out: Option<&Path>) -> Result<(), Failure> {
    match out {
        None => {
            let mut stdout = std::io::stdout().lock();
            extract_to(archive, name, &mut stdout)?;
            stdout.flush().map_err(|error| Failure::io("write standard output", &error))
        }
        Some(path) => {
            let mut file = AtomicFile::create(path, 0o644)?;
            extract_to(archive, name, file.file())?;
            file.replace()
        }
    }
}

fn extract_to(archive: &Path, name: &str, output: &mut impl Write) -> Result<u64, Failure> {
    match inspect::is_image(archive)? {
        true => image::extract(archive, name, output),
        false => initramfs::extract(archive, name, output),
    }
}
