//! zlib-rs: the second engine for DEFLATE, and the one that knows how a broken stream is broken.
//!
//! Safe Rust, with the state machine of zlib: unlike an engine that needs the whole source, it can tell a stream that ends
//! too early from one that is wrong. `Diagnosis` is that for others.
//!
//! It takes slices for its destination, and there must be none of a guest's memory: it never gets a guest's range.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateError, InflateFlush, Status};

use super::scratch::Scratch;
use super::{Engine, Outcome, Output, frames};
use crate::algorithm::{Format, MAX_LEN, Op, Params, bound};

/// The window of DEFLATE, 32 KiB.
const WINDOW_BITS: u8 = 15;
/// Added to the window bits for a gzip wrapper (`inflateInit2` in zlib.h).
const GZIP: u8 = 16;
/// The highest level that zlib has.
const MAX_LEVEL: i32 = 9;

/// A compressor for one format. Its level is set with each use.
pub(crate) fn deflate(format: Format, level: i32) -> Deflate {
    let bits = i32::from(WINDOW_BITS);
    let window_bits = match format {
        Format::Zlib => bits,
        Format::Gzip => bits + i32::from(GZIP),
        _ => -bits,
    };
    Deflate::new_with_config(DeflateConfig { window_bits, ..DeflateConfig::new(level.min(MAX_LEVEL)) })
}

/// A decompressor for one format.
pub(crate) fn inflate(format: Format) -> Inflate {
    match format {
        Format::Zlib => Inflate::new(true, WINDOW_BITS),
        Format::Gzip => Inflate::new(true, WINDOW_BITS + GZIP),
        _ => Inflate::new(false, WINDOW_BITS),
    }
}

/// Sets a decompressor back to the start of a stream.
pub(crate) fn reset_inflate(inflate: &mut Inflate, format: Format) {
    match format {
        // `reset` cannot do gzip.
        Format::Gzip => *inflate = self::inflate(format),
        other => inflate.reset(other == Format::Zlib),
    }
}

/// What a source is that ended before its stream did. zlib looks at two bytes of a header at a time, and would wait for the
/// second one of a header whose first one is wrong.
fn cut(format: Format, src: &[u8]) -> Outcome {
    let wrong = match (format, src) {
        (Format::Zlib, [first, ..]) => first & 0x0f != 8 || first >> 4 > 7,
        (Format::Gzip, [first, rest @ ..]) => {
            *first != 0x1f || rest.get(1).is_some_and(|&method| method != 8)
        }
        _ => false,
    };
    if wrong { Outcome::BadData } else { Outcome::Truncated }
}

/// What an error of the decompressor means.
pub(crate) fn outcome_of(error: InflateError) -> Outcome {
    match error {
        InflateError::NeedDict { .. } => Outcome::NotSupported,
        InflateError::DataError => Outcome::BadData,
        InflateError::StreamError | InflateError::MemError => Outcome::Failed,
    }
}

/// The engine.
#[derive(Default)]
pub struct ZlibRs {
    /// By wrapper.
    deflate: [Option<Deflate>; 3],
    inflate: [Option<Inflate>; 3],
    scratch: Scratch,
}

/// The place of a format's contexts.
fn place(format: Format) -> usize {
    match format {
        Format::Zlib => 1,
        Format::Gzip => 2,
        _ => 0,
    }
}

impl ZlibRs {
    /// With its contexts yet to be made.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes one stream.
    fn inflate_one(&mut self, format: Format, src: &[u8], dst: &mut [u8]) -> Outcome {
        let inflate = self.inflate[place(format)].get_or_insert_with(|| inflate(format));
        reset_inflate(inflate, format);
        // `Finish` spares the copy to the window when the destination is long enough.
        match inflate.decompress(src, dst, InflateFlush::Finish) {
            Ok(Status::StreamEnd) => done(inflate),
            Ok(_) if (inflate.total_out() as usize) < dst.len() => cut(format, src),
            Ok(_) => what_is_next(inflate, format, src, dst.len()),
            Err(error) => outcome_of(error),
        }
    }
}

