//! Image layouts, from archives that tar makes.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    Plain,
    Gzip,
    Zstd,
}

impl Archive {
    /// By the tool of that name.
    pub fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => tar.to_vec(),
            Self::Gzip => filter("gzip", &["-n", "-1"], tar),
            Self::Zstd => filter("zstd", &["-q", "-1"], tar),
        }
    }

    pub fn media_type(self, docker: bool) -> String {
        let (base, separator) = if docker {
            ("application/vnd.docker.image.rootfs.diff.tar", ".")
        } else {
            ("application/vnd.oci.image.layer.v1.tar", "+")
        };
        match self {
            Self::Plain => base.into(),
            Self::Gzip => format!("{base}{separator}gzip"),
            Self::Zstd => format!("{base}{separator}zstd"),
        }
    }
}

/// What a program makes of its input.
pub fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let command = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = command.unwrap_or_else(|error| panic!("{program}: {error}; run 'apt-get install {program}'"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
    output.stdout
}

/// A layer's archive with entries that tar would not write; `entries` is python that calls `add`.
pub fn layer(entries: &str) -> Vec<u8> {
    let script = "import io, sys, tarfile
out = io.BytesIO()
t = tarfile.open(fileobj=out, mode='w', format=tarfile.PAX_FORMAT)
def add(name, kind=tarfile.REGTYPE, link='', data=b'', **more):
    i = tarfile.TarInfo(name); i.type = kind; i.linkname = link; i.size = len(data); i.mode = 0o755
    for key, value in more.items(): setattr(i, key, value)
    t.addfile(i, io.BytesIO(data))
d, s, h = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
exec(sys.argv[1])
t.close()
sys.stdout.buffer.write(out.getvalue())";
    filter("python3", &["-c", script, entries], b"")
}

/// A layout that is being made.
pub struct Layout {
    pub path: PathBuf,
    /// Descriptors for `index.json`.
    pub manifests: Vec<Value>,
    /// What layers hash to before they are packed, by the digest of what is packed: umoci wants to know.
    diff_ids: RefCell<HashMap<String, String>>,
}

impl Layout {
    pub fn new(path: &Path) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        Self { path: path.to_owned(), manifests: Vec::new(), diff_ids: RefCell::default() }
    }

    /// Stores a blob, and describes it.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digits = digits(bytes);
        fs::write(self.path.join("blobs/sha256").join(&digits), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{digits}"), "size": bytes.len()})
    }

    pub fn json(&self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// An image of gzip layers.
    pub fn image(&mut self, name: &str, architecture: &str, layers: &[Vec<u8>]) {
        let layers = layers.iter().map(|tar| self.layer(Archive::Gzip, false, tar)).collect::<Vec<_>>();
        let manifest = self.manifest(architecture, &layers);
        self.add(name, manifest);
    }

    /// An image of layers that are packed in one way.
    pub fn packed(&mut self, archive: Archive, docker: bool, name: &str, layers: &[Vec<u8>]) {
        let layers = layers.iter().map(|tar| self.layer(archive, docker, tar)).collect::<Vec<_>>();
        let manifest = self.manifest("amd64", &layers);
        self.add(name, manifest);
    }

    pub fn layer(&self, archive: Archive, docker: bool, tar: &[u8]) -> Value {
        let layer = self.blob(&archive.media_type(docker), &archive.pack(tar));
        let packed = layer["digest"].as_str().unwrap().to_owned();
        self.diff_ids.borrow_mut().insert(packed, format!("sha256:{}", digits(tar)));
        layer
    }

    /// Stores a config and a manifest, and describes the latter.
    pub fn manifest(&self, architecture: &str, layers: &[Value]) -> Value {
        let known = self.diff_ids.borrow();
        let ids: Vec<_> = layers.iter().filter_map(|layer| known.get(layer["digest"].as_str()?)).collect();
        let config =
            json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
        let config = self.json("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.json("application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    /// Lists something in the index, by a name unless that is empty.
    pub fn add(&mut self, name: &str, mut descriptor: Value) {
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.manifests.push(descriptor);
    }

    pub fn index(manifests: &[Value]) -> Value {
        json!({"schemaVersion": 2, "manifests": manifests})
    }

    pub fn finish(&self) {
        fs::write(self.path.join("index.json"), Self::index(&self.manifests).to_string()).unwrap();
    }

    /// The file of a blob.
    pub fn file(&self, descriptor: &Value) -> PathBuf {
        self.path.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
    }
}

pub fn digits(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
