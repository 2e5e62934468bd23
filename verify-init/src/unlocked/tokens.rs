//! Secrets from the TPM, by the tokens in a header. Each failure says what it is: the next step differs.

use std::{collections::BTreeMap, io::ErrorKind};

use iofs_luks::{OpenError, PrimaryAlg, Tpm2Token};
use iofs_policy::{
    manifest::SrkPublic,
    pcr::{PcrBank, PcrDigest, PcrIndex},
    pcr_signature::{MAX_SIZE, PcrSignatures, SEALED_PATH, STUB_PATH},
};
use iofs_tpm::{
    PinnedSrk, Tpm,
    name::{Name, Public},
    pin::pin_auth,
    policy::PolicyDigest,
    policy_key::PolicyKey,
    sealed::Sealed,
    srk::LegacyParent,
    unlock::{Parent, SignedPolicy, UnsealError, UnsealPolicy, UnsealRequest, unseal},
};
use zeroize::Zeroizing;

use crate::{boot::Boot, measured::Wire, report::text, system::System};

/// Tokens that do not say another one.
const DEFAULT_BANK: PcrBank = PcrBank::Sha256;

/// Why a token did not open its keyslot.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// There is no TPM, or it is left alone, or nothing could be measured into it.
    #[error("no TPM that this boot was measured into")]
    NoTpm,
    /// It is of a kind that is not built.
    #[error("{0}: not supported")]
    Unsupported(&'static str),
    /// Its policy is signed, and this boot has no signatures.
    #[error("its policy is signed: expected signatures in {STUB_PATH} or {SEALED_PATH}, found neither")]
    NoSignatures,
    /// It holds what no token should.
    #[error("the token is broken: {0}")]
    Broken(String),
    /// It is for another TPM than the sealed one.
    #[error(
        "enrolled for another TPM: expected the storage root key that is sealed in the manifest, found another in the token"
    )]
    OtherTpm,
    /// The TPM did not give the secret.
    #[error("{error}{detail}")]
    Unseal {
        /// Why.
        error: Box<UnsealError>,
        /// What the registers hold.
        detail: String,
    },
    /// It leads to no keyslot.
    #[error("the token names no keyslot")]
    NoKeyslot,
    /// What the TPM gave opens nothing.
    #[error("what the TPM gave does not open it: {0}")]
    Keyslot(OpenError),
}

impl TokenError {
    /// Whether another PIN may be the right one.
    pub(super) fn is_wrong_pin(&self) -> bool {
        matches!(self, Self::Unseal { error, .. } if matches!(**error, UnsealError::WrongAuth { .. }))
    }

    /// What to do about it, where that differs from what can always be done.
    pub(super) fn next(&self) -> Option<&'static str> {
        let error = match self {
            Self::Unseal { error, .. } => error,
            Self::OtherTpm => return Some(OTHER_TPM),
            Self::NoSignatures => return Some(NO_SIGNATURE),
            _ => return None,
        };
        match **error {
            UnsealError::RegistersChanged { .. } | UnsealError::Changing { .. } => Some(
                "boot the release that the volume was enrolled for; or open it with its recovery key, and enrol it for \
                 this release with iofs-sign enroll",
            ),
            UnsealError::Lockout => Some(
                "wait until the TPM forgets the wrong attempts, or reset its lockout from another system \
                 (tpm2_dictionarylockout --clear-lockout); meanwhile the recovery key opens the volume",
            ),
            UnsealError::NoSignature { .. } | UnsealError::BadSignature { .. } => Some(NO_SIGNATURE),
            UnsealError::NoRollbackIndex { .. } => Some(
                "boot a release whose signatures have its rollback index: 'iofs-sign seal --pcr-key' makes such, and 'policy sign' \
                 with --rollback-index",
            ),
            UnsealError::OtherRollbackIndex { first, found, .. } if found > first => Some(
                "open the volume with its recovery key, and enrol it again with iofs-sign enroll --rollback-counter, for the \
                 next 64 rollback indexes",
            ),
            UnsealError::Superseded { .. } | UnsealError::OtherRollbackIndex { .. } => Some(
                "boot the release that was confirmed last, or a newer one; this one is refused for good. The volume's recovery \
                 key opens it",
            ),
            UnsealError::NoCounter { .. } => Some(
                "open the volume with its recovery key, and enrol it again with iofs-sign enroll --rollback-counter",
            ),
            UnsealError::Srk(_) | UnsealError::Broken { .. } => Some(OTHER_TPM),
            _ => None,
        }
    }
}

