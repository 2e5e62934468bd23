//! The storage root key that was pinned at enrolment.
//!
//! Whoever sits on the bus can answer TPM2_ReadPublic with a key of its own. So sessions are salted to the pinned key, and
//! what the TPM answers only tells under which handle to find it.

use crate::{
    client::{Answer, CommandError, Tpm, malformed},
    command::{Command, CommandCode},
    crypto::{Point, SIZE},
    name::{Kind, Name, Public},
    reader::Reader,
    response::ResponseError,
    session::{Auth, flush},
    transport::Transport,
};

/// Where the storage root key is kept (TCG TPM v2.0 Provisioning Guidance, section 7.5.1).
pub const SRK_HANDLE: u32 = 0x8100_0001;
/// `TPM_RH_OWNER` (Part 2, section 7.4).
const OWNER: u32 = 0x4000_0001;
/// TPM2B_SENSITIVE_CREATE (Part 2, section 11.1.16) with neither authorization value nor data.
const SENSITIVE_EMPTY: [u8; 6] = [0, 4, 0, 0, 0, 0];

/// `fixedTPM`, `restricted` and `decrypt` (Part 2, section 8.3): a key that does not leave its TPM and decrypts nothing
/// for others.
const STORAGE_KEY: u32 = 1 << 1 | 1 << 16 | 1 << 17;

/// Why a key cannot be pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The public area is malformed.
    #[error("public area of the storage root key: {0}")]
    Malformed(#[from] ResponseError),
    /// It is a key of another kind.
    #[error("storage root key: expected an ECC key on P-256, found another kind of key")]
    Kind,
    /// Its point is not on the curve.
    #[error("storage root key: expected a point on P-256, found one beside it")]
    Curve,
    /// It is no storage key.
    #[error("objectAttributes: expected fixedTPM, restricted and decrypt (0x00030002), found {0:#010x}")]
    Attributes(u32),
}

/// The public area of a storage root key as it was at enrolment: on P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedSrk {
    public: Public,
    point: Point,
}

impl PinnedSrk {
    /// Takes a TPMT_PUBLIC.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn parse(public: &[u8]) -> Result<Self, PinError> {
        Self::new(Public::parse(public)?)
    }

    /// Takes a public area.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn new(public: Public) -> Result<Self, PinError> {
        let Kind::EccP256(point) = public.kind() else { return Err(PinError::Kind) };
        if public.attributes() & STORAGE_KEY != STORAGE_KEY {
            return Err(PinError::Attributes(public.attributes()));
        }
        if point.is_on_curve() { Ok(Self { public, point }) } else { Err(PinError::Curve) }
    }

    /// The public area.
    pub fn public(&self) -> &Public {
        &self.public
    }
}

/// Why the pinned key is not there.
#[derive(Debug, thiserror::Error)]
pub enum SrkError {
    /// The TPM did not answer, or not in a way that can be understood.
    #[error("storage root key: {0}")]
    Command(#[from] CommandError),
    /// It is another TPM, or a cleared one, or somebody answers in its place.
    #[error(
        "this TPM's storage root key is not the pinned one: expected Name {expected}, found {found} \
         (another TPM, one that was cleared, or a changed bus: enrol again only where you know which)"
    )]
    Other {
        /// The pinned key's Name.
        expected: Name,
        /// The Name of the last key that was offered.
        found: Name,
    },
}

/// Where a TPM says that it has the pinned key. Sessions salted to it show whether that is so.
#[derive(Debug)]
pub struct Srk {
    handle: u32,
    /// Whether it is to be flushed.
    transient: bool,
    name: Name,
    point: Point,
}

impl Srk {
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    pub(crate) fn is_transient(&self) -> bool {
        self.transient
    }

    pub(crate) fn name(&self) -> Name {
        self.name
    }

    pub(crate) fn point(&self) -> Point {
        self.point
    }

    /// The pinned key as if it were at this handle: whoever uses it finds out.
    pub(crate) fn presumed(pin: &PinnedSrk, handle: u32) -> Self {
        Self { handle, transient: false, name: pin.public.name(), point: pin.point }
    }

