//! The system to install into: `/`, or the same below another folder.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    process::Command,
};

/// How many links a path may lead over, as in Linux.
const MAX_LINKS: usize = 40;

/// The folder in which everything lies.
#[derive(Debug, Clone)]
pub struct Sysroot(PathBuf);

impl Sysroot {
    /// The system whose root is this folder.
    pub fn new(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// Whether it is the running system's own.
    pub fn is_own(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where an absolute path of the system lies.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The path without links, as the system names it: a link's absolute target is meant from its root.
    ///
    /// # Errors
    /// A part of the path is missing, or the links lead in circles.
    pub fn resolve(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let mut left: Vec<PathBuf> = parts(path.as_ref());
        let (mut resolved, mut links) = (PathBuf::from("/"), 0);
        while let Some(part) = left.pop() {
            if part == Path::new("..") {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&part);
            if !fs::symlink_metadata(self.path(&next))?.is_symlink() {
                resolved = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = fs::read_link(self.path(&next))?;
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            left.extend(parts(&target));
        }
        Ok(resolved)
    }

    /// Whether there is such a file or folder.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.resolve(path).is_ok()
    }

    /// The program of this name, if it is installed.
    pub fn find_program(&self, name: &str) -> Option<PathBuf> {
        let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
        folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| self.has(path))
    }

    /// A command that runs a program of the system, changed into it where it is not the running one.
    pub fn command(&self, program: &Path) -> Command {
        if self.is_own() {
            return Command::new(program);
        }
        let mut command = Command::new("chroot");
        command.arg(&self.0).arg(program);
        command
    }
}

/// The parts of a path, the first one last; a root and `.` are none.
fn parts(path: &Path) -> Vec<PathBuf> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    let mut parts: Vec<PathBuf> = path.components().filter_map(part).collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside_and_end() {
        let root = tempfile::tempdir().unwrap();
        let sysroot = Sysroot::new(root.path());
        fs::create_dir_all(sysroot.path("/usr/lib/modules")).unwrap();
        symlink("usr/lib", sysroot.path("/lib")).unwrap();
        symlink("/lib/modules", sysroot.path("/absolute")).unwrap();
        symlink("../../../../absolute", sysroot.path("/above")).unwrap();
        symlink("circle", sysroot.path("/circle")).unwrap();
        for path in ["/lib/modules", "/absolute", "/above", "/above/../modules"] {
            assert_eq!(sysroot.resolve(path).unwrap(), Path::new("/usr/lib/modules"), "{path}");
        }
        assert!(sysroot.resolve("/circle").is_err() && !sysroot.has("/absent"));
    }
}
