//! `/etc/iofs/install.toml`: what the first `install` was told, for later ones and for the hooks of kernel packages.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{boot::LoaderKind, sysroot::Sysroot};
use crate::report::{ExitStatus, Failure};

/// Where the settings lie.
pub const SETTINGS: &str = "/etc/iofs/install.toml";

const HEADER: &str = "# Written by 'iofs-sign install', read by it and by the hooks that run when kernels change.\n";

/// Where the sealed image lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ImagePlace {
    /// A file on the file system that the boot loader reads
    #[default]
    File,
    /// Inside the mini-initramfs
    Memory,
}

/// A command that signs, so that no private key need be on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// A command for the shell: it gets the bytes to sign on standard input, and prints the signature of 64 bytes.
    pub command: String,
    /// Whose signature that is: a public key (PEM).
    pub key: PathBuf,
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Private keys that sign.
    pub keys: Vec<PathBuf>,
    /// Where the image lies.
    pub place: ImagePlace,
    /// The boot loader, where it is not the one that is found.
    pub loader: Option<LoaderKind>,
    /// Whether the distribution's own entries stay.
    pub fallback: bool,
    /// What else to seal: an `iofs.toml`.
    pub config: Option<PathBuf>,
    /// An RSA key that signs unified kernel images for Secure Boot.
    pub secure_boot_key: Option<PathBuf>,
    /// Its certificate.
    pub secure_boot_certificate: Option<PathBuf>,
    /// A command that signs.
    pub agent: Option<Agent>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            place: ImagePlace::default(),
            loader: None,
            fallback: true,
            config: None,
            secure_boot_key: None,
            secure_boot_certificate: None,
            agent: None,
        }
    }
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if *self == Self::File { "file" } else { "memory" })
    }
}

impl Settings {
    /// Reads the settings of a system; none where nothing was installed yet.
    ///
    /// # Errors
    /// The file is malformed or cannot be read.
    pub fn read(sysroot: &Sysroot) -> Result<Option<Self>, Failure> {
        match fs::read_to_string(sysroot.path(SETTINGS)) {
            Ok(text) => Self::parse(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(format_args!("read {SETTINGS}"), &error)),
        }
    }

    /// Parses the file's text.
    ///
    /// # Errors
    /// It is no TOML, or has a field that is unknown or wrong.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|error| {
            Failure::new(ExitStatus::BadInput, format!("{SETTINGS}: {}", error.to_string().trim_end()))
                .next("correct it, or remove it and run 'iofs-sign install' with its options again")
        })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        format!("{HEADER}{}", toml::to_string(self).expect("settings are plain values"))
    }

    /// Every file with a private key.
    pub fn private_files(&self) -> impl Iterator<Item = &Path> {
        self.keys.iter().chain(&self.secure_boot_key).map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back_and_unknown_ones_are_named() {
        let agent = Agent { command: "ssh signer".to_owned(), key: "/etc/iofs/release.pub.pem".into() };
        let settings =
            Settings { place: ImagePlace::Memory, fallback: false, agent: Some(agent), ..Settings::default() };
        assert_eq!(Settings::parse(&settings.to_text()).unwrap(), settings);
        let error = Settings::parse("keyz = []\n").unwrap_err();
        assert!(error.fact.contains("unknown field `keyz`"), "{error}");
        assert_eq!(error.status, ExitStatus::BadInput);
    }
}
