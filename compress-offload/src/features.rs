//! virtio feature bits (docs/compress-device.md §1.3 and virtio 1.3 §6), and the table of those that the device offers.
//!
//! IN_ORDER is not among them, although the rings can do it: a request of a few bytes would wait for the mebibyte in front of it.

pub use daemon::device::features::{
    Feature, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1, feature,
};

/// Streams with history.
pub const VIRTIO_COMPRESS_F_STREAM: u64 = compress_protocol::feature::STREAM;
/// Checksums of uncompressed data.
pub const VIRTIO_COMPRESS_F_CHECKSUM: u64 = compress_protocol::feature::CHECKSUM;
/// Results are verified on request.
pub const VIRTIO_COMPRESS_F_VERIFY: u64 = compress_protocol::feature::VERIFY;

/// Those of the device type.
pub const OWN: u64 = VIRTIO_COMPRESS_F_STREAM | VIRTIO_COMPRESS_F_CHECKSUM | VIRTIO_COMPRESS_F_VERIFY;

/// Every feature the device offers.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    feature(VIRTIO_COMPRESS_F_STREAM, "COMPRESS_STREAM", "all", "stream_lets_a_file_be_compressed_piece_by_piece"),
    feature(VIRTIO_COMPRESS_F_CHECKSUM, "COMPRESS_CHECKSUM", "all", "checksum_sums_up_the_uncompressed_data"),
    feature(VIRTIO_COMPRESS_F_VERIFY, "COMPRESS_VERIFY", "all", "verify_reads_a_result_back_before_it_is_given_out"),
    feature(VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC", "all", "indirect_tables_hold_requests"),
    feature(VIRTIO_F_EVENT_IDX, "EVENT_IDX", "all", "event_idx_saves_kicks_and_interrupts"),
    feature(VIRTIO_F_VERSION_1, "VERSION_1", "all", "version_1_is_the_only_interface"),
    feature(VIRTIO_F_RING_PACKED, "RING_PACKED", "all", "ring_packed_serves_every_operation"),
    feature(VIRTIO_F_RING_RESET, "RING_RESET", "all", "ring_reset_starts_a_queue_anew_while_others_run"),
];

/// What the device offers.
pub fn offered() -> u64 {
    FEATURES.iter().fold(0, |bits, feature| bits | feature.bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_offered_once_and_none_is_of_vhost_user() {
        let sum: u64 = FEATURES.iter().map(|feature| feature.bit).sum();
        assert_eq!(sum, offered());
        assert_eq!(offered() & (1 << 26 | 1 << 30), 0);
    }

    #[test]
    fn the_devices_own_features_are_those_of_the_protocol() {
        assert_eq!(OWN, compress_protocol::feature::ALL);
        assert_eq!(offered() & 0xff_ffff, OWN, "bits 0 to 23 are the device type's (virtio 1.3 §2.2)");
    }
}
