//! A volume that was enrolled once, for whatever the PCR key signs on this machine with Secure Boot: which releases open it, which
//! do not, and how that ends.

mod rollback;
mod support;
mod updates;
