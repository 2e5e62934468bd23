//! Does what was planned: seals everything and weighs it, then changes the boot file system, or leaves it as it was.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde::Serialize;
use tempfile::TempDir;

use super::{
    boot::{Loader, LoaderKind},
    folders::Journal,
    loader_entries,
    plan::{self, Action, Plan, Request, SealStep},
    sealing::{SealedKernel, Sealer},
    settings::{SETTINGS, Settings},
    state::{FileContent, InstalledKernel, STATE, Sizes, State},
    survey::survey,
    sysroot::Sysroot,
};
use crate::report::{ExitStatus, Failure, Output};

/// What to install, and how.
#[derive(Debug)]
pub struct InstallRequest {
    /// The system.
    pub sysroot: Sysroot,
    /// The options, those of earlier installations included.
    pub settings: Settings,
    /// The kernels' releases; none means all.
    pub kernels: Vec<String>,
    /// The static verify-init, or the folder of both.
    pub init: Option<PathBuf>,
    /// Seal again what is the same as before.
    pub force: bool,
    /// Whether to have the loader's menu made.
    pub menu: bool,
    /// Do nothing where the loader is another.
    pub only_for: Option<LoaderKind>,
    /// Whether to say what would be done, and do nothing.
    pub dry_run: bool,
    /// The most threads to use.
    pub threads: NonZeroUsize,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// Whether it was done.
    pub applied: bool,
    /// The steps.
    #[serde(flatten)]
    pub plan: Plan,
    /// Sizes before and after, of each kernel that was sealed.
    pub sizes: BTreeMap<String, Sizes>,
}

/// Installs: looks, plans, seals, changes.
///
/// # Errors
/// A [`Failure`]; then nothing is changed.
pub fn install(request: &InstallRequest, output: Output) -> Result<Installed, Failure> {
    let InstallRequest { sysroot, settings, .. } = request;
    let loader = Loader::find(sysroot, settings.loader)?;
    if request.only_for.is_some_and(|kind| kind != loader.kind()) {
        let folder = loader.folder().join("iofs");
        let plan = Plan { steps: Vec::new(), remarks: Vec::new(), loader: loader.kind(), folder };
        return Ok(Installed { applied: false, plan, sizes: BTreeMap::new() });
    }
    let survey = survey(sysroot, loader, &request.kernels)?;
    survey.check_keys(sysroot, settings.private_files())?;
    let state = State::read(sysroot)?;
    if let Some(state) = state.as_ref().filter(|state| state.loader != survey.loader.kind()) {
        let fact =
            format!("boot loader: expected {}, which was installed for, found {}", state.loader, survey.loader.kind());
        return Err(
            Failure::new(ExitStatus::Usage, fact).next("remove the other installation first: iofs-sign uninstall")
        );
    }
    let sealer = Sealer { sysroot, settings, init: request.init.clone(), threads: request.threads, output };
    let plan = plan::plan(Request {
        sealer: &sealer,
        survey: &survey,
        state: state.as_ref(),
        force: request.force,
        menu: request.menu,
    })?;
    check_writable(sysroot, &plan)?;
    if request.dry_run || plan.steps.is_empty() {
        return Ok(Installed { applied: plan.steps.is_empty(), plan, sizes: BTreeMap::new() });
    }
    let state = state.unwrap_or_else(|| State {
        loader: plan.loader,
        folder: plan.folder.clone(),
        kernels: BTreeMap::new(),
        files: Vec::new(),
    });
    let sizes = execute(&plan, sysroot, Some(&sealer), Some(state))?;
    Ok(Installed { applied: true, plan, sizes })
}

/// Refuses before anything is sealed what could not be written.
fn check_writable(sysroot: &Sysroot, plan: &Plan) -> Result<(), Failure> {
    let folder = existing(&sysroot.path(&plan.folder));
    if space(&folder)?.read_only {
        let fact = format!("boot file system: {} is on one that is mounted read-only", plan.folder.display());
        return Err(Failure::new(ExitStatus::System, fact).next("mount it read-write: mount -o remount,rw"));
    }
    Ok(())
}

