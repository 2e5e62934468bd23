//! How long it takes from the policy to the open volume, and how that compares with tpm2-tools and cryptsetup doing the same:
//! a session, registers, load, unseal, keyslot. Both in the same minute, on the same software TPM, object and volume.
//!
//! "Open" is to have the volume key, proven by the header's digest: the table is one ioctl for either.
//!
//! Without criterion: a program of a few tools takes tens of milliseconds, and what is wanted is one ratio.
#![allow(missing_docs, reason = "a program")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{SoftwareTpm, index, seal};
use iofs_luks::{Header, Limits, SlotId, Tpm2Token};
use iofs_policy::pcr::PcrBank;
use iofs_tpm::{
    PinnedSrk, Tpm,
    sealed::Sealed,
    srk::{SRK_HANDLE, read_public},
    transport::Socket,
    unlock::{Parent, UnsealPolicy, UnsealRequest, unseal},
};

const SECRET: &[u8; 32] = b"the secret that unlocks the disk";
const PERSISTENT: u32 = 0x8100_494f;
/// How often each is done. The tools are slow.
const RUNS: u32 = 200;
const TOOL_RUNS: u32 = 10;
const VOLUME_BYTES: u64 = 32 << 20;

fn main() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let (_, blob) = seal(&software, SECRET, "7,11", None);
    software.tool("tpm2_load", &["-Q", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "kept.ctx"]);
    software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "kept.ctx", "0x8100494f"]);
    software.tool("tpm2_flushcontext", &["-Q", "-t"]);
    let folder = tempfile::tempdir().expect("a folder");
    let volume = Volume::made_in(folder.path());
    let tools = by_tools(&software, &volume);
    let sealed = Sealed::parse(&blob).expect("an object by tpm2_create");
    let mut tpm = software.connect();
    let pin = PinnedSrk::new(read_public(&mut tpm, SRK_HANDLE).expect("a key")).expect("a key on P-256");
    let registers = [7, 11].map(|number| (PcrBank::Sha256, index(number))).into();
    let policy = UnsealPolicy { registers, ..UnsealPolicy::default() };
    let parent = Parent::Pinned { handle: SRK_HANDLE, pin: &pin };
    let loaded = UnsealRequest { parent, sealed: &sealed, persistent: None, policy };
    let kept = UnsealRequest { persistent: Some(PERSISTENT), ..loaded.clone() };
    for (what, request) in [("loaded, 5 commands", &loaded), ("persistent, 3 commands", &kept)] {
        let (unsealed, open) = by_us(&mut tpm, request, &volume);
        show(&format!("unseal, {what}"), unsealed, tools.0);
        show(&format!("open volume, {what}"), open, tools.1);
    }
    show("tpm2-tools, unseal, loaded", tools.0, tools.0);
    show("tpm2-tools and cryptsetup, open volume, loaded", tools.1, tools.1);
}

/// A volume with one keyslot, as an enrolment makes it: its passphrase is random, so that its derivation is the least.
struct Volume {
    path: PathBuf,
    /// The passphrase, for cryptsetup to read.
    key_file: PathBuf,
}

impl Volume {
    fn made_in(folder: &Path) -> Self {
        let volume = Self { path: folder.join("volume"), key_file: folder.join("passphrase") };
        File::create(&volume.path).and_then(|file| file.set_len(VOLUME_BYTES)).expect("a file");
        std::fs::write(&volume.key_file, &Tpm2Token::passphrase(SECRET)[..]).expect("a file");
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--type", "luks2", "--batch-mode"];
        volume.cryptsetup(&[&["luksFormat"][..], &cheap].concat());
        volume
    }

    fn cryptsetup(&self, arguments: &[&str]) {
        let mut command = Command::new("cryptsetup");
        command.args(arguments).arg("--key-file").arg(&self.key_file).arg(&self.path).env("PATH", with_sbin());
        let status = command.status().expect("cryptsetup is not installed\n  run: apt-get install cryptsetup-bin");
        assert!(status.success(), "cryptsetup {arguments:?}: {status}");
    }

    /// From the secret to the volume key.
    fn open(&self, secret: &[u8]) {
        let mut file = File::open(&self.path).expect("the volume");
        let header = Header::read(&mut file, VOLUME_BYTES).expect("a header");
        let slot = SlotId::new(0).expect("a slot");
        header.open(&mut file, slot, &Tpm2Token::passphrase(secret), &Limits::default()).expect("it opens");
    }
}

fn with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn show(what: &str, time: Duration, tools: Duration) {
    println!("{what}: {:.3} ms, ratio {:.1}", 1000.0 * time.as_secs_f64(), tools.as_secs_f64() / time.as_secs_f64());
}

/// The time until the secret is unsealed, and until the volume is open.
fn by_us(tpm: &mut Tpm<Socket>, request: &UnsealRequest<'_>, volume: &Volume) -> (Duration, Duration) {
    let (mut unsealed, mut open) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..RUNS {
        let start = Instant::now();
        let secret = unseal(tpm, request).expect("it opens");
        unsealed += start.elapsed();
        volume.open(&secret);
        open += start.elapsed();
    }
    (unsealed / RUNS, open / RUNS)
}

/// What a script of an initramfs does. Flushing is left out of the time: a resource manager does that.
fn by_tools(software: &SoftwareTpm, volume: &Volume) -> (Duration, Duration) {
    let (mut unsealed, mut open) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..TOOL_RUNS {
        let start = Instant::now();
        software.tool("tpm2_startauthsession", &["-Q", "--policy-session", "-S", "session.ctx"]);
        software.tool("tpm2_policypcr", &["-Q", "-S", "session.ctx", "-l", "sha256:7,11"]);
        software.tool("tpm2_load", &["-Q", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal.ctx"]);
        let secret = software.tool("tpm2_unseal", &["-c", "seal.ctx", "-p", "session:session.ctx"]);
        unsealed += start.elapsed();
        assert_eq!(secret.as_bytes(), SECRET);
        // The same passphrase from a file: that a script encodes it first is not held against it.
        volume.cryptsetup(&["open", "--test-passphrase"]);
        open += start.elapsed();
        software.tool("tpm2_flushcontext", &["-Q", "session.ctx"]);
        software.tool("tpm2_flushcontext", &["-Q", "-t"]);
    }
    (unsealed / TOOL_RUNS, open / TOOL_RUNS)
}
