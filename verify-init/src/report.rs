//! Texts for people: refusals, kernel log records, times.

use std::{io, time::Duration};

use iofs_policy::failure::{FailureReport, Stage};

/// Priority of an error in the kernel log: shown on consoles even with `quiet`.
pub const ERROR: &str = "<3>";
/// Priority of a warning in the kernel log.
pub const WARNING: &str = "<4>";
/// The kernel refuses longer records with EINVAL (`LOG_LINE_MAX` of `kernel/printk/printk.c` less its prefix).
pub const MAX_RECORD: usize = 976;

/// Composes a refusal.
pub(crate) fn refusal(
    stage: Stage,
    fact: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
    next: impl Into<String>,
) -> FailureReport {
    let (fact, expected, found) = (fact.into(), expected.into(), found.into());
    FailureReport { stage, fact, expected, found, next_step: next.into() }
}

/// An error's text without the number that std appends, or with it where there is no text.
pub(crate) fn text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{} ({})", nix::errno::Errno::from_raw(number).desc(), number),
        None => error.to_string(),
    }
}

/// Splits a text into records for the kernel log, each with its priority and short enough.
pub fn records(priority: &str, text: &str) -> Vec<String> {
    let room = MAX_RECORD - priority.len();
    let mut records = Vec::new();
    for line in text.lines() {
        let mut rest = line;
        loop {
            let (head, tail) = rest.split_at(boundary(rest, room));
            records.push(format!("{priority}{head}"));
            if tail.is_empty() {
                break;
            }
            rest = tail;
        }
    }
    records
}

/// The last character boundary at or before `at`.
fn boundary(text: &str, at: usize) -> usize {
    if text.len() <= at { text.len() } else { (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0) }
}

/// Milliseconds with one decimal.
pub fn milliseconds(duration: Duration) -> String {
    let tenths = duration.as_micros() / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_have_one_decimal() {
        assert_eq!(milliseconds(Duration::from_micros(12_345)), "12.3");
        assert_eq!(milliseconds(Duration::ZERO), "0.0");
    }

    #[test]
    fn lines_become_records_with_their_priority() {
        assert_eq!(records(ERROR, "a\n  b"), ["<3>a", "<3>  b"]);
    }

    proptest! {
        #[test]
        fn records_are_short_enough_and_lose_nothing(text in "[a-zä€😀 ]{0,3000}") {
            let records = records(ERROR, &text);
            prop_assert!(records.iter().all(|record| record.len() <= MAX_RECORD && record.starts_with(ERROR)));
            prop_assert_eq!(records.iter().map(|record| &record[3..]).collect::<String>(), text);
        }
    }
}
