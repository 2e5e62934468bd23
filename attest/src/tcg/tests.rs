use super::*;

/// A log of one SHA-256 bank and one bank of an algorithm that is unknown here.
fn header_of(algorithms: &[(u16, u16)]) -> Vec<u8> {
    let mut spec = [&SIGNATURE[..], &[0, 0, 0, 0, 0, 2, 0, 2]].concat();
    spec.extend((algorithms.len() as u32).to_le_bytes());
    for (id, size) in algorithms {
        spec.extend([id.to_le_bytes(), size.to_le_bytes()].concat());
    }
    spec.push(0);
    legacy(3, &spec)
}

fn legacy(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut event = [0_u32.to_le_bytes(), kind.to_le_bytes()].concat();
    event.extend([0; SHA1_SIZE]);
    event.extend((data.len() as u32).to_le_bytes());
    event.extend(data);
    event
}

fn event_of(pcr: u32, kind: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut event = [pcr.to_le_bytes(), kind.to_le_bytes(), (digests.len() as u32).to_le_bytes()].concat();
    for (id, digest) in digests {
        event.extend(id.to_le_bytes());
        event.extend(*digest);
    }
    event.extend((data.len() as u32).to_le_bytes());
    event.extend(data);
    event
}

const SHA256: (u16, u16) = (0x0b, 32);
const SM3: (u16, u16) = (0x12, 32);

fn locality(level: &[u8]) -> Vec<u8> {
    event_of(0, 3, &[(0x0b, &[0; 32])], &[STARTUP_LOCALITY, level].concat())
}

#[test]
fn digests_of_unknown_algorithms_are_passed_over_by_their_size() {
    let mut log = header_of(&[SM3, SHA256, (0x1234, 5)]);
    log.extend(event_of(4, 4, &[(0x1234, &[1; 5]), (0x12, &[2; 32]), (0x0b, &[3; 32])], b"x"));
    let parsed = EventLog::parse(&log).unwrap();
    assert_eq!(parsed.algorithms.len(), 3);
    assert_eq!(parsed.events[0].digests, [PcrDigest::new(PcrBank::Sha256, &[3; 32]).unwrap()]);
    assert_eq!(parsed.events[0].digest(PcrBank::Sha1), None);
}

#[test]
fn logs_of_the_old_format_are_refused_by_name() {
    let old =
        "firmware log: expected a crypto-agile log (\"Spec ID Event03\"), found one of the old format, with SHA-1 only";
    for log in [legacy(4, &[0; 4]), legacy(3, b"Spec ID Event02\0more"), legacy(3, b"")] {
        assert_eq!(EventLog::parse(&log).unwrap_err().to_string(), old);
    }
}

#[test]
fn what_is_malformed_is_named() {
    let one = || header_of(&[SHA256]);
    let then = |event: Vec<u8>| [one(), event].concat();
    let digest: (u16, &[u8]) = (0x0b, &[0; 32]);
    for (log, expected) in [
        (Vec::new(), "event 0: PCRIndex: expected 4 bytes, found 0"),
        (header_of(&[]), "header: numberOfAlgorithms: expected 1 to 16, found 0"),
        (header_of(&[(0x0b, 31)]), "header: algorithm 000b: digestSize: expected 32, found 31"),
        (header_of(&[(0x99, 0)]), "header: algorithm 0099: digestSize: expected 1 to 128, found 0"),
        (header_of(&[SHA256, SHA256]), "header: algorithm 000b is there twice"),
        (then(event_of(24, 4, &[digest], b"")), "event 1: PCRIndex: expected 0 to 23, found 24"),
        (then(event_of(0, 4, &[digest, digest], b"")), "event 1: digests: expected at most 1, found 2"),
        (then(event_of(0, 4, &[(0x0c, &[0; 48])], b"")), "event 1: digests: algorithm 000c is not in the header"),
        (then(vec![0; 12]), "event 1: EventSize: expected 4 bytes, found 0"),
        (then(locality(&[1])), "event 1: StartupLocality: expected 0, 3 or 4, found 1"),
        (then(locality(&[3, 3])), "event 1: StartupLocality: expected 1 byte, found 2"),
        (then([locality(&[3]), locality(&[3])].concat()), "event 2: StartupLocality: found a second one"),
        (
            then([event_of(0, 4, &[digest], b""), locality(&[3])].concat()),
            "event 2: StartupLocality: expected it before the first event of register 0",
        ),
    ] {
        assert_eq!(EventLog::parse(&log).unwrap_err().to_string(), format!("firmware log: {expected}"));
    }
    let twice = [header_of(&[SHA256, SM3]), event_of(0, 4, &[digest, digest], b"")].concat();
    let error = EventLog::parse(&twice).unwrap_err().to_string();
    assert_eq!(error, "firmware log: event 1: digests: algorithm 000b is there twice");
    assert_eq!(EventLog::parse(&vec![0; MAX_SIZE + 1]), Err(TcgError::TooLarge));
}

