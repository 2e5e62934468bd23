//! Recovery keys: 256 random bits that people can type, in the form of systemd's.

use std::fmt;

use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use zeroize::{Zeroize, Zeroizing};

use super::fill_random;
use crate::report::Failure;

/// The digits of modhex: letters that lie at the same place on most keyboards.
const DIGITS: &[u8; 16] = b"cbdefghijklnrtuv";
const BYTES: usize = 32;
const GROUP: usize = 8;

/// A recovery key. Its text is the passphrase of its keyslot.
pub struct RecoveryKey(Zeroizing<String>);

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RecoveryKey")
    }
}

impl RecoveryKey {
    /// Makes one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> Result<Self, Failure> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        fill_random(&mut *bytes)?;
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8; BYTES]) -> Self {
        // As large as it becomes: no copy is left behind by growing.
        let mut text = Zeroizing::new(String::with_capacity(BYTES * 2 + BYTES * 2 / GROUP));
        for (number, byte) in bytes.iter().enumerate() {
            if number > 0 && number % (GROUP / 2) == 0 {
                text.push('-');
            }
            for digit in [byte >> 4, byte & 15] {
                text.push(DIGITS[usize::from(digit)].into());
            }
        }
        Self(text)
    }

    /// The text, which is the passphrase.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A QR code of the text, for terminals: two rows of modules to a line, light on dark.
    pub fn qr(&self) -> Zeroizing<String> {
        // 71 letters fit with any level; a lower one gives larger modules.
        let Ok(code) = QrCode::with_error_correction_level(self.0.as_bytes(), EcLevel::M) else {
            return Zeroizing::default();
        };
        let render = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
        let mut colors = code.into_colors();
        colors.iter_mut().for_each(|color| *color = qrcode::Color::Light);
        Zeroizing::new(render)
    }
}

/// Modhex as people type it: upper case and without the dashes too.
///
/// `None` where it is no recovery key.
pub fn normalized(typed: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    let mut digits = Zeroizing::new(Vec::with_capacity(BYTES * 2));
    for letter in typed.bytes().filter(|letter| *letter != b'-') {
        let digit = DIGITS.iter().position(|digit| *digit == letter.to_ascii_lowercase())?;
        digits.push(digit as u8);
    }
    if digits.len() != BYTES * 2 {
        return None;
    }
    bytes.iter_mut().zip(digits.chunks_exact(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    let RecoveryKey(text) = RecoveryKey::of(&bytes);
    bytes.zeroize();
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with Python 3.11: `python3 -c 'd = "cbdefghijklnrtuv"; t = "".join(d[x * 8 + 1 >> 4] + d[x * 8 + 1 & 15] for x in
    /// range(32)); print("-".join(t[i:i + 8] for i in range(0, 64, 8)))'`
    const GOLDEN: &str = "cbckbbbk-dbdkebek-fbfkgbgk-hbhkibik-jbjkkbkk-lblknbnk-rbrktbtk-ubukvbvk";

    fn golden() -> RecoveryKey {
        RecoveryKey::of(&std::array::from_fn(|index| index as u8 * 8 + 1))
    }

    #[test]
    fn a_recovery_key_has_eight_groups_of_eight_letters() {
        assert_eq!(golden().as_str(), GOLDEN);
        assert_ne!(RecoveryKey::generate().unwrap().as_str(), RecoveryKey::generate().unwrap().as_str());
    }

    #[test]
    fn a_recovery_key_may_be_typed_in_other_ways() {
        for typed in [GOLDEN, &GOLDEN.to_uppercase(), &GOLDEN.replace('-', "")] {
            assert_eq!(normalized(typed).unwrap().as_str(), GOLDEN);
        }
        for typed in ["", "c", &GOLDEN[1..], &GOLDEN.replace('c', "a"), &format!("{GOLDEN}c")] {
            assert!(normalized(typed).is_none(), "{typed}");
        }
    }

    #[test]
    fn a_code_has_rows_of_one_length_and_a_quiet_zone() {
        let key = golden();
        let code = key.qr();
        let rows: Vec<usize> = code.lines().map(|row| row.chars().count()).collect();
        assert!(rows.len() > 20 && rows.iter().all(|length| *length == rows[0]), "{rows:?}");
        assert!(
            code.lines().next().unwrap().chars().all(|module| module == '\u{2588}'),
            "{}",
            code.lines().next().unwrap()
        );
    }
}
