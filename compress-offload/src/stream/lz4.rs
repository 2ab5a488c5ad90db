//! LZ4 frames.

use compress_protocol::Flush;

use super::{Coder, Progress};
use crate::engine::lz4::{Decoder, StreamEncoder, names_dictionary};
use crate::engine::{Outcome, Output};

/// Source that is compressed at a time: a block.
const PIECE: usize = 64 << 10;
/// Two blocks of history, one of input and one of output, and the table.
const FAST_MEMORY: usize = 600 << 10;
/// With the larger table.
const HIGH_MEMORY: usize = 900 << 10;
/// A block of 4 MiB as it came and as it is, and history.
const DECODER_MEMORY: usize = (8 << 20) + (256 << 10);
/// The longest header of a frame.
const HEADER: usize = 19;

pub(super) struct Compress {
    encoder: StreamEncoder,
    level: i32,
    /// Result that found no room yet.
    pending: Vec<u8>,
    given: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No frame was begun.
    Outside,
    /// All that was taken has been given.
    Flushed,
    /// The library may hold something back.
    Dirty,
    /// The end of the frame waits to be given.
    Ended,
}

impl Compress {
    pub(super) fn open(level: i32) -> Option<Self> {
        let encoder = StreamEncoder::new(level, PIECE)?;
        Some(Self { encoder, level, pending: Vec::new(), given: 0, state: State::Outside })
    }

    /// Moves result to `dst`; whether all of it went.
    fn give(&mut self, dst: &mut [u8], produced: &mut usize) -> bool {
        let waiting = &self.pending[self.given..];
        let len = waiting.len().min(dst.len() - *produced);
        dst[*produced..*produced + len].copy_from_slice(&waiting[..len]);
        *produced += len;
        self.given += len;
        if self.given == self.pending.len() {
            self.pending.clear();
            self.given = 0;
        }
        self.pending.is_empty()
    }

    /// Does the next thing that there is to do, if any, with `src` as what is left of the source. How much of it was taken.
    fn advance(&mut self, src: &[u8], flush: Flush) -> Result<Option<usize>, Outcome> {
        let wanted = !src.is_empty() || flush == Flush::Finish;
        match self.state {
            State::Outside if wanted => {
                self.encoder.begin(&mut self.pending)?;
                self.state = State::Flushed;
            }
            State::Flushed | State::Dirty if !src.is_empty() => {
                let piece = &src[..src.len().min(PIECE)];
                self.encoder.update(piece, &mut self.pending)?;
                self.state = State::Dirty;
                return Ok(Some(piece.len()));
            }
            State::Flushed | State::Dirty if flush == Flush::Finish => {
                self.encoder.end(&mut self.pending)?;
                self.state = State::Ended;
            }
            State::Dirty if flush == Flush::Flush => {
                self.encoder.flush(&mut self.pending)?;
                self.state = State::Flushed;
            }
            _ => return Ok(None),
        }
        Ok(Some(0))
    }
}

impl Coder for Compress {
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], flush: Flush) -> Result<Progress, Outcome> {
        let mut progress = Progress::default();
        loop {
            let given = self.give(dst, &mut progress.produced);
            if given && self.state == State::Ended {
                self.state = State::Outside;
                progress.end = true;
                return Ok(progress);
            }
            if !given || progress.produced == dst.len() {
                return Ok(progress);
            }
            match self.advance(&src[progress.consumed..], flush)? {
                Some(taken) => progress.consumed += taken,
                None => return Ok(progress),
            }
        }
    }

    fn memory(&self) -> usize {
        if self.level < 3 { FAST_MEMORY } else { HIGH_MEMORY }
    }
}

pub(super) struct Decompress {
    decoder: Decoder,
    /// The first bytes of the frame, as far as they have come.
    head: [u8; HEADER],
    head_len: usize,
}

impl Decompress {
    pub(super) fn open() -> Option<Self> {
        Some(Self { decoder: Decoder::new()?, head: [0; HEADER], head_len: 0 })
    }

    fn remember(&mut self, src: &[u8]) -> Result<(), Outcome> {
        let len = src.len().min(HEADER - self.head_len);
        self.head[self.head_len..self.head_len + len].copy_from_slice(&src[..len]);
        self.head_len += len;
        match names_dictionary(&self.head[..self.head_len]) {
            true => Err(Outcome::NotSupported),
            false => Ok(()),
        }
    }
}

impl Coder for Decompress {
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], _flush: Flush) -> Result<Progress, Outcome> {
        self.remember(src)?;
        let mut progress = Progress::default();
        loop {
            let rest = &src[progress.consumed..];
            let room = Output::from(&mut dst[progress.produced..]);
            let (left, read, written) = self.decoder.go_on(rest, room, false)?;
            progress.consumed += read;
            progress.produced += written;
            if left == 0 {
                self.head_len = 0;
                progress.end = true;
                return Ok(progress);
            }
            if read == 0 && written == 0 {
                return Ok(progress);
            }
        }
    }

    fn memory(&self) -> usize {
        DECODER_MEMORY
    }
}
