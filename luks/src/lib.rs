//! Reads LUKS2 volumes: headers, tokens and keyslots.
//!
//! [`Header::read`] takes a volume's metadata and refuses whatever this toolkit would not open: nothing is derived from a
//! header that is not on the allow-list. [`Header::open`] makes the volume key of a keyslot and a passphrase,
//! [`Token`] says how to come by a passphrase, and [`Segment`] gives the device-mapper tables. Nothing here writes.
//!
//! A LUKS2 header is signed by nobody. What it says was written by whoever had the disk last; [`VolumeKey::id`] is what an
//! image pins to know its own volume again.
//!
//! The format is that of the LUKS2 On-Disk Format Specification, 1.1.2; what it leaves open is as cryptsetup 2.6 and 2.7
//! write it.
#![forbid(unsafe_code)]

mod area;
mod binary;
mod cipher;
mod error;
mod header;
mod integrity;
mod json;
mod kdf;
mod key;
mod keyslot;
mod open;
mod segment;
mod source;
mod table;
mod token;

#[doc(hidden)]
pub use binary::with_checksum;
pub use binary::{CopyError, HeaderCopy, KNOWN_HEADER_SIZES};
pub use cipher::{Cipher, Hash, Integrity};
pub use error::FieldError;
pub use header::{Extent, Flag, Header, HeaderError};
pub use integrity::{IntegritySuperblock, IntegritySuperblockError};
pub use kdf::{Argon2Variant, Kdf, Limits};
pub use key::VolumeKey;
pub use keyslot::{Area, Keyslot, Priority, SlotId};
pub use open::OpenError;
pub use segment::Segment;
pub use source::ReadAt;
pub use table::{Below, CryptTable, IntegrityTable, KeyReference};
pub use token::{PrimaryAlg, SignedPcrs, Token, TokenId, TokenSrk, Tpm2Token};
