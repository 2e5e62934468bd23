//! What would be done, as data: one step after the other, each with a sentence for people.

use std::path::{Path, PathBuf};

use iofs_policy::{digest::Sha256Digest, manifest::Place};
use serde::Serialize;

use super::{
    boot::Loader,
    grub,
    kernels::Kernel,
    loader_entries::{self, StockEntry},
    sealing::{self, Sealer},
    settings::{ImagePlace, SETTINGS, Settings},
    state::{FileContent, State},
    survey::Survey,
    sysroot::Sysroot,
};
use crate::report::{ExitStatus, Failure};

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// Seal a kernel's initramfs, in a folder that is not the loader's yet.
    Seal(Box<SealStep>),
    /// Put the sealed files into a folder of their own, at once.
    Folder {
        /// The kernel's release.
        release: String,
        /// The folder.
        path: PathBuf,
    },
    /// Put the sealed unified kernel image where the loader looks.
    Image {
        /// The kernel's release.
        release: String,
        /// The image.
        path: PathBuf,
    },
    /// Write a file.
    Write {
        /// The file.
        path: PathBuf,
        /// What it becomes.
        #[serde(skip)]
        content: FileContent,
    },
    /// Remove a file.
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// Remove a folder of ours with the sealed files of a kernel.
    RemoveFolder {
        /// The kernel's release.
        release: String,
        /// The folder.
        path: PathBuf,
    },
    /// Run a program that writes a file.
    Run {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
        /// The file.
        writes: PathBuf,
    },
}

/// What is sealed, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SealStep {
    /// The kernel's release.
    pub release: String,
    /// The kernel.
    pub image: PathBuf,
    /// The distribution's initramfs.
    pub initramfs: Vec<PathBuf>,
    /// Where the sealed image will lie, as `iofs.toml` has it.
    pub place: String,
    /// The command line, for a unified kernel image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    #[serde(skip)]
    pub(super) kernel: Kernel,
    #[serde(skip)]
    pub(super) sealed_place: Place,
    #[serde(skip)]
    pub(super) inputs: Sha256Digest,
}

/// A step and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// The same as a sentence.
    pub why: String,
}

/// All steps.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What people should know besides.
    pub remarks: Vec<String>,
    /// The loader.
    pub loader: super::boot::LoaderKind,
    /// Our folder.
    pub folder: PathBuf,
}

/// What to plan for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) sealer: &'a Sealer<'a>,
    pub(super) survey: &'a Survey,
    pub(super) state: Option<&'a State>,
    /// Seal again what is the same.
    pub(super) force: bool,
    /// Whether to have the loader's menu made.
    pub(super) menu: bool,
}

impl Plan {
    fn add(&mut self, action: Action, why: impl Into<String>) {
        self.steps.push(Step { action, why: why.into() });
    }

    /// Plans to write a text file that does not hold that already.
    fn write(&mut self, sysroot: &Sysroot, path: &Path, mode: u32, text: &str, why: &str) -> Result<(), Failure> {
        let content = FileContent { mode, bytes: text.as_bytes().to_vec() };
        if FileContent::read(sysroot, path)?.as_ref() != Some(&content) {
            self.add(Action::Write { path: path.to_owned(), content }, why);
        }
        Ok(())
    }

    /// As people read it.
    pub fn to_text(&self) -> String {
        let mut text: String =
            self.steps.iter().enumerate().map(|(number, step)| format!("{:3}. {}\n", number + 1, step.why)).collect();
        if self.steps.is_empty() {
            text += "nothing to do: everything is as it should be\n";
        }
        text + &self.remarks.iter().map(|remark| format!("note: {remark}\n")).collect::<String>()
    }
}

/// Plans an installation.
///
/// # Errors
/// It cannot be: a program is missing, or the boot file system is none that verify-init reads.
pub(super) fn plan(request: Request<'_>) -> Result<Plan, Failure> {
    let Request { sealer, survey, state, .. } = request;
    let mut plan = Plan {
        steps: Vec::new(),
        remarks: survey.passed_over.iter().map(|why| format!("passed over: {why}")).collect(),
        loader: survey.loader.kind(),
        folder: survey.folder(),
    };
    let mut sealed = Vec::new();
    for kernel in &survey.kernels {
        let step = seal_step(request, kernel)?;
        if request.force || !is_current(sealer.sysroot, state, &plan.folder, &step) {
            sealed.push(step);
        }
    }
    for step in &sealed {
        let files = step.initramfs.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" + ");
        let why = format!("seal {files} for Linux {}, to lie at {}", step.release, step.place);
        plan.add(Action::Seal(Box::new(step.clone())), why);
    }
    for step in &sealed {
        let path = plan.folder.join(&step.release);
        let what = match (step.command_line.is_some(), step.sealed_place == Place::Memory) {
            (true, true) => continue,
            (true, false) => "the image",
            (false, true) => "the mini-initramfs",
            (false, false) => "mini-initramfs and image",
        };
        let why = format!("put {what} into {}", path.display());
        plan.add(Action::Folder { release: step.release.clone(), path }, why);
    }
    plan.write(
        sealer.sysroot,
        Path::new(SETTINGS),
        0o600,
        &sealer.settings.to_text(),
        &format!("keep the options in {SETTINGS}"),
    )?;
    tell_loader(request, &mut plan, &sealed)?;
    drop_removed(request, &mut plan);
    make_menu(request, &mut plan)?;
    Ok(plan)
}

