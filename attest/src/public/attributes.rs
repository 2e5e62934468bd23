//! What a TPM lets be done with an object.

/// Attributes of an object (TPMA_OBJECT, Part 2, section 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(pub u32);

impl Attributes {
    /// It never leaves its TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// It never leaves its parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made its secret.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// Its password or HMAC authorizes its use.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// Its policy alone authorizes administration.
    pub const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    /// It signs, or decrypts, only what the TPM itself made.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// It decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// It signs.
    pub const SIGN: Self = Self(1 << 18);
    /// It signs certificates of which the caller chooses a part.
    pub const X509_SIGN: Self = Self(1 << 19);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::FIXED_TPM, "fixedTPM"),
        (Self::FIXED_PARENT, "fixedParent"),
        (Self::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Self::USER_WITH_AUTH, "userWithAuth"),
        (Self::ADMIN_WITH_POLICY, "adminWithPolicy"),
        (Self::RESTRICTED, "restricted"),
        (Self::DECRYPT, "decrypt"),
        (Self::SIGN, "sign"),
        (Self::X509_SIGN, "x509sign"),
    ];

    /// Whether all of these are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The name of the first one of these that is not set.
    pub(crate) fn first_missing(self, wanted: &[Self]) -> Option<&'static str> {
        wanted.iter().find(|one| !self.has(**one)).map(|one| one.name())
    }

    /// The name of the first one of these that is set.
    pub(crate) fn first_present(self, unwanted: &[Self]) -> Option<&'static str> {
        unwanted.iter().find(|one| self.has(**one)).map(|one| one.name())
    }

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(one, _)| *one == self).map_or("reserved", |(_, name)| name)
    }
}
