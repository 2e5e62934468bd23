use super::*;

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(Policy::parse(b""), Ok(Policy::default()));
    let ignored: Vec<u8> = Policy::default().ignored().iter().map(|pcr| pcr.get()).collect();
    assert_eq!(ignored, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]);
}

/// The example of the documentation.
#[test]
fn the_documented_example_is_a_policy() {
    let document = include_str!("../../../docs/attestation.md");
    let examples: Vec<&str> =
        document.split("```toml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    assert!(!examples.is_empty());
    for example in examples {
        Policy::parse(example.as_bytes()).unwrap();
    }
}

#[test]
fn what_no_policy_can_say_is_named() {
    for (text, expected) in [
        ("pcr = [1]", "unknown field `pcr`"),
        ("pcrs = [11, 12, 13, 24]", "policy: pcrs: expected 0 to 23, found 24"),
        ("pcrs = [11, 12]", "policy: pcrs: expected 11, 12 and 13 among them, found [11, 12]"),
        ("pcrs = [11, 12, 13, 13]", "policy: pcrs: expected each register once, found [11, 12, 13, 13]"),
        ("banks = []", "policy: banks: expected a bank stronger than sha1, found []"),
        ("banks = [\"sha1\"]", "policy: banks: expected a bank stronger than sha1, found [\"sha1\"]"),
        ("banks = [\"SHA256\"]", "policy: banks: expected sha1, sha256, sha384 or sha512, found SHA256"),
        (
            "[firmware]\nignore = [12]",
            "policy: firmware.ignore: expected a register that does not say which image runs, found 12",
        ),
        ("[firmware]\nignore = [15]", "policy: firmware.ignore: expected one of `pcrs`, found 15"),
        ("[firmware.pcr.4]", "policy: firmware.pcr.4: expected values, events or release = true, found none of them"),
        ("[firmware.pcr.x]\nrelease = true", "policy: firmware.pcr.x: expected 0 to 23, found x"),
        (
            "[firmware.pcr.4]\nrelease = true\n[firmware.pcr.04]\nrelease = true",
            "policy: firmware.pcr.4: expected one of `pcrs`, once and not in `ignore`, found 4",
        ),
        (
            "[firmware]\nignore = [4]\n[firmware.pcr.4]\nrelease = true",
            "policy: firmware.pcr.4: expected one of `pcrs`, once and not in `ignore`, found 4",
        ),
        (
            "[firmware.pcr.4]\nvalues = [\"sha256:00\"]",
            "policy: firmware.pcr.4.values: expected BANK:HEX, such as sha256:00…, found sha256:00",
        ),
        (
            "[firmware.pcr.4]\nevents = [\"sha1:0000000000000000000000000000000000000000\"]",
            "policy: firmware.pcr.4.events: expected a digest stronger than sha1, found none",
        ),
        ("[[events]]\npcr = 15\ntext = \"x\"", "policy: events: pcr: expected one of `pcrs`, found 15"),
        (
            "pcrs = [11, 12, 13, 15]\n[[events]]\npcr = 15\ntext = \"x\"",
            "policy: events: pcr: expected a register other than 15, whose events are in [identity], found 15",
        ),
        (
            "pcrs = [11, 12, 13, 15]\n[firmware]\nignore = [15]",
            "policy: firmware.ignore: expected a register of firmware: the events of 15 are in [identity], or leave it out of \
             `pcrs`, found 15",
        ),
        (
            "pcrs = [11, 12, 13, 15]\n[firmware.pcr.15]\nrelease = true",
            "policy: firmware.pcr.15: expected a register of firmware: the events of 15 are in [identity], or leave it out \
             of `pcrs`, found 15",
        ),
        (
            "[identity]\nevents = []",
            "policy: identity: expected 15 among `pcrs`, found a rule for a register that is not quoted",
        ),
        ("pcrs = [11, 12, 13, 15]\n[identity]", "missing field `events`"),
        ("pcrs = [11, 12, 13, 15]\n[identity]\nevents = []\nprefix = true", "unknown field `prefix`"),
        (
            "pcrs = [11, 12, 13, 15]\n[identity]\nevents = [{ digests = [] }]",
            "policy: identity.events: digests: expected one digest a bank, of one bank at least, found []",
        ),
        (
            "pcrs = [11, 12, 13, 15]\n[identity]\nevents = []\nlater = [{ label = \"x\", digests = [\"sha256:00\"] }]",
            "policy: identity.later: digests: expected BANK:HEX, such as sha256:00…, found sha256:00",
        ),
        (
            "pcrs = [11, 12, 13, 15]\n[identity]\n\
             events = [{ digests = [\"sha1:0000000000000000000000000000000000000000\"] }]",
            "policy: identity.events: digests: expected a digest stronger than sha1, found none",
        ),
    ] {
        let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert_eq!(Policy::parse(&vec![b'#'; MAX_SIZE + 1]), Err(PolicyError::TooLarge(MAX_SIZE + 1)));
    assert!(matches!(Policy::parse(b"\xff"), Err(PolicyError::Toml(_))));
}

#[test]
fn values_of_registers_that_user_space_extends_cannot_be_pinned() {
    let text = format!("[firmware.pcr.11]\nvalues = [\"{}\"]", PcrDigest::zero(PcrBank::Sha256));
    let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        error,
        "policy: firmware.pcr.11: expected events, for a register that user space extends too, found values"
    );
}

#[test]
fn one_event_has_one_digest_of_a_bank() {
    let digest = PcrDigest::zero(PcrBank::Sha256);
    let text = format!("pcrs = [11, 12, 13, 15]\n[identity]\nevents = [{{ digests = [\"{digest}\", \"{digest}\"] }}]");
    let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("identity.events: digests: expected one digest a bank, of one bank at least"), "{error}");
}
