//! A machine made of software: registers, logs, and a key that signs what a TPM would, or what an attacker wants.

use std::collections::BTreeMap;

use ed25519_dalek::Signer;
use iofs_attest::{
    base64_bytes::Base64Bytes,
    enrolment::{Device, ENROLMENT_VERSION},
    evidence::{EVIDENCE_VERSION, Evidence},
    policy_file::{DEFAULT_PCRS, Policy},
    verify::{Attested, Reference, Refusal, Verification, verify},
};
use iofs_policy::{
    digest::Sha256Digest,
    dsse::{Envelope, PayloadType},
    hex,
    measurement::Measurement,
    measurement_log::{Content, LoggedDigest, Record},
    pcr::{PcrBank, PcrDigest, extend},
    release::Release,
    trust::{TrustedKey, TrustedKeys},
};
use p256::ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner};

pub(crate) const NONCE: &[u8] = b"a nonce of 32 bytes, never twice";
pub(crate) const LINE: &str = "quiet panic=-1";
pub(crate) const SHA256: &[PcrBank] = &[PcrBank::Sha256];
pub(crate) const BOTH: &[PcrBank] = &[PcrBank::Sha1, PcrBank::Sha256];

/// Event types of firmware.
pub(crate) const NO_ACTION: u32 = 3;
pub(crate) const SEPARATOR: u32 = 4;
pub(crate) const EVENT_TAG: u32 = 6;
pub(crate) const IPL: u32 = 0x0d;
pub(crate) const APPLICATION: u32 = 0x8000_0003;
pub(crate) const EFI_ACTION: u32 = 0x8000_0007;

/// Attributes of an attestation key: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
pub(crate) const AK_ATTRIBUTES: u32 = 0x0005_0072;

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A TPM2B_PUBLIC of a P-256 key that signs by ECDSA with SHA-256.
pub(crate) fn public(key: &SigningKey, attributes: u32) -> Vec<u8> {
    let point = key.verifying_key().to_sec1_point(false);
    let mut area = b"\x00\x23\x00\x0b".to_vec();
    area.extend(attributes.to_be_bytes());
    // No policy; symmetric: null; scheme: ECDSA with SHA-256; curve: P-256; key derivation: null.
    area.extend(b"\x00\x00\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x10");
    area.extend(sized(point.x().unwrap()));
    area.extend(sized(point.y().unwrap()));
    sized(&area)
}

/// A release whose statement was signed and verified.
pub(crate) fn reference(version: &str, change: impl FnOnce(&mut Release)) -> Reference {
    let sealed = include_bytes!("../../../fuzz/corpus/release/sealed.json");
    let mut release = Release::from_json(sealed).unwrap();
    release.image.id = "org.example.gateway".to_owned().try_into().unwrap();
    release.image.version = version.to_owned().try_into().unwrap();
    release.manifest_digest = Sha256Digest::of(version.as_bytes());
    release.command_lines = vec![LINE.to_owned()];
    change(&mut release);
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let trusted = TrustedKey::from_bytes(key.verifying_key().as_bytes()).unwrap();
    let mut envelope = Envelope::unsigned(PayloadType::Release, release.to_json());
    envelope.add(trusted.id(), &key.sign(&envelope.signed_bytes()).to_bytes()).unwrap();
    let verified = TrustedKeys::new(vec![trusted], 1).unwrap().verify(&envelope).unwrap();
    Reference::new(&verified).unwrap()
}

/// What a TPM would say, each part of which an attacker may want otherwise.
#[derive(Clone)]
pub(crate) struct Quoted {
    pub(crate) magic: u32,
    pub(crate) kind: u16,
    pub(crate) nonce: Vec<u8>,
    pub(crate) clock: u64,
    pub(crate) resets: u32,
    pub(crate) restarts: u32,
    pub(crate) safe: u8,
    pub(crate) selection: Vec<(u16, Vec<u8>)>,
    pub(crate) trailing: Vec<u8>,
}

impl Quoted {
    pub(crate) fn new(banks: &[PcrBank]) -> Self {
        Self {
            magic: 0xff54_4347,
            kind: 0x8018,
            nonce: NONCE.to_vec(),
            clock: 1000,
            resets: 5,
            restarts: 0,
            safe: 1,
            selection: banks.iter().map(|bank| (bank.algorithm_id(), DEFAULT_PCRS.to_vec())).collect(),
            trailing: Vec::new(),
        }
    }

