//! A unified kernel image: what is in it, what a signature covers, and what is measured of it.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    path::Path,
};

use iofs_policy::{digest::Sha256Digest, pcr::PcrBank};
use serde::Serialize;

use crate::{
    atomic, authenticode,
    pe::Headers,
    report::Failure,
    sealed::bad_input,
    secure_boot,
    uki::{self, PhaseValue},
    x509::SignerName,
};

/// Longer texts are not shown to people.
const MAX_SHOWN: usize = 400;

/// A unified kernel image, or the stub of one.
#[derive(Debug, Serialize)]
pub struct InspectedPe {
    /// Its processor.
    pub machine: &'static str,
    /// The version of systemd's stub.
    pub stub: String,
    /// What a Secure Boot signature covers: SHA-256 by Authenticode.
    pub authenticode: Sha256Digest,
    /// Who signed it. Each signature verifies with the certificate that it brings along, which is not checked itself.
    pub signers: Vec<SignerName>,
    /// The sections, in the file's order.
    pub sections: Vec<InspectedSection>,
    /// What register 11 holds in each phase of its boot, per bank; empty where the machine decides that, too.
    pub pcr11: BTreeMap<&'static str, Vec<PhaseValue>>,
    /// A section by which the machine decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpredicted: Option<&'static str>,
}

/// One section.
#[derive(Debug, Serialize)]
pub struct InspectedSection {
    /// Its name.
    pub name: String,
    /// Where it is loaded, in bytes from the image's start.
    pub address: u32,
    /// Its size in bytes.
    pub size: usize,
    /// SHA-256 of its contents.
    pub sha256: Sha256Digest,
    /// Its contents, where that is a short text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Looks at it. `None` where a PE image has none of systemd's stub in it.
pub(super) fn inspect(path: &Path) -> Result<Option<InspectedPe>, Failure> {
    let image = atomic::read(path)?;
    let Ok(headers) = Headers::parse(&image) else { return Ok(None) };
    let Some(stub) = uki::stub_version(&headers, &image) else { return Ok(None) };
    let sections = headers.sections.iter().map(|section| {
        let contents = section.contents(&image);
        InspectedSection {
            name: section.name.clone(),
            address: section.address,
            size: contents.len(),
            sha256: Sha256Digest::of(contents),
            text: text(&section.name, contents),
        }
    });
    let signers = secure_boot::signers(&image).map_err(|error| Failure::from(error).about(path))?;
    let predict = |bank: PcrBank| Ok((bank.name(), uki::predict(&headers, &image, bank)?));
    let unpredicted = uki::unpredicted(&headers, &image);
    let banks = PcrBank::ALL.into_iter().filter(|_| unpredicted.is_none());
    let pcr11 = banks.map(predict).collect::<Result<_, iofs_policy::pcr::PcrError>>();
    Ok(Some(InspectedPe {
        machine: headers.machine.name(),
        stub,
        authenticode: authenticode::digest(&image).map_err(|error| bad_input(path, &error))?,
        signers: signers.iter().map(|signer| signer.name().clone()).collect(),
        sections: sections.collect(),
        pcr11: pcr11.map_err(|error| bad_input(path, &error))?,
        unpredicted,
    }))
}

fn text(name: &str, contents: &[u8]) -> Option<String> {
    let is_text = matches!(name, ".osrel" | ".cmdline" | ".uname" | ".sbat" | ".pcrpkey");
    let text = std::str::from_utf8(contents).ok().filter(|_| is_text)?;
    Some(text.trim_end_matches('\0').to_owned())
}

impl Display for InspectedPe {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.sections.iter().any(|one| one.name == ".linux") { "unified kernel image" } else { "stub" };
        writeln!(out, "{kind} ({}), systemd-stub {}", self.machine, self.stub)?;
        writeln!(out, "  Authenticode: sha256:{}", self.authenticode)?;
        if self.signers.is_empty() {
            writeln!(out, "  signature: none")?;
        }
        self.signers.iter().try_for_each(|signer| writeln!(out, "  signed by: {signer}"))?;
        for InspectedSection { name, address, size, sha256, text } in &self.sections {
            writeln!(out, "  {name:9} {size:9} bytes at 0x{address:08x}  sha256:{sha256}")?;
            let shown = text.iter().filter(|text| text.len() <= MAX_SHOWN).flat_map(|text| text.lines());
            shown.into_iter().try_for_each(|line| writeln!(out, "    {}", line.escape_debug()))?;
        }
        for PhaseValue { phase, value } in self.pcr11.get("sha256").into_iter().flatten() {
            let phase = if phase.is_empty() { "the stub" } else { phase };
            writeln!(out, "  register 11 after {phase}: sha256:{value}")?;
        }
        if let Some(section) = self.unpredicted {
            writeln!(out, "  register 11: not predicted, its stub chooses of {section}")?;
        }
        Ok(())
    }
}
