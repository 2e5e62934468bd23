//! Rules change trees as they say, and tell what they matched.

mod common;

use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

use common::{EXACT, listing};
use erofs_image::{
    Metadata, Node, Time, Tree,
    source::directory,
    tree::rules::{Graft, Outcome, Pattern, Rule, RuleError, apply},
};
use proptest::prelude::*;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn exclude(text: &str) -> Rule {
    Rule::Exclude { pattern: pattern(text) }
}

fn owner(text: &str, uid: u32, gid: u32) -> Rule {
    Rule::Owner { pattern: pattern(text), uid, gid }
}

fn mode(text: &str, mode: u16) -> Rule {
    Rule::Mode { pattern: pattern(text), mode }
}

/// Names that end in a slash are directories, others files; directories that lead there are made too.
fn tree(paths: &[&str]) -> Tree {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for path in paths {
        for (end, _) in path.match_indices('/') {
            if tree.find(&path.as_bytes()[..end]).is_none() {
                tree.add(&path.as_bytes()[..end], Node::directory(Metadata::with_mode(0o755))).unwrap();
            }
        }
        if !path.ends_with('/') {
            tree.add(path.as_bytes(), Node::file(Metadata::with_mode(0o644), path.as_bytes().to_vec())).unwrap();
        }
    }
    tree
}

fn paths(tree: &Tree) -> Vec<String> {
    listing(tree, EXACT).into_keys().skip(1).map(|path| path[1..].to_owned()).collect()
}

fn matched(outcomes: &[Outcome]) -> Vec<usize> {
    outcomes.iter().map(|outcome| outcome.matched).collect()
}

fn metadata<'t>(tree: &'t Tree, path: &str) -> &'t Metadata {
    &tree.node(tree.find(path.as_bytes()).unwrap()).metadata
}

#[test]
fn what_is_excluded_goes_with_all_below_and_stars_stop_at_slashes() {
    let all = ["etc/a.pyc", "var/cache/apt/x.bin", "var/cache/y.bin", "var/lib/z", "top.pyc", "w\\*", "wx"];
    for (texts, gone, counts) in [
        (&["*.pyc"][..], &["top.pyc"][..], &[1][..]),
        (&["**/*.pyc"], &["etc/a.pyc", "top.pyc"], &[2]),
        (&["var/cache/*"], &["var/cache/apt", "var/cache/apt/x.bin", "var/cache/y.bin"], &[2]),
        (&["var/cache/**"], &["var/cache/apt", "var/cache/apt/x.bin", "var/cache/y.bin"], &[3]),
        (
            &["var/cache", "var/cache/y.bin", "var/no"],
            &["var/cache", "var/cache/apt", "var/cache/apt/x.bin", "var/cache/y.bin"],
            &[1, 1, 0],
        ),
        (&["{etc,var}/?.pyc", "var/[!a-k]ib/z"], &["etc/a.pyc", "var/lib/z"], &[1, 1]),
        (&["etc?a.pyc", "etc[/]a.pyc", "etc[!x]a.pyc", "var/*.bin", "."], &[], &[0; 5]),
        (&["w\\\\\\*"], &["w\\*"], &[1]),
    ] {
        let mut found = tree(&all);
        let rules: Vec<_> = texts.iter().map(|text| exclude(text)).collect();
        let outcomes = apply(&mut found, &rules).unwrap();
        assert_eq!(matched(&outcomes), counts, "{texts:?}");
        let gone: Vec<_> = gone.iter().map(|path| path.replace('\\', "\\\\")).collect();
        let expected: Vec<_> = paths(&tree(&all)).into_iter().filter(|path| !gone.contains(path)).collect();
        assert_eq!(paths(&found), expected, "{texts:?}");
    }
    let mut empty = tree(&all);
    assert_eq!(apply(&mut empty, &[exclude("**")]).unwrap()[0], Outcome { rule: "exclude **".into(), matched: 12 });
    assert_eq!(paths(&empty), [""; 0]);
}

