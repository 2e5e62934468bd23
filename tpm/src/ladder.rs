//! The rollback counter in a signed policy.
//!
//! Whoever signs register values signs them for all machines, and the counter of each starts somewhere else. So the key signs a
//! rollback index together with the values (`policyRef` of TPM2_PolicyAuthorize), and a sealed object of one machine says
//! up to which value of its counter each index opens it: TPM2_PolicyNV, with TPM2_PolicyOR over as many indexes as two steps of it
//! hold. One enrolment lasts for that many; older ones than the first have no rung at all.

use iofs_policy::{
    manifest::{RollbackIndex, RollbackRule},
    pcr_signature::policy_ref,
};

use crate::{
    client::{CommandError, Tpm},
    command::{Command, CommandCode},
    name::Name,
    policy::PolicyDigest,
    rollback::{CounterLimit, policy_counter},
    session::ended,
    transport::Transport,
};

/// As many policies as TPM2_PolicyOR takes (Part 2, section 10.9.3).
const GROUP: usize = 8;
/// How many rollback indexes one enrolment is for.
pub const RUNGS: usize = GROUP * GROUP;

/// The rollback indexes of an object whose policy is signed: from that of the rule on, each with its value of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder(RollbackRule);

impl Ladder {
    /// The ladder whose lowest rung is what this rule says.
    pub const fn new(rule: RollbackRule) -> Self {
        Self(rule)
    }

    /// The lowest and the highest index that there is a rung for.
    pub fn indexes(&self) -> (RollbackIndex, RollbackIndex) {
        (self.0.index, RollbackIndex(self.0.index.0.saturating_add(RUNGS as u64 - 1)))
    }

    /// Up to which value of the counter a release of this index opens the object. `None` where there is no rung for it.
    pub fn limit(&self, index: RollbackIndex) -> Option<CounterLimit> {
        self.rung(index).map(|rung| self.limit_of(rung))
    }

    /// The policy's digest, for a key of that Name.
    pub fn policy(&self, key: &Name) -> PolicyDigest {
        PolicyDigest::any_of(&self.groups(key))
    }

    fn rung(&self, index: RollbackIndex) -> Option<usize> {
        let rung = usize::try_from(index.0.checked_sub(self.0.index.0)?).ok()?;
        (rung < RUNGS).then_some(rung)
    }

    /// Nothing is lost where this saturates: no counter gets that far.
    fn limit_of(&self, rung: usize) -> CounterLimit {
        CounterLimit { index: self.0.counter, value: self.0.value.saturating_add(rung as u64) }
    }

    fn digest_of(&self, key: &Name, rung: usize) -> PolicyDigest {
        let index = RollbackIndex(self.0.index.0.saturating_add(rung as u64));
        PolicyDigest::authorized_for(key, &policy_ref(index)).counter(self.limit_of(rung))
    }

    /// One group of rungs after the other.
    fn group(&self, key: &Name, number: usize) -> [PolicyDigest; GROUP] {
        std::array::from_fn(|rung| self.digest_of(key, number * GROUP + rung))
    }

    fn groups(&self, key: &Name) -> [PolicyDigest; GROUP] {
        std::array::from_fn(|number| PolicyDigest::any_of(&self.group(key, number)))
    }

    /// From TPM2_PolicyAuthorize for this index on: the counter is not above its value, and this is one rung of the ladder.
    pub(crate) fn climb<T: Transport>(
        &self,
        tpm: &mut Tpm<T>,
        session: u32,
        key: &Name,
        index: RollbackIndex,
    ) -> Result<(), CommandError> {
        // Without one the lowest: what the key signed does not fit it, and the TPM refuses.
        let rung = self.rung(index).unwrap_or_default();
        policy_counter(tpm, session, self.limit_of(rung))?;
        policy_or(tpm, session, &self.group(key, rung / GROUP))?;
        policy_or(tpm, session, &self.groups(key))
    }
}

/// TPM2_PolicyOR (Part 3, section 23.6): the session's digest is one of these.
fn policy_or<T: Transport>(tpm: &mut Tpm<T>, session: u32, branches: &[PolicyDigest]) -> Result<(), CommandError> {
    let command = Command::new(CommandCode::PolicyOr).handle(session).u32(branches.len() as u32);
    let command = branches.iter().fold(command, |command, branch| command.sized(branch.as_bytes()));
    ended(command.code(), &tpm.run(&command)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RollbackRule = RollbackRule { counter: 0x0180_494f, value: 7, index: RollbackIndex(20) };

    #[test]
    fn each_index_from_the_lowest_on_has_its_value_of_the_counter() {
        let limit = |index| Ladder::new(RULE).limit(RollbackIndex(index)).map(|limit| limit.value);
        let found = [19, 20, 21, 83, 84, u64::MAX].map(limit);
        assert_eq!(found, [None, Some(7), Some(8), Some(70), None, None]);
        assert_eq!(Ladder::new(RULE).indexes(), (RollbackIndex(20), RollbackIndex(83)));
    }

    #[test]
    fn a_ladder_at_the_end_of_all_numbers_still_has_a_digest() {
        let key = Name::of(b"a public area");
        let high = RollbackRule { value: u64::MAX - 1, index: RollbackIndex(u64::MAX), ..RULE };
        assert_eq!(Ladder::new(high).limit(RollbackIndex(u64::MAX)).map(|limit| limit.value), Some(u64::MAX - 1));
        assert_ne!(Ladder::new(high).policy(&key), Ladder::new(RULE).policy(&key));
    }

    #[test]
    fn no_other_ladder_has_the_same_digest() {
        let key = Name::of(b"a public area");
        let policy = Ladder::new(RULE).policy(&key);
        let others = [
            RollbackRule { counter: RULE.counter + 1, ..RULE },
            RollbackRule { value: RULE.value + 1, ..RULE },
            RollbackRule { index: RollbackIndex(21), ..RULE },
            // The same relation, from another index on.
            RollbackRule { value: RULE.value + 1, index: RollbackIndex(21), ..RULE },
        ];
        assert!(others.into_iter().all(|other| Ladder::new(other).policy(&key) != policy));
        assert_ne!(Ladder::new(RULE).policy(&Name::of(b"another")), policy);
    }
}
