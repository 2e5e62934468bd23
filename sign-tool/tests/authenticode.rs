//! The digest that firmware measures, against those that Debian signed.

use std::{fs, path::Path};

use iofs_sign::authenticode::digest;

#[test]
fn the_digest_of_a_kernel_is_the_one_in_its_signature() {
    for suite in ["bookworm", "trixie"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../cache/kernels/{suite}/vmlinuz"));
        let kernel = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}\n  run: make cache", path.display()));
        let digest = digest(&kernel).unwrap();
        // The signed attributes have it in clear (Windows Authenticode, SpcIndirectDataContent); the table is at the end.
        let signature = &kernel[kernel.len() - 4096..];
        assert!(signature.windows(32).any(|bytes| bytes == digest.as_bytes()), "{suite}: {digest}");
    }
}
