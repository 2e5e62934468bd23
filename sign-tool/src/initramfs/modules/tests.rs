use std::fs;

use tempfile::TempDir;

use super::{super::elf::tests::module_with, *};

const RELEASE: &str = "6.1.0-1-test";

fn kernel() -> KernelImage {
    KernelImage { release: KernelRelease::parse(RELEASE).unwrap(), machine: Machine::X86_64, config: None }
}

/// A root with modules: name and the `.modinfo` beside `vermagic`.
fn root(modules: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (name, info) in modules {
        let info = format!("vermagic={RELEASE} SMP\0{}\0", info.replace(';', "\0"));
        write(&root, &format!("kernel/{name}.ko"), &module_with(info.as_bytes()));
    }
    root
}

fn write(root: &TempDir, path: &str, bytes: &[u8]) {
    let path = root.path().join("lib/modules").join(RELEASE).join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn request(name: &str, need: Need) -> Request {
    Request { need, ..Request::added(name) }
}

fn collect(root: &TempDir, names: &[&str]) -> Result<ModuleSet, ModulesError> {
    let requests: Vec<_> = names.iter().map(|name| request(name, Need::Required)).collect();
    ModuleSet::collect(&kernel(), root.path(), &requests)
}

fn order(set: &ModuleSet) -> Vec<&str> {
    let ids = set.index.load_order(&set.index.always(), &[]);
    ids.into_iter().map(|id| set.index.get(id).name.as_str()).collect()
}

#[test]
fn dependencies_and_softdeps_are_taken_in_load_order() {
    let root = root(&[
        ("dm-verity", "depends=dm-mod,dm-bufio;softdep=pre: early post: late"),
        ("dm-mod", "depends="),
        ("dm-bufio", "depends=dm-mod"),
        ("early", ""),
        ("late", "depends=dm-bufio"),
        ("other", ""),
    ]);
    let set = collect(&root, &["dm_verity"]).unwrap();
    assert_eq!(order(&set), ["early", "dm_mod", "dm_bufio", "dm_verity", "late"]);
    assert!(set.files.contains_key("dm_verity.ko") && !set.files.contains_key("other.ko"));
}

#[test]
fn a_softdep_that_needs_its_module_comes_after_it() {
    let root = root(&[("a", "softdep=pre: b"), ("b", "depends=a"), ("c", "softdep=pre: d"), ("d", "softdep=pre: c")]);
    assert_eq!(order(&collect(&root, &["b"]).unwrap()), ["a", "b"]);
    assert_eq!(order(&collect(&root, &["a"]).unwrap()), ["a", "b"]);
    assert_eq!(order(&collect(&root, &["c"]).unwrap()).len(), 2);
}

#[test]
fn what_is_built_in_is_not_missing() {
    let root =
        root(&[("erofs", "depends=libcrc32c"), ("libcrc32c", "softdep=pre: crypto-crc32c"), ("crc32c_intel", "")]);
    write(&root, "modules.builtin", b"kernel/drivers/md/dm-verity.ko\n");
    write(&root, "modules.alias", b"alias crypto-crc32c crc32c_intel\n");
    let set = collect(&root, &["erofs", "dm-verity"]).unwrap();
    assert_eq!(order(&set), ["crc32c_intel", "libcrc32c", "erofs"]);
    write(&root, "modules.builtin", b"kernel/lib/libcrc32c.ko\nkernel/dm-verity.ko\n");
    assert_eq!(order(&collect(&root, &["erofs", "dm_verity"]).unwrap()), ["erofs"]);
    write(&root, "modules.builtin", b"kernel/crc32c_generic.ko\n");
    write(&root, "modules.builtin.modinfo", b"crc32c_generic.alias=crypto-crc32c\0");
    assert_eq!(order(&collect(&root, &["erofs"]).unwrap()), ["libcrc32c", "erofs"]);
}

#[test]
fn a_missing_required_module_names_itself_the_kernel_and_the_way_out() {
    let root = root(&[("erofs", "depends=libcrc32c")]);
    let failure = Failure::from(collect(&root, &["dm-verity"]).unwrap_err());
    assert_eq!(failure.status, ExitStatus::Missing);
    assert!(failure.fact.contains("dm_verity") && failure.fact.contains(RELEASE), "{failure}");
    assert!(failure.next_step.unwrap().contains("CONFIG_DM_VERITY"));
    assert!(collect(&root, &["erofs"]).unwrap_err().to_string().contains("libcrc32c (needed by erofs)"));
    let set = ModuleSet::collect(&kernel(), root.path(), &[request("nvme", Need::Hardware)]).unwrap();
    assert_eq!(set.absent, ["nvme"]);
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let root = root(&[]);
    write(&root, "kernel/erofs.ko", &module_with(b"vermagic=6.1.0-2-test SMP\0"));
    assert!(matches!(collect(&root, &["erofs"]), Err(ModulesError::OtherKernel { .. })));
    let mut arm = module_with(b"vermagic=6.1.0-1-test SMP\0");
    arm[18] = 183;
    write(&root, "kernel/erofs.ko", &arm);
    assert!(matches!(collect(&root, &["erofs"]), Err(ModulesError::OtherKernel { .. })));
    write(&root, "kernel/erofs.ko", b"junk");
    assert!(matches!(collect(&root, &["erofs"]), Err(ModulesError::NoModule { .. })));
}

#[test]
fn the_folder_must_be_the_kernels() {
    let root = root(&[("erofs", "")]);
    let kernel = kernel();
    let requests = [request("erofs", Need::Required)];
    let below = root.path().join("lib/modules");
    for given in [root.path(), &below, &below.join(RELEASE)] {
        assert!(ModuleSet::collect(&kernel, given, &requests).is_ok(), "{}", given.display());
    }
    fs::rename(below.join(RELEASE), below.join("6.1.0-2-test")).unwrap();
    for given in [root.path(), &below, &below.join("6.1.0-2-test")] {
        let error = ModuleSet::collect(&kernel, given, &requests).unwrap_err();
        assert!(matches!(&error, ModulesError::NoFolder { found, .. } if found.contains("6.1.0-2-test")), "{error}");
    }
}

#[test]
fn modules_dep_must_agree_with_the_modules() {
    let root = root(&[("a", "depends=b"), ("b", "")]);
    write(&root, "modules.dep", b"kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n");
    assert_eq!(order(&collect(&root, &["a"]).unwrap()), ["b", "a"]);
    write(&root, "modules.dep", b"kernel/a.ko:\nkernel/b.ko:\n");
    assert!(matches!(collect(&root, &["a"]), Err(ModulesError::Stale { .. })));
}

#[test]
fn without_modules_dep_a_module_must_be_there_once() {
    let root = root(&[("a", "")]);
    write(&root, "updates/a.ko", b"");
    assert!(matches!(collect(&root, &["a"]), Err(ModulesError::Twice { .. })));
}

#[test]
fn compressed_modules_travel_uncompressed_and_otherwise_unchanged() {
    let root = root(&[]);
    let mut plain = module_with(format!("vermagic={RELEASE} SMP\0").as_bytes());
    plain.extend_from_slice(b"~Module signature appended~\n");
    write(&root, "kernel/a.ko.zst", &zstd::encode_all(&plain[..], 1).unwrap());
    let set = collect(&root, &["a"]).unwrap();
    assert_eq!(set.files["a.ko"], plain);
}

#[test]
fn aliases_of_hardware_are_kept_and_parameters_come_from_the_request() {
    let root = root(&[("a", "alias=scsi:t-0x00*;alias=block-major-8-*;alias=fs-a;alias=devname:a;alias=acpi*:X:*")]);
    let set = ModuleSet::collect(&kernel(), root.path(), &[Request::added("a x=1 y=2")]).unwrap();
    let module = &set.index.modules()[0];
    assert_eq!(module.aliases, ["scsi:t-0x00*", "acpi*:X:*"]);
    assert_eq!(module.options, "x=1 y=2");
    assert_eq!(set.index.matching("scsi:t-0x00").len(), 1);
}
