//! Names of entries.

use crate::format::directory::NAME_LIMIT;

/// Splits off empty components and `.`, and refuses `..`: no tool writes it, and what it means depends on symbolic links.
///
/// # Errors
/// What is wrong with it.
pub fn normalise(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("`..` in it".into()),
            part if part.contains(&0) => return Err("a NUL in it".into()),
            part if part.len() > NAME_LIMIT => {
                return Err(format!("a part of {} bytes, at most {NAME_LIMIT} are possible", part.len()));
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// Splits a normalised name into its directory and its last part.
pub fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&name[..slash], &name[slash + 1..]),
        None => (b"", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_plain_and_those_that_lead_out_refused() {
        assert_eq!(normalise(b"./a//b/."), Ok(b"a/b".to_vec()));
        assert_eq!(normalise(b"/"), Ok(Vec::new()));
        for bad in [&b"a/../b"[..], b"..", b"a\0", &[b'n'; 256]] {
            assert!(normalise(bad).is_err());
        }
    }
}