    fn attest(&self, pcr_digest: &[u8]) -> Vec<u8> {
        let mut bytes = self.magic.to_be_bytes().to_vec();
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(sized(&[&b"\x00\x0b"[..], &[9; 32]].concat()));
        bytes.extend(sized(&self.nonce));
        bytes.extend(self.clock.to_be_bytes());
        bytes.extend(self.resets.to_be_bytes());
        bytes.extend(self.restarts.to_be_bytes());
        bytes.push(self.safe);
        bytes.extend(0x2019_1023_u64.to_be_bytes());
        bytes.extend((self.selection.len() as u32).to_be_bytes());
        for (algorithm, pcrs) in &self.selection {
            let bits = pcrs.iter().fold(0_u32, |bits, pcr| bits | 1 << pcr);
            bytes.extend(algorithm.to_be_bytes());
            bytes.push(3);
            bytes.extend(&bits.to_le_bytes()[..3]);
        }
        bytes.extend(sized(pcr_digest));
        bytes.extend(&self.trailing);
        bytes
    }
}

/// A machine's registers and logs.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) banks: Vec<PcrBank>,
    pub(crate) values: BTreeMap<(PcrBank, u8), PcrDigest>,
    pub(crate) firmware: Vec<u8>,
    pub(crate) records: Vec<Record>,
}

impl Machine {
    pub(crate) fn new(banks: &[PcrBank]) -> Self {
        let registers = banks.iter().flat_map(|bank| (0..24).map(|pcr| ((*bank, pcr), PcrDigest::zero(*bank))));
        let values = registers.collect();
        Self { banks: banks.to_vec(), values, firmware: firmware_header(banks), records: Vec::new() }
    }

    /// A machine that booted a release: some firmware, then the four steps.
    pub(crate) fn booted(banks: &[PcrBank], reference: &Reference) -> Self {
        let mut machine = Self::new(banks);
        for pcr in 0..8 {
            machine.firmware(pcr, SEPARATOR, &[0; 4], &[0; 4]);
        }
        machine.firmware(5, EFI_ACTION, b"Exit Boot Services Invocation", b"Exit Boot Services Invocation");
        machine.boot(reference, LINE);
        machine
    }

    pub(crate) fn boot(&mut self, reference: &Reference, line: &str) {
        for measurement in reference.release().measurements(line) {
            self.measure(&measurement);
        }
    }

    pub(crate) fn measure(&mut self, measurement: &Measurement<'_>) {
        let digests: Vec<PcrDigest> = self.banks.iter().map(|bank| measurement.digest(*bank)).collect();
        digests.iter().for_each(|digest| self.extend(measurement.pcr().get(), digest));
        self.records.push(Record::new(measurement, &digests, Some("0".repeat(32)), 7));
    }

    /// What systemd, or anybody else, measures.
    pub(crate) fn measure_text(&mut self, pcr: u8, text: &str) {
        let digests: Vec<PcrDigest> = self.banks.iter().map(|bank| PcrDigest::of(*bank, &[text.as_bytes()])).collect();
        digests.iter().for_each(|digest| self.extend(pcr, digest));
        let logged = |digest: &PcrDigest| LoggedDigest {
            algorithm: digest.bank().name().to_owned(),
            digest: hex::encode(digest.as_bytes()),
        };
        let content = Content { string: Some(text.to_owned()), ..Content::default() };
        let digests = digests.iter().map(logged).collect();
        self.records.push(Record { pcr, digests, content_type: "systemd".to_owned(), content });
    }

    pub(crate) fn extend(&mut self, pcr: u8, digest: &PcrDigest) {
        let value = self.values.get_mut(&(digest.bank(), pcr)).unwrap();
        *value = extend(value, digest).unwrap();
    }

    /// Firmware measures something, and notes it.
    pub(crate) fn firmware(&mut self, pcr: u8, kind: u32, measured: &[u8], data: &[u8]) {
        let digests: Vec<PcrDigest> = self.banks.iter().map(|bank| PcrDigest::of(*bank, &[measured])).collect();
        digests.iter().for_each(|digest| self.extend(pcr, digest));
        self.firmware.extend(firmware_event(pcr.into(), kind, &digests, data));
    }

    /// A SHA-256 digest that firmware measures, such as a file's. Other banks get another.
    pub(crate) fn firmware_digest(&mut self, pcr: u8, kind: u32, digest: Sha256Digest, data: &[u8]) {
        let measured = |bank: &PcrBank| match bank {
            PcrBank::Sha256 => PcrDigest::new(*bank, digest.as_bytes()).unwrap(),
            other => PcrDigest::of(*other, &[b"a file"]),
        };
        let digests: Vec<PcrDigest> = self.banks.iter().map(measured).collect();
        digests.iter().for_each(|digest| self.extend(pcr, digest));
        self.firmware.extend(firmware_event(pcr.into(), kind, &digests, data));
    }

    pub(crate) fn log(&self) -> Vec<u8> {
        self.records.iter().flat_map(Record::to_bytes).collect()
    }

    /// The evidence of a quote of these registers.
    pub(crate) fn evidence(&self, quoted: &Quoted) -> Evidence {
        self.evidence_by(quoted, &key(1))
    }

