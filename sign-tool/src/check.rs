//! `verify`: everything in a sealed directory, offline: signatures, digests, every block, and what the mini-initramfs
//! really holds.

use std::{collections::BTreeSet, num::NonZeroUsize};

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, MAX_ENVELOPE_SIZE, PayloadType},
    manifest::{ImageIdentity, Manifest},
    release::{Artifact, Release},
    trust::{KeyId, TrustPolicy, TrustedKeys, VerifiedPayload},
    verity::{HashArea, RootHash, Superblock},
};
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    report::{ExitStatus, Failure, Output},
    sealed::{self, SealedDirectory, digest_file},
    verity::{self, Engine, VerifyJob},
};

mod embedded;
mod firmware;
mod keys;

/// How many wrong blocks are listed before the search ends.
const MAX_BLOCKS: usize = 16;

/// What is wrong with one artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file in the sealed directory.
    pub artifact: String,
    /// What was expected and what was found, with block and offset where there are such.
    pub what: String,
}

impl Problem {
    fn new(artifact: &str, what: impl std::fmt::Display) -> Self {
        Self { artifact: artifact.to_owned(), what: what.to_string() }
    }
}

/// What was checked, and all that is wrong.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Whether everything verified.
    pub verified: bool,
    /// The image, if its manifest verified.
    pub image: Option<ImageIdentity>,
    /// Its root hash, if its manifest verified.
    pub root_hash: Option<RootHash>,
    /// The keys that signed the manifest.
    pub signers: Vec<KeyId>,
    /// The files that were checked.
    pub artifacts: Vec<String>,
    /// All that is wrong, the most telling first.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// The report as a failure, if anything is wrong.
    pub fn into_result(self) -> Result<Self, Failure> {
        match self.problems.first() {
            None => Ok(self),
            Some(first) => {
                let more = match self.problems.len() {
                    1 => String::new(),
                    count => format!(" (and {} more)", count - 1),
                };
                let fact = format!("{}: {}{more}", first.artifact, first.what);
                Err(Failure::new(ExitStatus::NotVerified, fact)
                    .next("do not ship this directory: seal again, or fetch it again from where it was verified"))
            }
        }
    }
}

/// Checks a sealed directory against the keys that must have signed it.
///
/// # Errors
/// Only what keeps the check from running, such as a directory that is not there. All else is in the report.
pub fn check(
    directory: &SealedDirectory,
    keys: &TrustedKeys,
    threads: NonZeroUsize,
    output: Output,
) -> Result<CheckReport, Failure> {
    std::fs::read_dir(directory.path())
        .map_err(|error| Failure::io(format_args!("open {}", directory.path().display()), &error))?;
    let mut check = Check { directory, keys, threads, output, envelopes: Vec::new(), report: CheckReport::default() };
    let manifest = check.manifest();
    let release = check.release(manifest.as_ref());
    if let Some(release) = &release {
        check.digests(release);
    }
    if let Some((manifest, _)) = &manifest {
        check.trust(manifest);
        check.root_hash_file(manifest);
        check.superblock(manifest);
        check.blocks(manifest);
        check.root_hash_signature(manifest);
        check.uki(manifest);
    }
    check.embedded();
    let mut report = check.report;
    report.artifacts.extend(release.iter().flat_map(|release| &release.artifacts).map(|one| one.name.clone()));
    report.verified = report.problems.is_empty();
    Ok(report)
}

/// Where the hash area begins in its own file: at one place with the data it lies behind that.
fn offset_in_file(manifest: &Manifest) -> u64 {
    if manifest.is_one_piece() { 0 } else { manifest.verity.hash_offset }
}

/// A check under way.
struct Check<'a> {
    directory: &'a SealedDirectory,
    keys: &'a TrustedKeys,
    threads: NonZeroUsize,
    output: Output,
    /// The envelopes that `keys` verified.
    envelopes: Vec<(&'static str, Envelope)>,
    report: CheckReport,
}

