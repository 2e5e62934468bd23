//! `uninstall`: what `install` wrote goes, and what was there before comes back.

use std::path::{Path, PathBuf};

use super::{
    apply::{Installed, execute},
    boot::{Loader, LoaderKind},
    grub, loader_entries,
    plan::{Action, Plan, remove_kernel},
    settings::SETTINGS,
    state::{FileContent, STATE, State, Written},
    sysroot::Sysroot,
};
use crate::report::{ExitStatus, Failure};

/// What to remove.
#[derive(Debug)]
pub struct UninstallRequest {
    /// The system.
    pub sysroot: Sysroot,
    /// The kernels' releases; none means everything.
    pub kernels: Vec<String>,
    /// Leave `/etc/iofs/install.toml`.
    pub keep_settings: bool,
    /// Whether to have the loader's menu made.
    pub menu: bool,
    /// Whether to say what would be done, and do nothing.
    pub dry_run: bool,
}

/// Removes what is installed.
///
/// # Errors
/// A [`Failure`]; then nothing is changed.
pub fn uninstall(request: &UninstallRequest) -> Result<Installed, Failure> {
    let Some(mut state) = State::read(&request.sysroot)? else {
        let fact = format!("nothing is installed: there is no {STATE}");
        return Err(Failure::new(ExitStatus::Usage, fact).next("see what is there: iofs-sign install --dry-run"));
    };
    let mut plan = Plan { steps: Vec::new(), remarks: Vec::new(), loader: state.loader, folder: state.folder.clone() };
    let all = request.kernels.is_empty();
    if all {
        restore(request, &state, &mut plan)?;
        make_menu(request, &mut plan)?;
    }
    for (release, installed) in &state.kernels {
        if all || request.kernels.contains(release) {
            remove_kernel(&mut plan, &state.folder, release, installed.entry.as_deref());
        }
    }
    if !all && !plan.steps.is_empty() {
        make_menu(request, &mut plan)?;
    }
    if all {
        plan.push(Action::Remove { path: STATE.into() }, format!("remove {STATE}"));
    }
    if !request.dry_run && !plan.steps.is_empty() {
        let record = (!all).then(|| {
            state.kernels.retain(|release, _| !request.kernels.contains(release));
            state
        });
        execute(&plan, &request.sysroot, None, record)?;
        remove_empty(&request.sysroot, &plan.folder);
    }
    Ok(Installed { applied: !request.dry_run, plan, sizes: std::collections::BTreeMap::new() })
}

/// Plans to put every file back as it was, the last one first; but not one that somebody else has changed since.
fn restore(request: &UninstallRequest, state: &State, plan: &mut Plan) -> Result<(), Failure> {
    for Written { path, before, after } in state.files.iter().rev() {
        if path == Path::new(SETTINGS) && request.keep_settings {
            continue;
        }
        let now = FileContent::read(&request.sysroot, path)?;
        let text = path.display();
        if now == *before || is_of_no_kernel(&request.sysroot, state, path, before.as_ref()) {
            continue;
        }
        if now != *after {
            plan.remarks.push(format!("{text} was changed since, and stays as it is"));
            continue;
        }
        match before {
            Some(content) => {
                let action = Action::Write { path: path.clone(), content: content.clone() };
                plan.push(action, format!("put {text} back as it was"));
            }
            None => plan.push(Action::Remove { path: path.clone() }, format!("remove {text}")),
        }
    }
    Ok(())
}

/// Whether a loader's entry was taken out whose kernel has gone since.
fn is_of_no_kernel(sysroot: &Sysroot, state: &State, path: &Path, before: Option<&FileContent>) -> bool {
    let Some(before) = before.filter(|_| crate::atomic::parent(path).ends_with("loader/entries")) else { return false };
    let text = String::from_utf8_lossy(&before.bytes);
    !loader_entries::loads_something(sysroot, crate::atomic::parent(&state.folder), &text)
}

fn make_menu(request: &UninstallRequest, plan: &mut Plan) -> Result<(), Failure> {
    if plan.loader != LoaderKind::Grub || !request.menu {
        return Ok(());
    }
    let Loader::Grub { configuration, program } = Loader::find(&request.sysroot, Some(LoaderKind::Grub))? else {
        return Ok(());
    };
    let program: PathBuf = grub::find(&request.sysroot, program)?;
    plan.run_grub(&program, &configuration);
    Ok(())
}

/// Our own folders go where nothing else is in them.
fn remove_empty(sysroot: &Sysroot, folder: &Path) {
    for folder in [folder, Path::new("/etc/iofs"), Path::new("/var/lib/iofs")] {
        let _ = std::fs::remove_dir(sysroot.path(folder));
    }
}
