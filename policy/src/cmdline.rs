//! The kernel command line, which anyone at a boot menu can change: it may repeat the sealed configuration or ask for
//! what that allows, and nothing else.
//!
//! Names follow systemd and dracut. Unknown parameters are the kernel's or somebody else's and are left alone.

use std::time::Duration;

use crate::manifest::{Manifest, VerifiedManifest};

mod parse;
mod rules;

pub use parse::{Parameter, parse};

/// What the command line asks for, after everything that is not allowed was refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcceptedCommandLine {
    /// Say less on the console.
    pub quiet: bool,
    /// Say more on the console.
    pub debug: bool,
    /// A shorter deadline for devices than the sealed one.
    pub device_timeout: Option<Duration>,
    /// Another init, in debug images only.
    pub init: Option<String>,
    /// Arguments for init: all after `--`.
    pub init_arguments: Vec<String>,
    /// Hardware modules that are not to be loaded, with `_` for `-`.
    pub module_blacklist: Vec<String>,
    /// Parameters for modules: module (with `_` for `-`) and `name=value`. Built-in code reads its own.
    pub module_parameters: Vec<(String, String)>,
    /// What was odd, but not refused.
    pub warnings: Vec<String>,
}

/// A parameter that contradicts the sealed configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel command line: {parameter}: expected {expected}")]
pub struct CommandLineError {
    /// The parameter as written.
    pub parameter: String,
    /// What the sealed configuration says instead.
    pub expected: String,
}

impl AcceptedCommandLine {
    /// Holds a command line (`/proc/cmdline`) against the sealed configuration.
    ///
    /// # Errors
    /// [`CommandLineError`] for the first parameter that is refused.
    pub fn check(line: &str, sealed: &VerifiedManifest) -> Result<Self, CommandLineError> {
        Self::check_against(line, sealed.manifest())
    }

    fn check_against(line: &str, sealed: &Manifest) -> Result<Self, CommandLineError> {
        let (parameters, init_arguments) = parse(line);
        let mut accepted = Self { init_arguments, ..Self::default() };
        for parameter in &parameters {
            if let Err(expected) = rules::apply(parameter, sealed, &mut accepted) {
                accepted.refuse_or_warn(parameter, expected, sealed)?;
            }
        }
        Ok(accepted)
    }

    /// A refused parameter passes only where its sealer said so: by name, or by calling the image a debug image.
    fn refuse_or_warn(
        &mut self,
        parameter: &Parameter,
        expected: String,
        sealed: &Manifest,
    ) -> Result<(), CommandLineError> {
        let why = if sealed.allowed_parameters.iter().any(|allowed| parameter.is(allowed)) {
            "allowed by the sealed configuration"
        } else if sealed.image.debug {
            "let through because this is a debug image"
        } else {
            return Err(CommandLineError { parameter: parameter.text.clone(), expected });
        };
        if parameter.name == "init" {
            self.init.clone_from(&parameter.value);
        }
        self.warnings.push(format!("kernel command line: {}: {why}", parameter.text));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
