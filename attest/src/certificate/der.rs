//! As much of DER as certificates' keys and signatures need besides the parser (ITU-T X.690).

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// A value with its tag, and what follows it.
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
    rest: &'a [u8],
}

fn value(bytes: &[u8]) -> Option<Value<'_>> {
    let (tag, length, header) = match *bytes {
        [tag, length, ..] if length < 0x80 => (tag, usize::from(length), 2),
        [tag, 0x81, length, ..] => (tag, usize::from(length), 3),
        [tag, 0x82, high, low, ..] => (tag, usize::from(u16::from_be_bytes([high, low])), 4),
        _ => return None,
    };
    let (whole, rest) = bytes.split_at_checked(header + length)?;
    Some(Value { tag, content: &whole[header..], whole, rest })
}

/// All bytes of the first value in a sequence.
pub(super) fn first_of_sequence(bytes: &[u8]) -> Option<&[u8]> {
    let sequence = value(bytes).filter(|one| one.tag == SEQUENCE)?;
    value(sequence.content).map(|one| one.whole)
}

/// The two positive integers of which a sequence consists, without zeroes before them.
pub(super) fn two_integers(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let sequence = value(bytes).filter(|one| one.tag == SEQUENCE && one.rest.is_empty())?;
    let first = value(sequence.content)?;
    let second = value(first.rest).filter(|second| second.rest.is_empty())?;
    Some((positive(&first)?, positive(&second)?))
}

fn positive<'a>(integer: &Value<'a>) -> Option<&'a [u8]> {
    match integer.content {
        _ if integer.tag != INTEGER => None,
        [0, rest @ ..] if rest.first().is_some_and(|byte| byte >> 7 == 1) => Some(rest),
        [1..=0x7f, ..] => Some(integer.content),
        _ => None,
    }
}