const NO_SIGNATURE: &str = "install the release's tpm2-pcr-signature.json with it, or boot a release that has one";
const OTHER_TPM: &str = "attach the disk to the machine that it was enrolled on; after a cleared or replaced TPM, open it with \
                         its recovery key, and enrol it again with iofs-sign enroll";

/// What the TPM keeps for this token. From then on every measurement must succeed.
pub(super) fn secret<S: System>(
    boot: &mut Boot<'_, S>,
    sealed_srk: Option<&SrkPublic>,
    token: &Tpm2Token,
    pin: Option<&[u8]>,
) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    if boot.measuring.is_none() {
        return Err(TokenError::NoTpm);
    }
    if token.pcrlock {
        return Err(TokenError::Unsupported("a policy of systemd-pcrlock"));
    }
    let srk = pinned(sealed_srk, token)?;
    let signed =
        token.signed.as_ref().map(|signed| PolicyKey::from_pem(&signed.public_key_pem).map_err(|e| broken(&e)));
    let key = signed.transpose()?;
    let signatures = if key.is_some() { signatures(boot)? } else { PcrSignatures::default() };
    let bank = token.bank.unwrap_or(DEFAULT_BANK);
    let auth = pin.map(|pin| pin_auth(pin, token.salt.as_deref()));
    let policy = UnsealPolicy {
        signed: key.as_ref().zip(token.signed.as_ref()).map(|(key, signed)| SignedPolicy {
            bank,
            registers: signed.pcrs.clone(),
            key,
            signatures: &signatures,
        }),
        registers: token.pcrs.iter().map(|index| (bank, *index)).collect(),
        rollback: token.rollback,
        auth_value: auth.as_ref().map(|auth| &auth[..]),
    };
    let kind = match token.primary_alg {
        PrimaryAlg::Ecc => LegacyParent::Ecc,
        PrimaryAlg::Rsa => LegacyParent::Rsa,
    };
    let parent = match (&token.srk, &srk) {
        (Some(srk), Some(pin)) => Parent::Pinned { handle: srk.handle, pin },
        (_, salt) => Parent::Legacy { kind, salt: salt.as_ref() },
    };
    let mut secret = Zeroizing::new(Vec::new());
    for blob in &token.blobs {
        let sealed = Sealed::parse(blob).map_err(|error| broken(&error))?;
        let request = UnsealRequest { parent, sealed: &sealed, persistent: token.persistent, policy: policy.clone() };
        let part = unseal(&mut Tpm::new(Wire(boot.system)), &request);
        let part =
            part.map_err(|error| TokenError::Unseal { detail: detail(boot, token, &error), error: Box::new(error) })?;
        // With all its room at once: one that grows leaves copies behind.
        let mut longer = Zeroizing::new(Vec::with_capacity(secret.len() + part.len()));
        longer.extend_from_slice(&secret);
        longer.extend_from_slice(&part);
        secret = longer;
    }
    if let Some(measuring) = &mut boot.measuring {
        measuring.hold();
    }
    Ok(secret)
}

fn broken(error: &dyn std::fmt::Display) -> TokenError {
    TokenError::Broken(error.to_string())
}

