//! Keys that move with releases: the first is by key 1; the second by both, moves to key 2 and ends key 1; the third is by key 2.

use anyhow::{Context, Result, ensure};
use iofs_policy::{slots::SlotName, trust::KeyId};
use iofs_sign::seal::{SealRequest, succession::Succession};
use serde_json::{Value, json};
use swtpm_tests::{
    Ending, ScratchDisk,
    chain::{Chain, example_key},
    workshop::Workshop,
};

use super::{
    support::{BOOT, Device, as_is, reached, release, sealed, slot_that_runs},
    updates::{MOUNT_STICK, debian, running, shut_down, stick, update},
};

fn id(number: u8) -> Result<KeyId> {
    Ok(example_key(number)?.public().id())
}

/// Has it follow another release, signed by these keys.
fn follow(request: &mut SealRequest, previous: &Chain, keys: &[u8]) -> Result<()> {
    request.keys.release = keys.iter().map(|number| example_key(*number)).collect::<Result<_>>()?;
    let previous = previous.directory().path().to_owned();
    request.succession = Some(Succession { previous, next_keys: Vec::new(), next_threshold: None, revoke: Vec::new() });
    Ok(())
}

/// The same, and has it move the keys from the first to the second.
fn hand_over(request: &mut SealRequest, previous: &Chain) -> Result<()> {
    follow(request, previous, &[1, 2])?;
    let succession = request.succession.as_mut().context("it was just put there")?;
    (succession.next_keys, succession.revoke) = (vec![example_key(2)?.public()], vec![id(1)?]);
    Ok(())
}

struct Debians {
    first: Chain,
    stick: ScratchDisk,
}

impl Debians {
    fn new() -> Result<Self> {
        let first = debian(1, as_is)?;
        let second = sealed(|change| debian(2, change), |request| hand_over(request, &first))?;
        let third = sealed(|change| debian(3, change), |request| follow(request, &second, &[2]))?;
        // What whoever stole key 1 makes of it.
        let late = debian(9, as_is)?;
        let stick = stick(&[(2, &second), (3, &third), (9, &late)])?;
        Ok(Self { first, stick })
    }
}

/// The keys that `status` tells, and what it says of the other slot.
fn keys(status: &Value) -> Result<(Value, Option<String>)> {
    let other = slot_that_runs(status, false)?;
    Ok((status["slots"]["keys"].clone(), other["refused"].as_str().map(str::to_owned)))
}

fn moved() -> Result<Value> {
    Ok(json!({ "sequence": 1, "threshold": 1, "trusted": [id(2)?], "revoked": [id(1)?] }))
}

fn refuses(shell: &mut Workshop, version: u64) -> Result<()> {
    let told = shell.attempt(&format!("iofs-sign update /run/stick/{version} 2>&1"))?;
    let why = String::from_utf8_lossy(&told.stdout);
    ensure!(told.code == 4 && why.contains("expected 1 by trusted keys"), "{told:?}");
    Ok(())
}

#[test]
fn a_debian_13_moves_its_keys_over_three_releases_and_one_that_skips_the_middle_one_follows() -> Result<()> {
    let Debians { first, stick } = Debians::new()?;
    let device = Device::new("keys_debian", first)?;
    let (mut shell, status) = running(device.machine(), &stick, 1)?;
    ensure!(keys(&status)? == (json!({ "sequence": 0, "threshold": 1, "trusted": [id(1)?], "revoked": [] }), None));
    println!("1 to 2: {}", update(&mut shell, 2)?);
    shut_down(shell)?;
    let skips = ScratchDisk::copy_of(device.disk.path())?;

    let (mut shell, status) = running(device.machine(), &stick, 2)?;
    let (found, refused) = keys(&status)?;
    ensure!(found == moved()?, "{found:#}");
    ensure!(refused.as_deref().is_some_and(|why| why.contains("expected 1 by trusted keys")), "{status:#}");
    println!("{}", shell.run("iofs-sign status")?);
    println!("2 to 3: {}", update(&mut shell, 3)?);
    refuses(&mut shell, 9)?;
    shut_down(shell)?;
    let (mut shell, status) = running(device.machine(), &stick, 3)?;
    ensure!(keys(&status)? == (moved()?, None), "{status:#}");
    println!("{}", shell.run("iofs-sign status")?);
    shut_down(shell)?;

    // The same device, before it booted the second release: it never did.
    let size = usize::try_from(skips.size()?)?;
    device.disk.write(0, &skips.read(0, size)?)?;
    device.clear(SlotName::B)?;
    let (mut shell, _) = running(device.machine(), &stick, 1)?;
    println!("1 to 3: {}", update(&mut shell, 3)?);
    shut_down(shell)?;
    let (mut shell, status) = running(device.machine(), &stick, 3)?;
    ensure!(keys(&status)?.0 == moved()?, "{status:#}");
    shell.run(MOUNT_STICK)?;
    refuses(&mut shell, 9)?;
    shut_down(shell)
}

#[test]
fn stolen_key_a_release_by_a_key_that_ended_boots_no_more_although_it_is_newer() -> Result<()> {
    let first = release("1", 1, "", as_is)?;
    let second = sealed(|change| release("2", 1, "", change), |request| hand_over(request, &first))?;
    let late = release("9", 1, "", as_is)?;
    let device = Device::new("keys_ended", first)?;
    ensure!(device.boot()? == (Some("1".to_owned()), Ending::PoweredOff));
    device.confirm()?;
    device.put(SlotName::B, &second)?;
    ensure!(device.boot()? == (Some("2".to_owned()), Ending::PoweredOff));
    device.confirm()?;
    device.put(SlotName::A, &late)?;
    let before = device.state()?;
    ensure!(device.boot()?.0.as_deref() == Some("9"), "as long as nobody confirmed the move, key 1 counts");
    device.set_state(&before)?;
    device.confirm_keys(&second)?;
    ensure!(device.boot()?.0.as_deref() == Some("2"));
    device.clear(SlotName::B)?;
    let mut vm = device.start()?;
    let found = "slot a: signatures: expected 1 by trusted keys";
    vm.says_why("chosen", ["neither slot can be booted", "a slot with a release", found], BOOT)?;
    ensure!(vm.wait_for_end(BOOT)? == Ending::PoweredOff && reached(&vm).is_none());
    Ok(())
}
