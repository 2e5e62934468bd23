//! systemd's programs for unified kernel images, of this machine and of Debian 13, beside what is predicted.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use iofs_policy::pcr::PcrBank;
use iofs_sign::{pe::Headers, uki};
use serde_json::Value;
use tempfile::TempDir;

use crate::x509_common::{Place, run};

/// Where Debian keeps libraries on x86-64.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The programs of Debian 13's systemd, unpacked for this test.
///
/// They run on any Debian and by any user, with the libraries that they were built for: no root is changed into, and nothing
/// of it is left.
pub(crate) struct Trixie {
    tree: TempDir,
}

impl Trixie {
    pub(crate) fn unpacked() -> Self {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/roots/trixie-ukify.tar");
        assert!(archive.exists(), "{} is missing\n  run: make cache", archive.display());
        // A hundred megabytes, and /tmp may be memory.
        let tree = tempfile::tempdir_in("/var/tmp").unwrap();
        let programs = ["usr/bin/ukify", "usr/lib/systemd/systemd-measure", LIBRARIES];
        let python = ["usr/bin/python3", "usr/bin/python3.13", "usr/lib/python3", "usr/lib/python3.13"];
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(tree.path());
        run(tar.args(programs.iter().chain(&python).map(|member| format!("./{member}"))));
        Self { tree }
    }

    pub(crate) fn measure(&self) -> Command {
        self.program("usr/lib/systemd/systemd-measure")
    }

    pub(crate) fn ukify(&self) -> Command {
        let mut command = self.program("usr/bin/python3");
        command.env("PYTHONHOME", self.path("usr")).env("PYTHONDONTWRITEBYTECODE", "1").arg(self.path("usr/bin/ukify"));
        command
    }

    /// By its own dynamic linker, which need not be this machine's.
    fn program(&self, path: &str) -> Command {
        let libraries = [self.path(LIBRARIES), self.path(LIBRARIES).join("systemd")];
        let mut command = Command::new(self.path(LIBRARIES).join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(std::env::join_paths(libraries).unwrap()).arg(self.path(path));
        command
    }

    fn path(&self, below: &str) -> PathBuf {
        self.tree.path().join(below)
    }
}

/// This machine's systemd-measure.
pub(crate) fn measure() -> Command {
    Command::new("/lib/systemd/systemd-measure")
}

/// Each section of an image that is predicted to be measured, as a file of its name and an option of systemd-measure.
pub(crate) fn sections(place: &Place, image: &[u8]) -> Vec<String> {
    let headers = Headers::parse(image).unwrap();
    let option = |section: &&iofs_sign::pe::Section| {
        let name = &section.name[1..];
        format!("--{name}={}", place.write(name, section.contents(image)).display())
    };
    uki::measured(&headers, image).iter().map(option).collect()
}

/// Register 11 of an image must be what this systemd-measure calculates of its sections, in each phase and bank.
pub(crate) fn calculates_what_is_predicted(place: &Place, image: &[u8], mut measure: Command) {
    let headers = Headers::parse(image).unwrap();
    let predicted = PcrBank::ALL.map(|bank| (bank.name().to_owned(), uki::predict(&headers, image, bank).unwrap()));
    measure.args(["calculate", "--json=short"]).args(sections(place, image));
    measure.args(PcrBank::ALL.map(|bank| format!("--bank={}", bank.name())));
    // What it calculates by itself has not the moment before any phase.
    let phases = predicted[0]
        .1
        .iter()
        .map(|value| format!("--phase={}", if value.phase.is_empty() { ":" } else { &value.phase }));
    let theirs: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&run(measure.args(phases))).unwrap();
    let theirs = theirs.into_iter().map(|(bank, values)| (bank, values.iter().map(phase_value).collect::<Vec<_>>()));
    let ours = predicted
        .map(|(bank, values)| (bank, values.into_iter().map(|value| (value.phase, value.value)).collect::<Vec<_>>()));
    assert_eq!(BTreeMap::from(ours), theirs.collect());
}

/// Phase and value of one that it calculated. Before any phase, it names none.
fn phase_value(value: &Value) -> (String, String) {
    assert_eq!(value["pcr"], 11, "{value}");
    (value["phase"].as_str().unwrap_or_default().to_owned(), value["hash"].as_str().unwrap().to_owned())
}
