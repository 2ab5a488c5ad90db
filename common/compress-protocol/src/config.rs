//! The configuration space, which is the answer to GET_CONFIG as well.

use crate::number::{Checksum, Format};
use crate::wire::{bytes, put, u16_at, u32_at, u64_at};

/// Bytes of the configuration space.
pub const CONFIG_LEN: usize = 64;
/// `"VCMP"`.
pub const MAGIC: u32 = 0x504d_4356;
/// The version this crate speaks.
pub const VERSION: u16 = 1;

/// Feature bits of the device (§1.3).
pub mod feature {
    /// Streams with history.
    pub const STREAM: u64 = 1 << 0;
    /// Checksums of uncompressed data.
    pub const CHECKSUM: u64 = 1 << 1;
    /// Results are verified on request.
    pub const VERIFY: u64 = 1 << 2;
    /// All.
    pub const ALL: u64 = STREAM | CHECKSUM | VERIFY;
}

/// The lowest and the highest level of a format, both usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Levels {
    /// Lowest.
    pub min: i8,
    /// Highest.
    pub max: i8,
}

impl Levels {
    /// Whether a header may ask for it; 0, the default, always is.
    pub fn contain(self, level: i32) -> bool {
        level == 0 || (i32::from(self.min)..=i32::from(self.max)).contains(&level)
    }
}

/// `struct virtio_compress_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// Queues.
    pub num_queues: u16,
    /// [`feature`] bits that are offered.
    pub features: u64,
    /// [`Format::bit`]s of formats the device writes.
    pub compress_formats: u32,
    /// [`Format::bit`]s of formats the device reads.
    pub decompress_formats: u32,
    /// [`Checksum::bit`]s.
    pub checksums: u32,
    /// Bytes of the longest source.
    pub max_src: u32,
    /// Bytes of the longest destination.
    pub max_dst: u32,
    /// Descriptors a request may have.
    pub max_segments: u16,
    /// Zero.
    pub reserved: u16,
    /// Streams that may be open at a time.
    pub max_streams: u32,
    /// Requests in flight that keep the device busy.
    pub batch: u32,
    /// Levels, by [`Format::index`].
    pub levels: [Levels; 6],
    /// Zeros.
    pub reserved_tail: [u8; 4],
}

impl Default for Config {
    /// A device that can do nothing.
    fn default() -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            num_queues: 0,
            features: 0,
            compress_formats: 0,
            decompress_formats: 0,
            checksums: 0,
            max_src: 0,
            max_dst: 0,
            max_segments: 0,
            reserved: 0,
            max_streams: 0,
            batch: 0,
            levels: [Levels::default(); 6],
            reserved_tail: [0; 4],
        }
    }
}

/// Why a configuration is not to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// It is not one of a compression device.
    Magic(u32),
    /// It is one of a version nobody here knows.
    Version(u16),
}

impl core::fmt::Display for Foreign {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(magic) => {
                write!(f, "Not a compression device: its configuration begins with {magic:#010x}")
            }
            Self::Version(version) => {
                write!(f, "The compression device speaks version {version}, not {VERSION}")
            }
        }
    }
}

impl core::error::Error for Foreign {}

impl Config {
    /// Whether it is that of a device a driver of this version can use.
    pub fn check(&self) -> Result<(), Foreign> {
        match (self.magic, self.version) {
            (MAGIC, VERSION) => Ok(()),
            (MAGIC, version) => Err(Foreign::Version(version)),
            (magic, _) => Err(Foreign::Magic(magic)),
        }
    }

    /// Whether the device writes this format.
    pub fn compresses(&self, format: Format) -> bool {
        self.compress_formats & format.bit() != 0
    }

    /// Whether the device reads this format.
    pub fn decompresses(&self, format: Format) -> bool {
        self.decompress_formats & format.bit() != 0
    }

    /// Whether the device can calculate this checksum; none is always possible.
    pub fn sums(&self, checksum: Checksum) -> bool {
        checksum == Checksum::None || self.checksums & checksum.bit() != 0
    }

    /// Levels of a format.
    pub fn levels(&self, format: Format) -> Levels {
        self.levels[format.index()]
    }

    /// What is on the wire.
    pub fn encode(&self) -> [u8; CONFIG_LEN] {
        let mut wire = [0; CONFIG_LEN];
        put(&mut wire, 0, self.magic.to_le_bytes());
        put(&mut wire, 4, self.version.to_le_bytes());
        put(&mut wire, 6, self.num_queues.to_le_bytes());
        put(&mut wire, 8, self.features.to_le_bytes());
        put(&mut wire, 16, self.compress_formats.to_le_bytes());
        put(&mut wire, 20, self.decompress_formats.to_le_bytes());
        put(&mut wire, 24, self.checksums.to_le_bytes());
        put(&mut wire, 28, self.max_src.to_le_bytes());
        put(&mut wire, 32, self.max_dst.to_le_bytes());
        put(&mut wire, 36, self.max_segments.to_le_bytes());
        put(&mut wire, 38, self.reserved.to_le_bytes());
        put(&mut wire, 40, self.max_streams.to_le_bytes());
        put(&mut wire, 44, self.batch.to_le_bytes());
        for (index, levels) in self.levels.iter().enumerate() {
            put(&mut wire, 48 + 2 * index, [levels.min.cast_unsigned(), levels.max.cast_unsigned()]);
        }
        put(&mut wire, 60, self.reserved_tail);
        wire
    }