#[test]
fn names_that_are_not_utf8_are_matched_byte_by_byte() {
    let mut found = tree(&[]);
    for name in [&b"a\xff\xfe"[..], b"a\xffb", "\u{e9}".as_bytes(), b"new\nline"] {
        found.add(name, Node::file(Metadata::default(), Vec::new())).unwrap();
    }
    let rules = [exclude("a??"), exclude("?"), exclude("??"), exclude("new*"), exclude("\u{e9}"), exclude("a?b")];
    assert_eq!(matched(&apply(&mut found, &rules).unwrap()), [2, 0, 1, 1, 1, 1]);
    assert_eq!(paths(&found), [""; 0]);
}

#[test]
fn kinds_of_rules_have_one_order_and_later_rules_of_a_kind_win() {
    let mut found = tree(&["d/f", "d/g"]);
    found.link(b"d/h", b"d/g").unwrap();
    found.add(b"d/l", Node::symlink(Metadata::with_mode(0o777), b"f")).unwrap();
    let graft = Graft::Node(Node::file(Metadata { uid: 7, ..Metadata::with_mode(0o600) }, b"new".to_vec()));
    let rules = [
        mode("d/*", 0o4755),
        owner("**", 1, 2),
        owner("d/h", 3, 4),
        Rule::Add { path: b"d/f".to_vec(), graft },
        exclude("d/f"),
        owner(".", 0, 0),
        mode("d/f", 0o400),
    ];
    let outcomes = apply(&mut found, &rules).unwrap();
    assert_eq!(matched(&outcomes), [3, 6, 1, 1, 1, 1, 1]);
    assert_eq!(outcomes[2].rule, "owner d/h 3:4");
    let owners = |path: &str| (metadata(&found, path).uid, metadata(&found, path).gid, metadata(&found, path).mode);
    assert_eq!(owners("d/f"), (1, 2, 0o400));
    assert_eq!((owners("d/g"), owners("d/h")), ((3, 4, 0o4755), (3, 4, 0o4755)));
    assert_eq!((owners(""), owners("d/l")), ((0, 0, 0o755), (1, 2, 0o777)));
}

#[test]
fn a_later_rule_for_one_name_of_a_file_wins_over_an_earlier_one_for_another() {
    for (first, second) in [("d/b", "d/a"), ("d/a", "d/b")] {
        let mut found = tree(&["d/a"]);
        found.link(b"d/b", b"d/a").unwrap();
        let rules = [owner(first, 1, 1), owner(second, 2, 2), mode(first, 1), mode(second, 2)];
        assert_eq!(matched(&apply(&mut found, &rules).unwrap()), [1, 1, 1, 1]);
        assert_eq!((metadata(&found, "d/a").uid, metadata(&found, "d/b").mode), (2, 2));
    }
}

#[test]
fn what_is_added_joins_directories_and_makes_those_that_lead_there() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("host");
    fs::create_dir_all(host.join("sub")).unwrap();
    fs::write(host.join("sub/new"), "of the host").unwrap();
    fs::write(host.join("f"), "of the host").unwrap();
    symlink("f", host.join("link")).unwrap();
    let of = |name: &str| directory::graft(&host.join(name)).unwrap();
    let add = |path: &str, graft| Rule::Add { path: path.into(), graft };
    let mut found = tree(&["opt/sub/old", "opt/f", "etc/link"]);
    let rules = [add("opt", of("")), add("srv/a/b", of("f")), add("etc/link", of("link")), add("new/dir", of("sub"))];
    assert_eq!(matched(&apply(&mut found, &rules).unwrap()), [5, 1, 1, 2]);
    let expected = [
        "etc",
        "etc/link",
        "new",
        "new/dir",
        "new/dir/new",
        "opt",
        "opt/f",
        "opt/link",
        "opt/sub",
        "opt/sub/new",
        "opt/sub/old",
        "srv",
        "srv/a",
        "srv/a/b",
    ];
    assert_eq!(paths(&found), expected);
    assert!(listing(&found, EXACT)["/opt/f"].contains("file of 11 bytes"));
    let mtime = directory::load(&host).unwrap().node(Tree::ROOT).metadata.mtime;
    let made = metadata(&found, "srv/a");
    assert_eq!((made.mode, made.uid, made.gid, &made.mtime), (0o755, 0, 0, &metadata(&found, "srv/a/b").mtime));
    assert_eq!((metadata(&found, "opt").mtime, mtime > Time::default()), (mtime, true));
    let mut root = tree(&["a"]);
    apply(&mut root, &[add("", of(""))]).unwrap();
    assert_eq!(paths(&root), ["a", "f", "link", "sub", "sub/new"]);
}

