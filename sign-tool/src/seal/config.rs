//! `iofs.toml`: what is sealed into an image. Every field has a default, and unknown ones are errors.

use std::{
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
};

use iofs_policy::{
    digest::Sha256Digest,
    failure::FailureAction,
    manifest::{
        Architecture, ImageId, ImageVersion, MountOption, OverlaySize, Place, PlaceError, Role, RollbackIndex,
        RollbackRule, RootHashSignature, RootPath, SrkPublic, TpmRules, TpmUse, UnlockRules, Volume, VolumeName,
        VolumeUse,
    },
    slots::{Chooser, FloorKeeper, SlotRules},
    verity::{BlockSize, CorruptionAction, HashAlgorithm, Salt},
};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    erofs::ImageCompression,
    initramfs::{
        Format,
        profile::{self, Feature, Profile, Request},
    },
    report::{ExitStatus, Failure},
};

pub mod tree;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which image this is.
    pub image: ImageSection,
    /// What else the root tree is made of.
    pub tree: tree::TreeSection,
    /// The erofs image.
    pub filesystem: FilesystemSection,
    /// The hash tree.
    pub verity: VeritySection,
    /// Where data and tree will lie.
    pub place: PlaceSection,
    /// The writable layer.
    pub overlay: OverlaySection,
    /// What happens at boot.
    pub boot: BootSection,
    /// How the boot uses the TPM.
    pub tpm: TpmSection,
    /// The encrypted volumes, in the order in which the boot opens them.
    #[serde(rename = "volume")]
    pub volumes: Vec<VolumeSection>,
    /// Who may sign what boots.
    pub trust: TrustSection,
    /// Kernel modules in the mini-initramfs.
    pub modules: ModulesSection,
    /// What else a unified kernel image holds.
    pub uki: UkiSection,
    /// The slots of a device that updates itself, if it has such.
    pub slots: Option<SlotsSection>,
}

/// `[image]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSection {
    /// The product's id. Default: `IMAGE_ID` or `ID` of the tree's os-release.
    pub id: Option<ImageId>,
    /// The version. Default: `IMAGE_VERSION` or `VERSION_ID` of the tree's os-release, else `1`.
    pub version: Option<ImageVersion>,
    /// The rollback index. Raise it with every release that closes a hole.
    pub rollback_index: RollbackIndex,
    /// What the image is for.
    pub role: Role,
    /// What it runs on. Default: what the kernel is for; without a kernel, what this program runs on.
    pub architecture: Option<Architecture>,
    /// Whether the kernel command line may ask for more.
    pub debug: bool,
}

impl Default for ImageSection {
    fn default() -> Self {
        Self {
            id: None,
            version: None,
            rollback_index: RollbackIndex(0),
            role: Role::Root,
            architecture: None,
            debug: false,
        }
    }
}

/// `[filesystem]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilesystemSection {
    /// `none`, `lz4`, `lz4hc[,LEVEL]` or `zstd[,LEVEL]`. LZ4 is what every kernel with erofs reads.
    #[serde(deserialize_with = "parsed")]
    pub compression: Option<ImageCompression>,
    /// Physical cluster size in bytes.
    pub cluster_size: Option<u32>,
    /// Mount options besides `ro`.
    pub mount_options: Vec<MountOption>,
}

/// `[verity]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VeritySection {
    /// The hash function.
    pub algorithm: HashAlgorithm,
    /// Size of a data block in bytes.
    pub data_block_size: BlockSize,
    /// Size of a hash block in bytes.
    pub hash_block_size: BlockSize,
    /// The salt. Default: derived from the content.
    pub salt: Option<Salt>,
    /// Whether the tree begins with a superblock, for other tools.
    pub superblock: bool,
    /// Whether the kernel checks the signed root hash itself.
    pub root_hash_signature: RootHashSignature,
}

impl Default for VeritySection {
    fn default() -> Self {
        Self {
            algorithm: HashAlgorithm::Sha256,
            data_block_size: BlockSize::DEFAULT,
            hash_block_size: BlockSize::DEFAULT,
            salt: None,
            superblock: true,
            root_hash_signature: RootHashSignature::Off,
        }
    }
}

/// `[place]`: `PARTUUID=…`, `PARTLABEL=…`, `/dev/NAME`, `volume:NAME`, `memory`, or `TYPE:UUID=…:/PATH` for a file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlaceSection {
    /// The data. Default: the partition whose PARTUUID is the first half of the root hash.
    pub data: Option<PlaceText>,
    /// The tree. Default: the partition whose PARTUUID is the last half of the root hash.
    pub tree: Option<PlaceText>,
}