    pub(crate) fn evidence_by(&self, quoted: &Quoted, key: &SigningKey) -> Evidence {
        let mut parts = Vec::new();
        for (algorithm, pcrs) in &quoted.selection {
            let Some(bank) = PcrBank::from_algorithm_id(*algorithm) else { continue };
            let mut pcrs = pcrs.clone();
            pcrs.sort_unstable();
            parts.extend(pcrs.iter().filter_map(|pcr| self.values.get(&(bank, *pcr))).map(PcrDigest::as_bytes));
        }
        let attest = quoted.attest(PcrDigest::of(PcrBank::Sha256, &parts).as_bytes());
        let signature: Signature = key.sign_prehash(PcrDigest::of(PcrBank::Sha256, &[&attest]).as_bytes()).unwrap();
        let (r, s) = signature.split_bytes();
        Evidence {
            evidence_version: EVIDENCE_VERSION,
            quote: Base64Bytes(attest),
            signature: Base64Bytes([&b"\x00\x18\x00\x0b"[..], &sized(&r), &sized(&s)].concat()),
            ak_public: Base64Bytes(public(key, AK_ATTRIBUTES)),
            pcrs: BTreeMap::new(),
            firmware_log: Some(Base64Bytes(self.firmware.clone())),
            measurement_log: Some(Base64Bytes(self.log())),
            measurement_log_torn: false,
        }
    }

    /// The registers as they are read beside a quote.
    pub(crate) fn registers(&self) -> BTreeMap<String, BTreeMap<u8, String>> {
        let mut banks = BTreeMap::<String, BTreeMap<u8, String>>::new();
        for ((bank, pcr), value) in &self.values {
            banks.entry(bank.name().to_owned()).or_default().insert(*pcr, hex::encode(value.as_bytes()));
        }
        banks
    }
}

pub(crate) fn firmware_header(banks: &[PcrBank]) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\x00\x02".to_vec();
    spec.extend((banks.len() as u32).to_le_bytes());
    for bank in banks {
        spec.extend(bank.algorithm_id().to_le_bytes());
        spec.extend((bank.digest_size() as u16).to_le_bytes());
    }
    spec.push(0);
    let mut header = [0_u32.to_le_bytes(), NO_ACTION.to_le_bytes()].concat();
    header.extend([0; 20]);
    header.extend((spec.len() as u32).to_le_bytes());
    header.extend(spec);
    header
}

pub(crate) fn firmware_event(pcr: u32, kind: u32, digests: &[PcrDigest], data: &[u8]) -> Vec<u8> {
    let mut event = [pcr.to_le_bytes(), kind.to_le_bytes(), (digests.len() as u32).to_le_bytes()].concat();
    for digest in digests {
        event.extend(digest.bank().algorithm_id().to_le_bytes());
        event.extend(digest.as_bytes());
    }
    event.extend((data.len() as u32).to_le_bytes());
    event.extend(data);
    event
}

/// TCG_PCClientTaggedEvent, as Linux' EFI stub writes it.
pub(crate) fn tagged(text: &str) -> Vec<u8> {
    let data = [text.as_bytes(), &[0]].concat();
    [&0x8f3b_22ec_u32.to_le_bytes()[..], &(data.len() as u32).to_le_bytes(), &data].concat()
}

pub(crate) fn device(banks: &[PcrBank]) -> Device {
    Device {
        enrolment_version: ENROLMENT_VERSION,
        name: "gateway-1".to_owned(),
        ak_public: Base64Bytes(public(&key(1), AK_ATTRIBUTES)),
        ek_public: Base64Bytes(Vec::new()),
        ek_root: None,
        banks: banks.iter().map(|bank| bank.name().to_owned()).collect(),
        last_seen: None,
    }
}

/// One verifier's view.
pub(crate) struct Verifier {
    pub(crate) device: Device,
    pub(crate) nonce: Vec<u8>,
    pub(crate) references: Vec<Reference>,
    pub(crate) policy: Policy,
}

impl Verifier {
    pub(crate) fn new(banks: &[PcrBank], references: Vec<Reference>) -> Self {
        Self { device: device(banks), nonce: NONCE.to_vec(), references, policy: Policy::default() }
    }

    pub(crate) fn policy(mut self, toml: &str) -> Self {
        self.policy = Policy::parse(toml.as_bytes()).unwrap();
        self
    }

    pub(crate) fn request(&self) -> Verification<'_> {
        let Self { device, nonce, references, policy } = self;
        Verification { device, nonce, references, policy }
    }

    pub(crate) fn verify(&self, evidence: &Evidence) -> Result<Attested, Refusal> {
        verify(&self.request(), evidence)
    }

    #[track_caller]
    pub(crate) fn refuses(&self, evidence: &Evidence, expected: &str) {
        let refusal = self.verify(evidence).expect_err("it was attested");
        assert_eq!(refusal.to_string(), expected);
        assert!(!refusal.next_step().is_empty() && !refusal.reason().is_empty());
    }
}
