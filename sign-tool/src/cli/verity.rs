//! `iofs-sign verity`: a drop-in for `veritysetup format` and `veritysetup verify`.

mod files;

use std::{
    fmt::{self, Write as _},
    fs::File,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use iofs_policy::verity::{
    BlockSize, Geometry, HashAlgorithm, HashArea, HashFormat, RootHash, Salt, Superblock, VerityParameters,
};
use iofs_sign::{
    report::{ExitStatus, Failure, Output},
    verity::{Engine, FormatJob, Verified, VerifyError, VerifyJob, count_blocks, format, read_superblock, verify},
};
use serde::Serialize;
use uuid::Uuid;

use files::{HashFile, read_root_hash, write_root_hash};

/// The salt's size in bytes where none is given, as in veritysetup.
const SALT_SIZE: usize = 32;

/// Write or check a dm-verity hash tree, as veritysetup does
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    #[command(after_long_help = FORMAT_EXAMPLES)]
    Format(FormatArguments),
    #[command(after_long_help = VERIFY_EXAMPLES)]
    Verify(VerifyArguments),
}

const FORMAT_EXAMPLES: &str = "\
Examples:
  Write a tree into a file of its own, and keep the root hash:
    iofs-sign verity format root.img root.verity --root-hash-file root.roothash
  Append it to an image of 268435456 bytes:
    iofs-sign verity format root.img root.img --hash-offset 268435456 --data-blocks 65536
  Write the same bytes each time:
    iofs-sign verity format root.img root.verity --salt 00ff --uuid 6f1a2d5e-0000-4000-8000-000000000000";

const VERIFY_EXAMPLES: &str = "\
Examples:
  Check an image against a root hash:
    iofs-sign verity verify root.img root.verity 9f1c…
  List up to 100 blocks that are wrong:
    iofs-sign verity verify root.img root.verity --root-hash-file root.roothash --max-mismatches 100

Exit status: 0 verified, 4 not verified, 3 malformed input, 2 wrong usage, 1 system error.";

/// Write the hash tree of DATA into HASH and print the root hash
///
/// Same options, same bytes and same text as `veritysetup format`. A HASH that does not exist appears only once it is
/// complete; an existing one, or DATA itself, is written in place. DATA must be whole blocks unless --data-blocks is
/// given.
#[derive(Debug, clap::Args)]
struct FormatArguments {
    #[command(flatten)]
    tree: TreeArguments,
    /// UUID for the superblock [default: random]
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Write the root hash, in hexadecimal, into this file
    #[arg(long, value_name = "PATH")]
    root_hash_file: Option<PathBuf>,
}

/// Check DATA and the hash tree in HASH against a root hash
///
/// The tree's parameters come from the superblock; those given as options must then agree with it. With
/// --no-superblock they come from the options alone.
#[derive(Debug, clap::Args)]
struct VerifyArguments {
    #[command(flatten)]
    tree: TreeArguments,
    /// The root hash, in hexadecimal
    #[arg(required_unless_present = "root_hash_file", conflicts_with = "root_hash_file")]
    root: Option<String>,
    /// Read the root hash from this file
    #[arg(long, value_name = "PATH")]
    root_hash_file: Option<PathBuf>,
    /// Go on after the first block that is wrong, and list up to this many
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    max_mismatches: NonZeroUsize,
}

#[derive(Debug, clap::Args)]
struct TreeArguments {
    /// File or block device that holds the data
    data: PathBuf,
    /// File or block device that holds the hash tree
    #[arg(value_name = "HASH")]
    hash_device: PathBuf,
    /// Block size of the data [default: 4096]
    #[arg(long, value_name = "BYTES")]
    data_block_size: Option<u64>,
    /// Block size of the hash tree [default: 4096]
    #[arg(long, value_name = "BYTES")]
    hash_block_size: Option<u64>,
    /// Hash algorithm, sha256 or sha512 [default: sha256]
    #[arg(long = "hash", value_name = "NAME")]
    algorithm: Option<String>,
    /// Salt in hexadecimal, or - for none [default: 32 random bytes]
    #[arg(long, short, value_name = "HEX", allow_hyphen_values = true)]
    salt: Option<String>,
    /// Hash type: 1 is the usual, 0 the original of Chrome OS [default: 1]
    #[arg(long, value_name = "NUMBER")]
    format: Option<u32>,
    /// Where the hash area starts in HASH
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    hash_offset: u64,
    /// Number of data blocks to protect [default: all of DATA]
    #[arg(long, value_name = "BLOCKS")]
    data_blocks: Option<u64>,
    /// The hash area has no superblock
    #[arg(long)]
    no_superblock: bool,
    /// Most threads to use [default: one for each processor]
    #[arg(long, value_name = "NUMBER")]
    threads: Option<NonZeroUsize>,
    /// What hashes SHA-256: avx512, avx512x2, sha-ni or sha2; all give the same [default: the fastest, which is tried out]
    #[arg(long, value_name = "NAME")]
    engine: Option<Engine>,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    match &arguments.action {
        Action::Format(arguments) => run_format(arguments, output),
        Action::Verify(arguments) => run_verify(arguments, output),
    }
}

