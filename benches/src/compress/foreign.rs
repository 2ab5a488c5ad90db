//! Implementations that have nothing to do with those of the daemon: zlib itself, and decoders written in Rust. Results are
//! held against them, compressed input is made by them, and zlib is what an offload has to beat.

use std::io::{Read, Write};

use anyhow::{Context, Result, anyhow, bail};
use compress_protocol::{Checksum, Format};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use xxhash_rust::xxh32::xxh32;
use xxhash_rust::xxh64::xxh64;

/// Window of 32 KiB, as everybody has it.
const WINDOW: u8 = 15;

/// zlib, the C library, as a program links it.
pub struct Zlib {
    format: Format,
    compress: Compress,
    decompress: Decompress,
}

impl Zlib {
    /// For a format that is DEFLATE inside; level 0 is zlib's default.
    pub fn new(format: Format, level: i32) -> Result<Self> {
        let level = match level {
            0 => Compression::default(),
            1..=9 => Compression::new(level as u32),
            _ => bail!("zlib has levels 1 to 9, {level} is asked for"),
        };
        let compress = match format {
            Format::Deflate => Compress::new(level, false),
            Format::Zlib => Compress::new(level, true),
            Format::Gzip => Compress::new_gzip(level, WINDOW),
            other => bail!("zlib does not know {}", other.name()),
        };
        Ok(Self { format, compress, decompress: decoder(format) })
    }

    /// Name and version of the library that is linked.
    pub fn name() -> String {
        format!("zlib {}", version())
    }

    /// Compresses all of `src`; `None` when the result does not fit.
    pub fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Result<Option<usize>> {
        self.compress.reset();
        let status = self.compress.compress(src, dst, FlushCompress::Finish)?;
        Ok((status == Status::StreamEnd).then_some(self.compress.total_out() as usize))
    }

    /// Decompresses all of `src`; returns how many bytes came out.
    pub fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Result<usize> {
        match self.format {
            // Resetting forgets that it is gzip.
            Format::Gzip => self.decompress = decoder(self.format),
            other => self.decompress.reset(other == Format::Zlib),
        }
        match self.decompress.decompress(src, dst, FlushDecompress::Finish)? {
            Status::StreamEnd if self.decompress.total_in() == src.len() as u64 => {
                Ok(self.decompress.total_out() as usize)
            }
            Status::StreamEnd => bail!("something follows the compressed data"),
            _ => bail!("the compressed data do not end, or are longer than they should be"),
        }
    }
}

fn decoder(format: Format) -> Decompress {
    match format {
        Format::Gzip => Decompress::new_gzip(WINDOW),
        other => Decompress::new(other == Format::Zlib),
    }
}

#[expect(unsafe_code, reason = "zlib tells its version as a C string")]
fn version() -> &'static str {
    // SAFETY: zlib returns a constant string with a zero at its end.
    let version = unsafe { std::ffi::CStr::from_ptr(libz_sys::zlibVersion()) };
    version.to_str().unwrap_or("of unknown version")
}

/// Decompresses `src`, which is to give at most `limit` bytes.
pub fn decode(format: Format, src: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut plain = vec![0; limit];
    let len = match format {
        Format::Deflate | Format::Zlib | Format::Gzip => Zlib::new(format, 0)?.decompress(src, &mut plain)?,
        Format::Lz4Block => lz4_flex::block::decompress_into(src, &mut plain)?,
        Format::Lz4Frame => read_all(lz4_flex::frame::FrameDecoder::new(src), &mut plain)?,
        Format::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(src).map_err(|error| anyhow!("{error}"))?;
            read_all(decoder, &mut plain)?
        }
    };
    plain.truncate(len);
    Ok(plain)
}

/// Reads to the end, which must come within `into`.
fn read_all(mut from: impl Read, into: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < into.len() {
        match from.read(&mut into[len..])? {
            0 => return Ok(len),
            more => len += more,
        }
    }
    if from.read(&mut [0])? > 0 {
        bail!("more than {} bytes come out", into.len());
    }
    Ok(len)
}

