//! lz4_flex: the second engine for LZ4, in safe Rust, for blocks and for making frames.
//!
//! It takes slices for its destination, and there must be none of a guest's memory: it never gets a guest's range. Its reader
//! of frames does not tell a frame that ends from one that was cut, and is not used.

use std::io::Write;

use lz4_flex::block;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use super::lz4::diagnose;
use super::scratch::Scratch;
use super::{Engine, Outcome, Output};
use crate::algorithm::{Format, Op, Params, bound};

/// The engine. It knows one level.
#[derive(Default)]
pub struct Lz4Flex {
    scratch: Scratch,
}

impl Lz4Flex {
    /// With its memory yet to be made.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for Lz4Flex {
    fn name(&self) -> &'static str {
        "lz4_flex"
    }

    fn takes(&self, op: Op, params: &Params, _len: usize) -> bool {
        match params.format {
            Format::Lz4Block => true,
            Format::Lz4Frame => op == Op::Compress,
            _ => false,
        }
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        if params.format == Format::Lz4Frame {
            return match frame(src) {
                Ok(frame) => put(&frame, src.len(), dst, Outcome::Incompressible),
                Err(_) => Outcome::Failed,
            };
        }
        let scratch = self.scratch.get(bound(src.len()));
        match block::compress_into(src, scratch) {
            Ok(len) => put(&scratch[..len], src.len(), dst, Outcome::Incompressible),
            Err(_) => Outcome::Failed,
        }
    }

    fn decompress(&mut self, _params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let room = dst.len();
        let scratch = self.scratch.get(room);
        match block::decompress_into(src, scratch) {
            Ok(len) => put(&scratch[..len], src.len(), dst, Outcome::Failed),
            Err(_) => diagnose(src, room),
        }
    }
}

/// A frame like those of the first engine.
fn frame(src: &[u8]) -> Result<Vec<u8>, lz4_flex::frame::Error> {
    let info = FrameInfo::new()
        .block_size(BlockSize::Max64KB)
        .block_mode(BlockMode::Linked)
        .content_checksum(true)
        .content_size((!src.is_empty()).then_some(src.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::with_capacity(bound(src.len())));
    encoder.write_all(src)?;
    encoder.finish()
}

fn put(result: &[u8], consumed: usize, mut dst: Output<'_>, too_long: Outcome) -> Outcome {
    if result.len() > dst.len() {
        return too_long;
    }
    dst.write(result);
    Outcome::Done { consumed, produced: result.len() }
}
