use proptest::prelude::*;

use super::*;

fn module(name: &str, before: &[&str], after: &[&str], aliases: &[&str]) -> Module {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Module {
        name: name.to_owned(),
        file: format!("{name}.ko"),
        before: owned(before),
        after: owned(after),
        aliases: owned(aliases),
        ..Module::default()
    }
}

fn index(modules: Vec<Module>) -> ModuleIndex {
    ModuleIndex::new("6.1.0-13-amd64".to_owned(), modules).unwrap()
}

fn names(index: &ModuleIndex, ids: &[ModuleId]) -> Vec<String> {
    ids.iter().map(|id| index.get(*id).name.clone()).collect()
}

#[test]
fn dependencies_come_first_and_post_softdeps_last_each_once() {
    let index = index(vec![
        module("a", &["b", "c"], &["d"], &[]),
        module("b", &["c"], &[], &[]),
        module("c", &[], &[], &[]),
        module("d", &["c"], &[], &[]),
    ]);
    let a = index.find("a").unwrap();
    assert_eq!(names(&index, &index.load_order(&[a, a], &[])), ["c", "b", "a", "d"]);
    let c = index.find("c").unwrap();
    assert_eq!(names(&index, &index.load_order(&[a], &[c])), ["b", "a", "d"]);
}

#[test]
fn what_needs_nothing_of_each_other_is_loaded_in_one_round() {
    let index = index(vec![
        module("disk", &["bus"], &[], &[]),
        module("bus", &[], &["helper"], &[]),
        module("helper", &[], &[], &[]),
        module("map", &[], &[], &[]),
        module("verity", &["cache", "map"], &[], &[]),
        module("cache", &["map"], &[], &[]),
    ]);
    let all: Vec<ModuleId> = (0..6).map(id_at).collect();
    let rounds = |loaded: &[ModuleId]| -> Vec<Vec<String>> {
        index.load_rounds(&all, loaded).iter().map(|round| names(&index, round)).collect()
    };
    assert_eq!(rounds(&[]), [vec!["bus", "map"], vec!["helper", "cache", "disk"], vec!["verity"]]);
    let [bus, map] = ["bus", "map"].map(|name| index.find(name).unwrap());
    assert_eq!(rounds(&[bus, map]), [vec!["cache", "disk", "helper"], vec!["verity"]]);
    assert!(rounds(&all).is_empty());
}

#[test]
fn a_cycle_of_softdeps_ends() {
    let index = index(vec![module("a", &["b"], &["b"], &[]), module("b", &["a"], &["a"], &[])]);
    let a = index.find("a").unwrap();
    assert_eq!(names(&index, &index.load_order(&[a], &[])), ["b", "a"]);
}

#[test]
fn aliases_match_as_modprobe_matches_them() {
    for (pattern, text) in [
        ("scsi:t-0x00*", "scsi:t-0x00"),
        ("scsi:t_0x00*", "scsi:t-0x00"),
        ("virtio:d00000002v*", "virtio:d00000002v00001AF4"),
        ("pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02"),
        ("usb:v*p*d[1-3]*dc*", "usb:v1p2d2dc0"),
        ("a[!b]c", "axc"),
        ("a[]x]c", "a]c"),
        ("a[b", "a[b"),
        ("acpi*:MSFT0101:*", "acpi:MSFT0101:MSFT0101:"),
        ("cpu:type:x86,ven*fam*mod*:feature:*0089*", "cpu:type:x86,ven0000fam0006mod009E:feature:,0000,0089,"),
        ("*", ""),
        ("a\\*", "a*"),
    ] {
        assert!(matches(pattern, text), "{pattern} {text}");
    }
    for (pattern, text) in [
        ("scsi:t-0x00*", "scsi:t-0x05"),
        ("a?", "a"),
        ("a", "ab"),
        ("", "a"),
        ("usb:v*p*d[1-3]*dc*", "usb:v1p2d4dc0"),
        ("a[!b]c", "abc"),
        ("a\\*", "ab"),
    ] {
        assert!(!matches(pattern, text), "{pattern} {text}");
    }
}

#[test]
fn hyphen_and_underscore_name_one_module() {
    let index = index(vec![module("dm_verity", &[], &[], &[])]);
    assert_eq!(index.find("dm-verity"), index.find("dm_verity"));
    assert!(index.find("dm-verity").is_some());
}

