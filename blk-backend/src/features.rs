//! virtio-blk feature bits, by their names in the specification (virtio 1.3 §5.2.3).

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

/// Indirect descriptor tables.
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// `used_event` and `avail_event`.
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// The standard (not legacy) interface.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Packed virtqueues.
pub const VIRTIO_F_RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order in which they were made available.
pub const VIRTIO_F_IN_ORDER: u64 = 1 << 35;
/// A single queue can be reset.
pub const VIRTIO_F_RING_RESET: u64 = 1 << 40;
