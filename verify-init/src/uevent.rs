//! What the kernel says of devices: events on netlink, and the same keys in sysfs' `uevent` files.

/// A value of a `KEY=VALUE` list, as bytes: partition names need not be UTF-8.
///
/// `separator` is NUL in events and a newline in `uevent` files. The first one wins.
pub fn value<'a>(list: &'a [u8], separator: u8, key: &str) -> Option<&'a [u8]> {
    list.split(|byte| *byte == separator).find_map(|entry| entry.strip_prefix(key.as_bytes())?.strip_prefix(b"="))
}

/// The `modalias` in a device's `uevent` file, if it has one.
pub fn modalias(file: &[u8]) -> Option<&str> {
    std::str::from_utf8(value(file, b'\n', "MODALIAS")?).ok().filter(|text| !text.is_empty())
}

/// The `modalias` of an event for a device that came, if it has one.
///
/// The event is `add@/devices/…`, NUL, and keys, each with a NUL behind it.
pub fn new_modalias(event: &[u8]) -> Option<&str> {
    let comes = event.starts_with(b"add@") || event.starts_with(b"bind@") || event.starts_with(b"change@");
    let modalias = value(event, 0, "MODALIAS").filter(|_| comes)?;
    std::str::from_utf8(modalias).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENT: &[u8] = b"add@/devices/pci0000:00/0000:00:02.0/virtio0\0ACTION=add\0SUBSYSTEM=virtio\0\
        MODALIAS=virtio:d00000002v00001AF4\0SEQNUM=900\0";

    #[test]
    fn the_modalias_of_a_new_device_is_found() {
        assert_eq!(new_modalias(EVENT), Some("virtio:d00000002v00001AF4"));
    }

    #[test]
    fn a_device_that_goes_asks_for_nothing() {
        assert_eq!(new_modalias(&[b"remove", &EVENT[3..]].concat()), None);
        assert_eq!(new_modalias(b"add@/x\0MODALIAS=\0"), None);
        assert_eq!(new_modalias(b"add@/x\0XMODALIAS=a\0MODALIASX=b\0"), None);
        assert_eq!(new_modalias(b"libudev\0\xfe\xed\xca\xfe"), None);
    }

    #[test]
    fn keys_of_uevent_files_are_split_at_lines() {
        let file = b"MAJOR=254\nMINOR=1\nPARTNAME=a=b \xf6\n";
        assert_eq!(value(file, b'\n', "MINOR"), Some(b"1".as_slice()));
        assert_eq!(value(file, b'\n', "PARTNAME"), Some(b"a=b \xf6".as_slice()));
        assert_eq!(value(file, b'\n', "PART"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_events_never_panic(event: Vec<u8>) {
            let _ = new_modalias(&event);
            let _ = new_modalias(&[b"add@".as_slice(), &event].concat());
        }
    }
}