    /// Removes the key from the TPM's memory where it was made for this boot.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn release<T: Transport>(mut self, tpm: &mut Tpm<T>) -> Result<(), CommandError> {
        self.release_once(tpm)
    }

    /// The same key; what is left behind has nothing to flush.
    pub(crate) fn take(&mut self) -> Self {
        let transient = std::mem::take(&mut self.transient);
        Self { transient, ..*self }
    }

    pub(crate) fn release_once<T: Transport>(&mut self, tpm: &mut Tpm<T>) -> Result<(), CommandError> {
        if std::mem::take(&mut self.transient) { flush(tpm, self.handle) } else { Ok(()) }
    }
}

/// Finds the pinned key: at [`SRK_HANDLE`], or else made again in the owner hierarchy, whose authorization is empty then.
///
/// # Errors
/// See [`SrkError`].
pub fn pinned_srk<T: Transport>(tpm: &mut Tpm<T>, pin: &PinnedSrk) -> Result<Srk, SrkError> {
    pinned_srk_at(tpm, pin, SRK_HANDLE)
}

/// The same with another handle.
pub(crate) fn pinned_srk_at<T: Transport>(tpm: &mut Tpm<T>, pin: &PinnedSrk, handle: u32) -> Result<Srk, SrkError> {
    if offered(tpm, handle)?.is_some_and(|public| public == pin.public.as_bytes()) {
        return Ok(Srk::presumed(pin, handle));
    }
    let mut offered = Name::of(&[]);
    // `unique` is empty where systemd made the key, and zeros where the Provisioning Guidance is followed to the letter.
    for unique in [&[][..], &[0; SIZE]] {
        // A point's x and y.
        let template = Template { fixed: pin.public.template(), unique: &[unique, unique] };
        let (handle, public) = create_primary(tpm, template)?;
        if public == pin.public.as_bytes() {
            return Ok(Srk { transient: true, ..Srk::presumed(pin, handle) });
        }
        offered = Name::of(&public);
        flush(tpm, handle)?;
    }
    Err(SrkError::Other { expected: pin.public.name(), found: offered })
}

/// The TPMT_PUBLIC of an object: `None` where the TPM refuses to show one.
pub(crate) fn offered<T: Transport>(tpm: &mut Tpm<T>, handle: u32) -> Result<Option<Vec<u8>>, CommandError> {
    let command = Command::new(CommandCode::ReadPublic).handle(handle);
    match tpm.run(&command) {
        Ok(parameters) => public_area(&parameters).map(Some).map_err(|source| malformed(command.code(), source)),
        Err(CommandError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The public area of an object (TPM2_ReadPublic, Part 3, section 12.4), as whoever is on the bus says. It is pinned by
/// [`PinnedSrk::new`] at enrolment, and not afterwards.
///
/// # Errors
/// See [`CommandError`].
pub fn read_public<T: Transport>(tpm: &mut Tpm<T>, handle: u32) -> Result<Public, CommandError> {
    let command = Command::new(CommandCode::ReadPublic).handle(handle);
    let parameters = tpm.run(&command)?;
    let public = public_area(&parameters).and_then(|public| Public::parse(&public));
    public.map_err(|source| malformed(command.code(), source))
}

/// TPM2_ReadPublic's parameters: the public area, the Name that says the same, and the qualified Name, which says who the
/// parents are and is not looked at.
pub(crate) fn public_area(parameters: &[u8]) -> Result<Vec<u8>, ResponseError> {
    let mut reader = Reader::new(parameters);
    let public = reader.sized("outPublic")?;
    let name = reader.sized("name")?;
    reader.sized("qualifiedName")?;
    reader.end("TPM2_ReadPublic's parameters")?;
    // A Name by another digest is no pinned key's.
    if name != Name::of(public).as_bytes() {
        let found = name.len() as u32;
        return Err(ResponseError::Value { field: "name", expected: "SHA-256 of outPublic", found });
    }
    Ok(public.to_vec())
}

/// What a primary key is made from: a TPMT_PUBLIC without `unique`, and the parts of that.
#[derive(Clone, Copy)]
struct Template<'a> {
    fixed: &'a [u8],
    unique: &'a [&'a [u8]],
}

/// TPM2_CreatePrimary (Part 3, section 24.1) without authorization value and data, in the owner hierarchy.
fn create_primary<T: Transport>(tpm: &mut Tpm<T>, template: Template<'_>) -> Result<(u32, Vec<u8>), CommandError> {
    let size = template.fixed.len() + template.unique.iter().map(|part| 2 + part.len()).sum::<usize>();
    let command = Command::new(CommandCode::CreatePrimary).handle(OWNER).bytes(&SENSITIVE_EMPTY);
    // A template is a part of a public area, which has a size of 16 bits.
    let command = command.u16(size as u16).bytes(template.fixed);
    let command = template.unique.iter().fold(command, |command, part| command.sized(part));
    // No outsideInfo, and no registers in the creation data.
    let command = command.u16(0).u32(0);
    let Answer { handle, parameters } = tpm.execute(&command, &mut [Auth::empty_password()])?;
    match created(&parameters) {
        Ok(public) => Ok((handle, public)),
        Err(source) => {
            flush(tpm, handle)?;
            Err(malformed(command.code(), source))
        }
    }
}

pub(crate) fn created(parameters: &[u8]) -> Result<Vec<u8>, ResponseError> {
    let mut reader = Reader::new(parameters);
    let public = reader.sized("outPublic")?;
    reader.sized("creationData")?;
    reader.sized("creationHash")?;
    reader.bytes("creationTicket", 2 + 4)?;
    reader.sized("creationTicket.digest")?;
    reader.sized("name")?;
    reader.end("TPM2_CreatePrimary's parameters")?;
    Ok(public.to_vec())
}

/// The public area of the storage root key that a TPM makes by the template of the TCG TPM v2.0 Provisioning Guidance, as
/// systemd does: on P-256, for AES-128 in CFB mode, `noDA`. For enrolment, where none is at [`SRK_HANDLE`]. The key does
/// not stay in the TPM.
///
/// # Errors
/// See [`CommandError`].
pub fn standard_srk<T: Transport>(tpm: &mut Tpm<T>) -> Result<Public, CommandError> {
    let made = make_standard(tpm)?;
    flush(tpm, made.handle)?;
    Ok(made.public)
}

/// A key that systemd made anew each time before it kept storage root keys: fixedTPM, fixedParent, sensitiveDataOrigin,
/// userWithAuth, restricted, decrypt, and otherwise as the standard one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LegacyParent {
    /// On P-256.
    Ecc,
    /// RSA of 2048 bits.
    Rsa,
}