/// The key that the session is salted to. Where the manifest pins one, the token's must be that one.
fn pinned(sealed: Option<&SrkPublic>, token: &Tpm2Token) -> Result<Option<PinnedSrk>, TokenError> {
    let of_token = token.srk.as_ref().map(|srk| srk.public.as_slice());
    let public = match (sealed.map(SrkPublic::as_bytes), of_token) {
        (Some(sealed), Some(of_token)) if sealed != of_token => return Err(TokenError::OtherTpm),
        (sealed, of_token) => of_token.or(sealed),
    };
    let Some(public) = public else { return Ok(None) };
    let public = Public::parse_sized(public).map_err(|error| broken(&error))?;
    PinnedSrk::new(public).map(Some).map_err(|error| broken(&error))
}

/// The signatures that came with the kernel image, and those that were sealed into the initramfs. Where both have one for
/// the same values, the sealed one counts: it was measured, and the other was not.
fn signatures<S: System>(boot: &mut Boot<'_, S>) -> Result<PcrSignatures, TokenError> {
    let (mut all, mut found) = (PcrSignatures::default(), false);
    for path in [STUB_PATH, SEALED_PATH] {
        match boot.system.read(path, MAX_SIZE) {
            Ok(bytes) => {
                let read = PcrSignatures::parse(&bytes);
                all.merge(read.map_err(|error| TokenError::Broken(format!("{path}: {error}")))?);
                found = true;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(TokenError::Broken(format!("{path}: {}", text(&error)))),
        }
    }
    found.then_some(all).ok_or(TokenError::NoSignatures)
}

/// What the registers of a policy hold, and what this boot added to each.
fn detail<S: System>(boot: &Boot<'_, S>, token: &Tpm2Token, error: &UnsealError) -> String {
    let (UnsealError::RegistersChanged { current: Some(current), .. }
    | UnsealError::NoSignature { current: Some(current), .. }) = error
    else {
        return String::new();
    };
    let enrolled = enrolled_values(token);
    let each: Vec<String> = current
        .iter()
        .map(|(index, value)| {
            let added = boot.measuring.as_ref().map(|measuring| measuring.added(index)).unwrap_or_default();
            let added = if added.is_empty() { "nothing of this boot".to_owned() } else { added };
            let judged = match enrolled.get(&(value.bank(), index)) {
                None => String::new(),
                Some(enrolled) if *enrolled == value => ", as enrolled".to_owned(),
                Some(enrolled) => format!(", DIFFERS from {enrolled}, as enrolled"),
            };
            format!("register {index} holds {value} ({added}){judged}")
        })
        .collect();
    format!("; now {}", each.join(", "))
}

/// What the registers were to hold, as the token says: believed where its policy's digest follows from that.
fn enrolled_values(token: &Tpm2Token) -> BTreeMap<(PcrBank, PcrIndex), PcrDigest> {
    let bank = token.bank.unwrap_or(DEFAULT_BANK);
    let values = token.pcrs.iter().zip(&token.pcr_values);
    let values: BTreeMap<_, _> =
        values.filter_map(|(index, value)| Some(((bank, *index), PcrDigest::new(bank, value).ok()?))).collect();
    let key = token.signed.as_ref().map(|signed| PolicyKey::from_pem(&signed.public_key_pem));
    let names = match key {
        None => vec![None],
        Some(key) => key.map(|key| key.names()).unwrap_or_default().into_iter().map(Some).collect(),
    };
    let policy = |name: &Option<Name>| PolicyDigest::whole(name.as_ref(), &values, token.rollback, token.pin);
    let policies: Vec<PolicyDigest> = names.iter().map(policy).collect();
    let complete = values.len() == token.pcrs.len() && token.pcr_values.len() == token.pcrs.len();
    let follows = |hash: &Vec<u8>| policies.iter().any(|policy| hash.as_slice() == policy.as_bytes());
    if complete && token.policy_hashes.iter().all(follows) { values } else { BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use iofs_luks::Token;
    use nix::errno::Errno;

    use super::*;
    use crate::fake::Fake;

    /// One signature for a policy that consists of this byte.
    fn signed(policy: u8, signature: &str) -> String {
        let (key, policy) = ("11".repeat(32), format!("{policy:02x}").repeat(32));
        format!(r#"{{"sha256":[{{"pcrs":[11],"pkfp":"{key}","pol":"{policy}","sig":"{signature}"}}]}}"#)
    }

    fn read(files: &[(&str, &str)]) -> Result<Vec<(u8, u8)>, String> {
        let mut machine = Fake::empty();
        files.iter().for_each(|(path, text)| machine.put(path, text.as_bytes()));
        let read = signatures(&mut Boot::new(&mut machine)).map_err(|error| error.to_string())?;
        Ok(read.iter().map(|(_, one)| (one.policy.as_bytes()[0], one.signature[0])).collect())
    }

    #[test]
    fn signatures_of_the_kernel_image_and_sealed_ones_count_together() {
        let (stub, sealed) = (signed(1, "AQ=="), signed(2, "Ag=="));
        assert_eq!(read(&[(STUB_PATH, &stub)]), Ok(vec![(1, 1)]));
        assert_eq!(read(&[(SEALED_PATH, &sealed)]), Ok(vec![(2, 2)]));
        assert_eq!(read(&[(STUB_PATH, &stub), (SEALED_PATH, &sealed)]), Ok(vec![(1, 1), (2, 2)]));
        let (stub, sealed) = (signed(1, "AQ=="), signed(1, "Ag=="));
        assert_eq!(read(&[(STUB_PATH, &stub), (SEALED_PATH, &sealed)]), Ok(vec![(1, 2)]), "the measured one");
    }

    #[test]
    fn signatures_that_are_broken_or_absent_are_named() {
        let good = signed(1, "AQ==");
        for (path, other) in [(STUB_PATH, SEALED_PATH), (SEALED_PATH, STUB_PATH)] {
            for broken in
                ["", "{", "[]", r#"{"sha256":[{}]}"#, &"[".repeat(2000), &signed(1, "A"), &" ".repeat(MAX_SIZE + 1)]
            {
                let told = read(&[(path, broken), (other, &good)]).unwrap_err();
                assert!(told.starts_with(&format!("the token is broken: {path}: ")), "{told}");
            }
        }
        let told = read(&[]).unwrap_err();
        assert!(
            told.starts_with(&format!(
                "its policy is signed: expected signatures in {STUB_PATH} or {SEALED_PATH}, found neither"
            )),
            "{told}"
        );

        let mut machine = Fake::empty();
        machine.put(SEALED_PATH, good.as_bytes());
        machine.broken.push(("read /.extra", Errno::EIO));
        let told = signatures(&mut Boot::new(&mut machine)).unwrap_err().to_string();
        assert!(told.contains(STUB_PATH), "{told}");
    }

    fn token(values: &[PcrDigest], policy: PolicyDigest) -> Tpm2Token {
        let hexadecimal = |bytes: &[u8]| format!("\"{}\"", iofs_policy::hex::encode(bytes));
        let values: Vec<String> = values.iter().map(|value| hexadecimal(value.as_bytes())).collect();
        let text = format!(
            r#"{{"type":"systemd-tpm2","keyslots":["1"],"tpm2-blob":"AAAA","tpm2-pcrs":[11,13],"tpm2-policy-hash":{},
            "iofs-pcr-values":[{}]}}"#,
            hexadecimal(policy.as_bytes()),
            values.join(",")
        );
        match Token::parse(&text) {
            Token::SystemdTpm2(token) => *token,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_of_enrolment_are_believed_where_the_policy_follows_from_them() {
        let values = [b"one".as_slice(), b"two"].map(|text| PcrDigest::of(PcrBank::Sha256, &[text]));
        let registers = [11, 13].map(|index| (PcrBank::Sha256, PcrIndex::new(index).unwrap()));
        let known: BTreeMap<_, _> = registers.into_iter().zip(values).collect();
        let policy = PolicyDigest::ZERO.registers(&known);
        assert_eq!(enrolled_values(&token(&values, policy)), known);
        let swapped = [values[1], values[0]];
        for (values, policy) in
            [(&swapped[..], policy), (&values[..1], policy), (&[], policy), (&values, policy.auth_value())]
        {
            assert!(enrolled_values(&token(values, policy)).is_empty());
        }
    }
}