#[test]
fn malformed_indexes_are_refused() {
    let head = "iofs-modules 1\nrelease 6.1.0\n";
    for (body, why) in [
        ("module a\n", ModuleIndexError::Line(3)),
        ("always\n", ModuleIndexError::Line(3)),
        ("module a a.ko\nalways\nalways\n", ModuleIndexError::Line(5)),
        ("module a a.ko\nalias x\nbefore b\n", ModuleIndexError::Line(5)),
        ("module a a.ko\nbefore \n", ModuleIndexError::Line(4)),
        ("module a a.ko\n\n", ModuleIndexError::Line(4)),
        ("module a ../a.ko\n", ModuleIndexError::Word("../a.ko".to_owned())),
        ("module a-b a.ko\n", ModuleIndexError::Word("a-b".to_owned())),
        ("module b b.ko\nmodule a a.ko\n", ModuleIndexError::Order("a".to_owned())),
        ("module a a.ko\nmodule a a.ko\n", ModuleIndexError::Order("a".to_owned())),
        ("module a a.ko\nbefore b\n", ModuleIndexError::Dangling { module: "a".to_owned(), missing: "b".to_owned() }),
    ] {
        assert_eq!(ModuleIndex::parse(&format!("{head}{body}")), Err(why), "{body}");
    }
    assert_eq!(ModuleIndex::parse("iofs-modules 2\nrelease 6.1.0\n"), Err(ModuleIndexError::Line(1)));
    assert_eq!(ModuleIndex::parse("iofs-modules 1\nrelease 6.1.0"), Err(ModuleIndexError::Line(1)));
    assert_eq!(ModuleIndex::parse("iofs-modules 1\n"), Err(ModuleIndexError::Line(2)));
    assert_eq!(ModuleIndex::parse(&"x".repeat(MAX_TEXT + 1)), Err(ModuleIndexError::TooLong(MAX_TEXT + 1)));
}

prop_compose! {
    fn any_module(names: Vec<String>)(
        name in prop::sample::select(names.clone()),
        file in "[a-z_-]{1,9}\\.ko",
        always: bool,
        before in prop::collection::vec(prop::sample::select(names.clone()), 0..3),
        after in prop::collection::vec(prop::sample::select(names), 0..3),
        options in "([a-z]=[0-9 ]{1,3})?",
        aliases in prop::collection::vec("[!-~]{1,12}", 0..4),
    ) -> Module {
        Module { name, file, always, before, after, options, aliases }
    }
}

fn any_modules() -> impl Strategy<Value = Vec<Module>> {
    let names: Vec<String> = ["a", "b", "c_d", "e"].map(str::to_owned).to_vec();
    let one_each = names.clone().into_iter().map(move |name| {
        any_module(names.clone()).prop_map(move |module| Module { name: name.clone(), ..module }).boxed()
    });
    one_each.collect::<Vec<_>>()
}

proptest! {
    #[test]
    fn an_index_survives_its_text(modules in any_modules()) {
        let index = index(modules);
        prop_assert_eq!(ModuleIndex::parse(&index.to_text()), Ok(index));
    }

    #[test]
    fn the_load_order_holds_each_module_at_most_once(modules in any_modules()) {
        let index = index(modules);
        let all: Vec<ModuleId> = (0..index.modules().len()).map(id_at).collect();
        let mut order = index.load_order(&all, &[]);
        order.sort();
        prop_assert_eq!(order, all);
    }

    #[test]
    fn rounds_hold_the_load_order_and_nothing_before_what_it_needs(modules in any_modules()) {
        let index = index(modules);
        let all: Vec<ModuleId> = (0..index.modules().len()).map(id_at).collect();
        let (order, rounds) = (index.load_order(&all, &[]), index.load_rounds(&all, &[]));
        let round_of = |id: ModuleId| rounds.iter().position(|round| round.contains(&id)).unwrap();
        for (at, id) in order.iter().enumerate() {
            for earlier in &order[..at] {
                let (module, before) = (index.get(*id), index.get(*earlier));
                if module.before.contains(&before.name) || before.after.contains(&module.name) {
                    prop_assert!(round_of(*earlier) < round_of(*id));
                }
            }
        }
        let mut flat = rounds.concat();
        flat.sort();
        prop_assert_eq!(flat, all);
    }

    #[test]
    fn text_that_parses_is_canonical(lines in prop::collection::vec(
        "(module [a-c] [a-c]\\.ko|always ?|before [a-c]( [a-c])?|after [a-c]|options x=[01]|alias [a-c*]{0,3}|)", 0..8)
    ) {
        let text = format!("iofs-modules 1\nrelease 6.1\n{}\n", lines.join("\n"));
        if let Ok(index) = ModuleIndex::parse(&text) {
            prop_assert_eq!(index.to_text(), text);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = ModuleIndex::parse(&text);
        let _ = ModuleIndex::parse(&format!("iofs-modules 1\nrelease 1\n{text}\n"));
    }

    #[test]
    fn matching_never_panics_and_a_star_on_both_sides_finds(pattern in any::<String>(), text in "[a-z_-]{0,20}") {
        let _ = matches(&pattern, &text);
        let (around, inside) = (format!("*{text}*"), format!("x{text}y"));
        prop_assert!(matches(&around, &inside));
    }
}