impl TreeArguments {
    fn area(&self) -> HashArea {
        HashArea { offset: self.hash_offset, superblock: !self.no_superblock }
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }

    fn engine(&self) -> Engine {
        self.engine.unwrap_or_else(Engine::best)
    }

    fn open_data(&self) -> Result<File, Failure> {
        File::open(&self.data).map_err(|error| Failure::io(format_args!("open data {}", self.data.display()), &error))
    }

    fn salt(&self) -> Result<Option<Salt>, Failure> {
        self.salt.as_deref().map(|text| parse::<Salt>("--salt", &text.to_ascii_lowercase())).transpose()
    }

    fn algorithm(&self) -> Result<Option<HashAlgorithm>, Failure> {
        self.algorithm.as_deref().map(|name| parse("--hash", name)).transpose()
    }

    fn data_block_size(&self) -> Result<Option<BlockSize>, Failure> {
        self.data_block_size.map(|size| size.try_into().map_err(usage("--data-block-size"))).transpose()
    }

    fn hash_block_size(&self) -> Result<Option<BlockSize>, Failure> {
        self.hash_block_size.map(|size| size.try_into().map_err(usage("--hash-block-size"))).transpose()
    }

    fn format(&self) -> Result<Option<HashFormat>, Failure> {
        self.format.map(|number| number.try_into().map_err(usage("--format"))).transpose()
    }

    /// The options, with veritysetup's defaults where they are not given.
    fn parameters(&self, data: &File, salt: Salt) -> Result<VerityParameters, Failure> {
        let data_block_size = self.data_block_size()?.unwrap_or(BlockSize::DEFAULT);
        Ok(VerityParameters {
            format: self.format()?.unwrap_or(HashFormat::Normal),
            algorithm: self.algorithm()?.unwrap_or(HashAlgorithm::Sha256),
            data_block_size,
            hash_block_size: self.hash_block_size()?.unwrap_or(BlockSize::DEFAULT),
            // 0 is veritysetup's way to say all.
            data_blocks: match self.data_blocks {
                Some(blocks) if blocks > 0 => blocks,
                _ => count_blocks(data, data_block_size).map_err(|error| in_file(&self.data, error.into()))?,
            },
            salt,
        })
    }

    /// An option that contradicts the superblock means that one of them belongs to another tree.
    fn check_agreement(&self, found: &VerityParameters) -> Result<(), Failure> {
        agree("hash type", self.format()?.map(u32::from), &u32::from(found.format))?;
        agree("hash algorithm", self.algorithm()?, &found.algorithm)?;
        agree("data block size", self.data_block_size()?, &found.data_block_size)?;
        agree("hash block size", self.hash_block_size()?, &found.hash_block_size)?;
        agree("data blocks", self.data_blocks.filter(|blocks| *blocks > 0), &found.data_blocks)?;
        agree("salt", self.salt()?, &found.salt)
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(option: &'static str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(usage(option))
}

fn usage<E: fmt::Display>(option: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::new(ExitStatus::Usage, format!("{option}: {error}"))
}

fn agree<T: PartialEq + fmt::Display>(field: &str, given: Option<T>, found: &T) -> Result<(), Failure> {
    match given {
        Some(given) if given != *found => {
            let fact = format!("superblock: {field}: expected {given} as given, found {found}");
            Err(Failure::new(ExitStatus::BadInput, fact)
                .next("leave the option out, or check that HASH is the right one"))
        }
        _ => Ok(()),
    }
}

fn in_file(path: &Path, mut failure: Failure) -> Failure {
    failure.fact = format!("{}: {}", path.display(), failure.fact);
    failure
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(ExitStatus::System, format!("random numbers: {error}")))?;
    Ok(bytes)
}

/// What `verity format --json` prints. Offsets are in bytes.
#[derive(Debug, Serialize)]
struct Formatted {
    root_hash: RootHash,
    uuid: Option<Uuid>,
    parameters: VerityParameters,
    hash_offset: u64,
    hash_start_block: u64,
    hash_blocks: u64,
    hash_area_end: u64,
}

fn run_format(arguments: &FormatArguments, output: Output) -> Result<(), Failure> {
    let tree = &arguments.tree;
    let data = tree.open_data()?;
    let salt = match tree.salt()? {
        Some(salt) => salt,
        None => Salt::new(random::<SALT_SIZE>()?.to_vec()).map_err(usage("--salt"))?,
    };
    let parameters = tree.parameters(&data, salt)?;
    if parameters.data_block_size > BlockSize::DEFAULT {
        output.warn("the kernel cannot activate a device whose data blocks are larger than its memory pages");
    }
    let uuid = match arguments.uuid {
        _ if tree.no_superblock => None,
        Some(uuid) => Some(uuid),
        None => Some(uuid::Builder::from_random_bytes(random()?).into_uuid()),
    };
    let hash = HashFile::open(&tree.hash_device)?;
    let job = FormatJob {
        engine: arguments.tree.engine(),
        data: &data,
        hash: hash.file(),
        hash_offset: tree.hash_offset,
        superblock: uuid,
        parameters: &parameters,
        threads: tree.threads(),
    };
    let progress = output.progress("hash", parameters.data_blocks.saturating_mul(parameters.data_block_size.into()));
    let root_hash = format(&job, &progress);
    progress.finish();
    let root_hash = root_hash.map_err(Failure::from)?;
    hash.commit(&tree.hash_device)?;
    if let Some(path) = &arguments.root_hash_file {
        write_root_hash(path, &root_hash)?;
    }
    let formatted = describe(tree, parameters, uuid, root_hash)?;
    output.result(&formatted, || formatted.text(&tree.hash_device));
    Ok(())
}

fn describe(
    tree: &TreeArguments,
    parameters: VerityParameters,
    uuid: Option<Uuid>,
    root_hash: RootHash,
) -> Result<Formatted, Failure> {
    let geometry = Geometry::new(&parameters).map_err(usage("parameters"))?;
    let range = tree.area().tree_range(&parameters, &geometry).map_err(usage("--hash-offset"))?;
    Ok(Formatted {
        root_hash,
        uuid,
        hash_offset: tree.hash_offset,
        hash_start_block: range.start / u64::from(parameters.hash_block_size),
        hash_blocks: geometry.hash_blocks(),
        hash_area_end: range.end,
        parameters,
    })
}

impl Formatted {
    /// veritysetup's text: scripts cut the root hash out of it.
    fn text(&self, hash_device: &Path) -> String {
        let parameters = &self.parameters;
        let salt = match parameters.salt.as_bytes() {
            [] => "-".to_owned(),
            _ => parameters.salt.to_string(),
        };
        let mut text = format!("VERITY header information for {}\n", hash_device.display());
        let mut line = |name: &str, value: &dyn fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<16} \t{value}");
        };
        line("UUID:", &self.uuid.map(|uuid| uuid.to_string()).unwrap_or_default());
        line("Hash type:", &u32::from(parameters.format));
        line("Data blocks:", &parameters.data_blocks);
        line("Data block size:", &parameters.data_block_size);
        line("Hash blocks:", &self.hash_blocks);
        line("Hash block size:", &parameters.hash_block_size);
        line("Hash algorithm:", &parameters.algorithm);
        line("Salt:", &salt);
        let _ = writeln!(text, "Root hash:      \t{}", self.root_hash);
        if self.hash_offset == 0 {
            let _ = writeln!(text, "Hash device size: \t{} [bytes]", self.hash_area_end);
        }
        text
    }
}

