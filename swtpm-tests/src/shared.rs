//! What several tests of one program use, made once.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Result;

/// What lies in this place, or what `make` makes: all tests that run at the same time share one, and it goes with the last.
///
/// # Errors
///
/// Those of `make`; the next test tries again.
pub fn shared<T>(place: &Mutex<Weak<T>>, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = place.upgrade() {
        return Ok(shared);
    }
    let made = Arc::new(make()?);
    *place = Arc::downgrade(&made);
    Ok(made)
}
