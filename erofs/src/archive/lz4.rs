//! LZ4 streams: the frame format, and the legacy frames that the kernel reads in an initramfs.
//!
//! A stream that ends early must never look complete, which the library's reader alone does not promise: it takes the
//! end of the input between two blocks for the end of the frame. So it sees a source without a regular end.

use std::io::{self, BufRead, Read};

use lz4_flex::frame::FrameDecoder;

/// `0x184C2102`, little endian: Linux `lib/decompress_unlz4.c`.
const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The frame format's magic, little endian.
const FRAME_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// What one legacy block decompresses to at most.
const LEGACY_BLOCK: usize = 8 << 20;
/// What one legacy block occupies at most: `LZ4_COMPRESSBOUND` of the above.
const LEGACY_BOUND: usize = LEGACY_BLOCK + LEGACY_BLOCK / 255 + 16;

/// Reads one stream, or all that follow each other.
pub(super) struct Reader<R: BufRead> {
    state: State<R>,
    all: bool,
}

enum State<R: BufRead> {
    Start(Endless<R>),
    Frame(Box<FrameDecoder<Endless<R>>>),
    Legacy(Legacy<R>),
    Done,
}

struct Legacy<R: BufRead> {
    input: Endless<R>,
    block: Vec<u8>,
    taken: usize,
}

/// Turns the end of the input into an error.
struct Endless<R>(R);

impl<R: BufRead> Read for Endless<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self.0.read(target)? {
            0 if !target.is_empty() => Err(io::Error::new(io::ErrorKind::InvalidData, "the lz4 stream ends early")),
            count => Ok(count),
        }
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads from `input`, which stands at a magic number; all streams if `all`, else the first.
    pub(super) fn new(input: R, all: bool) -> Self {
        Self { state: State::Start(Endless(input)), all }
    }

    fn start(&mut self, mut input: Endless<R>) -> io::Result<()> {
        // A magic across the border of two buffers would be missed by fill_buf, so the first byte decides.
        let first = input.0.fill_buf()?.first().copied();
        self.state = match first {
            None => State::Done,
            Some(first) if first == LEGACY_MAGIC[0] => {
                let mut magic = [0; 4];
                input.read_exact(&mut magic)?;
                if magic != LEGACY_MAGIC {
                    return Err(invalid("not an lz4 stream"));
                }
                State::Legacy(Legacy { input, block: Vec::new(), taken: 0 })
            }
            Some(first) if first == FRAME_MAGIC[0] => State::Frame(Box::new(FrameDecoder::new(input))),
            Some(_) => return Err(invalid("the lz4 stream is followed by something else")),
        };
        Ok(())
    }

    fn ended(&mut self, input: Endless<R>) {
        self.state = if self.all { State::Start(input) } else { State::Done };
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if target.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Ok(0),
                State::Start(input) => self.start(input)?,
                State::Frame(mut decoder) => match decoder.read(target)? {
                    0 => self.ended(decoder.into_inner()),
                    count => {
                        self.state = State::Frame(decoder);
                        return Ok(count);
                    }
                },
                State::Legacy(mut legacy) => match legacy.read(target)? {
                    0 => self.ended(legacy.input),
                    count => {
                        self.state = State::Legacy(legacy);
                        return Ok(count);
                    }
                },
            }
        }
    }
}

impl<R: BufRead> Legacy<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.block.len() && !self.next_block()? {
            return Ok(0);
        }
        let count = target.len().min(self.block.len() - self.taken);
        target[..count].copy_from_slice(&self.block[self.taken..][..count]);
        self.taken += count;
        Ok(count)
    }

    /// A legacy frame has no end mark: it ends with the input, with zeros (padding), or where another stream begins.
    fn next_block(&mut self) -> io::Result<bool> {
        loop {
            let Some(first) = self.input.0.fill_buf()?.first().copied() else { return Ok(false) };
            let mut size = [0; 4];
            size[0] = first;
            self.input.0.consume(1);
            // Zeros up to the input's end or the next archive: the caller passes over the others.
            match read_up_to(&mut self.input.0, &mut size[1..])? {
                3 if size == [0; 4] => return Ok(false),
                3 if size == LEGACY_MAGIC => continue,
                3 => {}
                _ if size == [0; 4] => return Ok(false),
                _ => return Err(invalid("the lz4 stream ends early")),
            }
            return self.decompress(u32::from_le_bytes(size) as usize).map(|()| true);
        }
    }

    fn decompress(&mut self, size: usize) -> io::Result<()> {
        if size > LEGACY_BOUND {
            return Err(invalid(format!("an lz4 legacy block of {size} bytes, at most {LEGACY_BOUND} are possible")));
        }
        let mut packed = vec![0; size];
        self.input.read_exact(&mut packed)?;
        self.block.resize(LEGACY_BLOCK, 0);
        let size = lz4_flex::block::decompress_into(&packed, &mut self.block).map_err(invalid)?;
        self.block.truncate(size);
        self.taken = 0;
        if size == 0 { Err(invalid("an empty lz4 legacy block")) } else { Ok(()) }
    }
}

fn read_up_to(input: &mut impl Read, target: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < target.len() {
        match input.read(&mut target[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
