//! Layouts: which of their images is taken, and what is refused of those that lie.

mod layouts;

use std::{fs, path::Path};

use erofs_image::source::{
    archive::Keep,
    oci::{self, Choice},
};
use layouts::{Archive, Layout, layer};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn load(path: &Path, choice: &Choice) -> Result<String, String> {
    let loaded = oci::load(path, choice, &Keep::Plain).map_err(|error| error.to_string())?;
    let names = loaded.tree.entries(erofs_image::Tree::ROOT).keys();
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>().join(" "))
}

fn named(name: &str) -> Choice {
    Choice { name: Some(name.into()), ..Choice::default() }
}

fn architecture(name: &str) -> Choice {
    Choice { architecture: Some(name.into()), ..Choice::default() }
}

/// An image of one file.
fn image(layout: &Layout, architecture: &str, file: &str) -> Value {
    let archive = layer(&format!("add('{file}')"));
    layout.manifest(architecture, &[layout.layer(Archive::Gzip, false, &archive)])
}

fn with_platform(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

#[test]
fn an_image_is_chosen_by_name_and_platform_through_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(folder.path());
    let [amd, arm] = ["amd64", "arm64"].map(|name| with_platform(image(&layout, name, name), "linux", name));
    let attested = with_platform(image(&layout, "unknown", "attestation"), "unknown", "unknown");
    let other = json!({"mediaType": "text/plain", "digest": amd["digest"], "size": 1});
    let mut signature = image(&layout, "amd64", "signature");
    signature["artifactType"] = "application/example".into();
    let nested = layout.json(INDEX, &Layout::index(&[amd.clone(), arm, attested, other, signature]));
    let old = image(&layout, "amd64", "old");
    layout.add("stable", nested);
    layout.add("old", old);
    layout.add("also-old", image(&layout, "amd64", "old"));
    layout.finish();
    let stable = |name: &str| Choice { name: Some("stable".into()), ..architecture(name) };
    assert_eq!(load(folder.path(), &stable("amd64")), Ok("amd64".into()));
    assert_eq!(load(folder.path(), &stable("arm64")), Ok("arm64".into()));
    assert_eq!(load(folder.path(), &named("old")), Ok("old".into()));
    assert_eq!(load(folder.path(), &named("also-old")), Ok("old".into()));

    let error = load(folder.path(), &named("stable")).unwrap_err();
    assert!(
        error.contains("expected one image named stable for linux/*, found stable, linux/amd64 (sha256:"),
        "{error}"
    );
    assert!(error.contains(", stable, linux/arm64 (sha256:") && error.ends_with("choose by name and architecture"));
    assert!(!error.contains("unknown") && !error.contains("old"), "{error}");
    let error = load(folder.path(), &named("none")).unwrap_err();
    assert!(
        error.contains("named none") && error.contains("also-old (sha256:") && error.contains("linux/arm64"),
        "{error}"
    );
    // Who says nothing of a platform may have any: that of the stable image and the old one are both possible.
    let error = load(folder.path(), &architecture("amd64")).unwrap_err();
    assert!(error.contains("for linux/amd64, found") && error.contains("old (") && !error.contains("arm64"), "{error}");
    let wrong = Choice { name: Some("old".into()), ..architecture("riscv64") };
    let error = load(folder.path(), &wrong).unwrap_err();
    assert!(error.contains("architecture: expected riscv64, found amd64"), "{error}");
    let config = json!({"architecture": "arm", "os": "linux", "variant": "v6"});
    let config = layout.json("application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    let manifest = layout.json("application/vnd.oci.image.manifest.v1+json", &manifest);
    layout.add("six", manifest);
    layout.finish();
    let six = |variant: &str| Choice { variant: Some(variant.into()), ..named("six") };
    assert_eq!(load(folder.path(), &six("v6")), Ok(String::new()));
    let error = load(folder.path(), &six("v7")).unwrap_err();
    assert!(error.contains("variant: expected v7, found v6"), "{error}");
    let variant = Choice { variant: Some("v7".into()), ..stable("amd64") };
    assert!(load(folder.path(), &variant).unwrap_err().contains("for linux/amd64/v7, found"));
}

#[test]
fn two_images_of_one_platform_and_none_at_all_are_no_choice() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(folder.path());
    layout.finish();
    assert!(load(folder.path(), &Choice::default()).unwrap_err().contains("found none"));
    for file in ["one", "two"] {
        let image = with_platform(image(&layout, "amd64", file), "linux", "amd64");
        layout.add("", image);
    }
    layout.finish();
    let error = load(folder.path(), &architecture("amd64")).unwrap_err();
    assert_eq!(error.matches("without name, linux/amd64 (sha256:").count(), 2, "{error}");
    layout.manifests.truncate(1);
    layout.finish();
    assert_eq!(load(folder.path(), &Choice::default()), Ok("one".into()));
    layout.manifests[0]["platform"]["os"] = "windows".into();
    layout.finish();
    assert!(load(folder.path(), &Choice::default()).unwrap_err().contains("found none"));
}

