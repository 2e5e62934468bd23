//! The harness boots a real kernel, reads its console, and tells the ways apart in which a machine ends.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Result;
use swtpm_tests::{Bus, Disk, Ending, Line, Machine, Newc, ScratchDisk, Vm, cache, tools};
use tempfile::TempDir;

const BOOT: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_secs(20);

/// Does what `test.do=` on the kernel's command line asks for.
const INIT: &str = r#"#!/bin/sh
mount -t devtmpfs none /dev
mount -t proc none /proc
printf '\033[1minit runs\033[0m\n'
for word in $(cat /proc/cmdline); do
    case $word in
    test.do=off) poweroff -f ;;
    test.do=reset) reboot -f ;;
    test.do=halt) halt -f ;;
    test.do=exit) exit 1 ;;
    test.do=ask)
        printf 'name: '
        read -r name
        echo "hello $name"
        poweroff -f
        ;;
    test.do=nvme)
        dd if=/dev/nvme0n1 bs=5 count=1 2>/dev/null
        echo
        printf 'guest' | dd of=/dev/nvme0n1 conv=fsync 2>/dev/null
        poweroff -f
        ;;
    esac
done
sleep 1000
"#;

/// A machine with Debian 12's kernel and a shell script as its init, and the folder that its initramfs lies in.
fn machine(name: &str, task: &str) -> Result<(Machine, TempDir)> {
    let busybox = tools::require("busybox", "apt-get install busybox-static")?;
    let mut archive = Newc::new().folder("bin").folder("dev").folder("proc");
    archive = archive.program("bin/busybox", &fs::read(busybox)?).program("init", INIT.as_bytes());
    for applet in ["sh", "mount", "cat", "poweroff", "reboot", "halt", "dd", "sleep"] {
        archive = archive.link(&format!("bin/{applet}"), "busybox");
    }
    let folder = tempfile::tempdir()?;
    let initrd: PathBuf = folder.path().join("initrd.img");
    fs::write(&initrd, archive.finish())?;
    let kernel = cache::kernel("bookworm")?;
    let machine = Machine::named(name).kernel(kernel.vmlinuz).initrd(initrd).append(&format!("test.do={task}"));
    Ok((machine, folder))
}

fn boot(name: &str, task: &str) -> Result<Vm> {
    let (machine, _folder) = machine(name, task)?;
    let vm = machine.start()?;
    vm.wait_for_line(&Line::exactly("init runs"), BOOT)?;
    Ok(vm)
}

#[test]
fn a_machine_that_powers_off_has_powered_off() -> Result<()> {
    let mut vm = boot("a machine that powers off", "off")?;
    assert_eq!(vm.wait_for_end(MOMENT)?, Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_machine_that_resets_has_reset() -> Result<()> {
    let mut vm = boot("a machine that resets", "reset")?;
    assert_eq!(vm.wait_for_end(MOMENT)?, Ending::Reset);
    Ok(())
}

#[test]
fn a_machine_that_halts_has_halted() -> Result<()> {
    let mut vm = boot("a machine that halts", "halt")?;
    assert_eq!(vm.wait_for_end(MOMENT)?, Ending::Halted);
    Ok(())
}

#[test]
fn an_init_that_exits_is_a_panic_with_its_message() -> Result<()> {
    let mut vm = boot("an init that exits", "exit")?;
    let ending = vm.wait_for_end(MOMENT)?;
    let Ending::Panicked(message) = &ending else { panic!("expected a panic, found {ending:?}") };
    assert!(message.starts_with("Attempted to kill init!"), "{message}");
    Ok(())
}

#[test]
fn a_machine_that_does_not_end_is_an_error_that_shows_its_console() -> Result<()> {
    let mut vm = boot("a machine that does not end", "nothing")?;
    let error = vm.wait_for_end(Duration::from_millis(300)).unwrap_err().to_string();
    assert!(error.contains("init runs"), "{error}");
    Ok(())
}

#[test]
fn a_prompt_is_answered_on_the_console() -> Result<()> {
    let (machine, _folder) = machine("a prompt", "ask")?;
    // The kernel prints its records whenever it likes, behind a prompt too.
    let mut vm = machine.append("quiet").start()?;
    vm.console().wait_for_prompt("name: ", BOOT)?;
    vm.type_line("harness")?;
    vm.wait_for_line(&Line::exactly("hello harness"), MOMENT)?;
    assert_eq!(vm.wait_for_end(MOMENT)?, Ending::PoweredOff);
    Ok(())
}

#[test]
fn a_machine_started_again_finds_what_it_wrote_and_a_discarding_disk_forgets() -> Result<()> {
    let disk = ScratchDisk::empty(1 << 20)?;
    disk.write(0, b"hosts")?;
    let (machine, _folder) = machine("a disk", "nvme")?;
    let attached = Disk::raw(disk.path()).on(Bus::Nvme);
    for (disk, expected) in
        [(attached.clone().discarding_writes(), "hosts"), (attached.clone(), "hosts"), (attached, "guest")]
    {
        let mut vm = machine.clone().deterministic().disk(disk).start()?;
        vm.wait_for_line(&Line::exactly(expected), BOOT)?;
        assert_eq!(vm.wait_for_end(MOMENT)?, Ending::PoweredOff);
    }
    assert_eq!(disk.read(0, 5)?, b"guest");
    Ok(())
}

#[test]
fn a_kernel_that_does_not_exist_fails_with_the_emulators_own_words() {
    let error = Machine::named("no kernel").kernel("/no/such/kernel").start().unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("/no/such/kernel") && text.contains("no kernel"), "{text}");
}

#[test]
fn every_bus_takes_a_disk_and_all_but_sata_a_write_protected_one() -> Result<()> {
    let image = ScratchDisk::empty(1 << 20)?;
    for bus in [Bus::VirtioBlk, Bus::VirtioScsi, Bus::Nvme, Bus::Ahci, Bus::Usb] {
        let disk = Disk::raw(image.path()).on(bus).serial("a-serial");
        let shared = disk.clone().discarding_writes();
        let first = Machine::named("every bus").disk(shared.clone()).disk(shared.clone()).start()?;
        let second = Machine::named("every bus").disk(shared).start()?;
        first.cut_power();
        second.cut_power();
        let protected = Machine::named("every bus").disk(disk.read_only()).start();
        assert_eq!(protected.is_ok(), bus != Bus::Ahci, "{bus:?}: {protected:?}");
    }
    Ok(())
}
