//! Which of a layout's images.

use std::collections::BTreeMap;

use super::{
    OciError,
    digest::Digest,
    document::{Descriptor, Index, Manifest},
    layout::Layout,
};
use crate::archive::entry::printable;

/// How deep indexes lie in indexes; tools make two of them.
const DEPTH_LIMIT: usize = 8;
/// How many indexes are read.
const INDEX_LIMIT: usize = 64;
/// How many images a layout may have.
const IMAGE_LIMIT: usize = 4096;
/// The longest name of one; what registries call a tag has 128 bytes.
const NAME_LIMIT: usize = 1024;
/// How many of the images a message lists.
const LISTED: usize = 20;

/// What tells one image from others. All of it may stay open where there is one alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The annotation `org.opencontainers.image.ref.name`, of the image or of an index that holds it: what people call the tag.
    pub name: Option<String>,
    /// The processor in Go's words, such as `amd64` or `arm64`.
    pub architecture: Option<String>,
    /// The processor's kind, such as `v7`, where `architecture` alone leaves several.
    pub variant: Option<String>,
}

impl Choice {
    /// An image whose platform nobody tells may be the one: its config decides.
    fn takes(&self, descriptor: &Descriptor) -> bool {
        let Some(platform) = &descriptor.platform else { return true };
        self.architecture.as_ref().is_none_or(|wanted| *wanted == platform.architecture)
            && self.variant.as_ref().is_none_or(|wanted| Some(wanted) == platform.variant.as_ref())
    }

    fn describe(&self) -> String {
        let named = self.name.as_ref().map(|name| format!("named {}", printable(name.as_bytes())));
        let (architecture, variant) = (self.architecture.as_deref(), self.variant.as_deref());
        let architecture = architecture.into_iter().chain(variant).collect::<Vec<_>>().join("/");
        let platform = format!("for linux/{}", if architecture.is_empty() { "*" } else { &architecture });
        named.into_iter().chain([printable(platform.as_bytes())]).collect::<Vec<_>>().join(" ")
    }
}

/// An image, and the names that lead to it.
struct Found {
    descriptor: Descriptor,
    /// Its indexes' first.
    names: Vec<String>,
}

impl Found {
    fn is_named(&self, choice: &Choice) -> bool {
        choice.name.as_ref().is_none_or(|wanted| self.names.contains(wanted))
    }

    fn describe(&self) -> String {
        let name = if self.names.is_empty() { "without name".into() } else { self.names.join("/") };
        let platform = self.descriptor.platform.as_ref();
        let platform = platform.map_or_else(String::new, |found| {
            let variant = found.variant.iter().map(|variant| format!("/{variant}"));
            format!(", {}/{}{}", found.os, found.architecture, variant.collect::<String>())
        });
        printable(format!("{name}{platform} ({})", self.descriptor.digest).as_bytes())
    }
}

/// The manifest of the one image.
pub(super) fn manifest(layout: &Layout, choice: &Choice) -> Result<Manifest, OciError> {
    let all = images(layout)?;
    let mut chosen: BTreeMap<&Digest, &Found> = BTreeMap::new();
    for found in all.iter().filter(|found| found.is_named(choice) && choice.takes(&found.descriptor)) {
        // One image of several names is one image.
        chosen.entry(&found.descriptor.digest).or_insert(found);
    }
    let chosen: Vec<&Found> = chosen.into_values().collect();
    match chosen[..] {
        [one] => {
            let name = format!("manifest {}", one.descriptor.digest);
            Manifest::parse(&name, &layout.document(&one.descriptor)?)
        }
        [] => Err(several(layout, choice, &all.iter().collect::<Vec<_>>())),
        _ => Err(several(layout, choice, &chosen)),
    }
}

fn several(layout: &Layout, choice: &Choice, listed: &[&Found]) -> OciError {
    let mut names: Vec<String> = listed.iter().map(|found| found.describe()).collect();
    names.sort();
    let count = names.len();
    names.truncate(LISTED);
    let more = if count > LISTED { format!(" and {} more", count - LISTED) } else { String::new() };
    let found = if count == 0 { "none".into() } else { names.join(", ") + &more };
    OciError::Choice { layout: layout.path.clone(), wanted: choice.describe(), found }
}

/// All images for Linux, through all indexes.
fn images(layout: &Layout) -> Result<Vec<Found>, OciError> {
    let (name, json) = layout.index()?;
    let mut waiting = vec![(Index::parse(&name, &json)?, Vec::new(), 1)];
    let (mut images, mut read) = (Vec::new(), 1);
    while let Some((index, above, depth)) = waiting.pop() {
        for descriptor in index.manifests {
            let names: Vec<String> = above.iter().cloned().chain(ref_name(&descriptor)?).collect();
            if descriptor.is_index() {
                read += 1;
                check_nesting(&descriptor, depth, read)?;
                let nested = format!("index {}", descriptor.digest);
                waiting.push((Index::parse(&nested, &layout.document(&descriptor)?)?, names, depth + 1));
            } else if is_image(&descriptor) {
                check_count(images.len())?;
                images.push(Found { descriptor, names });
            }
        }
    }
    Ok(images)
}

/// Others are for another system, or no image at all: BuildKit keeps its attestations as `unknown/unknown`.
fn is_image(descriptor: &Descriptor) -> bool {
    descriptor.is_manifest()
        && descriptor.artifact_type.is_none()
        && descriptor.platform.as_ref().is_none_or(|platform| platform.os == "linux")
}

/// Names are kept for each image, so that long ones would take memory many times over.
fn ref_name(descriptor: &Descriptor) -> Result<Option<String>, OciError> {
    let name = descriptor.ref_name().map(str::to_owned);
    match name.as_ref().map(String::len) {
        Some(length) if length > NAME_LIMIT => {
            let (of, expected) = (descriptor.digest.to_string(), format!("a name of at most {NAME_LIMIT} bytes"));
            Err(OciError::field(of, "org.opencontainers.image.ref.name", expected, &length.to_string()))
        }
        _ => Ok(name),
    }
}

fn check_count(images: usize) -> Result<(), OciError> {
    if images < IMAGE_LIMIT {
        return Ok(());
    }
    Err(OciError::field("index.json", "manifests", format!("at most {IMAGE_LIMIT} images"), "more"))
}

fn check_nesting(descriptor: &Descriptor, depth: usize, read: usize) -> Result<(), OciError> {
    if depth < DEPTH_LIMIT && read <= INDEX_LIMIT {
        return Ok(());
    }
    let expected = format!("at most {INDEX_LIMIT} indexes, and {DEPTH_LIMIT} in each other");
    Err(OciError::field(format!("index {}", descriptor.digest), "manifests", expected, "more"))
}
