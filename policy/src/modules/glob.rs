//! Alias patterns: fnmatch(3) without flags, and `-` equal to `_`, as modprobe has it.

/// A byte with `-` written `_`.
pub fn fold(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

/// Whether the glob `pattern` covers all of `text`: `*`, `?`, `[a-z]`, `[!a-z]`, and `\` before a literal.
///
/// Steps back to the last `*` only, so the work is at most the product of both lengths.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
        } else if let Some(length) = step(&pattern[p..], fold(text[t])) {
            p += length;
            t += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How long the pattern's first element is, if it takes `byte`.
fn step(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern {
        [b'?', ..] => Some(1),
        [b'[', ref rest @ ..] => match class(rest, byte) {
            Some((length, taken)) => taken.then_some(length + 1),
            // Without its end, fnmatch takes the bracket literally.
            None => (byte == b'[').then_some(1),
        },
        [b'\\', literal, ..] => (fold(literal) == byte).then_some(2),
        [literal, ..] => (fold(literal) == byte).then_some(1),
        [] => None,
    }
}

/// Reads a class behind its `[`: its length with the `]`, and whether it takes `byte`. `None` if it has no end.
fn class(rest: &[u8], byte: u8) -> Option<(usize, bool)> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    let mut at = start;
    let mut found = false;
    loop {
        let low = *rest.get(at)?;
        if low == b']' && at > start {
            return Some((at + 1, found != negated));
        }
        let range = rest.get(at + 1) == Some(&b'-') && rest.get(at + 2).is_some_and(|high| *high != b']');
        let high = if range { rest[at + 2] } else { low };
        found |= (low..=high).contains(&byte);
        at += if range { 3 } else { 1 };
    }
}
