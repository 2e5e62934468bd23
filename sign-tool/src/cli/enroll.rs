//! `iofs-sign enroll`.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use iofs_luks::{Token, TokenId};
use iofs_sign::{
    atomic, attest,
    enroll::{
        list::Listing,
        pending,
        recovery::RecoveryKey,
        steps::{Session, check_way_back},
        tpm::{TpmPlan, TpmSide},
        volume::{Kind, Volume, Way},
    },
    report::{ExitStatus, Failure, Output},
};
use zeroize::Zeroizing;

use super::{
    attest_tpm::{Handle, TpmArguments, parse_owner_handle},
    enroll_plan::RegisterArguments,
    enroll_report::{self, DryRun, PlannedTpm},
    prompt,
};

/// The longest passphrase or key file, in bytes: what cryptsetup takes at most.
const MAX_KEY_FILE: usize = 8 << 20;
/// The longest PIN, in bytes.
const MAX_PIN: usize = 513;
/// How often a passphrase is asked for.
const TRIES: usize = 3;

/// Let this machine's TPM, a PIN or a recovery key open a LUKS2 volume
///
/// Adds keyslots to the volume, with the tokens that systemd-cryptenroll would write, so that systemd-cryptsetup opens them
/// as verify-init does. The volume opens by what opened it before, whenever the power is cut. Nothing is removed before
/// what is to stay was proven. To make a device known to a verifier is another thing: 'attest enroll'.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  iofs-sign enroll /dev/vda4 --release sealed --key release.pub.pem --recovery-key
  iofs-sign enroll /dev/vda4 --pcr-policy policy.pub.pem --pin
  iofs-sign enroll /dev/vda4 --release next --key release.pub.pem --rotate
  iofs-sign enroll /dev/vda4 --list")]
pub(crate) struct Arguments {
    /// The volume: a device or a file
    device: PathBuf,
    /// Show what the volume can be opened by, and change nothing
    #[arg(long, conflicts_with_all = ["release", "pcrs", "pcr_policy", "pin", "recovery_key", "persistent", "wipe", "rotate", "dry_run", "volume_key"])]
    list: bool,
    #[command(flatten)]
    registers: RegisterArguments,
    /// Ask for a PIN, and let the TPM ask for it as well
    #[arg(long)]
    pin: bool,
    /// A file with the PIN, for machines without anybody [default: the terminal asks]
    #[arg(long, value_name = "FILE", requires = "pin")]
    pin_file: Option<PathBuf>,
    /// Let the TPM keep the sealed object too: three commands open the volume then
    #[arg(long, value_name = "HANDLE", value_parser = parse_owner_handle, num_args = 0..=1, require_equals = true)]
    persistent: Option<Option<Handle>>,
    /// Seal as systemd 252 (Debian 12) opens it: under a key that is made anew at each boot, and a PIN without a salt. Nothing
    /// tells at boot whose TPM answers then
    #[arg(long, conflicts_with = "persistent")]
    systemd_252: bool,
    /// Add a recovery key, and show it once, as text and as a QR code
    #[arg(long)]
    recovery_key: bool,
    /// Write the recovery key to a new file instead, or to standard output: -
    #[arg(long, value_name = "FILE", requires = "recovery_key")]
    recovery_key_file: Option<PathBuf>,
    /// Remove afterwards what was there of the kinds that were added
    #[arg(long)]
    rotate: bool,
    /// Remove: the number of a keyslot, or tpm2, recovery-key or passphrase
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    wipe: Vec<Wipe>,
    /// Remove also the last thing that somebody knows and that opens the volume
    #[arg(long)]
    accept_lockout: bool,
    /// Print what 'volume_key' in iofs.toml pins for the volume of that name
    #[arg(long, value_name = "NAME")]
    volume_key: Option<String>,
    /// A file with a passphrase of the volume, taken as it is, or - for standard input [default: the terminal asks]
    #[arg(long, value_name = "FILE")]
    unlock_key_file: Option<PathBuf>,
    /// Say what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    tpm: TpmArguments,
}

/// What is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wipe {
    Slot(u8),
    Kind(Kind),
}

impl std::str::FromStr for Wipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tpm2" => Ok(Self::Kind(Kind::Tpm2)),
            "recovery-key" => Ok(Self::Kind(Kind::RecoveryKey)),
            "passphrase" => Ok(Self::Kind(Kind::Passphrase)),
            _ => {
                let slot = text.parse().ok().filter(|slot| *slot < 32);
                slot.map(Self::Slot).ok_or_else(|| "expected 0 to 31, tpm2, recovery-key or passphrase".to_owned())
            }
        }
    }
}

impl Wipe {
    fn matches(self, way: &Way) -> bool {
        match self {
            Self::Slot(slot) => way.slot.get() == slot,
            Self::Kind(kind) => way.kind == kind,
        }
    }
}

impl Arguments {
    fn wants_tpm(&self) -> bool {
        self.registers.are_given() || self.pin || self.persistent.is_some()
    }

