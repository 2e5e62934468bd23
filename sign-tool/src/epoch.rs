//! The timestamp that reproducible builds agree on (reproducible-builds.org).

use crate::report::{ExitStatus, Failure};

/// The variable's name.
const VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// `SOURCE_DATE_EPOCH`, where it is set: seconds since 1970, in whatever size of number its user can store.
///
/// # Errors
/// It is set to something else, or to more than the number holds.
pub fn source_date_epoch<T: std::str::FromStr>() -> Result<Option<T>, Failure> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| {
        let bits = 8 * size_of::<T>();
        let fact = format!("{VARIABLE}: expected seconds since 1970 below 2^{bits}, found {}", text.display());
        Failure::new(ExitStatus::Usage, fact).next("set it to such a number, or unset it")
    })
}
