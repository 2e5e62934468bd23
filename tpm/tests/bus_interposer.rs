//! Somebody on the bus between processor and TPM: a proxy on swtpm's socket that flips every bit of what passes, one at a
//! time, routes commands to a TPM of its own, repeats them, and writes all of it down.

mod bus_common;
mod common;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use bus_common::{Exchange, Flip, Interposer, Side, Takes, all_flips, assert_hidden, code_of, forward, serve};
use common::{PATIENCE, SoftwareTpm, digests, index, registers, seal, write_nv};
use iofs_policy::{
    digest::Sha256Digest,
    manifest::{RollbackIndex, RollbackRule},
    pcr::{PcrBank, PcrDigest},
    pcr_signature::{PcrSignature, PcrSignatures},
};
use iofs_tpm::{
    CommandError, PinnedSrk, ProtectError, Protected, Tpm,
    command::{Command, CommandCode},
    pcr::{ActiveBanks, ExtendError, Judgement, PcrValues, active_banks, judge, read},
    policy::PolicyDigest,
    policy_key::PolicyKey,
    rollback::{CounterError, DEFAULT_INDEX},
    sealed::Sealed,
    srk::{SRK_HANDLE, SrkError, read_public, standard_srk},
    transport::{Socket, Transport, TransportError},
    unlock::{Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest, unseal},
};
use tempfile::TempDir;

/// The bus: a socket in front of swtpm's.
struct Bus {
    interposer: Arc<Mutex<Interposer>>,
    path: PathBuf,
    _folder: TempDir,
}

impl Bus {
    fn new(software: &mut SoftwareTpm) -> Self {
        drop(software.connect());
        let upstream = UnixStream::connect(software.data()).unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus");
        let bus = Self { interposer: Arc::new(Mutex::new(Interposer::new(upstream))), path, _folder: folder };
        let listener = UnixListener::bind(&bus.path).unwrap();
        let interposer = Arc::clone(&bus.interposer);
        thread::spawn(move || {
            for client in listener.incoming() {
                serve(&mut client.unwrap(), &interposer);
            }
        });
        bus
    }

    fn interposer(&self) -> MutexGuard<'_, Interposer> {
        self.interposer.lock().unwrap()
    }

    /// A client that does not know of the man in the middle.
    fn client(&self) -> Tpm<Socket> {
        Tpm::new(Socket::unix(&self.path, PATIENCE).unwrap())
    }

    /// Past the man in the middle.
    fn direct(&self) -> Tpm<Direct<'_>> {
        Tpm::new(Direct(self))
    }

    fn arm(&self, flip: Option<Flip>) {
        self.interposer().arm(flip);
    }

    fn seen(&self) -> Vec<Exchange> {
        self.interposer().seen.clone()
    }

    /// Flushes what a disturbed client left in the TPM: without a resource manager nobody else would.
    fn clean(&self) {
        self.flush_all(0x8000_0000);
        self.flush_all(0x0200_0000);
    }

    fn flush_all(&self, kind: u32) {
        let mut direct = self.direct();
        // TPM_CAP_HANDLES, from this handle on.
        let list = direct.run(&Command::new(CommandCode::GetCapability).u32(1).u32(kind).u32(64)).unwrap();
        let handles = list[9..].chunks(4).map(|handle| u32::from_be_bytes(handle.try_into().unwrap()));
        for handle in handles {
            direct.run(&Command::new(CommandCode::FlushContext).u32(handle)).unwrap();
        }
    }
}

struct Direct<'b>(&'b Bus);

impl Transport for Direct<'_> {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TransportError> {
        Ok(forward(&mut self.0.interposer().upstream, command))
    }
}

/// A TPM with a storage root key, somebody in front of it, and what was pinned before he came.
struct Scene {
    bus: Bus,
    pin: PinnedSrk,
    active: ActiveBanks,
    _software: SoftwareTpm,
}

impl Scene {
    fn new(prepare: impl FnOnce(&SoftwareTpm)) -> Self {
        let software = SoftwareTpm::started();
        software.make_srk();
        prepare(&software);
        Self::with(software, |bus| PinnedSrk::new(read_public(&mut bus.direct(), SRK_HANDLE).unwrap()).unwrap())
    }

