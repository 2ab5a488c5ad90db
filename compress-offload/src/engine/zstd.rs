//! Zstandard by its own library.
//!
//! # Why a guest may write to its destination meanwhile
//!
//! *Decompressing*: lengths, offsets and tables come from the source and live in the context; what is written is bounded by
//! `oend`, and an offset is compared with how much has been written, as a difference of pointers (`ZSTD_execSequence`). The
//! output is read as the source of a match, whose bytes are stored again; for the checksum of the content, which is compared
//! with the frame's; and as literals, which the decoder may keep at the end of the destination (`ZSTD_allocateLiteralsBuffer`,
//! `ZSTD_in_dst`): these are copied bytes too, in number and place known from the source. No branch, length or index depends
//! on any of them, but for the comparison of the checksum.
//!
//! *Compressing*: not claimed. It would not pay: a destination that is shorter than what the library asks for goes through
//! private memory anyway.

#![expect(unsafe_code, reason = "a C library")]

use std::ffi::c_int;
use std::ptr::NonNull;

use zstd_sys as ffi;
use zstd_sys::{ZSTD_ErrorCode as Code, ZSTD_ResetDirective, ZSTD_cParameter};

use super::output::start_of;
use super::scratch::Scratch;
use super::{Engine, Outcome, Output, frames};
use crate::algorithm::{Format, Op, Params};

/// `ZSTD_CONTENTSIZE_UNKNOWN` and `ZSTD_CONTENTSIZE_ERROR` are the two highest numbers.
const NO_CONTENT_SIZE: u64 = u64::MAX - 1;

/// The engine. A context for compressing grows with level and length, some MiB at the highest levels.
pub struct Zstd {
    name: &'static str,
    compressor: Option<Compressor>,
    decompressor: Option<Decompressor>,
    scratch: Scratch,
}

impl Zstd {
    /// With its contexts yet to be made.
    pub fn new() -> Self {
        Self::named("zstd")
    }

    /// Another instance, for requests at which the first one failed.
    pub fn second() -> Self {
        Self::named("zstd-2")
    }

    fn named(name: &'static str) -> Self {
        Self { name, compressor: None, decompressor: None, scratch: Scratch::default() }
    }

    fn decode_frame(&mut self, src: &[u8], mut dst: Output<'_>) -> Outcome {
        if self.decompressor.is_none() {
            self.decompressor = Decompressor::new();
        }
        let Some(decompressor) = &mut self.decompressor else { return Outcome::Failed };
        let frame = match frame_len(src) {
            Ok(len) => &src[..len],
            Err(outcome) => return outcome,
        };
        let content = content_len(frame);
        if content.is_some_and(|len| len > dst.len() as u64) {
            return Outcome::Overflow;
        }
        match decompressor.decode(frame, dst.again()) {
            Ok(produced) => Outcome::Done { consumed: frame.len(), produced },
            Err(Code::ZSTD_error_dstSize_tooSmall) if content.is_none() => Outcome::Overflow,
            Err(code) => outcome_of(code),
        }
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for Zstd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, _op: Op, params: &Params, _len: usize) -> bool {
        params.format == Format::Zstd
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        if self.compressor.is_none() {
            self.compressor = Compressor::new();
        }
        let Some(compressor) = &mut self.compressor else { return Outcome::Failed };
        if compressor.set_level(params.effective_level()).is_err() {
            return Outcome::Failed;
        }
        // SAFETY: a function of a number.
        let bound = unsafe { ffi::ZSTD_compressBound(src.len()) };
        self.scratch.compress(bound, dst, |dst| match compressor.encode(src, dst) {
            Ok(produced) => Outcome::Done { consumed: src.len(), produced },
            Err(_) => Outcome::Failed,
        })
    }

    fn decompress(&mut self, _params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        frames::decode_all(src, dst, frames::zstd, |src, dst| self.decode_frame(src, dst))
    }

    fn may_write_to_guest(&self, op: Op) -> bool {
        op == Op::Decompress
    }
}

/// What a function of the library returned: a number, or an error.
pub(crate) fn check(result: usize) -> Result<usize, Code> {
    // SAFETY: a function of a number.
    match unsafe { ffi::ZSTD_isError(result) } {
        0 => Ok(result),
        // SAFETY: as above.
        _ => Err(unsafe { ffi::ZSTD_getErrorCode(result) }),
    }
}

/// What an error while decoding means, the source being complete and the destination long enough.
pub(crate) fn outcome_of(code: Code) -> Outcome {
    match code {
        Code::ZSTD_error_memory_allocation
        | Code::ZSTD_error_GENERIC
        | Code::ZSTD_error_stage_wrong
        | Code::ZSTD_error_init_missing
        | Code::ZSTD_error_workSpace_tooSmall => Outcome::Failed,
        Code::ZSTD_error_dictionary_wrong
        | Code::ZSTD_error_version_unsupported
        | Code::ZSTD_error_frameParameter_unsupported
        | Code::ZSTD_error_frameParameter_windowTooLarge => Outcome::NotSupported,
        _ => Outcome::BadData,
    }
}

/// The length of the frame that `src` begins with: found from the headers of its blocks, nothing is decoded.
fn frame_len(src: &[u8]) -> Result<usize, Outcome> {
    // SAFETY: pointer and length are a slice's.
    check(unsafe { ffi::ZSTD_findFrameCompressedSize(start_of(src).cast(), src.len()) }).map_err(|code| {
        match code {
            Code::ZSTD_error_srcSize_wrong => Outcome::Truncated,
            other => outcome_of(other),
        }
    })
}

