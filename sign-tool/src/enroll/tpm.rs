//! The TPM's part: by libtss2 what changes it, by the lean client, which is what verify-init uses, what is proven.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use iofs_luks::{PrimaryAlg, SignedPcrs, SlotId, TokenSrk, Tpm2Token};
use iofs_policy::{
    hex,
    manifest::RollbackRule,
    pcr::{PcrBank, PcrDigest, PcrIndex},
    pcr_signature::PcrSignatures,
};
use iofs_tpm::{
    ProtectError, Protected, Tpm,
    client::CommandError,
    host::{Authorizations, Host, HostError, SealedAt, StorageRootKey},
    pcr,
    pin::pin_auth,
    policy::PolicyDigest,
    policy_key::PolicyKey,
    rollback::CounterError,
    sealed::Sealed,
    srk::{self, LegacyParent, PinnedSrk},
    transport::{Device, Socket, Transport},
    unlock::{self, Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest},
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::pending::Kept;
use crate::report::{ExitStatus, Failure};

/// Random bytes of a sealed secret, and of a salt.
const SECRET: usize = 32;
/// The longest that a software TPM may take for a command.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a new way was proven to open the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Its passphrase opened the keyslot that is on the disk.
    Opened,
    /// The TPM gave out the passphrase as it will at boot, and that opened the keyslot.
    Unsealed,
    /// The TPM took the sealed object, and its policy is the one that was asked for; the registers do not hold those values
    /// now. The passphrase in it opened the keyslot.
    Loaded,
}

/// What a key is to be sealed to.
#[derive(Debug)]
pub struct TpmPlan {
    /// The bank of all registers.
    pub bank: PcrBank,
    /// Registers, and the values that they hold when the key is asked for. May be none.
    pub values: BTreeMap<PcrIndex, PcrDigest>,
    /// Those of them whose values a release predicts; the others hold them now.
    pub predicted: BTreeSet<PcrIndex>,
    /// Registers whose values a key signs.
    pub signed: Option<SignedPlan>,
    /// The rollback counter, and where it ends.
    pub rollback: Option<RollbackRule>,
    /// What the TPM asks for.
    pub pin: Option<Zeroizing<Vec<u8>>>,
    /// Where the TPM is to keep the object.
    pub persistent: Option<u32>,
    /// Whether systemd before 253 is to open it: under a key that is made anew each time, and without a salt.
    pub legacy: bool,
}

/// Registers whose values a key signs.
#[derive(Debug)]
pub struct SignedPlan {
    /// The registers.
    pub pcrs: BTreeSet<PcrIndex>,
    /// The key as it was given.
    pub pem: Vec<u8>,
    /// The key.
    pub key: PolicyKey,
    /// What it signed so far, where that was given.
    pub signatures: Option<PcrSignatures>,
}

impl TpmPlan {
    /// The policy's digest, computed without the TPM.
    pub fn policy(&self) -> PolicyDigest {
        let key = self.signed.as_ref().and_then(|signed| signed.key.names().into_iter().next());
        let values = self.values.iter().map(|(pcr, value)| ((self.bank, *pcr), *value)).collect();
        PolicyDigest::whole(key.as_ref(), &values, self.rollback, self.pin.is_some())
    }

    /// Whether a token does already what this plan asks for, under the storage root key that has this TPM2B_PUBLIC, or under
    /// none. PINs are not compared.
    pub fn is_done_by(&self, token: &Tpm2Token, srk: Option<&[u8]>) -> bool {
        let policy = self.policy();
        token.policy_hashes.len() == 1
            && token.policy_hashes[0] == policy.as_bytes()
            && token.pin == self.pin.is_some()
            && token.rollback == self.rollback
            && token.persistent.is_some() == self.persistent.is_some()
            && token.srk.as_ref().map(|pinned| pinned.public.as_slice()) == srk
    }
}

/// A secret that a TPM sealed.
pub struct SealedKey {
    secret: Zeroizing<[u8; SECRET]>,
    salt: Option<Vec<u8>>,
    blob: Vec<u8>,
    srk: Option<StorageRootKey>,
}

