//! From a header to the volume key: by tokens, then by what somebody types, as far as either is sealed.

use iofs_luks::{Header, Limits, SlotId, Token, TokenId, Tpm2Token, VolumeKey};
use iofs_policy::{
    boot_record::UnlockedBy,
    failure::FailureReport,
    manifest::{SrkPublic, Volume},
};
use zeroize::Zeroizing;

use super::{
    STAGE, console,
    source::Source,
    tokens::{self, TokenError},
};
use crate::{boot::Boot, devices::BlockDevice, report::refusal, system::System};

/// A derivation may take this share of the memory that is free: the kernel would end PID 1 where there is none left.
const SHARE_OF_MEMORY: (u64, u64) = (3, 4);
const MEMORY: &str = "/proc/meminfo";
const MAX_MEMORY_FILE: usize = 16 * 1024;

/// A volume key, and how it was come by.
pub(super) struct Opened {
    pub(super) key: VolumeKey,
    pub(super) slot: SlotId,
    pub(super) token: Option<TokenId>,
    pub(super) by: UnlockedBy,
}

/// What kept a volume shut, way by way.
#[derive(Default)]
struct Failures {
    found: Vec<String>,
    next: Option<&'static str>,
}

impl Failures {
    /// Says it at once, too: who is to type something should know why.
    fn note<S: System>(&mut self, boot: &mut Boot<'_, S>, volume: &Volume, text: String, next: Option<&'static str>) {
        boot.warn(format!("volume {}: {text}", volume.name));
        self.found.push(text);
        self.next = self.next.or(next);
    }
}

/// Tries every way that is sealed.
pub(super) fn open<S: System>(
    boot: &mut Boot<'_, S>,
    srk: Option<&SrkPublic>,
    volume: &Volume,
    device: &BlockDevice,
    header: &Header,
) -> Result<Opened, FailureReport> {
    let limits = limits(boot, volume);
    let mut way = Way { volume, device, header, srk, limits, failures: Failures::default() };
    let rules = &volume.unlock;
    let opened = rules.tpm.then(|| way.by_tpm(boot)).flatten();
    let opened = opened.or_else(|| rules.pin.then(|| way.by_pin(boot)).flatten());
    let opened = opened.or_else(|| rules.passphrase.then(|| way.by_passphrase(boot)).flatten());
    opened.ok_or_else(|| way.refused())
}

/// The memory that is free bounds what is sealed.
fn limits<S: System>(boot: &mut Boot<'_, S>, volume: &Volume) -> Limits {
    let available = boot.system.read(MEMORY, MAX_MEMORY_FILE).ok().and_then(|text| available_kib(&text));
    let (share, of) = SHARE_OF_MEMORY;
    let available = available.map_or(u32::MAX, |kib| u32::try_from(kib / of * share).unwrap_or(u32::MAX));
    Limits { max_memory_kib: volume.unlock.max_memory_kib.min(available), ..Limits::default() }
}

/// `MemAvailable:   123456 kB`
fn available_kib(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

struct Way<'a> {
    volume: &'a Volume,
    device: &'a BlockDevice,
    header: &'a Header,
    /// The key of the only TPM that the image is for.
    srk: Option<&'a SrkPublic>,
    limits: Limits,
    failures: Failures,
}

