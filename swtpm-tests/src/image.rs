//! Unified kernel images in the hands of whoever changes them.

use std::fs;

use anyhow::{Context, Result};
use iofs_sign::{
    pe::Headers,
    uki::{self, Part},
};

use crate::cache;

/// A section of an image.
///
/// # Errors
///
/// Where the image has none, or is none.
pub fn section(image: &[u8], part: Part) -> Result<Vec<u8>> {
    let headers = Headers::parse(image)?;
    let section = headers.find(part.section()).with_context(|| format!("the image has a {part}"))?;
    Ok(section.contents(image).to_vec())
}

/// The image with other sections, by some suite's stub; nobody has signed it for firmware.
///
/// # Errors
///
/// Where the cache lacks the stub, or the sections make no image.
pub fn rebuilt(image: &[u8], stub: &str, change: impl Fn(Part, Option<Vec<u8>>) -> Option<Vec<u8>>) -> Result<Vec<u8>> {
    let contents = Part::ALL.into_iter().filter_map(|part| Some((part, change(part, section(image, part).ok())?)));
    let contents: Vec<(Part, Vec<u8>)> = contents.collect();
    let parts: Vec<(Part, &[u8])> = contents.iter().map(|(part, bytes)| (*part, &bytes[..])).collect();
    Ok(uki::assemble(&fs::read(cache::stub(stub)?)?, &parts)?.bytes)
}
