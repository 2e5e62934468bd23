//! The module index, and the globs in it.

use iofs_policy::modules::{ModuleId, ModuleIndex, fold, matches};

/// A module index that parses is written to the same text; loading all of it loads each module once, and none before
/// what it needs unless they need each other; what is loaded already is not loaded again.
pub fn module_index(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(index) = ModuleIndex::parse(text) else { return false };
    assert_eq!(index.to_text(), text);
    let all: Vec<ModuleId> = index.modules().iter().filter_map(|module| index.find(&module.name)).collect();
    assert_eq!(all.len(), index.modules().len(), "a module cannot be found by its name");
    let order = index.load_order(&all, &[]);
    let mut once = order.clone();
    once.sort_unstable();
    assert_eq!(once, all, "each module once");
    assert!(index.load_order(&all, &all).is_empty());
    let mut in_rounds = index.load_rounds(&all, &[]).concat();
    in_rounds.sort_unstable();
    assert_eq!(in_rounds, all, "each module in one round");
    for id in &all {
        check_alone(&index, *id);
    }
    assert!(index.always().iter().all(|id| index.get(*id).always));
    true
}

/// A module that asks for nothing in a circle comes after everything in front of it.
fn check_alone(index: &ModuleIndex, id: ModuleId) {
    let order = index.load_order(&[id], &[]);
    let place = order.iter().position(|one| *one == id).expect("what is asked for is loaded");
    let after = &index.get(id).after;
    for name in index.get(id).before.iter().filter(|name| !after.contains(name)) {
        let needed = index.find(name).expect("a checked index has no dangling names");
        let circle = needed == id || !index.load_order(&[needed], &[id]).contains(&needed);
        assert!(circle || order.contains(&needed), "{name} is left out");
        assert!(order[..place].contains(&needed) || needed == id, "{name} comes too late");
    }
}

/// A glob gives the answer that a slow matcher, written differently, gives; and a text without special bytes matches
/// itself. The input is a pattern, a newline and the text.
pub fn module_alias(data: &[u8]) -> bool {
    let Ok(input) = std::str::from_utf8(data) else { return false };
    let (pattern, text) = input.split_once('\n').unwrap_or((input, ""));
    let found = matches(pattern, text);
    if pattern.len().saturating_mul(text.len()) <= 1 << 14 {
        assert_eq!(found, slowly(pattern.as_bytes(), text.as_bytes()), "{pattern:?} over {text:?}");
    }
    if !text.contains(['*', '?', '[', '\\']) {
        assert!(matches(text, text));
    }
    found
}

/// fnmatch(3) row by row: which prefixes of the text each prefix of the pattern covers.
fn slowly(mut pattern: &[u8], text: &[u8]) -> bool {
    let mut covered = vec![false; text.len() + 1];
    covered[0] = true;
    while let Some(first) = pattern.first() {
        let (length, takes) = element(pattern);
        let mut next = vec![false; text.len() + 1];
        if *first == b'*' {
            let start = covered.iter().position(|one| *one).unwrap_or(covered.len());
            next[start..].fill(true);
        } else {
            for at in 0..text.len() {
                next[at + 1] = covered[at] && takes(fold(text[at]));
            }
        }
        covered = next;
        pattern = &pattern[length..];
    }
    covered[text.len()]
}

/// The length of the pattern's first element, and which bytes it takes.
fn element(pattern: &[u8]) -> (usize, Box<dyn Fn(u8) -> bool + '_>) {
    match pattern {
        [b'?', ..] => (1, Box::new(|_| true)),
        [b'\\', literal, ..] => (2, Box::new(move |byte| byte == fold(*literal))),
        [b'[', rest @ ..] => match class_end(rest) {
            Some(end) => (end + 2, Box::new(move |byte| in_class(&rest[..end], byte))),
            None => (1, Box::new(|byte| byte == b'[')),
        },
        [literal, ..] => (1, Box::new(move |byte| byte == fold(*literal))),
        [] => (0, Box::new(|_| false)),
    }
}

/// Where the `]` of a class stands; the first one is a member. A range takes the byte behind its `-`.
fn class_end(rest: &[u8]) -> Option<usize> {
    let first = usize::from(rest.first().is_some_and(|byte| b"!^".contains(byte)));
    let mut at = first;
    loop {
        match rest[at.min(rest.len())..] {
            [] => return None,
            [b']', ..] if at > first => return Some(at),
            [_, b'-', high, ..] if high != b']' => at += 3,
            _ => at += 1,
        }
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    let (negated, mut members) = match class {
        [b'!' | b'^', members @ ..] => (true, members),
        members => (false, members),
    };
    let mut found = false;
    loop {
        members = match members {
            [] => return found != negated,
            [low, b'-', high, rest @ ..] => {
                found |= low <= &byte && &byte <= high;
                rest
            }
            [one, rest @ ..] => {
                found |= *one == byte;
                rest
            }
        };
    }
}
