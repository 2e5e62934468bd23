use super::{elf::tests::executable_with, kernel::KernelRelease, *};

fn modules() -> ModuleSet {
    let release = KernelRelease::parse("6.1.0").unwrap();
    let index = iofs_policy::modules::ModuleIndex::new(release.to_string(), Vec::new()).unwrap();
    ModuleSet {
        release,
        machine: Machine::X86_64,
        index,
        files: [("a.ko".to_owned(), vec![1; 99])].into(),
        absent: vec![],
    }
}

#[test]
fn only_static_binaries_of_the_kernels_machine_become_init() {
    let modules = modules();
    for (init, fine) in [
        (executable_with(1, 62), true),
        (executable_with(3, 62), false),
        (executable_with(1, 183), false),
        (b"#!/bin/sh".to_vec(), false),
    ] {
        assert_eq!(base_segment(&modules, &init, Format::None, 0, &SegmentCache::none()).is_ok(), fine);
    }
}

#[test]
fn segments_are_aligned_and_the_report_finds_them() {
    let (modules, init) = (modules(), executable_with(1, 62));
    for format in [Format::Zstd, Format::Xz, Format::Gzip, Format::None] {
        let files = [EmbeddedFile { path: in_archive(paths::TRUST).to_owned(), mode: 0o644, bytes: b"{}".to_vec() }];
        let plan = InitramfsPlan {
            modules: &modules,
            init: &init,
            files: &files,
            format,
            mtime: 1,
            cache: SegmentCache::none(),
        };
        let built = build(&plan).unwrap();
        assert_eq!(built.bytes, build(&plan).unwrap().bytes);
        let [base, image] = &built.report.segments[..] else { panic!("two segments") };
        assert_eq!(image.offset, base.compressed);
        assert_eq!(image.offset % ALIGNMENT, 0);
        assert_eq!(image.offset + image.compressed, built.report.size);
        assert_eq!(
            built.bytes[..base.compressed],
            base_segment(&modules, &init, format, 1, &SegmentCache::none()).unwrap().0
        );
        assert_eq!(built.bytes[image.offset..], image_segment(&files, format, 1).unwrap().0);
    }
}

#[test]
fn a_file_is_not_embedded_twice() {
    let file = EmbeddedFile { path: "etc/a".to_owned(), mode: 0o644, bytes: Vec::new() };
    assert!(matches!(image_segment(&[file.clone(), file], Format::None, 0), Err(InitramfsError::Path(_))));
}
