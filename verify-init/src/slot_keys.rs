//! Whose signatures count for what lies in the slots: the keys of the trust policy, moved by the releases that this machine has
//! confirmed, and for each slot by those that its own history goes on with.
//!
//! What a release on trial moves counts for that release alone. So the other slot, signed by the keys before, stays what the
//! machine falls back to until somebody confirms the new one.

use iofs_policy::{
    keys::{KeyHistory, KeyRing},
    slots::{FOOTER_SIZE, SlotEnd, SlotRecord},
    trust::TrustPolicy,
};

use crate::{boot::Boot, devices::BlockDevice, report::text, system::System};

/// What the end of a slot leads to.
pub(crate) fn read_end<S: System>(boot: &mut Boot<'_, S>, device: &BlockDevice) -> Result<SlotEnd, String> {
    if device.bytes < FOOTER_SIZE as u64 {
        return Err(format!("{}: too small", device.path));
    }
    let read = |offset: u64, length: usize| {
        let read = boot.system.read_at(&device.path, offset, length);
        read.map_err(|error| format!("{}: {}", device.path, text(&error)))
    };
    SlotEnd::read(device.bytes, read, |error| error.to_string())
}

/// The keys for a slot.
pub(crate) fn of_slot(end: &SlotEnd, confirmed: &KeyRing) -> Result<KeyRing, String> {
    let Some(history) = &end.history else { return Ok(confirmed.clone()) };
    let history = KeyHistory::parse(history).map_err(|error| error.to_string())?;
    confirmed.clone().follow(&history).map_err(|error| error.to_string())
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