fn deflate_one(deflate: &mut Deflate, level: i32, src: &[u8], dst: &mut [u8]) -> Outcome {
    deflate.reset();
    if deflate.set_level(level) != Ok(Status::Ok) {
        return Outcome::Failed;
    }
    match deflate.compress(src, dst, DeflateFlush::Finish) {
        Ok(Status::StreamEnd) => {
            Outcome::Done { consumed: src.len(), produced: deflate.total_out() as usize }
        }
        _ => Outcome::Failed,
    }
}

fn done(inflate: &Inflate) -> Outcome {
    Outcome::Done { consumed: inflate.total_in() as usize, produced: inflate.total_out() as usize }
}

/// The destination of `filled` bytes is full: what the stream says beyond it. Only a byte more is an overflow, and what
/// belongs to the stream's end is none.
fn what_is_next(inflate: &mut Inflate, format: Format, src: &[u8], filled: usize) -> Outcome {
    let rest = &src[inflate.total_in() as usize..];
    match inflate.decompress(rest, &mut [0], InflateFlush::NoFlush) {
        Ok(_) if inflate.total_out() as usize > filled => Outcome::Overflow,
        Ok(Status::StreamEnd) => done(inflate),
        Ok(_) => cut(format, src),
        Err(error) => outcome_of(error),
    }
}

impl Engine for ZlibRs {
    fn name(&self) -> &'static str {
        "zlib-rs"
    }

    fn takes(&self, _op: Op, params: &Params, _len: usize) -> bool {
        params.format.is_deflate()
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let level = params.effective_level().min(MAX_LEVEL);
        let context = &mut self.deflate[place(params.format)];
        // With a destination that is just long enough, level 1 does not find the end.
        self.scratch.compress(bound(src.len()), dst, |mut dst| {
            let Some(dst) = dst.private_mut() else { return Outcome::Failed };
            let outcome =
                deflate_one(context.get_or_insert_with(|| deflate(params.format, level)), level, src, dst);
            if outcome == Outcome::Failed {
                // `reset` does not forget where in the pending output it is (zlib-rs 0.6.8).
                *context = None;
            }
            outcome
        })
    }

    fn decompress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let format = params.format;
        let mut one = |src: &[u8], mut dst: Output<'_>| match dst.private_mut() {
            Some(dst) => self.inflate_one(format, src, dst),
            None => Outcome::Failed,
        };
        match format {
            Format::Gzip => frames::decode_all(src, dst, frames::gzip, one),
            _ => one(src, dst),
        }
    }
}

/// Says what is wrong with a stream that another engine could not decode.
#[derive(Default)]
pub(super) struct Diagnosis {
    /// What is decoded, a piece at a time and over the last one.
    piece: Option<Box<[u8; 1 << 15]>>,
}

impl Diagnosis {
    /// How decoding the stream that `src` begins with ends, given a destination of `len` bytes. [`Outcome::Failed`] when
    /// there is nothing wrong with it.
    pub(super) fn of(&mut self, format: Format, src: &[u8], len: usize) -> Outcome {
        let piece = self.piece.get_or_insert_with(|| Box::new([0; 1 << 15]));
        let mut inflate = inflate(format);
        let len = len.min(MAX_LEN);
        loop {
            let (read, written) = (inflate.total_in() as usize, inflate.total_out() as usize);
            if written > len {
                return Outcome::Overflow;
            }
            // One byte more than fits shows that there is one.
            let room = piece.len().min(len + 1 - written);
            match inflate.decompress(&src[read..], &mut piece[..room], InflateFlush::NoFlush) {
                Ok(_) if inflate.total_out() as usize > len => return Outcome::Overflow,
                Ok(Status::StreamEnd) => return Outcome::Failed,
                Ok(_) if (inflate.total_out() as usize - written) < room => return cut(format, src),
                Ok(_) => {}
                Err(error) => return outcome_of(error),
            }
        }
    }
}
