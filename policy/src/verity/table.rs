//! The device-mapper table line of the verity target, and what the kernel says of it afterwards.
//!
//! Source: Linux `Documentation/admin-guide/device-mapper/verity.rst` and `verity_status` in
//! `drivers/md/dm-verity-target.c`.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Geometry, ParameterError, RootHash, VerityParameters};

/// The target's name in device-mapper.
const TARGET: &str = "verity";
/// The optional arguments that take one value; the kernel counts name and value as two.
const WITH_VALUE: [&str; 5] = ["use_fec_from_device", "fec_blocks", "fec_start", "fec_roots", "root_hash_sig_key_desc"];
/// The names of the fixed fields, in the kernel's order.
const FIELDS: [&str; 10] = [
    "hash type",
    "data device",
    "hash device",
    "data block size",
    "hash block size",
    "data blocks",
    "hash start block",
    "hash algorithm",
    "root hash",
    "salt",
];

/// Why a table was refused, or is not the one that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The parameters describe no possible device.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A word would be read by the kernel as none or several.
    #[error("{field}: expected one word without blanks or backslashes, found {found:?}")]
    Word {
        /// The field's name.
        field: &'static str,
        /// The text found.
        found: String,
    },
    /// An optional argument lacks its value.
    #[error("optional argument {0}: expected a value after it, found none")]
    MissingValue(String),
    /// An optional argument was given twice, or twice in different ways.
    #[error("optional argument {0}: expected once, found again")]
    Repeated(String),
    /// The line does not have the form of a table line.
    #[error("table line: expected {expected}, found {found:?}")]
    Malformed {
        /// What the line should hold.
        expected: &'static str,
        /// The line found.
        found: String,
    },
    /// The kernel holds another value than the one that was loaded.
    #[error("{field}: expected {expected}, found {found}")]
    Mismatch {
        /// The field's name.
        field: &'static str,
        /// The value that was loaded.
        expected: String,
        /// The value that the kernel reports.
        found: String,
    },
}

/// What the kernel reports of a running verity device's blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// The kernel has seen a block that does not verify.
    #[error("verity status: expected V (verified), found C (a block was corrupted)")]
    Corrupted,
    /// The status is unknown. It is treated as bad: the device cannot be vouched for.
    #[error("verity status: expected V (verified) or C (corrupted), found {0:?}")]
    Unknown(String),
}

/// What the kernel does when a block does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CorruptionAction {
    /// Panic: the machine stops at once, or reboots if the kernel is told so.
    Panic,
    /// Reboot.
    Restart,
    /// Fail the read, which is what the kernel does without an option.
    Eio,
}

impl CorruptionAction {
    /// The table option, if one is needed.
    pub fn option(self) -> Option<&'static str> {
        match self {
            Self::Panic => Some("panic_on_corruption"),
            Self::Restart => Some("restart_on_corruption"),
            Self::Eio => None,
        }
    }
}

/// A block device's number, as the kernel prints it in tables: `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's number within its driver.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// A checked table line of the verity target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTable {
    data_device: String,
    hash_device: String,
    parameters: VerityParameters,
    hash_start_block: u64,
    root_hash: RootHash,
    options: Vec<String>,
    sectors: u64,
}

impl VerityTable {
    /// Composes a table. Devices are paths or `major:minor`; options keep their order, a value follows its option.
    ///
    /// # Errors
    /// Whatever the kernel would refuse or misread: an impossible geometry, a root hash of the wrong size, a word with
    /// blanks, an option without its value or given twice.
    pub fn new(
        [data_device, hash_device]: [String; 2],
        parameters: VerityParameters,
        hash_start_block: u64,
        root_hash: RootHash,
        options: Vec<String>,
    ) -> Result<Self, TableError> {
        let sectors = Geometry::new(&parameters)?.data_sectors();
        root_hash.check_size(parameters.algorithm)?;
        check_word("data device", &data_device)?;
        check_word("hash device", &hash_device)?;
        options.iter().try_for_each(|option| check_word("optional argument", option))?;
        option_set(options.iter().map(String::as_str))?;
        Ok(Self { data_device, hash_device, parameters, hash_start_block, root_hash, options, sectors })
    }