    /// From what is on the wire, whatever that is: see [`check`](Self::check).
    pub fn decode(wire: &[u8; CONFIG_LEN]) -> Self {
        let level = |index: usize| wire[48 + index].cast_signed();
        Self {
            magic: u32_at(wire, 0),
            version: u16_at(wire, 4),
            num_queues: u16_at(wire, 6),
            features: u64_at(wire, 8),
            compress_formats: u32_at(wire, 16),
            decompress_formats: u32_at(wire, 20),
            checksums: u32_at(wire, 24),
            max_src: u32_at(wire, 28),
            max_dst: u32_at(wire, 32),
            max_segments: u16_at(wire, 36),
            reserved: u16_at(wire, 38),
            max_streams: u32_at(wire, 40),
            batch: u32_at(wire, 44),
            levels: core::array::from_fn(|n| Levels { min: level(2 * n), max: level(2 * n + 1) }),
            reserved_tail: bytes(wire, 60),
        }
    }

    /// Copies bytes of it from `offset` on; what lies beyond the end reads as zero.
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        let wire = self.encode();
        let behind = wire.get(offset..).unwrap_or_default();
        let (front, rest) = buf.split_at_mut(behind.len().min(buf.len()));
        front.copy_from_slice(&behind[..front.len()]);
        rest.fill(0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The device of §1.8.
    pub(crate) fn example() -> Config {
        let levels = |min, max| Levels { min, max };
        Config {
            num_queues: 4,
            features: feature::ALL,
            compress_formats: 0x7e,
            decompress_formats: 0x7e,
            checksums: 0x1e,
            max_src: 1 << 20,
            max_dst: 1 << 20,
            max_segments: 1024,
            max_streams: 256,
            batch: 32,
            levels: [
                levels(1, 12),
                levels(1, 12),
                levels(1, 12),
                levels(-7, 19),
                levels(1, 12),
                levels(1, 12),
            ],
            ..Config::default()
        }
    }

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        #[rustfmt::skip]
        let golden = [
            0x56, 0x43, 0x4d, 0x50,  0x01, 0x00,  0x04, 0x00,
            0x07, 0x00, 0x00, 0x00,  0x00, 0x00, 0x00, 0x00,
            0x7e, 0x00, 0x00, 0x00,  0x7e, 0x00, 0x00, 0x00,
            0x1e, 0x00, 0x00, 0x00,  0x00, 0x00, 0x10, 0x00,
            0x00, 0x00, 0x10, 0x00,  0x00, 0x04,  0x00, 0x00,
            0x00, 0x01, 0x00, 0x00,  0x20, 0x00, 0x00, 0x00,
            0x01, 0x0c,  0x01, 0x0c,  0x01, 0x0c,  0xf9, 0x13,
            0x01, 0x0c,  0x01, 0x0c,  0x00, 0x00, 0x00, 0x00,
        ];
        assert_eq!(example().encode(), golden);
        assert_eq!(Config::decode(&golden), example());
        assert_eq!(&golden[..4], b"VCMP");
    }

    #[test]
    fn reads_anywhere_give_what_is_there_and_zeros_beyond() {
        let wire = example().encode();
        for offset in 0..80 {
            for len in [0, 1, 4, 8, 64, 100] {
                let mut buf = vec![0xff; len];
                example().read(offset, &mut buf);
                for (index, byte) in buf.iter().enumerate() {
                    assert_eq!(*byte, wire.get(offset + index).copied().unwrap_or(0));
                }
            }
        }
        let mut buf = [0xff; 4];
        example().read(usize::MAX, &mut buf);
        assert_eq!(buf, [0; 4]);
    }

    #[test]
    fn a_configuration_of_something_else_is_refused() {
        assert_eq!(example().check(), Ok(()));
        let other = Config { magic: 0, ..example() };
        assert_eq!(other.check(), Err(Foreign::Magic(0)));
        let later = Config { version: 2, ..example() };
        assert_eq!(later.check(), Err(Foreign::Version(2)));
        assert_eq!(Foreign::Version(2).to_string(), "The compression device speaks version 2, not 1");
    }

    #[test]
    fn every_level_between_the_two_is_usable_and_so_is_the_default() {
        let levels = Levels { min: 3, max: 5 };
        let usable: Vec<i32> = (-10..10).filter(|level| levels.contain(*level)).collect();
        assert_eq!(usable, [0, 3, 4, 5]);
        assert!(!levels.contain(i32::MIN) && !levels.contain(i32::MAX));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_configuration_and_stay_what_they_are(
            front in any::<[u8; 32]>(),
            back in any::<[u8; 32]>(),
        ) {
            let mut wire = [0; CONFIG_LEN];
            wire[..32].copy_from_slice(&front);
            wire[32..].copy_from_slice(&back);
            prop_assert_eq!(Config::decode(&wire).encode(), wire);
        }
    }
}
