//! The order in which an enrolment writes.
//!
//! Whatever write is the last one before a power cut, the volume opens by what opened it before, and the next run completes
//! or clears away what this one began:
//!
//! 1. A marker token says which keyslot is going to be made, and what the TPM is going to keep ([`super::pending`]).
//! 2. The keyslot; what the TPM keeps.
//! 3. Proof: the header is read back from the disk by another implementation, and the new keyslot is opened.
//! 4. The finished token takes the marker's place.
//! 5. Proof: the token is read back, and the TPM is asked as verify-init will ask it.
//! 6. Only now goes what is to be removed: the TPM's copy, the keyslot, the token.

use std::collections::BTreeSet;

use iofs_luks::{SlotId, Token, TokenId, VolumeKey};
use iofs_policy::manifest::RollbackRule;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    header::{WriteError, Writer},
    pending::{self, Kept},
    recovery::RecoveryKey,
    tpm::{Proof, SealedKey, TpmPlan, TpmSide},
    volume::{Kind, Volume, Way},
};
use crate::report::{ExitStatus, Failure, Output};

/// What a run did.
#[derive(Debug, Default, Serialize)]
pub struct Done {
    /// The volume's UUID.
    pub uuid: String,
    /// What an interrupted run had left, by token.
    pub cleared: Vec<u8>,
    /// What a manifest pins to know the volume by, where that was asked for.
    pub volume_key: Option<String>,
    /// What was there already, so that nothing was added: its token.
    pub unchanged: Option<u8>,
    /// What was added.
    pub added: Vec<Added>,
    /// What was removed.
    pub removed: Vec<Removed>,
}

/// A new way to open the volume.
#[derive(Debug, Serialize)]
pub struct Added {
    /// What opens it.
    pub kind: Kind,
    /// Its keyslot.
    pub keyslot: u8,
    /// Its token.
    pub token: u8,
    /// How it was proven to open the volume.
    pub proof: Proof,
    /// Where the rollback counter ends it: also what `[tpm] rollback` in `iofs.toml` says of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackRule>,
}

/// A way to open the volume that is gone.
#[derive(Debug, Serialize)]
pub struct Removed {
    /// What opened it.
    pub kind: Kind,
    /// Its keyslot; `null` for one that was gone before.
    pub keyslot: Option<u8>,
    /// Its token.
    pub token: Option<u8>,
}

/// A volume that was unlocked for writing.
#[derive(Debug)]
pub struct Session {
    volume: Volume,
    writer: Writer,
    key: Zeroizing<Vec<u8>>,
    /// Keyslots that were opened in this run.
    opened: BTreeSet<SlotId>,
    output: Output,
    done: Done,
}

impl Session {
    /// Unlocks a volume: `passphrase` opens one of its keyslots. Those in `last` are tried last: they are to be removed.
    ///
    /// # Errors
    /// [`ExitStatus::NotVerified`] where the passphrase opens none.
    pub fn unlock(volume: Volume, passphrase: &[u8], last: &[Way], output: Output) -> Result<Self, Failure> {
        let mut writer = Writer::open(&volume.path).map_err(|error| failed(&volume, &error))?;
        let typed = |way: &Way| matches!(way.kind, Kind::Passphrase | Kind::RecoveryKey);
        let (after, before): (Vec<Way>, Vec<Way>) =
            volume.ways().into_iter().filter(typed).partition(|way| last.contains(way));
        let mut why = "no keyslot is for passphrases".to_owned();
        for way in before.into_iter().chain(after) {
            for attempt in attempts(way.kind, passphrase) {
                match writer.volume_key(way.slot, &attempt) {
                    Ok(key) => {
                        let done = Done { uuid: volume.header.uuid.to_string(), ..Done::default() };
                        return Ok(Self { volume, writer, key, opened: [way.slot].into(), output, done });
                    }
                    Err(error) => why = error.why,
                }
            }
        }
        Err(Failure::new(
            ExitStatus::NotVerified,
            format!("{}: the passphrase opens no keyslot: {why}", volume.path.display()),
        )
        .next("give a passphrase or a recovery key of this volume; 'iofs-sign enroll --list' shows what there is"))
    }

