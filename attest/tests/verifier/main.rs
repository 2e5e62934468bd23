//! The verifier against honest machines and against each known way to cheat it.

mod support;

mod batches;
mod explained;
mod firmware;
mod flips;
mod forgery;
mod identity;
mod logs;
mod swtpm;