    fn with(mut software: SoftwareTpm, pin: impl FnOnce(&Bus) -> PinnedSrk) -> Self {
        let bus = Bus::new(&mut software);
        bus.clean();
        let pin = pin(&bus);
        let active = active_banks(&mut bus.direct()).unwrap();
        Self { bus, pin, active, _software: software }
    }

    fn values(&self) -> PcrValues {
        read(&mut self.bus.direct(), &registers(&[13])).unwrap()
    }

    /// Runs `action` in a session once undisturbed, and then once for each bit of what it sends and receives. After a
    /// failure that leaves the session unusable there is another one.
    fn flip_each<R>(
        &self,
        mut action: impl FnMut(&mut Protected<'_, Socket>) -> Result<R, Failure>,
        mut check: impl FnMut(Flip, &[Exchange], Result<R, Failure>),
    ) -> usize {
        let mut todo = None;
        let mut done = 0;
        loop {
            let mut client = self.bus.client();
            self.bus.arm(None);
            let mut protected = Protected::start(&mut client, &self.pin).unwrap();
            let flips = todo.get_or_insert_with(|| {
                self.bus.arm(None);
                assert!(action(&mut protected).is_ok(), "undisturbed");
                all_flips(&self.bus.seen()).into_iter()
            });
            let spoilt = loop {
                let Some(flip) = flips.next() else { break false };
                self.bus.arm(Some(flip));
                let result = action(&mut protected);
                let usable = matches!(result, Ok(_) | Err(Failure::Refused));
                check(flip, &self.bus.seen(), result);
                self.bus.interposer().flip = None;
                done += 1;
                if !usable || protected.random().is_err() {
                    break true;
                }
            };
            drop(protected);
            self.bus.clean();
            if !spoilt {
                return done;
            }
        }
    }
}

/// Why an action under attack brought nothing.
#[derive(Debug)]
enum Failure {
    /// The TPM says no, and nobody is the wiser about the session.
    Refused,
    /// The session, or the connection, is worth nothing any more.
    Noticed,
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        if matches!(error, CommandError::Refused { .. }) { Self::Refused } else { Self::Noticed }
    }
}

/// An extend of register 13.
fn extend(scene: &Scene, protected: &mut Protected<'_, Socket>, byte: u8) -> Result<(), Failure> {
    match protected.extend(&scene.active, index(13), &digests(byte)) {
        Err(ExtendError::Command { source, .. }) => Err(source.into()),
        other => {
            other.unwrap();
            Ok(())
        }
    }
}

#[test]
fn bus_interposer_any_bit_of_a_protected_extend_is_noticed() {
    let scene = Scene::new(|_| {});
    let before = RefCell::new(scene.values());
    let flips = scene.flip_each(
        |protected| {
            before.replace(scene.values());
            extend(&scene, protected, 5)
        },
        |flip, _, result| {
            assert!(result.is_err(), "{flip:?}");
            let expected = if flip.side == Side::Request { Judgement::NotExtended } else { Judgement::Extended };
            let found = judge(&before.borrow(), &scene.values(), index(13), &digests(5));
            assert_eq!(found, expected, "{flip:?}");
        },
    );
    println!("{flips} flips");
}

#[test]
fn bus_interposer_any_bit_of_an_index_read_is_noticed_and_nobody_reads_along() {
    let content = *b"what the index holds, 32 bytes..";
    let scene = Scene::new(|software| write_nv(software, "0x01500010", &content, Some("value")));
    let flips = scene.flip_each(
        |protected| {
            let public = protected.nv_public(0x0150_0010)?;
            Ok(protected.nv_read(&public, b"value")?)
        },
        |flip, seen, result| {
            assert!(result.is_err(), "{flip:?}");
            assert_hidden(seen, &content);
            assert_hidden(seen, b"value");
        },
    );
    println!("{flips} flips");
}

/// A counter at its first value, as `enroll` makes it.
fn make_counter(software: &SoftwareTpm) {
    software.tool("tpm2_nvdefine", &["-Q", "-C", "o", "-a", "ownerwrite|nt=counter|ownerread|authread|no_da", COUNTER]);
    software.tool("tpm2_nvincrement", &["-Q", "-C", "o", COUNTER]);
}

/// [`DEFAULT_INDEX`], as tpm2-tools take it.
const COUNTER: &str = "0x180494f";