struct Space {
    read_only: bool,
    free: u64,
    block: u64,
}

fn space(path: &Path) -> Result<Space, Failure> {
    let found =
        statvfs(path).map_err(|error| Failure::io(format_args!("look at {}", path.display()), &error.into()))?;
    let read_only = found.f_flag.contains(StatVfsMountFlags::RDONLY);
    Ok(Space { read_only, free: found.f_bavail * found.f_frsize, block: found.f_frsize.max(1) })
}

/// The folder itself, or the nearest above that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Everything sealed has to fit beside what is there: nothing is removed before the new files are whole.
fn check_space(sysroot: &Sysroot, plan: &Plan, sealed: &BTreeMap<String, SealedKernel>) -> Result<(), Failure> {
    let space = space(&existing(&sysroot.path(&plan.folder)))?;
    let files = sealed.values().flat_map(|sealed| {
        let files = fs::read_dir(&sealed.files).into_iter().flatten().flatten().map(|entry| entry.path());
        files.chain(sealed.uki.clone())
    });
    let sizes = files.filter_map(|file| Some(fs::metadata(file).ok()?.len()));
    // A folder takes a block, and an entry may.
    let needed: u64 = sizes.map(|size| size.next_multiple_of(space.block) + space.block).sum();
    if needed <= space.free {
        return Ok(());
    }
    let fact = format!(
        "boot file system: {} needs {needed} bytes for {} kernels, found {} free",
        plan.folder.display(),
        sealed.len(),
        space.free
    );
    Err(Failure::new(ExitStatus::System, fact)
        .next("remove kernels that are no longer used (apt-get autoremove), or install for one: --kernel RELEASE"))
}

/// Does a plan. The record is written before the first change, so that an interrupted installation can be removed.
///
/// # Errors
/// A step failed; all were taken back.
pub(super) fn execute(
    plan: &Plan,
    sysroot: &Sysroot,
    sealer: Option<&Sealer<'_>>,
    state: Option<State>,
) -> Result<BTreeMap<String, Sizes>, Failure> {
    let done = execute_in(&staging(sysroot)?, plan, sysroot, sealer, state);
    // Where there is no record, there is nothing else in it.
    let _ = fs::remove_dir(crate::atomic::parent(&sysroot.path(STATE)));
    done
}

fn execute_in(
    staging: &TempDir,
    plan: &Plan,
    sysroot: &Sysroot,
    sealer: Option<&Sealer<'_>>,
    state: Option<State>,
) -> Result<BTreeMap<String, Sizes>, Failure> {
    let mut sealed = BTreeMap::new();
    for step in &plan.steps {
        if let (Action::Seal(step), Some(sealer)) = (&step.action, sealer) {
            let made = sealer.seal(&step.kernel, &step.sealed_place, step.command_line.as_deref(), staging.path())?;
            sealed.insert(step.release.clone(), made);
        }
    }
    check_space(sysroot, plan, &sealed)?;
    let mut journal = Journal::new(sysroot);
    match run(plan, sysroot, &mut journal, &sealed, state) {
        Ok(()) => {
            journal.keep();
            Ok(sealed.into_iter().map(|(release, made)| (release, made.sizes)).collect())
        }
        Err(failure) => Err(undone(failure, &journal.undo())),
    }
}

fn undone(failure: Failure, problems: &[String]) -> Failure {
    let how = if problems.is_empty() {
        "everything is as it was before".to_owned()
    } else {
        format!("not all could be put back as it was: {}", problems.join("; "))
    };
    Failure { fact: format!("{} ({how})", failure.fact), ..failure }
}