impl Check<'_> {
    fn problem(&mut self, artifact: &str, what: impl std::fmt::Display) {
        self.report.problems.push(Problem::new(artifact, what));
    }

    /// Notes a problem and goes on without the value.
    fn note<T>(&mut self, artifact: &str, result: Result<T, impl std::fmt::Display>) -> Option<T> {
        result.map_err(|error| self.problem(artifact, error)).ok()
    }

    fn payload(&mut self, name: &'static str, payload_type: PayloadType) -> Option<VerifiedPayload> {
        let bytes = self.directory.read(name, MAX_ENVELOPE_SIZE).map_err(|failure| failure.fact);
        let bytes = self.note(name, bytes)?;
        let envelope = Envelope::parse(&bytes, payload_type);
        let envelope = self.note(name, envelope)?;
        // No digest covers the release statement's envelope: it must be written in the one way that seal has.
        if envelope.to_json() != bytes {
            self.problem(name, "envelope: expected the form that iofs-sign writes, found the same content in another");
        }
        let verified = self.keys.verify(&envelope);
        let verified = self.note(name, verified)?;
        self.envelopes.push((name, envelope));
        Some(verified)
    }

    fn manifest(&mut self) -> Option<(Manifest, Sha256Digest)> {
        let payload = self.payload(sealed::MANIFEST, PayloadType::Manifest)?;
        let manifest = Manifest::from_payload(&payload);
        let manifest = self.note(sealed::MANIFEST, manifest)?;
        self.report.image = Some(manifest.image.clone());
        self.report.root_hash = Some(manifest.verity.root_hash.clone());
        self.report.signers = payload.signers().to_vec();
        Some((manifest, Sha256Digest::of(payload.bytes())))
    }

    /// The release statement, which must speak of the same manifest.
    fn release(&mut self, manifest: Option<&(Manifest, Sha256Digest)>) -> Option<Release> {
        let payload = self.payload(sealed::RELEASE, PayloadType::Release)?;
        let release = Release::from_payload(&payload);
        let release = self.note(sealed::RELEASE, release)?;
        if let Some((manifest, digest)) = manifest {
            let same = release.manifest_digest == *digest
                && release.image == manifest.image
                && release.root_hash == manifest.verity.root_hash
                && release.kernel_release == manifest.kernel_release;
            if !same {
                let found = release.manifest_digest;
                self.problem(
                    sealed::RELEASE,
                    format_args!("expected a statement about manifest {digest}, found one about {found}"),
                );
            }
        }
        Some(release)
    }

    /// What the device will ask for: `keys` may be fewer than those that it trusts.
    fn trust(&mut self, manifest: &Manifest) {
        let Ok(trust) = self.directory.trust() else {
            if self.report.problems.iter().all(|problem| problem.artifact != sealed::TRUST) {
                self.problem(sealed::TRUST, "not a trust policy");
            }
            return;
        };
        self.signatures(&trust, manifest.keys.is_some());
        self.key_history(manifest, &trust);
        let image = &manifest.image;
        if (&trust.image_id, trust.role) != (&image.id, image.role) {
            let (id, role) = (&trust.image_id, trust.role);
            let what = format_args!("expected image {} ({}), found {id} ({role})", image.id, image.role);
            self.problem(sealed::TRUST, what);
        }
        if trust.minimum_rollback_index > image.rollback_index {
            let (least, found) = (trust.minimum_rollback_index, image.rollback_index);
            self.problem(sealed::TRUST, format_args!("it refuses rollback index {found}: the least is {least}"));
        }
    }

    /// Every signature verifies, none is by a stranger, and there are as many as the device wants.
    /// A manifest that moves the keys is signed by those before, too, which are nowhere in the directory.
    fn signatures(&mut self, trust: &TrustPolicy, moves: bool) {
        for (name, envelope) in std::mem::take(&mut self.envelopes) {
            self.note(name, trust.keys.verify(&envelope));
            if moves && name == sealed::MANIFEST {
                continue;
            }
            let known = |id| self.keys.keys().iter().chain(trust.keys.keys()).any(|key| key.id() == id);
            if let Some(stranger) = envelope.signatures().iter().find(|one| !known(one.keyid)) {
                let id = stranger.keyid;
                self.problem(name, format_args!("signature by key {id}: expected one of the trusted keys"));
            }
        }
    }

    /// Every file that the statement lists, and that no file is there which it does not list.
    fn digests(&mut self, release: &Release) {
        let problems: Vec<Problem> =
            release.artifacts.par_iter().filter_map(|artifact| self.digest_problem(artifact)).collect();
        self.report.problems.extend(problems);
        let listed: BTreeSet<&str> = release.artifacts.iter().map(|one| one.name.as_str()).collect();
        for name in self.directory.names() {
            if name != sealed::RELEASE && !listed.contains(name.as_str()) {
                self.problem(&name, "expected no such file, as the release statement does not list it");
            }
        }
    }

    fn digest_problem(&self, artifact: &Artifact) -> Option<Problem> {
        let name = &artifact.name;
        let mut file = match self.directory.open(name) {
            Ok(file) => file,
            Err(failure) => return Some(Problem::new(name, failure.fact)),
        };
        match digest_file(&mut file) {
            Ok((size, sha256)) if (size, sha256) == (artifact.size, artifact.sha256) => None,
            Ok((size, _)) if size != artifact.size => {
                Some(Problem::new(name, format_args!("expected {} bytes, found {size}", artifact.size)))
            }
            Ok((_, found)) => {
                Some(Problem::new(name, format_args!("expected SHA-256 {}, found {found}", artifact.sha256)))
            }
            Err(error) => Some(Problem::new(name, format_args!("read: {error}"))),
        }
    }

    fn root_hash_file(&mut self, manifest: &Manifest) {
        let expected = manifest.verity.root_hash.to_string();
        let found = self.directory.read(sealed::ROOT_HASH, 256).map_err(|failure| failure.fact);
        match self.note(sealed::ROOT_HASH, found) {
            Some(found) if found != expected.as_bytes() => {
                let found = String::from_utf8_lossy(&found).into_owned();
                self.problem(sealed::ROOT_HASH, format_args!("expected {expected}, found {found:?}"));
            }
            _ => {}
        }
    }

    /// The superblock is compared as bytes: nobody believes it.
    fn superblock(&mut self, manifest: &Manifest) {
        let Some(uuid) = manifest.verity.superblock_uuid else { return };
        let expected = Superblock { parameters: manifest.verity.parameters.clone(), uuid };
        let found = self.directory.open(sealed::TREE).map_err(|failure| failure.fact).and_then(|file| {
            verity::read_superblock(&file, offset_in_file(manifest)).map_err(|error| error.to_string())
        });
        match self.note(sealed::TREE, found) {
            Some(found) if found != expected => {
                self.problem(sealed::TREE, "superblock: it differs from the signed parameters");
            }
            _ => {}
        }
    }

    /// Every data block and every level of the tree.
    fn blocks(&mut self, manifest: &Manifest) {
        let verity = &manifest.verity;
        let files = self.directory.open(sealed::IMAGE).and_then(|data| Ok((data, self.directory.open(sealed::TREE)?)));
        let Some((data, tree)) = self.note(sealed::IMAGE, files.map_err(|failure| failure.fact)) else { return };
        let job = VerifyJob {
            engine: Engine::best(),
            data: &data,
            hash: &tree,
            area: HashArea { offset: offset_in_file(manifest), superblock: verity.superblock_uuid.is_some() },
            parameters: &verity.parameters,
            root_hash: &verity.root_hash,
            threads: self.threads,
            limit: NonZeroUsize::new(MAX_BLOCKS).expect("not zero"),
        };
        let length = verity.parameters.data_blocks * u64::from(verity.parameters.data_block_size.bytes());
        let progress = self.output.progress("verifying every block", length);
        let result = verity::verify(&job, &progress);
        progress.finish();
        match result {
            Ok(_) => {}
            Err(verity::VerifyError::Mismatch(mismatches)) => {
                // The block is what people look for: it goes before the digests of whole files.
                let found = mismatches.iter().map(|one| {
                    let artifact = match one.artifact {
                        verity::Artifact::Data => sealed::IMAGE,
                        verity::Artifact::HashTree { .. } => sealed::TREE,
                    };
                    Problem::new(artifact, one)
                });
                self.report.problems.splice(0..0, found.collect::<Vec<_>>());
            }
            Err(error) => self.problem(sealed::IMAGE, error),
        }
    }
}
