//! A release that is to be written: its manifest and its tree, both verified before anything else is believed of it.

use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    keys::{KeyHistory, KeyRing},
    manifest::{Architecture, Manifest, VerificationError, VerifiedManifest},
    release::Release,
    slots::{Candidate, Chooser, FloorKeeper, SlotName, SlotRecord, SlotRules, compare_versions},
    trust::TrustPolicy,
    verity::{Geometry, HashArea, Superblock},
};

use super::{layout::SlotLayout, source::Source};
use crate::{
    report::{ExitStatus, Failure},
    sealed,
    verity::Tree,
};

/// A release whose manifest trusted keys signed, with the tree that the manifest stands for.
#[derive(Debug)]
pub struct Incoming {
    /// The manifest.
    pub manifest: VerifiedManifest,
    /// The envelope that it came in.
    pub envelope: Vec<u8>,
    /// The key history that goes with it.
    pub history: Option<Vec<u8>>,
    /// The keys that it leads to, which verified the manifest.
    pub keys: KeyRing,
    /// Where everything goes.
    pub layout: SlotLayout,
    /// The digests of all blocks.
    pub tree: Tree,
    /// What goes between the image and the tree's first block: the superblock, if there is one.
    pub head: Vec<u8>,
}

impl Incoming {
    /// Verifies manifest and tree, by the keys that the machine has confirmed and the release's own history. `machine` is what it must
    /// run on; what is written for another machine may run on any.
    ///
    /// # Errors
    /// It is not for this machine, or not what was signed.
    pub fn verify(
        source: &Source,
        trust: &TrustPolicy,
        confirmed: &KeyRing,
        machine: Option<Architecture>,
    ) -> Result<Self, Failure> {
        let envelope = source.envelope()?;
        let history = source.history()?;
        let keys = follow(source, history.as_deref(), confirmed)?;
        let manifest = verify_manifest(&envelope, trust, &keys, machine).map_err(|error| refused(source, &error))?;
        lead_there(source, history.as_deref(), trust, &keys)?;
        let layout = SlotLayout::new(manifest.manifest(), envelope.len(), history.as_ref().map(Vec::len))
            .map_err(|failure| failure.about(source.path()))?;
        let (tree, head) = tree(source, manifest.manifest(), &layout)?;
        Ok(Self { manifest, envelope, history, keys, layout, tree, head })
    }

    /// As what it will stand in a slot.
    pub fn candidate(&self, slot: SlotName) -> Candidate {
        Candidate::new(slot, &self.manifest)
    }

    /// Refuses what the next boot would refuse too.
    ///
    /// # Errors
    /// It is below the floor, or says nothing of the counter that keeps it.
    pub fn check_floor(&self, rules: &SlotRules, record: &SlotRecord) -> Result<(), Failure> {
        let manifest = self.manifest.manifest();
        let (floor, found) = (record.floor, manifest.image.rollback_index);
        if rules.floor == FloorKeeper::State && found < floor {
            let fact = VerificationError::Rollback { floor, found }.to_string();
            return Err(Failure::new(ExitStatus::NotVerified, fact)
                .next("a newer release was confirmed on this machine: update to that one, or to a later one"));
        }
        if rules.floor == FloorKeeper::Tpm && manifest.tpm.rollback.is_none() {
            let fact =
                "manifest: tpm.rollback: expected the TPM's counter, which keeps this machine's floor, found none";
            return Err(Failure::new(ExitStatus::NotVerified, fact).next("seal the release with [tpm] rollback"));
        }
        Ok(())
    }

    /// The release's unified kernel image, if trusted keys signed that it belongs to this manifest.
    ///
    /// # Errors
    /// The release has none, or another one than its statement says.
    pub fn kernel_image(&self, source: &Source) -> Result<Vec<u8>, Failure> {
        let refuse = |status, error: &dyn std::fmt::Display| {
            Failure::new(status, error.to_string())
                .about(source.path())
                .next("nothing was written: fetch the release again")
        };
        let statement = Envelope::parse(&source.statement()?, PayloadType::Release)
            .map_err(|error| refuse(ExitStatus::BadInput, &error))?;
        let statement = self.keys.verify(&statement).map_err(|error| refuse(ExitStatus::NotVerified, &error))?;
        let statement = Release::from_payload(&statement).map_err(|error| refuse(ExitStatus::BadInput, &error))?;
        let differs = |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            refuse(
                ExitStatus::NotVerified,
                &format_args!("release statement: {what}: expected {expected}, found {found}"),
            )
        };
        if statement.manifest_digest != self.manifest.digest() {
            return Err(differs("manifest_digest", &self.manifest.digest(), &statement.manifest_digest));
        }
        let image = source.kernel_image()?;
        let listed = statement.artifacts.iter().find(|artifact| artifact.name == sealed::UKI);
        let listed = listed.ok_or_else(|| differs("artifacts", &sealed::UKI, &"none"))?;
        let found = Sha256Digest::of(&image);
        if found == listed.sha256 { Ok(image) } else { Err(differs(sealed::UKI, &listed.sha256, &found)) }
    }

    /// Refuses what is not newer than the running release: the next boot would not take it.
    ///
    /// # Errors
    /// It is older, or the same.
    pub fn check_newer(&self, rules: &SlotRules, running: &Candidate) -> Result<(), Failure> {
        let new = self.candidate(running.slot.other());
        if new.is_newer_than(running) {
            return Self::check_loader_agrees(rules, &new, running);
        }
        let name = |one: &Candidate| format!("{} (rollback index {})", one.version, one.rollback_index);
        let found = match (new.manifest == running.manifest, running.is_newer_than(&new)) {
            (true, _) => "that one itself".to_owned(),
            (_, true) => format!("the older {}", name(&new)),
            _ => format!("another one of the same version and index, manifest {}", new.manifest),
        };
        let fact = format!("release: expected a newer one than {}, which runs, found {found}", name(running));
        Err(Failure::new(ExitStatus::NotVerified, fact)
            .next("to go back, seal the older system again under a higher version"))
    }

    /// A boot loader knows of no rollback index.
    fn check_loader_agrees(rules: &SlotRules, new: &Candidate, running: &Candidate) -> Result<(), Failure> {
        let (found, runs) = (new.version.as_str(), running.version.as_str());
        if rules.chooser == Chooser::VerifyInit || compare_versions(found, runs).is_gt() {
            return Ok(());
        }
        let fact = format!("release: version: expected a higher one than {runs}, which runs, found {found}");
        Err(Failure::new(ExitStatus::NotVerified, fact)
            .next("the boot loader chooses here, by version alone: seal the release under a higher version"))
    }
}