fn seal_step(request: Request<'_>, kernel: &Kernel) -> Result<SealStep, Failure> {
    let Request { sealer, survey, .. } = request;
    let command_line = match survey.loader {
        Loader::Uki(_) => Some(loader_entries::command_line(sealer.sysroot)?),
        _ => None,
    };
    let sealed_place = place(sealer.settings, survey, kernel)?;
    Ok(SealStep {
        release: kernel.release.clone(),
        image: kernel.image.clone(),
        initramfs: kernel.initramfs.clone(),
        place: sealed_place.to_string(),
        inputs: sealer.inputs(kernel, &sealed_place, command_line.as_deref())?,
        kernel: kernel.clone(),
        sealed_place,
        command_line,
    })
}

fn place(settings: &Settings, survey: &Survey, kernel: &Kernel) -> Result<Place, Failure> {
    if settings.place == ImagePlace::Memory {
        return Ok(Place::Memory);
    }
    let on_boot = survey.boot.place.as_ref().map_err(|why| {
        Failure::new(ExitStatus::Usage, format!("boot file system: {why}"))
            .next("take the image into the mini-initramfs: --place memory")
    })?;
    let file = Path::new("iofs").join(&kernel.release).join(sealing::IMAGE);
    on_boot.of(&file).parse().map_err(|error| Failure::new(ExitStatus::BadInput, format!("boot file system: {error}")))
}

/// Whether that was sealed before, from the same, and is still there.
fn is_current(sysroot: &Sysroot, state: Option<&State>, folder: &Path, step: &SealStep) -> bool {
    let Some(installed) = state.and_then(|state| state.kernels.get(&step.release)) else { return false };
    let files = match (step.command_line.is_some(), step.sealed_place == Place::Memory) {
        (true, true) => vec![],
        (true, false) => vec![sealing::IMAGE],
        (false, true) => vec![sealing::INITRAMFS],
        (false, false) => vec![sealing::INITRAMFS, sealing::IMAGE],
    };
    let there = files.iter().all(|name| sysroot.has(folder.join(&step.release).join(name)));
    installed.inputs == step.inputs && there && installed.entry.as_ref().is_none_or(|entry| sysroot.has(entry))
}

fn tell_loader(request: Request<'_>, plan: &mut Plan, sealed: &[SealStep]) -> Result<(), Failure> {
    let Request { sealer, survey, .. } = request;
    let (sysroot, fallback) = (sealer.sysroot, sealer.settings.fallback);
    match &survey.loader {
        Loader::Grub { .. } => {
            plan.write(
                sysroot,
                Path::new(grub::SCRIPT),
                0o755,
                grub::SCRIPT_TEXT,
                "give GRUB an entry per sealed kernel: /etc/grub.d/09_iofs",
            )?;
            let stock = FileContent::read(sysroot, Path::new(grub::STOCK_SCRIPT))?;
            if let Some(content) = stock.filter(|stock| !fallback && stock.mode & 0o111 != 0) {
                let content = FileContent { mode: content.mode & !0o111, ..content };
                let why = "take the distribution's own entries out of GRUB's menu: /etc/grub.d/10_linux is no longer executable";
                plan.add(Action::Write { path: grub::STOCK_SCRIPT.into(), content }, why);
            }
        }
        Loader::SystemdBoot(folder) => {
            for kernel in &survey.kernels {
                if let Some(stock) = loader_entries::stock_entry(sysroot, folder, kernel)? {
                    write_entry(request, plan, folder, kernel, stock)?;
                }
            }
            set_default(sysroot, folder, plan)?;
        }
        Loader::Uki(folder) => {
            for step in sealed {
                let path = loader_entries::image(folder, &step.release);
                let why = format!("put the unified kernel image into {}", path.display());
                plan.add(Action::Image { release: step.release.clone(), path }, why);
            }
            set_default(sysroot, folder, plan)?;
            if !fallback {
                plan.remarks.push(format!(
                    "the distribution's own images stay in {}/EFI/Linux: remove them yourself",
                    folder.display()
                ));
            }
        }
    }
    Ok(())
}