#[test]
fn rules_that_cannot_be_followed_are_named() {
    let file = || Graft::Node(Node::file(Metadata::default(), Vec::new()));
    let add = |path: &str| Rule::Add { path: path.into(), graft: file() };
    for (rule, expected) in [
        (add("/etc/f"), "add /etc/f: /etc/f: expected a path relative to the root"),
        (add("etc/../f"), "add etc/../f: etc/../f: expected a name, found '.' or '..'"),
        (add("etc"), "add etc: expected a name for the file, found a directory there"),
        (add(""), "add the root: expected a name for the file, found a directory there"),
        (add("lib/f"), "add lib/f: lib is a symbolic link, no directory; name the path that it leads to"),
        (add("etc/f/g"), "add etc/f/g: etc/f is a file, no directory"),
        (owner("f", u32::MAX, 0), "owner f 4294967295:0: owner: expected at most 4294967294"),
        (owner("f", 0, u32::MAX), "group: expected at most 4294967294, found 4294967295"),
        (mode("f", 0o10000), "mode f 10000: mode: expected at most 7777, found 10000"),
    ] {
        let mut found = tree(&["etc/f"]);
        found.add(b"lib", Node::symlink(Metadata::default(), b"usr/lib")).unwrap();
        let error = apply(&mut found, &[rule]).unwrap_err().to_string();
        assert!(error.starts_with(expected) || error.contains(expected), "{error}");
    }
    let long = "x".repeat(5000);
    for (text, expected) in [
        ("", "found nothing; the root is '.'"),
        ("/etc", "without a slash at either end"),
        ("etc/", "without a slash at either end"),
        ("a[", "unclosed character class"),
        ("{a", "unclosed alternate group"),
        (&long, "at most 4096 bytes"),
    ] {
        let error: RuleError = Pattern::parse(text).unwrap_err();
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_mode_changes_the_access_control_list_that_would_decide_in_its_place() {
    // user::rw-, user:5:rwx, group::r--, mask::rwx, other::r--
    let list = |mask: u8, other: u8| {
        let entries = [[1, 0, 6, 0], [2, 0, 7, 0], [4, 0, 4, 0], [16, 0, mask, 0], [32, 0, other, 0]];
        let ids = [[255; 4], [5, 0, 0, 0], [255; 4], [255; 4], [255; 4]];
        let entries = entries.iter().zip(ids).flat_map(|(entry, id)| [*entry, id].concat());
        [2, 0, 0, 0].into_iter().chain(entries).collect::<Vec<u8>>()
    };
    let mut found = tree(&["f"]);
    let id = found.find(b"f").unwrap();
    found.metadata_mut(id).xattrs.insert(b"system.posix_acl_access".to_vec(), list(7, 4));
    apply(&mut found, &[mode("f", 0o650)]).unwrap();
    assert_eq!(metadata(&found, "f").xattrs[&b"system.posix_acl_access"[..]], list(5, 0));
}

/// Whether a pattern of names, `*`, `?` and `**` matches a path: part by part, without automata.
fn naive(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        // At the end it stands for something; anywhere else perhaps for nothing.
        (["**"], path) => !path.is_empty(),
        (["**", rest @ ..], path) => (0..=path.len()).any(|from| naive(rest, &path[from..])),
        ([part, rest @ ..], [name, below @ ..]) => part_matches(part.as_bytes(), name.as_bytes()) && naive(rest, below),
        _ => false,
    }
}

fn part_matches(part: &[u8], name: &[u8]) -> bool {
    match (part, name) {
        ([], []) => true,
        ([b'*', rest @ ..], name) => (0..=name.len()).any(|from| part_matches(rest, &name[from..])),
        ([b'?', rest @ ..], [_, below @ ..]) => part_matches(rest, below),
        ([first, rest @ ..], [byte, below @ ..]) => first == byte && part_matches(rest, below),
        _ => false,
    }
}

fn some_pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof!["[ab]{1,2}", "[ab*?]{1,3}", Just("**".to_owned())];
    let part = part.prop_filter("stars within a name", |part| part == "**" || !part.contains("**"));
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_match_what_a_plain_reading_of_their_patterns_matches(
        made in prop::collection::btree_set("[ab]{1,2}(/[ab]{1,2}){0,3}", 0..20),
        patterns in prop::collection::vec(some_pattern(), 1..5),
    ) {
        let made: Vec<String> = made.into_iter().map(|path| path + "/").collect();
        let all = tree(&made.iter().map(String::as_str).collect::<Vec<_>>());
        let matches = |text: &str, path: &str| {
            naive(&text.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
        };
        let counts: Vec<usize> =
            patterns.iter().map(|text| paths(&all).iter().filter(|path| matches(text, path)).count()).collect();

        let mut owned = all.clone();
        let rules: Vec<_> = patterns.iter().enumerate().map(|(number, text)| owner(text, number as u32 + 1, 0)).collect();
        let outcomes = matched(&apply(&mut owned, &rules).unwrap());
        let with_root: Vec<usize> =
            counts.iter().zip(&patterns).map(|(count, text)| count + usize::from(text == "**")).collect();
        prop_assert_eq!(outcomes, with_root);
        let last = |path: &str| patterns.iter().rposition(|text| matches(text, path)).map_or(0, |at| at as u32 + 1);
        for path in paths(&all) {
            prop_assert_eq!(metadata(&owned, &path).uid, last(&path), "{}", path);
        }

        let mut left = all.clone();
        let rules: Vec<_> = patterns.iter().map(|text| exclude(text)).collect();
        prop_assert_eq!(matched(&apply(&mut left, &rules).unwrap()), counts);
        let goes = |path: &str| patterns.iter().any(|text| matches(text, path));
        let stays = |path: &String| !goes(path) && !path.match_indices('/').any(|(end, _)| goes(&path[..end]));
        let expected: Vec<_> = paths(&all).into_iter().filter(stays).collect();
        prop_assert_eq!(paths(&left), expected);
    }

    #[test]
    fn a_tree_in_an_empty_place_is_the_same_tree_and_its_image_has_one_order(
        made in prop::collection::btree_map("[abc]{1,2}(/[abc]{1,2}){0,2}/", any::<u32>(), 0..20),
    ) {
        let graft = tree(&made.keys().map(String::as_str).collect::<Vec<_>>());
        let mut found = tree(&[]);
        let rule = Rule::Add { path: b"x/y".to_vec(), graft: Graft::Tree(graft.clone()) };
        let outcomes = apply(&mut found, &[rule]).unwrap();
        prop_assert_eq!(outcomes[0].matched, graft.len());
        let below: BTreeMap<_, _> = listing(&found, EXACT)
            .into_iter()
            .filter_map(|(path, line)| Some((path.strip_prefix("/x/y")?.to_owned(), line)))
            .collect();
        prop_assert_eq!(below, listing(&graft, EXACT));
    }
}