    /// Combinations that would do something else than their author thinks.
    fn check(&self, output: Output) -> Result<(), Failure> {
        let anything = self.wants_tpm() || self.recovery_key || !self.wipe.is_empty();
        let file_is_stdout = self.recovery_key_file.as_deref() == Some(Path::new("-"));
        let cases = [
            (
                !anything && !self.list && self.volume_key.is_none(),
                "nothing to do: expected what is to open the volume, found no option that says so",
                "bind it to a release: --release SEALED --key PUBLIC; or see --pcr-policy, --recovery-key, --list and --wipe",
            ),
            (
                self.wants_tpm() && !self.registers.are_given(),
                "expected the registers that the key is bound to, found none: whatever boots on this machine could ask for it",
                "give --release SEALED --key PUBLIC or --pcr-policy PUBLIC; --pcrs '' means none, for PINs alone",
            ),
            (
                self.systemd_252 && self.registers.have_counter(),
                "--systemd-252: no systemd opens a key that ends with a rollback counter",
                "leave --systemd-252 or --rollback-counter out",
            ),
            (
                self.systemd_252 && !self.wants_tpm(),
                "--systemd-252: expected something that a TPM is to open, found none",
                "see --release and --pcr-policy",
            ),
            (
                self.rotate && !self.wants_tpm() && !self.recovery_key,
                "--rotate: expected something that is added, found none",
                "say what takes its place, or use --wipe",
            ),
            (
                file_is_stdout && output.json,
                "--recovery-key-file -: standard output has the result",
                "name a file, or leave --json out",
            ),
        ];
        match cases.into_iter().find(|(refused, ..)| *refused) {
            Some((_, fact, next)) => Err(Failure::new(ExitStatus::Usage, fact).next(next)),
            None => self.registers.check(self.pin),
        }
    }
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    arguments.check(output)?;
    let volume = Volume::read(&arguments.device)?;
    if arguments.list {
        let listing = Listing::of(&volume);
        output.result(&listing, || listing.to_text());
        return Ok(());
    }
    let replaced = replaced(arguments, &volume)?;
    check_before(arguments, &volume, &replaced)?;
    let mut tpm = arguments.wants_tpm().then(|| open_tpm(arguments)).transpose()?;
    let mut plan = tpm.as_mut().map(|tpm| plan(arguments, &volume, tpm, output)).transpose()?;
    if arguments.dry_run {
        let dry_run = DryRun {
            uuid: volume.header.uuid.to_string(),
            clear: leftovers(&volume),
            add_recovery_key: arguments.recovery_key,
            add_tpm: plan.as_ref().map(PlannedTpm::of),
            remove: replaced.iter().map(|way| way.slot.get()).collect(),
        };
        output.result(&dry_run, || dry_run.to_text());
        return Ok(());
    }
    if let Some(plan) = &mut plan {
        plan.pin = arguments.pin.then(|| pin(arguments)).transpose()?;
    }
    let mut session = unlock(arguments, volume, &replaced, output)?;
    if let Some(name) = &arguments.volume_key {
        session.identify(name);
    }
    session.clear(&mut || open_tpm(arguments))?;
    // Without what was cleared away.
    let replaced = self::replaced(arguments, session.volume())?;
    if arguments.recovery_key {
        session.add_recovery(|key| show(arguments, key))?;
    }
    if let (Some(tpm), Some(plan)) = (&mut tpm, &plan) {
        add_tpm(arguments, &mut session, tpm, plan, output)?;
    }
    if !replaced.is_empty() {
        session.remove(&replaced, arguments.accept_lockout, &mut || open_tpm(arguments))?;
    }
    let left = session.volume().ways();
    let done = session.finish();
    output.result(&done, || enroll_report::text(&done, &left));
    Ok(())
}

fn open_tpm(arguments: &Arguments) -> Result<TpmSide, Failure> {
    arguments.tpm.open_side()
}

/// The keyslots that are to be removed.
fn replaced(arguments: &Arguments, volume: &Volume) -> Result<Vec<Way>, Failure> {
    let ways = volume.ways();
    for wipe in &arguments.wipe {
        if !ways.iter().any(|way| wipe.matches(way)) {
            let fact = match wipe {
                Wipe::Slot(slot) => format!("--wipe: there is no keyslot {slot}"),
                Wipe::Kind(kind) => format!("--wipe: no keyslot is opened by: {}", kind.name()),
            };
            return Err(Failure::new(ExitStatus::Usage, fact).next("see what there is with --list"));
        }
    }
    let rotated = |way: &Way| {
        let again = (way.kind == Kind::Tpm2 && arguments.wants_tpm())
            || (way.kind == Kind::RecoveryKey && arguments.recovery_key);
        arguments.rotate && again
    };
    Ok(ways.into_iter().filter(|way| rotated(way) || arguments.wipe.iter().any(|wipe| wipe.matches(way))).collect())
}