    /// Clears away what interrupted runs left.
    ///
    /// # Errors
    /// The header cannot be written. What the TPM may still keep needs it to be there.
    pub fn clear(&mut self, tpm: &mut dyn FnMut() -> Result<TpmSide, Failure>) -> Result<(), Failure> {
        for leftover in pending::leftovers(&self.volume, &mut self.writer).map_err(|error| self.failed(&error))? {
            if let Some(kept) = &leftover.kept {
                match tpm() {
                    Ok(mut tpm) => tpm.forget(kept)?,
                    // The marker stays until the TPM is there.
                    Err(failure) => {
                        self.output
                            .warn(format_args!("token {} is not cleared away: {}", leftover.token, failure.fact));
                        continue;
                    }
                }
            }
            if let Some(slot) = leftover.slot {
                self.write(|writer| writer.destroy_keyslot(slot))?;
            }
            // Last: while it is there, the next run knows of the others.
            self.write(|writer| writer.remove_token(leftover.token))?;
            self.done.cleared.push(leftover.token.get());
        }
        self.volume = self.volume.again()?;
        Ok(())
    }

    /// Adds a recovery key. `show` is how its owner comes to know it; it runs before the key counts.
    ///
    /// # Errors
    /// The header cannot be written, or the key cannot be shown.
    pub fn add_recovery(&mut self, show: impl FnOnce(&RecoveryKey) -> Result<(), Failure>) -> Result<(), Failure> {
        let progress = self.output.spinner("adding a recovery key");
        let key = RecoveryKey::generate()?;
        let (slot, marker) = self.begin(key.as_str().as_bytes(), None)?;
        let token = json!({ "type": "systemd-recovery", "keyslots": [slot.to_string()] });
        let made = self.prove_keyslot(slot, key.as_str().as_bytes()).and_then(|()| {
            progress.finish();
            show(&key)?;
            self.write(|writer| writer.replace_token(marker, &token))?;
            self.volume = self.volume.again()?;
            match self.volume.header.tokens().find(|(id, _)| *id == marker) {
                Some((_, Token::Recovery { keyslots })) if keyslots == &[slot] => Ok(()),
                _ => Err(self.unlike(marker)),
            }
        });
        self.undo_unless(made, slot, marker, None)?;
        let (keyslot, token) = (slot.get(), marker.get());
        self.done.added.push(Added { kind: Kind::RecoveryKey, keyslot, token, proof: Proof::Opened, rollback: None });
        Ok(())
    }

    /// Lets a TPM open the volume.
    ///
    /// # Errors
    /// The TPM or the header does not do it, or what was written does not open the volume: it is taken back then.
    pub fn add_tpm(&mut self, tpm: &mut TpmSide, plan: &TpmPlan) -> Result<(), Failure> {
        let progress = self.output.spinner("sealing a key to the TPM");
        let sealed = tpm.seal(plan)?;
        let kept = plan.persistent.map(|handle| sealed.kept_at(handle)).transpose()?;
        let (slot, marker) = self.begin(&sealed.passphrase(), kept.as_ref())?;
        let made = self.finish_tpm(tpm, plan, &sealed, slot, marker);
        progress.finish();
        let proof = self.undo_unless(made, slot, marker, kept.as_ref().map(|kept| (tpm, kept)))?;
        let (keyslot, token) = (slot.get(), marker.get());
        self.done.added.push(Added { kind: Kind::Tpm2, keyslot, token, proof, rollback: plan.rollback });
        Ok(())
    }

    fn finish_tpm(
        &mut self,
        tpm: &mut TpmSide,
        plan: &TpmPlan,
        sealed: &SealedKey,
        slot: SlotId,
        marker: TokenId,
    ) -> Result<Proof, Failure> {
        if let Some(handle) = plan.persistent {
            tpm.keep(sealed, handle)?;
        }
        self.prove_keyslot(slot, &sealed.passphrase())?;
        let token = sealed.token(plan, slot);
        let json: Value = serde_json::from_str(&token.to_json()).map_err(|_| self.unlike(marker))?;
        self.write(|writer| writer.replace_token(marker, &json))?;
        self.volume = self.volume.again()?;
        let written = self.volume.header.tokens().find(|(id, _)| *id == marker).map(|(_, token)| token.clone());
        match written {
            Some(Token::SystemdTpm2(found)) if *found == token => {
                let volume = &mut self.volume;
                tpm.prove(&found, plan, sealed, &mut |passphrase| volume.open_keyslot(slot, passphrase).is_ok())
            }
            _ => Err(self.unlike(marker)),
        }
    }

