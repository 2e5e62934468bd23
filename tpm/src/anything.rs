//! Bytes of anybody, given to everything that reads what a TPM sends.

use std::collections::BTreeSet;

use iofs_policy::pcr::{PcrBank, PcrIndex};

use crate::{
    command::Tag,
    name::{NvPublic, Public},
    nv, pcr,
    policy_key::PolicyKey,
    protected,
    response::{Outer, Response},
    sealed::Sealed,
    session::{self, SessionKind},
    srk, unlock,
};

/// For fuzzing: reads these bytes as each response, and as the parameters of each, as if their authorizations had been
/// right. No bytes make it panic. Whether anything found them well-formed.
#[doc(hidden)]
#[must_use]
pub fn read_as_anything(bytes: &[u8]) -> bool {
    let outer = [Tag::NoSessions, Tag::Sessions].map(|tag| {
        let session = session::read_as_response(bytes, tag == Tag::Sessions);
        session | Response::parse(bytes, tag).is_ok() | Outer::parse(bytes, tag).is_ok()
    });
    outer.contains(&true) | read_as_parameters(bytes) | read_as_area(bytes)
}

fn read_as_parameters(bytes: &[u8]) -> bool {
    let wanted: BTreeSet<_> = PcrIndex::all().map(|index| (PcrBank::Sha256, index)).collect();
    let kinds = [SessionKind::Hmac, SessionKind::Policy];
    pcr::parse_banks(bytes).is_ok()
        | pcr::parse_values(bytes, &wanted).is_ok()
        | pcr::event_digests(bytes).is_ok()
        | srk::public_area(bytes).is_ok()
        | srk::created(bytes).is_ok()
        | nv::nv_public_area(bytes, 0x0150_0000).is_ok()
        | protected::sized_secret(bytes, "anything").is_ok()
        | unlock::is_ticket(bytes).is_ok()
        | kinds.iter().any(|kind| session::started(*kind, 0x0200_0000, bytes).is_ok())
}

fn read_as_area(bytes: &[u8]) -> bool {
    let pinned = Public::parse(bytes).map(srk::PinnedSrk::new);
    let key = PolicyKey::from_der(bytes).is_ok();
    matches!(pinned, Ok(Ok(_))) | pinned.is_ok() | key | NvPublic::parse(bytes).is_ok() | Sealed::parse(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_at_all_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = read_as_anything(&bytes);
        }

        #[test]
        fn small_numbers_are_read_or_refused(bytes in prop::collection::vec(0_u8..4, 0..64)) {
            let _ = read_as_anything(&bytes);
        }
    }

    #[test]
    fn what_is_right_is_found_right() {
        assert!(read_as_anything(&[0, 1, 7]), "a TPM2B");
        assert!(!read_as_anything(&[0, 2, 7]));
    }
}
