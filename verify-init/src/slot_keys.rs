//! Whose signatures count for what lies in the slots: the keys of the trust policy, moved by the releases that this machine has
//! confirmed, and for each slot by those that its own history goes on with.
//!
//! What a release on trial moves counts for that release alone. So the other slot, signed by the keys before, stays what the
//! machine falls back to until somebody confirms the new one.

use iofs_policy::{
    keys::{KeyHistory, KeyRing},
    slots::{FOOTER_SIZE, Footer, SlotRecord},
    trust::TrustPolicy,
};

use crate::{boot::Boot, devices::BlockDevice, report::text, system::System};

/// What the end of a slot leads to. None of it is verified.
pub(crate) struct SlotEnd {
    pub(crate) envelope: Vec<u8>,
    /// The key history.
    pub(crate) history: Option<Vec<u8>>,
}

impl SlotEnd {
    /// Reads both.
    pub(crate) fn read<S: System>(boot: &mut Boot<'_, S>, device: &BlockDevice) -> Result<Self, String> {
        let mut read = |offset: u64, length: usize| {
            let read = boot.system.read_at(&device.path, offset, length);
            read.map_err(|error| format!("{}: {}", device.path, text(&error)))
        };
        let end = device.bytes.checked_sub(FOOTER_SIZE as u64).ok_or_else(|| format!("{}: too small", device.path))?;
        let footer = Footer::parse(&read(end, FOOTER_SIZE)?, device.bytes).map_err(|error| error.to_string())?;
        let envelope = read(footer.envelope.offset, footer.envelope.length as usize)?;
        footer.check_envelope(&envelope).map_err(|error| error.to_string())?;
        let history = footer.history.map(|part| read(part.offset, part.length as usize)).transpose()?;
        footer.check_history(history.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
        Ok(Self { envelope, history })
    }

    /// The keys for this slot.
    pub(crate) fn keys(&self, confirmed: &KeyRing) -> Result<KeyRing, String> {
        let Some(history) = &self.history else { return Ok(confirmed.clone()) };
        let history = KeyHistory::parse(history).map_err(|error| error.to_string())?;
        confirmed.clone().follow(&history).map_err(|error| error.to_string())
    }
}

/// The keys that this machine has confirmed. Where that cannot be read any more they are those of the trust policy: from
/// there on, each slot's history leads on as it did before.
pub(crate) fn confirmed<S: System>(
    boot: &mut Boot<'_, S>,
    trust: &TrustPolicy,
    state: &BlockDevice,
    record: &SlotRecord,
) -> KeyRing {
    let sealed = KeyRing::of(trust);
    read_confirmed(boot, &sealed, state, record).unwrap_or_else(|why| {
        boot.warn(format!("{}: {why}: the keys of the trust policy count", state.path));
        sealed
    })
}

fn read_confirmed<S: System>(
    boot: &mut Boot<'_, S>,
    sealed: &KeyRing,
    state: &BlockDevice,
    record: &SlotRecord,
) -> Result<KeyRing, String> {
    let Some(keys) = record.keys else { return Ok(sealed.clone()) };
    let read = boot.system.read_at(&state.path, keys.area.offset(), keys.size());
    let bytes = read.map_err(|error| text(&error))?;
    let history = keys.history(&bytes).map_err(|error| error.to_string())?;
    sealed.clone().follow(&history).map_err(|error| format!("confirmed keys: {error}"))
}
