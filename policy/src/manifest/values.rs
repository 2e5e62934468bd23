//! The manifest's small values, each checked when it is made.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, found {found:?}")]
pub struct ValueError {
    /// What the value is.
    pub field: &'static str,
    /// What it may be.
    pub expected: &'static str,
    /// What was given.
    pub found: String,
}

/// Defines a string newtype with one rule, checked in the constructor and on deserialisation.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $field:literal, $expected:literal, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = ValueError;

            fn try_from(text: String) -> Result<Self, ValueError> {
                let rule: fn(&str) -> bool = $rule;
                if rule(&text) {
                    return Ok(Self(text));
                }
                Err(ValueError { field: $field, expected: $expected, found: text })
            }
        }

        impl std::str::FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

checked_string! {
    /// A product's name, as in `org.example.gateway`.
    ImageId, "image id", "1 to 64 of a-z, 0-9, '.', '_' and '-'",
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

checked_string! {
    /// A version, as in `13.2-4`.
    ImageVersion, "image version", "1 to 64 printable ASCII characters without spaces",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

checked_string! {
    /// A GPT partition's name, or a disk's: a single component of a path.
    PartitionLabel, "partition label", "1 to 36 characters without control characters and '/'",
    |text| (1..=36).contains(&text.chars().count())
        && !text.chars().any(|one| one.is_control() || one == '/')
        && text != "." && text != ".."
}

checked_string! {
    /// One option of the erofs mount.
    MountOption, "mount option", "letters, digits, '_', '-', '=' and '.', without 'rw', 'device=' and 'domain_id='",
    |text| !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-=.".contains(&byte))
        && !(text == "rw" || text.starts_with("device=") || text.starts_with("domain_id=") || text.starts_with("fsid="))
}

checked_string! {
    /// An absolute path inside the real root.
    RootPath, "path", "an absolute path without '..', of at most 255 bytes",
    |text| text.starts_with('/') && text.len() <= 255
        && !text.bytes().any(|byte| byte.is_ascii_control())
        && !text.split('/').any(|part| part == "..")
}

checked_string! {
    /// A tmpfs size: bytes with an optional k, m or g, or a percentage of the memory.
    OverlaySize, "overlay size", "a number above 0 with an optional k, m, g or %, as in 512m or 50%",
    |text| {
        let digits = text.trim_end_matches(['k', 'm', 'g', '%']);
        let number: Option<u64> = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
        text.len() - digits.len() <= 1 && number.is_some_and(|number| number > 0 && (!text.ends_with('%') || number <= 100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts<T: std::str::FromStr>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text:?} was refused");
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn values_out_of_their_alphabet_are_refused() {
        accepts::<ImageId>(&["debian", "org.example.car-2_b"], &["", "Debian", "a b", "a/b", "ä", &"a".repeat(65)]);
        accepts::<ImageVersion>(&["1", "13.2~rc1+x"], &["", "1 2", "1\n", "é"]);
        accepts::<PartitionLabel>(&["system_a", "Größe", "vda"], &["", "a/b", "..", "a\n", &"x".repeat(37)]);
        accepts::<MountOption>(&["nodev", "cache_strategy=none"], &["", "rw", "ro,rw", "device=/dev/vdb", "fsid=x"]);
        accepts::<RootPath>(&["/sbin/init", "/"], &["", "sbin/init", "/a/../b", "/a\nb"]);
        accepts::<OverlaySize>(
            &["50%", "100%", "512m", "1g", "4096"],
            &["", "0", "%", "m", "101%", "50%%", "1t", "-1", "+1", "1 m"],
        );
    }
}
