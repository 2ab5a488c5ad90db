//! ISA-L: DEFLATE at its lowest levels, several times as fast as zlib's, by the system's library.
//!
//! Feature `isal`; needs `libisal.so.2` (Debian: libisal-dev to build, libisal2 to run). Only for compressing: its
//! decompressor is no faster than libdeflate's. Its loops are assembler, of which nothing is claimed here: it computes to
//! private memory.

#![expect(unsafe_code, reason = "a C library")]

use std::ffi::{c_int, c_void};

use super::output::start_of;
use super::scratch::Scratch;
use super::{Engine, Outcome, Output};
use crate::algorithm::{Format, Op, Params, bound};

/// The highest level of the library.
const MAX_LEVEL: i32 = 3;
/// Memory that the library uses at each level: `ISAL_DEF_LVL3_EXTRA_LARGE` of igzip_lib.h, the largest of them.
const LEVEL_BUFFER: usize = 610_304;

const IGZIP_DEFLATE: u16 = 0;
const IGZIP_GZIP: u16 = 1;
const IGZIP_ZLIB: u16 = 3;
const COMP_OK: c_int = 0;
const STATELESS_OVERFLOW: c_int = -1;

/// `struct isal_zstream` of igzip_lib.h, part of the interface of `libisal.so.2` since users allocate it. What follows the
/// parameters is the library's own: 82,320 bytes in version 2.30, and some to spare.
#[repr(C, align(64))]
struct Stream {
    next_in: *const u8,
    avail_in: u32,
    total_in: u32,
    next_out: *mut u8,
    avail_out: u32,
    total_out: u32,
    hufftables: *mut c_void,
    level: u32,
    level_buf_size: u32,
    level_buf: *mut u8,
    end_of_stream: u16,
    flush: u16,
    gzip_flag: u16,
    hist_bits: u16,
    internal_state: [u64; 16 * 1024],
}

#[link(name = "isal")]
unsafe extern "C" {
    fn isal_deflate_stateless_init(stream: *mut Stream);
    fn isal_deflate_stateless(stream: *mut Stream) -> c_int;
}

/// The engine.
#[derive(Default)]
pub struct Isal {
    memory: Option<Memory>,
    scratch: Scratch,
}

struct Memory {
    stream: Box<Stream>,
    level_buffer: Vec<u64>,
}

// SAFETY: the pointers in the stream are set anew with each request, and the library keeps none.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Self {
        // SAFETY: numbers, arrays of them and pointers, all of which may be zero.
        let stream = unsafe { Box::<Stream>::new_zeroed().assume_init() };
        Self { stream, level_buffer: vec![0; LEVEL_BUFFER.div_ceil(8)] }
    }

    /// One request from the start: `None` when the library fails, `Some(None)` when there is no room.
    fn encode(
        &mut self,
        format: Format,
        level: i32,
        src: &[u8],
        mut dst: Output<'_>,
    ) -> Option<Option<usize>> {
        let stream = &mut *self.stream;
        // SAFETY: the structure is large enough for what the library keeps in it.
        unsafe { isal_deflate_stateless_init(stream) };
        stream.next_in = start_of(src);
        stream.avail_in = u32::try_from(src.len()).ok()?;
        stream.next_out = dst.as_mut_ptr();
        stream.avail_out = u32::try_from(dst.len()).unwrap_or(u32::MAX);
        stream.end_of_stream = 1;
        stream.gzip_flag = match format {
            Format::Zlib => IGZIP_ZLIB,
            Format::Gzip => IGZIP_GZIP,
            _ => IGZIP_DEFLATE,
        };
        stream.level = u32::try_from(level).ok()?;
        stream.level_buf = self.level_buffer.as_mut_ptr().cast();
        stream.level_buf_size = u32::try_from(LEVEL_BUFFER).ok()?;
        // SAFETY: source, destination and level buffer are there, of the lengths given.
        let result = unsafe { isal_deflate_stateless(stream) };
        match result {
            COMP_OK => Some(Some(stream.total_out as usize)),
            STATELESS_OVERFLOW => Some(None),
            _ => None,
        }
    }
}

impl Isal {
    /// With its memory yet to be made.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for Isal {
    fn name(&self) -> &'static str {
        "isal"
    }

    fn takes(&self, op: Op, params: &Params, _len: usize) -> bool {
        op == Op::Compress
            && params.format.is_deflate()
            && (1..=MAX_LEVEL).contains(&params.effective_level())
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let memory = self.memory.get_or_insert_with(Memory::new);
        let level = params.effective_level();
        self.scratch.compress(bound(src.len()), dst, |dst| {
            match memory.encode(params.format, level, src, dst) {
                Some(Some(produced)) => Outcome::Done { consumed: src.len(), produced },
                Some(None) | None => Outcome::Failed,
            }
        })
    }

    /// Not called: see [`takes`](Self::takes).
    fn decompress(&mut self, _params: &Params, _src: &[u8], _dst: Output<'_>) -> Outcome {
        Outcome::Failed
    }
}
