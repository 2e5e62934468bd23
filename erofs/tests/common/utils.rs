//! erofs-utils of Debian 12 and of Debian 13, each with its own libraries, whatever this machine has installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use erofs_image::{Compression, Tree, source::directory};

use super::{Lossy, tool};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Utils {
    /// 1.5, of Debian 12.
    Old,
    /// 1.8, of Debian 13.
    New,
}

impl Utils {
    pub const BOTH: [Self; 2] = [Self::Old, Self::New];

    /// Runs a program, and fails with its messages unless it succeeds.
    pub fn run(self, program: &str, arguments: &[&str]) -> Output {
        tool(self.folder().join("bin").join(program).to_str().unwrap(), arguments)
    }

    pub fn knows(self, compression: Compression) -> bool {
        self == Self::New || !matches!(compression, Compression::Zstd { .. })
    }

    /// What `fsck.erofs --extract` does not give back. 1.5 sets modes before owners, which clears set-id bits, and knows no
    /// attributes and no hard links.
    pub fn lossy(self) -> Lossy {
        match self {
            Self::Old => Lossy { xattrs: true, special_modes: true, links: true, times: false },
            Self::New => Lossy::default(),
        }
    }

    /// The image is accepted by fsck.erofs, and dump.erofs tells what is in it.
    pub fn accept(self, image: &Path) {
        let image = image.to_str().unwrap();
        self.run("fsck.erofs", &[image]);
        let told = self.run("dump.erofs", &["-s", "-S", image]);
        let told = String::from_utf8_lossy(&told.stdout);
        assert!(told.contains("Filesystem UUID") && told.contains("File type distribution"), "{self:?}: {told}");
    }

    /// What `fsck.erofs --extract` makes of an image.
    pub fn extract(self, image: &Path, target: &Path) -> Tree {
        let mut arguments = vec![format!("--extract={}", target.display())];
        arguments.extend((self == Self::New).then(|| "--xattrs".to_owned()));
        arguments.push(image.display().to_string());
        self.run("fsck.erofs", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        directory::load(target).unwrap()
    }

    fn folder(self) -> PathBuf {
        let (suite, version) = match self {
            Self::Old => ("bookworm", "1.5"),
            Self::New => ("trixie", "1.8"),
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/tools/erofs-utils").join(suite);
        let found = fs::read_to_string(folder.join("version"));
        let found = found.unwrap_or_else(|error| panic!("{}: {error}; run 'make cache'", folder.display()));
        assert!(found.starts_with(version), "{}: expected version {version}, found {found}", folder.display());
        folder
    }
}