    /// Writes the marker, then the keyslot.
    fn begin(&mut self, passphrase: &[u8], kept: Option<&Kept>) -> Result<(SlotId, TokenId), Failure> {
        let slot = self.volume.free_slot().ok_or_else(|| {
            Failure::new(ExitStatus::Usage, format!("{}: all 32 keyslots are in use", self.volume.path.display()))
                .next("remove one with --wipe")
        })?;
        let marker = self.write(|writer| writer.add_token(&pending::marker(slot, kept)))?;
        let key = self.key.clone();
        if let Err(failure) = self.write(|writer| writer.add_keyslot(slot, &key, passphrase)) {
            // Without the keyslot the marker marks nothing.
            self.write(|writer| writer.remove_token(marker))?;
            return Err(failure);
        }
        Ok((slot, marker))
    }

    /// The keyslot, read back from the disk, holds the volume's key.
    fn prove_keyslot(&mut self, slot: SlotId, passphrase: &[u8]) -> Result<(), Failure> {
        self.volume = self.volume.again()?;
        let opened = self.volume.open_keyslot(slot, passphrase);
        let key = opened.map_err(|error| self.unproven(&format!("the new keyslot does not open: {error}")))?;
        if key.as_bytes() != self.key.as_slice() {
            return Err(self.unproven("the new keyslot holds another key"));
        }
        self.opened.insert(slot);
        Ok(())
    }

    /// Takes back what an addition wrote if it failed, as well as it goes: the next run does the rest.
    fn undo_unless<T>(
        &mut self,
        made: Result<T, Failure>,
        slot: SlotId,
        marker: TokenId,
        kept: Option<(&mut TpmSide, &Kept)>,
    ) -> Result<T, Failure> {
        made.inspect_err(|_| {
            self.opened.remove(&slot);
            let forgotten = kept.is_none_or(|(tpm, kept)| tpm.forget(kept).is_ok());
            let erased = forgotten && self.write(|writer| writer.destroy_keyslot(slot)).is_ok();
            if !(erased && self.write(|writer| writer.remove_token(marker)).is_ok()) {
                self.output.warn("what this run began is still there: the next one clears it away");
            }
        })
    }

    /// Removes ways to open the volume, after what is to stay was proven.
    ///
    /// # Errors
    /// Nothing that its owner can open would be left, unless `consent`; or the header cannot be written.
    pub fn remove(
        &mut self,
        ways: &[Way],
        consent: bool,
        tpm: &mut dyn FnMut() -> Result<TpmSide, Failure>,
    ) -> Result<(), Failure> {
        let stay: Vec<Way> = self.volume.ways().into_iter().filter(|way| !ways.contains(way)).collect();
        check_way_back(&stay, &self.opened, consent)?;
        let progress = self.output.spinner("removing what is replaced");
        let mut tokens = BTreeSet::new();
        for way in ways {
            if let Some(kept) = way.token.and_then(|token| self.kept(token)).transpose()? {
                // It may be gone for good, which is no reason to keep what it opened.
                match tpm() {
                    Ok(mut tpm) => tpm.forget(&kept)?,
                    Err(failure) => self.output.warn(format_args!(
                        "{}; what it keeps at {:#010x} stays there: 'tpm2_evictcontrol -c {:#010x}' removes it",
                        failure.fact, kept.handle, kept.handle
                    )),
                }
            }
            self.write(|writer| writer.destroy_keyslot(way.slot))?;
            self.done.removed.push(Removed {
                kind: way.kind,
                keyslot: Some(way.slot.get()),
                token: way.token.map(TokenId::get),
            });
            tokens.extend(way.token);
        }
        self.volume = self.volume.again()?;
        for token in tokens {
            // A token of other keyslots as well stays with them.
            let empty = self.volume.header.tokens().any(|(id, found)| id == token && found.keyslots().is_empty());
            if empty {
                self.write(|writer| writer.remove_token(token))?;
            }
        }
        progress.finish();
        self.volume = self.volume.again()?;
        Ok(())
    }

    /// What the TPM keeps for a token.
    fn kept(&self, token: TokenId) -> Option<Result<Kept, Failure>> {
        match self.volume.header.tokens().find(|(id, _)| *id == token)? {
            (_, Token::SystemdTpm2(token)) => token.persistent.map(|handle| super::tpm::kept_of(token, handle)),
            _ => None,
        }
    }

