//! The Debian package, built on this machine, installs on Debian 12 and 13, works there, and leaves nothing when it goes.

use anyhow::{Result, ensure};
use swtpm_tests::debian::{Debian, package};

/// Prints all that groff finds wrong with a manual page.
const MANUALS: &str = "
    for page in /usr/share/man/man1/iofs-sign*.1.gz; do
        man --warnings --local-file $page 2>&1 >/dev/null
    done
    man --where iofs-sign-seal >/dev/null";

/// How bash calls a completion: the words, and which of them is being typed.
const BASH: &str = r#"bash -ec '
    . /usr/share/bash-completion/completions/iofs-sign
    function=$(complete -p iofs-sign | sed "s/.*-F \([^ ]*\) .*/\1/")
    COMP_WORDS=(iofs-sign ver) COMP_CWORD=1
    "$function" iofs-sign ver iofs-sign
    echo "${COMPREPLY[*]}"'"#;

const ZSH: &str =
    r#"zsh -fc 'autoload -U compinit && compinit -u -D && echo $_comps[iofs-sign] && autoload +X _iofs-sign'"#;

/// Everything that is packaged has a part in this one.
const SEAL: &str = "
    cd /root
    kernel=$(basename /lib/modules/*)
    iofs-sign keygen --quiet key
    iofs-sign seal --quiet --root /etc --key key.pem --kernel /boot/vmlinuz-$kernel --modules /lib/modules/$kernel \\
        --out sealed
    iofs-sign verify --quiet sealed --key key.pub.pem";

#[test]
fn on_debian_12_the_package_works_and_leaves_nothing() -> Result<()> {
    works_and_leaves_nothing("bookworm")
}

#[test]
fn on_debian_13_the_package_works_and_leaves_nothing() -> Result<()> {
    works_and_leaves_nothing("trixie")
}

fn works_and_leaves_nothing(suite: &str) -> Result<()> {
    let debian = Debian::unpacked(suite)?;
    let before = debian.files()?;
    debian.install(&package()?)?;
    assert_eq!(debian.shell("iofs-sign --version")?, concat!("iofs-sign ", env!("CARGO_PKG_VERSION"), "\n"));
    documents_are_sound(&debian)?;
    completions_complete(&debian)?;
    debian.shell(SEAL)?;
    // Nobody has asked for it: which boot is a good one, the owner says.
    let unit = "systemctl --root=/ is-enabled iofs-mark-good.service || true";
    assert_eq!(debian.shell(unit)?, "disabled\n");
    debian.shell("systemctl --root=/ enable iofs-mark-good.service")?;

    debian.shell("apt-get --quiet --yes remove iofs")?;
    ensure!(!debian.path("usr/bin/iofs-sign").exists(), "removed, and still there");
    debian.shell("apt-get --quiet --yes purge iofs")?;
    let after = debian.files()?;
    let left: Vec<_> = after.iter().filter(|(path, what)| before.get(*path) != Some(what)).collect();
    let lost: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    ensure!(left.is_empty() && lost.is_empty(), "left behind or changed: {left:#?}, lost: {lost:#?}");
    Ok(())
}

fn documents_are_sound(debian: &Debian) -> Result<()> {
    assert_eq!(debian.shell(MANUALS)?, "", "warnings");
    let pages: usize = debian.shell("ls /usr/share/man/man1/iofs-sign*.1.gz | wc -l")?.trim().parse()?;
    ensure!(pages > 30, "{pages} manual pages");
    debian.shell(
        "test -s /usr/share/doc/iofs/copyright && zcat --force /usr/share/doc/iofs/docs/cli.md* | grep -q iofs-sign",
    )?;
    Ok(())
}

fn completions_complete(debian: &Debian) -> Result<()> {
    assert_eq!(debian.shell(BASH)?, "verify verity\n");
    assert_eq!(debian.shell(ZSH)?, "_iofs-sign\n");
    // `generate` is hidden: it is for those who make packages.
    let fish =
        |words: &str| debian.shell(&format!("fish --command 'complete --do-complete \"{words}\"' | cut -f 1 | sort"));
    assert_eq!(fish("iofs-sign ver")?, "verify\nverity\n");
    assert_eq!(fish("iofs-sign genera")?, "");
    Ok(())
}
