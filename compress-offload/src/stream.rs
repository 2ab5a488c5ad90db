//! Streams with history.
//!
//! A [`Stream`] is a coder that goes on where its last request ended. It writes complete data only when it is told to finish,
//! and then begins anew, without history: one stream can make or read one whole after the other. The rules of a request are
//! those of docs/compress-device.md, 1.6.8.
//!
//! # Memory
//!
//! What a stream can take is bounded, whatever its level and whatever the data say:
//!
//! | | compressing | decompressing |
//! |---|---|---|
//! | DEFLATE, zlib, gzip (zlib-rs) | 0.4 MiB | 0.1 MiB |
//! | Zstandard | a window of 1 MiB at most, tables with it: [`MAX_MEMORY`] | windows to 8 MiB, others are not supported |
//! | LZ4 frames | 0.6 MiB, 0.8 MiB from level 3 on | two blocks of 4 MiB, where the data have such |
//!
//! Where a block is all there is, as in LZ4 without frames, there are no streams.

mod deflate;
mod lz4;
mod zstd;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;

use compress_protocol::{Direction, Flush};

use crate::algorithm::{Checksum, Format, Params};
use crate::checksum;
use crate::engine::{Answer, Outcome, Output};

/// No stream takes more memory than this.
pub const MAX_MEMORY: usize = 17 << 20;

/// How far a request has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Progress {
    /// Bytes of the source.
    consumed: usize,
    /// Bytes of the destination.
    produced: usize,
    /// A whole of the format is complete, and the next one begins with the next request.
    end: bool,
}

/// One direction of one format.
trait Coder: Send {
    /// As far as source and destination allow. After an error it is not called again.
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], flush: Flush) -> Result<Progress, Outcome>;

    /// Bytes of memory that it has, where its library says; no more than that, where it does not.
    fn memory(&self) -> usize;
}

/// A coder with its history.
pub struct Stream {
    coder: Box<dyn Coder>,
    direction: Direction,
    format: Format,
    failed: bool,
}

impl Stream {
    /// A stream at the start of a whole. [`Outcome::NotSupported`] for a level that the format does not have and for formats
    /// without streams, [`Outcome::Failed`] when there is no memory. The checksum of `params` is not looked at: each request
    /// has its own.
    pub fn open(direction: Direction, params: &Params) -> Result<Self, Outcome> {
        let compresses = direction == Direction::Compress;
        if !params.format.streams() || compresses && !params.level_is_known() {
            return Err(Outcome::NotSupported);
        }
        let (format, level) = (params.format, params.effective_level());
        let coder: Option<Box<dyn Coder>> = match (direction, format) {
            (Direction::Compress, Format::Zstd) => zstd::Compress::open(level).map(boxed),
            (Direction::Decompress, Format::Zstd) => zstd::Decompress::open().map(boxed),
            (Direction::Compress, Format::Lz4Frame) => lz4::Compress::open(level).map(boxed),
            (Direction::Decompress, Format::Lz4Frame) => lz4::Decompress::open().map(boxed),
            (Direction::Compress, _) => Some(boxed(deflate::Compress::open(format, level))),
            (Direction::Decompress, _) => Some(boxed(deflate::Decompress::open(format))),
        };
        let coder = coder.ok_or(Outcome::Failed)?;
        Ok(Self { coder, direction, format, failed: false })
    }

    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The format of its compressed side.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether a request ended with another outcome than `Done`: such a stream is good for nothing but being closed.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Bytes of memory that it has, about: at most [`MAX_MEMORY`].
    pub fn memory(&self) -> usize {
        self.coder.memory()
    }

    /// Takes what goes in of `src` and gives what goes out to `dst`, with the checksum of the uncompressed bytes among them.
    ///
    /// Streams keep to private memory: a guest's range as `dst` costs an allocation and a copy.
    pub fn run(&mut self, src: &[u8], mut dst: Output<'_>, flush: Flush, kind: Checksum) -> Answer {
        if let Some(dst) = dst.private_mut() {
            return self.run_in_private(src, dst, flush, kind);
        }
        let mut memory = vec![0; dst.len()];
        let answer = self.run_in_private(src, &mut memory, flush, kind);
        if let Outcome::Done { produced, .. } = answer.outcome {
            dst.write(&memory[..produced]);
        }
        answer
    }

    fn run_in_private(&mut self, src: &[u8], dst: &mut [u8], flush: Flush, kind: Checksum) -> Answer {
        if self.failed {
            return Answer::bare(Outcome::Failed);
        }
        let progress = self.go_on(src, dst, flush);
        match progress.and_then(|progress| self.judge(progress, src, dst, flush)) {
            Ok(Progress { consumed, produced, end }) => {
                let plain = match self.direction {
                    Direction::Compress => &src[..consumed],
                    Direction::Decompress => &dst[..produced],
                };
                let outcome = Outcome::Done { consumed, produced };
                Answer { checksum: checksum::of(kind, plain), stream_end: end, ..Answer::bare(outcome) }
            }
            Err(outcome) => {
                self.failed = true;
                Answer::bare(outcome)
            }
        }
    }

    /// A coder that panics has failed, as an engine has: the worker and its other guests go on.
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], flush: Flush) -> Result<Progress, Outcome> {
        let run = || self.coder.go_on(src, dst, flush);
        std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            tracing::error!(format = %self.format, "The coder of a stream panicked");
            Err(Outcome::Failed)
        })
    }

    /// The last of a source that does not end is cut.
    fn judge(&self, progress: Progress, src: &[u8], dst: &[u8], flush: Flush) -> Result<Progress, Outcome> {
        let starved = progress.consumed == src.len() && progress.produced < dst.len() && !progress.end;
        match self.direction {
            Direction::Decompress if starved && flush == Flush::Finish => Err(Outcome::Truncated),
            _ => Ok(progress),
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("direction", &self.direction)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

fn boxed(coder: impl Coder + 'static) -> Box<dyn Coder> {
    Box::new(coder)
}
