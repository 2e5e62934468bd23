//! Machines with Secure Boot that start a signed image: their registers beside what was predicted, a verifier that knows the
//! release and what firmware does, and what it says of everything that somebody changed.

mod attested;
mod predicted;
mod register_15;
mod support;
mod tampered;
