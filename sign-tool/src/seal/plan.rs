//! What `seal` would do, checked as far as it can be without writing anything.

use std::path::PathBuf;

use iofs_policy::trust::KeyId;

use super::{
    SealRequest, check, compose, image::image_options, is_sealed, read_init, read_kernel, succession::SealedKeys,
};
use crate::{
    atomic::AtomicDirectory,
    erofs::{ImageCompression, ImageOptions},
    initramfs::modules::ModuleSet,
    report::Failure,
    tree::source::Source,
};

/// What `seal` would do, for `--dry-run`.
#[derive(Debug, serde::Serialize)]
pub struct Plan {
    /// What the root tree is.
    pub root: String,
    /// How many files, directories and links it has with overlays and rules; nothing of a ready image.
    pub entries: Option<usize>,
    /// What the user should know of it, such as rules that match nothing.
    pub remarks: Vec<String>,
    /// The kernel's release, if there is a kernel.
    pub kernel_release: Option<String>,
    /// The modules for the mini-initramfs.
    pub modules: Vec<String>,
    /// The keys that the device will trust.
    pub trusted_keys: Vec<KeyId>,
    /// How many of them must sign.
    pub threshold: u8,
    /// The directory to write.
    pub out: PathBuf,
}

impl Plan {
    /// The plan as people read it.
    pub fn to_text(&self) -> String {
        let kernel = self.kernel_release.as_deref().unwrap_or("none: the image alone");
        let entries = self.entries.map(|count| format!(", {count} inodes")).unwrap_or_default();
        let remarks: String = self.remarks.iter().map(|remark| format!("           {remark}\n")).collect();
        let keys: Vec<String> = self.trusted_keys.iter().map(KeyId::to_string).collect();
        format!(
            "root tree: {}{entries}\n{remarks}kernel:    {kernel}\nmodules:   {}\ntrusted:   {} ({} must sign)\nwould write {}",
            self.root,
            self.modules.join(" "),
            keys.join(", "),
            self.threshold,
            self.out.display()
        )
    }
}

/// Checks all inputs that can be checked before anything is written.
///
/// # Errors
/// As [`seal`].
pub fn plan(request: &SealRequest) -> Result<Plan, Failure> {
    AtomicDirectory::check(&request.out, request.replace, is_sealed)?;
    check(request)?;
    let keys = SealedKeys::new(request)?.trusted;
    let kernel = read_kernel(request)?;
    read_init(request)?;
    let options = image_options(&request.config, kernel.as_ref())?;
    options.check()?;
    let modules = match (&request.kernel, &kernel) {
        (Some(paths), Some(kernel)) => {
            let set = ModuleSet::collect(kernel, &paths.modules, &request.config.module_requests())?;
            set.index.modules().iter().map(|module| module.name.clone()).collect()
        }
        _ => Vec::new(),
    };
    let source = Source::open(&request.root)?;
    // Nothing is written: what compresses fastest will do.
    let quick = ImageOptions { compression: ImageCompression::Lz4, ..options };
    let found = compose::load(&source, request, kernel.as_ref(), &quick.keep())?;
    let found = found.map(|found| (found.tree.into_walked().len(), found.remarks));
    let (entries, remarks) = found.unzip();
    Ok(Plan {
        entries,
        remarks: remarks.unwrap_or_default(),
        root: describe_source(&source),
        kernel_release: kernel.map(|kernel| kernel.release.to_string()),
        modules,
        trusted_keys: keys.ids().collect(),
        threshold: keys.threshold(),
        out: request.out.clone(),
    })
}

fn describe_source(source: &Source) -> String {
    match source {
        Source::Directory(path) => format!("directory {}", path.display()),
        Source::Tar(path, compression) => format!("tar {} ({})", path.display(), compression.name()),
        Source::Initramfs(path) => format!("cpio initramfs {}", path.display()),
        Source::Oci(path) => format!("OCI image layout {}", path.display()),
        Source::Erofs(path) => format!("erofs image {}", path.display()),
    }
}
