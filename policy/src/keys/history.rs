//! The chain of manifests that moved the keys, as it travels with a release.

use std::fmt::Write;

use super::{KeyMoveError, KeyRing, KeySequence};
use crate::{
    dsse::{Envelope, EnvelopeError, PayloadType},
    manifest::Manifest,
    trust::TrustPolicy,
};

/// The largest history that is read, in bytes. A link is 3 KiB.
pub const MAX_HISTORY_SIZE: usize = 128 * 1024;
/// The most links in one. A new mini-initramfs begins anew, at the keys that it is sealed with.
pub const MAX_LINKS: usize = 16;
const VERSION: &str = "iofs-key-history 1";
const FIRST: &str = "first ";

/// Manifests that moved the keys, each in its envelope. As text, each line ended by a newline:
///
/// ```text
/// iofs-key-history 1
/// first 1
/// {"payloadType":"application/vnd.iofs.manifest.v1+json","payload":"…","signatures":[…]}
/// ```
///
/// The second line numbers the envelopes, so that those which a machine has decided on need not be looked into. Nobody signs
/// it: with a wrong number the chain does not hold. Nothing else in it is verified either: [`super::KeyRing::follow`] does that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHistory {
    first: KeySequence,
    links: Vec<Envelope>,
}

/// Why a history was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It is larger than any real one.
    #[error("key history: expected at most {MAX_HISTORY_SIZE} bytes, found {0}")]
    TooLarge(usize),
    /// It is not the text of a history.
    #[error("key history: line {line}: expected {expected}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What would do.
        expected: &'static str,
    },
    /// It has no links, or too many.
    #[error("key history: expected 1 to {MAX_LINKS} key moves, found {0}")]
    Links(usize),
    /// An envelope is malformed.
    #[error("key history: line {line}: {why}")]
    Envelope {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: EnvelopeError,
    },
    /// A link does not go on from the last one.
    #[error("key history: expected key move {expected} next, found {found}")]
    Gap {
        /// The one that would go on.
        expected: KeySequence,
        /// The one that is there.
        found: KeySequence,
    },
}

impl KeyHistory {
    /// A history that begins with this link.
    pub fn beginning(sequence: KeySequence, link: Envelope) -> Self {
        Self { first: sequence, links: vec![link] }
    }

    /// Parses the text.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, HistoryError> {
        if bytes.len() > MAX_HISTORY_SIZE {
            return Err(HistoryError::TooLarge(bytes.len()));
        }
        let wrong = |line, expected| HistoryError::Line { line, expected };
        let text = bytes.strip_suffix(b"\n").ok_or(wrong(1, "text that a newline ends"))?;
        let mut lines = text.split(|byte| *byte == b'\n');
        if lines.next() != Some(VERSION.as_bytes()) {
            return Err(wrong(1, "\"iofs-key-history 1\""));
        }
        let first = lines.next().and_then(first).ok_or(wrong(2, "\"first\" and the first key move's number"))?;
        let lines: Vec<&[u8]> = lines.collect();
        if !(1..=MAX_LINKS).contains(&lines.len()) {
            return Err(HistoryError::Links(lines.len()));
        }
        let link = |(index, line): (usize, &&[u8])| {
            Envelope::parse(line, PayloadType::Manifest).map_err(|why| HistoryError::Envelope { line: index + 3, why })
        };
        Ok(Self { first, links: lines.iter().enumerate().map(link).collect::<Result<_, _>>()? })
    }

    /// The text.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::new();
        let _ = writeln!(text, "{VERSION}\n{FIRST}{}", self.first);
        let mut bytes = text.into_bytes();
        self.links.iter().for_each(|link| bytes.extend(link.to_json()));
        bytes
    }

    /// The links, each with its number, as the second line counts them.
    pub fn numbered(&self) -> impl Iterator<Item = (KeySequence, &Envelope)> {
        (self.first.0..).map(KeySequence).zip(&self.links)
    }

    /// The last link's number.
    pub fn last(&self) -> KeySequence {
        KeySequence(self.first.0.saturating_add(self.links.len() as u64 - 1))
    }

    /// The same up to before that link, and that link. One that is there already is put in its place.
    ///
    /// # Errors
    /// The link is not the next one, or there is no more room.
    pub fn with(&self, sequence: KeySequence, link: Envelope) -> Result<Self, HistoryError> {
        let mut links: Vec<Envelope> =
            self.numbered().take_while(|(number, _)| *number < sequence).map(|(_, link)| link.clone()).collect();
        let expected = KeySequence(self.first.0.saturating_add(links.len() as u64));
        if sequence != expected {
            return Err(HistoryError::Gap { expected, found: sequence });
        }
        links.push(link);
        Self { first: self.first, links }.bounded()
    }

    /// This one, and behind it what another one goes on with.
    ///
    /// # Errors
    /// The other one begins too late, or there is no more room.
    pub fn extended_by(&self, other: &Self) -> Result<Self, HistoryError> {
        let further = other.numbered().filter(|(number, _)| *number > self.last());
        further.into_iter().try_fold(self.clone(), |history, (number, link)| history.with(number, link.clone()))
    }

    /// Where the chain leads to, if its first link may be believed: that is signed by the keys that it names, and each other one by
    /// those before it, too. For who made the history; a machine goes by [`KeyRing::follow`].
    ///
    /// # Errors
    /// [`KeyMoveError`]: a link does not go on from the last one.
    pub fn unanchored(&self, like: &TrustPolicy) -> Result<KeyRing, KeyMoveError> {
        let sequence = KeySequence(self.first.0.saturating_sub(1));
        let first = Manifest::from_json(self.links[0].unverified_payload())
            .map_err(|why| KeyMoveError::Manifest { sequence: self.first, why })?;
        let keys = first.keys.map_or_else(|| like.keys.clone(), |change| change.trusted);
        let before = TrustPolicy { keys, key_sequence: sequence, revoked: Vec::new(), ..like.clone() };
        KeyRing::of(&before).follow(self)
    }

    fn bounded(self) -> Result<Self, HistoryError> {
        if self.links.len() > MAX_LINKS {
            return Err(HistoryError::Links(self.links.len()));
        }
        let size = self.to_bytes().len();
        if size > MAX_HISTORY_SIZE { Err(HistoryError::TooLarge(size)) } else { Ok(self) }
    }
}

/// The number in the second line, in its only spelling.
fn first(line: &[u8]) -> Option<KeySequence> {
    let number = std::str::from_utf8(line).ok()?.strip_prefix(FIRST)?;
    let first: u64 = number.parse().ok()?;
    // The last one's number must be one, too.
    let sound = first > 0 && first <= u64::MAX - MAX_LINKS as u64 && number == first.to_string();
    sound.then_some(KeySequence(first))
}
