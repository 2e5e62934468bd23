//! What the boot side reads from places that nobody signs: the kernel command line, the superblock, device-mapper.

use std::sync::LazyLock;

use iofs_policy::{
    cmdline::{self, AcceptedCommandLine},
    verity::{DeviceNumber, Geometry, HashArea, LoadedTarget, Superblock, VerityTable, check_status},
};

use crate::sealed::{self, SEALED};

/// Names (with `_` for `-`) that no line may hold, whatever their value: each hands the system over.
const NEVER: [&str; 16] = [
    "rd.break",
    "break",
    "systemd.unit",
    "systemd.wants",
    "systemd.run",
    "systemd.run_success_action",
    "systemd.run_failure_action",
    "systemd.setenv",
    "systemd.mask",
    "systemd.set_credential",
    "systemd.set_credential_binary",
    "systemd.import_credentials",
    "SYSTEMD_SULOGIN_FORCE",
    "dm_mod.create",
    "usrhash",
    "dm_verity.require_signatures",
];
/// Words that start a shell where they stand alone.
const SHELLS: [&str; 10] =
    ["rd.shell", "systemd.debug_shell", "systemd.crash_shell", "emergency", "rescue", "single", "s", "S", "1", "-b"];

/// What a strict image accepts holds no parameter of the lists above, repeats `roothash=`, `init=`, `rdinit=` and
/// `rd.emergency=` as sealed and never switches verity off; an image that allows more accepts all that and reads it
/// alike; a debug image refuses nothing; and a line that is put together from its words again splits into the same.
///
/// The line is split here once more, byte by byte, as the kernel does it.
pub fn command_line(data: &[u8]) -> bool {
    let line: String = data.iter().copied().map(char::from).collect();
    check_splitting(&line);
    assert!(AcceptedCommandLine::check(&line, &SEALED.debug).is_ok(), "a debug image refuses");
    let Ok(accepted) = AcceptedCommandLine::check(&line, &SEALED.strict) else { return false };
    let lenient = AcceptedCommandLine::check(&line, &SEALED.lenient);
    assert_eq!(lenient.as_ref(), Ok(&accepted), "an exception changes what was accepted without it");
    let sealed = sealed::manifest();
    for word in kernel_words(data).iter().take_while(|word| *word != "--") {
        check_word(word, sealed);
    }
    let limit = sealed.device_timeout.into();
    assert!(accepted.device_timeout.is_none_or(|timeout| (1..=limit).contains(&timeout.as_secs())));
    assert_eq!(accepted.init, None);
    true
}

fn check_word(word: &str, sealed: &iofs_policy::manifest::Manifest) {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    let name = name.replace('-', "_");
    let name = name.strip_prefix("rd.").filter(|rest| rest.starts_with("systemd.")).unwrap_or(&name);
    assert!(!NEVER.contains(&name), "{word:?} was accepted");
    assert!(value.is_some() || !SHELLS.contains(&word), "{word:?} was accepted");
    let expected = match name {
        "roothash" => sealed.verity.root_hash.to_string(),
        "init" => sealed.init.to_string(),
        "rdinit" => "/init".to_owned(),
        "rd.emergency" => sealed.on_failure.to_string(),
        "systemd.verity" => {
            let off = ["0", "no", "n", "false", "f", "off"];
            assert!(!value.is_some_and(|value| off.contains(&value.to_ascii_lowercase().as_str())), "{word:?}");
            return;
        }
        _ => return,
    };
    assert_eq!(value.unwrap_or_default(), expected, "{word:?} was accepted");
}

/// `next_arg` of Linux `lib/cmdline.c`, with `isspace` as `lib/ctype.c` has it.
fn kernel_words(line: &[u8]) -> Vec<String> {
    let mut quoted = false;
    let words = line.split(|byte| {
        quoted ^= *byte == b'"';
        !quoted && matches!(byte, b' ' | b'\t'..=b'\r' | 0xa0)
    });
    let word = |word: &[u8]| word.iter().filter(|byte| **byte != b'"').copied().map(char::from).collect();
    words.map(word).filter(|word: &String| !word.is_empty()).collect()
}

fn check_splitting(line: &str) {
    let (parameters, arguments) = cmdline::parse(line);
    let quote = |word: &str| format!("\"{word}\"");
    let mut words: Vec<String> = parameters.iter().map(|parameter| quote(&parameter.text)).collect();
    if !arguments.is_empty() {
        words.push("--".to_owned());
        words.extend(arguments.iter().map(|word| quote(word)));
    }
    assert_eq!(cmdline::parse(&words.join(" ")), (parameters, arguments));
}

/// A verity superblock that decodes encodes to the same bytes, and describes a tree that can exist.
pub fn verity_superblock(data: &[u8]) -> bool {
    let Some(bytes) = data.first_chunk::<{ Superblock::SIZE }>() else { return false };
    let Ok(superblock) = Superblock::decode(bytes) else { return false };
    assert_eq!(&superblock.encode(), bytes);
    let geometry = Geometry::new(&superblock.parameters).expect("decoding has checked it");
    let area = HashArea { offset: 0, superblock: true };
    if let Ok(range) = area.tree_range(&superblock.parameters, &geometry) {
        assert_eq!(range.end - range.start, geometry.hash_bytes());
        assert!(range.start >= Superblock::SIZE as u64);
    }
    true
}

const DATA: DeviceNumber = DeviceNumber { major: 254, minor: 1 };
const HASH: DeviceNumber = DeviceNumber { major: 254, minor: 2 };

/// The sealed table, as the boot side loads it, and the line that the kernel shows of it.
static TABLE: LazyLock<(VerityTable, String)> = LazyLock::new(|| {
    let verity = sealed::manifest().verity.clone();
    let options = verity.on_corruption.option().map(str::to_owned).into_iter().collect();
    let devices = [DATA.to_string(), HASH.to_string()];
    let table = VerityTable::new(devices, verity.parameters, 1, verity.root_hash, options).expect("it was sealed");
    let line = format!("0 {} verity {table}", table.sectors());
    (table, line)
});

/// A table line passes for the sealed one only if it holds the same words up to the options; a table made of any words
/// that are accepted passes for itself; and only the status `V` passes.
pub fn verity_table(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let status = check_status(text);
    assert_eq!(status.is_ok(), text.split_ascii_whitespace().next() == Some("V"));
    check_composed(text);
    let Ok(target) = LoadedTarget::parse(text) else { return false };
    let (table, line) = &*TABLE;
    if table.check_loaded(&target, DATA, HASH).is_ok() {
        let (mut found, mut expected): (Vec<_>, Vec<_>) =
            (text.split_ascii_whitespace().collect(), line.split_ascii_whitespace().collect());
        // Start and length are numbers, which may have leading zeros; the kernel may order options.
        for words in [&mut found, &mut expected] {
            words.drain(..2);
            words[12..].sort_unstable();
        }
        assert_eq!(found, expected);
        assert_eq!((target.start, target.sectors), (0, table.sectors()));
    }
    true
}

/// Takes the words of the text for optional arguments.
fn check_composed(text: &str) {
    let verity = sealed::manifest().verity.clone();
    let options = text.split(' ').map(str::to_owned).collect();
    let devices = [DATA.to_string(), HASH.to_string()];
    if let Ok(table) = VerityTable::new(devices, verity.parameters, 1, verity.root_hash, options) {
        let line = format!("0 {} verity {table}", table.sectors());
        let loaded = LoadedTarget::parse(&line).expect("the line has its form");
        assert_eq!(table.check_loaded(&loaded, DATA, HASH), Ok(()));
    }
}