/// A [`Place`] as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PlaceText(pub Place);

impl TryFrom<String> for PlaceText {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse().map(Self)
    }
}

/// `[slots]`: the image lies in whichever of two slots, and verify-init chooses.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlotsSection {
    /// Where slot `a` is, and where slot `b` is.
    pub places: [PlaceText; 2],
    /// Where the record of tries is.
    pub state: PlaceText,
    /// How often a release is started that nobody has confirmed.
    pub tries: u8,
    /// Who chooses.
    pub chooser: Chooser,
    /// Where the rollback floor is kept.
    pub floor: FloorKeeper,
}

impl Default for SlotsSection {
    fn default() -> Self {
        let label = |name: &str| PlaceText(Place::PartLabel(name.parse().expect("the default is valid")));
        Self {
            places: [label("system_a"), label("system_b")],
            state: label("iofs_state"),
            tries: 3,
            chooser: Chooser::default(),
            floor: FloorKeeper::default(),
        }
    }
}

impl SlotsSection {
    /// The rules to seal.
    pub fn rules(&self) -> SlotRules {
        SlotRules {
            places: self.places.clone().map(|text| text.0),
            state: self.state.0.clone(),
            tries: self.tries,
            chooser: self.chooser,
            floor: self.floor,
        }
    }
}

/// `[overlay]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverlaySection {
    /// Whether the root gets a writable layer that is gone at the next boot.
    pub enabled: bool,
    /// The size of its tmpfs.
    pub size: OverlaySize,
}

impl Default for OverlaySection {
    fn default() -> Self {
        Self { enabled: true, size: "50%".parse().expect("the default is valid") }
    }
}

/// `[boot]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootSection {
    /// The init in the sealed tree. Default: `/sbin/init`, or `/init` for a second stage.
    pub init: Option<RootPath>,
    /// How long to wait for the devices, in seconds.
    pub device_timeout: u32,
    /// What the kernel does about a corrupt block.
    pub on_corruption: CorruptionAction,
    /// What `verify-init` does after a failure.
    pub on_failure: FailureAction,
    /// Kernel command line parameters that are allowed although they are refused by default.
    pub allowed_parameters: Vec<String>,
    /// The whole command lines that verifiers accept. The boot itself measures whichever it finds.
    pub command_lines: Vec<String>,
}

impl Default for BootSection {
    fn default() -> Self {
        Self {
            init: None,
            device_timeout: 30,
            on_corruption: CorruptionAction::Panic,
            on_failure: FailureAction::PowerOff,
            allowed_parameters: Vec::new(),
            command_lines: Vec::new(),
        }
    }
}

/// `[tpm]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TpmSection {
    /// Whether the boot needs a TPM.
    #[serde(rename = "use")]
    pub usage: TpmUse,
    /// The storage root key of the only TPM that the image is for: a file, relative to `iofs.toml`.
    pub srk: Option<PathBuf>,
    /// What the rollback counter of that TPM stands for, as `iofs-sign enroll` prints it.
    pub rollback: Option<RollbackRule>,
}

impl TpmSection {
    /// Largest file that is read as a key.
    const MAX_KEY: u64 = 4096;

    /// The rules to seal.
    ///
    /// # Errors
    /// A key file that cannot be read, or holds something else.
    pub fn rules(&self) -> Result<TpmRules, Failure> {
        let srk = self.srk.as_deref().map(Self::read_srk).transpose()?;
        Ok(TpmRules { usage: self.usage, srk, rollback: self.rollback })
    }

    fn read_srk(path: &Path) -> Result<SrkPublic, Failure> {
        let bytes = read_at_most(path, Self::MAX_KEY)
            .map_err(|error| Failure::io(format_args!("read storage root key {}", path.display()), &error))?;
        SrkPublic::new(bytes).map_err(|error| {
            Failure::new(ExitStatus::BadInput, format!("{}: {error}", path.display()))
                .next("write it on the device: tpm2_readpublic -c 0x81000001 -o srk.pub")
        })
    }
}

