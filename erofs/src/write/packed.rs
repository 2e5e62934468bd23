//! Content packed before its place in the image is known, as it comes out of a compressed archive: images have it in the order
//! of names, archives in their own. The clusters wait in a file without a name until they are copied into the image.

use std::{
    fs::File,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    WriteError,
    clusters::{Cluster, Encoded},
    contents::{PIECE_SIZE, pieces, shrinks},
    options::{Compression, Options},
    pipeline::Pipeline,
    pool::{Input, Job, Piece, checksum},
};
use crate::{
    format::units::BLOCK_SIZE,
    read::{decompress_lz4, decompress_zstd},
    tree::{Content, ContentReader, Extent},
};

/// Packs one content after the other.
#[derive(Debug)]
pub(crate) struct Packer {
    form: Form,
    spool: Arc<File>,
    end: u64,
    pipeline: Pipeline<Arc<Packed>>,
}

/// What a packed content follows from, besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    compression: Compression,
    cluster_size: usize,
}

impl Form {
    pub(super) fn of(options: &Options) -> Self {
        Self { compression: options.compression, cluster_size: options.cluster_size }
    }
}

/// Content in the spool, perhaps not all of it yet.
#[derive(Debug)]
pub struct Packed {
    form: Form,
    spool: Arc<File>,
    name: String,
    size: u64,
    pieces: Mutex<Vec<PackedPiece>>,
}

#[derive(Debug, Clone)]
struct PackedPiece {
    /// Where it lies in the spool.
    start: u64,
    /// Bytes of the file.
    length: usize,
    digest: blake3::Hash,
    checksum: blake3::Hash,
    /// Its clusters; without them it lies there as it is.
    clusters: Option<Box<[Cluster]>>,
}

impl Packer {
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let spool = Arc::new(tempfile::tempfile()?);
        Ok(Self { form: Form::of(options), spool, end: 0, pipeline: Pipeline::new(options) })
    }

    /// Packs `size` bytes of `content`. What comes back can be read once [`Self::finish`] was called.
    pub(crate) fn pack<E: From<WriteError>>(
        &mut self,
        name: String,
        size: u64,
        mut content: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Arc<Packed>, E> {
        let packed = Packed { form: self.form, spool: Arc::clone(&self.spool), name, size, pieces: Mutex::default() };
        let packed = Arc::new(packed);
        for extent in pieces(Extent { start: 0, length: size }) {
            let mut bytes = vec![0; extent.length as usize];
            content(&mut bytes)?;
            let (whole, compress) = (size <= PIECE_SIZE, size > BLOCK_SIZE as u64);
            let compress = compress && self.form.compression != Compression::None && !packed.is_plain();
            let name = Some(packed.name.clone());
            let job = Job { name, compress, whole, ..Job::new(Input::Bytes(bytes)) };
            self.pipeline.submit(job, extent.length, Arc::clone(&packed));
            while self.pipeline.is_full() {
                self.take()?;
            }
        }
        Ok(packed)
    }

    pub(crate) fn finish(&mut self) -> Result<(), WriteError> {
        while !self.pipeline.is_empty() {
            self.take()?;
        }
        Ok(())
    }

    /// Puts the piece that is next into the spool.
    fn take(&mut self) -> Result<(), WriteError> {
        let Some((piece, packed)) = self.pipeline.next()? else { return Ok(()) };
        let mut pieces = packed.lock();
        // The first piece tells it for all of the file.
        let encoded = piece.encoded.as_ref().filter(|encoded| match pieces.first() {
            Some(first) => first.clusters.is_some(),
            None => shrinks(encoded, piece.length, packed.size <= PIECE_SIZE),
        });
        let bytes = encoded.map_or(&piece.raw, |encoded| &encoded.bytes);
        let fail = |source| WriteError::Sink { what: "a temporary file".into(), source };
        (&*self.spool).write_all(bytes).map_err(fail)?;
        pieces.push(PackedPiece {
            start: self.end,
            length: piece.length,
            digest: piece.digest,
            checksum: checksum(&piece.raw),
            clusters: encoded.map(|encoded| encoded.clusters.clone().into()),
        });
        self.end += bytes.len() as u64;
        Ok(())
    }
}

impl Packed {
    fn lock(&self) -> MutexGuard<'_, Vec<PackedPiece>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its first piece did not shrink.
    fn is_plain(&self) -> bool {
        self.lock().first().is_some_and(|first| first.clusters.is_none())
    }

    /// What compressing a part again would give, if it is known.
    pub(super) fn piece(&self, part: Extent, unique: bool, options: &Options) -> io::Result<Option<Piece>> {
        let number = part.start / PIECE_SIZE;
        let found = self.lock().get(number as usize).cloned();
        let same = |found: &PackedPiece| {
            self.form == Form::of(options) && part.start == number * PIECE_SIZE && part.length == found.length as u64
        };
        let Some(found) = found.filter(same) else { return Ok(None) };
        let Some(clusters) = found.clusters else { return Ok(None) };
        let bytes =
            self.spool.read_part(Extent { start: found.start, length: clusters.iter().map(Cluster::size).sum() })?;
        Ok(Some(Piece {
            raw: Vec::new(),
            length: found.length,
            digest: if unique { found.checksum } else { found.digest },
            encoded: Some(Encoded { bytes, clusters: clusters.into_vec() }),
            sparse: None,
            repeated: false,
            stored: None,
        }))
    }