/// The keys that a release's history leads to.
fn follow(source: &Source, history: Option<&[u8]>, from: &KeyRing) -> Result<KeyRing, Failure> {
    let Some(history) = history else { return Ok(from.clone()) };
    let refuse = |status, error: String| {
        Failure::new(status, error)
            .about(source.path())
            .next("nothing was written: fetch the release again from who made it")
    };
    let history = KeyHistory::parse(history).map_err(|error| refuse(ExitStatus::BadInput, error.to_string()))?;
    from.clone().follow(&history).map_err(|error| refuse(ExitStatus::NotVerified, error.to_string()))
}

/// Refuses a release that could not be booted any more if the record of tries were lost: the trust policy, and what lies in
/// the slot itself, must suffice.
fn lead_there(source: &Source, history: Option<&[u8]>, trust: &TrustPolicy, keys: &KeyRing) -> Result<(), Failure> {
    let alone = follow(source, history, &KeyRing::of(trust))?;
    if alone.keys() == keys.keys() {
        return Ok(());
    }
    let (expected, found) = (keys.sequence(), alone.sequence());
    let fact = format!("key history: expected all moves up to {expected}, found those up to {found}");
    Err(Failure::new(ExitStatus::NotVerified, fact).about(source.path()).next(
        "nothing was written: seal the release with --previous, so that it carries the key history of the one before",
    ))
}

fn verify_manifest(
    envelope: &[u8],
    trust: &TrustPolicy,
    keys: &KeyRing,
    machine: Option<Architecture>,
) -> Result<VerifiedManifest, VerificationError> {
    let verify = |machine| VerifiedManifest::verify(envelope, trust, keys, machine);
    match machine {
        Some(machine) => verify(machine),
        None => verify(Architecture::X86_64).or_else(|error| match error {
            VerificationError::Identity { field: "architecture", .. } => verify(Architecture::Arm64),
            error => Err(error),
        }),
    }
}

fn refused(source: &Source, error: &VerificationError) -> Failure {
    let status = match error {
        VerificationError::Envelope(_) | VerificationError::Manifest(_) => ExitStatus::BadInput,
        _ => ExitStatus::NotVerified,
    };
    Failure::new(status, error.to_string())
        .about(source.path())
        .next("nothing was written: this machine boots only what its trust policy names, signed by the keys in it")
}

/// The tree behind the source's own superblock, of which nothing is read; and what goes in front of it in a slot.
fn tree(source: &Source, manifest: &Manifest, layout: &SlotLayout) -> Result<(Tree, Vec<u8>), Failure> {
    let verity = &manifest.verity;
    let impossible = |error: iofs_policy::verity::ParameterError| {
        Failure::new(ExitStatus::BadInput, error.to_string()).about(source.path())
    };
    let geometry = Geometry::new(&verity.parameters).map_err(impossible)?;
    let area = HashArea { offset: 0, superblock: verity.superblock_uuid.is_some() };
    let in_file = area.tree_range(&verity.parameters, &geometry).map_err(impossible)?;
    let part = source.tree();
    part.read(&mut [], in_file.end)?;
    let mut bytes = vec![0; (in_file.end - in_file.start) as usize];
    part.read(&mut bytes, in_file.start)?;
    let tree = Tree::verify(&verity.parameters, &verity.root_hash, bytes).map_err(|error| {
        let fact = format!("{}: {error}", part.name());
        Failure::new(ExitStatus::NotVerified, fact).next("nothing was written: fetch the release again")
    })?;
    let mut head = vec![0; (layout.tree_offset - layout.hash_offset) as usize];
    if let Some(uuid) = verity.superblock_uuid {
        let superblock = Superblock { parameters: verity.parameters.clone(), uuid }.encode();
        head[..superblock.len()].copy_from_slice(&superblock);
    }
    Ok((tree, head))
}