fn run_verify(arguments: &VerifyArguments, output: Output) -> Result<(), Failure> {
    let tree = &arguments.tree;
    let root_hash = match (&arguments.root, &arguments.root_hash_file) {
        (Some(text), _) => parse("ROOT", &text.to_ascii_lowercase())?,
        (None, Some(path)) => read_root_hash(path)?,
        (None, None) => return Err(Failure::new(ExitStatus::Usage, "no root hash given")),
    };
    let data = tree.open_data()?;
    let hash = File::open(&tree.hash_device)
        .map_err(|error| Failure::io(format_args!("open hash device {}", tree.hash_device.display()), &error))?;
    let parameters = parameters_to_verify(tree, &data, &hash)?;
    let job = VerifyJob {
        engine: arguments.tree.engine(),
        data: &data,
        hash: &hash,
        area: tree.area(),
        parameters: &parameters,
        root_hash: &root_hash,
        threads: tree.threads(),
        limit: arguments.max_mismatches,
    };
    let progress = output.progress("verify", parameters.data_blocks.saturating_mul(parameters.data_block_size.into()));
    let result = verify(&job, &progress);
    progress.finish();
    report(result, arguments.max_mismatches, output)
}

fn parameters_to_verify(tree: &TreeArguments, data: &File, hash: &File) -> Result<VerityParameters, Failure> {
    if tree.no_superblock {
        let missing = || {
            Failure::new(ExitStatus::Usage, "--no-superblock: expected --salt, found none")
                .next("give the salt that the tree was made with, or --salt - for none")
        };
        return tree.parameters(data, tree.salt()?.ok_or_else(missing)?);
    }
    let read = read_superblock(hash, tree.hash_offset);
    let Superblock { parameters, .. } = read.map_err(|error| in_file(&tree.hash_device, error.into()))?;
    tree.check_agreement(&parameters)?;
    Ok(parameters)
}

fn report(result: Result<Verified, VerifyError>, limit: NonZeroUsize, output: Output) -> Result<(), Failure> {
    match result {
        Ok(verified) => {
            output.result(&serde_json::json!({ "verified": verified }), || {
                let (data, hash) = (verified.data_blocks(), verified.hash_blocks());
                format!("verified: {data} data blocks and {hash} hash blocks match the root hash")
            });
            Ok(())
        }
        Err(VerifyError::Mismatch(mismatches)) => {
            if limit > NonZeroUsize::MIN || output.json {
                output.result(&serde_json::json!({ "mismatches": mismatches }), || {
                    mismatches.iter().map(|mismatch| format!("{mismatch}\n")).collect()
                });
            }
            Err(VerifyError::Mismatch(mismatches).into())
        }
        Err(error) => Err(error.into()),
    }
}
