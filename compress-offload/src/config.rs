//! The configuration space (docs/compress-device.md §1.4), which is also the answer to GET_CONFIG.

use crate::algorithm::{self, Checksum, Format};
use crate::features;
use crate::options::{DeviceOptions, Limits};
use compress_protocol::Config;

/// Descriptors a request may have, whatever the size of the queue: rings take indirect tables of four times as many.
pub const MAX_SEGMENTS: u16 = 1024;
/// Requests in flight with which a worker never waits for the driver, and batches are full enough.
const GOOD_DEPTH: u32 = 16;

/// What a device says of itself under these limits.
pub fn describe(options: &DeviceOptions, limits: &Limits) -> Config {
    let formats = Format::ALL.into_iter().fold(0, |bits, format| bits | format.bit());
    Config {
        num_queues: options.queues,
        features: features::OWN,
        compress_formats: formats,
        decompress_formats: formats,
        checksums: Checksum::ALL[1..].iter().fold(0, |bits, checksum| bits | checksum.bit()),
        max_src: limits.max_size,
        max_dst: limits.max_size,
        max_segments: MAX_SEGMENTS,
        max_streams: limits.streams,
        batch: GOOD_DEPTH,
        levels: Format::ALL.map(algorithm::levels),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_says_what_it_has() {
        let limits = Limits { max_size: 1 << 20, streams: 7, ..Limits::default() };
        let options = DeviceOptions { queues: 3, ..DeviceOptions::new("c") };
        let config = describe(&options, &limits);
        assert_eq!(config.check(), Ok(()));
        assert_eq!((config.num_queues, config.features), (3, 0b111));
        assert_eq!((config.compress_formats, config.decompress_formats), (0b111_1110, 0b111_1110));
        assert_eq!(config.checksums, 0b1_1110);
        assert_eq!((config.max_src, config.max_dst, config.max_streams), (1 << 20, 1 << 20, 7));
        assert_eq!(config.levels(Format::Zstd), algorithm::levels(Format::Zstd));
        assert_eq!((config.reserved, config.reserved_tail), (0, [0; 4]));
    }
}
