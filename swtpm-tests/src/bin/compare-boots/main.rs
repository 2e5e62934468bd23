//! Boots one sealed image of a whole Debian by three inits in turn, on one machine that counts instructions: a bare shell script that
//! mounts it unverified, verify-init, and dracut with systemd's veritysetup. Prints when PID 1 became the initramfs' init and when
//! the real one.
//!
//! Then the same 10 MiB are read from images of growing size, once by a classic initramfs that has all of it in memory.
//!
//! Times are milliseconds of the guest. `compare-boots inits SUITE` does the one with a Debian's kernel and root, `compare-boots
//! scaling SIZE...` the other with images of so many MiB of content.

mod initramfs;
mod inits;
mod scaling;
mod stopwatch;

use anyhow::{Result, bail};
use iofs_policy::manifest::TpmUse;
use iofs_sign::seal::SealRequest;

use self::stopwatch::{PARAMETERS, STOPWATCH};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["inits", suite] => inits::compare(suite),
        ["scaling", ref sizes @ ..] if !sizes.is_empty() => {
            sizes.iter().try_for_each(|size| scaling::measure(size.parse()?))
        }
        _ => bail!("usage: compare-boots inits SUITE, or compare-boots scaling SIZE..."),
    }
}

/// Seals the stopwatch along, as the init.
fn with_stopwatch(request: &mut SealRequest, tpm: TpmUse) {
    request.config.boot.init = Some(STOPWATCH.parse().expect("a path"));
    request.config.boot.allowed_parameters.extend(PARAMETERS.map(str::to_owned));
    request.config.tpm.usage = tpm;
    let rule = format!("{}:{STOPWATCH}", stopwatch::program().display());
    request.config.tree.add.push(rule.try_into().expect("a rule"));
}
