//! virtio feature bits, by their names in the specification (virtio 1.3 §5.2.3 and §6), and the table of those
//! that a disk offers.

pub use daemon::device::features::{
    Feature, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, feature,
};

/// Maximum size of any single segment is in `size_max`.
pub const VIRTIO_BLK_F_SIZE_MAX: u64 = 1 << 1;
/// Maximum number of segments in a request is in `seg_max`.
pub const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
/// The device is read-only.
pub const VIRTIO_BLK_F_RO: u64 = 1 << 5;
/// The block size of the disk is in `blk_size`.
pub const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
/// Cache flush command support.
pub const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
/// Optimal I/O alignment is in `topology`.
pub const VIRTIO_BLK_F_TOPOLOGY: u64 = 1 << 10;
/// The driver can switch between write-back and write-through.
pub const VIRTIO_BLK_F_CONFIG_WCE: u64 = 1 << 11;
/// The device has `num_queues` request queues.
pub const VIRTIO_BLK_F_MQ: u64 = 1 << 12;
/// Discard command support.
pub const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
/// Write zeroes command support.
pub const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;
/// Secure erase command support.
pub const VIRTIO_BLK_F_SECURE_ERASE: u64 = 1 << 16;

const WRITABLE: &str = "writable disks";

/// Every feature that some disk offers.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    feature(VIRTIO_BLK_F_SIZE_MAX, "BLK_SIZE_MAX", "all", "size_max_is_told_and_longer_segments_are_served"),
    feature(VIRTIO_BLK_F_SEG_MAX, "BLK_SEG_MAX", "all", "seg_max_fits_the_queue_and_more_segments_are_served"),
    feature(VIRTIO_BLK_F_RO, "BLK_RO", "--read-only", "ro_disks_fail_every_write"),
    feature(VIRTIO_BLK_F_BLK_SIZE, "BLK_BLK_SIZE", "all", "blk_size_is_what_was_asked_for"),
    feature(VIRTIO_BLK_F_FLUSH, "BLK_FLUSH", "all", "flush_follows_the_writes_before_it"),
    feature(VIRTIO_BLK_F_TOPOLOGY, "BLK_TOPOLOGY", "all", "topology_names_the_physical_block"),
    feature(VIRTIO_BLK_F_CONFIG_WCE, "BLK_CONFIG_WCE", WRITABLE, "config_wce_switches_durability"),
    feature(VIRTIO_BLK_F_MQ, "BLK_MQ", "all", "mq_serves_all_queues_on_all_workers"),
    feature(VIRTIO_BLK_F_DISCARD, "BLK_DISCARD", "writable disks, not with --no-discard", "discard_frees_and_reads_as_zeroes"),
    feature(VIRTIO_BLK_F_WRITE_ZEROES, "BLK_WRITE_ZEROES", WRITABLE, "write_zeroes_keeps_or_frees_the_space_as_asked"),
    feature(VIRTIO_BLK_F_SECURE_ERASE, "BLK_SECURE_ERASE", "mem, and block devices that can", "secure_erase_leaves_zeroes"),
    feature(VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC", "all", "indirect_tables_hold_requests"),
    feature(VIRTIO_F_EVENT_IDX, "EVENT_IDX", "all", "event_idx_saves_kicks_and_interrupts"),
    feature(VIRTIO_F_VERSION_1, "VERSION_1", "all", "version_1_is_offered_and_legacy_types_are_not_served"),
    feature(VIRTIO_F_RING_PACKED, "RING_PACKED", "all", "ring_packed_serves_every_kind_of_request"),
    feature(VIRTIO_F_IN_ORDER, "IN_ORDER", "all", "in_order_completes_in_the_order_of_submission"),
    feature(VIRTIO_F_RING_RESET, "RING_RESET", "all", "ring_reset_starts_a_queue_anew_while_others_run"),
];