impl std::fmt::Debug for SealedKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SealedKey")
    }
}

impl SealedKey {
    /// The passphrase of the keyslot.
    pub fn passphrase(&self) -> Zeroizing<Vec<u8>> {
        Tpm2Token::passphrase(&*self.secret)
    }

    /// The object as the TPM is going to keep it.
    ///
    /// # Errors
    /// The TPM made something else.
    pub fn kept_at(&self, handle: u32) -> Result<Kept, Failure> {
        Ok(Kept::new(handle, parse(&self.blob)?.public().name().as_bytes()))
    }

    /// The token.
    pub fn token(&self, plan: &TpmPlan, slot: SlotId) -> Tpm2Token {
        Tpm2Token {
            keyslots: vec![slot],
            blobs: vec![self.blob.clone()],
            policy_hashes: vec![plan.policy().as_bytes().to_vec()],
            pcrs: plan.values.keys().copied().collect(),
            bank: Some(plan.bank),
            primary_alg: PrimaryAlg::Ecc,
            pin: plan.pin.is_some(),
            salt: self.salt.clone(),
            signed: plan
                .signed
                .as_ref()
                .map(|signed| SignedPcrs { pcrs: signed.pcrs.clone(), public_key_pem: signed.pem.clone() }),
            srk: self.srk.as_ref().map(|srk| TokenSrk {
                handle: srk.handle,
                name: srk.name.clone(),
                public: srk.public.clone(),
            }),
            pcrlock: false,
            persistent: plan.persistent,
            pcr_values: plan.values.values().map(|value| value.as_bytes().to_vec()).collect(),
            rollback: plan.rollback,
            unknown: Vec::new(),
        }
    }
}

/// The object that a TPM keeps for a token.
///
/// # Errors
/// The token holds no sealed object.
pub fn kept_of(token: &Tpm2Token, handle: u32) -> Result<Kept, Failure> {
    let blob = token.blobs.first().map(Vec::as_slice).unwrap_or_default();
    Ok(Kept::new(handle, parse(blob)?.public().name().as_bytes()))
}

fn parse(blob: &[u8]) -> Result<Sealed, Failure> {
    Sealed::parse(blob).map_err(|error| Failure::new(ExitStatus::BadInput, format!("sealed object: {error}")))
}

/// Where a TPM is, in a way that both clients understand.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Device(PathBuf),
    Swtpm(SocketAddr),
}

impl Place {
    fn parse(tcti: &str) -> Option<Self> {
        match tcti.split_once(':')? {
            ("device", path) => Some(Self::Device(path.into())),
            ("swtpm", fields) => {
                let mut address = SocketAddr::from(([127, 0, 0, 1], 2321));
                for field in fields.split(',') {
                    match field.split_once('=')? {
                        ("host", "localhost") => {}
                        ("host", host) => address.set_ip(host.parse::<IpAddr>().ok()?),
                        ("port", port) => address.set_port(port.parse().ok()?),
                        _ => return None,
                    }
                }
                Some(Self::Swtpm(address))
            }
            _ => None,
        }
    }

    fn connect(&self) -> Result<Tpm<Box<dyn Transport>>, Failure> {
        let transport: Result<Box<dyn Transport>, _> = match self {
            Self::Device(path) => Device::open(path, Duration::ZERO).map(|device| Box::new(device) as _),
            Self::Swtpm(address) => Socket::tcp(*address, PATIENCE).map(|socket| Box::new(socket) as _),
        };
        transport.map(Tpm::new).map_err(|error| Failure::new(ExitStatus::Missing, error.to_string()).next(SWITCHED_ON))
    }
}

const SWITCHED_ON: &str = "see that the TPM is switched on, and run this as root or in the group tss";

/// A TPM, by both clients.
#[derive(Debug)]
pub struct TpmSide {
    host: Host,
    place: Place,
}

