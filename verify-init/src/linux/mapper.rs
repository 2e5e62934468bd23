//! Device-mapper.

use std::io;

use devicemapper::{DM, DevId, DmError, DmFlags, DmName, DmOptions, DmUuid, errors::Error};
use iofs_policy::verity::DeviceNumber;

use crate::system::{Access, MappedTarget, Mapping};

/// The crate's own text shows whole ioctl headers: the error number says more.
fn error(error: DmError) -> io::Error {
    match error {
        DmError::Core(Error::Ioctl(_, _, _, number)) => (*number).into(),
        DmError::Core(Error::ContextInit(text)) => io::Error::other(format!("/dev/mapper/control: {text}")),
        _ => io::Error::other("device-mapper: unexpected answer"),
    }
}

pub(super) fn targets() -> io::Result<Vec<String>> {
    let versions = DM::new().and_then(|mapper| mapper.list_versions()).map_err(error)?;
    Ok(versions.into_iter().map(|(name, ..)| name).collect())
}

pub(super) fn create(mapping: &Mapping<'_>) -> io::Result<DeviceNumber> {
    let mapper = DM::new().map_err(error)?;
    let (name, uuid) = (DmName::new(mapping.name).map_err(error)?, DmUuid::new(mapping.uuid).map_err(error)?);
    let id = DevId::Name(name);
    let options = match mapping.access {
        Access::ReadOnly => DmOptions::default().set_flags(DmFlags::DM_READONLY),
        Access::ReadWrite => DmOptions::default(),
    };
    let table = [(0, mapping.sectors, mapping.target.to_owned(), mapping.parameters.to_owned())];
    mapper.device_create(name, Some(uuid), options).map_err(error)?;
    let start = || {
        mapper.table_load(&id, &table, options)?;
        // Without the flag for suspension this resumes, and the table becomes active.
        mapper.device_suspend(&id, DmOptions::default())
    };
    match start() {
        Ok(started) => {
            let device = started.device();
            Ok(DeviceNumber { major: device.major, minor: device.minor })
        }
        Err(failed) => {
            // A device without a table would be in the way of whoever tries again.
            let _ = mapper.device_remove(&id, DmOptions::default());
            Err(error(failed))
        }
    }
}

pub(super) fn remove(name: &str) -> io::Result<()> {
    let id = DevId::Name(DmName::new(name).map_err(error)?);
    DM::new().and_then(|mapper| mapper.device_remove(&id, DmOptions::default())).map(drop).map_err(error)
}

pub(super) fn remove_later(name: &str) -> io::Result<()> {
    let id = DevId::Name(DmName::new(name).map_err(error)?);
    let options = DmOptions::default().set_flags(DmFlags::DM_DEFERRED_REMOVE);
    DM::new().and_then(|mapper| mapper.device_remove(&id, options)).map(drop).map_err(error)
}

pub(super) fn table(name: &str, access: Access) -> io::Result<Vec<MappedTarget>> {
    ask(name, access, DmFlags::DM_STATUS_TABLE)
}

pub(super) fn status(name: &str, access: Access) -> io::Result<Vec<MappedTarget>> {
    ask(name, access, DmFlags::empty())
}

/// Asks for the active table, and refuses a device that is stopped or has another access.
fn ask(name: &str, access: Access, flags: DmFlags) -> io::Result<Vec<MappedTarget>> {
    let id = DevId::Name(DmName::new(name).map_err(error)?);
    let options = DmOptions::default().set_flags(flags);
    let (device, targets) = DM::new().and_then(|mapper| mapper.table_status(&id, options)).map_err(error)?;
    let state = device.flags();
    let read_only = state.contains(DmFlags::DM_READONLY);
    if read_only != (access == Access::ReadOnly) {
        let found = if read_only { "read-only" } else { "writable" };
        return Err(io::Error::other(format!("the device is {found}, which it should not be")));
    }
    if !state.contains(DmFlags::DM_ACTIVE_PRESENT) || state.contains(DmFlags::DM_SUSPEND) {
        return Err(io::Error::other("the device does not run"));
    }
    let target = |(start, sectors, target, text)| MappedTarget { start, sectors, target, text };
    Ok(targets.into_iter().map(target).collect())
}