/// What the frame says it decompresses to.
fn content_len(frame: &[u8]) -> Option<u64> {
    // SAFETY: pointer and length are a slice's.
    let len = unsafe { ffi::ZSTD_getFrameContentSize(start_of(frame).cast(), frame.len()) };
    (len < NO_CONTENT_SIZE).then_some(len)
}

/// A context for compressing, with a checksum of the content in every frame as the `zstd` tool has it.
pub(crate) struct Compressor(NonNull<ffi::ZSTD_CCtx>);

// SAFETY: a context is memory that it owns, without ties to a thread.
unsafe impl Send for Compressor {}

impl Compressor {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        // SAFETY: no preconditions.
        let mut new = Self(NonNull::new(unsafe { ffi::ZSTD_createCCtx() })?);
        new.set(ZSTD_cParameter::ZSTD_c_checksumFlag, 1).ok()?;
        Some(new)
    }

    /// Forgets a frame that was begun, and sets the level of the next.
    pub(crate) fn set_level(&mut self, level: i32) -> Result<(), Code> {
        // SAFETY: the context is there; `&mut self` says that nobody else uses it.
        check(unsafe {
            ffi::ZSTD_CCtx_reset(self.0.as_ptr(), ZSTD_ResetDirective::ZSTD_reset_session_only)
        })?;
        self.set(ZSTD_cParameter::ZSTD_c_compressionLevel, level)
    }

    /// Sets a parameter of the next frame.
    pub(crate) fn set(&mut self, parameter: ZSTD_cParameter, value: c_int) -> Result<(), Code> {
        // SAFETY: as for `set_level`.
        check(unsafe { ffi::ZSTD_CCtx_setParameter(self.0.as_ptr(), parameter, value) }).map(drop)
    }

    /// A frame; how long it is.
    fn encode(&mut self, src: &[u8], mut dst: Output<'_>) -> Result<usize, Code> {
        // SAFETY: as for `set_level`; the source is a slice, the destination private memory.
        check(unsafe {
            let (dst, len) = (dst.as_mut_ptr().cast(), dst.len());
            ffi::ZSTD_compress2(self.0.as_ptr(), dst, len, start_of(src).cast(), src.len())
        })
    }

    /// Goes on with a frame. How much of it the context holds back.
    pub(crate) fn go_on(
        &mut self,
        input: &mut ffi::ZSTD_inBuffer,
        output: &mut ffi::ZSTD_outBuffer,
        end: ffi::ZSTD_EndDirective,
    ) -> Result<usize, Code> {
        // SAFETY: as for `set_level`; the buffers are slices of their callers, with positions inside.
        check(unsafe { ffi::ZSTD_compressStream2(self.0.as_ptr(), output, input, end) })
    }

    /// Bytes of memory that it has.
    pub(crate) fn memory(&self) -> usize {
        // SAFETY: the context is there.
        unsafe { ffi::ZSTD_sizeof_CCtx(self.0.as_ptr()) }
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // SAFETY: made by the library, freed once.
        unsafe { ffi::ZSTD_freeCCtx(self.0.as_ptr()) };
    }
}

/// A context for decompressing.
pub(crate) struct Decompressor(NonNull<ffi::ZSTD_DCtx>);

// SAFETY: a context is memory that it owns, without ties to a thread.
unsafe impl Send for Decompressor {}

impl Decompressor {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        // SAFETY: no preconditions.
        NonNull::new(unsafe { ffi::ZSTD_createDCtx() }).map(Self)
    }

    /// Refuses frames of streams with a window of more than `1 << log` bytes.
    pub(crate) fn limit_window(&mut self, log: c_int) -> Result<(), Code> {
        let parameter = ffi::ZSTD_dParameter::ZSTD_d_windowLogMax;
        // SAFETY: the context is there; `&mut self` says that nobody else uses it.
        check(unsafe { ffi::ZSTD_DCtx_setParameter(self.0.as_ptr(), parameter, log) }).map(drop)
    }

    /// One whole frame; how long its content is.
    fn decode(&mut self, frame: &[u8], mut dst: Output<'_>) -> Result<usize, Code> {
        // SAFETY: as for `limit_window`; the source is a slice, the destination writable, which is enough (see above).
        check(unsafe {
            let (dst, len) = (dst.as_mut_ptr().cast(), dst.len());
            ffi::ZSTD_decompressDCtx(self.0.as_ptr(), dst, len, start_of(frame).cast(), frame.len())
        })
    }

    /// Goes on with a frame; 0 when it is complete and everything was put out.
    pub(crate) fn go_on(
        &mut self,
        input: &mut ffi::ZSTD_inBuffer,
        output: &mut ffi::ZSTD_outBuffer,
    ) -> Result<usize, Code> {
        // SAFETY: as for `limit_window`; the buffers are slices of their callers, with positions inside.
        check(unsafe { ffi::ZSTD_decompressStream(self.0.as_ptr(), output, input) })
    }

    /// Bytes of memory that it has.
    pub(crate) fn memory(&self) -> usize {
        // SAFETY: the context is there.
        unsafe { ffi::ZSTD_sizeof_DCtx(self.0.as_ptr()) }
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: made by the library, freed once.
        unsafe { ffi::ZSTD_freeDCtx(self.0.as_ptr()) };
    }
}