fn staging(sysroot: &Sysroot) -> Result<TempDir, Failure> {
    let parent = sysroot.path(STATE);
    let parent = crate::atomic::parent(&parent);
    let make = || {
        fs::create_dir_all(parent)?;
        tempfile::Builder::new().prefix(".sealing-").tempdir_in(parent)
    };
    make().map_err(|error| Failure::io(format_args!("make a folder in {}", parent.display()), &error))
}

fn run(
    plan: &Plan,
    sysroot: &Sysroot,
    journal: &mut Journal<'_>,
    sealed: &BTreeMap<String, SealedKernel>,
    state: Option<State>,
) -> Result<(), Failure> {
    if let Some(mut state) = state {
        note(plan, sysroot, sealed, &mut state)?;
        journal.write(Path::new(STATE), &FileContent { mode: 0o600, bytes: state.to_json() })?;
    }
    for step in &plan.steps {
        act(&step.action, sysroot, journal, sealed)?;
    }
    Ok(())
}

fn act(
    action: &Action,
    sysroot: &Sysroot,
    journal: &mut Journal<'_>,
    sealed: &BTreeMap<String, SealedKernel>,
) -> Result<(), Failure> {
    match action {
        Action::Seal(_) => Ok(()),
        Action::Folder { release, path } => journal.put_folder(&sealed[release].files, path),
        Action::Image { release, path } => {
            let image = sealed[release].uki.as_deref().expect("an image was asked for");
            journal.write(path, &FileContent { mode: 0o644, bytes: crate::atomic::read(image)? }).map(drop)
        }
        Action::Write { path, content } => journal.write(path, content).map(drop),
        Action::Remove { path } => journal.remove(path).map(drop),
        Action::RemoveFolder { path, .. } => journal.remove_folder(path),
        Action::Run { program, arguments, writes } => {
            journal.will_change(writes)?;
            run_program(sysroot, program, arguments)
        }
    }
}

fn run_program(sysroot: &Sysroot, program: &Path, arguments: &[String]) -> Result<(), Failure> {
    let output = sysroot.command(program).args(arguments).output();
    let output = output.map_err(|error| Failure::io(format_args!("run {}", program.display()), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().lines().collect::<Vec<_>>().join("; ");
    Err(Failure::new(
        ExitStatus::System,
        format!("{} {}: {}: {text}", program.display(), arguments.join(" "), output.status),
    ))
}

/// Notes in the record what the plan will change.
fn note(
    plan: &Plan,
    sysroot: &Sysroot,
    sealed: &BTreeMap<String, SealedKernel>,
    state: &mut State,
) -> Result<(), Failure> {
    for step in &plan.steps {
        match &step.action {
            Action::Seal(step) => note_kernel(plan, step, sealed, state),
            Action::RemoveFolder { release, .. } => drop(state.kernels.remove(release)),
            Action::Write { path, content } if !is_entry(path) => {
                state.note(path.clone(), FileContent::read(sysroot, path)?, Some(content.clone()));
            }
            Action::Remove { path } if !is_entry(path) => {
                state.note(path.clone(), FileContent::read(sysroot, path)?, None);
            }
            _ => {}
        }
    }
    Ok(())
}

fn note_kernel(plan: &Plan, step: &SealStep, sealed: &BTreeMap<String, SealedKernel>, state: &mut State) {
    let folder = crate::atomic::parent(&plan.folder);
    let entry = match plan.loader {
        LoaderKind::Grub => None,
        LoaderKind::SystemdBoot => Some(loader_entries::path(folder, &step.release)),
        LoaderKind::Uki => Some(loader_entries::image(folder, &step.release)),
    };
    let sizes = sealed[&step.release].sizes;
    state.kernels.insert(step.release.clone(), InstalledKernel { inputs: step.inputs, entry, sizes });
}

/// Whether a file is that of one kernel, and goes with it.
fn is_entry(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"iofs-")) && path != Path::new(SETTINGS)
}
