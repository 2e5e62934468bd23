//! The second stage: the manifest is signed for this machine, and nothing contradicts it.

use iofs_policy::{
    cmdline::AcceptedCommandLine,
    dsse::MAX_ENVELOPE_SIZE,
    failure::{FailureReport, Stage},
    keys::KeyRing,
    manifest::{Architecture, Manifest, VerificationError, VerifiedManifest},
    paths::MANIFEST,
    trust::{SignatureError, TrustPolicy},
};

use crate::{
    boot::{Boot, Verbosity},
    report::refusal,
    started::Started,
    system::System,
};

const STAGE: Stage = Stage::Verified;
const SEAL: &str = "seal the image with a trusted key, or boot a release that was";
/// As many digits of a key's identity as people compare.
const SHORT: usize = 16;

/// The manifest is verified, and the command line accepted.
pub(crate) struct Verified {
    pub(crate) manifest: VerifiedManifest,
    pub(crate) command_line: AcceptedCommandLine,
    pub(crate) trust: TrustPolicy,
    /// As it is measured.
    pub(crate) raw_command_line: Vec<u8>,
    pub(crate) release: String,
}

impl Started {
    /// Verifies before anything else is parsed, loaded or looked at.
    pub(crate) fn verify<S: System>(self, boot: &mut Boot<'_, S>) -> Result<Verified, FailureReport> {
        let manifest =
            VerifiedManifest::verify(&self.envelope, &self.trust, &KeyRing::of(&self.trust), Architecture::CURRENT)
                .map_err(|error| refused(&error))?;
        boot.set_action(manifest.manifest().on_failure);
        let command_line = AcceptedCommandLine::check(&self.command_line, &manifest).map_err(|error| {
            let fact = "the kernel command line contradicts the sealed configuration";
            let next = "remove the parameter in the boot loader, or seal an image that allows it";
            refusal(STAGE, fact, error.expected, error.parameter, next)
        })?;
        check_release(manifest.manifest(), &self.release)?;
        boot.set_verbosity(match (command_line.debug, command_line.quiet) {
            (true, _) => Verbosity::Debug,
            (false, true) => Verbosity::Quiet,
            (false, false) => Verbosity::Normal,
        });
        command_line.warnings.iter().for_each(|warning| boot.warn(warning.clone()));
        boot.reached(STAGE, &description(&manifest));
        let Self { trust, raw_command_line, release, .. } = self;
        Ok(Verified { manifest, command_line, trust, raw_command_line, release })
    }
}

fn description(manifest: &VerifiedManifest) -> String {
    let image = &manifest.manifest().image;
    let keys: Vec<String> = manifest.signers().iter().map(|key| key.to_string()[..SHORT].to_owned()).collect();
    let (debug, keys) = (if image.debug { " DEBUG IMAGE" } else { "" }, keys.join(", "));
    format!("verified manifest of {} {}{debug} (key {keys})", image.id, image.version)
}

/// The image is for the running kernel.
pub(crate) fn check_release(manifest: &Manifest, running: &str) -> Result<(), FailureReport> {
    match &manifest.kernel_release {
        Some(sealed) if sealed != running => {
            let next = "boot the kernel that the image was sealed with";
            Err(refusal(
                STAGE,
                "this is not the sealed kernel",
                format!("kernel {sealed}"),
                format!("kernel {running}"),
                next,
            ))
        }
        _ => Ok(()),
    }
}

fn refused(error: &VerificationError) -> FailureReport {
    let because = |fact, expected: String| refusal(STAGE, fact, expected, error.to_string(), SEAL);
    match error {
        VerificationError::Envelope(_) => because(
            "the manifest's envelope is malformed",
            format!("a DSSE envelope of at most {MAX_ENVELOPE_SIZE} bytes in {MANIFEST}"),
        ),
        VerificationError::Signature(SignatureError::Invalid(_)) => {
            because("the manifest's signature does not verify", "the bytes that the trusted key signed".into())
        }
        VerificationError::Signature(SignatureError::NotEnough { threshold, .. }) => because(
            "the manifest is not signed by enough trusted keys",
            format!("{threshold} of the keys in the trust policy"),
        ),
        VerificationError::Manifest(_) => {
            because("the signed manifest is malformed", "a manifest that this version understands".into())
        }
        VerificationError::Keys { .. } => {
            because("the signed manifest moves keys", "a manifest by the keys in the trust policy".into())
        }
        VerificationError::Identity { field, expected, found } => {
            let next = "boot the image that was sealed for this machine";
            refusal(STAGE, format!("the manifest is for another {field}"), expected, found, next)
        }
        VerificationError::Rollback { floor, found } => {
            let (expected, found) = (format!("rollback index {floor} or higher"), format!("rollback index {found}"));
            refusal(STAGE, "the image is older than this machine accepts", expected, found, "boot a newer release")
        }
    }
}
