//! Boots by UEFI firmware that enforces Secure Boot with keys of our own: firmware, signed unified kernel image,
//! verify-init, verified root.

mod attacks;
mod boots;
mod kernel_signature;
mod support;
