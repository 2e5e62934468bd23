//! A LUKS2 header, as people read it.

use std::fmt::{self, Display, Formatter};

use iofs_policy::manifest::RollbackRule;
use iofs_tpm::ladder::Ladder;

use super::{
    InspectedLuks,
    luks::{InspectedKdf, InspectedKeyslot, InspectedToken, InspectedTpm2},
};

/// Where the rollback counter ends a token, whose policy may be signed.
pub(crate) fn rollback_text(rule: RollbackRule, signed: bool) -> String {
    let RollbackRule { counter, value, index } = rule;
    if signed {
        let (first, last) = Ladder::new(rule).indexes();
        return format!("{first} to {last}, the first until counter {counter:#010x} is above {value}");
    }
    format!("{index}, until counter {counter:#010x} is above {value}")
}

impl Display for InspectedLuks {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "LUKS2 volume {}", self.uuid)?;
        for (name, text) in [("label", &self.label), ("subsystem", &self.subsystem)] {
            if !text.is_empty() {
                writeln!(out, "  {name}: {text:?}")?;
            }
        }
        writeln!(
            out,
            "  header: the {} one, sequence id {}; {} bytes, keyslots {} bytes",
            self.copy, self.sequence_id, self.header_size, self.keyslots_size
        )?;
        let segment = &self.segment;
        let size = segment.size.map_or("up to the end".to_owned(), |size| format!("{size} bytes"));
        let integrity = segment.integrity.map_or(String::new(), |name| format!(", authenticated by {name}"));
        writeln!(
            out,
            "  data: from byte {}, {size}; {} in sectors of {} bytes{integrity}",
            segment.offset, segment.encryption, segment.sector_size
        )?;
        if !self.flags.is_empty() {
            writeln!(out, "  flags: {}", self.flags.join(" "))?;
        }
        self.keyslots.iter().try_for_each(|keyslot| keyslot.fmt(out))?;
        self.tokens.iter().try_for_each(|token| token.fmt(out))?;
        self.warnings.iter().try_for_each(|warning| writeln!(out, "  warning: {warning}"))
    }
}

impl Display for InspectedKdf {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pbkdf2 { hash, iterations } => write!(out, "pbkdf2, {iterations} iterations of {hash}"),
            Self::Argon2 { variant, time, memory_kib, lanes } => {
                write!(out, "{variant}, {time} passes over {memory_kib} KiB in {lanes} lanes")
            }
        }
    }
}

impl Display for InspectedKeyslot {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let priority = if self.priority == "normal" { String::new() } else { format!(", priority {}", self.priority) };
        let opened = match (self.bound, self.tokens.as_slice()) {
            (false, _) => "belongs to no data".to_owned(),
            (true, []) => "opened by a passphrase".to_owned(),
            (true, tokens) => format!("opened by token {}", listed(tokens, " ")),
        };
        writeln!(out, "keyslot {}: {opened}; {} bits, {}{priority}", self.keyslot, self.key_bits, self.kdf)
    }
}

impl Display for InspectedToken {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.r#type.is_empty() { "no type" } else { &self.r#type };
        writeln!(out, "token {}: {kind:?}, for keyslot {}", self.token, listed(&self.keyslots, " "))?;
        if let Some(why) = &self.broken {
            writeln!(out, "  BROKEN: {why}")?;
        }
        self.tpm2.iter().try_for_each(|tpm2| tpm2.fmt(out))
    }
}

impl Display for InspectedTpm2 {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let bank = self.bank.unwrap_or("any bank");
        writeln!(out, "  registers: {} ({bank})", listed(&self.pcrs, "+"))?;
        if let Some(key) = self.public_key_sha256 {
            writeln!(out, "  signed registers: {}, by the key of PEM sha256:{key}", listed(&self.signed_pcrs, "+"))?;
        }
        let pin = match (self.pin, self.salted) {
            (false, _) => "no",
            (true, true) => "yes, salted",
            (true, false) => "yes, without salt",
        };
        writeln!(out, "  PIN: {pin}")?;
        match (self.srk_handle, &self.srk_name) {
            (Some(handle), Some(name)) => writeln!(out, "  storage root key: {handle:#010x}, name {name}")?,
            _ => writeln!(out, "  storage root key: none pinned; made anew by the template ({})", self.primary_alg)?,
        }
        if let Some(rule) = self.rollback {
            writeln!(out, "  rollback index: {}", rollback_text(rule, !self.signed_pcrs.is_empty()))?;
        }
        if let Some(handle) = self.persistent_handle {
            writeln!(out, "  sealed object: kept in the TPM at {handle:#010x}")?;
        }
        for hash in &self.policy_hashes {
            writeln!(out, "  policy: {hash}")?;
        }
        if self.pcrlock {
            writeln!(out, "  pcrlock: yes, so that verify-init does not use this token")?;
        }
        if !self.unknown_fields.is_empty() {
            writeln!(out, "  unknown fields: {}", self.unknown_fields.join(" "))?;
        }
        Ok(())
    }
}

fn listed(numbers: &[u8], separator: &str) -> String {
    if numbers.is_empty() {
        return "none".to_owned();
    }
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
