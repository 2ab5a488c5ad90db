//! LZ4 by its own library: blocks and frames.
//!
//! # Why a guest may write to its destination meanwhile
//!
//! *Decompressing*: `LZ4_decompress_generic` takes tokens, lengths and offsets from the source, compares them with both ends
//! and with how much has been written, as differences of pointers, and reads the output only to copy a match. Frames
//! (`LZ4F_decompress`) add a checksum of what was written, which is compared with the frame's, and remember by pointer and
//! length where the window is; these stay in the context.
//!
//! *Compressing*: `LZ4_compress_generic` and `LZ4HC_encodeSequence` write a token and later add to it (`*token += ...`), which
//! reads what they wrote. The sum is stored and used for nothing else; positions and lengths come from the source and from
//! private tables. A frame's header, block sizes and checksum are of the source or of private numbers.

#![expect(unsafe_code, reason = "a C library")]

mod block;
mod ffi;
mod frame;

pub(super) use block::diagnose;
use frame::Encoder;
pub(crate) use frame::{Decoder, StreamEncoder, names_dictionary};

use super::output::start_of;
use super::scratch::Scratch;
use super::{Engine, Outcome, Output, frames};
use crate::algorithm::{Format, Op, Params};

/// From here on the slower search for better matches (`LZ4HC_CLEVEL_MIN`).
const HIGH: i32 = 3;

/// The engine.
pub struct Lz4 {
    name: &'static str,
    fast: Vec<u64>,
    high: Vec<u64>,
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    scratch: Scratch,
}

impl Lz4 {
    /// With its contexts yet to be made.
    pub fn new() -> Self {
        Self::named("lz4")
    }

    /// Another instance, for requests at which the first one failed.
    pub fn second() -> Self {
        Self::named("lz4-2")
    }

    fn named(name: &'static str) -> Self {
        let scratch = Scratch::default();
        Self { name, fast: Vec::new(), high: Vec::new(), encoder: None, decoder: None, scratch }
    }

    fn compress_block(&mut self, level: i32, src: &[u8], mut dst: Output<'_>) -> Outcome {
        let done = |produced| Outcome::Done { consumed: src.len(), produced };
        let (fast, high) = (&mut self.fast, &mut self.high);
        let mut encode = |dst: Output<'_>| {
            if level < HIGH { encode_fast(fast, level, src, dst) } else { encode_high(high, level, src, dst) }
        };
        if let Some(produced) = encode(dst.again()) {
            return done(produced);
        }
        // The library gives up a few bytes before the end. Whether it fits shows where there is room.
        let bound = crate::algorithm::bound(src.len());
        if dst.len() >= bound {
            return Outcome::Failed;
        }
        self.scratch.compress(bound, dst, |dst| encode(dst).map_or(Outcome::Failed, done))
    }

    fn compress_frame(&mut self, level: i32, src: &[u8], dst: Output<'_>) -> Outcome {
        if self.encoder.is_none() {
            self.encoder = Encoder::new();
        }
        let Some(encoder) = &mut self.encoder else { return Outcome::Failed };
        let preferences = ffi::preferences(level, src.len() as u64);
        let bound = ffi::frame_bound(src.len(), &preferences);
        self.scratch.compress(bound, dst, |dst| match encoder.encode(&preferences, src, dst) {
            Some(produced) => Outcome::Done { consumed: src.len(), produced },
            None => Outcome::Failed,
        })
    }

    fn decode_frame(&mut self, src: &[u8], dst: Output<'_>) -> Outcome {
        if self.decoder.is_none() {
            self.decoder = Decoder::new();
        }
        let Some(decoder) = &mut self.decoder else { return Outcome::Failed };
        decoder.reset();
        decoder.decode(src, dst)
    }
}

impl Default for Lz4 {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for Lz4 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, _op: Op, params: &Params, _len: usize) -> bool {
        matches!(params.format, Format::Lz4Block | Format::Lz4Frame)
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let level = params.effective_level();
        if params.format == Format::Lz4Block {
            return self.compress_block(level, src, dst);
        }
        let outcome = self.compress_frame(level, src, dst);
        if outcome == Outcome::Failed {
            // A context that failed is in a state that nobody knows.
            self.encoder = None;
        }
        outcome
    }

    fn decompress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        match params.format {
            Format::Lz4Block => decode_block(src, dst),
            _ => frames::decode_all(src, dst, frames::lz4, |src, dst| self.decode_frame(src, dst)),
        }
    }

    fn may_write_to_guest(&self, _op: Op) -> bool {
        true
    }
}

/// A length for the library, which none is too long for.
fn int(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

/// The library's state of `len` bytes, aligned as it wants it.
fn state(state: &mut Vec<u64>, len: i32) -> *mut std::ffi::c_void {
    let words = usize::try_from(len).unwrap_or_default().div_ceil(8);
    if state.len() < words {
        state.resize(words, 0);
    }
    state.as_mut_ptr().cast()
}

/// How long the block is; `None` when the library found no room for it.
fn encode_fast(memory: &mut Vec<u64>, level: i32, src: &[u8], mut dst: Output<'_>) -> Option<usize> {
    // As `LZ4F_compressFrame` has it.
    let acceleration = if level < 0 { 1 - level } else { 1 };
    // SAFETY: the state has the size that the library asks for, and is set up by the call; the source is a slice, the
    // destination writable, which is enough (see above).
    let len = unsafe {
        let state = state(memory, ffi::LZ4_sizeofState());
        let (src, src_len) = (start_of(src).cast(), int(src.len()));
        ffi::LZ4_compress_fast_extState(
            state,
            src,
            dst.as_mut_ptr().cast(),
            src_len,
            int(dst.len()),
            acceleration,
        )
    };
    usize::try_from(len).ok().filter(|&len| len > 0)
}

/// How long the block is; `None` when the library found no room for it.
fn encode_high(memory: &mut Vec<u64>, level: i32, src: &[u8], mut dst: Output<'_>) -> Option<usize> {
    // SAFETY: as for `encode_fast`.
    let len = unsafe {
        let state = state(memory, ffi::LZ4_sizeofStateHC());
        let (src, src_len) = (start_of(src).cast(), int(src.len()));
        ffi::LZ4_compress_HC_extStateHC(state, src, dst.as_mut_ptr().cast(), src_len, int(dst.len()), level)
    };
    usize::try_from(len).ok().filter(|&len| len > 0)
}

fn decode_block(src: &[u8], mut dst: Output<'_>) -> Outcome {
    let room = dst.len();
    // SAFETY: the source is a slice, the destination writable, which is enough (see above).
    let produced = unsafe {
        let (src, src_len) = (start_of(src).cast(), int(src.len()));
        lz4_sys::LZ4_decompress_safe(src, dst.as_mut_ptr().cast(), src_len, int(room))
    };
    match usize::try_from(produced) {
        Ok(produced) => Outcome::Done { consumed: src.len(), produced },
        Err(_) => diagnose(src, room),
    }
}