fn write_entry(
    request: Request<'_>,
    plan: &mut Plan,
    folder: &Path,
    kernel: &Kernel,
    stock: StockEntry,
) -> Result<(), Failure> {
    let sysroot = request.sealer.sysroot;
    let text = loader_entries::verified(&stock.text, &kernel.release, kernel_has_early(sysroot, kernel));
    let why = format!("give systemd-boot the entry iofs-{}", kernel.release);
    plan.write(sysroot, &loader_entries::path(folder, &kernel.release), 0o644, &text, &why)?;
    if !request.sealer.settings.fallback {
        let why = format!("remove the distribution's own entry {}", stock.path.display());
        plan.add(Action::Remove { path: stock.path }, why);
    }
    Ok(())
}

/// Whether the distribution puts something for the kernel itself in front of the initramfs.
fn kernel_has_early(sysroot: &Sysroot, kernel: &Kernel) -> bool {
    let first = kernel.initramfs.first().and_then(|file| sysroot.resolve(file).ok());
    let listed = first.and_then(|file| crate::inspect::initramfs::inspect(&sysroot.path(file)).ok());
    listed.is_some_and(|listed| listed.segments.len() > 1 && sealing::early_end(&listed) > 0)
}

fn set_default(sysroot: &Sysroot, folder: &Path, plan: &mut Plan) -> Result<(), Failure> {
    let path = folder.join("loader/loader.conf");
    let before = FileContent::read(sysroot, &path)?;
    if before.is_none() && plan.loader == super::boot::LoaderKind::Uki {
        plan.remarks.push("no loader.conf: tell firmware which image to start, with efibootmgr".to_owned());
        return Ok(());
    }
    let text = String::from_utf8_lossy(&before.map(|content| content.bytes).unwrap_or_default()).into_owned();
    plan.write(
        sysroot,
        &path,
        0o644,
        &loader_entries::with_default(&text),
        "let systemd-boot start the verified entries by default",
    )
}

/// Plans to remove what belongs to kernels that are gone.
fn drop_removed(request: Request<'_>, plan: &mut Plan) {
    let Some(state) = request.state else { return };
    let all = &request.survey.all_releases;
    for (release, installed) in state.kernels.iter().filter(|(release, _)| !all.contains(release)) {
        remove_kernel(plan, &state.folder, release, installed.entry.as_deref());
    }
}

/// Plans to remove a kernel's entry, then its files.
pub(super) fn remove_kernel(plan: &mut Plan, folder: &Path, release: &str, entry: Option<&Path>) {
    if let Some(entry) = entry {
        plan.add(Action::Remove { path: entry.to_owned() }, format!("remove {}", entry.display()));
    }
    let path = folder.join(release);
    let why = format!("remove {}", path.display());
    plan.add(Action::RemoveFolder { release: release.to_owned(), path }, why);
}

/// Has GRUB's menu made, if anything that it shows changes.
fn make_menu(request: Request<'_>, plan: &mut Plan) -> Result<(), Failure> {
    let Loader::Grub { configuration, program } = &request.survey.loader else { return Ok(()) };
    let sysroot = request.sealer.sysroot;
    let program = grub::find(sysroot, program)?;
    let is_new = |release: &String| request.state.is_none_or(|state| !state.kernels.contains_key(release));
    let changes = plan.steps.iter().any(|step| match &step.action {
        Action::Folder { release, .. } => is_new(release),
        Action::Write { path, .. } => path.starts_with(grub::FOLDER),
        Action::RemoveFolder { .. } => true,
        _ => false,
    });
    if changes && request.menu {
        plan.run_grub(&program, configuration);
    }
    Ok(())
}

impl Plan {
    /// Plans to have GRUB's menu made.
    pub(super) fn run_grub(&mut self, program: &Path, configuration: &Path) {
        let arguments = vec!["-o".to_owned(), configuration.display().to_string()];
        let why = format!("make GRUB's menu: {} {}", program.display(), arguments.join(" "));
        let (program, writes) = (program.to_owned(), configuration.to_owned());
        self.add(Action::Run { program, arguments, writes }, why);
    }

    /// Plans an action of an uninstallation.
    pub(super) fn push(&mut self, action: Action, why: String) {
        self.add(action, why);
    }
}
