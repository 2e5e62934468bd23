//! `iofs-sign initramfs`.

use std::path::PathBuf;

use clap::Args;
use iofs_policy::paths;
use iofs_sign::{
    atomic,
    epoch::source_date_epoch,
    initramfs::{
        self, EmbeddedFile, Format, InitramfsPlan, in_archive, init,
        kernel::KernelImage,
        modules::ModuleSet,
        profile::{Feature, Profile, Request, requests},
    },
    report::{Failure, Output},
};
use serde::Serialize;

const EXAMPLE: &str = "\
Example:
  iofs-sign initramfs --kernel /boot/vmlinuz-6.12.1-amd64 --modules / \\
      --manifest out/manifest.dsse.json --trust out/trust.json --out out/initramfs.img

Exit codes: 1 system, 2 usage, 3 malformed input, 5 a module or the init binary is missing.";

/// Build a mini-initramfs: verify-init, the modules it may need, the manifest and the trusted keys
///
/// The same inputs give the same bytes; timestamps come from SOURCE_DATE_EPOCH, or are 0. Without a manifest the
/// initramfs holds verify-init and modules alone, and an archive with the manifest can be appended later.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Arguments {
    /// The kernel: an x86 bzImage or an arm64 Image
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Its modules: lib/modules/VERSION, or a root that has it
    #[arg(long, value_name = "DIR")]
    modules: PathBuf,
    /// The static verify-init, or a folder that holds it and verify-init-full [default: beside this program, then
    /// /usr/lib/iofs]
    #[arg(long, value_name = "PATH", env = "IOFS_VERIFY_INIT")]
    init: Option<PathBuf>,
    /// The signed manifest to embed
    #[arg(long, value_name = "FILE", requires = "trust")]
    manifest: Option<PathBuf>,
    /// The trusted keys to embed
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// The hardware to boot on
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Abilities to add
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FEATURE")]
    with: Vec<Feature>,
    /// A module to add and to load always, with its parameters: NAME or "NAME KEY=VALUE ..."
    #[arg(long, value_name = "NAME")]
    add_module: Vec<String>,
    /// The compression
    #[arg(long, value_enum, default_value_t)]
    compress: Format,
    #[command(flatten)]
    cache: super::CacheArguments,
    /// The initramfs to write
    #[arg(long, value_name = "FILE", required_unless_present_any = ["dry_run", "list_modules"])]
    out: Option<PathBuf>,
    /// Print the modules in load order, and build nothing
    #[arg(long)]
    list_modules: bool,
    /// Build and report, but write nothing
    #[arg(long)]
    dry_run: bool,
}

/// A line of `--list-modules`.
#[derive(Debug, Serialize)]
struct ListedModule<'a> {
    name: &'a str,
    always: bool,
    size: usize,
    aliases: usize,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let kernel = KernelImage::read(&arguments.kernel)?;
    kernel.check_format(arguments.compress)?;
    let mut wanted = requests(arguments.profile, &arguments.with);
    wanted.extend(arguments.add_module.iter().map(|text| Request::added(text)));
    let modules = ModuleSet::collect(&kernel, &arguments.modules, &wanted)?;
    if arguments.list_modules {
        list(&modules, output);
        return Ok(());
    }
    let full = arguments.with.iter().any(|feature| feature.is_of_volumes());
    let init = init::read(arguments.init.as_deref(), full)?;
    let files = embedded_files(arguments)?;
    let plan = InitramfsPlan {
        modules: &modules,
        init: &init,
        files: &files,
        format: arguments.compress,
        mtime: source_date_epoch()?.unwrap_or_default(),
        cache: arguments.cache.to_cache(),
    };
    let spinner = output.spinner("compressing the initramfs");
    let built = initramfs::build(&plan)?;
    spinner.finish();
    if let Some(out) = arguments.out.as_deref().filter(|_| !arguments.dry_run) {
        atomic::write(out, 0o644, &built.bytes)?;
    }
    output.result(&built.report, || built.report.to_text());
    Ok(())
}

fn list(modules: &ModuleSet, output: Output) {
    let index = &modules.index;
    let always = index.load_order(&index.always(), &[]);
    let all: Vec<_> = index.modules().iter().filter_map(|module| index.find(&module.name)).collect();
    let on_demand = index.load_order(&all, &always);
    let entry = |id, always| {
        let module = index.get(id);
        let size = modules.files[&module.file].len();
        ListedModule { name: &module.name, always, size, aliases: module.aliases.len() }
    };
    let listed: Vec<ListedModule<'_>> =
        always.iter().map(|id| entry(*id, true)).chain(on_demand.iter().map(|id| entry(*id, false))).collect();
    output.result(&listed, || {
        let line = |module: &ListedModule<'_>| {
            let when = if module.always { "always" } else { "on demand" };
            format!("{:>9}  {:<9}  {}", module.size, when, module.name)
        };
        listed.iter().map(line).collect::<Vec<_>>().join("\n")
    });
}

fn embedded_files(arguments: &Arguments) -> Result<Vec<EmbeddedFile>, Failure> {
    let mut files = Vec::new();
    for (source, path) in [(&arguments.manifest, paths::MANIFEST), (&arguments.trust, paths::TRUST)] {
        if let Some(source) = source {
            files.push(EmbeddedFile { path: in_archive(path).to_owned(), mode: 0o644, bytes: atomic::read(source)? });
        }
    }
    Ok(files)
}
