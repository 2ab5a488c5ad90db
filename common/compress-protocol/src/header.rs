//! What a request begins with.

use crate::number::{Checksum, Format, Opcode};
use crate::wire::{bytes, put, u16_at, u32_at, u64_at};

/// Bytes of a header.
pub const HEADER_LEN: usize = 64;

/// Bits of [`Header::flags`] (§1.6.4).
pub mod flag {
    /// Decompress the result and compare it before it is given out.
    pub const VERIFY: u32 = 1 << 0;
    /// The request belongs to a stream.
    pub const STREAM: u32 = 1 << 1;
    /// The last source of its stream, or of this member of it.
    pub const FINISH: u32 = 1 << 2;
    /// Hold nothing back: what was given so far can be decompressed from what was written so far.
    pub const FLUSH: u32 = 1 << 3;
    /// STREAM_OPEN: the stream decompresses.
    pub const DECOMPRESS: u32 = 1 << 4;
    /// All.
    pub const ALL: u32 = VERIFY | STREAM | FINISH | FLUSH | DECOMPRESS;
}

/// `struct virtio_compress_req` as it is: numbers, whatever they mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Header {
    /// [`Opcode`].
    pub opcode: u16,
    /// [`Format`], or 0.
    pub format: u8,
    /// [`Checksum`].
    pub checksum: u8,
    /// [`flag`] bits.
    pub flags: u32,
    /// Compression level; 0 is the default of the format.
    pub level: i32,
    /// Bytes of source behind the header.
    pub src_len: u32,
    /// Bytes of destination, from the first writable byte on.
    pub dst_len: u32,
    /// Zero.
    pub reserved: u32,
    /// The stream, or 0.
    pub stream_id: u64,
    /// Comes back in the response.
    pub user_tag: u64,
    /// Zeros.
    pub reserved_tail: [u8; 24],
}

impl Header {
    /// A request for the configuration, with room for it.
    pub fn get_config() -> Self {
        Self { opcode: Opcode::GetConfig.wire(), dst_len: crate::CONFIG_LEN as u32, ..Self::default() }
    }

    /// Compresses `src_len` bytes at the default level.
    pub fn compress(format: Format, src_len: u32, dst_len: u32) -> Self {
        Self { opcode: Opcode::Compress.wire(), format: format.wire(), src_len, dst_len, ..Self::default() }
    }

    /// Decompresses `src_len` bytes.
    pub fn decompress(format: Format, src_len: u32, dst_len: u32) -> Self {
        Self { opcode: Opcode::Decompress.wire(), format: format.wire(), src_len, dst_len, ..Self::default() }
    }

    /// A checksum of `src_len` bytes.
    pub fn checksum(checksum: Checksum, src_len: u32) -> Self {
        Self { opcode: Opcode::Checksum.wire(), checksum: checksum.wire(), src_len, ..Self::default() }
    }

    /// A stream that compresses.
    pub fn open_compressor(format: Format, level: i32) -> Self {
        Self { opcode: Opcode::StreamOpen.wire(), format: format.wire(), level, ..Self::default() }
    }

    /// A stream that decompresses.
    pub fn open_decompressor(format: Format) -> Self {
        Self { flags: flag::DECOMPRESS, ..Self::open_compressor(format, 0) }
    }

    /// More of a stream: `flags` are FLUSH or FINISH or none.
    pub fn stream(opcode: Opcode, stream_id: u64, flags: u32, src_len: u32, dst_len: u32) -> Self {
        let flags = flags | flag::STREAM;
        Self { opcode: opcode.wire(), flags, src_len, dst_len, stream_id, ..Self::default() }
    }

    /// Ends a stream.
    pub fn close(stream_id: u64) -> Self {
        Self { opcode: Opcode::StreamClose.wire(), stream_id, ..Self::default() }
    }

    /// The same at this level.
    pub fn with_level(self, level: i32) -> Self {
        Self { level, ..self }
    }

    /// The same with a checksum of the uncompressed data.
    pub fn with_checksum(self, checksum: Checksum) -> Self {
        Self { checksum: checksum.wire(), ..self }
    }

    /// The same with these flags as well.
    pub fn with_flags(self, flags: u32) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// The same with a tag that comes back in the response.
    pub fn with_tag(self, user_tag: u64) -> Self {
        Self { user_tag, ..self }
    }

    /// What is on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut wire = [0; HEADER_LEN];
        put(&mut wire, 0, self.opcode.to_le_bytes());
        put(&mut wire, 2, [self.format, self.checksum]);
        put(&mut wire, 4, self.flags.to_le_bytes());
        put(&mut wire, 8, self.level.to_le_bytes());
        put(&mut wire, 12, self.src_len.to_le_bytes());
        put(&mut wire, 16, self.dst_len.to_le_bytes());
        put(&mut wire, 20, self.reserved.to_le_bytes());
        put(&mut wire, 24, self.stream_id.to_le_bytes());
        put(&mut wire, 32, self.user_tag.to_le_bytes());
        put(&mut wire, 40, self.reserved_tail);
        wire
    }

    /// From what is on the wire: any bytes are a header.
    #[inline]
    pub fn decode(wire: &[u8; HEADER_LEN]) -> Self {
        Self {
            opcode: u16_at(wire, 0),
            format: wire[2],
            checksum: wire[3],
            flags: u32_at(wire, 4),
            level: u32_at(wire, 8).cast_signed(),
            src_len: u32_at(wire, 12),
            dst_len: u32_at(wire, 16),
            reserved: u32_at(wire, 20),
            stream_id: u64_at(wire, 24),
            user_tag: u64_at(wire, 32),
            reserved_tail: bytes(wire, 40),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The request of §1.8: 16 bytes to gzip at level 12, verified, with a CRC-32.
    #[rustfmt::skip]
    const GOLDEN: [u8; HEADER_LEN] = [
        0x01, 0x00, 0x03, 0x01,  0x01, 0x00, 0x00, 0x00,
        0x0c, 0x00, 0x00, 0x00,  0x10, 0x00, 0x00, 0x00,
        0x40, 0x00, 0x00, 0x00,  0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00,  0x00, 0x00, 0x00, 0x00,
        0x08, 0x07, 0x06, 0x05,  0x04, 0x03, 0x02, 0x01,
        0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        let header = Header::compress(Format::Gzip, 16, 64)
            .with_level(12)
            .with_checksum(Checksum::Crc32)
            .with_flags(flag::VERIFY)
            .with_tag(0x0102_0304_0506_0708);
        assert_eq!(header.encode(), GOLDEN);
        assert_eq!(Header::decode(&GOLDEN), header);
    }

    #[test]
    fn streams_and_negative_levels_sit_where_the_specification_puts_them() {
        let open = Header::open_compressor(Format::Zstd, -5).encode();
        assert_eq!(open[..12], [4, 0, 4, 0, 0, 0, 0, 0, 0xfb, 0xff, 0xff, 0xff]);
        let more = Header::stream(Opcode::Decompress, 0x1122_3344_5566_7788, flag::FINISH, 3, 4).encode();
        assert_eq!(more[..8], [2, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(more[12..20], [3, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(more[24..32], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(Header::open_decompressor(Format::Lz4Frame).encode()[..8], [4, 0, 6, 0, 16, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_stay_what_they_are(
            front in any::<[u8; 32]>(),
            back in any::<[u8; 32]>(),
        ) {
            let mut wire = [0; HEADER_LEN];
            wire[..32].copy_from_slice(&front);
            wire[32..].copy_from_slice(&back);
            prop_assert_eq!(Header::decode(&wire).encode(), wire);
        }
    }
}
