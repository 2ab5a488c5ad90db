//! Zstandard frames.

use compress_protocol::Flush;
use zstd_sys::{ZSTD_EndDirective, ZSTD_ErrorCode as Code, ZSTD_cParameter, ZSTD_inBuffer, ZSTD_outBuffer};

use super::{Coder, Progress};
use crate::engine::zstd::{Compressor, Decompressor, outcome_of};
use crate::engine::{Outcome, Output, start_of};

/// The largest window of what is written, as its logarithm: 1 MiB. A level alone would take what it likes, 128 MiB at most,
/// since nobody knows how long a stream gets.
const WRITTEN_WINDOW: i32 = 20;
/// The largest tables that go with it.
const TABLE: i32 = 20;
/// From this level on the tables would be larger.
const LARGE: i32 = 7;
/// The lowest level with another window.
const SMALL_WINDOW: i32 = 2;
/// The largest window that is read: 8 MiB, what RFC 8878 §3.1.1.1.2 asks of decoders.
const READ_WINDOW: i32 = 23;

pub(super) struct Compress {
    compressor: Compressor,
    /// The end was asked for; whatever comes now belongs to it.
    finishing: bool,
}

impl Compress {
    pub(super) fn open(level: i32) -> Option<Self> {
        let mut compressor = Compressor::new()?;
        compressor.set_level(level).ok()?;
        if level >= SMALL_WINDOW {
            compressor.set(ZSTD_cParameter::ZSTD_c_windowLog, WRITTEN_WINDOW).ok()?;
        }
        if level >= LARGE {
            compressor.set(ZSTD_cParameter::ZSTD_c_hashLog, TABLE).ok()?;
            compressor.set(ZSTD_cParameter::ZSTD_c_chainLog, TABLE).ok()?;
        }
        Some(Self { compressor, finishing: false })
    }
}

impl Coder for Compress {
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], flush: Flush) -> Result<Progress, Outcome> {
        self.finishing |= flush == Flush::Finish;
        let directive = match flush {
            _ if self.finishing => ZSTD_EndDirective::ZSTD_e_end,
            Flush::Flush => ZSTD_EndDirective::ZSTD_e_flush,
            _ => ZSTD_EndDirective::ZSTD_e_continue,
        };
        let (mut input, mut output) = (input(src), output(dst));
        loop {
            let before = (input.pos, output.pos);
            let left =
                self.compressor.go_on(&mut input, &mut output, directive).map_err(|_| Outcome::Failed)?;
            let end = left == 0 && self.finishing;
            let done = left == 0 && input.pos == input.size || before == (input.pos, output.pos);
            if end {
                self.finishing = false;
            }
            if end || done || output.pos == output.size {
                return Ok(Progress { consumed: input.pos, produced: output.pos, end });
            }
        }
    }

    fn memory(&self) -> usize {
        self.compressor.memory()
    }
}

pub(super) struct Decompress(Decompressor);

impl Decompress {
    pub(super) fn open() -> Option<Self> {
        let mut decompressor = Decompressor::new()?;
        decompressor.limit_window(READ_WINDOW).ok()?;
        Some(Self(decompressor))
    }
}

impl Coder for Decompress {
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], _flush: Flush) -> Result<Progress, Outcome> {
        let (mut input, mut output) = (input(src), output(dst));
        loop {
            let before = (input.pos, output.pos);
            let left = match self.0.go_on(&mut input, &mut output) {
                // Said of the sixteenth request in a row with no source or no destination, of which nothing can come.
                Err(
                    Code::ZSTD_error_noForwardProgress_destFull
                    | Code::ZSTD_error_noForwardProgress_inputEmpty,
                ) => 1,
                other => other.map_err(outcome_of)?,
            };
            let stuck = before == (input.pos, output.pos);
            // Nothing of a frame is also how a frame begins.
            let end = left == 0 && !stuck;
            if end || stuck || output.pos == output.size {
                return Ok(Progress { consumed: input.pos, produced: output.pos, end });
            }
        }
    }

    fn memory(&self) -> usize {
        self.0.memory()
    }
}

fn input(src: &[u8]) -> ZSTD_inBuffer {
    ZSTD_inBuffer { src: start_of(src).cast(), size: src.len(), pos: 0 }
}

fn output(dst: &mut [u8]) -> ZSTD_outBuffer {
    ZSTD_outBuffer { dst: Output::from(&mut *dst).as_mut_ptr().cast(), size: dst.len(), pos: 0 }
}
