//! `iofs-sign disk`.

use std::path::PathBuf;

use iofs_sign::{
    disk::{self, Additions},
    report::{Failure, Output},
    sealed::SealedDirectory,
};

/// Write a disk image: GPT, with the sealed data and its hash tree in typed partitions, and what firmware starts
///
/// Where the directory has uki.efi, the first partition is an EFI system partition from which firmware starts it, by a boot loader
/// where that chooses among slots; where it has roothash.p7s, the last one holds that signature, for systemd's tools. What is sealed for slots lies in slot a; slot b and
/// the record of tries come behind it. The same input gives the same image. It is written sparse, and whole or not at all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign disk sealed --out disk.img
  iofs-sign disk sealed --uki signed.efi --esp-size 512M --out disk.img

Exit codes: 1 system, 2 usage, 3 malformed input.")]
pub(crate) struct Arguments {
    /// The directory that 'iofs-sign seal' wrote
    directory: PathBuf,
    /// The image file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The unified kernel image that firmware starts [default: uki.efi of the directory]
    #[arg(long, value_name = "FILE")]
    uki: Option<PathBuf>,
    /// The boot loader, where it chooses among slots, signed where Secure Boot is on [default: the systemd-boot that is installed]
    #[arg(long, value_name = "FILE")]
    boot_loader: Option<PathBuf>,
    /// The size of the EFI system partition, in bytes or with K, M or G [default: for two such images]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    esp_size: Option<u64>,
    /// The size of each of two slots, in bytes or with K, M or G [default: half as much again as the image takes]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    slot_size: Option<u64>,
    /// The certificate that goes with roothash.p7s, PEM or DER [default: roothash.crt of the directory]
    #[arg(long, value_name = "FILE")]
    verity_certificate: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let additions = Additions {
        uki: arguments.uki.clone(),
        boot_loader: arguments.boot_loader.clone(),
        esp_size: arguments.esp_size,
        slot_size: arguments.slot_size,
        root_certificate: arguments.verity_certificate.clone(),
    };
    let report = disk::write(&SealedDirectory::new(&arguments.directory), &arguments.out, &additions, output)?;
    output.result(&report, || {
        let mut text = format!("disk:      {} ({} bytes)\n", report.path.display(), report.size);
        for one in &report.partitions {
            text += &format!(
                "partition: {} {:15} PARTUUID={} at {} ({} bytes)\n",
                one.number, one.label, one.partuuid, one.offset, one.size
            );
        }
        text
    });
    Ok(())
}

/// A number of bytes, with the binary prefixes that other disk tools take.
fn size(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1_u64),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "expected bytes, or a number with K, M or G".into())
}