    /// The device's length in 512-byte sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Checks what the kernel reports of the loaded table, with the device numbers that the paths stood for.
    ///
    /// The kernel prints optional arguments in an order of its own; all others must be equal word for word.
    ///
    /// # Errors
    /// [`TableError::Mismatch`] with the first field that differs, [`TableError::Malformed`] if there are too few.
    pub fn check_loaded(
        &self,
        loaded: &LoadedTarget<'_>,
        data_device: DeviceNumber,
        hash_device: DeviceNumber,
    ) -> Result<(), TableError> {
        expect("start", &0, &loaded.start)?;
        expect("sectors", &self.sectors, &loaded.sectors)?;
        expect("target", &TARGET, &loaded.target)?;
        let words: Vec<&str> = loaded.parameters.split_ascii_whitespace().collect();
        let Some((fixed, optional)) = words.split_at_checked(FIELDS.len()) else {
            return Err(malformed("10 fields or more", loaded.parameters));
        };
        let expected = self.fixed_fields(&data_device.to_string(), &hash_device.to_string());
        for ((field, expected), found) in FIELDS.into_iter().zip(&expected).zip(fixed) {
            expect(field, &expected.as_str(), found)?;
        }
        self.check_options(counted_options(optional, loaded.parameters)?)
    }

    fn fixed_fields(&self, data_device: &str, hash_device: &str) -> [String; FIELDS.len()] {
        let parameters = &self.parameters;
        let salt = match parameters.salt.as_bytes() {
            [] => "-".to_owned(),
            _ => parameters.salt.to_string(),
        };
        [
            u32::from(parameters.format).to_string(),
            data_device.to_owned(),
            hash_device.to_owned(),
            parameters.data_block_size.to_string(),
            parameters.hash_block_size.to_string(),
            parameters.data_blocks.to_string(),
            self.hash_start_block.to_string(),
            parameters.algorithm.to_string(),
            self.root_hash.to_string(),
            salt,
        ]
    }

    fn check_options(&self, found: &[&str]) -> Result<(), TableError> {
        let expected = option_set(self.options.iter().map(String::as_str))?;
        if option_set(found.iter().copied())? == expected {
            return Ok(());
        }
        let list = |words: &[&str]| if words.is_empty() { "none".to_owned() } else { words.join(" ") };
        let expected: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Err(TableError::Mismatch { field: "optional arguments", expected: list(&expected), found: list(found) })
    }
}

/// The target's parameters, without start, length and the target's name.
impl fmt::Display for VerityTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.fixed_fields(&self.data_device, &self.hash_device).join(" "))?;
        if !self.options.is_empty() {
            write!(formatter, " {} {}", self.options.len(), self.options.join(" "))?;
        }
        Ok(())
    }
}

/// One target as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedTarget<'a> {
    /// First sector on the mapped device.
    pub start: u64,
    /// Length in 512-byte sectors.
    pub sectors: u64,
    /// The target's name.
    pub target: &'a str,
    /// The target's parameters.
    pub parameters: &'a str,
}

impl<'a> LoadedTarget<'a> {
    /// Splits a line of `dmsetup table`: start, length, target, parameters.
    ///
    /// # Errors
    /// [`TableError::Malformed`] if the line has another form.
    pub fn parse(line: &'a str) -> Result<Self, TableError> {
        let broken = || malformed("start, length, target and parameters", line);
        let mut words = line.trim_end_matches('\n').splitn(4, ' ');
        let mut next = || words.next().ok_or_else(broken);
        let start = number(next()?).ok_or_else(broken)?;
        let sectors = number(next()?).ok_or_else(broken)?;
        Ok(Self { start, sectors, target: next()?, parameters: next()? })
    }
}

