//! libdeflate: DEFLATE with the whole source and the whole destination at hand.
//!
//! # Why a guest may write to its destination meanwhile
//!
//! *Compressing*: `struct deflate_output_bitstream` holds the bits not yet written in a variable; the output is only stored
//! to (`deflate_flush_block`, `deflate_compress_none`, `deflate_compress`), at addresses counted from the bits that were
//! put, and lengths and checksums come from the source. Nothing is read back.
//!
//! *Decompressing* (`decompress_template.h`): the output is read in one place, the copy of a match, from `src = out_next -
//! offset`. Offset and length come from the source and from tables inside of the decompressor, and are compared with how
//! much has been written (`offset <= out_next - out`) and with how much room there is (`length > out_end - out_next`, or the
//! margin `FASTLOOP_MAX_BYTES_WRITTEN`), which are differences of pointers. The bytes read are stored again and used for
//! nothing else. The trailer's checksum reads the output a second time, byte by byte; a guest that writes meanwhile gets
//! `BadData`, or a checksum that fits what it wrote.
//!
//! So the only thing that a racing guest can change is its own data.

#![expect(unsafe_code, reason = "a C library")]

use std::ptr::NonNull;

use libdeflate_sys as ffi;

use super::output::start_of;
use super::zlib_rs::Diagnosis;
use super::{Engine, Outcome, Output, frames};
use crate::algorithm::{Format, Op, Params};

/// The library's highest level, and one more.
const LEVELS: usize = 13;

/// The engine. Compressors are made at the first request of each level, some hundred KiB to some MiB each.
#[derive(Default)]
pub struct Libdeflate {
    compressors: [Option<Compressor>; LEVELS],
    decompressor: Option<Decompressor>,
    diagnosis: Diagnosis,
}

impl Libdeflate {
    /// With its contexts yet to be made.
    pub fn new() -> Self {
        Self::default()
    }

    fn compressor(&mut self, level: i32) -> Option<&Compressor> {
        let place = self.compressors.get_mut(usize::try_from(level).ok()?)?;
        if place.is_none() {
            *place = Compressor::new(level);
        }
        place.as_ref()
    }

    /// Decodes one stream, and finds out what is wrong with it when that does not work.
    fn decode(&mut self, format: Format, src: &[u8], mut dst: Output<'_>) -> Outcome {
        if self.decompressor.is_none() {
            self.decompressor = Decompressor::new();
        }
        let Some(decompressor) = &self.decompressor else { return Outcome::Failed };
        let len = dst.len();
        match decompressor.decode(format, src, dst.again()) {
            Some((consumed, produced)) => Outcome::Done { consumed, produced },
            // The library says "bad data" of truncated data as well, and may run out of room in the zeros that it takes
            // to follow on the end of the source.
            None => self.diagnosis.of(format, src, len),
        }
    }
}

impl Engine for Libdeflate {
    fn name(&self) -> &'static str {
        "libdeflate"
    }

    fn takes(&self, _op: Op, params: &Params, _len: usize) -> bool {
        params.format.is_deflate()
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let Some(compressor) = self.compressor(params.effective_level()) else { return Outcome::Failed };
        match compressor.encode(params.format, src, dst) {
            0 => Outcome::Incompressible,
            produced => Outcome::Done { consumed: src.len(), produced },
        }
    }

    fn decompress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let format = params.format;
        match format {
            Format::Gzip => {
                frames::decode_all(src, dst, frames::gzip, |src, dst| self.decode(format, src, dst))
            }
            _ => self.decode(format, src, dst),
        }
    }

    fn may_write_to_guest(&self, _op: Op) -> bool {
        true
    }
}

struct Compressor(NonNull<ffi::libdeflate_compressor>);

// SAFETY: a context is memory that it owns, without ties to a thread.
unsafe impl Send for Compressor {}

impl Compressor {
    fn new(level: i32) -> Option<Self> {
        // SAFETY: any level is allowed; null says that it is none, or that there is no memory.
        NonNull::new(unsafe { ffi::libdeflate_alloc_compressor(level) }).map(Self)
    }

    /// How long the result is; 0 when it does not fit.
    fn encode(&self, format: Format, src: &[u8], mut dst: Output<'_>) -> usize {
        let encode = match format {
            Format::Zlib => ffi::libdeflate_zlib_compress,
            Format::Gzip => ffi::libdeflate_gzip_compress,
            _ => ffi::libdeflate_deflate_compress,
        };
        // SAFETY: the context is there and used by nobody else, as `&mut Libdeflate` says at both callers; the source is a
        // slice, the destination an `Output`, which only has to be writable for its length (see above).
        unsafe {
            encode(self.0.as_ptr(), start_of(src).cast(), src.len(), dst.as_mut_ptr().cast(), dst.len())
        }
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // SAFETY: allocated by the library, freed once.
        unsafe { ffi::libdeflate_free_compressor(self.0.as_ptr()) }
    }
}

struct Decompressor(NonNull<ffi::libdeflate_decompressor>);

// SAFETY: a context is memory that it owns, without ties to a thread.
unsafe impl Send for Decompressor {}

impl Decompressor {
    fn new() -> Option<Self> {
        // SAFETY: no preconditions; null says that there is no memory.
        NonNull::new(unsafe { ffi::libdeflate_alloc_decompressor() }).map(Self)
    }

    /// Bytes read and written; `None` when something was wrong.
    fn decode(&self, format: Format, src: &[u8], mut dst: Output<'_>) -> Option<(usize, usize)> {
        let decode = match format {
            Format::Zlib => ffi::libdeflate_zlib_decompress_ex,
            Format::Gzip => ffi::libdeflate_gzip_decompress_ex,
            _ => ffi::libdeflate_deflate_decompress_ex,
        };
        let (mut consumed, mut produced) = (0, 0);
        // SAFETY: as for `encode`; the two results are our own variables.
        let result = unsafe {
            decode(
                self.0.as_ptr(),
                start_of(src).cast(),
                src.len(),
                dst.as_mut_ptr().cast(),
                dst.len(),
                &mut consumed,
                &mut produced,
            )
        };
        (result == ffi::libdeflate_result_LIBDEFLATE_SUCCESS).then_some((consumed, produced))
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: allocated by the library, freed once.
        unsafe { ffi::libdeflate_free_decompressor(self.0.as_ptr()) }
    }
}