#[test]
fn bus_interposer_any_bit_of_the_rollback_counter_is_noticed() {
    let scene = Scene::new(make_counter);
    let flips = scene.flip_each(
        |protected| match protected.rollback_counter(DEFAULT_INDEX) {
            Ok(value) => Ok(value),
            Err(CounterError::Command(error)) => Err(error.into()),
            Err(_) => Err(Failure::Refused),
        },
        |flip, _, result| assert!(result.is_err(), "{flip:?}"),
    );
    println!("{flips} flips");
}

#[test]
fn bus_interposer_any_bit_of_an_unsealing_with_a_rollback_counter_is_noticed() {
    let secret = *b"the secret that unlocks the disk";
    let mut blob = Vec::new();
    let mut rollback = None;
    let scene = Scene::new(|software| {
        make_counter(software);
        software.tool("tpm2_nvread", &["-Q", "-C", COUNTER, "-s", "8", "-o", "value", COUNTER]);
        let value = u64::from_be_bytes(software.file("value").try_into().unwrap());
        let rule = RollbackRule { counter: DEFAULT_INDEX, value, index: RollbackIndex(0) };
        let zero = ((PcrBank::Sha256, index(7)), PcrDigest::zero(PcrBank::Sha256));
        software.write("secret", &secret);
        software.write("policy", PolicyDigest::ZERO.registers(&[zero].into()).counter(rule.into()).as_bytes());
        let arguments = ["-Q", "-C", "0x81000001", "-i", "secret", "-L", "policy", "-u", "seal.pub", "-r", "seal.priv"];
        software.tool("tpm2_create", &[&arguments[..], &["-a", "fixedtpm|fixedparent|noda"]].concat());
        blob = [software.file("seal.priv"), software.file("seal.pub")].concat();
        rollback = Some(rule);
    });
    let sealed = Sealed::parse(&blob).unwrap();
    let registers = BTreeSet::from([(PcrBank::Sha256, index(7))]);
    let policy = UnsealPolicy { registers, rollback, ..UnsealPolicy::default() };
    let request = UnsealRequest { policy, ..request(&scene, &sealed, None) };
    Unlocking { scene: &scene, request, secret: &secret }.flip_each();
}

/// A policy that OpenSSL's key signed for register 7 as it is, and an object that it opens.
#[test]
fn bus_interposer_any_bit_of_an_unsealing_by_a_signed_policy_is_noticed_and_nobody_reads_along() {
    let secret = *b"the secret that unlocks the disk";
    let mut blob = Vec::new();
    let mut signed = None;
    let scene = Scene::new(|software| {
        let (key, signature) = sign_register_7(software);
        software.write("secret", &secret);
        software.write("policy", PolicyDigest::authorized_by(&key.names()[0]).as_bytes());
        let arguments = ["-Q", "-C", "0x81000001", "-i", "secret", "-L", "policy", "-u", "seal.pub", "-r", "seal.priv"];
        software.tool("tpm2_create", &[&arguments[..], &["-a", "fixedtpm|fixedparent|noda"]].concat());
        blob = [software.file("seal.priv"), software.file("seal.pub")].concat();
        let mut signatures = PcrSignatures::default();
        signatures.insert(PcrBank::Sha256, signature);
        signed = Some((key, signatures));
    });
    let sealed = Sealed::parse(&blob).unwrap();
    let (key, signatures) = signed.unwrap();
    let (bank, registers) = (PcrBank::Sha256, BTreeSet::from([index(7)]));
    let signed = Some(SignedPolicy { bank, registers, key: &key, signatures: &signatures });
    let policy = UnsealPolicy { signed, ..UnsealPolicy::default() };
    let request = UnsealRequest { policy, ..request(&scene, &sealed, None) };
    Unlocking { scene: &scene, request, secret: &secret }.flip_each();
}

fn sign_register_7(software: &SoftwareTpm) -> (PolicyKey, PcrSignature) {
    let openssl = |arguments: &[&str]| {
        let status = process::Command::new("openssl").args(arguments).current_dir(software.folder.path()).output();
        assert!(status.unwrap().status.success(), "{arguments:?}");
    };
    // ECDSA, since its keys and signatures have fewer bits to flip.
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key.pem"]);
    openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
    let key = PolicyKey::from_pem(&software.file("key.pub")).unwrap();
    let zero = ((PcrBank::Sha256, index(7)), PcrDigest::zero(PcrBank::Sha256));
    let policy = PolicyDigest::ZERO.registers(&[zero].into());
    software.write("policy", policy.as_bytes());
    openssl(&["dgst", "-sha256", "-sign", "key.pem", "-out", "signature", "policy"]);
    let (registers, signature) = (BTreeSet::from([index(7)]), software.file("signature"));
    let policy = Sha256Digest::from_bytes(*policy.as_bytes());
    (key.clone(), PcrSignature { registers, key: key.fingerprint(), policy, signature, rollback: None })
}

