//! Requests to unseal, and what swtpm's log says of how many commands they took.
#![allow(dead_code)]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use iofs_policy::pcr::{PcrBank, PcrIndex};
use iofs_tpm::{
    Tpm,
    command::CommandCode,
    policy::Registers,
    transport::Socket,
    unlock::{UnsealError, UnsealRequest, unseal},
};
use zeroize::Zeroizing;

use crate::host_common::SoftwareTpm;

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