/// What can be known before anything is written and anybody is asked.
fn check_before(arguments: &Arguments, volume: &Volume, replaced: &[Way]) -> Result<(), Failure> {
    if !replaced.is_empty() && !arguments.recovery_key {
        let stay: Vec<Way> = volume.ways().into_iter().filter(|way| !replaced.contains(way)).collect();
        // Which of them opens shows later.
        let opened = stay.iter().map(|way| way.slot).collect();
        check_way_back(&stay, &opened, arguments.accept_lockout)?;
    }
    if !arguments.recovery_key {
        return Ok(());
    }
    match arguments.recovery_key_file.as_deref() {
        Some(path) if path != Path::new("-") && path.symlink_metadata().is_ok() => {
            Err(Failure::new(ExitStatus::Usage, format!("{} exists already", path.display()))
                .next("choose another --recovery-key-file; the key in this one may be one that opens the volume"))
        }
        None if !std::io::stdout().is_terminal() => Err(Failure::new(
            ExitStatus::Usage,
            "--recovery-key: standard output is no terminal: whatever keeps it would keep the key",
        )
        .next("run this on a terminal, or name a file with --recovery-key-file (- for standard output)")),
        _ => Ok(()),
    }
}

fn leftovers(volume: &Volume) -> Vec<u8> {
    volume.header.tokens().filter(|(_, token)| pending::is_leftover(token)).map(|(id, _)| id.get()).collect()
}

/// What the key is bound to, without the PIN.
fn plan(arguments: &Arguments, volume: &Volume, tpm: &mut TpmSide, output: Output) -> Result<TpmPlan, Failure> {
    tpm.check_open()?;
    let mut plan = arguments.registers.plan(volume, arguments.dry_run, tpm, output)?;
    plan.legacy = arguments.systemd_252;
    plan.persistent = match arguments.persistent {
        None => None,
        Some(Some(handle)) => Some(handle.0),
        Some(None) => Some(tpm.free_handle()?),
    };
    Ok(plan)
}

fn pin(arguments: &Arguments) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let pin = match &arguments.pin_file {
        Some(path) => {
            let mut pin = Zeroizing::new(attest::read(path, MAX_PIN)?);
            if pin.last() == Some(&b'\n') {
                pin.pop();
            }
            pin
        }
        None => {
            let pin = prompt::secret("new PIN", "--pin-file")?;
            if pin != prompt::secret("the same PIN again", "--pin-file")? {
                return Err(Failure::new(ExitStatus::Usage, "the two PINs are not the same").next("repeat"));
            }
            pin
        }
    };
    if pin.is_empty() || pin.contains(&0) {
        return Err(Failure::new(ExitStatus::Usage, "PIN: expected letters or digits, found none or a NUL")
            .next("choose a PIN that can be typed at the console"));
    }
    Ok(pin)
}

fn unlock(arguments: &Arguments, volume: Volume, replaced: &[Way], output: Output) -> Result<Session, Failure> {
    if let Some(path) = &arguments.unlock_key_file {
        let passphrase = attest::read(path, MAX_KEY_FILE);
        let passphrase = passphrase.map_err(|failure| failure.next("name a file with a passphrase of the volume"))?;
        let passphrase = Zeroizing::new(passphrase);
        return Session::unlock(volume, &passphrase, replaced, output);
    }
    let mut volume = Some(volume);
    let mut tries = 1;
    loop {
        let passphrase = prompt::secret("passphrase or recovery key of the volume", "--unlock-key-file")?;
        let this = volume.take().map_or_else(|| Volume::read(&arguments.device), Ok)?;
        match Session::unlock(this, &passphrase, replaced, output) {
            Err(failure) if failure.status == ExitStatus::NotVerified && tries < TRIES => {
                output.warn("that opens no keyslot");
                tries += 1;
            }
            result => return result,
        }
    }
}

fn add_tpm(
    arguments: &Arguments,
    session: &mut Session,
    tpm: &mut TpmSide,
    plan: &TpmPlan,
    output: Output,
) -> Result<(), Failure> {
    let srk = if plan.legacy { None } else { Some(tpm.storage_root_key()?.public) };
    if !arguments.rotate
        && let Some(token) = done_already(session.volume(), plan, srk.as_deref())
    {
        if plan.pin.is_some() {
            output.warn(format_args!(
                "token {token} has a PIN already, which was not compared: --rotate sets the new one"
            ));
        }
        session.unchanged(token);
        return Ok(());
    }
    session.add_tpm(tpm, plan)
}

fn done_already(volume: &Volume, plan: &TpmPlan, srk: Option<&[u8]>) -> Option<TokenId> {
    let done = volume
        .header
        .tokens()
        .find(|(_, token)| matches!(token, Token::SystemdTpm2(token) if plan.is_done_by(token, srk)));
    done.map(|(id, _)| id)
}

/// Shows a recovery key once.
fn show(arguments: &Arguments, key: &RecoveryKey) -> Result<(), Failure> {
    match arguments.recovery_key_file.as_deref() {
        Some(path) if path != Path::new("-") => {
            let text = Zeroizing::new(format!("{}\n", key.as_str()));
            let mut file = atomic::AtomicFile::create(path, 0o600)?;
            std::io::Write::write_all(file.file(), text.as_bytes())
                .map_err(|error| Failure::io(format_args!("write {}", path.display()), &error))?;
            file.create_new()
        }
        to => enroll_report::show_key(key, to.is_none()),
    }
}
