//! `iofs-sign install` on Debians as they are installed: from the package, by the distribution's own initramfs and boot loader,
//! over kernel upgrades, and away again.

mod machines;
mod support;
