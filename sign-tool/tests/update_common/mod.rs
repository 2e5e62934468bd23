//! What the tests of updates share: a machine with two slots, which are files here, and releases to write into them.
#![allow(dead_code)]

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Output,
};

use iofs_policy::{
    boot_record::{BootRecord, BootedSlot},
    keys::KeyRing,
    manifest::{Architecture, VerifiedManifest},
    slots::{Candidate, SlotName, SlotRecord},
    trust::TrustPolicy,
    verity::HashArea,
};
use iofs_sign::{
    report::Progress,
    sealed::SealedDirectory,
    slots::{held, keys::MachineKeys, record::RecordFile, storage::SlotDevice},
    verity::{Engine, VerifyJob, verify},
};
use serde_json::Value;

use crate::seal_common::{Bench, command, iofs_sign, passes};

/// The sealed tries.
pub(crate) const TRIES: u8 = 3;
const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// A machine, its keys, and its releases.
pub(crate) struct Machine {
    pub(crate) bench: Bench,
}

impl Machine {
    /// With slots of that many bytes, full of what was there before.
    pub(crate) fn new(slot_size: usize) -> Self {
        let machine = Self { bench: Bench::new() };
        for slot in SlotName::ALL {
            let file = File::create(machine.slot(slot)).unwrap();
            file.set_len(slot_size as u64).unwrap();
            file.write_all_at(b"whatever", 5000).unwrap();
        }
        fs::write(machine.state(), vec![0; 1 << 20]).unwrap();
        machine
    }

    pub(crate) fn slot(&self, slot: SlotName) -> PathBuf {
        self.bench.path(&format!("slot-{slot}"))
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.bench.path("state")
    }

    /// Seals the tree as it is into `out`, with a salt that is the same for all.
    pub(crate) fn seal(&self, out: &str, version: &str, index: u64, more: &[&str]) -> PathBuf {
        self.seal_as("car", out, version, index, more)
    }

    /// The same, for another product.
    pub(crate) fn seal_as(&self, id: &str, out: &str, version: &str, index: u64, more: &[&str]) -> PathBuf {
        let config = format!(
            "[image]\nid = \"{id}\"\nversion = \"{version}\"\nrollback_index = {index}\n[verity]\nsalt = \"aa\"\n\
             [slots]\n[trust]\nminimum_rollback_index = 0\n"
        );
        fs::write(self.bench.path("iofs.toml"), config).unwrap();
        let mut arguments = self.bench.image_arguments(out);
        arguments.extend(["--config", &self.bench.text("iofs.toml")].map(str::to_owned));
        if !more.contains(&"--key") {
            arguments.extend(["--key", &self.bench.text("key.pem")].map(str::to_owned));
        }
        passes(&iofs_sign(arguments.iter().map(String::as_str).chain(more.iter().copied())));
        self.bench.path(out)
    }

    /// Writes a release into a slot from outside.
    pub(crate) fn install(&self, slot: SlotName, sealed: &Path) -> Value {
        let output = command()
            .args(["--json", "update", "--slot", &slot.to_string(), "--device"])
            .args([self.slot(slot).as_os_str(), "--state".as_ref(), self.state().as_os_str(), "--trust".as_ref()])
            .args([sealed.join("trust.json").as_os_str(), sealed.as_os_str()])
            .output();
        serde_json::from_str(&passes(&output.unwrap())).unwrap()
    }

