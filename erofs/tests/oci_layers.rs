//! Layers of an image are overlays in another notation, wherever their signs stand.

mod common;

use std::collections::BTreeMap;

use common::{
    EXACT, listing,
    random::{Made, entries, tree},
};
use erofs_image::{Tree, source::oci::Layers, tree::overlay};
use proptest::prelude::*;

/// An entry as a header and content (POSIX.1-2017 `pax`, "ustar Interchange Format").
fn ustar(name: &str, kind: u8, link: &str, owner: (u32, u32), content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000000");
    put(108, &format!("{:07o}", owner.0));
    put(116, &format!("{:07o}", owner.1));
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000000");
    put(337, "0000000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = header.to_vec();
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

/// The archive of a layer whose entries have the metadata that [`tree`] gives them; signs stand where `places` puts them.
fn layer(entries: &BTreeMap<String, Made>, number: u32, places: &[prop::sample::Index]) -> Vec<u8> {
    let mut parts = vec![ustar("./", b'5', "", (number, 0), b"")];
    let (mut signs, mut first) = (Vec::new(), String::new());
    for (index, (path, made)) in entries.iter().enumerate() {
        let owner = (number, index as u32);
        let (above, name) = path.rsplit_once('/').map_or(("", &**path), |(above, name)| (&path[..=above.len()], name));
        match made {
            Made::Whiteout => signs.push(ustar(&format!("{above}.wh.{name}"), b'0', "", owner, b"")),
            Made::Opaque => signs.push(ustar(&format!("{path}/.wh..wh..opq"), b'0', "", owner, b"")),
            _ => {}
        }
        parts.extend(match made {
            Made::Directory | Made::Opaque => Some(ustar(path, b'5', "", owner, b"")),
            Made::File => Some(ustar(path, b'0', "", owner, path.as_bytes())),
            Made::Link => Some(ustar(path, b'1', &first, owner, b"")),
            Made::Whiteout => None,
        });
        if *made == Made::File && first.is_empty() {
            first.clone_from(path);
        }
    }
    for (number, sign) in signs.into_iter().enumerate() {
        let place = places.get(number % places.len().max(1)).map_or(0, |place| place.index(parts.len() + 1));
        parts.insert(place, sign);
    }
    [parts.concat(), vec![0; 1024]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_give_what_overlays_of_the_same_give(
        all in prop::collection::vec(entries(), 1..5),
        places in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let (mut layers, mut expected) = (Layers::new(), None::<Tree>);
        for (number, entries) in all.iter().enumerate() {
            layers.add("a layer", &layer(entries, number as u32, &places)[..]).unwrap();
            let upper = tree(entries, number as u32);
            let base = expected.get_or_insert_with(|| Tree::new(Default::default()));
            overlay(base, upper).unwrap();
        }
        let found = layers.finish().unwrap();
        prop_assert_eq!(listing(&expected.unwrap(), EXACT), listing(&found.tree, EXACT));
        prop_assert_eq!(found.tree.len(), found.tree.clone().into_walked().len());
    }
}
