//! Layers of an image are overlays in another notation, wherever their signs stand.

mod common;

use common::{
    EXACT, listing,
    random::{archive, entries, tree},
};
use erofs_image::{Tree, source::oci::Layers, tree::overlay};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_give_what_overlays_of_the_same_give(
        all in prop::collection::vec(entries(), 1..5),
        places in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let (mut layers, mut expected) = (Layers::new(), None::<Tree>);
        for (number, entries) in all.iter().enumerate() {
            layers.add("a layer", &archive(entries, number as u32, &places)[..]).unwrap();
            let upper = tree(entries, number as u32);
            let base = expected.get_or_insert_with(|| Tree::new(Default::default()));
            overlay(base, upper).unwrap();
        }
        let found = layers.finish().unwrap();
        prop_assert_eq!(listing(&expected.unwrap(), EXACT), listing(&found.tree, EXACT));
        prop_assert_eq!(found.tree.len(), found.tree.clone().into_walked().len());
    }
}
