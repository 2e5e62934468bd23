//! Device-mapper.

use std::io;

use devicemapper::{DM, DevId, DmError, DmFlags, DmName, DmOptions, DmUuid, errors::Error};
use iofs_policy::verity::DeviceNumber;

use crate::system::{MappedTarget, Mapping};

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
    let read_only = DmOptions::default().set_flags(DmFlags::DM_READONLY);
    let table = [(0, mapping.sectors, mapping.target.to_owned(), mapping.parameters.to_owned())];
    mapper.device_create(name, Some(uuid), read_only).map_err(error)?;
    mapper.table_load(&id, &table, read_only).map_err(error)?;
    // Without the flag for suspension this resumes, and the table becomes active.
    let device = mapper.device_suspend(&id, DmOptions::default()).map_err(error)?.device();
    Ok(DeviceNumber { major: device.major, minor: device.minor })
}

pub(super) fn table(name: &str) -> io::Result<Vec<MappedTarget>> {
    ask(name, DmFlags::DM_STATUS_TABLE)
}

pub(super) fn status(name: &str) -> io::Result<Vec<MappedTarget>> {
    ask(name, DmFlags::empty())
}

/// Asks for the active table, and refuses a device that is writable or stopped.
fn ask(name: &str, flags: DmFlags) -> io::Result<Vec<MappedTarget>> {
    let id = DevId::Name(DmName::new(name).map_err(error)?);
    let options = DmOptions::default().set_flags(flags);
    let (device, targets) = DM::new().and_then(|mapper| mapper.table_status(&id, options)).map_err(error)?;
    let state = device.flags();
    if !state.contains(DmFlags::DM_READONLY | DmFlags::DM_ACTIVE_PRESENT) || state.contains(DmFlags::DM_SUSPEND) {
        return Err(io::Error::other("the device is not read-only and running"));
    }
    let target = |(start, sectors, target, text)| MappedTarget { start, sectors, target, text };
    Ok(targets.into_iter().map(target).collect())
}
