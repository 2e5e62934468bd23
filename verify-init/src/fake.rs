//! A machine in memory, in which each call can fail.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    time::Duration,
};

use ed25519_dalek::{Signer, SigningKey};
use iofs_policy::{
    dsse::{Envelope, PayloadType},
    failure::FailureAction,
    keys::KeySequence,
    manifest::{
        Architecture, ImageIdentity, Manifest, Overlay, Place, Role, RollbackIndex, RootHashSignature, SealedVerity,
        TpmRules,
    },
    paths::{MANIFEST, MEASUREMENT_LOG, MODULE_INDEX, TRUST},
    trust::{TrustPolicy, TrustedKey, TrustedKeys},
    verity::{
        BlockSize, CorruptionAction, DeviceNumber, HashAlgorithm, HashFormat, RootHash, Superblock, VerityParameters,
    },
};
use iofs_tpm::transport::TransportError;
use nix::errno::Errno;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    fake_tpm::FakeTpm,
    gpt,
    system::{
        Access, Attached, KeyKind, KeySerial, Loaded, MappedTarget, Mapping, ModuleFile, Mount, Question, System,
    },
};

pub(crate) const RELEASE: &str = "6.1.0-test";
const DATA_BLOCKS: u64 = 100;
const INDEX: &str = "\
iofs-modules 1
release 6.1.0-test
module dm_mod dm-mod.ko
module dm_verity dm-verity.ko
always
before dm_mod
module erofs erofs.ko
always
module overlay overlay.ko
always
module virtio virtio.ko
module virtio_blk virtio_blk.ko
before virtio
options a=1
alias virtio:d00000002v*
module virtio_pci virtio_pci.ko
before virtio
alias pci:v00001AF4d*
";

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It became this program with these arguments.
    Init(String, Vec<String>),
    /// It stopped.
    Stopped(FailureAction),
}

/// The signature of the root hash that the kernel accepts.
pub(crate) const KNOWN_SIGNATURE: &[u8] = b"by a key in db";