#[test]
fn sizes_that_are_larger_than_memory_are_no_allocation() {
    let mut log = header_of(&[SHA256]);
    log.extend(event_of(0, 4, &[], b""));
    let size = log.len() - 4;
    log[size..].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = EventLog::parse(&log).unwrap_err().to_string();
    assert_eq!(error, "firmware log: event 1: Event: expected 4294967295 bytes, found 0");
}

#[test]
fn a_log_has_at_most_so_many_events() {
    let event = event_of(0, 4, &[], b"");
    let log = [header_of(&[SHA256]), event.repeat(MAX_EVENTS)].concat();
    assert_eq!(EventLog::parse(&log).unwrap().events.len(), MAX_EVENTS);
    assert_eq!(EventLog::parse(&[log, event].concat()), Err(TcgError::TooLarge));
}

#[test]
fn events_that_extend_nothing_may_name_no_register() {
    let log = [header_of(&[SHA256]), event_of(u32::MAX, 3, &[], b"SP800-155 Event3\0")].concat();
    let parsed = EventLog::parse(&log).unwrap();
    assert_eq!(parsed.events[0].extends(), None);
    assert_eq!(parsed.events[0].description(), "SP800-155 Event3");
}

#[test]
fn variables_and_texts_are_described_and_cut() {
    let variable = |length: u64| {
        let mut data = vec![0; 16];
        data.extend(length.to_le_bytes());
        data.extend(1_u64.to_le_bytes());
        data.extend(b"d\0b\0");
        data.push(9);
        Event::new(1, 7, EventType::EFI_VARIABLE_AUTHORITY, Vec::new(), data).description()
    };
    assert_eq!(variable(2), "variable db");
    assert_eq!(variable(u64::MAX), "37 bytes");
    let ipl = |data: &[u8]| Event::new(1, 8, EventType::IPL, Vec::new(), data.to_vec()).description();
    assert_eq!(ipl(b"grub_cmd: boot\0"), "grub_cmd: boot");
    assert_eq!(ipl(b"q\0u\0i\0e\0t\0\0\0"), "quiet");
    assert_eq!(ipl(&[b'x'; 500]).chars().count(), 161);
    assert_eq!(ipl(b"\x1b[2J"), "4 bytes");
    assert_eq!(EventType(0x1234).to_string(), "event type 0x00001234");
}

#[test]
fn the_value_of_a_boot_variable_may_be_what_was_measured() {
    let mut data = vec![0; 16];
    data.extend(1_u64.to_le_bytes());
    data.extend(2_u64.to_le_bytes());
    data.extend(b"B\0xy");
    let event = |kind, measured: &[u8]| {
        Event::new(1, 1, kind, vec![PcrDigest::of(PcrBank::Sha256, &[measured])], data.clone()).data_check()
    };
    assert_eq!(event(EventType::EFI_VARIABLE_BOOT, b"xy"), DataCheck::Matches);
    assert_eq!(event(EventType::EFI_VARIABLE_BOOT, &data), DataCheck::Matches);
    assert_eq!(event(EventType::EFI_VARIABLE_BOOT, b"xz"), DataCheck::Contradicts);
    assert_eq!(event(EventType::EFI_VARIABLE_DRIVER_CONFIG, b"xy"), DataCheck::Contradicts);
    assert_eq!(event(EventType::IPL, b"z"), DataCheck::Undefined);
}
