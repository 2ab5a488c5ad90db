//! Engines: what computes, and how a worker talks to it.
//!
//! A worker gives each request to its [`Engines`], which ask their engines in turn and hand it to the first [`Engine`] that
//! takes it. Whoever adds an engine needs this page and [`test::Unreliable`], which is one in a hundred lines.
//!
//! # A request
//!
//! It is complete in itself: [`Params`], a source in private memory and an [`Output`]. [`Engine::compress`] makes one whole
//! stream of the format of it, [`Engine::decompress`] restores one (of gzip, Zstandard and LZ4 frames as many as follow on
//! each other, as their tools do). The call returns when it is done; a worker does nothing else meanwhile, which bounds the
//! levels ([`levels`](crate::algorithm::levels)) and the sizes.
//!
//! All calls come from one thread at a time, one engine instance a worker: no engine needs a lock. Contexts and scratch
//! memory are made at the first request that needs them, and used again: nothing is allocated a request after that.
//! **Nothing of a request may reach the next one**: neither window nor dictionary nor checksum, above all when the first one
//! failed. An engine that cannot be sure throws its context away.
//!
//! # Outcomes
//!
//! | [`Outcome`] | when |
//! |---|---|
//! | `Done` | the result is in the destination. `consumed` is less than the source when something follows that does not begin like a stream of the format |
//! | `Incompressible` | compress: the result is longer than the destination |
//! | `Overflow` | decompress: the data goes on behind the destination's end |
//! | `Truncated` | decompress: the source ends before the stream does |
//! | `BadData` | decompress: no decoder can go on from here, or a checksum or length is wrong |
//! | `NotSupported` | decompress: what the format allows and this does not do (a preset dictionary) |
//! | `Failed` | the engine, not the data: no memory, a device that was reset, a state that cannot be |
//!
//! When several apply, what a decoder meets first counts. Anything but `Done` leaves the destination undefined, but never
//! writes behind its end. `Failed` is the only outcome that somebody else gets to correct: the next engine that takes the
//! request does it again, from the start.
//!
//! # Memory
//!
//! The source is a slice: whoever calls has made sure that nobody writes to it (a guest's is copied first). The destination
//! may be a guest's range, so that results need not be copied. Then the guest can change bytes that the engine has written
//! and reads again, which decoders do: a match is a copy from further up. An engine says by [`Engine::may_write_to_guest`]
//! that this is harmless: no length, index, pointer or branch depends on a byte read from the destination, so that a guest
//! that writes to it spoils its own data and nothing else. That has to be shown from the library's source, and each engine's
//! page says how. Where it is not shown, [`Engines`] let it compute into private memory and copy, and the engine never sees
//! a guest's range.
//!
//! | engine | compress | decompress | |
//! |---|---|---|---|
//! | [`libdeflate`] | yes | yes | never reads what it wrote; reads it to copy it, and for the checksum |
//! | [`zstd`] | no | yes | not claimed; as above, literals that it keeps in the destination among them |
//! | [`lz4`] | yes | yes | adds to a token that it wrote; as above |
//! | [`zlib_rs`] | no | no | safe Rust: takes slices, and a slice of a guest's memory cannot be |
//! | [`lz4_flex`] | no | no | as above |
//! | `isal` | no | - | assembler, not shown |
//!
//! # Failure and verification
//!
//! [`Engines`] count what fails and say so in the log now and then. An engine that panics has failed, and is not asked again. With [`Verify`] on they decompress what was compressed
//! and compare it with the source before the guest is told; a result that differs is the engine's failure, and the next
//! engine compresses again. For DEFLATE the order is `isal` (when built in, levels 1 to 3), [`libdeflate`], [`zlib_rs`]; for
//! LZ4 [`lz4`], [`lz4_flex`]; no second implementation compresses to Zstandard, so that its second engine is a fresh
//! instance of the same library.
//!
//! # An engine of one's own
//!
//! 1. Implement [`Engine`] in a module here. Take only what the engine is better at: `takes` sees format, level and length.
//! 2. Add it in front of those that it replaces in [`Engines::new`], and to [`alone`], which benches and tests use.
//! 3. The tests of this directory run over every name of [`NAMES`]: round trips against foreign decoders, every short
//!    destination, every truncation, bit flips, requests after failed ones.
//!
//! A device with queues of its own, as QAT, is driven from inside of the call: with qatlib, `compress` is
//! `cpaDcCompressData2` with a `CpaDcOpData` whose `flushFlag` is `CPA_DC_FLUSH_FINAL`, then `icp_sal_DcPollInstance` until
//! the callback has come; `CPA_DC_OVERFLOW` is `Incompressible` or `Overflow`, any other status `Failed`. The session is
//! stateless (`CPA_DC_STATELESS`) and its running checksum is set back with every request, since an overflow leaves one
//! behind. `takes` asks for 4 KiB or more. ISA-L is the example of a library that is linked (`isal.rs`).

mod frames;
mod output;
mod scratch;
mod select;

#[cfg(feature = "isal")]
pub mod isal;
pub mod libdeflate;
pub mod lz4;
pub mod lz4_flex;
pub mod test;
pub mod zlib_rs;
pub mod zstd;

#[cfg(test)]
mod tests;

pub use output::Output;
pub(crate) use output::start_of;
pub use select::{
    Answer, Choice, Counters, Description, EngineCounters, Engines, NAMES, UnknownChoice, UnknownVerify,
    Verify, alone, list,
};

use crate::algorithm::{Op, Params};

/// How a request ended: the module's page has the details.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// It is done.
    Done {
        /// Bytes of the source that belong to the result.
        consumed: usize,
        /// Bytes written to the start of the destination.
        produced: usize,
    },
    /// The compressed data does not fit.
    Incompressible,
    /// The decompressed data does not fit.
    Overflow,
    /// The source is not of the format.
    BadData,
    /// The source is of the format as far as it goes.
    Truncated,
    /// No engine does this.
    NotSupported,
    /// The engine failed; another one may do it.
    Failed,
}

/// Something that computes. One instance belongs to one worker.
pub trait Engine: Send {
    /// Its name, for counters and messages.
    fn name(&self) -> &'static str;

    /// Whether it can and should do a request with a source of `len` bytes, none longer than
    /// [`MAX_LEN`](crate::algorithm::MAX_LEN). Asked for each request; has to be quick.
    fn takes(&self, op: Op, params: &Params, len: usize) -> bool;

    /// Makes one stream of the format of `src`. Called only for what it [takes](Self::takes).
    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome;

    /// Restores the stream that `src` begins with. Called only for what it [takes](Self::takes).
    fn decompress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome;

    /// Whether its destination may be a guest's range, to which the guest writes meanwhile: only where the library's source
    /// shows that nothing but the guest's own data can suffer.
    fn may_write_to_guest(&self, op: Op) -> bool {
        let _ = op;
        false
    }

    /// Either.
    fn run(&mut self, op: Op, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        match op {
            Op::Compress => self.compress(params, src, dst),
            Op::Decompress => self.decompress(params, src, dst),
        }
    }
}
