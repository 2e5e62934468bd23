//! Everything that an administrator or a build server runs: seal a root tree, sign it, check it, look into it.

pub mod archive;
pub mod atomic;
pub mod attest;
pub mod authenticode;
pub mod check;
pub mod disk;
#[cfg(feature = "enroll")]
pub mod enroll;
pub mod epoch;
pub mod erofs;
pub mod initramfs;
pub mod inspect;
pub mod keys;
pub mod pcr_policy;
pub mod pe;
pub mod pkcs7;
pub mod report;
pub mod roothash;
pub mod seal;
pub mod sealed;
pub mod secure_boot;
pub mod status;
pub mod tree;
pub mod uki;
pub mod verity;
pub mod x509;
