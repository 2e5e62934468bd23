//! `iofs-sign install` and `iofs-sign uninstall`.

use std::{
    fmt::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use iofs_sign::{
    install::{
        apply::{self, InstallRequest, Installed},
        boot::LoaderKind,
        settings::{Agent, ImagePlace, Settings},
        sysroot::Sysroot,
        uninstall::{self, UninstallRequest},
    },
    keys::{self, PrivateKey},
    report::{ExitStatus, Failure, Output},
};

/// Have this system boot through a verified copy of its own initramfs
///
/// Seals the initramfs of each installed kernel, puts mini-initramfs and image beside the kernel, and gives the boot loader an
/// entry for it, in front of the distribution's own one. Everything is sealed, signed and weighed before the boot file system is
/// changed; what fails in the middle is undone. The options are kept in /etc/iofs/install.toml: later runs, and those of the
/// package's hooks when a kernel or an initramfs changes, need none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign install --key /etc/iofs/release.pem --dry-run
  iofs-sign install --key /etc/iofs/release.pem
  iofs-sign install --agent 'ssh signer sign-iofs' --agent-key /etc/iofs/release.pub.pem --place memory
  iofs-sign install --kernel 6.12.41+deb13-amd64

Exit codes: 1 system (a full or read-only boot file system, a failed program), 2 usage, 3 malformed input, 5 a program is
missing.")]
pub(crate) struct InstallArguments {
    /// A private key that signs (PKCS#8 PEM); several sign together. It stays where it is, which must not be the boot file system
    #[arg(long, value_name = "PRIVATE")]
    key: Vec<PathBuf>,
    /// A command that signs in the place of a key: it gets the bytes on standard input and prints the signature of 64 bytes
    #[arg(long, value_name = "COMMAND", requires = "agent_key", conflicts_with = "key")]
    agent: Option<String>,
    /// The public key of that signature (PEM)
    #[arg(long, value_name = "PUBLIC", requires = "agent")]
    agent_key: Option<PathBuf>,
    /// Where the sealed image lies [default: file]
    #[arg(long, value_enum)]
    place: Option<ImagePlace>,
    /// The boot loader to tell [default: the one that is found]
    #[arg(long, value_enum)]
    loader: Option<LoaderKind>,
    /// Take the distribution's own entries, which boot unverified, out of the menu
    #[arg(long)]
    no_fallback: bool,
    /// What else to seal: docs/configuration.md describes it
    #[arg(long, value_name = "iofs.toml")]
    config: Option<PathBuf>,
    /// An RSA key that signs unified kernel images for Secure Boot (PEM or DER)
    #[arg(long, value_name = "PRIVATE", requires = "secure_boot_certificate")]
    secure_boot_key: Option<PathBuf>,
    /// Its X.509 certificate (PEM or DER)
    #[arg(long, value_name = "FILE", requires = "secure_boot_key")]
    secure_boot_certificate: Option<PathBuf>,
    /// The kernel's release [default: all that are installed]
    #[arg(long, value_name = "RELEASE")]
    kernel: Vec<String>,
    /// The static verify-init, or a folder that holds it and verify-init-full [default: beside this program, then
    /// /usr/lib/iofs]
    #[arg(long, value_name = "PATH", env = "IOFS_VERIFY_INIT")]
    init: Option<PathBuf>,
    /// Seal again what was sealed from the same before
    #[arg(long)]
    force: bool,
    /// Leave GRUB's menu to whoever makes it next, as kernel packages do
    #[arg(long)]
    no_menu: bool,
    /// Do nothing unless this is the boot loader
    #[arg(long, value_enum, value_name = "LOADER")]
    only_for: Option<LoaderKind>,
    /// The system to install into: the folder with its root
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysroot: PathBuf,
    /// The most threads to use [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Show each step, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Have this system boot as it did before 'iofs-sign install'
///
/// Removes what 'install' wrote and puts back what was there before. What was changed since stays, with a note.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign uninstall --dry-run
  iofs-sign uninstall
  iofs-sign uninstall --kernel 6.12.41+deb13-amd64

Exit codes: 1 system, 2 usage, 3 malformed record, 5 a program is missing.")]
pub(crate) struct UninstallArguments {
    /// The kernel's release [default: everything]
    #[arg(long, value_name = "RELEASE")]
    kernel: Vec<String>,
    /// Leave /etc/iofs/install.toml for a later installation
    #[arg(long)]
    keep_settings: bool,
    /// Leave GRUB's menu to whoever makes it next, as kernel packages do
    #[arg(long)]
    no_menu: bool,
    /// The system: the folder with its root
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysroot: PathBuf,
    /// Show each step, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn install(arguments: &InstallArguments, output: Output) -> Result<(), Failure> {
    let sysroot = sysroot(&arguments.sysroot)?;
    let settings = settings(arguments, &sysroot)?;
    warn_of_keys(&settings, &sysroot, output);
    let request = InstallRequest {
        settings,
        kernels: arguments.kernel.clone(),
        init: arguments.init.clone(),
        force: arguments.force,
        menu: !arguments.no_menu,
        only_for: arguments.only_for,
        dry_run: arguments.dry_run,
        threads: super::threads(arguments.threads),
        sysroot,
    };
    let installed = apply::install(&request, output)?;
    output.result(&installed, || describe(&installed));
    Ok(())
}

pub(crate) fn uninstall(arguments: &UninstallArguments, output: Output) -> Result<(), Failure> {
    let request = UninstallRequest {
        sysroot: sysroot(&arguments.sysroot)?,
        kernels: arguments.kernel.clone(),
        keep_settings: arguments.keep_settings,
        menu: !arguments.no_menu,
        dry_run: arguments.dry_run,
    };
    let removed = uninstall::uninstall(&request)?;
    output.result(&removed, || describe(&removed));
    Ok(())
}

fn sysroot(path: &Path) -> Result<Sysroot, Failure> {
    let absolute =
        path.canonicalize().map_err(|error| Failure::io(format_args!("--sysroot {}", path.display()), &error))?;
    Ok(Sysroot::new(&absolute))
}

/// What earlier installations were told, and what is told now.
fn settings(arguments: &InstallArguments, sysroot: &Sysroot) -> Result<Settings, Failure> {
    let mut settings = Settings::read(sysroot)?.unwrap_or_default();
    if !arguments.key.is_empty() {
        settings.keys = arguments.key.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
        settings.agent = None;
    }
    if let (Some(command), Some(key)) = (&arguments.agent, &arguments.agent_key) {
        settings.agent = Some(Agent { command: command.clone(), key: absolute(key)? });
        settings.keys.clear();
    }
    settings.place = arguments.place.unwrap_or(settings.place);
    settings.loader = arguments.loader.or(settings.loader);
    settings.fallback &= !arguments.no_fallback;
    for (setting, told) in [
        (&mut settings.config, &arguments.config),
        (&mut settings.secure_boot_key, &arguments.secure_boot_key),
        (&mut settings.secure_boot_certificate, &arguments.secure_boot_certificate),
    ] {
        if let Some(path) = told {
            *setting = Some(absolute(path)?);
        }
    }
    if settings.keys.is_empty() && settings.agent.is_none() {
        return Err(Failure::new(ExitStatus::Usage, "no key: nobody could sign what boots").next(
            "make one: iofs-sign keygen /etc/iofs/release, then --key /etc/iofs/release.pem; or have a command sign: --agent",
        ));
    }
    Ok(settings)
}

/// A path that later runs, which have another working folder, find too: absolute, in the system.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io(format_args!("find {}", path.display()), &error))
}

fn warn_of_keys(settings: &Settings, sysroot: &Sysroot, output: Output) {
    for path in settings.keys.iter().map(|path| sysroot.path(path)) {
        if let Ok(key) = PrivateKey::read(&path) {
            super::warn_example(key.public().id(), output);
        }
        if keys::is_exposed(&path) && !output.quiet {
            output.warn(format_args!("{}: others can read this private key: chmod 600 it", path.display()));
        }
    }
}

fn describe(installed: &Installed) -> String {
    let mut text = installed.plan.to_text();
    if !installed.sizes.is_empty() {
        text += "\nbytes:  stock initramfs  mini-initramfs  image, read as it is used\n";
    }
    for (release, sizes) in &installed.sizes {
        let (stock, mini, image) = (sizes.stock_initramfs, sizes.initramfs, sizes.image);
        writeln!(text, "        {stock:15}  {mini:14}  {image:9}  Linux {release}").expect("a string grows");
    }
    text
}