#[test]
fn indexes_in_indexes_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(folder.path());
    let mut at = image(&layout, "amd64", "f");
    for _ in 1..8 {
        at = layout.json(INDEX, &Layout::index(&[at]));
    }
    layout.manifests = vec![at.clone()];
    layout.finish();
    assert_eq!(load(folder.path(), &Choice::default()), Ok("f".into()));
    layout.manifests = vec![layout.json(INDEX, &Layout::index(&[at.clone()]))];
    layout.finish();
    let error = load(folder.path(), &Choice::default()).unwrap_err();
    assert!(error.contains("manifests: expected at most 64 indexes, and 8 in each other, found more"), "{error}");
    let wide = layout.json(INDEX, &Layout::index(&vec![layout.json(INDEX, &Layout::index(&[])); 64]));
    layout.manifests = vec![wide];
    layout.finish();
    assert!(load(folder.path(), &Choice::default()).unwrap_err().contains("at most 64 indexes"));
    let one = image(&layout, "amd64", "f");
    layout.manifests = vec![one.clone(); 4096];
    layout.finish();
    assert_eq!(load(folder.path(), &Choice::default()), Ok("f".into()));
    layout.manifests.push(one.clone());
    layout.finish();
    assert!(load(folder.path(), &Choice::default()).unwrap_err().contains("manifests: expected at most 4096 images"));
    layout.manifests.clear();
    layout.add(&"n".repeat(1025), one);
    layout.finish();
    let error = load(folder.path(), &Choice::default()).unwrap_err();
    assert!(error.contains("ref.name: expected a name of at most 1024 bytes, found 1025"), "{error}");
    // Only a digest that lies leads in a circle.
    let circle = layout.json(INDEX, &Layout::index(&[]));
    let file = layout.file(&circle);
    let size = Layout::index(std::slice::from_ref(&circle)).to_string().len();
    let mut lying = circle;
    lying["size"] = size.into();
    fs::write(&file, Layout::index(&[lying.clone()]).to_string()).unwrap();
    lying["size"] = fs::metadata(&file).unwrap().len().into();
    layout.manifests = vec![lying];
    layout.finish();
    assert!(load(folder.path(), &Choice::default()).unwrap_err().contains("digest: expected sha256:"));
}

/// Changes one byte in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_blob_of_another_content_or_size_gives_no_tree() {
    for archive in [Archive::Plain, Archive::Gzip, Archive::Zstd] {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(folder.path());
        let layers: Vec<_> = ["one", "two"]
            .iter()
            .map(|name| layout.layer(archive, false, &layer(&format!("add('{name}', data=bytes(range(256)) * 40)"))))
            .collect();
        let manifest = layout.manifest("amd64", &layers);
        layout.add("", manifest.clone());
        layout.finish();
        assert_eq!(load(folder.path(), &Choice::default()), Ok("one two".into()));
        let config: Value = serde_json::from_slice(&fs::read(layout.file(&manifest)).unwrap()).unwrap();
        for described in [&layers[0], &layers[1], &manifest, &config["config"]] {
            let (file, digest) = (layout.file(described), described["digest"].as_str().unwrap());
            let right = fs::read(&file).unwrap();
            damage(&file);
            let error = load(folder.path(), &Choice::default()).unwrap_err();
            let expected = format!("blobs/{}: digest: expected {digest}, found sha256:", digest.replace(':', "/"));
            assert!(error.starts_with(&expected), "{archive:?}: {error}");
            for size in [right.len() - 1, right.len() + 1] {
                fs::write(&file, &right).unwrap();
                fs::File::options().write(true).open(&file).unwrap().set_len(size as u64).unwrap();
                let error = load(folder.path(), &Choice::default()).unwrap_err();
                let expected = format!("size: expected {} as its descriptor says, found {size}", right.len());
                assert!(error.contains(&expected), "{archive:?}: {error}");
            }
            fs::remove_file(&file).unwrap();
            let error = load(folder.path(), &Choice::default()).unwrap_err();
            assert!(error.contains(&format!("there is no blobs/{}", digest.replace(':', "/"))), "{error}");
            fs::write(&file, &right).unwrap();
        }
    }
}

