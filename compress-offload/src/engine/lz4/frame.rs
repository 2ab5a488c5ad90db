//! Contexts for frames.

#![expect(unsafe_code, reason = "a C library")]

use std::ptr;

use lz4_sys::{
    LZ4F_VERSION, LZ4FCompressionContext, LZ4FDecompressOptions, LZ4FDecompressionContext, LZ4FPreferences,
};

use super::ffi::{self, check};
use crate::engine::{Outcome, Output, frames, start_of};

const MAGIC: [u8; 4] = 0x184d_2204u32.to_le_bytes();

/// A context for making frames.
pub(super) struct Encoder(LZ4FCompressionContext);

impl Encoder {
    /// `None` when there is no memory.
    pub(super) fn new() -> Option<Self> {
        let mut context = LZ4FCompressionContext(ptr::null_mut());
        // SAFETY: the library writes a context to our variable, or says that it did not.
        let result = unsafe { lz4_sys::LZ4F_createCompressionContext(&mut context, LZ4F_VERSION) };
        check(result).ok().map(|_| Self(context))
    }

    /// A whole frame, to a destination with [room](ffi::frame_bound) for it; how long it is. After `None` the context is in a
    /// state that nobody knows.
    pub(super) fn encode(
        &mut self,
        preferences: &LZ4FPreferences,
        src: &[u8],
        mut dst: Output<'_>,
    ) -> Option<usize> {
        // SAFETY: the context is there and `&mut self` says that nobody else uses it; the source is a slice, the destination
        // writable, which is enough (see the engine); no dictionary.
        let result = unsafe {
            let (dst, len) = (dst.as_mut_ptr().cast(), dst.len());
            let (src, src_len) = (start_of(src).cast(), src.len());
            ffi::LZ4F_compressFrame_usingCDict(self.0, dst, len, src, src_len, ptr::null(), preferences)
        };
        check(result).ok()
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: made by the library, freed once.
        unsafe { lz4_sys::LZ4F_freeCompressionContext(self.0) };
    }
}

/// Makes frames piece by piece. Results are appended to a vector, which keeps its memory. After an error it is in a state
/// that nobody knows.
pub(crate) struct StreamEncoder {
    encoder: Encoder,
    preferences: LZ4FPreferences,
    /// What any call may write for a piece of the longest length.
    room: usize,
}

impl StreamEncoder {
    /// For pieces of at most `piece` bytes. `None` when there is no memory.
    pub(crate) fn new(level: i32, piece: usize) -> Option<Self> {
        let preferences = ffi::preferences(level, 0);
        // SAFETY: a function of a number and of preferences that are there.
        let room = unsafe { lz4_sys::LZ4F_compressBound(piece, &preferences) };
        Some(Self { encoder: Encoder::new()?, preferences, room })
    }

    /// The header of a frame, whatever came before.
    pub(crate) fn begin(&mut self, result: &mut Vec<u8>) -> Result<(), Outcome> {
        let (context, preferences) = (self.encoder.0, &raw const self.preferences);
        // SAFETY: as for `Encoder::encode`.
        self.append(result, |dst, len| unsafe { lz4_sys::LZ4F_compressBegin(context, dst, len, preferences) })
    }

    /// More of its content.
    pub(crate) fn update(&mut self, piece: &[u8], result: &mut Vec<u8>) -> Result<(), Outcome> {
        let context = self.encoder.0;
        // SAFETY: as for `Encoder::encode`.
        self.append(result, |dst, len| unsafe {
            lz4_sys::LZ4F_compressUpdate(context, dst, len, start_of(piece), piece.len(), ptr::null())
        })
    }

    /// What is held back.
    pub(crate) fn flush(&mut self, result: &mut Vec<u8>) -> Result<(), Outcome> {
        let context = self.encoder.0;
        // SAFETY: as for `Encoder::encode`.
        self.append(result, |dst, len| unsafe { lz4_sys::LZ4F_flush(context, dst, len, ptr::null()) })
    }

    /// What is held back, and the end of the frame.
    pub(crate) fn end(&mut self, result: &mut Vec<u8>) -> Result<(), Outcome> {
        let context = self.encoder.0;
        // SAFETY: as for `Encoder::encode`.
        self.append(result, |dst, len| unsafe { lz4_sys::LZ4F_compressEnd(context, dst, len, ptr::null()) })
    }

    fn append(
        &self,
        result: &mut Vec<u8>,
        write: impl FnOnce(*mut u8, usize) -> usize,
    ) -> Result<(), Outcome> {
        let old = result.len();
        result.resize(old + self.room, 0);
        let written = check(write(result[old..].as_mut_ptr(), self.room)).map_err(|_| Outcome::Failed)?;
        result.truncate(old + written);
        Ok(())
    }
}