/// Checks the target's status text. Kernels with error correction append counters, which say nothing of corruption.
///
/// # Errors
/// [`StatusError::Corrupted`] for `C`, [`StatusError::Unknown`] for all else but `V`.
pub fn check_status(status: &str) -> Result<(), StatusError> {
    match status.split_ascii_whitespace().next() {
        Some("V") => Ok(()),
        Some("C") => Err(StatusError::Corrupted),
        _ => Err(StatusError::Unknown(status.to_owned())),
    }
}

/// Device-mapper splits at white space and takes a backslash as an escape.
fn check_word(field: &'static str, word: &str) -> Result<(), TableError> {
    let splits = |character: char| character.is_whitespace() || character.is_control() || character == '\\';
    match word.is_empty() || word.contains(splits) {
        true => Err(TableError::Word { field, found: word.to_owned() }),
        false => Ok(()),
    }
}

/// Pairs each option with its value: comparing bare words would let two values change places.
fn option_set<'a>(words: impl Iterator<Item = &'a str>) -> Result<BTreeSet<(&'a str, Option<&'a str>)>, TableError> {
    let (mut set, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut words = words;
    while let Some(name) = words.next() {
        if !names.insert(name) {
            return Err(TableError::Repeated(name.to_owned()));
        }
        let value = match WITH_VALUE.contains(&name) {
            true => Some(words.next().ok_or_else(|| TableError::MissingValue(name.to_owned()))?),
            false => None,
        };
        set.insert((name, value));
    }
    Ok(set)
}

fn counted_options<'a, 'b>(words: &'a [&'b str], line: &str) -> Result<&'a [&'b str], TableError> {
    let Some((count, options)) = words.split_first() else { return Ok(&[]) };
    match number::<usize>(count) {
        Some(count) if count == options.len() => Ok(options),
        _ => Err(malformed("the number of optional arguments before them", line)),
    }
}

/// Plain decimal digits: the kernel prints no sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn expect<T: PartialEq + fmt::Display>(field: &'static str, expected: &T, found: &T) -> Result<(), TableError> {
    if expected == found {
        return Ok(());
    }
    Err(TableError::Mismatch { field, expected: expected.to_string(), found: found.to_string() })
}

