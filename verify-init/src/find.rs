//! `verify-init --find PLACE`: which device a boot would take, and how long it looks. For whoever wonders why a boot does not
//! find its disk, and for measuring.

use iofs_policy::manifest::Place;

use crate::{
    devices::{BlockDevice, Looked, Scanner},
    system::System,
};

/// Looks once, as a boot does whose disks are all there, and returns what it found with the exit code: 0 for one device, 1 for
/// none or several, 2 for no place.
pub fn find<S: System>(system: &mut S, place: &str) -> (String, i32) {
    let place: Place = match place.parse() {
        Ok(place) => place,
        Err(error) => return (format!("{error}\n"), 2),
    };
    let before = system.now();
    let devices = Scanner::default().scan(system, Looked::at([&place].into_iter()));
    let there: Vec<&BlockDevice> = devices.iter().filter(|device| device.is(&place)).collect();
    let took = system.now().saturating_sub(before).as_micros();
    let seen = devices.len();
    match there.as_slice() {
        [device] => (format!("{}: {place}, found among {seen} devices in {took} µs\n", device.path), 0),
        [] => (format!("no device is {place} among {seen} in {took} µs\n"), 1),
        several => {
            let paths: Vec<&str> = several.iter().map(|device| device.path.as_str()).collect();
            (format!("{} are {place}: a boot would be refused\n", paths.join(" and ")), 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn one_device_is_found_and_doubt_is_not() {
        let mut fake = Fake::empty();
        fake.add_disk("vda", 1 << 20, &[("vda1", "a", None, 4096), ("vda2", "b", None, 4096)]);
        let (text, code) = find(&mut fake, "PARTLABEL=b");
        assert!(code == 0 && text.starts_with("/dev/vda2: PARTLABEL=b, found among 3 devices in "), "{text}");
        fake.add_disk("vdb", 1 << 20, &[("vdb1", "b", None, 4096)]);
        assert_eq!(
            find(&mut fake, "PARTLABEL=b").0,
            "/dev/vda2 and /dev/vdb1 are PARTLABEL=b: a boot would be refused\n"
        );
        assert_eq!(find(&mut fake, "PARTLABEL=c").1, 1);
        assert_eq!(find(&mut fake, "b").1, 2);
    }
}
