//! Which of two versions is the newer one.

use std::cmp::Ordering;

/// Compares versions by the UAPI Group's Version Format Specification, as systemd and package managers do: runs of digits
/// by their value, letters by their bytes, `~` before everything and even before the end, and `-`, `^`, `.` in this order.
/// What is none of these separates and is passed over.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        (left, right) = (skip(left), skip(right));
        for separator in [b'~', b'-', b'^', b'.'] {
            let found = [left, right].map(|text| text.first() == Some(&separator));
            let before_end = separator == b'~';
            match found {
                [true, true] => {
                    (left, right) = (&left[1..], &right[1..]);
                    break;
                }
                [true, false] if before_end || !right.is_empty() => return Ordering::Less,
                [false, true] if before_end || !left.is_empty() => return Ordering::Greater,
                // What goes on is newer than what has ended.
                [true, false] => return Ordering::Greater,
                [false, true] => return Ordering::Less,
                [false, false] => {}
            }
        }
        (left, right) = (skip(left), skip(right));
        match (left.is_empty(), right.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) if right[0] != b'~' => return Ordering::Less,
            (false, true) if left[0] != b'~' => return Ordering::Greater,
            _ => {}
        }
        let starts = |text: &[u8], kind: fn(&u8) -> bool| text.first().is_some_and(kind);
        let order = if starts(left, u8::is_ascii_digit) || starts(right, u8::is_ascii_digit) {
            let (a, b);
            (a, left) = run(left, u8::is_ascii_digit);
            (b, right) = run(right, u8::is_ascii_digit);
            number(a, b)
        } else {
            let (a, b);
            (a, left) = run(left, u8::is_ascii_alphabetic);
            (b, right) = run(right, u8::is_ascii_alphabetic);
            a.cmp(b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Leaves out what only separates.
fn skip(text: &[u8]) -> &[u8] {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    &text[text.iter().position(is_part).unwrap_or(text.len())..]
}

fn run(text: &[u8], kind: fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !kind(byte)).unwrap_or(text.len()))
}

/// Of any length, without leading zeros. No digits at all are less than any number.
fn number(left: &[u8], right: &[u8]) -> Ordering {
    let strip = |digits: &[u8]| digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<_>>();
    match (left.is_empty(), right.is_empty()) {
        (false, false) => {
            let (left, right) = (strip(left), strip(right));
            left.len().cmp(&right.len()).then_with(|| left.cmp(&right))
        }
        (left, right) => right.cmp(&left),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_ordered_as_the_specification_has_them() {
        // The examples of the specification, and a few more.
        let ordered = [
            "122.1~rc1",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (index, left) in ordered.iter().enumerate() {
            for (other, right) in ordered.iter().enumerate() {
                assert_eq!(compare(left, right), index.cmp(&other), "{left} and {right}");
            }
        }
        for (left, right) in [
            ("1_", "1"),
            ("01", "1"),
            ("1..0", "1..0"),
            ("", "_"),
            ("10000000000000000000000", "010000000000000000000000"),
        ] {
            assert_eq!(compare(left, right), Ordering::Equal, "{left} and {right}");
        }
        assert_eq!(compare("99999999999999999999999", "100000000000000000000000"), Ordering::Less);
    }

    proptest! {
        #[test]
        fn the_order_is_total(texts in prop::array::uniform3("[0-9a-c~^._+-]{0,8}")) {
            let [a, b, c] = texts;
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le(), "{} {} {}", a, b, c);
            }
        }
    }
}