    /// Fills `target` with what a piece holds from `skip` on.
    fn read_piece(&self, piece: &PackedPiece, target: &mut [u8], skip: usize) -> io::Result<()> {
        let Some(clusters) = &piece.clusters else {
            return self.spool.read_exact_at(target, piece.start + skip as u64);
        };
        let (mut at, mut place) = (0, piece.start);
        for cluster in clusters {
            let (end, size) = (at + cluster.length as usize, cluster.size());
            let (from, to) = (at.max(skip), end.min(skip + target.len()));
            if from < to {
                let bytes = self.spool.read_part(Extent { start: place, length: size })?;
                let decoded = self.decode(cluster, bytes)?;
                target[from - skip..to - skip].copy_from_slice(&decoded[from - at..to - at]);
            }
            (at, place) = (end, place + size);
        }
        Ok(())
    }

    fn decode(&self, cluster: &Cluster, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        if cluster.raw {
            return Ok(bytes);
        }
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        let mut output = vec![0; cluster.length as usize];
        match self.form.compression {
            Compression::Zstd { .. } => decompress_zstd(&bytes[start..], &mut output)?,
            _ => decompress_lz4(&bytes[start..], &mut output).map_err(io::Error::other)?,
        }
        Ok(output)
    }
}

impl Content for Packed {
    fn size(&self) -> u64 {
        self.size
    }

    fn open(&self) -> io::Result<Box<dyn ContentReader + '_>> {
        Ok(Box::new(Reader(self)))
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn packed(&self) -> Option<&Packed> {
        Some(self)
    }
}

struct Reader<'a>(&'a Packed);

impl ContentReader for Reader<'_> {
    fn read_exact_at(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < target.len() {
            let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (number, skip) = (at / PIECE_SIZE, (at % PIECE_SIZE) as usize);
            let piece = self.0.lock().get(number as usize).cloned();
            let piece = piece.filter(|piece| skip < piece.length).ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = (target.len() - done).min(piece.length - skip);
            self.0.read_piece(&piece, &mut target[done..done + length], skip)?;
            done += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn packed(contents: &[Vec<u8>], compression: Compression) -> Vec<Arc<Packed>> {
        let mut packer = Packer::new(&Options { compression, threads: 2, ..Options::default() }).unwrap();
        let packed = contents.iter().map(|content| {
            let mut rest = &content[..];
            let read = |target: &mut [u8]| rest.read_exact(target).map_err(|_| WriteError::TooLarge);
            packer.pack("a file".into(), content.len() as u64, read).unwrap()
        });
        let packed = packed.collect();
        packer.finish().unwrap();
        packed
    }

    #[test]
    fn what_was_packed_is_read_at_any_place() {
        let text: Vec<u8> = (0..400_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let mut noise = vec![0; (2 << 20) + 77];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mixed = [&text[..(1 << 20) + 5000], &noise[..1 << 20]].concat();
        let contents = [text, noise, mixed, b"short".to_vec(), Vec::new(), vec![0; 3 << 20]];
        for compression in
            [Compression::None, Compression::Lz4, Compression::Lz4hc { level: 9 }, Compression::Zstd { level: 3 }]
        {
            for (content, packed) in contents.iter().zip(packed(&contents, compression)) {
                assert!(packed.read_all().unwrap() == *content, "{compression:?}");
                for (start, length) in [(0, 1), (70_001, 8192), ((1 << 20) - 3, 7), (content.len(), 0)] {
                    let part = Extent { start: start as u64, length: length as u64 };
                    match content.get(start..start + length) {
                        Some(expected) => assert_eq!(packed.open().unwrap().read_part(part).unwrap(), expected),
                        None => assert!(packed.open().unwrap().read_part(part).is_err()),
                    }
                }
            }
        }
    }

    #[test]
    fn pieces_serve_for_images_of_the_same_options_alone() {
        let options = Options { compression: Compression::Lz4, ..Options::default() };
        let packed = &packed(&[vec![b'x'; 3 << 20]], Compression::Lz4)[0];
        let part = Extent { start: 1 << 20, length: 1 << 20 };
        let piece = packed.piece(part, false, &options).unwrap().unwrap();
        assert_eq!((piece.length, piece.encoded.is_some()), (1 << 20, true));
        let other_part = Extent { start: 4096, length: 1 << 20 };
        assert!(packed.piece(other_part, false, &options).unwrap().is_none());
        assert!(packed.piece(part, false, &Options { cluster_size: 4096, ..options.clone() }).unwrap().is_none());
        assert!(packed.piece(part, false, &Options { compression: Compression::None, ..options }).unwrap().is_none());
    }
}
