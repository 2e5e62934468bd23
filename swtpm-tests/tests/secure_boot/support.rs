//! The firmware, and what it says.

use std::{sync::OnceLock, time::Duration};

use anyhow::Result;
use swtpm_tests::SecureBoot;

/// From power-on to the first word of verify-init, on a busy host.
pub(crate) const FIRMWARE: Duration = Duration::from_secs(120);

/// One set of keys for all tests: making them takes longer than using them.
pub(crate) fn keys() -> Result<&'static SecureBoot> {
    static KEYS: OnceLock<Result<SecureBoot, String>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| SecureBoot::new().map_err(|error| format!("{error:#}")));
    keys.as_ref().map_err(|error| anyhow::Error::msg(error.clone()))
}
