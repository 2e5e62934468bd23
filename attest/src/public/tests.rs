use super::*;

/// Made by swtpm 0.7.1 and tpm2-tools 5.4, for G in rsa and ecc: `tpm2_createek -G $G -c ek -u ek-$G.public`, `tpm2_createak
/// -C ek -G $G -g sha256 -s SCHEME -c ak -u ak-$G.public -n ak.name` (rsassa, ecdsa), `tpm2_readpublic -c ek -n ek.name`.
const GOLDEN: [(&[u8], &str); 4] = [
    (
        include_bytes!("../testdata/ek-rsa.public"),
        "000b5f6ba9213231f9b540e05c325a89d067aa459b2d4df707cc3c3f3df784e82e6b",
    ),
    (
        include_bytes!("../testdata/ek-ecc.public"),
        "000b6ff2d1779ee524a296bc90bb608e0c97771a7d9e7fc436354f6705c81d226050",
    ),
    (
        include_bytes!("../testdata/ak-rsa.public"),
        "000bef93d8ad6f55c4217b3676c04fb215ecdbe928aefa52e8ef5243be14770cd29a",
    ),
    (
        include_bytes!("../testdata/ak-ecc.public"),
        "000b893af162879bd621510863ef3de1659f9ac370d91bdad0c00fb6075461f5bbeb",
    ),
];

#[test]
fn names_equal_those_that_the_tpm_computed() {
    for (bytes, name) in GOLDEN {
        let public = Public::parse(bytes).unwrap();
        assert_eq!(public.name().to_string(), name);
        assert_eq!(Name::of_tpm2b(bytes), Ok(public.name()));
        assert_eq!(public.to_bytes(), bytes);
    }
}

#[test]
fn keys_are_read_as_the_tools_asked_for_them() {
    let [ek_rsa, ek_ecc, ak_rsa, ak_ecc] = GOLDEN.map(|(bytes, _)| Public::parse(bytes).unwrap());
    for ek in [&ek_rsa, &ek_ecc] {
        assert_eq!(
            (ek.attributes, ek.symmetric, ek.scheme),
            (Attributes(0x0003_00b2), Some(AesCfb(128)), Scheme::Null)
        );
        assert_eq!(ek.auth_policy.len(), 32);
    }
    for ak in [&ak_rsa, &ak_ecc] {
        assert_eq!((ak.attributes, ak.symmetric), (Attributes(0x0005_0072), None));
    }
    assert_eq!(
        [ak_rsa.scheme, ak_ecc.scheme],
        [SignatureAlgorithm::RsaSsa, SignatureAlgorithm::EcDsa]
            .map(|algorithm| Scheme::Signature(SignatureScheme { algorithm, digest: PcrBank::Sha256 }))
    );
    assert!(matches!(&ek_rsa.key, Key::Rsa { modulus, exponent: 65537 } if modulus.len() == 256));
    assert!(matches!(&ek_ecc.key, Key::Ecc { curve: Curve::P256, point } if point.len() == 65 && point[0] == 4));
}

#[test]
fn a_public_area_that_is_cut_or_too_long_is_refused() {
    for (bytes, _) in GOLDEN {
        for size in 0..bytes.len() {
            Public::parse(&bytes[..size]).unwrap_err();
            Public::parse_area(&bytes[2..][..size.saturating_sub(2)]).unwrap_err();
        }
        let error = Public::parse(&[bytes, &[0]].concat()).unwrap_err();
        assert_eq!(error.to_string(), "publicArea: expected nothing behind it, found 1 bytes");
    }
    assert_eq!(Public::parse(&[0; MAX_SIZE + 1]), Err(PublicError::TooLarge(MAX_SIZE + 1)));
}

#[test]
fn fields_of_other_kinds_are_refused_by_name() {
    let ecc = GOLDEN[3].0;
    for (position, bytes, expected) in [
        (2, 0x0008_u16, "type: expected 0001 (RSA) or 0023 (ECC), found 0008"),
        (4, 0x0012, "nameAlg: expected SHA-256, SHA-384 or SHA-512, found 0012"),
        (12, 0x0026, "symmetric: expected 0006 (TPM_ALG_AES) or 0010 (TPM_ALG_NULL), found 0026"),
        (14, 0x1234, "scheme: expected a scheme of RSA or ECC, found 1234"),
        (18, 0x0010, "curveID: expected 0003 (P-256) or 0004 (P-384), found 0010"),
        (20, 0x0020, "kdf: expected 0010 (TPM_ALG_NULL), found 0020"),
    ] {
        let mut changed = ecc.to_vec();
        changed[position..position + 2].copy_from_slice(&bytes.to_be_bytes());
        let error = Public::parse(&changed).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn zeroes_that_a_tpm_leaves_out_of_a_coordinate_come_back() {
    let ecc = GOLDEN[3].0;
    let mut area = ecc[2..22].to_vec();
    area.extend([0, 1, 7, 0, 32]);
    area.extend(&ecc[58..]);
    let Key::Ecc { point, .. } = Public::parse_area(&area).unwrap().key else { panic!("expected a point") };
    assert_eq!((point.len(), point[31], point[32]), (65, 0, 7));
}

#[test]
fn missing_attributes_are_named() {
    let wanted = [Attributes::RESTRICTED, Attributes::SIGN];
    assert_eq!(Attributes(0x0005_0072).first_missing(&wanted), None);
    assert_eq!(Attributes(0x0004_0072).first_missing(&wanted), Some("restricted"));
}

#[test]
fn names_by_sha1_are_no_names() {
    let error = Name::of_public_area(b"\x00\x01\x00\x04more").unwrap_err().to_string();
    assert_eq!(error, "nameAlg: expected SHA-256, SHA-384 or SHA-512, found 0004");
}
