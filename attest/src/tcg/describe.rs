//! What an event's data says, for people. All of it is unsigned text from somebody else: it is cut and escaped.

use super::{
    STARTUP_LOCALITY,
    event::{Event, EventType},
};
use crate::bytes::{FieldError, Reader};

/// No description is longer, in characters.
const LONGEST: usize = 160;

/// Nodes of device paths (UEFI 2.10, section 10.3): a file's name, and what ends the path.
const NODE_MEDIA: u8 = 4;
const MEDIA_FILE: u8 = 4;
const NODE_END: u8 = 0x7f;

pub(super) fn describe(event: &Event) -> String {
    let text = match event.kind {
        EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY => variable(&event.data).map(|(name, value)| named(&name, value)).ok(),
        EventType::EFI_BOOT_SERVICES_APPLICATION
        | EventType::EFI_BOOT_SERVICES_DRIVER
        | EventType::EFI_RUNTIME_SERVICES_DRIVER => image(&event.data).ok(),
        EventType::SEPARATOR => Some(separator(&event.data)),
        EventType::EVENT_TAG => tagged(&event.data).ok(),
        EventType::NO_ACTION => Some(no_action(&event.data)),
        _ => text(&event.data),
    };
    shown(&text.unwrap_or_else(|| format!("{} bytes", event.data.len())))
}

/// A variable; whether Secure Boot was on is what people look for first.
fn named(name: &str, value: &[u8]) -> String {
    match (name, value) {
        ("SecureBoot", [0]) => "variable SecureBoot, off".to_owned(),
        ("SecureBoot", [1]) => "variable SecureBoot, on".to_owned(),
        _ => format!("variable {name}"),
    }
}

/// Makes one short line of any text, without anything that a terminal obeys.
pub(crate) fn shown(text: &str) -> String {
    let plain = |character: char| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character };
    let mut line: String = text.chars().take(LONGEST).map(plain).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// UEFI_VARIABLE_DATA (PFP, section 10.4.2.6): the name and the value.
fn variable(data: &[u8]) -> Result<(String, &[u8]), FieldError> {
    let mut reader = Reader::new(data);
    reader.bytes("VariableName", 16)?;
    let characters = reader.u64_le("UnicodeNameLength")?;
    let size = reader.u64_le("VariableDataLength")?;
    // What does not fit into memory does not fit into the log: the largest size there is stands for it.
    let size_of = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let name = reader.bytes("UnicodeName", size_of(characters.saturating_mul(2)))?;
    let value = reader.bytes("VariableData", size_of(size))?;
    reader.end("VariableData")?;
    Ok((utf16(name), value))
}

/// The value of a variable, without its name.
pub(crate) fn variable_value(data: &[u8]) -> Option<&[u8]> {
    variable(data).ok().map(|(_, value)| value)
}

/// UEFI_IMAGE_LOAD_EVENT (PFP, section 10.4.2.3): the files that the device path names.
fn image(data: &[u8]) -> Result<String, FieldError> {
    let mut reader = Reader::new(data);
    reader.bytes("ImageLocationInMemory", 24)?;
    let size = reader.u64_le("LengthOfDevicePath")?;
    let path = reader.bytes("DevicePath", usize::try_from(size).unwrap_or(usize::MAX))?;
    let files = files_of(path)?;
    Ok(if files.is_empty() { "image, by no file name".to_owned() } else { format!("image {files}") })
}

fn files_of(path: &[u8]) -> Result<String, FieldError> {
    let mut reader = Reader::new(path);
    let mut files = String::new();
    while !reader.is_empty() {
        let [kind, subtype] = reader.array("DevicePath.Type")?;
        let size = reader.u16_le("DevicePath.Length")?;
        let node = reader.bytes("DevicePath.Data", usize::from(size).saturating_sub(4))?;
        match (kind, subtype) {
            (NODE_END, _) => break,
            (NODE_MEDIA, MEDIA_FILE) => files.push_str(&utf16(node)),
            _ => {}
        }
    }
    Ok(files)
}

fn separator(data: &[u8]) -> String {
    match data {
        [0, 0, 0, 0] | [0xff, 0xff, 0xff, 0xff] => "separator".to_owned(),
        [1, 0, 0, 0] => "separator: an error".to_owned(),
        other => format!("separator with unusual data: {}", text(other).unwrap_or_default()),
    }
}

/// TCG_PCClientTaggedEvent (PFP, section 10.4.2.1). Linux' EFI stub writes names: `drivers/firmware/efi/libstub`.
fn tagged(data: &[u8]) -> Result<String, FieldError> {
    let mut reader = Reader::new(data);
    let tag = reader.u32_le("taggedEventID")?;
    let size = reader.u32_le("taggedEventDataSize")?;
    let data = reader.bytes("taggedEventData", size as usize)?;
    Ok(text(data).unwrap_or_else(|| format!("tag {tag:#010x}")))
}

fn no_action(data: &[u8]) -> String {
    match data.strip_prefix(STARTUP_LOCALITY) {
        Some([locality]) => format!("the TPM was started from locality {locality}"),
        _ => text(data.get(..16).unwrap_or(data)).unwrap_or_else(|| format!("{} bytes", data.len())),
    }
}

/// ASCII or UTF-16 with nothing but printable characters, and zeros at the end.
fn text(data: &[u8]) -> Option<String> {
    let end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let printable = |byte: &u8| matches!(byte, b' '..=b'~');
    if end > 0 && data[..end].iter().all(printable) {
        return Some(String::from_utf8_lossy(&data[..end]).into_owned());
    }
    let wide = utf16(data);
    let readable = !wide.is_empty() && data.len().is_multiple_of(2) && wide.bytes().all(|byte| printable(&byte));
    readable.then_some(wide)
}

/// UTF-16 up to the first zero.
fn utf16(data: &[u8]) -> String {
    let units = data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}
