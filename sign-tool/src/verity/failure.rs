//! What users read when an operation on a hash tree fails.

use iofs_policy::verity::ParameterError;

use super::{Artifact, Fault, FormatError, MediaError, Mismatch, VerifyError};
use crate::report::{ExitStatus, Failure};

/// Parameters come from the command line; those of a superblock are refused as it is read.
fn parameter(error: &ParameterError) -> Failure {
    let failure = Failure::new(ExitStatus::Usage, format!("verity parameters: {error}"));
    match error {
        ParameterError::HashOffset { .. } => failure.next("choose an aligned hash offset, or write a superblock"),
        _ => failure,
    }
}

impl From<MediaError> for Failure {
    fn from(error: MediaError) -> Self {
        let fact = error.to_string();
        match error {
            MediaError::Io { doing, source } => Self::io(doing, &source),
            MediaError::Empty => {
                Self::new(ExitStatus::BadInput, fact).next("check that the path names the image to protect")
            }
            MediaError::NotMultiple { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("pad the data to whole blocks, or name the blocks to protect with --data-blocks"),
            MediaError::NoSuperblock { .. } | MediaError::Superblock { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("check --hash-offset, or give --no-superblock and the tree's parameters"),
        }
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        let fact = error.to_string();
        match error {
            FormatError::Parameter(error) => parameter(&error),
            FormatError::Media(error) => error.into(),
            FormatError::DataTooSmall { .. } => {
                Self::new(ExitStatus::BadInput, fact).next("lower --data-blocks, or check that the data is complete")
            }
            FormatError::HashTooSmall { .. } => {
                Self::new(ExitStatus::BadInput, fact).next("use a larger hash device, or larger blocks")
            }
            FormatError::Overlap { .. } => Self::new(ExitStatus::Usage, fact)
                .next("raise --hash-offset, or name the blocks to protect with --data-blocks"),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let fact = error.to_string();
        match error {
            VerifyError::Parameter(error) => parameter(&error),
            VerifyError::Media(error) => error.into(),
            VerifyError::TooSmall { .. } => Self::new(ExitStatus::BadInput, fact)
                .next("check that the file is complete, and that the parameters are those of the tree"),
            VerifyError::Mismatch(mismatches) => {
                Self::new(ExitStatus::NotVerified, fact).next(next_step(mismatches.first()))
            }
        }
    }
}

fn next_step(mismatch: Option<&Mismatch>) -> &'static str {
    match mismatch.map(|mismatch| (mismatch.artifact, &mismatch.fault)) {
        Some((_, Fault::RootHash { .. })) => {
            "check that root hash and parameters belong to this data; if they do, restore data and tree from their source"
        }
        Some((Artifact::HashTree { .. }, _)) => {
            "restore the hash tree from its source; the data below that block cannot be vouched for"
        }
        _ => "restore the data from its source; do not use this copy",
    }
}
