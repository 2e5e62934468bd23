//! Text files that people write.

use iofs_sign::seal::{config::Config, os_release::OsRelease};

/// An `iofs.toml` is read or refused with a reason; places in it are written so that they are read as the same.
pub fn iofs_toml(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().trim().is_empty());
            return false;
        }
    };
    for place in [&config.place.data, &config.place.tree].into_iter().flatten() {
        let again = iofs_sign::seal::config::PlaceText::try_from(place.0.to_string());
        assert_eq!(again.as_ref(), Ok(place));
    }
    assert!(config.module_requests().iter().filter(|request| !config.modules.add.contains(&request.name)).count() > 0);
    true
}

/// Whatever an os-release file holds, the image gets an id and a version that are valid: those of the file, or the
/// defaults.
pub fn os_release(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let found = OsRelease::parse(text);
    let (id, version) = (found.image_id(), found.image_version());
    assert!(id.as_str() == "root" || text.contains(id.as_str()));
    assert!(version.as_str() == "1" || text.contains(version.as_str()));
    let again = OsRelease::parse(&format!("IMAGE_ID=\"{id}\"\nIMAGE_VERSION='{version}'\n"));
    assert!(version.as_str().contains(['"', '\'']) || (again.image_id(), again.image_version()) == (id, version));
    found != OsRelease::default()
}