/// What a module of that path brings when it is loaded: files, and an event.
pub(crate) type Effect = (&'static str, Vec<(String, Vec<u8>)>, Vec<u8>);

/// The machine. `calls` tells what was asked of it, in order.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) calls: Vec<String>,
    pub(crate) console: String,
    pub(crate) log: Vec<String>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Fails the call of this number, from 0, with this error.
    pub(crate) fail: Option<(usize, Errno)>,
    /// The power is gone after so many more bytes are written to devices.
    pub(crate) power: Option<usize>,
    /// Fails calls that begin with this text, each time.
    pub(crate) broken: Vec<(&'static str, Errno)>,
    pub(crate) events: VecDeque<Vec<u8>>,
    /// What appears in sysfs when a module is loaded.
    pub(crate) after_module: Vec<Effect>,
    pub(crate) modules: Vec<(String, String)>,
    /// What is mapped, by name.
    pub(crate) tables: BTreeMap<String, (Access, MappedTarget)>,
    /// Whether device-mapper can decrypt.
    pub(crate) crypt: bool,
    /// What will be answered on the console. None: it is closed.
    pub(crate) answers: VecDeque<Option<&'static str>>,
    /// What is in the keyring: serial, description, key.
    pub(crate) keys: Vec<(i32, String, Vec<u8>)>,
    /// All keys that ever were.
    pub(crate) keys_seen: Vec<Vec<u8>>,
    pub(crate) status: String,
    /// The status after a call of `broken` failed.
    pub(crate) status_once_broken: String,
    pub(crate) armed: Vec<FailureAction>,
    pub(crate) tpm: Option<FakeTpm>,
    clock: Duration,
}

impl Fake {
    /// A machine without anything.
    pub(crate) fn empty() -> Self {
        Self {
            calls: Vec::new(),
            console: String::new(),
            log: Vec::new(),
            files: BTreeMap::new(),
            fail: None,
            power: None,
            broken: Vec::new(),
            events: VecDeque::new(),
            after_module: Vec::new(),
            modules: Vec::new(),
            tables: BTreeMap::new(),
            crypt: false,
            answers: VecDeque::new(),
            keys: Vec::new(),
            keys_seen: Vec::new(),
            status: "V".to_owned(),
            status_once_broken: "V".to_owned(),
            armed: Vec::new(),
            tpm: None,
            clock: Duration::from_secs(1),
        }
    }

    /// A machine with a sealed image on a disk, whose driver is a module.
    pub(crate) fn sealed(manifest: &Manifest) -> Self {
        let mut fake = Self::empty();
        fake.seal(manifest);
        fake.put("/proc/cmdline", b"console=ttyS0 quiet -- one two\n");
        fake.put("/proc/sys/kernel/osrelease", format!("{RELEASE}\n").as_bytes());
        fake.put(MODULE_INDEX, INDEX.as_bytes());
        fake.put("/sys/bus/pci/devices/0000:00:02.0/uevent", b"DRIVER=x\nMODALIAS=pci:v00001AF4d00001001sv00001AF4\n");
        let mut disk = Self::empty();
        let (data, tree) = (DATA_BLOCKS * 4096, 3 * 4096);
        let partitions = [("vda1", "root", None, data), ("vda2", "root-verity", None, tree)];
        disk.add_disk("vda", 1 << 20, &partitions);
        disk.add_gpt("vda", &[partition_id(manifest, 0), partition_id(manifest, 1)]);
        let superblock = superblock(manifest).map_or(vec![0; 512], |superblock| superblock.encode().to_vec());
        disk.put("/dev/vda2", &[superblock.as_slice(), &[0; 4096]].concat());
        let event = |text: &str| text.replace(' ', "\0").into_bytes();
        let virtio = event("add@/devices/pci0000:00/virtio0 ACTION=add MODALIAS=virtio:d00000002v00001AF4 ");
        let modalias =
            ("/sys/bus/virtio/devices/virtio0/uevent".to_owned(), b"MODALIAS=virtio:d00000002v00001AF4\n".to_vec());
        fake.after_module.push(("/lib/modules/6.1.0-test/virtio_pci.ko", vec![modalias], virtio));
        let block = event("add@/devices/pci0000:00/virtio0/block/vda ACTION=add SUBSYSTEM=block ");
        fake.after_module.push(("/lib/modules/6.1.0-test/virtio_blk.ko", disk.files.into_iter().collect(), block));
        fake
    }

    /// Signs a manifest, and trusts the key.
    pub(crate) fn seal(&mut self, manifest: &Manifest) {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = TrustedKey::from_bytes(key.verifying_key().as_bytes()).unwrap();
        let mut envelope = Envelope::unsigned(PayloadType::Manifest, manifest.to_json());
        envelope.add(public.id(), &key.sign(&envelope.signed_bytes()).to_bytes()).unwrap();
        let trust = TrustPolicy {
            keys: TrustedKeys::new(vec![public], 1).unwrap(),
            image_id: "test".parse().unwrap(),
            role: manifest.image.role,
            minimum_rollback_index: RollbackIndex(5),
            on_failure: FailureAction::Reboot,
            slots: None,
            key_sequence: KeySequence::default(),
            revoked: vec![],
        };
        self.put(TRUST, &trust.to_json());
        self.put(MANIFEST, &envelope.to_json());
    }

    pub(crate) fn put(&mut self, path: &str, bytes: &[u8]) {
        self.files.insert(path.to_owned(), bytes.to_vec());
    }

    /// A disk of that many bytes with partitions: name, label, unique id if the kernel tells it, bytes.
    pub(crate) fn add_disk(&mut self, disk: &str, bytes: u64, partitions: &[(&str, &str, Option<Uuid>, u64)]) {
        let folder = format!("/sys/block/{disk}");
        self.put(&format!("{folder}/uevent"), format!("MAJOR=253\nMINOR=0\nDEVNAME={disk}\nDEVTYPE=disk\n").as_bytes());
        self.put(&format!("{folder}/size"), format!("{}\n", bytes / 512).as_bytes());
        self.put(&format!("{folder}/queue/logical_block_size"), b"512\n");
        for (number, (name, label, uuid, bytes)) in (1..).zip(partitions) {
            let uuid = uuid.map(|uuid| format!("PARTUUID={uuid}\n")).unwrap_or_default();
            let uevent = format!(
                "MAJOR=253\nMINOR={number}\nDEVNAME={name}\nDEVTYPE=partition\nPARTN={number}\nPARTNAME={label}\n{uuid}"
            );
            self.put(&format!("{folder}/{name}/uevent"), uevent.as_bytes());
            self.put(&format!("{folder}/{name}/size"), format!("{}\n", bytes / 512).as_bytes());
        }
    }

    /// A disk's contents: a partition table with these unique ids.
    pub(crate) fn add_gpt(&mut self, disk: &str, ids: &[Uuid]) {
        let (header, entries) = gpt::tests::table_with(ids);
        self.put(&format!("/dev/{disk}"), &[vec![0; 512], header, entries].concat());
    }

    /// A device's contents.
    pub(crate) fn device(&mut self, path: &str) -> &mut Vec<u8> {
        self.files.get_mut(path).unwrap()
    }

    /// How many calls begin with this.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls.iter().filter(|one| one.starts_with(call)).count()
    }

    fn load_module(&mut self, module: &ModuleFile) -> io::Result<()> {
        let ModuleFile { path, parameters } = module;
        self.call(format!("load_module {path} {parameters}"))?;
        self.modules.push((path.clone(), parameters.clone()));
        let effects = self.after_module.iter().filter(|(module, ..)| module == path).cloned();
        for (_, files, event) in effects.collect::<Vec<_>>() {
            self.files.extend(files);
            self.events.push_back(event);
        }
        Ok(())
    }

    fn call(&mut self, call: String) -> io::Result<()> {
        let number = self.calls.len();
        let broken = self.broken.iter().find(|(prefix, _)| call.starts_with(prefix)).map(|(_, error)| *error);
        self.calls.push(call);
        if broken.is_some() {
            self.status.clone_from(&self.status_once_broken);
        }
        let failing = self.fail.filter(|(at, _)| *at == number).map(|(_, error)| error).or(broken);
        failing.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The partitions' unique ids: both halves of the root hash.
pub(crate) fn partition_id(manifest: &Manifest, half: usize) -> Uuid {
    Uuid::from_slice(&manifest.verity.root_hash.as_bytes()[half * 16..half * 16 + 16]).unwrap()
}

fn superblock(manifest: &Manifest) -> Option<Superblock> {
    let uuid = manifest.verity.superblock_uuid?;
    Some(Superblock { parameters: manifest.verity.parameters.clone(), uuid })
}

/// What the sealed machine boots.
pub(crate) fn manifest() -> Manifest {
    let root_hash = RootHash::new(HashAlgorithm::Sha256, (1..=32).collect()).unwrap();
    let half = |at: usize| Place::PartUuid(Uuid::from_slice(&root_hash.as_bytes()[at..at + 16]).unwrap());
    Manifest {
        image: ImageIdentity {
            id: "test".parse().unwrap(),
            version: "1.2".parse().unwrap(),
            rollback_index: RollbackIndex(5),
            role: Role::Root,
            architecture: Architecture::CURRENT,
            debug: false,
        },
        data: half(0),
        tree: half(16),
        verity: SealedVerity {
            parameters: VerityParameters {
                format: HashFormat::Normal,
                algorithm: HashAlgorithm::Sha256,
                data_block_size: BlockSize::DEFAULT,
                hash_block_size: BlockSize::DEFAULT,
                data_blocks: DATA_BLOCKS,
                salt: "aabb".parse().unwrap(),
            },
            root_hash,
            hash_offset: 0,
            superblock_uuid: Some(Uuid::from_u128(9)),
            on_corruption: CorruptionAction::Panic,
            root_hash_signature: RootHashSignature::Off,
        },
        mount_options: vec!["nodev".parse().unwrap(), "cache_strategy=readahead".parse().unwrap()],
        overlay: Some(Overlay { tmpfs_size: "50%".parse().unwrap() }),
        volumes: vec![],
        init: "/sbin/init".parse().unwrap(),
        kernel_release: Some(RELEASE.to_owned()),
        device_timeout: 30,
        on_failure: FailureAction::Halt,
        tpm: TpmRules::default(),
        command_lines: vec![],
        allowed_parameters: vec![],
        keys: None,
    }
}

impl System for Fake {
    type Gone = End;

    fn now(&mut self) -> Duration {
        self.clock += Duration::from_millis(1);
        self.clock
    }

    fn arm(&mut self, action: FailureAction) {
        self.armed.push(action);
    }

    fn open_console(&mut self) -> io::Result<()> {
        self.call("open_console".to_owned())
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        self.call("print".to_owned())?;
        self.console.push_str(text);
        Ok(())
    }

    fn log(&mut self, record: &str) -> io::Result<()> {
        self.call("log".to_owned())?;
        self.log.push(record.to_owned());
        Ok(())
    }

    fn read(&mut self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        self.call(format!("read {path}"))?;
        let bytes = self.files.get(path).ok_or(Errno::ENOENT)?;
        if bytes.len() > limit { Err(Errno::EFBIG.into()) } else { Ok(bytes.clone()) }
    }

    fn read_at(&mut self, path: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.call(format!("read_at {path} {offset}"))?;
        let bytes = self.files.get(path).ok_or(Errno::ENOENT)?;
        let part = bytes.get(offset as usize..offset as usize + length);
        Ok(part.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }

    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.call(format!("write_at {path} {offset}"))?;
        let device = self.files.get_mut(path).ok_or(Errno::ENOENT)?;
        let length = self.power.map_or(bytes.len(), |left| left.min(bytes.len()));
        device[offset as usize..][..length].copy_from_slice(&bytes[..length]);
        self.power = self.power.map(|left| left - length);
        if length == bytes.len() { Ok(()) } else { Err(Errno::EIO.into()) }
    }

    fn list(&mut self, folder: &str) -> io::Result<Vec<String>> {
        self.call(format!("list {folder}"))?;
        let below = format!("{folder}/");
        let mut names: Vec<String> = Vec::new();
        for path in self.files.keys().filter_map(|path| path.strip_prefix(&below)) {
            let name = path.split('/').next().unwrap().to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.call(format!("write {path}"))?;
        self.put(path, bytes);
        Ok(())
    }

    fn create_folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.call(format!("create_folder {path} {mode:o}"))
    }

    fn link(&mut self, target: &str, path: &str) -> io::Result<()> {
        self.call(format!("link {path} -> {target}"))
    }

    fn mount(&mut self, mount: &Mount<'_>) -> io::Result<()> {
        let Mount { source, target, kind, flags, options } = mount;
        self.call(format!("mount {kind} {source} {target} {:#x} {options}", flags.bits()))
    }

    fn mount_in_root(&mut self, root: &str, mount: &Mount<'_>) -> io::Result<()> {
        let Mount { source, target, kind, flags, options } = mount;
        self.call(format!("mount_in_root {root} {kind} {source} {target} {:#x} {options}", flags.bits()))
    }

    fn unmount(&mut self, target: &str) -> io::Result<()> {
        self.call(format!("unmount {target}"))
    }

    fn attach_file(&mut self, folder: &str, path: &str) -> io::Result<Attached> {
        self.call(format!("attach_file {folder} {path}"))?;
        let number = DeviceNumber { major: 7, minor: 0 };
        let image = self.files.get(path).ok_or(Errno::ENOENT)?.clone();
        self.put("/dev/loop0", &image);
        Ok(Attached { path: "/dev/loop0".to_owned(), number, bytes: image.len() as u64, direct: true })
    }

    fn bind_contents(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.call(format!("bind_contents {from} {to}"))
    }

    fn move_mount(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.call(format!("move_mount {from} {to}"))
    }

    fn load_modules(&mut self, modules: &[ModuleFile]) -> Vec<Loaded> {
        let loaded = modules.iter().map(|module| Loaded { result: self.load_module(module), took: Duration::ZERO });
        loaded.collect()
    }

    fn watch_devices(&mut self) -> io::Result<()> {
        self.call("watch_devices".to_owned())
    }

    fn next_event(&mut self, wait: Duration) -> io::Result<Option<Vec<u8>>> {
        // Some events are lost with an error, as on a real socket.
        if let Err(error) = self.call("next_event".to_owned()) {
            self.events.clear();
            return Err(error);
        }
        if self.events.is_empty() {
            self.clock += wait;
        }
        Ok(self.events.pop_front())
    }

    fn mapper_targets(&mut self) -> io::Result<Vec<String>> {
        self.call("mapper_targets".to_owned())?;
        let verity = self.modules.iter().any(|(path, _)| path.ends_with("dm-verity.ko"));
        let targets = [("linear", true), ("verity", verity), ("crypt", self.crypt)];
        Ok(targets.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect())
    }

    fn create_mapping(&mut self, mapping: &Mapping<'_>) -> io::Result<DeviceNumber> {
        self.call(format!("create_mapping {} {}", mapping.name, mapping.uuid))?;
        if mapping.target == "crypt" {
            // As the kernel does, which looks the key up by its description.
            let described = |(_, description, key): &(i32, String, Vec<u8>)| {
                mapping.parameters.contains(&format!(":{}:logon:{description} ", key.len()))
            };
            self.keys.iter().any(described).then_some(()).ok_or(Errno::ENOKEY)?;
        }
        if let Some((_, description)) = mapping.parameters.split_once("root_hash_sig_key_desc ") {
            let signature = self.keys.iter().find(|(_, name, _)| description.starts_with(name));
            // As the kernel does with a signature by a key that it does not have.
            signature.filter(|(.., bytes)| bytes == KNOWN_SIGNATURE).ok_or(Errno::ENOKEY)?;
        }
        let minor = 3 + u32::try_from(self.tables.len()).unwrap();
        let target = MappedTarget {
            start: 0,
            sectors: mapping.sectors,
            target: mapping.target.to_owned(),
            text: mapping.parameters.to_owned(),
        };
        self.tables.insert(mapping.name.to_owned(), (mapping.access, target));
        Ok(DeviceNumber { major: 252, minor })
    }

    fn remove_mapping(&mut self, name: &str) -> io::Result<()> {
        self.call(format!("remove_mapping {name}"))?;
        self.tables.remove(name).map(drop).ok_or(Errno::ENXIO.into())
    }

    fn remove_mapping_later(&mut self, name: &str) -> io::Result<()> {
        self.call(format!("remove_mapping_later {name}"))
    }

    fn mapping_table(&mut self, name: &str, access: Access) -> io::Result<Vec<MappedTarget>> {
        self.call(format!("mapping_table {name}"))?;
        let (found, target) = self.tables.get(name).ok_or(Errno::ENXIO)?;
        if *found == access { Ok(vec![target.clone()]) } else { Err(Errno::EACCES.into()) }
    }

    fn mapping_status(&mut self, name: &str, access: Access) -> io::Result<Vec<MappedTarget>> {
        self.call(format!("mapping_status {name}"))?;
        let text = self.status.clone();
        let (found, target) = self.tables.get(name).ok_or(Errno::ENXIO)?;
        let status = MappedTarget { text, ..target.clone() };
        if *found == access { Ok(vec![status]) } else { Err(Errno::EACCES.into()) }
    }

    fn ask_secret(&mut self, question: &Question<'_>) -> io::Result<Zeroizing<Vec<u8>>> {
        self.call(format!("ask_secret {}", question.prompt))?;
        let answer = self.answers.pop_front().flatten().ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Zeroizing::new(answer.as_bytes().to_vec()))
    }

    fn add_key(&mut self, kind: KeyKind, description: &str, key: &[u8]) -> io::Result<KeySerial> {
        let kind = if kind == KeyKind::User { "user " } else { "" };
        self.call(format!("add_key {kind}{description}"))?;
        let serial = 100 + i32::try_from(self.keys_seen.len()).unwrap();
        self.keys.push((serial, description.to_owned(), key.to_vec()));
        self.keys_seen.push(key.to_vec());
        Ok(KeySerial(serial))
    }

    fn remove_key(&mut self, KeySerial(key): KeySerial) -> io::Result<()> {
        self.call("remove_key".to_owned())?;
        self.keys.retain(|(serial, ..)| *serial != key);
        Ok(())
    }

    fn open_tpm(&mut self, wait: Duration) -> Result<(), TransportError> {
        let absent = |source| TransportError::Open { path: "/dev/tpmrm0".into(), waited: wait, source };
        self.call("open_tpm".to_owned()).map_err(absent)?;
        self.tpm.as_ref().map(|_| ()).ok_or_else(|| absent(Errno::ENOENT.into()))
    }

    fn tpm(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.call(format!("tpm {:x}", command[9])).map_err(TransportError::Read)?;
        self.tpm.as_mut().ok_or(TransportError::OutOfStep).map(|tpm| tpm.answer(command))
    }

    fn begin_log_record(&mut self) -> io::Result<()> {
        self.call("begin_log_record".to_owned())
    }

    fn finish_log_record(&mut self, record: &[u8]) -> io::Result<()> {
        self.call("finish_log_record".to_owned())?;
        self.files.entry(MEASUREMENT_LOG.to_owned()).or_default().extend(record);
        Ok(())
    }

    fn mode_in_root(&mut self, root: &str, path: &str) -> io::Result<u32> {
        self.call(format!("mode_in_root {root} {path}"))?;
        Ok(if matches!(path, "/sbin/init" | "/init") { 0o100_755 } else { 0o100_644 })
    }

    fn delete_initramfs(&mut self) -> io::Result<()> {
        self.call("delete_initramfs".to_owned())
    }

    fn enter(&mut self, root: &str) -> io::Result<()> {
        self.call(format!("enter {root}"))
    }

    fn exec(&mut self, path: &str, arguments: &[String]) -> io::Result<End> {
        self.call(format!("exec {path}"))?;
        Ok(End::Init(path.to_owned(), arguments.to_vec()))
    }

    fn stop(&mut self, action: FailureAction) -> End {
        End::Stopped(action)
    }
}