/// Compresses `src`, to have something to decompress.
pub fn encode(format: Format, level: i32, src: &[u8]) -> Result<Vec<u8>> {
    let bound = compress_protocol::compress_bound(src.len() as u32);
    let mut packed = vec![0; bound as usize];
    let len = match format {
        Format::Deflate | Format::Zlib | Format::Gzip => Zlib::new(format, level)?
            .compress(src, &mut packed)?
            .context("zlib expands by more than its bound")?,
        Format::Lz4Block => lz4_flex::block::compress_into(src, &mut packed)?,
        Format::Lz4Frame => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(src)?;
            return Ok(encoder.finish()?);
        }
        Format::Zstd => zstd_safe::compress(&mut packed[..], src, level)
            .map_err(|code| anyhow!("zstd: {}", zstd_safe::get_error_name(code)))?,
    };
    packed.truncate(len);
    Ok(packed)
}

/// A checksum by another implementation than the daemon's.
pub fn sum(checksum: Checksum, bytes: &[u8]) -> u64 {
    match checksum {
        Checksum::None => 0,
        Checksum::Crc32 => {
            let mut crc = flate2::Crc::new();
            crc.update(bytes);
            crc.sum().into()
        }
        Checksum::Adler32 => adler32(bytes).into(),
        Checksum::Xxh32 => xxh32(bytes, 0).into(),
        Checksum::Xxh64 => xxh64(bytes, 0),
    }
}

/// RFC 1950 §8.2.
fn adler32(bytes: &[u8]) -> u32 {
    const BASE: u32 = 65521;
    /// Most bytes whose sums stay below 2^32.
    const BURST: usize = 5552;
    let (mut low, mut high) = (1, 0);
    for burst in bytes.chunks(BURST) {
        for &byte in burst {
            low += u32::from(byte);
            high += low;
        }
        low %= BASE;
        high %= BASE;
    }
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_comes_back_as_it_was_and_a_flipped_bit_is_noticed() {
        let text = b"virtio is a standard, and a standard is a virtue. ".repeat(200);
        for format in Format::ALL {
            let packed = encode(format, 1, &text).unwrap();
            assert!(packed.len() < text.len() / 4, "{}: {} bytes", format.name(), packed.len());
            assert!(decode(format, &packed, text.len()).unwrap() == text, "{}", format.name());
            assert!(decode(format, &packed, text.len() - 1).is_err(), "{}", format.name());
            let mut broken = packed.clone();
            broken[packed.len() / 2] ^= 4;
            assert!(decode(format, &broken, text.len()).ok() != Some(text.clone()), "{}", format.name());
        }
    }

    #[test]
    fn what_does_not_fit_is_none_and_zlib_is_as_good_as_new_after_it() {
        let text = b"abcdefgh".repeat(1000);
        for format in [Format::Deflate, Format::Zlib, Format::Gzip] {
            let mut zlib = Zlib::new(format, 1).unwrap();
            assert_eq!(zlib.compress(&text, &mut [0; 20]).unwrap(), None);
            let mut packed = vec![0; 1000];
            let len = zlib.compress(&text, &mut packed).unwrap().unwrap();
            for _ in 0..2 {
                let mut plain = vec![0; text.len()];
                assert_eq!(zlib.decompress(&packed[..len], &mut plain).unwrap(), text.len());
                assert!(plain == text);
            }
            assert!(zlib.decompress(&packed[..len - 1], &mut vec![0; text.len()]).is_err());
            assert!(zlib.decompress(&packed[..len + 1], &mut vec![0; text.len()]).is_err());
        }
        assert!(Zlib::new(Format::Zstd, 1).is_err() && Zlib::new(Format::Zlib, 12).is_err());
    }

    #[test]
    fn checksums_are_those_of_the_books() {
        assert_eq!(sum(Checksum::Crc32, b"123456789"), 0xcbf4_3926);
        assert_eq!(sum(Checksum::Adler32, b"Wikipedia"), 0x11e6_0398);
        assert_eq!(sum(Checksum::Adler32, &[0xff; 100_000]), {
            // 1 + 255 n, and the sum of these, modulo 65521.
            let low = (1 + 255 * 100_000_u64) % 65521;
            let high = (100_000 + 255 * (100_000 * 100_001 / 2)) % 65521;
            high << 16 | low
        });
        assert_eq!(sum(Checksum::Xxh32, b""), 0x02cc_5d05);
        assert_eq!(sum(Checksum::Xxh64, b""), 0xef46_db37_51d8_e999);
        assert_eq!(sum(Checksum::None, b"x"), 0);
    }

    #[test]
    fn zlib_says_which_one_it_is() {
        assert!(Zlib::name().starts_with("zlib 1."), "{}", Zlib::name());
    }
}
