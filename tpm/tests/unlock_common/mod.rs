//! Requests to unseal, and what swtpm's log says of how many commands they took.
#![allow(dead_code)]

use std::{collections::BTreeSet, net::SocketAddr, process::Command, time::Duration};

use iofs_policy::{
    digest::Sha256Digest,
    manifest::RollbackIndex,
    pcr::{PcrBank, PcrIndex},
    pcr_signature::{PcrSignature, RollbackSignature, policy_ref},
};
use iofs_tpm::{
    Tpm,
    command::CommandCode,
    policy::{PolicyDigest, Registers},
    policy_key::PolicyKey,
    transport::Socket,
    unlock::{UnsealError, UnsealRequest, unseal},
};
use zeroize::Zeroizing;

use crate::host_common::SoftwareTpm;

/// What OpenSSL makes of a policy: its key, and its signature of a digest.
pub(crate) struct Signer<'s>(&'s SoftwareTpm);

impl<'s> Signer<'s> {
    pub(crate) fn new(software: &'s SoftwareTpm, options: &[&str]) -> Self {
        let signer = Self(software);
        signer.openssl(&[&["genpkey", "-out", "key.pem"][..], options].concat());
        signer.openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
        signer
    }

    /// An ECDSA key with a zero in front of a coordinate, which some programs leave out: one of 128 keys is such a one.
    pub(crate) fn with_short_coordinate(software: &'s SoftwareTpm) -> Self {
        (0..10_000)
            .map(|_| Self::new(software, ECDSA))
            .find(|signer| signer.key().names().len() > 1)
            .expect("one of 10,000 keys has a short coordinate")
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(self.0.path("")).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn key(&self) -> PolicyKey {
        PolicyKey::from_pem(&self.0.read("key.pub")).unwrap()
    }

    pub(crate) fn sign(&self, registers: &[u8], policy: &PolicyDigest) -> PcrSignature {
        PcrSignature {
            registers: indices(registers),
            key: self.key().fingerprint(),
            policy: Sha256Digest::from_bytes(*policy.as_bytes()),
            signature: self.sign_bytes(policy.as_bytes()),
            rollback: None,
        }
    }

    /// The same, of a release of this rollback index.
    pub(crate) fn sign_for(&self, index: u64, registers: &[u8], policy: &PolicyDigest) -> PcrSignature {
        let index = RollbackIndex(index);
        let signature = self.sign_bytes(&[&policy.as_bytes()[..], &policy_ref(index)].concat());
        PcrSignature { rollback: Some(RollbackSignature { index, signature }), ..self.sign(registers, policy) }
    }

    fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.write("to-sign", bytes);
        self.openssl(&["dgst", "-sha256", "-sign", "key.pem", "-out", "signature", "to-sign"]);
        self.0.read("signature")
    }
}

pub(crate) const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
pub(crate) const ECDSA: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

pub(crate) fn lean(software: &SoftwareTpm) -> Tpm<Socket> {
    let address = SocketAddr::from(([127, 0, 0, 1], software.port()));
    Tpm::new(Socket::tcp(address, Duration::from_secs(60)).unwrap())
}

pub(crate) fn index(number: u8) -> PcrIndex {
    PcrIndex::new(number).unwrap()
}

pub(crate) fn indices(numbers: &[u8]) -> BTreeSet<PcrIndex> {
    numbers.iter().map(|number| index(*number)).collect()
}

/// Registers of the SHA-256 bank.
pub(crate) fn sha256(numbers: &[u8]) -> Registers {
    numbers.iter().map(|number| (PcrBank::Sha256, index(*number))).collect()
}

/// Unseals, and says which commands that took: by swtpm's log, not by what the client believes. Nothing is left behind.
pub(crate) fn counted(
    software: &SoftwareTpm,
    request: &UnsealRequest<'_>,
) -> (Result<Zeroizing<Vec<u8>>, UnsealError>, Vec<u32>) {
    let position = software.log_position();
    let result = unseal(&mut lean(software), request);
    let commands = software.commands_since(position);
    assert_eq!(software.leftovers(), "");
    (result, commands)
}

pub(crate) fn codes(commands: &[CommandCode]) -> Vec<u32> {
    commands.iter().map(|command| command.value()).collect()
}
