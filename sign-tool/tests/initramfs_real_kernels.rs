//! Mini-initramfs archives of real Debian kernels, judged by cpio(1) and zstd(1).

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use iofs_policy::paths;
use iofs_sign::initramfs::{
    self, EmbeddedFile, Format, Initramfs, InitramfsPlan, Segment,
    cache::SegmentCache,
    in_archive,
    kernel::KernelImage,
    modules::ModuleSet,
    profile::{Feature, Profile, requests},
};

const SUITES: [&str; 2] = ["bookworm", "trixie"];

fn suite(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache/kernels").join(name);
    assert!(path.join("vmlinuz").exists(), "{} is missing: run `make cache`", path.display());
    path
}

fn collect(name: &str, profile: Profile, features: &[Feature]) -> ModuleSet {
    let folder = suite(name);
    let kernel = KernelImage::read(&folder.join("vmlinuz")).unwrap();
    assert_eq!(kernel.unpacks(Format::Zstd), Some(true));
    ModuleSet::collect(&kernel, &folder, &requests(profile, features)).unwrap()
}

/// The smallest file that passes for a static x86-64 executable.
fn init() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
    bytes[24] = 1;
    bytes
}

fn build(modules: &ModuleSet, format: Format) -> Initramfs {
    let file = |path: &str, bytes: &[u8]| EmbeddedFile { path: path.to_owned(), mode: 0o644, bytes: bytes.to_vec() };
    let files = [file(in_archive(paths::MANIFEST), b"manifest"), file(in_archive(paths::TRUST), b"trust")];
    let cache = SegmentCache::none();
    let plan = InitramfsPlan { modules, init: &init(), files: &files, format, mtime: 1_700_000_000, cache };
    initramfs::build(&plan).unwrap()
}

/// A segment without what fills it up: zstd(1) takes zeros behind a frame for a damaged one, the kernel skips them.
fn segment<'a>(image: &'a Initramfs, at: &Segment) -> &'a [u8] {
    let bytes = &image.bytes[at.offset..at.offset + at.compressed];
    (0..4).map(|cut| &bytes[..bytes.len() - cut]).find(|bytes| zstd::decode_all(*bytes).is_ok()).expect("a whole frame")
}

fn run(command: &mut Command, input: &[u8]) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("zstd and cpio are installed");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gnu_tools_read_every_segment_and_extract_what_was_put_in() {
    for suite in SUITES {
        let modules = collect(suite, Profile::Vm, &[]);
        let image = build(&modules, Format::Zstd);
        let target = tempfile::tempdir().unwrap();
        for at in &image.report.segments {
            let packed = segment(&image, at);
            run(Command::new("zstd").args(["-q", "-t"]), packed);
            let plain = zstd::decode_all(packed).unwrap();
            assert_eq!(plain.len(), at.uncompressed);
            run(Command::new("cpio").args(["--quiet", "-idm", "--no-absolute-filenames"]).current_dir(&target), &plain);
            let listing = run(Command::new("cpio").args(["--quiet", "-itv"]), &plain);
            assert!(at.files.iter().all(|file| listing.contains(&file.path)), "{listing}");
        }
        assert_eq!(fs::read(target.path().join("init")).unwrap(), init());
        assert_eq!(fs::read(target.path().join(in_archive(paths::MANIFEST))).unwrap(), b"manifest");
        for (name, bytes) in &modules.files {
            let path = target.path().join(format!("lib/modules/{}/{name}", modules.release));
            assert!(fs::read(path).unwrap() == *bytes, "{name}");
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes_on_any_number_of_threads() {
    let one = build(&collect("bookworm", Profile::Vm, &[]), Format::Zstd).bytes;
    let others: Vec<_> = (0..2)
        .map(|_| std::thread::spawn(|| build(&collect("bookworm", Profile::Vm, &[]), Format::Zstd).bytes))
        .collect();
    for other in others {
        assert!(other.join().unwrap() == one);
    }
}

#[test]
fn the_modules_of_a_cloud_kernel_stay_small() {
    // With a static init of 1.1 MB, which takes 0.45 MB compressed, either stays below 1.2 MB.
    for (suite, limit) in [("bookworm", 600_000), ("trixie", 740_000)] {
        let size = build(&collect(suite, Profile::Vm, &[]), Format::Zstd).bytes.len();
        assert!(size <= limit, "{suite}: {size} bytes");
    }
    // With verify-init, which takes 0.69 MB compressed, either stays below 1.5 MB.
    for (suite, limit) in [("bookworm", 650_000), ("trixie", 800_000)] {
        let size = build(&collect(suite, Profile::Vm, &[Feature::Luks, Feature::Ext4]), Format::Zstd).bytes.len();
        assert!(size <= limit, "{suite} with LUKS: {size} bytes");
    }
}

#[test]
fn a_protected_volume_brings_what_authenticates_it() {
    for suite in SUITES {
        let index = collect(suite, Profile::Vm, &[Feature::Luks, Feature::Integrity]).index;
        for name in ["dm_crypt", "dm_integrity", "authenc", "xts"] {
            assert!(index.get(index.find(name).unwrap()).always, "{suite}: {name}");
        }
        let plain = collect(suite, Profile::Vm, &[Feature::Luks]).index;
        assert!(plain.find("dm_integrity").is_none() && plain.find("hid").is_none(), "{suite}");
    }
}

#[test]
fn disks_are_reached_by_the_modaliases_of_a_virtual_machine() {
    for suite in SUITES {
        let index = collect(suite, Profile::Vm, &[Feature::Luks]).index;
        let loaded = |modalias: &str| -> Vec<&str> {
            let order = index.load_order(&index.matching(modalias), &[]);
            order.into_iter().map(|id| index.get(id).name.as_str()).collect()
        };
        assert_eq!(loaded("scsi:t-0x00").last(), Some(&"sd_mod"));
        assert_eq!(loaded("virtio:d00000002v00001AF4").last(), Some(&"virtio_blk"));
        assert_eq!(loaded("virtio:d00000008v00001AF4").last(), Some(&"virtio_scsi"));
        assert!(loaded("scsi:t-0x05").is_empty(), "no optical drives");
        assert!(loaded("cpu:type:x86,ven0000fam0006mod009E:feature:,0000,0089,").contains(&"sha256_ssse3"));
    }
}

#[test]
fn modules_are_shipped_with_their_signatures() {
    for suite in SUITES {
        for (name, bytes) in collect(suite, Profile::Vm, &[]).files {
            assert!(bytes.starts_with(b"\x7fELF"), "{name} is compressed");
            assert!(bytes.ends_with(b"~Module signature appended~\n"), "{name} lost its signature");
        }
    }
}

#[test]
fn modules_of_another_release_are_refused() {
    let kernel = KernelImage::read(&suite("bookworm").join("vmlinuz")).unwrap();
    let error = ModuleSet::collect(&kernel, &suite("trixie"), &requests(Profile::Vm, &[])).unwrap_err();
    assert!(error.to_string().contains(kernel.release.as_str()), "{error}");
}
