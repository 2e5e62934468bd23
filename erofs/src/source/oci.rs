//! A tree from a container image: an OCI image layout, as a directory or as the tar of one.
//!
//! Sources: the OCI image specification 1.1 (`image-layout.md`, `image-index.md`, `manifest.md`, `layer.md`), and Docker's
//! image manifest version 2, schema 2, whose media types stand for the same things.
//!
//! All but `oci-layout` and `index.json` is named by its digest. Each blob's size is checked before it is read, and its digest
//! in the pass that reads it: entries of a layer touch the tree only once all of the layer is known to be what the manifest
//! says. A layer that is not compressed stays where it lies, and is read again when the image is written, so nothing may change
//! the layout meanwhile.

mod blobs;
mod choose;
mod digest;
mod document;
mod error;
mod layer;
mod layout;

use std::path::Path;

use self::{blobs::Blob, document::layer_compression, layout::Layout};
pub use self::{
    choose::Choice,
    digest::Digest,
    document::{Config, Descriptor, Index, Manifest, Platform},
    error::OciError,
    layer::Layers,
};
use super::{
    archive::{Keep, Unpacked},
    unpack::{Store, UnpackError},
};
use crate::archive::{
    compression::{Compression, MAGIC_SIZE},
    input::Input,
};

/// Four times as many layers as overlayfs and Docker mount.
const LAYER_LIMIT: usize = 512;

/// Whether there is an image layout: a directory, or a tar archive that is not compressed.
pub fn is_layout(path: &Path) -> bool {
    Layout::is_at(path)
}

/// Takes the image of a layout that `choice` leads to.
///
/// ```no_run
/// use erofs_image::source::{archive::Keep, oci::{self, Choice}};
///
/// # fn main() -> Result<(), oci::OciError> {
/// // skopeo copy docker://… oci:layout:bookworm
/// let choice = Choice { name: Some("bookworm".into()), architecture: Some("amd64".into()), ..Choice::default() };
/// let tree = oci::load("layout".as_ref(), &choice, &Keep::Plain)?.tree;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the layout is incomplete or not what its digests say, no image or several are chosen, or a layer cannot be applied.
pub fn load(path: &Path, choice: &Choice, keep: &Keep) -> Result<Unpacked, OciError> {
    let layout = Layout::open(path)?;
    let manifest = choose::manifest(&layout, choice)?;
    check_config(&layout, &manifest.config, choice)?;
    if manifest.layers.len() > LAYER_LIMIT {
        let found = manifest.layers.len().to_string();
        return Err(OciError::field("the manifest", "layers", format!("at most {LAYER_LIMIT}"), &found));
    }
    let (mut layers, mut store) = (Layers::new(), Store::new(keep));
    for descriptor in &manifest.layers {
        add_layer(&mut layers, &mut store, &layout, descriptor)?;
    }
    store.finish().and_then(|()| layers.finish()).map_err(|error| OciError::Image { error })
}

/// The image's own word on what it runs on, since an index need not say so.
fn check_config(layout: &Layout, descriptor: &Descriptor, choice: &Choice) -> Result<(), OciError> {
    let name = format!("config {}", descriptor.digest);
    if !descriptor.is_config() {
        let expected = "an image's config (application/vnd.oci.image.config.v1+json)".into();
        return Err(OciError::field(name, "mediaType", expected, &descriptor.media_type));
    }
    let config = Config::parse(&name, &layout.document(descriptor)?)?;
    if config.os != "linux" {
        return Err(OciError::field(name, "os", "linux".into(), &config.os));
    }
    let architecture = ("architecture", &choice.architecture, Some(config.architecture));
    for (field, wanted, found) in [architecture, ("variant", &choice.variant, config.variant)] {
        if let (Some(wanted), Some(found)) = (wanted, found)
            && *wanted != found
        {
            return Err(OciError::field(name, field, wanted.clone(), &found));
        }
    }
    Ok(())
}

fn add_layer(layers: &mut Layers, store: &mut Store, layout: &Layout, descriptor: &Descriptor) -> Result<(), OciError> {
    let blob = layout.blob(descriptor)?;
    let compression = compression(&blob, descriptor)?;
    if compression == Compression::None {
        store.turn_to(blob.file(), blob.start());
    } else {
        store.in_place = false;
    }
    let mut verified = blob.verified(descriptor.digest.clone());
    let read = compression.reader(std::io::BufReader::with_capacity(1 << 16, &mut verified));
    let read = read.map_err(|source| blob.io_error("decompress", source))?;
    let layer = layer::Layer::read(Input::new(read, blob.name()), store);
    // A blob that is not what it should be explains every other fault.
    verified.finish()?;
    let fail = |error: UnpackError| OciError::Layer { layer: blob.name().to_owned(), error };
    layers.apply(layer.map_err(fail)?).map_err(fail)
}

/// What the media type says, which the content must bear out.
fn compression(blob: &Blob, descriptor: &Descriptor) -> Result<Compression, OciError> {
    let Some(compression) = layer_compression(&descriptor.media_type) else {
        let expected = "a layer's: tar, tar+gzip or tar+zstd".into();
        return Err(OciError::field(blob.name(), "mediaType", expected, &descriptor.media_type));
    };
    let found = Compression::detect(&blob.first(MAGIC_SIZE)?);
    if found == compression {
        return Ok(compression);
    }
    let expected = format!("{} content as its mediaType says", compression.name());
    Err(OciError::field(blob.name(), "content", expected, found.name()))
}