fn read_at_most(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `[[volume]]`: an encrypted volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSection {
    /// Its name.
    pub name: VolumeName,
    /// The device that holds it.
    pub place: PlaceText,
    /// The UUID in its header, if only that one is to be taken.
    pub luks_uuid: Option<Uuid>,
    /// The identity of its volume key, if only that one is to be taken.
    pub volume_key: Option<Sha256Digest>,
    /// What it is for.
    #[serde(rename = "use")]
    pub usage: VolumeUse,
    /// How it may be opened.
    #[serde(default)]
    pub unlock: UnlockRules,
    /// Whether the boot goes on without it.
    #[serde(default)]
    pub optional: bool,
}

impl VolumeSection {
    fn sealed(&self) -> Volume {
        Volume {
            name: self.name.clone(),
            place: self.place.0.clone(),
            luks_uuid: self.luks_uuid,
            volume_key: self.volume_key,
            usage: self.usage.clone(),
            unlock: self.unlock.clone(),
            optional: self.optional,
        }
    }
}

/// `[trust]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustSection {
    /// Public keys that may sign besides the sealing one: files, relative to `iofs.toml`.
    pub keys: Vec<PathBuf>,
    /// How many of all keys must sign.
    pub threshold: u8,
    /// The oldest rollback index that this mini-initramfs boots.
    pub minimum_rollback_index: Option<RollbackIndex>,
}

impl Default for TrustSection {
    fn default() -> Self {
        Self { keys: Vec::new(), threshold: 1, minimum_rollback_index: None }
    }
}

/// `[modules]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModulesSection {
    /// Which drivers to take along: see `iofs-sign initramfs --help`.
    pub profile: Profile,
    /// Abilities to add.
    pub with: Vec<Feature>,
    /// Modules to add and to load always: `NAME` or `NAME KEY=VALUE …`.
    pub add: Vec<String>,
    /// How they are compressed. Default: Zstandard, or gzip where the kernel does not unpack that.
    pub compress: Option<Format>,
}

/// `[uki]`: files, relative to `iofs.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UkiSection {
    /// Microcode for the processor, as an uncompressed initramfs.
    pub microcode: Option<PathBuf>,
    /// A picture to show, as BMP.
    pub splash: Option<PathBuf>,
    /// A devicetree.
    pub devicetree: Option<PathBuf>,
}

/// A value that is written as text.
fn parsed<'de, D: serde::Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    input: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(input)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

impl Config {
    /// The init in the sealed tree.
    pub fn init(&self) -> RootPath {
        let usual = match self.image.role {
            Role::Root => "/sbin/init",
            Role::InitOverlay => "/init",
        };
        self.boot.init.clone().unwrap_or_else(|| usual.parse().expect("the default is valid"))
    }

    /// Where data and tree are to lie; the tree where the data is, if that is in memory or a file.
    pub fn places(&self) -> [Option<Place>; 2] {
        if self.slots.is_some() {
            return [Some(Place::Slot), Some(Place::Slot)];
        }
        let [data, tree] = [&self.place.data, &self.place.tree].map(|place| place.as_ref().map(|text| text.0.clone()));
        let follows = matches!(data, Some(Place::Memory | Place::File(_)));
        let tree = tree.or_else(|| data.clone().filter(|_| follows));
        [data, tree]
    }

    /// The volumes to seal.
    pub fn sealed_volumes(&self) -> Vec<Volume> {
        self.volumes.iter().map(VolumeSection::sealed).collect()
    }

    /// Whether what is written to the root is kept on a volume.
    pub fn has_upper_volume(&self) -> bool {
        self.volumes.iter().any(|volume| matches!(volume.usage, VolumeUse::Upper(_)))
    }

    /// Whether it takes the verify-init that opens volumes and files, pins a TPM and starts second stages.
    pub fn needs_full_init(&self) -> bool {
        let is_file = |place: &Place| matches!(place, Place::File(_) | Place::Memory | Place::Slot);
        !self.volumes.is_empty()
            || self.tpm.srk.is_some()
            || self.image.role == Role::InitOverlay
            || self.places().iter().flatten().any(is_file)
    }

    /// The modules to ask for: those of the configuration, and those without which its volumes cannot be opened or mounted.
    pub fn module_requests(&self) -> Vec<Request> {
        let modules = &self.modules;
        let mut features = modules.with.clone();
        if !self.volumes.is_empty() {
            features.push(Feature::Luks);
        }
        // Whether other volumes are protected is in their headers, which are not here.
        if self.has_upper_volume() {
            features.push(Feature::Integrity);
        }
        features.extend(self.volumes.iter().filter_map(|volume| volume.usage.file_system()).map(Feature::from));
        features.extend(self.places().iter().flatten().flat_map(features_of));
        let slots = self.slots.iter().flat_map(|slots| &slots.places);
        features.extend(slots.flat_map(|slot| features_of(&slot.0)));
        features.sort_unstable();
        features.dedup();
        let added = modules.add.iter().map(|text| Request::added(text));
        profile::requests(modules.profile, &features).into_iter().chain(added).collect()
    }

