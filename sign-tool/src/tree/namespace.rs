//! Root's view of files without being root: the command runs again in a user namespace.
//!
//! There, owners other than one's own need a range of subordinate ids (`/etc/subuid`) and the set-user-ID helpers of
//! the package uidmap. Device nodes cannot be made there at all.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::report::{ExitStatus, Failure};

/// Set in the second run, so that a namespace without rights does not lead to a third.
const GUARD: &str = "IOFS_IN_NAMESPACE";

/// Why the command cannot run as root of its own namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A program is not there.
    #[error("{program} is needed to keep owners without being root, and is not installed")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// The user has no range of ids to give to the tree's owners.
    #[error("{file}: expected a range of subordinate ids for user {user}, found none")]
    NoRange {
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
        /// The user's name, or number where it has none.
        user: String,
    },
    /// The second run is not root either.
    #[error("still not root inside the user namespace")]
    NotRoot,
    /// `unshare` or this program's own path failed.
    #[error("run again in a user namespace: {0}")]
    Start(#[from] io::Error),
}

impl From<NamespaceError> for Failure {
    fn from(error: NamespaceError) -> Self {
        let fact = error.to_string();
        match error {
            NamespaceError::Missing { package, .. } => {
                Self::new(ExitStatus::Missing, fact).next(format!("apt-get install {package}, or run as root"))
            }
            NamespaceError::NoRange { user, .. } => Self::new(ExitStatus::Missing, fact).next(format!(
                "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}, or run as root"
            )),
            NamespaceError::NotRoot | NamespaceError::Start(_) => Self::new(ExitStatus::System, fact)
                .next("run as root, or give this user a line in /etc/subuid and /etc/subgid (`usermod --add-subuids`)"),
        }
    }
}

/// Returns as root, or as root of a namespace; else replaces this process by one that is.
///
/// Call it before starting threads or making files: nothing of this process remains.
///
/// # Errors
/// A missing helper, or a system that forbids user namespaces.
pub fn ensure_root() -> Result<(), NamespaceError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if std::env::var_os(GUARD).is_some() {
        return Err(NamespaceError::NotRoot);
    }
    let helper = |program, package| find(program).ok_or(NamespaceError::Missing { program, package });
    let unshare = helper("unshare", "util-linux")?;
    helper("newuidmap", "uidmap")?;
    helper("newgidmap", "uidmap")?;
    check_range("/etc/subuid")?;
    check_range("/etc/subgid")?;
    Err(again(&unshare)?.exec().into())
}

/// Lines are `USER:FIRST:COUNT`, the user by name or number. Where the name service has the ranges instead, `unshare`
/// itself has to tell.
fn check_range(file: &'static str) -> Result<(), NamespaceError> {
    let switch = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    if switch.lines().any(|line| line.trim_start().starts_with("subid:")) {
        return Ok(());
    }
    let id = rustix::process::getuid().as_raw().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    let user = user.unwrap_or_else(|| id.clone());
    let ranges = std::fs::read_to_string(file).unwrap_or_default();
    if has_range(&ranges, &user, &id) { Ok(()) } else { Err(NamespaceError::NoRange { file, user }) }
}

fn has_range(ranges: &str, user: &str, id: &str) -> bool {
    ranges.lines().filter_map(|line| line.split(':').next()).any(|owner| owner == user || owner == id)
}

fn again(unshare: &Path) -> io::Result<Command> {
    let mut arguments = std::env::args_os();
    let _name = arguments.next();
    let mut command = Command::new(unshare);
    command
        .args(["--user", "--map-auto", "--map-root-user", "--mount", "--"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env(GUARD, "1");
    Ok(command)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin"), PathBuf::from("/bin")])
        .map(|directory| directory.join(program))
        .find(|candidate| Path::is_file(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let ranges = "alice:100000:65536\n1001:165536:65536\n";
        assert!(has_range(ranges, "alice", "1000"));
        assert!(has_range(ranges, "bob", "1001"));
        assert!(!has_range(ranges, "ali", "100"));
    }
}