/// A context for decoding frames.
pub(crate) struct Decoder(LZ4FDecompressionContext);

// SAFETY: a context is memory that it owns, without ties to a thread; lz4-sys says the same of its type.
unsafe impl Send for Decoder {}

impl Decoder {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        let mut context = LZ4FDecompressionContext(ptr::null_mut());
        // SAFETY: the library writes a context to our variable, or says that it did not.
        let result = unsafe { lz4_sys::LZ4F_createDecompressionContext(&mut context, LZ4F_VERSION) };
        check(result).ok().map(|_| Self(context))
    }

    /// Forgets everything about the last frame.
    pub(super) fn reset(&mut self) {
        // SAFETY: the context is there; `&mut self` says that nobody else uses it.
        unsafe { lz4_sys::LZ4F_resetDecompressionContext(self.0) }
    }

    /// Goes on with a frame: what is left of it (0: it is complete), bytes read, bytes written.
    ///
    /// With `stable`, what was written stays where it is until the next [`reset`](Self::reset).
    pub(crate) fn go_on(
        &mut self,
        src: &[u8],
        mut dst: Output<'_>,
        stable: bool,
    ) -> Result<(usize, usize, usize), Outcome> {
        let options = LZ4FDecompressOptions { stable_dst: stable.into(), reserved: [0; 3] };
        let (mut read, mut written) = (src.len(), dst.len());
        // SAFETY: as for `reset`; the source is a slice, the destination writable, which is enough (see the engine). Both
        // lengths are our own variables.
        let result = unsafe {
            lz4_sys::LZ4F_decompress(
                self.0,
                dst.as_mut_ptr(),
                &mut written,
                start_of(src),
                &mut read,
                &options,
            )
        };
        match check(result) {
            Ok(left) => Ok((left, read, written)),
            Err(ffi::NO_MEMORY) => Err(Outcome::Failed),
            Err(_) => Err(Outcome::BadData),
        }
    }

    /// Decodes the frame that `src` begins with.
    pub(super) fn decode(&mut self, src: &[u8], mut dst: Output<'_>) -> Outcome {
        if names_dictionary(src) {
            return Outcome::NotSupported;
        }
        let (mut consumed, mut produced) = (0, 0);
        loop {
            let full = produced == dst.len();
            let mut beyond = [0; 1];
            // A full destination may be all there is to write; a byte more shows that it is not.
            let room = if full { Output::from(&mut beyond[..]) } else { dst.tail(produced) };
            let (left, read, written) = match self.go_on(&src[consumed..], room, true) {
                Ok(progress) => progress,
                Err(outcome) => return outcome,
            };
            consumed += read;
            if full && written > 0 {
                return Outcome::Overflow;
            }
            produced += written;
            if left == 0 {
                return Outcome::Done { consumed, produced };
            }
            if read == 0 && written == 0 && consumed == src.len() {
                // The library would wait for seven bytes of a header that begins wrong.
                return if frames::begins_lz4(src) { Outcome::Truncated } else { Outcome::BadData };
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: made by the library, freed once.
        unsafe { lz4_sys::LZ4F_freeDecompressionContext(self.0) };
    }
}

/// Whether the header of a frame, as far as it is there, names a dictionary (lz4_Frame_format.md).
pub(crate) fn names_dictionary(head: &[u8]) -> bool {
    const VERSION_AND_DICTIONARY: u8 = 0b1100_0001;
    const CONTENT_SIZE: u8 = 0b0000_1000;
    let [magic @ .., flags, _] = match head.first_chunk::<6>() {
        Some(start) => start,
        None => return false,
    };
    let at = if flags & CONTENT_SIZE != 0 { 14 } else { 6 };
    let id = head.get(at..at + 4);
    *magic == MAGIC && flags & VERSION_AND_DICTIONARY == 0b0100_0001 && id.is_some_and(|id| id != [0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_is_seen_behind_the_content_size_and_without_one() {
        let plain = [0x04, 0x22, 0x4d, 0x18, 0x41, 0x40, 1, 0, 0, 0, 0];
        assert!(names_dictionary(&plain));
        assert!(!names_dictionary(&plain[..9]));
        let none = [0x04, 0x22, 0x4d, 0x18, 0x41, 0x40, 0, 0, 0, 0, 0];
        assert!(!names_dictionary(&none));
        let sized = [0x04, 0x22, 0x4d, 0x18, 0x49, 0x40, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0];
        assert!(names_dictionary(&sized));
        assert!(!names_dictionary(&[0x04, 0x22, 0x4d, 0x18, 0x40, 0x40, 1, 0, 0, 0, 0]));
    }
}
