//! The rollback counter: which limit a key gets, and how far a good boot raises the counter.
//!
//! The counter of each TPM starts somewhere else, and counts up by one for each rollback index. A token says at which value it
//! ends (the limit) and which index that stands for, and so does the rule in a manifest: from one of them follow all others.

use iofs_luks::{Token, Tpm2Token};
use iofs_policy::manifest::{RollbackIndex, RollbackRule};
use iofs_tpm::ladder::Ladder;

use super::volume::Volume;
use crate::report::{ExitStatus, Failure};

/// Every step is a write into the TPM's memory, which bears some hundred thousand of them.
pub const MAX_STEPS: u64 = 256;

/// The tokens that this counter ends, each with what it says of the counter.
fn tokens(volume: &Volume, counter: u32) -> impl Iterator<Item = (&Tpm2Token, RollbackRule)> {
    let tokens = volume.header.tokens().filter_map(|(_, token)| match token {
        Token::SystemdTpm2(token) => Some((&**token, token.rollback?)),
        _ => None,
    });
    tokens.filter(move |(_, rule)| rule.counter == counter)
}

/// What the tokens say of this counter.
pub fn known(volume: &Volume, counter: u32) -> Vec<RollbackRule> {
    tokens(volume, counter).map(|(_, rule)| rule).collect()
}

/// Up to which value of its counter a token opens for a release of this index, if for such a one at all.
fn limit_of(token: &Tpm2Token, rule: RollbackRule, index: RollbackIndex) -> Option<u64> {
    match &token.signed {
        Some(_) => Ladder::new(rule).limit(index).map(|limit| limit.value),
        None => (rule.index == index).then_some(rule.value),
    }
}

/// The limit of a new token, for a release of this index, while the counter has this value.
///
/// Without earlier tokens the release is taken for the oldest that may boot: the limit is what the counter says now.
///
/// # Errors
/// Earlier tokens contradict each other, the release is older than the counter says, or it is too far ahead.
pub fn limit(counter: u32, value: u64, index: RollbackIndex, known: &[RollbackRule]) -> Result<RollbackRule, Failure> {
    let limit = match known {
        [] => Some(value),
        [first, others @ ..] => {
            if others.iter().any(|other| !other.agrees_with(first)) {
                let fact = format!(
                    "rollback counter {counter:#010x}: the volume's tokens disagree on what its values stand for"
                );
                return Err(Failure::new(ExitStatus::BadInput, fact)
                    .next("remove the tokens that are not yours ('--list', '--wipe'), and enrol again"));
            }
            first.value_of(index)
        }
    };
    let limit = limit.filter(|limit| *limit >= value).ok_or_else(|| {
        let fact = format!(
            "rollback index {index}: expected one that the counter {counter:#010x} at {value} still accepts, found an older one"
        );
        Failure::new(ExitStatus::Usage, fact).next(
            "enrol a newer release: the TPM would never open the volume for this one. After the counter was removed, remove the \
             tokens that ended with it first: --wipe tpm2",
        )
    })?;
    steps(counter, value, limit)?;
    Ok(RollbackRule { counter, value: limit, index })
}

/// How often the counter has to be counted up.
///
/// # Errors
/// More often than [`MAX_STEPS`].
pub fn steps(counter: u32, value: u64, limit: u64) -> Result<u64, Failure> {
    let steps = limit.saturating_sub(value);
    if steps > MAX_STEPS {
        let fact =
            format!("rollback counter {counter:#010x}: expected at most {MAX_STEPS} steps at once, found {steps}");
        return Err(Failure::new(ExitStatus::Usage, fact).next(
            "raise the rollback index by one for each release that closes a hole: it is no date and no version",
        ));
    }
    Ok(steps)
}

/// What the counter is to be raised to after a good boot of a release: as far as each volume still has a token for it, and as
/// the rule in its manifest has it.
///
/// # Errors
/// A volume has no token of the counter for that release, or there is neither a volume nor a rule.
pub fn target(
    volumes: &[Volume],
    rule: Option<RollbackRule>,
    counter: u32,
    index: RollbackIndex,
) -> Result<u64, Failure> {
    let of_volume = |volume: &Volume| {
        let limits = tokens(volume, counter).filter_map(|(token, rule)| limit_of(token, rule, index));
        limits.max().ok_or_else(|| {
            let path = volume.path.display();
            let fact = format!("{path}: expected a token of counter {counter:#010x} for rollback index {index}, found none");
            Failure::new(ExitStatus::BadInput, fact).next(
                "enrol the volume for the running release first: 'iofs-sign enroll --rollback-counter' with --release SEALED or \
                 --pcr-policy PUBLIC; raised now, the TPM would never open it again",
            )
        })
    };
    let targets = volumes.iter().map(of_volume).collect::<Result<Vec<_>, _>>()?;
    let of_rule = rule.and_then(|rule| rule.value_of(index));
    targets.into_iter().chain(of_rule).min().ok_or_else(|| {
        let fact = "nothing says how far: expected volumes, or an image with the rule [tpm] rollback, found neither";
        Failure::new(ExitStatus::Usage, fact).next("name all volumes that this machine's TPM opens")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: u32 = 0x0180_494f;

    fn known(value: u64, index: u64) -> RollbackRule {
        RollbackRule { counter: COUNTER, value, index: RollbackIndex(index) }
    }

    #[test]
    fn the_limit_of_a_release_follows_from_any_other() {
        let limit = |value, index, known: &[RollbackRule]| {
            limit(COUNTER, value, RollbackIndex(index), known).map(|limit| (limit.value, limit.index.0))
        };
        assert_eq!(limit(1, 20, &[]).unwrap(), (1, 20), "the first one");
        assert_eq!(limit(1, 22, &[known(1, 20)]).unwrap(), (3, 22));
        assert_eq!(limit(3, 22, &[known(1, 20), known(3, 22)]).unwrap(), (3, 22));
        let told = |result: Result<_, Failure>| result.unwrap_err().fact;
        assert!(told(limit(3, 21, &[known(3, 22)])).contains("found an older one"));
        assert!(told(limit(3, 0, &[known(3, 22)])).contains("found an older one"), "below zero");
        assert!(told(limit(3, 23, &[known(3, 22), known(3, 23)])).contains("disagree"));
        assert!(told(limit(1, 20_260_101, &[known(1, 0)])).contains("at most 256 steps"));
        assert!(
            told(limit(1, 20, &[known(u64::MAX, 0)])).contains("found an older one"),
            "beyond what a counter holds"
        );
    }
}