impl Way<'_> {
    fn refused(self) -> FailureReport {
        let Self { volume, failures, .. } = self;
        let rules = &volume.unlock;
        let ways = [(rules.tpm, "the TPM"), (rules.pin, "a PIN"), (rules.passphrase, "a passphrase")];
        let ways: Vec<&str> = ways.into_iter().filter(|(allowed, _)| *allowed).map(|(_, way)| way).collect();
        let next = failures.next.unwrap_or(
            "start again and type the recovery key where that is sealed; else open the volume on another system with \
             cryptsetup, and enrol it again with iofs-sign enroll",
        );
        let fact = format!("volume {} stays shut", volume.name);
        let found = failures.found.join("; ");
        refusal(STAGE, fact, format!("what opens it, by {}", ways.join(" or by ")), found, next)
    }

    fn note<S: System>(&mut self, boot: &mut Boot<'_, S>, text: String, next: Option<&'static str>) {
        self.failures.note(boot, self.volume, text, next);
    }

    /// The tokens of that kind, with or without a PIN. What is wrong with others is said, and stops none.
    fn tokens<S: System>(&mut self, boot: &mut Boot<'_, S>, pin: bool) -> Vec<(TokenId, Box<Tpm2Token>)> {
        let mut usable = Vec::new();
        for (id, token) in self.header.tokens() {
            match token {
                Token::SystemdTpm2(token) if token.pin == pin => usable.push((id, token.clone())),
                Token::Broken { kind, why, .. } if !pin => {
                    self.note(boot, format!("token {id} ({kind}) is broken: {why}"), None);
                }
                _ => {}
            }
        }
        if usable.is_empty() {
            let what = if pin { "with a PIN" } else { "without a PIN" };
            self.note(boot, format!("no token of a TPM {what}"), None);
        }
        usable
    }

    fn by_tpm<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Option<Opened> {
        for (id, token) in self.tokens(boot, false) {
            match self.by_token(boot, id, &token, None) {
                Ok(opened) => return Some(opened),
                Err(error) => self.note(boot, format!("token {id} (TPM): {error}"), error.next()),
            }
        }
        None
    }

    /// One PIN is one try on each token: the TPM counts them too, and locks itself.
    fn by_pin<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Option<Opened> {
        let tokens = self.tokens(boot, true);
        if tokens.is_empty() {
            return None;
        }
        for number in 1..=self.volume.unlock.tries {
            let pin = self.ask(boot, "PIN", number)?;
            let mut wrong = false;
            for (id, token) in &tokens {
                match self.by_token(boot, *id, token, Some(&pin)) {
                    Ok(opened) => return Some(opened),
                    Err(error) => {
                        wrong |= error.is_wrong_pin();
                        self.note(boot, format!("token {id} (TPM and PIN): {error}"), error.next());
                    }
                }
            }
            // Another PIN would change nothing.
            if !wrong {
                return None;
            }
        }
        None
    }

    fn by_token<S: System>(
        &mut self,
        boot: &mut Boot<'_, S>,
        id: TokenId,
        token: &Tpm2Token,
        pin: Option<&[u8]>,
    ) -> Result<Opened, TokenError> {
        let secret = tokens::secret(boot, self.srk, token, pin)?;
        let passphrase = Tpm2Token::passphrase(&secret);
        let mut last = TokenError::NoKeyslot;
        for slot in &token.keyslots {
            let source = &mut Source::new(boot, self.device);
            match self.header.open(source, *slot, &passphrase, &self.limits) {
                Ok(key) => {
                    let by = if pin.is_some() { UnlockedBy::Pin } else { UnlockedBy::Tpm };
                    return Ok(Opened { key, slot: *slot, token: Some(id), by });
                }
                Err(error) => last = TokenError::Keyslot(error),
            }
        }
        Err(last)
    }

    fn by_passphrase<S: System>(&mut self, boot: &mut Boot<'_, S>) -> Option<Opened> {
        if self.header.passphrase_slots().is_empty() {
            self.note(boot, "no keyslot that a passphrase opens".to_owned(), None);
            return None;
        }
        for number in 1..=self.volume.unlock.tries {
            let passphrase = self.ask(boot, "Passphrase or recovery key", number)?;
            let source = &mut Source::new(boot, self.device);
            match self.header.try_passphrase(source, &passphrase, &self.limits) {
                Ok((slot, key)) => return Some(Opened { key, slot, token: None, by: UnlockedBy::Passphrase }),
                Err(error) => self.note(boot, format!("passphrase, try {number}: {error}"), None),
            }
        }
        None
    }

    /// What was typed; none where nobody did, which ends this way of opening.
    fn ask<S: System>(&mut self, boot: &mut Boot<'_, S>, what: &str, number: u8) -> Option<Zeroizing<Vec<u8>>> {
        match console::ask(boot, self.volume, what, number) {
            Ok(answer) => Some(answer),
            Err(why) => {
                self.note(boot, format!("{what}: {why}"), None);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(available_kib(b"MemTotal:  999 kB\nMemFree: 1 kB\nMemAvailable:     123456 kB\n"), Some(123_456));
        for odd in ["", "MemAvailable: x kB", "MemAvailable: 12", "MemAvailable: 12 MB"] {
            assert_eq!(available_kib(odd.as_bytes()), None, "{odd}");
        }
    }
}