impl TpmSide {
    /// Connects.
    ///
    /// # Errors
    /// There is no TPM at that place, or only one of the clients can reach it.
    pub fn open(tcti: &str, authorizations: &Authorizations) -> Result<Self, Failure> {
        let place = Place::parse(tcti).ok_or_else(|| {
            let fact = format!("--tcti: expected device:PATH or swtpm:host=ADDRESS,port=N, found {tcti:?}");
            Failure::new(ExitStatus::Usage, fact)
                .next("a disk's key is proven by the client that verify-init has: name the TPM itself")
        })?;
        Ok(Self { host: Host::open(tcti, authorizations)?, place })
    }

    /// Refuses before anything is written: a locked TPM neither seals nor opens with a PIN.
    ///
    /// # Errors
    /// The TPM is locked, or does not say.
    pub fn check_open(&mut self) -> Result<(), Failure> {
        let state = self.host.lockout()?;
        if state.locked {
            return Err(Failure::new(ExitStatus::System, format!("the TPM is locked: {state}"))
                .next("wait until failed attempts are forgotten, or 'tpm2_dictionarylockout --clear-lockout'"));
        }
        Ok(())
    }

    /// Whether a bank is active.
    ///
    /// # Errors
    /// The TPM does not say.
    pub fn has_bank(&mut self, bank: PcrBank) -> Result<bool, Failure> {
        Ok(self.host.banks()?.contains_key(&bank))
    }

    /// What registers hold now.
    ///
    /// # Errors
    /// The TPM does not say.
    pub fn values(
        &mut self,
        bank: PcrBank,
        pcrs: &BTreeSet<PcrIndex>,
    ) -> Result<BTreeMap<PcrIndex, PcrDigest>, Failure> {
        let wanted = pcrs.iter().map(|pcr| (bank, *pcr)).collect();
        let values = pcr::read(&mut self.place.connect()?, &wanted);
        let values = values.map_err(|error| Failure::new(ExitStatus::System, error.to_string()))?;
        Ok(values.iter().collect())
    }

    /// The storage root key: made and kept at its handle where there is none.
    ///
    /// # Errors
    /// The TPM does not make it.
    pub fn storage_root_key(&mut self) -> Result<StorageRootKey, Failure> {
        Ok(self.host.provide_srk()?)
    }

    /// A handle at which nothing is.
    ///
    /// # Errors
    /// The TPM has none left.
    pub fn free_handle(&mut self) -> Result<u32, Failure> {
        Ok(self.host.free_handle()?)
    }

    /// What the rollback counter holds, in a session that only the TPM with the storage root key can answer. `None` where there
    /// is no counter yet.
    ///
    /// # Errors
    /// The TPM does not say, or something else is at that index.
    pub fn rollback_counter(&mut self, index: u32) -> Result<Option<u64>, Failure> {
        let srk = self.storage_root_key()?;
        let pin = PinnedSrk::parse(srk.public.get(2..).unwrap_or_default());
        let pin = pin.map_err(|error| Failure::new(ExitStatus::System, error.to_string()))?;
        let mut tpm = self.place.connect()?;
        let unsure = |error: ProtectError| {
            Failure::new(ExitStatus::NotVerified, error.to_string())
                .next("see that nobody is between this program and the TPM")
        };
        let mut protected = Protected::start(&mut tpm, &pin).map_err(unsure)?;
        match protected.rollback_counter(index) {
            Ok(value) => Ok(Some(value)),
            Err(CounterError::Absent { .. }) => Ok(None),
            Err(error @ CounterError::Other { .. }) => Err(Failure::new(ExitStatus::Usage, error.to_string())
                .next("choose another index with --rollback-counter, or remove what is there: 'tpm2_nvundefine'")),
            Err(error @ CounterError::Command(_)) => Err(Failure::new(ExitStatus::System, error.to_string())),
        }
    }

    /// The same, after a counter was made where there was none.
    ///
    /// # Errors
    /// Those of [`TpmSide::rollback_counter`], or the TPM has no room for it.
    pub fn provide_counter(&mut self, index: u32) -> Result<u64, Failure> {
        if let Some(value) = self.rollback_counter(index)? {
            return Ok(value);
        }
        self.host.provide_counter(index)?;
        self.rollback_counter(index)?.ok_or_else(|| {
            let fact = format!("rollback counter {index:#010x}: expected the one that was just made, found none");
            Failure::new(ExitStatus::NotVerified, fact).next("see that nobody is between this program and the TPM")
        })
    }

