//! Which modules a mini-initramfs is asked for: what every boot needs, and named lists of hardware.

use clap::ValueEnum;
use iofs_policy::manifest::{FileSystem, MediumKind};

/// How much hardware the initramfs should boot on. Each includes the ones before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Virtual machines of KVM: virtio, NVMe and SCSI disks
    #[default]
    Vm,
    /// Other hypervisors and emulated disks as well: Hyper-V, Xen, VMware, SATA (AHCI), IDE
    Cloud,
    /// Common storage of PCs and boards as well: USB, SD cards, eMMC, UFS, VMD
    Generic,
    /// Server host adapters as well: SAS and RAID controllers
    Host,
}

/// An ability beside the root image's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feature {
    /// Unlock LUKS2 volumes: dm-crypt with AES-XTS, and a keyboard for the recovery key
    Luks,
    /// Unlock LUKS2 volumes that are integrity-protected: dm-integrity, HMACs, authenticated ciphers
    Integrity,
    /// Images in files: loop devices
    Loop,
    /// Read a vfat file system, such as the EFI system partition
    Vfat,
    /// Read an ext4 file system
    Ext4,
    /// Read an XFS file system
    Xfs,
    /// Read a Btrfs file system
    Btrfs,
}

impl Feature {
    /// Whether it takes a verify-init that opens encrypted volumes.
    pub fn is_of_volumes(self) -> bool {
        matches!(self, Self::Luks | Self::Integrity)
    }

    /// What reads a file system that holds an image. erofs is always there.
    pub fn of_medium(kind: MediumKind) -> Option<Self> {
        match kind {
            MediumKind::Vfat => Some(Self::Vfat),
            MediumKind::Ext4 => Some(Self::Ext4),
            MediumKind::Erofs => None,
        }
    }
}

impl From<FileSystem> for Feature {
    fn from(file_system: FileSystem) -> Self {
        match file_system {
            FileSystem::Ext4 => Self::Ext4,
            FileSystem::Xfs => Self::Xfs,
            FileSystem::Btrfs => Self::Btrfs,
        }
    }
}

/// Why a module is in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No boot without it: missing is an error, and it is loaded always.
    Required,
    /// Loaded always, if the kernel has it as a module.
    Always,
    /// Loaded where hardware asks for it, if the kernel has it as a module.
    Hardware,
}

/// One requested module, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// Why.
    pub need: Need,
    /// Parameters for `init_module`; empty for none.
    pub options: String,
}

impl Request {
    /// A module that the user asked for: `NAME [KEY=VALUE ...]`. It is required.
    pub fn added(text: &str) -> Self {
        let (name, options) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        Self { name: name.to_owned(), need: Need::Required, options: options.trim().to_owned() }
    }

    fn new(name: &str, need: Need) -> Self {
        Self { name: name.to_owned(), need, options: String::new() }
    }
}

/// The target that checks the image, its file system, and what makes it writable.
const CHAIN: &[&str] = &["dm_verity", "erofs", "overlay"];
/// dm-verity asks the crypto layer for its hash and erofs for CRC32C; nobody answers a `request_module` in an
/// initramfs without modprobe, so providers are loaded first. Most kernels have them built in.
const CHAIN_HELPERS: &[&str] = &["sha256_generic", "sha256", "crc32c_generic", "crc32c"];
/// Chosen by the processor's own alias: the hash runs several times faster. And the TPM. Of erofs only the superblock has a
/// CRC32C, for which no boot needs another module.
const CHAIN_HARDWARE: &[&str] = &["sha256_ssse3", "sha256_arm64", "sha2_ce", "tpm_crb", "tpm_tis", "tpm_ftpm_tee"];

const VM: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "sd_mod", "nvme"];
const CLOUD: &[&str] = &["hv_vmbus", "hv_storvsc", "pci_hyperv", "xen_blkfront", "vmw_pvscsi", "ahci", "ata_piix"];
const GENERIC: &[&str] = &[
    "xhci_pci",
    "xhci_plat_hcd",
    "ehci_pci",
    "ohci_pci",
    "uhci_hcd",
    "dwc2",
    "dwc3",
    "usb_storage",
    "uas",
    "mmc_block",
    "sdhci_pci",
    "sdhci_acpi",
    "sdhci_iproc",
    "sdhci_of_arasan",
    "sdhci_of_dwcmshc",
    "sdhci_tegra",
    "bcm2835",
    "bcm2835_sdhost",
    "dw_mmc_rockchip",
    "meson_gx_mmc",
    "sunxi_mmc",
    "rtsx_pci_sdmmc",
    "ufshcd_pci",
    "ufs_qcom",
    "vmd",
    "ahci_platform",
    "pcie_brcmstb",
    "reset_raspberrypi",
    "phy_rockchip_pcie",
    "tpm_tis_spi",
];
const HOST: &[&str] = &[
    "mpt3sas",
    "megaraid_sas",
    "mptspi",
    "mptsas",
    "hpsa",
    "smartpqi",
    "aacraid",
    "arcmsr",
    "isci",
    "pm80xx",
    "hisi_sas_v3_hw",
    "mvsas",
    "sata_mv",
    "sata_sil24",
    "sata_nv",
    "sata_via",
    "3w_sas",
    "3w_9xxx",
    "qla2xxx",
    "lpfc",
];