/// What a man in the middle gets out of unlocking by changing one bit of it.
struct Unlocking<'a> {
    scene: &'a Scene,
    request: UnsealRequest<'a>,
    secret: &'a [u8],
}

impl Unlocking<'_> {
    /// Flips each bit of what passes, and returns how many there were. Either nothing comes of it but an error; or the
    /// secret, where the bit did not matter or was noticed and done again; or, where the cipher was changed, garbage, which
    /// opens nothing. The secret never passes in clear.
    fn flip_each(&self) -> usize {
        let Self { scene: Scene { bus, .. }, request, secret } = self;
        bus.arm(None);
        assert_eq!(unseal(&mut bus.client(), request).unwrap().as_slice(), *secret, "undisturbed");
        let undisturbed = bus.seen();
        let (mut right, mut garbage) = (0, 0);
        let flips = all_flips(&undisturbed);
        for flip in &flips {
            let mut client = bus.client();
            bus.arm(Some(*flip));
            let result = unseal(&mut client, request);
            assert_hidden(&bus.seen(), secret);
            if let Some(auth_value) = request.policy.auth_value {
                assert_hidden(&bus.seen(), auth_value);
            }
            let code = code_of(&undisturbed[flip.exchange].request);
            match result {
                Ok(found) if found.as_slice() == *secret => {
                    assert_ne!((code, flip.side), (CommandCode::Unseal.value(), Side::Response), "{flip:?}");
                    right += 1;
                }
                Ok(_) => {
                    assert_eq!((code, flip.side), (CommandCode::StartAuthSession.value(), Side::Request), "{flip:?}");
                    garbage += 1;
                }
                Err(_) => {}
            }
            bus.interposer().flip = None;
            bus.clean();
        }
        println!("{} flips: {right} without consequence, {garbage} of the cipher", flips.len());
        flips.len()
    }
}

fn request<'a>(scene: &'a Scene, sealed: &'a Sealed, auth_value: Option<&'a [u8]>) -> UnsealRequest<'a> {
    let registers = BTreeSet::from([(PcrBank::Sha256, index(7))]);
    let policy = UnsealPolicy { registers, auth_value, ..UnsealPolicy::default() };
    let parent = Parent::Pinned { handle: SRK_HANDLE, pin: &scene.pin };
    UnsealRequest { parent, sealed, persistent: None, policy }
}

#[test]
fn bus_interposer_any_bit_of_an_unsealing_is_noticed_and_nobody_reads_along() {
    let secret = *b"the secret that unlocks the disk";
    let mut blob = Vec::new();
    let scene = Scene::new(|software| blob = seal(software, &secret, "7", Some("a PIN")).1);
    let sealed = Sealed::parse(&blob).unwrap();
    let request = request(&scene, &sealed, Some(b"a PIN"));
    Unlocking { scene: &scene, request, secret: &secret }.flip_each();
}

#[test]
fn bus_interposer_any_bit_of_an_unsealing_from_a_persistent_object_is_noticed_and_nobody_reads_along() {
    let secret = *b"the secret that unlocks the disk";
    let mut blob = Vec::new();
    let scene = Scene::new(|software| {
        blob = seal(software, &secret, "7", None).1;
        software.tool("tpm2_load", &["-Q", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal.ctx"]);
        software.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "seal.ctx", "0x8100494f"]);
        software.tool("tpm2_flushcontext", &["-Q", "-t"]);
    });
    let sealed = Sealed::parse(&blob).unwrap();
    let request = UnsealRequest { persistent: Some(0x8100_494f), ..request(&scene, &sealed, None) };
    Unlocking { scene: &scene, request, secret: &secret }.flip_each();
}