    /// Counts up by one.
    ///
    /// # Errors
    /// The TPM does not do it.
    pub fn count_up(&mut self, index: u32) -> Result<(), Failure> {
        Ok(self.host.count_up(index)?)
    }

    /// Seals a new secret.
    ///
    /// # Errors
    /// The TPM does not do it.
    pub fn seal(&mut self, plan: &TpmPlan) -> Result<SealedKey, Failure> {
        let (secret, salt) = (random()?, random()?);
        let salt = (plan.pin.is_some() && !plan.legacy).then(|| salt.to_vec());
        let auth = plan.pin.as_ref().map(|pin| pin_auth(pin, salt.as_deref()));
        let auth = auth.as_ref().map(|auth| auth.as_slice());
        let policy = plan.policy();
        let (blob, srk) = if plan.legacy {
            (self.host.seal_legacy(&*secret, &policy, auth)?, None)
        } else {
            let srk = self.storage_root_key()?;
            (self.host.seal(&srk, &*secret, &policy, auth)?, Some(srk))
        };
        Ok(SealedKey { secret, salt, blob, srk })
    }

    /// Lets the TPM keep the object.
    ///
    /// # Errors
    /// Something is at the handle, or the TPM has no room.
    pub fn keep(&mut self, sealed: &SealedKey, handle: u32) -> Result<(), Failure> {
        let srk = self.storage_root_key()?;
        self.host.persist(&srk, &sealed.blob, handle)?;
        let name = parse(&sealed.blob)?.public().name();
        match srk::read_public(&mut self.place.connect()?, handle) {
            Ok(public) if public.name() == name => Ok(()),
            Ok(_) | Err(CommandError::Refused { .. }) => {
                let fact = format!(
                    "persistent handle {handle:#010x}: expected the object that was to be kept there, found none"
                );
                Err(Failure::new(ExitStatus::NotVerified, fact)
                    .next("see that nobody is between this program and the TPM"))
            }
            Err(error) => Err(Failure::new(ExitStatus::System, error.to_string())),
        }
    }

