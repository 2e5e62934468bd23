//! Compressed streams, told apart by their first bytes.

use std::io::{self, BufRead, Read};

use super::lz4;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// xz container.
    Xz,
    /// Zstandard, RFC 8878.
    Zstd,
    /// LZ4: a frame, or the legacy frame that the kernel's build uses.
    Lz4,
    /// bzip2: recognised, so that it can be named, but not read.
    Bzip2,
    /// Bare LZMA: recognised, so that it can be named, but not read.
    Lzma,
    /// lzop: recognised, so that it can be named, but not read.
    Lzo,
}

/// A magic number and what it stands for. Sources: each format's specification, Linux `lib/decompress.c`.
const MAGICS: [(&[u8], Compression); 8] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (&[0x04, 0x22, 0x4d, 0x18], Compression::Lz4),
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
    (b"BZh", Compression::Bzip2),
    (&[0x5d, 0, 0], Compression::Lzma),
    (&[0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a], Compression::Lzo),
];

/// The most memory that an xz stream may ask for, in bytes: what `xz -9` needs four times over. Sixty bytes can ask for 4 GiB.
/// The other formats have such a bound of their own: 128 MiB for Zstandard, 8 MiB for LZ4.
const XZ_MEMORY: u64 = 256 << 20;

/// How many bytes [`Compression::detect`] wants to see.
pub const MAGIC_SIZE: usize = 9;

impl Compression {
    /// Tells the compression from the stream's first [`MAGIC_SIZE`] bytes (fewer at its end).
    pub fn detect(start: &[u8]) -> Self {
        MAGICS.into_iter().find(|(magic, _)| start.starts_with(magic)).map_or(Self::None, |(_, kind)| kind)
    }

    /// The name, as people and file endings spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        }
    }

    /// Wraps a reader that stands at the compressed stream's first byte; streams that follow each other directly are
    /// read as one.
    ///
    /// # Errors
    /// `Unsupported`, naming the compression and the way out, where this build cannot read it.
    pub fn reader<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Xz => Box::new(xz(input, liblzma::stream::CONCATENATED)?),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
            Self::Lz4 => Box::new(lz4::Reader::new(input, true)),
            Self::Bzip2 | Self::Lzma | Self::Lzo => {
                let reason = format!("{} is not supported: recompress it with gzip, xz, zstd or lz4", self.name());
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
        })
    }

    /// Like [`Compression::reader`] for one stream: `input` then stands just behind it.
    ///
    /// # Errors
    /// The same.
    pub fn first_stream<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
            Self::Xz => Box::new(xz(input, 0)?),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?.single_frame()),
            Self::Lz4 => Box::new(lz4::Reader::new(input, false)),
            Self::None | Self::Bzip2 | Self::Lzma | Self::Lzo => self.reader(input)?,
        })
    }
}

fn xz<R: BufRead>(input: R, flags: u32) -> io::Result<liblzma::bufread::XzDecoder<R>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(input, stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xz 5.4.1: `head -c 100 /dev/zero | xz --lzma2=dict=1536MiB`.
    const FAIL_HUGE_DICTIONARY: &str = "fd377a585a000004e6d6b44602002101250000003b787b41e0006300065d00006ea0457800000000da54f34b0e7c6bbc000122644a56ebcd1fb6f37d010000000004595a";

    #[test]
    fn an_xz_stream_that_asks_for_more_memory_than_any_real_one_is_refused() {
        let packed = decode(FAIL_HUGE_DICTIONARY);
        for reader in [Compression::Xz.reader(&packed[..]), Compression::Xz.first_stream(&packed[..])] {
            assert!(reader.unwrap().read_to_end(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn streams_are_told_apart_by_their_magic() {
        for (magic, kind) in MAGICS {
            assert_eq!(Compression::detect(magic), kind);
        }
        assert_eq!(Compression::detect(b""), Compression::None);
        assert_eq!(Compression::detect(b"070701"), Compression::None);
    }

    fn decode(digits: &str) -> Vec<u8> {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.as_bytes().chunks(2).map(byte).collect()
    }
}