#[test]
fn bus_interposer_any_bit_of_a_sessions_start_is_noticed() {
    let scene = Scene::new(|_| {});
    scene.bus.arm(None);
    Protected::start(&mut scene.bus.client(), &scene.pin).unwrap().close().unwrap();
    let flips = all_flips(&scene.bus.seen()[..3]);
    for flip in &flips {
        let mut client = scene.bus.client();
        scene.bus.arm(Some(*flip));
        let started = Protected::start(&mut client, &scene.pin);
        let seen = scene.bus.seen();
        let codes: Vec<u32> = seen.iter().map(|exchange| code_of(&exchange.request)).collect();
        if started.is_ok() {
            assert!(may_be_ignored(*flip, &codes, &seen), "{flip:?} {codes:x?}");
        }
        scene.bus.interposer().flip = None;
        drop(started);
        scene.bus.clean();
    }
    println!("{} flips", flips.len());
}

/// In `bind`, behind header and `tpmKey`: the bit of 0x40000000.
const NULL_TO_REGISTER_7: usize = (10 + 4) * 8 + 6;

/// The first question is asked without a session, and only tells where the pinned key is. What comes of it is compared
/// with the pin, and the session shows whether it was true. So these may happen unnoticed:
///
/// - the question is changed and refused: the key is made again, and it is the pinned one;
/// - the qualified Name in the answer is changed: nobody looks at it.
///
/// And one bit makes of "bound to nothing" (TPM_RH_NULL, 0x40000007) "bound to register 7" (0x00000007). The session's key
/// comes from the bound entity's authorization value and the salt: a register's value is empty, so that it is the same
/// session.
fn may_be_ignored(flip: Flip, codes: &[u32], seen: &[Exchange]) -> bool {
    let qualified_name = || {
        let response = &seen[0].response;
        (response.len() - 34) * 8..response.len() * 8
    };
    match (flip.exchange, flip.side) {
        (0, Side::Request) => codes.contains(&CommandCode::CreatePrimary.value()),
        (0, Side::Response) => qualified_name().contains(&flip.bit),
        (1, Side::Request) => flip.bit == NULL_TO_REGISTER_7,
        _ => false,
    }
}

/// What TPM2_CreatePrimary brings is compared with the pin as well, and nothing else of it is believed: creation data,
/// ticket and Name are not looked at, and another handle is noticed by the session, which covers the key's Name.
#[test]
fn bus_interposer_any_bit_of_making_the_key_again_brings_the_pinned_key_or_none() {
    let mut software = SoftwareTpm::started();
    let pin = PinnedSrk::new(standard_srk(&mut software.connect()).unwrap()).unwrap();
    let scene = Scene::with(software, |_| pin);
    scene.bus.arm(None);
    Protected::start(&mut scene.bus.client(), &scene.pin).unwrap().close().unwrap();
    let made = scene.bus.seen()[1].clone();
    assert_eq!(code_of(&made.request), CommandCode::CreatePrimary.value());
    let area = 14 + 4..14 + 4 + 2 + scene.pin.public().as_bytes().len();
    let mut unnoticed = 0;
    for flip in all_flips(&[Exchange::default(), made]) {
        let mut client = scene.bus.client();
        scene.bus.arm(Some(flip));
        let started = Protected::start(&mut client, &scene.pin);
        if started.is_ok() {
            // Nothing of what is believed was changed: neither header and handle, nor sizes, nor the public area.
            let believed = flip.bit / 8 < 18 || area.contains(&(flip.bit / 8));
            assert!(flip.side == Side::Request || !believed, "{flip:?}");
            unnoticed += 1;
        }
        scene.bus.interposer().flip = None;
        drop(started);
        scene.bus.clean();
    }
    println!("{unnoticed} flips in what nobody looks at");
}

#[test]
fn bus_interposer_a_cipher_that_was_not_asked_for_is_noticed() {
    const AES: [u8; 6] = [0, 6, 0, 128, 0, 0x43];
    let scene = Scene::new(|_| {});
    scene.bus.arm(None);
    Protected::start(&mut scene.bus.client(), &scene.pin).unwrap().close().unwrap();
    let request = &scene.bus.seen()[1].request;
    let at = request.windows(6).rposition(|window| window == AES).unwrap();
    // TPM_ALG_CAMELLIA is one bit away from TPM_ALG_AES, and TPMs that know it start the session without a word.
    let mut client = scene.bus.client();
    scene.bus.arm(Some(Flip { exchange: 1, side: Side::Request, bit: (at + 1) * 8 + 5 }));
    let error = Protected::start(&mut client, &scene.pin).unwrap_err();
    let known = !matches!(error, ProtectError::Command(CommandError::Refused { .. }));
    assert!(matches!(error, ProtectError::Unconfirmed) || !known, "{error}");
    println!("camellia is known to this TPM: {known}");
}

