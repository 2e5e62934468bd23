//! Lower-case hexadecimal, the one spelling in which digests appear in manifests and on kernel interfaces.

/// Why a hexadecimal string was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// The string has an odd number of digits.
    #[error("expected an even number of hexadecimal digits, found {0}")]
    OddLength(usize),
    /// The string has a character other than `0-9` and `a-f`.
    #[error("expected lower-case hexadecimal digits, found {found:?} at position {position}")]
    Digit {
        /// The offending character.
        found: char,
        /// Its byte position in the string.
        position: usize,
    },
}

/// Encodes bytes as lower-case hexadecimal.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Decodes lower-case hexadecimal. Upper case is refused, so that a value has exactly one spelling.
pub fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    if !text.len().is_multiple_of(2) {
        return Err(HexError::OddLength(text.len()));
    }
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut high = None;
    for (position, found) in text.char_indices() {
        let digit = match found {
            '0'..='9' => found as u8 - b'0',
            'a'..='f' => found as u8 - b'a' + 10,
            _ => return Err(HexError::Digit { found, position }),
        };
        match high.take() {
            None => high = Some(digit),
            Some(upper) => bytes.push(upper << 4 | digit),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_round_trips() {
        assert_eq!(encode(&[0x00, 0xab, 0xff]), "00abff");
        assert_eq!(decode("00abff"), Ok(vec![0x00, 0xab, 0xff]));
    }

    #[test]
    fn other_spellings_are_refused() {
        assert_eq!(decode("abc"), Err(HexError::OddLength(3)));
        assert_eq!(decode("aB"), Err(HexError::Digit { found: 'B', position: 1 }));
        assert_eq!(decode("é0"), Err(HexError::OddLength(3)));
        assert_eq!(decode("é"), Err(HexError::Digit { found: 'é', position: 0 }));
    }
}
