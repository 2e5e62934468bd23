//! Encrypted volumes that a boot opens: with the programs of two releases of systemd on the other side, and under attack.

mod attacks;
mod chain_changes;
mod peers;
mod support;
mod uses;
