//! As much of DER (X.690) as public keys and ECDSA signatures need: definite lengths of at most two bytes.

/// What is left of a value. `None` everywhere stands for whatever is not DER, or not what was expected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Der<'a>(&'a [u8]);

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

impl<'a> Der<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The content of the next value, which has that tag.
    fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, rest) = self.0.split_first()?;
        let (length, rest) = length(rest)?;
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (*found == tag).then_some(content)
    }

    pub(crate) fn sequence(&mut self) -> Option<Self> {
        self.value(SEQUENCE).map(Self)
    }

    /// A whole number that is not negative, big-endian without zeros in front.
    pub(crate) fn unsigned(&mut self) -> Option<&'a [u8]> {
        match self.value(INTEGER)? {
            [] | [0x80..=0xff, ..] | [0, 0..=0x7f, ..] => None,
            [0, rest @ ..] => Some(rest),
            whole => Some(whole),
        }
    }

    /// A bit string of whole bytes.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        self.value(BIT_STRING)?.strip_prefix(&[0])
    }

    /// Exactly these bytes.
    pub(crate) fn exactly(&mut self, bytes: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(bytes)?;
        Some(())
    }

    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// In its shortest form only.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [short @ 0..=0x7f, rest @ ..] => Some((usize::from(*short), rest)),
        [0x81, one @ 0x80..=0xff, rest @ ..] => Some((usize::from(*one), rest)),
        [0x82, high @ 1..=0xff, low, rest @ ..] => Some((usize::from(u16::from_be_bytes([*high, *low])), rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_their_shortest_form_only() {
        let number = |content: &[u8]| {
            let bytes = [&[2, u8::try_from(content.len()).unwrap()], content].concat();
            Der::new(&bytes).unsigned().map(<[u8]>::to_vec)
        };
        assert_eq!(number(&[0]), Some(vec![]));
        assert_eq!(number(&[1, 0]), Some(vec![1, 0]));
        assert_eq!(number(&[0, 0x80]), Some(vec![0x80]));
        assert_eq!(number(&[0, 0x7f]), None, "a zero too many");
        assert_eq!(number(&[0x80]), None, "negative");
        assert_eq!(number(&[]), None);
    }

    #[test]
    fn lengths_are_read_in_their_shortest_form_only() {
        for (bytes, expected) in [
            (&[0x7f][..], Some(0x7f)),
            (&[0x81, 0x80], Some(0x80)),
            (&[0x82, 1, 0], Some(0x100)),
            (&[0x81, 0x7f], None),
            (&[0x82, 0, 0x80], None),
            (&[0x83, 1, 0, 0], None),
            (&[0x80], None),
            (&[], None),
        ] {
            assert_eq!(length(bytes).map(|(length, _)| length), expected, "{bytes:x?}");
        }
    }
}