fn malformed(expected: &'static str, found: &str) -> TableError {
    TableError::Malformed { expected, found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verity::{BlockSize, HashAlgorithm, HashFormat};

    const ROOT: &str = "4392712ba01368efdf14b05c76f9e4df0d53664630b5d48632ed17a137f39076";
    const DATA: DeviceNumber = DeviceNumber { major: 254, minor: 1 };
    const HASH: DeviceNumber = DeviceNumber { major: 254, minor: 2 };

    /// The example of the kernel's documentation, which has one block size and salt.
    fn documented(options: &[&str]) -> Result<VerityTable, TableError> {
        let parameters = VerityParameters {
            format: HashFormat::Normal,
            algorithm: HashAlgorithm::Sha256,
            data_block_size: BlockSize::DEFAULT,
            hash_block_size: BlockSize::DEFAULT,
            data_blocks: 262144,
            salt: "1234000000000000000000000000000000000000000000000000000000000000".parse().unwrap(),
        };
        let devices = ["/dev/sda1".to_owned(), "/dev/sda2".to_owned()];
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        VerityTable::new(devices, parameters, 1, ROOT.parse().unwrap(), options)
    }

    fn loaded(line: &str) -> String {
        line.replace("/dev/sda1", "254:1").replace("/dev/sda2", "254:2")
    }

    fn check(table: &VerityTable, line: &str) -> Result<(), TableError> {
        table.check_loaded(&LoadedTarget::parse(line)?, DATA, HASH)
    }

    /// Linux 6.12 `verity.rst`, "Example".
    #[test]
    fn line_matches_the_kernels_documentation() {
        let table = documented(&[]).unwrap();
        let line = format!("0 {} verity {table}", table.sectors());
        assert_eq!(
            line,
            "0 2097152 verity 1 /dev/sda1 /dev/sda2 4096 4096 262144 1 sha256 \
             4392712ba01368efdf14b05c76f9e4df0d53664630b5d48632ed17a137f39076 \
             1234000000000000000000000000000000000000000000000000000000000000"
        );
        assert_eq!(check(&table, &loaded(&line)), Ok(()));
    }

    #[test]
    fn options_are_counted_and_keep_their_order() {
        let table = documented(&["panic_on_corruption", "fec_roots", "2"]).unwrap();
        assert!(table.to_string().ends_with(" 3 panic_on_corruption fec_roots 2"));
        let mut unsalted = documented(&[]).unwrap();
        unsalted.parameters.salt = "-".parse().unwrap();
        assert!(unsalted.to_string().ends_with(&format!("{ROOT} -")));
    }

    #[test]
    fn loaded_options_may_come_in_the_kernels_order() {
        let table = documented(&["ignore_zero_blocks", "restart_on_corruption"]).unwrap();
        let other = documented(&["restart_on_corruption", "ignore_zero_blocks"]).unwrap();
        assert_eq!(check(&table, &loaded(&format!("0 2097152 verity {other}\n"))), Ok(()));
    }

    #[test]
    fn each_difference_of_the_loaded_table_is_named() {
        let table = documented(&["restart_on_corruption"]).unwrap();
        let line = loaded(&format!("0 2097152 verity {table}"));
        let text = |from: &str, to: &str| check(&table, &line.replace(from, to)).unwrap_err().to_string();
        assert_eq!(text("2097152", "8"), "sectors: expected 2097152, found 8");
        assert_eq!(text("verity", "linear"), "target: expected verity, found linear");
        assert_eq!(text("254:1", "254:3"), "data device: expected 254:1, found 254:3");
        assert_eq!(text(" 262144", " 262143"), "data blocks: expected 262144, found 262143");
        assert!(text("4392", "4393").starts_with("root hash: expected 4392712b"));
        assert!(text(" 1 restart_on", " 1 ignore").starts_with("optional arguments: expected restart_on_corruption"));
        assert!(text(" 1 restart_on_corruption", "").ends_with("found none"));
        assert!(text(" 1 restart_on", " 2 restart_on").starts_with("table line: expected the number"));
        assert!(text("verity 1", "verity").starts_with("hash type: expected 1"));
        assert!(check(&table, "0 2097152 verity 1").is_err());
        assert!(check(&table, "").is_err());
    }

    #[test]
    fn values_of_options_cannot_change_places() {
        let table = documented(&["fec_blocks", "10", "fec_start", "20"]).unwrap();
        let line = loaded(&format!("0 2097152 verity {table}"));
        assert!(check(&table, &line.replace("fec_blocks 10 fec_start 20", "fec_blocks 20 fec_start 10")).is_err());
    }

    #[test]
    fn words_that_the_kernel_would_misread_are_refused() {
        assert!(matches!(documented(&["a b"]), Err(TableError::Word { .. })));
        assert!(matches!(documented(&["a\\"]), Err(TableError::Word { .. })));
        assert!(matches!(documented(&[""]), Err(TableError::Word { .. })));
        assert_eq!(documented(&["fec_roots"]), Err(TableError::MissingValue("fec_roots".to_owned())));
        assert_eq!(documented(&["x", "x"]), Err(TableError::Repeated("x".to_owned())));
    }

    #[test]
    fn status_is_trusted_only_when_it_says_verified() {
        assert_eq!(check_status("V"), Ok(()));
        assert_eq!(check_status("V -"), Ok(()));
        assert_eq!(check_status("C 12"), Err(StatusError::Corrupted));
        assert_eq!(check_status(""), Err(StatusError::Unknown(String::new())));
        assert_eq!(check_status("Verified"), Err(StatusError::Unknown("Verified".to_owned())));
    }

    #[test]
    fn corruption_actions_have_lower_case_names() {
        assert_eq!(serde_json::to_string(&CorruptionAction::Panic).unwrap(), "\"panic\"");
        assert_eq!(CorruptionAction::Eio.option(), None);
    }
}
