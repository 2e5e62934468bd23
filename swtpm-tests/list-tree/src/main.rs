//! Lists a tree, one line a file: everything that a copy of it must have. The same program runs on the build machine
//! over the source and in the guest over the mounted image; the lists must be equal.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use sha2::{Digest, Sha256};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(root), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: list-tree ROOT OUT"));
    };
    let mut out = BufWriter::new(File::options().write(true).create(true).truncate(false).open(out)?);
    list(Path::new(&root), Path::new(""), &mut out)?;
    writeln!(out, "END OF LIST")?;
    out.into_inner()?.sync_all()
}

fn list(root: &Path, inside: &Path, out: &mut impl Write) -> io::Result<()> {
    let path = root.join(inside);
    let metadata = fs::symlink_metadata(&path)?;
    let kind = metadata.file_type();
    write!(
        out,
        "{} {:o} {}:{} {}.{:09}",
        inside.as_os_str().as_bytes().escape_ascii(),
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )?;
    if !kind.is_dir() {
        // A directory's links and size are the file system's own business.
        write!(out, " links={} size={}", metadata.nlink(), metadata.len())?;
    }
    if kind.is_symlink() {
        write!(out, " -> {}", fs::read_link(&path)?.as_os_str().as_bytes().escape_ascii())?;
    } else if kind.is_char_device() || kind.is_block_device() {
        write!(out, " device={:#x}", metadata.rdev())?;
    } else if kind.is_file() {
        write!(out, " sha256={}", digest(&path)?)?;
    }
    attributes(&path, out)?;
    writeln!(out)?;
    if kind.is_dir() {
        let mut names = fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        names.iter().try_for_each(|name| list(root, &inside.join(name), out))?;
    }
    Ok(())
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut file = File::open(path)?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(path: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut names = vec![0_u8; 64 * 1024];
    let length = rustix::fs::llistxattr(path, &mut names)?;
    let mut names: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0_u8; 64 * 1024];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
        write!(out, " {}={}", name.escape_ascii(), hexadecimal(&value[..length]))?;
    }
    Ok(())
}
