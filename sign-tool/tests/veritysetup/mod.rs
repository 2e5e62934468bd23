//! Runs the real `veritysetup` and ours side by side.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use iofs_policy::verity::{HashAlgorithm, HashArea, HashFormat, RootHash, Salt, VerityParameters};
use iofs_sign::{
    report::Progress,
    verity::{Engine, FormatError, FormatJob, Verified, VerifyError, VerifyJob, format, verify},
};
use tempfile::TempDir;
use uuid::Uuid;

/// The UUID of all superblocks here.
pub(crate) const UUID: &str = "0d1f2e3c-4b5a-4697-8877-665544332211";

/// A tree's parameters and where it goes, changed step by step from veritysetup's defaults.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// All that defines the tree.
    pub(crate) parameters: VerityParameters,
    /// Where the hash area lies.
    pub(crate) area: HashArea,
}

impl Case {
    /// `blocks` data blocks, 32 bytes of salt, all else the default.
    pub(crate) fn new(blocks: u64) -> Self {
        Self {
            parameters: VerityParameters {
                format: HashFormat::Normal,
                algorithm: HashAlgorithm::Sha256,
                data_block_size: 4096.try_into().unwrap(),
                hash_block_size: 4096.try_into().unwrap(),
                data_blocks: blocks,
                salt: Salt::new(noise(32, 7)).unwrap(),
            },
            area: HashArea { offset: 0, superblock: true },
        }
    }

    pub(crate) fn blocks_of(mut self, data: u64, hash: u64) -> Self {
        self.parameters.data_block_size = data.try_into().unwrap();
        self.parameters.hash_block_size = hash.try_into().unwrap();
        self
    }

    pub(crate) fn algorithm(mut self, algorithm: HashAlgorithm) -> Self {
        self.parameters.algorithm = algorithm;
        self
    }

    pub(crate) fn format(mut self, format: HashFormat) -> Self {
        self.parameters.format = format;
        self
    }

    pub(crate) fn salt_of(mut self, size: usize) -> Self {
        self.parameters.salt = Salt::new(noise(size, 11)).unwrap();
        self
    }

    pub(crate) fn at(mut self, offset: u64, superblock: bool) -> Self {
        self.area = HashArea { offset, superblock };
        self
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.parameters.data_blocks * u64::from(self.parameters.data_block_size)
    }

    /// The options that both tools share.
    pub(crate) fn options(&self) -> Vec<String> {
        let parameters = &self.parameters;
        let salt = match parameters.salt.as_bytes() {
            [] => "-".to_owned(),
            _ => parameters.salt.to_string(),
        };
        let mut options = vec![
            format!("--data-block-size={}", parameters.data_block_size),
            format!("--hash-block-size={}", parameters.hash_block_size),
            format!("--hash={}", parameters.algorithm),
            format!("--format={}", u32::from(parameters.format)),
            format!("--hash-offset={}", self.area.offset),
            format!("--data-blocks={}", parameters.data_blocks),
            format!("--salt={salt}"),
        ];
        if !self.area.superblock {
            options.push("--no-superblock".to_owned());
        }
        options
    }

    pub(crate) fn format_options(&self) -> Vec<String> {
        let mut options = self.options();
        options.push(format!("--uuid={UUID}"));
        options
    }

    /// Formats with our library.
    pub(crate) fn format_ours(&self, data: &Path, hash: &Path, threads: usize) -> Result<RootHash, FormatError> {
        let data = File::open(data).unwrap();
        let hash = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(hash).unwrap();
        let job = FormatJob {
            engine: Engine::best(),
            data: &data,
            hash: &hash,
            hash_offset: self.area.offset,
            superblock: self.area.superblock.then(|| Uuid::parse_str(UUID).unwrap()),
            parameters: &self.parameters,
            threads: NonZeroUsize::new(threads).unwrap(),
        };
        format(&job, &Progress::hidden())
    }

    /// Verifies with our library.
    pub(crate) fn verify_ours(
        &self,
        data: &Path,
        hash: &Path,
        root_hash: &RootHash,
        [threads, limit]: [usize; 2],
    ) -> Result<Verified, VerifyError> {
        let (data, hash) = (File::open(data).unwrap(), File::open(hash).unwrap());
        let job = VerifyJob {
            engine: Engine::best(),
            data: &data,
            hash: &hash,
            area: self.area,
            parameters: &self.parameters,
            root_hash,
            threads: NonZeroUsize::new(threads).unwrap(),
            limit: NonZeroUsize::new(limit).unwrap(),
        };
        verify(&job, &Progress::hidden())
    }

    /// Formats with both tools and checks that bytes and root hash are equal and that each accepts the other's tree.
    pub(crate) fn assert_same(&self, bench: &Bench) {
        let data = bench.data(self.data_bytes());
        let [theirs, ours] = ["theirs", "ours"].map(|name| bench.fresh(name));
        let output = veritysetup("format", &[&data, &theirs], &self.format_options());
        assert!(output.status.success(), "veritysetup refuses {self:?}: {}", text(&output.stderr));
        let root_hash = self.format_ours(&data, &ours, 2).unwrap();
        assert_eq!(root_hash, root_hash_in(&text(&output.stdout)), "{self:?}");
        assert!(fs::read(&theirs).unwrap() == fs::read(&ours).unwrap(), "the trees differ: {self:?}");
        self.verify_ours(&data, &theirs, &root_hash, [2, 1]).unwrap();
        let mut options = self.options();
        // veritysetup names its positional argument by order alone.
        options.push(root_hash.to_string());
        let output = veritysetup("verify", &[&data, &ours], &options);
        assert!(output.status.success(), "veritysetup does not accept {self:?}: {}", text(&output.stderr));
    }
}

/// A folder with data in it.
pub(crate) struct Bench(TempDir);

impl Bench {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A name that is not taken.
    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => path,
        }
    }

    /// A file `data` of that many bytes, each block different.
    pub(crate) fn data(&self, size: u64) -> PathBuf {
        let path = self.path("data");
        if path.metadata().map(|metadata| metadata.len()).ok() != Some(size) {
            File::create(&path).unwrap().write_all(&noise(size as usize, 1)).unwrap();
        }
        path
    }
}

/// Bytes without a pattern that hashing could miss.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Inverts one bit.
pub(crate) fn flip_bit(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

pub(crate) fn veritysetup(action: &str, paths: &[&Path], options: &[String]) -> Output {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("veritysetup").env("PATH", search).arg(action).args(paths).args(options).output();
    output.unwrap_or_else(|error| panic!("veritysetup: {error}\n next: apt-get install cryptsetup-bin"))
}

pub(crate) fn iofs_sign(action: &str, paths: &[&Path], options: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iofs-sign"));
    command.args(["verity", action]).args(paths).args(options).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn root_hash_in(output: &str) -> RootHash {
    let line = output.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a root hash");
    line.trim().parse().unwrap()
}
