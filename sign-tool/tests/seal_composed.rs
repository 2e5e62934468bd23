//! Trees that are composed give the image of the same tree made by hand.

mod seal_common;

use std::fs;

use seal_common::{Bench, command, fails, passes, stderr, tool};

/// Seals the image alone, with `options`, and returns its bytes.
fn image(bench: &Bench, root: &str, out: &str, options: &[&str]) -> Vec<u8> {
    let output = seal(bench, root, out, options);
    passes(&output);
    assert_eq!(stderr(&output), "", "nothing to warn of");
    fs::read(bench.path(out).join("image.erofs")).unwrap()
}

fn seal(bench: &Bench, root: &str, out: &str, options: &[&str]) -> std::process::Output {
    let mut seal = command();
    seal.args(["seal", "--image-only", "--key", &bench.text("key.pem"), "--root", &bench.text(root)]);
    seal.args(["--out", &bench.text(out), "--id", "car", "--image-version", "7"]).args(options).output().unwrap()
}

/// Runs a script in the bench, after which all times are the same.
fn shell(bench: &Bench, script: &str) {
    let script = format!("cd \"$1\"; {script}\nfind . -exec touch -h -d @1700000000 {{}} +");
    passes(&tool("sh", "coreutils tar gzip", &["-ec", &script, "sh", &bench.text("")]));
}

/// The bench's root, what goes over it, and the same done by hand.
fn composed() -> Bench {
    let bench = Bench::new();
    shell(
        &bench,
        "mkdir -p root/usr/share/doc/car root/srv root/opt/old over/usr/bin over/etc
        echo long >root/usr/share/doc/car/readme; echo page >root/srv/page; echo x >root/opt/old/x
        echo new >over/usr/bin/tool; echo host >over/etc/hostname; chmod 750 over/usr/bin; mknod over/opt c 0 0
        echo motd >motd; mkdir -p site/a; echo b >site/a/b
        cp -a root by-hand; rm -r by-hand/usr/share/doc/car by-hand/opt
        cp -a over/usr over/etc by-hand/; mkdir -p by-hand/etc/site; cp -a site/. by-hand/etc/site/; cp -a motd by-hand/etc/motd
        chown 33:34 by-hand/srv/page; chmod 600 by-hand/etc/hostname",
    );
    bench
}

#[test]
fn overlays_and_rules_of_the_command_line_and_of_the_configuration_do_the_same_as_hands() {
    let bench = composed();
    let expected = image(&bench, "by-hand", "a", &[]);
    let (motd, site) = (format!("{}:/etc/motd", bench.text("motd")), format!("{}:etc/site", bench.text("site")));
    let options = [
        "--overlay",
        &bench.text("over"),
        "--exclude",
        "usr/share/doc/**",
        "--add",
        &motd,
        "--add",
        &site,
        "--owner",
        "srv/*=33:34",
        "--mode",
        "etc/hostname=0600",
    ];
    assert!(expected == image(&bench, "root", "b", &options), "by the command line");
    let text = "[tree]\noverlay = ['over']\nexclude = ['usr/share/doc/**']\nadd = ['motd:/etc/motd', 'site:etc/site']\n\
        owner = ['srv/*=33:34']\nmode = ['etc/hostname=0600']\n";
    fs::write(bench.path("iofs.toml"), text).unwrap();
    let config = ["--config", &bench.text("iofs.toml")];
    assert!(expected == image(&bench, "root", "c", &config), "by the configuration");
    // A ready image is a tree as well, and so is an archive.
    shell(&bench, "tar -C root --format=pax -cf root.tar .; tar -C over --format=pax -czf over.tar.gz .");
    image(&bench, "root", "plain", &[]);
    for (number, root) in ["plain/image.erofs", "root.tar"].into_iter().enumerate() {
        let over = ["--overlay", &bench.text("over.tar.gz")];
        let out = format!("d{number}");
        assert!(expected == image(&bench, root, &out, &[&over[..], &options[2..]].concat()), "{root}");
    }
}

/// An image of one layer, by hand: what names what by which digest.
const LAYOUT: &str = r#"
    blob() { cat >blob; set -- $(sha256sum blob) "$(wc -c <blob)"; mv blob "layout/blobs/sha256/$1"
        printf '"digest":"sha256:%s","size":%s' "$1" "$3"; }
    mkdir -p layout/blobs/sha256
    tar -C root --format=pax -cf root.tar .
    layer=$(gzip -n1 <root.tar | blob)
    config=$(printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}' | blob)
    image=application/vnd.oci.image
    manifest=$(printf '{"schemaVersion":2,"config":{"mediaType":"%s.config.v1+json",%s},"layers":[{"mediaType":"%s.layer.v1.tar+gzip",%s}]}' \
        "$image" "$config" "$image" "$layer" | blob)
    echo '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
    entry() { printf '{"mediaType":"%s.manifest.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}' \
        "$image" "$manifest" "$1"; }
    printf '{"schemaVersion":2,"manifests":[%s]}' "$(entry one)" >layout/index.json
    tar -C layout -cf layout.tar .
"#;

#[test]
fn a_container_image_gives_the_image_of_its_layers() {
    let bench = Bench::new();
    shell(&bench, LAYOUT);
    let expected = image(&bench, "root.tar", "a", &[]);
    assert!(expected == image(&bench, "layout", "b", &[]), "a directory");
    assert!(expected == image(&bench, "layout.tar", "c", &["--oci-name", "one"]), "an archive");
    let text = fails(&seal(&bench, "layout", "d", &["--oci-name", "two"]), 2);
    assert!(text.contains("expected one image named two") && text.contains("--oci-name"), "{text}");
    // A layer with another byte is not what the manifest says.
    shell(&bench, "printf x >>\"$(ls -S layout/blobs/sha256/* | head -n1)\"");
    let text = fails(&seal(&bench, "layout", "e", &[]), 3);
    assert!(text.contains("size: expected") && text.contains("as its descriptor says"), "{text}");
    assert!(!bench.path("e").exists());
}

#[test]
fn rules_that_match_nothing_are_told_and_those_that_mean_nothing_refused() {
    let bench = Bench::new();
    let output = seal(&bench, "root", "a", &["--exclude", "usr/share/locale/**", "--owner", "srv=33:33"]);
    passes(&output);
    let text = stderr(&output);
    for rule in
        ["exclude usr/share/locale/**: nothing in the tree matches", "owner srv 33:33: nothing in the tree matches"]
    {
        assert!(text.contains(rule), "{text}");
    }
    for (options, status, expected) in [
        (["--exclude", "/usr"], 2, "without a slash at either end"),
        (["--owner", "srv=root:root"], 2, "two numbers behind a pattern"),
        (["--mode", "srv=9"], 2, "an octal number up to 7777"),
        (["--add", "nothing"], 2, "SRC:DST"),
        (["--add", "/nonexistent:etc/x"], 1, "stat /nonexistent"),
        (["--add", "/etc/hostname:etc"], 2, "add etc: expected a name for the file, found a directory there"),
        (["--add", "/etc/hostname:bin/x"], 2, "bin is a symbolic link"),
        (["--overlay", "/nonexistent"], 1, "/nonexistent"),
    ] {
        let text = fails(&seal(&bench, "root", "b", &options), status);
        assert!(text.contains(expected), "{options:?}: {text}");
        assert!(!bench.path("b").exists());
    }
    let text = passes(&seal(&bench, "root", "c", &["--dry-run", "--exclude", "usr/bin/tool"]));
    assert!(text.contains("6 inodes"), "{text}");
}
