//! `iofs-sign uki`.

use std::path::{Path, PathBuf};

use super::secure_boot::SecureBootKey;
use iofs_sign::{
    atomic,
    initramfs::kernel::KernelImage,
    report::{ExitStatus, Failure, Output},
    sealed::{self, SealedDirectory},
    uki::{self, Assembled, Part},
};

/// Assemble a unified kernel image: kernel, mini-initramfs and command line in one file that UEFI firmware starts
///
/// The first code in it is systemd's stub, which measures every part into register 11. The same input gives the same
/// bytes. Where Secure Boot is on, firmware starts it if it is signed by a key that it trusts: give that key here, or sign it
/// later with 'iofs-sign sign-efi'.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign uki sealed --cmdline 'quiet' --out sealed.efi
  iofs-sign uki --kernel vmlinuz --initrd initramfs.img --cmdline @cmdline --os-release os-release --out sealed.efi
  iofs-sign uki sealed --cmdline 'quiet' --secure-boot-key db.pem --secure-boot-certificate db.crt --out sealed.efi
  iofs-sign inspect sealed.efi

Exit codes: 1 system, 2 usage, 3 malformed input, 5 no stub.")]
pub(crate) struct Arguments {
    /// The directory that 'iofs-sign seal' wrote
    #[arg(required_unless_present_all = ["kernel", "initrd"])]
    directory: Option<PathBuf>,
    /// The kernel [default: of the directory]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The mini-initramfs [default: of the directory]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel command line; @FILE reads it from a file
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// The system's os-release
    #[arg(long, value_name = "FILE")]
    os_release: Option<PathBuf>,
    /// systemd's stub [default: that of the kernel's machine in /usr/lib/systemd/boot/efi]
    #[arg(long, value_name = "FILE")]
    stub: Option<PathBuf>,
    /// Microcode, as an uncompressed initramfs
    #[arg(long, value_name = "FILE")]
    microcode: Option<PathBuf>,
    /// A picture to show (BMP)
    #[arg(long, value_name = "FILE")]
    splash: Option<PathBuf>,
    /// A devicetree
    #[arg(long, value_name = "FILE")]
    devicetree: Option<PathBuf>,
    /// Signatures for register 11, as systemd-measure writes them
    #[arg(long, value_name = "FILE", requires = "pcr_public_key")]
    pcr_signature: Option<PathBuf>,
    /// The public key of these signatures (PEM)
    #[arg(long, value_name = "FILE")]
    pcr_public_key: Option<PathBuf>,
    #[command(flatten)]
    secure_boot: SecureBootKey,
    /// The image to write
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Assemble and report, but write nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let kernel_path = of_directory(arguments, arguments.kernel.as_deref(), sealed::KERNEL)?;
    let kernel = KernelImage::read(&kernel_path)?;
    let stub = uki::read_stub(arguments.stub.as_deref(), kernel.machine)?;
    let parts = parts(arguments, &kernel_path, &kernel)?;
    let parts: Vec<(Part, &[u8])> = parts.iter().map(|(part, bytes)| (*part, &bytes[..])).collect();
    let mut assembled = uki::assemble(&stub, &parts)?;
    if let (_, Some(signer)) = arguments.secure_boot.read(output)? {
        assembled.sign(&signer)?;
    }
    if let Some(out) = arguments.out.as_deref().filter(|_| !arguments.dry_run) {
        atomic::write(out, 0o644, &assembled.bytes)?;
    }
    output.result(&assembled, || describe(&assembled));
    Ok(())
}

fn parts(arguments: &Arguments, path: &Path, kernel: &KernelImage) -> Result<Vec<(Part, Vec<u8>)>, Failure> {
    let initrd = of_directory(arguments, arguments.initrd.as_deref(), sealed::INITRAMFS)?;
    let mut parts = vec![
        (Part::Linux, atomic::read(path)?),
        (Part::Initrd, atomic::read(&initrd)?),
        (Part::Uname, kernel.release.to_string().into_bytes()),
    ];
    if let Some(line) = &arguments.cmdline {
        parts.push((Part::CommandLine, command_line(line)?.into_bytes()));
    }
    for (part, file) in [
        (Part::OsRelease, &arguments.os_release),
        (Part::Microcode, &arguments.microcode),
        (Part::Splash, &arguments.splash),
        (Part::Devicetree, &arguments.devicetree),
        (Part::PcrSignature, &arguments.pcr_signature),
        (Part::PcrPublicKey, &arguments.pcr_public_key),
    ] {
        if let Some(file) = file {
            parts.push((part, atomic::read(file)?));
        }
    }
    Ok(parts)
}

fn of_directory(arguments: &Arguments, given: Option<&Path>, name: &str) -> Result<PathBuf, Failure> {
    match (given, &arguments.directory) {
        (Some(path), _) => Ok(path.to_owned()),
        (None, Some(directory)) if SealedDirectory::new(directory).has(name) => Ok(directory.join(name)),
        (None, directory) => {
            let directory = directory.as_deref().unwrap_or(Path::new(".")).display();
            Err(Failure::new(ExitStatus::Missing, format!("{directory}: no {name} in it"))
                .next("seal with --kernel and --modules, and sign; or give --kernel and --initrd"))
        }
    }
}

/// As it was typed, or the one line of a file.
fn command_line(text: &str) -> Result<String, Failure> {
    let Some(path) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let bytes = atomic::read(Path::new(path))?;
    let line = String::from_utf8(bytes).map_err(|error| sealed::bad_input(Path::new(path), &error))?;
    Ok(line.trim_end_matches('\n').to_owned())
}

fn describe(assembled: &Assembled) -> String {
    let Assembled { bytes, stub, authenticode, parts, signer } = assembled;
    let mut text = format!("unified kernel image: {} bytes, systemd-stub {stub}\n", bytes.len());
    for part in parts {
        text += &format!("  {:9} {:9} bytes  sha256:{}\n", part.section, part.size, part.sha256);
    }
    text += &format!("Authenticode: sha256:{authenticode}\n");
    match signer {
        Some(signer) => text + &format!("signer:       {signer}\n"),
        None => text + " next: for Secure Boot, sign it with 'iofs-sign sign-efi'\n",
    }
}