/// Templates and algorithms that the cipher strings of LUKS2 name; again nobody answers a `request_module`.
const LUKS_HELPERS: &[&str] = &["xts", "ecb", "cbc", "aes_generic", "sha256_generic"];
/// What authenticated encryption adds: `authenc(hmac(sha256),xts(aes))`, `gcm(aes)`, `aegis128`.
const INTEGRITY_HELPERS: &[&str] =
    &["hmac", "sha256_generic", "sha512_generic", "authenc", "gcm", "ctr", "ghash_generic", "aegis128"];
const LUKS_HARDWARE: &[&str] = &["aesni_intel", "aes_ce_blk", "aes_neon_bs", "atkbd"];
/// Virtual machines have a serial console, or a keyboard that needs no driver of these.
const USB_KEYBOARD: &[&str] = &["usbhid", "hid_generic", "xhci_pci"];
const INTEGRITY_HARDWARE: &[&str] = &["ghash_clmulni_intel", "ghash_ce"];
/// What file systems that are written to compute for as long as they are mounted, from when they are.
const CRC32C_HARDWARE: &[&str] = &["crc32c_intel"];
/// The checksums that a file system may have been made with.
const BTRFS_HELPERS: &[&str] = &["crc32c_generic", "xxhash_generic", "blake2b_generic", "sha256_generic"];
/// The code pages of the kernel's defaults, which vfat asks for when it is mounted.
const VFAT_HELPERS: &[&str] = &["nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"];

/// The modules to ask for. A name may occur more than once; the strongest need counts.
pub fn requests(profile: Profile, features: &[Feature]) -> Vec<Request> {
    let mut list = Vec::new();
    let mut add = |names: &[&str], need| list.extend(names.iter().map(|name| Request::new(name, need)));
    add(CHAIN, Need::Required);
    add(CHAIN_HELPERS, Need::Always);
    add(CHAIN_HARDWARE, Need::Hardware);
    let lists = [(Profile::Vm, VM), (Profile::Cloud, CLOUD), (Profile::Generic, GENERIC), (Profile::Host, HOST)];
    for (least, names) in lists {
        if profile >= least {
            add(names, Need::Hardware);
        }
    }
    for feature in features {
        match feature {
            Feature::Luks => {
                add(&["dm_crypt"], Need::Required);
                add(LUKS_HELPERS, Need::Always);
                add(LUKS_HARDWARE, Need::Hardware);
                if profile >= Profile::Generic {
                    add(USB_KEYBOARD, Need::Hardware);
                }
            }
            Feature::Integrity => {
                add(&["dm_integrity"], Need::Required);
                add(INTEGRITY_HELPERS, Need::Always);
                add(INTEGRITY_HARDWARE, Need::Hardware);
            }
            Feature::Loop => add(&["loop"], Need::Required),
            Feature::Vfat => {
                add(&["vfat"], Need::Required);
                add(VFAT_HELPERS, Need::Always);
            }
            Feature::Ext4 => {
                add(&["ext4"], Need::Required);
                add(&["crc32c_generic", "crc16"], Need::Always);
                add(CRC32C_HARDWARE, Need::Hardware);
            }
            Feature::Xfs => {
                add(&["xfs"], Need::Required);
                add(&["crc32c_generic"], Need::Always);
                add(CRC32C_HARDWARE, Need::Hardware);
            }
            Feature::Btrfs => {
                add(&["btrfs"], Need::Required);
                add(BTRFS_HELPERS, Need::Always);
                add(CRC32C_HARDWARE, Need::Hardware);
            }
        }
    }
    list
}

/// The kernel's option for a module of the lists above that boots fail without.
pub fn config_option(module: &str) -> Option<&'static str> {
    Some(match module {
        "dm_verity" => "CONFIG_DM_VERITY",
        "erofs" => "CONFIG_EROFS_FS",
        "overlay" => "CONFIG_OVERLAY_FS",
        "dm_crypt" => "CONFIG_DM_CRYPT",
        "loop" => "CONFIG_BLK_DEV_LOOP",
        "vfat" => "CONFIG_VFAT_FS",
        "ext4" => "CONFIG_EXT4_FS",
        "xfs" => "CONFIG_XFS_FS",
        "btrfs" => "CONFIG_BTRFS_FS",
        "dm_integrity" => "CONFIG_DM_INTEGRITY",
        _ => return None,
    })
}