    /// Parses the text of an `iofs.toml`.
    ///
    /// # Errors
    /// The line, the field, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Reads `iofs.toml`. Files that it names are found relative to it.
    ///
    /// # Errors
    /// A [`Failure`] with the file and what [`Config::parse`] says of it.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::io(format_args!("read configuration {}", path.display()), &error))?;
        let mut config = Self::parse(&text).map_err(|error| {
            Failure::new(
                ExitStatus::Usage,
                format!("configuration {}: {}", path.display(), error.to_string().trim_end()),
            )
            .next("correct the field; docs/configuration.md lists them all")
        })?;
        let home = crate::atomic::parent(path);
        let uki = &mut config.uki;
        let of_uki = [&mut uki.microcode, &mut uki.splash, &mut uki.devicetree].into_iter().flatten();
        for file in config.trust.keys.iter_mut().chain(&mut config.tpm.srk).chain(of_uki) {
            *file = home.join(&*file);
        }
        config.tree.found_from(home);
        Ok(config)
    }
}

/// What it takes to reach a place.
fn features_of(place: &Place) -> Vec<Feature> {
    match place {
        Place::File(file) => [Some(Feature::Loop), Feature::of_medium(file.kind)].into_iter().flatten().collect(),
        Place::Memory => vec![Feature::Loop],
        Place::PartUuid(_) | Place::PartLabel(_) | Place::Disk(_) | Place::Volume(_) | Place::Slot => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config: Config = Config::parse("").unwrap();
        assert!(config.overlay.enabled && config.verity.superblock && !config.image.debug);
        assert_eq!(config.boot.device_timeout, 30);
    }

    #[test]
    fn a_volume_brings_the_modules_that_open_and_mount_it() {
        let text = "\
[[volume]]
name = \"state\"
place = \"PARTLABEL=state\"
use = { data = { path = \"/var\", file_system = \"xfs\", options = [\"nodev\"] } }
unlock = { tpm = true, pin = true }

[[volume]]
name = \"upper\"
place = \"/dev/vdc\"
use.upper.file_system = \"ext4\"
optional = false
";
        let config = Config::parse(text).unwrap();
        let volumes = config.sealed_volumes();
        assert_eq!(volumes[0].unlock, UnlockRules { pin: true, ..UnlockRules::default() });
        assert!(config.has_upper_volume());
        let requests = config.module_requests();
        for name in ["dm_crypt", "dm_integrity", "xts", "authenc", "xfs", "ext4", "dm_verity"] {
            assert!(requests.iter().any(|request| request.name == name), "{name}");
        }
        assert!(!Config::default().module_requests().iter().any(|request| request.name == "dm_crypt"));
    }

    #[test]
    fn a_file_as_place_brings_what_reads_it_and_holds_the_tree_too() {
        let names = |place: &str| {
            let config = Config::parse(&format!("[place]\ndata = \"{place}\"")).unwrap();
            let [data, tree] = config.places();
            assert_eq!(data, tree);
            config.module_requests().into_iter().map(|request| request.name).collect::<Vec<_>>()
        };
        let vfat = names("vfat:UUID=12AB-34CD:/image");
        assert!(["loop", "vfat", "nls_cp437"].iter().all(|name| vfat.iter().any(|one| one == name)), "{vfat:?}");
        assert!(names("ext4:PARTLABEL=boot:/image").iter().any(|name| name == "ext4"));
        let memory = names("memory");
        assert!(memory.iter().any(|name| name == "loop") && !memory.iter().any(|name| name == "vfat"));
    }

    #[test]
    fn unknown_and_wrong_fields_are_named() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("iofs.toml");
        for (text, expected) in [
            ("[image]\nidd = \"x\"", "unknown field `idd`"),
            ("[image]\nid = \"X\"", "image id: expected 1 to 64 of a-z"),
            (
                "[place]\ndata = \"vda1\"",
                "expected PARTUUID=…, PARTLABEL=…, /dev/NAME, volume:NAME, memory, slot, or TYPE:UUID",
            ),
            ("[place]\ndata = \"volume:root\"", "volume name: expected 1 to 64 of letters"),
            ("[[volume]]\nname = \"x\"\nplace = \"/dev/vdb\"", "missing field `use`"),
            ("[overlay]\nsize = \"0\"", "overlay size: expected a number above 0"),
            ("[boot]\non_failure = \"shell\"", "unknown variant `shell`"),
        ] {
            std::fs::write(&path, text).unwrap();
            let failure = Config::read(&path).unwrap_err();
            assert!(failure.fact.contains(expected), "{} lacks {expected}", failure.fact);
        }
    }
}
