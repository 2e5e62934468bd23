//! What the chain computes: hash trees by each engine, the manifest's signature as the boot checks it, and a LUKS2 header.
//!
//! Each result is compared before it is measured, so that a fast wrong answer fails. `cargo test --benches` runs each once.

#![allow(missing_docs, reason = "criterion_group makes a public function")]

use std::{fs, hint, io::Write, num::NonZeroUsize, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iofs_luks::Header;
use iofs_policy::{
    keys::KeyRing,
    manifest::{Architecture, VerifiedManifest},
    trust::TrustPolicy,
    verity::{BlockSize, HashAlgorithm, HashFormat, RootHash, Salt, VerityParameters},
};
use iofs_sign::{
    keys::PrivateKey,
    report::{Output, Progress},
    seal::{Certificates, SealRequest, config::Config, finish::SigningKeys, seal},
    sealed,
    verity::{Engine, FormatJob, format},
};

const BLOCKS: u64 = 4096;
const LUKS_HEADER: &[u8] = include_bytes!("../../luks/tests/data/debian-13.header");
/// Of the volume that the header came from.
const LUKS_VOLUME: u64 = 20 << 20;
/// Bytes of both headers.
const LUKS_HEADERS: usize = 32 << 10;

fn engines(criterion: &mut Criterion) {
    let parameters = VerityParameters {
        format: HashFormat::Normal,
        algorithm: HashAlgorithm::Sha256,
        data_block_size: BlockSize::try_from(4096).unwrap(),
        hash_block_size: BlockSize::try_from(4096).unwrap(),
        data_blocks: BLOCKS,
        salt: Salt::new(vec![7; 32]).unwrap(),
    };
    let bytes: Vec<u8> = (0..BLOCKS * 4096).map(|at| (at * 31 + at / 4096) as u8).collect();
    let (mut data, hash) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    data.write_all(&bytes).unwrap();
    let root = |engine| -> RootHash {
        let threads = NonZeroUsize::MIN;
        let job = FormatJob {
            data: &data,
            hash: &hash,
            hash_offset: 0,
            superblock: None,
            parameters: &parameters,
            threads,
            engine,
        };
        format(&job, &Progress::hidden()).unwrap()
    };
    let mut group = criterion.benchmark_group("hash tree of 16 MiB, one thread");
    group.throughput(Throughput::Bytes(BLOCKS * 4096));
    for engine in Engine::ALL.into_iter().filter(|engine| engine.is_available()) {
        assert_eq!(root(engine), root(Engine::Sha2), "{engine}");
        group.bench_function(engine.name(), |bencher| bencher.iter(|| root(hint::black_box(engine))));
    }
    group.finish();
}

/// Of a release as `seal` makes it.
fn manifest(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let out = sealed_root(folder.path());
    let envelope = fs::read(out.join(sealed::MANIFEST)).unwrap();
    let trust = TrustPolicy::parse(&fs::read(out.join(sealed::TRUST)).unwrap()).unwrap();
    let ring = KeyRing::of(&trust);
    let verify = |envelope: &[u8]| VerifiedManifest::verify(envelope, &trust, &ring, Architecture::X86_64);
    assert!(verify(&envelope).is_ok() && verify(&envelope[1..]).is_err());
    criterion
        .bench_function("manifest: signature and rules", |bencher| bencher.iter(|| verify(hint::black_box(&envelope))));
}

fn sealed_root(folder: &Path) -> std::path::PathBuf {
    let (root, out) = (folder.join("root"), folder.join("sealed"));
    fs::create_dir(&root).unwrap();
    let key = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keys-example/DO-NOT-SHIP-example-1.pem");
    let mut config = Config::default();
    config.image.id = Some("org.example.bench".parse().unwrap());
    config.image.version = Some("1".parse().unwrap());
    config.image.architecture = Some(Architecture::X86_64);
    let request = SealRequest {
        root,
        kernel: None,
        keys: SigningKeys { release: vec![PrivateKey::read(&key).unwrap()], ..SigningKeys::default() },
        uki: None,
        certificates: Certificates::default(),
        trusted: Vec::new(),
        succession: None,
        config,
        out: out.clone(),
        replace: false,
        threads: NonZeroUsize::MIN,
        unchanged: None,
    };
    seal(&request, Output { json: false, quiet: true }).unwrap();
    out
}

fn luks(criterion: &mut Criterion) {
    let read = |mut bytes: &[u8]| Header::read(&mut bytes, LUKS_VOLUME);
    // The second header is gone, as after a power cut.
    let mut bytes = LUKS_HEADER.to_vec();
    bytes.resize(LUKS_HEADERS, 0);
    assert!(read(&bytes).is_ok_and(|header| header.keyslots().count() > 0));
    criterion.bench_function("LUKS2 header", |bencher| bencher.iter(|| read(hint::black_box(&bytes))));
}

criterion_group!(benches, engines, manifest, luks);
criterion_main!(benches);
