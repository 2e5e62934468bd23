//! Makes an image of a directory, a tar archive or an initramfs: `mkimage SOURCE IMAGE [--compression none|lz4|lz4hc|zstd] [--level N] [--threads N]
//! [--cluster BYTES]`. `mkimage --check IMAGE` reads an image to its last byte.

use std::{
    error::Error,
    fs::File,
    io::Read,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

use erofs_image::{
    Compression, Image, ImageWriter, Options, Tree,
    source::{
        archive::{self, Keep},
        directory,
    },
    write::{FileSink, KernelRelease},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mkimage: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut places: Vec<PathBuf> = Vec::new();
    let (mut name, mut level, mut options) = ("none".to_owned(), None, Options::default());
    let mut checked = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--compression" => name = value()?,
            "--level" => level = Some(value()?.parse()?),
            "--threads" => options.threads = value()?.parse()?,
            "--check" => checked = Some(value()?),
            "--cluster" => options.cluster_size = value()?.parse()?,
            _ => places.push(argument.into()),
        }
    }
    if let Some(image) = &checked {
        let found = Image::open(File::open(image)?)?.check()?;
        println!("{} inodes, {} bytes, all read", found.inodes, found.bytes);
        return Ok(());
    }
    let [source, image] = places.as_slice() else { return Err("usage: mkimage SOURCE IMAGE [OPTION]...".into()) };
    options.compression = compression(&name, level)?;
    if name == "zstd" {
        options.kernel = KernelRelease::new(6, 10);
    }
    write(source, image, options)
}

fn compression(name: &str, level: Option<i32>) -> Result<Compression, String> {
    Ok(match name {
        "none" => Compression::None,
        "lz4" => Compression::Lz4,
        "lz4hc" => Compression::Lz4hc { level: level.unwrap_or(9) },
        "zstd" => Compression::Zstd { level: level.unwrap_or(3) },
        _ => return Err(format!("unknown compression '{name}': none, lz4, lz4hc or zstd")),
    })
}

fn write(source: &Path, image: &Path, options: Options) -> Result<(), Box<dyn Error>> {
    let tree = load(source, &options)?;
    let written = ImageWriter::new(options, FileSink(File::create(image)?))?.finish(tree)?;
    println!(
        "{} blocks, {} inodes, {} files of the same content as others",
        written.blocks, written.inodes, written.duplicates
    );
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!("memory at most:{}", status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or(" unknown"));
    Ok(())
}

fn load(source: &Path, options: &Options) -> Result<Tree, Box<dyn Error>> {
    if source.is_dir() {
        let threads = NonZeroUsize::new(options.threads).map_or_else(std::thread::available_parallelism, Ok)?;
        return Ok(directory::load_on(source, threads)?);
    }
    let mut magic = [0; 5];
    File::open(source)?.read_exact(&mut magic)?;
    let keep = Keep::Packed(options.clone());
    let unpacked = if &magic == b"07070" { archive::initramfs(source, &keep)? } else { archive::tar(source, &keep)? };
    unpacked.remarks.iter().for_each(|remark| eprintln!("mkimage: {remark}"));
    Ok(unpacked.tree)
}
