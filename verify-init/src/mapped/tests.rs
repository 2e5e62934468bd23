use iofs_policy::{
    failure::{FailureAction, Stage},
    manifest::RootHashSignature,
    paths::ROOT_HASH_SIGNATURE,
};

use crate::{
    boot,
    fake::{End, Fake, KNOWN_SIGNATURE, manifest},
};

/// A machine whose manifest asks for this, and whose initramfs has this signature.
fn machine(sealed: RootHashSignature, signature: Option<&[u8]>) -> Fake {
    let mut manifest = manifest();
    manifest.verity.root_hash_signature = sealed;
    let mut fake = Fake::sealed(&manifest);
    fake.put("/proc/cmdline", b"console=ttyS0\n");
    fake.files.extend(signature.map(|bytes| (ROOT_HASH_SIGNATURE.to_owned(), bytes.to_vec())));
    fake
}

fn table(fake: &Fake) -> &str {
    &fake.tables["root"].1.text
}

#[test]
fn the_kernel_is_given_the_signature_and_the_key_is_gone_afterwards() {
    for sealed in [RootHashSignature::Required, RootHashSignature::Preferred] {
        let mut fake = machine(sealed, Some(KNOWN_SIGNATURE));
        assert!(matches!(boot(&mut fake), End::Init(..)), "{}", fake.console);
        assert!(table(&fake).ends_with(" 3 panic_on_corruption root_hash_sig_key_desc iofs:roothash"));
        assert!(fake.console.contains(", signed as the kernel demands"), "{}", fake.console);
        assert!(fake.calls.iter().any(|call| call == "add_key user iofs:roothash"));
        assert!(fake.keys.is_empty());
    }
}

#[test]
fn a_signature_that_the_kernel_does_not_know_stops_the_boot_where_it_is_required() {
    for (signature, expected) in [
        (Some(&b"by another"[..]), "it is by no key that this kernel looks for (Required key not available"),
        (None, "there is no signature in the initramfs (No such file"),
    ] {
        let mut fake = machine(RootHashSignature::Required, signature);
        assert_eq!(boot(&mut fake), End::Stopped(FailureAction::Halt));
        let block = format!("BOOT REFUSED before stage \"{}\"", Stage::Mapped);
        assert!(fake.console.contains(&block), "{}", fake.console);
        assert!(fake.console.contains("does not accept the signature of the root hash"), "{}", fake.console);
        assert!(fake.console.contains(expected), "{}", fake.console);
        assert!(fake.tables.is_empty() && fake.keys.is_empty());
    }
}

#[test]
fn where_it_is_preferred_the_boot_goes_on_without_and_says_so() {
    let mut fake = machine(RootHashSignature::Preferred, Some(b"by another"));
    assert!(matches!(boot(&mut fake), End::Init(..)), "{}", fake.console);
    assert!(table(&fake).ends_with(" 1 panic_on_corruption"));
    let warning = "warning: the kernel does not check the signed root hash: it is by no key";
    assert!(fake.console.contains(warning), "{}", fake.console);
}

#[test]
fn where_it_is_off_nothing_is_asked() {
    let mut fake = machine(RootHashSignature::Off, Some(KNOWN_SIGNATURE));
    assert!(matches!(boot(&mut fake), End::Init(..)), "{}", fake.console);
    assert!(table(&fake).ends_with(" 1 panic_on_corruption"));
    assert!(fake.calls.iter().all(|call| !call.contains("roothash")));
}
