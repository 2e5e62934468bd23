//! Programs that tests run.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};

/// Debian keeps some programs where a user's `PATH` does not look.
const ALSO_SEARCHED: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Finds `program` in `PATH` and in the `sbin` folders.
///
/// # Errors
///
/// Where it is missing, with `install` as the command that brings it. A missing tool is a failure: a test that is
/// skipped would look like one that passed.
pub fn require(program: &str, install: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(ALSO_SEARCHED.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| anyhow!("{program} is not installed\n  run: {install}"))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_path_is_found() {
        assert!(require("sh", "apt-get install dash").unwrap().ends_with("sh"));
    }

    #[test]
    fn a_missing_program_fails_with_the_command_that_installs_it() {
        let error = require("no-such-program", "apt-get install nothing").unwrap_err().to_string();
        assert!(error.contains("no-such-program"), "{error}");
        assert!(error.contains("apt-get install nothing"), "{error}");
    }
}