    /// What verify-init leaves behind after a boot of what is in that slot.
    pub(crate) fn boot(&self, slot: SlotName, sealed: &Path) {
        let trust = fs::read(sealed.join("trust.json")).unwrap();
        fs::write(self.bench.path("trust.json"), &trust).unwrap();
        let held = self.held(slot).expect("the slot can be booted");
        let end = held::end(&SlotDevice::open_to_read(&self.slot(slot)).unwrap()).unwrap();
        let keys = end.keys(&self.keys()).unwrap();
        let _ = fs::remove_file(self.bench.path("keys.history"));
        if let Some(history) = end.history {
            fs::write(self.bench.path("keys.history"), history.to_bytes()).unwrap();
        }
        let image = &held.manifest().image;
        let record = BootRecord {
            record_version: 1,
            verify_init: String::new(),
            image_id: image.id.clone(),
            image_version: image.version.to_string(),
            rollback_index: image.rollback_index,
            role: image.role,
            architecture: image.architecture,
            debug: false,
            manifest_digest: held.digest(),
            signers: held.signers().to_vec(),
            root_hash: held.manifest().verity.root_hash.clone(),
            data_device: String::new(),
            hash_device: String::new(),
            verity_table: String::new(),
            measured_banks: Vec::new(),
            volumes: Vec::new(),
            rollback: None,
            slot: Some(BootedSlot {
                name: slot,
                state_device: self.bench.text("state"),
                devices: SlotName::ALL.map(|slot| Some(self.bench.text(&format!("slot-{slot}")))),
                key_sequence: keys.sequence(),
            }),
            kernel_release: String::new(),
            warnings: Vec::new(),
            stages: Vec::new(),
        };
        fs::write(self.bench.path("boot.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    }

    /// A machine that runs release `v1` from slot a, confirmed.
    pub(crate) fn running_v1(slot_size: usize) -> Self {
        let machine = Self::new(slot_size);
        let v1 = machine.seal("v1", "1", 1, &[]);
        machine.install(SlotName::A, &v1);
        machine.boot(SlotName::A, &v1);
        machine.confirm(SlotName::A);
        machine
    }

    /// As a good boot of that slot leaves the record.
    pub(crate) fn confirm(&self, slot: SlotName) {
        let (rules, held) = (self.trust().slots.unwrap(), self.held(slot).unwrap());
        self.change_record(|record| {
            record.begin(&Candidate::new(slot, &held), TRIES);
            assert!(record.confirm(slot, held.digest(), &rules));
        });
    }

    pub(crate) fn change_record(&self, change: impl FnOnce(&mut SlotRecord)) {
        let mut file = RecordFile::open(&self.state(), true).unwrap();
        change(&mut file.record);
        file.save().unwrap();
    }

    /// Updates from what runs.
    pub(crate) fn update(&self, source: &Path, more: &[&str]) -> Output {
        let mut command = command();
        command.args(["--json", "update", "--boot-record", &self.bench.text("boot.json")]);
        command.args(["--trust", &self.bench.text("trust.json")]).args(more).arg(source).output().unwrap()
    }

    /// Updates, which must succeed.
    pub(crate) fn updated(&self, source: &Path) -> Value {
        serde_json::from_str(&passes(&self.update(source, &[]))).unwrap()
    }

    pub(crate) fn trust(&self) -> TrustPolicy {
        TrustPolicy::parse(&fs::read(self.bench.path("trust.json")).unwrap()).unwrap()
    }

    pub(crate) fn record(&self) -> SlotRecord {
        let file = RecordFile::open(&self.state(), false).unwrap();
        assert_eq!(file.damaged, None, "the record is always readable");
        file.record
    }

    /// The keys that it has confirmed.
    pub(crate) fn keys(&self) -> KeyRing {
        let keys = MachineKeys::of(&self.trust(), &RecordFile::open(&self.state(), false).unwrap());
        assert_eq!(keys.problem, None);
        keys.ring
    }

    /// The manifest in a slot, if it verifies.
    pub(crate) fn held(&self, slot: SlotName) -> Option<VerifiedManifest> {
        let device = SlotDevice::open_to_read(&self.slot(slot)).unwrap();
        held::manifest(&device, &self.trust(), &self.keys(), Architecture::CURRENT).ok()
    }

    /// Whether every block that a manifest promises is there.
    pub(crate) fn is_whole(&self, slot: SlotName, manifest: &VerifiedManifest) -> bool {
        let (verity, file) = (&manifest.manifest().verity, File::open(self.slot(slot)).unwrap());
        let job = VerifyJob {
            engine: Engine::best(),
            data: &file,
            hash: &file,
            area: HashArea { offset: verity.hash_offset, superblock: verity.superblock_uuid.is_some() },
            parameters: &verity.parameters,
            root_hash: &verity.root_hash,
            threads: THREADS,
            limit: NonZeroUsize::MIN,
        };
        verify(&job, &Progress::hidden()).is_ok()
    }

    /// What verify-init has to choose from, by the manifests alone.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |slot| self.held(slot).map(|held| Candidate::new(slot, &held));
        SlotName::ALL.into_iter().filter_map(candidate).collect()
    }

    /// The slots in the order in which the next boots would start them.
    pub(crate) fn order(&self) -> Vec<SlotName> {
        let order = self.record().order(&self.candidates(), TRIES);
        order.into_iter().map(|one| one.slot).collect()
    }
}

/// The image's bytes in a sealed directory.
pub(crate) fn image(sealed: &Path) -> Vec<u8> {
    fs::read(SealedDirectory::new(sealed).file("image.erofs")).unwrap()
}

/// Changes one byte of a file.
pub(crate) fn damage(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}