    /// Says by what a manifest pins the volume under this name.
    pub fn identify(&mut self, name: &str) {
        let id = VolumeKey::from_bytes(self.key.clone()).id(name, &self.volume.header.uuid);
        self.done.volume_key = Some(id.to_string());
    }

    /// The volume as it is now.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Says that a token does already what was asked for.
    pub fn unchanged(&mut self, token: TokenId) {
        self.done.unchanged = Some(token.get());
    }

    /// What was done.
    pub fn finish(self) -> Done {
        self.done
    }

    fn write<T>(&mut self, run: impl FnOnce(&mut Writer) -> Result<T, WriteError>) -> Result<T, Failure> {
        run(&mut self.writer).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &WriteError) -> Failure {
        failed(&self.volume, error)
    }

    fn unproven(&self, what: &str) -> Failure {
        Failure::new(ExitStatus::NotVerified, format!("{}: {what}; it is taken back", self.volume.path.display()))
            .next("see that the disk is sound: what was written is not what is read")
    }

    fn unlike(&self, token: TokenId) -> Failure {
        self.unproven(&format!("token {token} is not what was written"))
    }
}

/// A recovery key may be typed in other ways than it was printed.
fn attempts(kind: Kind, passphrase: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let typed = Zeroizing::new(passphrase.to_vec());
    let normal = str::from_utf8(passphrase).ok().filter(|_| kind == Kind::RecoveryKey);
    let normal = normal.and_then(|text| super::recovery::normalized(text.trim_ascii_end()));
    let normal = normal.map(|text| Zeroizing::new(text.as_bytes().to_vec())).filter(|normal| *normal != typed);
    [Some(typed), normal].into_iter().flatten().collect()
}

/// Something that people know has to stay, and was shown to open the volume: a TPM gives nothing out any more after an
/// update of the firmware, or once the board is gone.
///
/// # Errors
/// It would not be so, and nobody consented.
pub fn check_way_back(stay: &[Way], opened: &BTreeSet<SlotId>, consent: bool) -> Result<(), Failure> {
    let known: Vec<&Way> = stay.iter().filter(|way| matches!(way.kind, Kind::Passphrase | Kind::RecoveryKey)).collect();
    let fact = match (stay.is_empty(), known.is_empty()) {
        _ if consent => return Ok(()),
        (true, _) => "--wipe: nothing would be left that opens the volume: its data would be lost",
        (_, true) => "--wipe: only the TPM would be left: a new firmware or a broken board would lock you out",
        _ if known.iter().any(|way| opened.contains(&way.slot)) => return Ok(()),
        _ => "--wipe: what is to stay was not shown to open the volume: the passphrase given is one that is to go",
    };
    Err(Failure::new(ExitStatus::Usage, fact)
        .next("give a passphrase that stays, or add --recovery-key; --accept-lockout removes it nevertheless"))
}

fn failed(volume: &Volume, error: &WriteError) -> Failure {
    let next = if error.full {
        "make room with --wipe, or move the data to a volume with a larger header ('cryptsetup luksFormat --luks2-metadata-size')"
    } else {
        "see that nobody else has the volume's header open, and that it may be written"
    };
    Failure::new(ExitStatus::System, format!("{}: {error}", volume.path.display())).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(slot: u8, kind: Kind) -> Way {
        Way { slot: SlotId::new(slot).unwrap(), kind, token: None }
    }

    #[test]
    fn something_that_was_opened_and_that_people_know_has_to_stay() {
        let opened = BTreeSet::from([SlotId::new(1).unwrap()]);
        let check = |stay: &[Way], consent| check_way_back(stay, &opened, consent).map_err(|failure| failure.fact);
        assert_eq!(check(&[way(1, Kind::Passphrase)], false), Ok(()));
        assert_eq!(check(&[way(1, Kind::RecoveryKey), way(2, Kind::Tpm2)], false), Ok(()));
        for (stay, expected) in [
            (vec![], "nothing would be left"),
            (vec![way(1, Kind::Tpm2), way(2, Kind::Other)], "only the TPM would be left"),
            (vec![way(2, Kind::Passphrase)], "was not shown to open"),
        ] {
            assert!(check(&stay, false).unwrap_err().contains(expected), "{stay:?}");
            assert_eq!(check(&stay, true), Ok(()));
        }
    }
}
