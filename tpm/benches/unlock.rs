//! How long it takes from the policy to the unsealed secret, and how that compares with tpm2-tools doing the same: a session,
//! registers, load, unseal. Both in the same minute, on the same software TPM and object.
//!
//! Without criterion: a program of a few tools takes tens of milliseconds, and what is wanted is one ratio.
#![allow(missing_docs, reason = "a program")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{SoftwareTpm, index, seal};
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

fn main() {
    let mut software = SoftwareTpm::started();
    software.make_srk();
    let (_, blob) = seal(&software, SECRET, "7,11", None);
    software.tool("tpm2_load", &["-Q", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "kept.ctx"]);
    software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "kept.ctx", "0x8100494f"]);
    software.tool("tpm2_flushcontext", &["-Q", "-t"]);
    let tools = by_tools(&software);
    let sealed = Sealed::parse(&blob).expect("an object by tpm2_create");
    let mut tpm = software.connect();
    let pin = PinnedSrk::new(read_public(&mut tpm, SRK_HANDLE).expect("a key")).expect("a key on P-256");
    let registers = [7, 11].map(|number| (PcrBank::Sha256, index(number))).into();
    let policy = UnsealPolicy { registers, ..UnsealPolicy::default() };
    let parent = Parent::Pinned { handle: SRK_HANDLE, pin: &pin };
    let loaded = UnsealRequest { parent, sealed: &sealed, persistent: None, policy };
    let kept = UnsealRequest { persistent: Some(PERSISTENT), ..loaded.clone() };
    show("tpm2-tools, loaded", tools, tools);
    show("unlock, loaded, 5 commands", by_us(&mut tpm, &loaded), tools);
    show("unlock, persistent, 3 commands", by_us(&mut tpm, &kept), tools);
}

fn show(what: &str, time: Duration, tools: Duration) {
    println!("{what}: {:.3} ms, ratio {:.1}", 1000.0 * time.as_secs_f64(), tools.as_secs_f64() / time.as_secs_f64());
}

fn by_us(tpm: &mut Tpm<Socket>, request: &UnsealRequest<'_>) -> Duration {
    let start = Instant::now();
    for _ in 0..RUNS {
        assert_eq!(unseal(tpm, request).expect("it opens").as_slice(), SECRET);
    }
    start.elapsed() / RUNS
}

/// What a script of an initramfs does. Flushing is left out of the time: a resource manager does that.
fn by_tools(software: &SoftwareTpm) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..TOOL_RUNS {
        let start = Instant::now();
        software.tool("tpm2_startauthsession", &["-Q", "--policy-session", "-S", "session.ctx"]);
        software.tool("tpm2_policypcr", &["-Q", "-S", "session.ctx", "-l", "sha256:7,11"]);
        software.tool("tpm2_load", &["-Q", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal.ctx"]);
        let secret = software.tool("tpm2_unseal", &["-c", "seal.ctx", "-p", "session:session.ctx"]);
        time += start.elapsed();
        assert_eq!(secret.as_bytes(), SECRET);
        software.tool("tpm2_flushcontext", &["-Q", "session.ctx"]);
        software.tool("tpm2_flushcontext", &["-Q", "-t"]);
    }
    time / TOOL_RUNS
}