    /// Makes the TPM forget an object that it keeps. What else is at the handle stays.
    ///
    /// # Errors
    /// The TPM does not do it.
    pub fn forget(&mut self, kept: &Kept) -> Result<(), Failure> {
        match self.host.evict(&SealedAt { handle: kept.handle, name: hex::decode(&kept.name).unwrap_or_default() }) {
            Err(HostError::OtherObject { .. }) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Asks the TPM for the passphrase of a token as verify-init does. `opens` says whether a passphrase opens the keyslot.
    ///
    /// # Errors
    /// [`ExitStatus::NotVerified`] where it would not open the volume although the registers hold what they should.
    pub fn prove(
        &mut self,
        token: &Tpm2Token,
        plan: &TpmPlan,
        sealed: &SealedKey,
        opens: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Proof, Failure> {
        let unproven = |what: String| {
            Failure::new(ExitStatus::NotVerified, format!("{what}; the enrolment is taken back"))
                .next("see 'iofs-sign attest lockout', and that nobody is between this program and the TPM")
        };
        match self.unseal(token, plan)? {
            Ok(secret) if opens(&Tpm2Token::passphrase(&secret)) => Ok(Proof::Unsealed),
            Ok(_) => Err(unproven("the TPM unsealed what does not open the keyslot".into())),
            Err(error @ UnsealError::RegistersChanged { .. }) if self.differing(plan)?.is_empty() => {
                Err(unproven(error.to_string()))
            }
            Err(UnsealError::RegistersChanged { .. } | UnsealError::NoSignature { .. }) => {
                if let Some(pcr) = self.differing(plan)?.difference(&plan.predicted).next() {
                    return Err(unproven(format!("PCR {pcr} does not hold any more what was sealed")));
                }
                let (object, policy) = (parse(&sealed.blob)?, plan.policy());
                match token.policy_hashes.as_slice() {
                    [hash] if hash == policy.as_bytes() && object.public().policy() == policy.as_bytes() => {}
                    _ => return Err(unproven("the object's policy is another one".into())),
                }
                match opens(&sealed.passphrase()) {
                    true => Ok(Proof::Loaded),
                    false => Err(unproven("the sealed secret does not open the keyslot".into())),
                }
            }
            Err(error) => Err(unproven(error.to_string())),
        }
    }

    /// The registers that do not hold now what they hold when the key is asked for.
    fn differing(&mut self, plan: &TpmPlan) -> Result<BTreeSet<PcrIndex>, Failure> {
        let held = self.values(plan.bank, &plan.values.keys().copied().collect())?;
        Ok(plan.values.iter().filter(|(pcr, value)| held.get(pcr) != Some(value)).map(|(pcr, _)| *pcr).collect())
    }

    fn unseal(
        &mut self,
        token: &Tpm2Token,
        plan: &TpmPlan,
    ) -> Result<Result<Zeroizing<Vec<u8>>, UnsealError>, Failure> {
        let malformed = |what: String| Failure::new(ExitStatus::NotVerified, format!("what was written: {what}"));
        let pin = token.srk.as_ref().map(|srk| PinnedSrk::parse(srk.public.get(2..).unwrap_or_default()));
        let pin = pin.transpose().map_err(|error| malformed(error.to_string()))?;
        let parent = match (&token.srk, &pin) {
            (Some(srk), Some(pin)) => Parent::Pinned { handle: srk.handle, pin },
            _ => Parent::Legacy { kind: LegacyParent::Ecc, salt: None },
        };
        let sealed = parse(token.blobs.first().map(Vec::as_slice).unwrap_or_default())?;
        let auth = plan.pin.as_ref().map(|pin| pin_auth(pin, token.salt.as_deref()));
        let bank = token.bank.unwrap_or(PcrBank::Sha256);
        let key = token.signed.as_ref().map(|signed| PolicyKey::from_pem(&signed.public_key_pem)).transpose();
        let key = key.map_err(|error| malformed(error.to_string()))?;
        let none = PcrSignatures::default();
        let signatures = plan.signed.as_ref().and_then(|signed| signed.signatures.as_ref()).unwrap_or(&none);
        let signed = key.as_ref().zip(token.signed.as_ref());
        let request = UnsealRequest {
            parent,
            sealed: &sealed,
            persistent: token.persistent,
            policy: UnsealPolicy {
                signed: signed.map(|(key, signed)| SignedPolicy {
                    bank,
                    registers: signed.pcrs.clone(),
                    key,
                    signatures,
                }),
                registers: token.pcrs.iter().map(|pcr| (bank, *pcr)).collect(),
                rollback: token.rollback,
                auth_value: auth.as_ref().map(|auth| auth.as_slice()),
            },
        };
        Ok(unlock::unseal(&mut self.place.connect()?, &request))
    }
}

fn random() -> Result<Zeroizing<[u8; SECRET]>, Failure> {
    let mut bytes = Zeroizing::new([0; SECRET]);
    super::fill_random(&mut *bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_that_both_clients_reach() {
        let swtpm = |text: &str| Place::parse(text);
        assert_eq!(swtpm("device:/dev/tpmrm0"), Some(Place::Device("/dev/tpmrm0".into())));
        assert_eq!(swtpm("swtpm:host=127.0.0.1,port=7"), Some(Place::Swtpm(SocketAddr::from(([127, 0, 0, 1], 7)))));
        assert_eq!(swtpm("swtpm:port=7"), Some(Place::Swtpm(SocketAddr::from(([127, 0, 0, 1], 7)))));
        for text in ["tabrmd", "mssim:port=7", "swtpm:path=/x", "swtpm:port=x", "swtpm:host=a.example"] {
            assert_eq!(swtpm(text), None, "{text}");
        }
    }
}
