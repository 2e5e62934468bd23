//! Checks an image to its last byte and tells what is in it: `readimage IMAGE`.

use std::{error::Error, fs::File, process::ExitCode};

use erofs_image::Image;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("readimage: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: readimage IMAGE")?;
    let image = Image::open(File::open(path)?)?;
    let found = image.check()?;
    println!("{} inodes, {} names, {} bytes", found.inodes, found.names, found.bytes);
    Ok(())
}
