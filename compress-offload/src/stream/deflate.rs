//! DEFLATE, zlib and gzip, by zlib-rs.

use compress_protocol::Flush;
use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use super::{Coder, Progress};
use crate::algorithm::Format;
use crate::engine::Outcome;
use crate::engine::zlib_rs::{deflate, inflate, outcome_of, reset_inflate};

/// What zlib-rs takes, about: window, chains, hash table and pending output.
const DEFLATE_MEMORY: usize = 400 << 10;
/// Window and tables.
const INFLATE_MEMORY: usize = 64 << 10;

pub(super) struct Compress {
    deflate: Deflate,
    /// The end was asked for; whatever comes now belongs to it.
    finishing: bool,
}

impl Compress {
    pub(super) fn open(format: Format, level: i32) -> Self {
        Self { deflate: deflate(format, level), finishing: false }
    }
}

impl Coder for Compress {
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], flush: Flush) -> Result<Progress, Outcome> {
        self.finishing |= flush == Flush::Finish;
        let flush = match flush {
            _ if self.finishing => DeflateFlush::Finish,
            Flush::Flush => DeflateFlush::SyncFlush,
            _ => DeflateFlush::NoFlush,
        };
        let (read, written) = (self.deflate.total_in(), self.deflate.total_out());
        let status = self.deflate.compress(src, dst, flush).map_err(|_| Outcome::Failed)?;
        let consumed = (self.deflate.total_in() - read) as usize;
        let produced = (self.deflate.total_out() - written) as usize;
        let end = status == Status::StreamEnd;
        if end {
            self.deflate.reset();
            self.finishing = false;
        }
        Ok(Progress { consumed, produced, end })
    }

    fn memory(&self) -> usize {
        DEFLATE_MEMORY
    }
}

pub(super) struct Decompress {
    format: Format,
    inflate: Inflate,
}

impl Decompress {
    pub(super) fn open(format: Format) -> Self {
        Self { format, inflate: inflate(format) }
    }
}

impl Coder for Decompress {
    fn go_on(&mut self, src: &[u8], dst: &mut [u8], _flush: Flush) -> Result<Progress, Outcome> {
        let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(src, dst, InflateFlush::NoFlush).map_err(outcome_of)?;
        let consumed = (self.inflate.total_in() - read) as usize;
        let produced = (self.inflate.total_out() - written) as usize;
        let end = status == Status::StreamEnd;
        if end {
            reset_inflate(&mut self.inflate, self.format);
        }
        Ok(Progress { consumed, produced, end })
    }

    fn memory(&self) -> usize {
        INFLATE_MEMORY
    }
}