#[test]
fn bus_interposer_a_key_of_his_own_is_refused() {
    let mut own = SoftwareTpm::started();
    own.make_srk();
    let scene = Scene::new(|_| {});
    let divert = |takes: Takes, own: &mut SoftwareTpm| {
        drop(own.connect());
        scene.bus.interposer().diverted = Some((Box::new(UnixStream::connect(own.data()).unwrap()), takes));
        let error = Protected::start(&mut scene.bus.client(), &scene.pin).unwrap_err();
        scene.bus.interposer().diverted = None;
        scene.bus.clean();
        error
    };
    // He answers with his key, as a TPM would.
    let error = divert(|_| true, &mut own);
    assert!(matches!(error, ProtectError::Srk(SrkError::Other { .. })), "{error}");
    assert!(error.to_string().starts_with("this TPM's storage root key is not the pinned one"), "{error}");
    // He lets the question for the key through, and has the session to himself: he cannot decrypt the salt.
    let error = divert(|code| code != CommandCode::ReadPublic.value(), &mut own);
    assert!(matches!(error, ProtectError::Command(_)), "{error}");
    // His TPM has the session, and he answers for the key in it too.
    let error = divert(|code| code == CommandCode::StartAuthSession.value(), &mut own);
    assert!(matches!(error, ProtectError::Command(_)), "{error}");
}

#[test]
fn bus_interposer_a_repeated_command_is_refused() {
    let scene = Scene::new(|_| {});
    let mut client = scene.bus.client();
    let mut protected = Protected::start(&mut client, &scene.pin).unwrap();
    scene.bus.arm(None);
    extend(&scene, &mut protected, 5).unwrap();
    let request = scene.bus.seen()[0].request.clone();
    let values = scene.values();
    let response = forward(&mut scene.bus.interposer().upstream, &request);
    assert_ne!(response[6..10], [0; 4], "refused");
    assert_eq!(scene.values(), values);
    extend(&scene, &mut protected, 6).unwrap();
}

#[test]
fn bus_interposer_an_extend_whose_success_is_hidden_happens_once() {
    let scene = Scene::new(|_| {});
    let mut client = scene.bus.client();
    let mut protected = Protected::start(&mut client, &scene.pin).unwrap();
    let before = scene.values();
    scene.bus.interposer().hide_once = true;
    // "Busy, ask again": the same command again is one that the TPM has answered.
    extend(&scene, &mut protected, 5).unwrap_err();
    assert_eq!(judge(&before, &scene.values(), index(13), &digests(5)), Judgement::Extended);
    drop(protected);
    let mut protected = Protected::start(&mut client, &scene.pin).unwrap();
    let after = protected.read(&registers(&[13])).unwrap();
    assert_eq!(judge(&before, &after, index(13), &digests(5)), Judgement::Extended, "and the next session says so");
}

/// TPM2_PCR_Extend of this register in the SHA-256 bank, by the empty password.
fn plain_extend(register: u8) -> Vec<u8> {
    let head = [0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, register];
    let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    [&head[..], &password, &[0, 0, 0, 1, 0, 0xb], &[7; 32]].concat()
}

#[test]
fn a_register_that_changes_meanwhile_makes_the_policy_start_over() {
    let mut blob = Vec::new();
    let scene = Scene::new(|software| blob = seal(software, b"secret", "7", None).1);
    let sealed = Sealed::parse(&blob).unwrap();
    let request = request(&scene, &sealed, None);
    let mut client = scene.bus.client();
    let mut unseal = |register| {
        let code = CommandCode::Unseal.value();
        scene.bus.arm(None);
        scene.bus.interposer().meanwhile = Some((code, plain_extend(register)));
        let secret = unseal(&mut client, &request);
        let tries = scene.bus.seen().iter().filter(|exchange| code_of(&exchange.request) == code).count();
        (secret, tries)
    };
    // TPM_RC_PCR_CHANGED comes for any register.
    let (secret, tries) = unseal(13);
    assert_eq!((secret.unwrap().as_slice(), tries), (&b"secret"[..], 2));
    let (error, tries) = unseal(7);
    assert!(matches!(error.unwrap_err(), UnsealError::RegistersChanged { .. }));
    assert_eq!(tries, 2, "the first time it was not the policy that failed");
}