#[test]
fn digests_that_are_paths_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("outside"), "{}").unwrap();
    let mut layout = Layout::new(&folder.path().join("layout"));
    for digest in
        ["sha256:../../outside", "../../outside", "sha256:/etc/passwd", "..:outside", "sha1:da39a3ee5e6b4b0d3255"]
    {
        layout.manifests = vec![json!({"mediaType": INDEX, "digest": digest, "size": 2})];
        layout.finish();
        let error = load(&layout.path, &Choice::default()).unwrap_err();
        assert!(error.starts_with("index.json: digest: expected sha256 or sha512 with its digits"), "{error}");
        assert!(error.contains(digest), "{error}");
    }
}

/// An image of layers that are described by hand.
fn refused(change: impl Fn(&mut Layout) -> Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(folder.path());
    let manifest = change(&mut layout);
    layout.add("", manifest);
    layout.finish();
    load(folder.path(), &Choice::default()).unwrap_err()
}

#[test]
fn documents_and_layers_of_other_kinds_are_refused_by_name_and_field() {
    let tar = layer("add('f')");
    let kind = |media_type: &'static str, bytes: Vec<u8>| {
        refused(|layout| {
            let layer = layout.blob(media_type, &bytes);
            layout.manifest("amd64", &[layer])
        })
    };
    let error = kind("application/vnd.oci.image.layer.v1.tar+xz", tar.clone());
    assert!(error.contains("mediaType: expected a layer's: tar, tar+gzip or tar+zstd, found application/"), "{error}");
    let error = kind(GZIP, tar.clone());
    assert!(error.contains("content: expected gzip content as its mediaType says, found uncompressed"), "{error}");
    let error = kind("application/vnd.oci.image.layer.v1.tar", Archive::Gzip.pack(&tar));
    assert!(error.contains("content: expected uncompressed content as its mediaType says, found gzip"), "{error}");
    let error = kind(GZIP, Archive::Gzip.pack(&tar[..700]));
    assert!(error.starts_with("layer blobs/sha256/") && error.contains("the archive ends inside"), "{error}");
    let error = kind(GZIP, [Archive::Gzip.pack(&tar), b"more".to_vec()].concat());
    assert!(error.starts_with("layer blobs/sha256/"), "{error}");
    let error = kind("application/vnd.oci.image.layer.v1.tar", Vec::new());
    assert!(error.contains("an archive without end marker"), "{error}");
    let artifact = refused(|layout| {
        let config = layout.json("application/vnd.oci.empty.v1+json", &json!({}));
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
        layout.json("application/vnd.oci.image.manifest.v1+json", &manifest)
    });
    assert!(artifact.contains("mediaType: expected an image's config"), "{artifact}");
    let many = refused(|layout| {
        let one = layout.layer(Archive::Plain, false, &tar);
        layout.manifest("amd64", &vec![one; 513])
    });
    assert!(many.contains("the manifest: layers: expected at most 512, found 513"), "{many}");
    let large = refused(|layout| layout.blob("application/vnd.oci.image.manifest.v1+json", &vec![b' '; (4 << 20) + 1]));
    assert!(large.contains("size: expected at most 4194304 bytes in a document, found 4194305"), "{large}");
    let later = refused(|layout| {
        fs::write(layout.path.join("oci-layout"), r#"{"imageLayoutVersion": "2.0.0"}"#).unwrap();
        image(layout, "amd64", "f")
    });
    assert!(later.starts_with("oci-layout: imageLayoutVersion: expected 1.0.0, found 2.0.0"), "{later}");
    let deep = refused(|layout| layout.blob(INDEX, "[".repeat(100_000).as_bytes()));
    assert!(deep.contains("index sha256:"), "{deep}");
}
