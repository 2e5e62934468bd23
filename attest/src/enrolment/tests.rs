use super::*;

fn request() -> Request {
    Request {
        enrolment_version: ENROLMENT_VERSION,
        ek_public: Base64Bytes(include_bytes!("../testdata/ek-ecc.public").to_vec()),
        ek_certificate: None,
        ak_public: Base64Bytes(include_bytes!("../testdata/ak-ecc.public").to_vec()),
        banks: vec!["sha1".to_owned(), "sha256".to_owned()],
    }
}

fn answer(secret: &[u8]) -> Answer {
    Answer { enrolment_version: ENROLMENT_VERSION, secret: Base64Bytes(secret.to_vec()) }
}

#[test]
fn the_device_of_the_request_is_enrolled_by_the_secret_alone() {
    let (_, mut pending) = challenge(&request(), "gate 7", Trust::Unverified).unwrap();
    for wrong in [&b""[..], &[0; 32]] {
        assert_eq!(accept(&pending, &answer(wrong)), Err(EnrolmentError::WrongSecret));
    }
    pending.secret_sha256 = Sha256Digest::of(b"secret");
    let device = accept(&pending, &answer(b"secret")).unwrap();
    assert_eq!((device.name.as_str(), device.ek_root), ("gate 7", None));
    assert_eq!((device.ak_public, device.ek_public), (request().ak_public, request().ek_public));
}

#[test]
fn each_challenge_has_a_secret_of_its_own() {
    let [one, other] = [0; 2].map(|_| challenge(&request(), "a", Trust::Unverified).unwrap().1);
    assert_ne!(one.secret_sha256, other.secret_sha256);
}

#[test]
fn a_key_without_a_certificate_needs_a_decision() {
    let at = crate::certificate::time(1_800_000_000).unwrap();
    let trust = Trust::Roots { roots: &[], intermediates: &[], at };
    assert_eq!(challenge(&request(), "a", trust), Err(EnrolmentError::NoCertificate));
    let with = Request { ek_certificate: Some(Base64Bytes(b"x".to_vec())), ..request() };
    assert!(matches!(challenge(&with, "a", trust), Err(EnrolmentError::Certificate(_))));
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let banks = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (request, expected) in [
        (Request { enrolment_version: 2, ..request() }, "request: enrolment_version: expected 1, found 2"),
        (
            Request { ek_public: Base64Bytes(vec![]), ..request() },
            "request: ek_public: size: expected 2 bytes, found 0",
        ),
        (Request { ak_public: request().ek_public, ..request() }, "expected sign to be set"),
        (Request { ek_public: request().ak_public, ..request() }, "expected decrypt to be set"),
        (Request { banks: banks(&[]), ..request() }, "request: banks: expected each once"),
        (Request { banks: banks(&["sha1"]), ..request() }, "request: banks: expected each once"),
        (Request { banks: banks(&["sha256", "sha256"]), ..request() }, "request: banks: expected each once"),
        (Request { banks: banks(&["sha256", "md5"]), ..request() }, "found \"md5\""),
    ] {
        let error = challenge(&request, "a", Trust::Unverified).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}
