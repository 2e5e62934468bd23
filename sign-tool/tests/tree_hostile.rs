//! Archives made to break out, to exhaust or to confuse are refused by name, and touch nothing outside.

mod tree_common;

use std::path::Path;

use iofs_sign::report::{ExitStatus, Failure};
use tree_common::{fast_work, shell};

/// An entry of a tar to be made: type, name, link target, content.
type Member<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);

fn tar(members: &[Member]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (kind, name, link, content) in members {
        archive.extend(header(*kind, name, link, content.len()));
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn header(kind: u8, name: &[u8], link: &[u8], size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000755");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn cpio(members: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (mode, name, content) in members.iter().chain([&(0, &b"TRAILER!!!"[..], &b""[..])]) {
        let fields = [1, *mode, 0, 0, 1, 1, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").as_bytes()));
        archive.extend(*name);
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// Unpacks in a directory of its own, and checks that nothing comes beside it.
fn unpack(archive: &[u8], work: &Path) -> Result<(), Failure> {
    let (place, path) = (work.join("place"), work.join("archive"));
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(&path, archive).unwrap();
    let result = tree_common::unpack(&path, &place).map(drop);
    let mut names: Vec<_> = std::fs::read_dir(work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["archive", "outside", "place"], "nothing outside");
    assert_eq!(std::fs::read(work.join("outside")).unwrap(), b"untouched");
    result
}

fn place() -> tempfile::TempDir {
    let work = fast_work();
    std::fs::write(work.path().join("outside"), "untouched").unwrap();
    work
}

#[test]
fn names_and_links_do_not_lead_out() {
    let work = place();
    let outside = work.path().join("outside");
    let outside = std::os::unix::ffi::OsStrExt::as_bytes(outside.as_os_str());
    let file: &[u8] = b"changed";
    for (why, archive) in [
        ("dots", tar(&[(b'0', b"../outside", b"", file)])),
        ("dots inside", tar(&[(b'0', b"a/../../../outside", b"", file)])),
        ("dots in a hard link", tar(&[(b'1', b"link", b"../outside", b"")])),
        ("a hard link to nothing", tar(&[(b'1', b"link", outside, b"")])),
        ("a hard link through a symlink", tar(&[(b'2', b"up", b"../..", b""), (b'1', b"link", b"up/outside", b"")])),
        ("a hard link to a directory", tar(&[(b'5', b"d", b"", b""), (b'1', b"link", b"d", b"")])),
        ("dots in cpio", cpio(&[(0o100_644, b"../outside", file)])),
        ("a file as the root", cpio(&[(0o100_644, b".", file)])),
        ("a loop", tar(&[(b'2', b"a", b"b", b""), (b'2', b"b", b"a", b""), (b'0', b"a/file", b"", file)])),
        ("a file as a directory", tar(&[(b'0', b"a", b"", file), (b'0', b"a/b", b"", file)])),
        ("a file over a full directory", tar(&[(b'0', b"a/b", b"", file), (b'0', b"a", b"", file)])),
        ("a NUL in a name", tar(&[(b'x', b"x", b"", b"12 path=a\0b\n"), (b'0', b"c", b"", file)])),
    ] {
        let failure = unpack(&archive, work.path()).expect_err(why);
        assert_eq!(failure.status, ExitStatus::BadInput, "{why}: {failure}");
        println!("{why}: {failure}");
    }
    let inside = [
        tar(&[(b'0', outside, b"", file)]),
        tar(&[(b'2', b"up", b"../../..", b""), (b'0', b"up/outside", b"", file)]),
        tar(&[(b'2', b"abs", b"/", b""), (b'0', &[b"abs", outside].concat(), b"", file)]),
        tar(&[(b'2', b"outside", outside, b""), (b'0', b"outside", b"", file)]),
        tar(&[(b'2', b"out", outside, b""), (b'5', b"out", b"", b"")]),
        tar(&[(b'0', b"twice", b"", b"one"), (b'0', b"twice", b"", b"two"), (b'1', b"twice", b"twice", b"")]),
        tar(&[(b'5', b"d", b"", b""), (b'2', b"d", b"/", b""), (b'0', b"d/outside", b"", file)]),
        cpio(&[(0o120_777, b"up", b"../../.."), (0o100_644, b"up/outside", file)]),
        cpio(&[(0o140_777, b"socket", b"")]),
    ];
    for (number, archive) in inside.iter().enumerate() {
        unpack(archive, work.path()).unwrap_or_else(|failure| panic!("{number}: {failure}"));
    }
}

#[test]
fn an_archive_that_ends_early_is_refused_wherever_it_ends() {
    let work = place();
    let members: [Member; 4] = [
        (b'x', b"x", b"", b"19 mtime=1234567.5\n"),
        (b'0', b"file", b"", &[7; 1500]),
        (b'5', b"dir", b"", b""),
        (b'0', b"dir/empty", b"", b""),
    ];
    let archive = tar(&members);
    unpack(&archive, work.path()).unwrap();
    for length in (0..archive.len() - 1024).step_by(256) {
        let failure = unpack(&archive[..length], work.path()).expect_err("cut");
        assert_eq!(failure.status, ExitStatus::BadInput, "{length}: {failure}");
    }
    let archive = cpio(&[(0o100_644, b"file", &[7; 150]), (0o40_755, b"dir", b""), (0o120_777, b"link", b"file")]);
    unpack(&archive, work.path()).unwrap();
    for length in 0..archive.len() - 1 {
        let Err(failure) = unpack(&archive[..length], work.path()) else { panic!("cut at {length}") };
        assert_eq!(failure.status, ExitStatus::BadInput, "{length}: {failure}");
    }
}

#[test]
fn compressed_streams_that_end_early_are_refused() {
    let work = place();
    let content: Vec<u8> =
        (0..200_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let tars = tempfile::tempdir().unwrap();
    let (plain, packed) = (tars.path().join("plain"), tars.path().join("packed"));
    std::fs::write(&plain, tar(&[(b'0', b"file", b"", &content)])).unwrap();
    for command in ["gzip -1 -c", "xz -0 -c", "zstd -q -1 -c", "lz4 -q -c", "lz4 -q -l -c"] {
        shell(&format!("{command} <\"$1\" >\"$2\""), &[&plain, &packed]);
        let whole = std::fs::read(&packed).unwrap();
        unpack(&whole, work.path()).unwrap();
        for part in 1..20 {
            let length = whole.len() * part / 20;
            let failure = unpack(&whole[..length], work.path()).expect_err(command);
            assert_eq!(failure.status, ExitStatus::BadInput, "{command} {length}: {failure}");
        }
        let failure = unpack(&whole[..whole.len() - 1], work.path());
        // The end mark of a legacy frame is the end of the file.
        assert!(failure.is_err(), "{command}: the last byte");
    }
}

#[test]
fn each_header_byte_may_be_anything_without_a_panic() {
    let work = place();
    let archive = tar(&[(b'0', b"file", b"", b"content"), (b'S', b"sparse", b"", &[])]);
    for at in 0..1536 {
        for value in [0, 0x80, 0xff, b'7', b'9', b'g', b'x', b'L', b'S'] {
            let mut changed = archive.clone();
            changed[at] = value;
            let block = at / 512 * 512;
            if block != 512 {
                seal(&mut changed[block..block + 512]);
            }
            if let Err(failure) = unpack(&changed, work.path()) {
                assert!(!failure.fact.is_empty());
            }
        }
    }
    let archive = cpio(&[(0o100_644, b"file", b"content")]);
    for at in 0..archive.len() {
        for value in [0, b'0', b'f', b'g', b'/', 0xff] {
            let mut changed = archive.clone();
            changed[at] = value;
            let _ = unpack(&changed, work.path());
        }
    }
}

#[test]
fn claims_of_size_are_checked_before_they_are_believed() {
    let work = place();
    let huge = |kind: u8, size: &[u8; 12]| {
        let mut archive = tar(&[(kind, b"file", b"", b"")]);
        archive[124..136].copy_from_slice(size);
        seal(&mut archive);
        archive
    };
    let pax = |records: &[u8]| tar(&[(b'x', b"x", b"", records), (b'0', b"file", b"", b"abc")]);
    for (why, archive) in [
        ("8 GiB in octal", huge(b'0', b"77777777777\0")),
        ("8 EiB in base 256", huge(b'0', &[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255])),
        ("below zero", huge(b'0', &[255; 12])),
        ("a long name of 8 GiB", huge(b'L', b"77777777777\0")),
        ("an extended header of 8 GiB", huge(b'x', b"77777777777\0")),
        ("a directory with content", huge(b'5', b"00000000010\0")),
        ("a record over its header", pax(b"99 path=x\n")),
        ("a record without end", pax(b"9 path=xy")),
        ("two names", tar(&[(b'L', b"", b"", b"a\0"), (b'L', b"", b"", b"b\0"), (b'0', b"c", b"", b"")])),
        ("nothing behind a name", tar(&[(b'L', b"", b"", b"a\0")])),
        ("a sparse file of 8 EiB", pax(b"25 GNU.sparse.map=0,3,9,0\n29 GNU.sparse.size=9000000000000000000\n")),
        ("overlapping extents", pax(b"27 GNU.sparse.map=0,2,1,1\n22 GNU.sparse.size=9\n")),
        ("a global name", tar(&[(b'g', b"g", b"", b"10 path=ab\n"), (b'0', b"c", b"", b"")])),
        ("an owner of all ones", pax(b"18 uid=4294967295\n")),
        ("something behind the end", [tar(&[(b'0', b"a", b"", b"")]), vec![1; 512]].concat()),
    ] {
        let failure = unpack(&archive, work.path()).expect_err(why);
        assert_eq!(failure.status, ExitStatus::BadInput, "{why}: {failure}");
        println!("{why}: {failure}");
    }
}