/// A key that was made for this boot.
pub(crate) struct Made {
    pub(crate) handle: u32,
    pub(crate) public: Public,
}

impl Made {
    /// Salts sessions to the key as if it had been pinned: who answers for the TPM is not known then.
    pub(crate) fn unpinned(self) -> Result<Srk, PinError> {
        let pin = PinnedSrk::new(self.public)?;
        Ok(Srk { transient: true, ..Srk::presumed(&pin, self.handle) })
    }
}

pub(crate) fn make_legacy<T: Transport>(tpm: &mut Tpm<T>, kind: LegacyParent) -> Result<Made, CommandError> {
    make(tpm, if kind == LegacyParent::Ecc { LEGACY_ECC } else { LEGACY_RSA })
}

/// The standard key, which stays until it is flushed.
pub(crate) fn make_standard<T: Transport>(tpm: &mut Tpm<T>) -> Result<Made, CommandError> {
    make(tpm, STANDARD)
}

fn make<T: Transport>(tpm: &mut Tpm<T>, template: Template<'_>) -> Result<Made, CommandError> {
    let (handle, public) = create_primary(tpm, template)?;
    match Public::parse(&public) {
        Ok(public) => Ok(Made { handle, public }),
        Err(source) => {
            flush(tpm, handle)?;
            Err(malformed(CommandCode::CreatePrimary, source))
        }
    }
}

/// ECC, SHA-256; fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt; no policy; AES, 128
/// bits, CFB; no scheme, P-256, no KDF; no point.
const STANDARD: Template<'_> = Template {
    fixed: &[0, 0x23, 0, 0x0b, 0, 3, 0x04, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10],
    unique: &[&[], &[]],
};
/// The same without noDA.
const LEGACY_ECC: Template<'_> = Template {
    fixed: &[0, 0x23, 0, 0x0b, 0, 3, 0x00, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10],
    unique: &[&[], &[]],
};
/// RSA: behind the scheme come 2048 bits and the exponent 65537, written as 0.
const LEGACY_RSA: Template<'_> = Template {
    fixed: &[0, 1, 0, 0x0b, 0, 3, 0x00, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0],
    unique: &[&[]],
};
