//! The table of features that each device crate has, and the virtio features that are not one device's own (virtio 1.3 §6), by
//! their names in the specification.

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

/// A feature a device may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its bit.
    pub bit: u64,
    /// Its name in the specification, without `VIRTIO_` and `F_`.
    pub name: &'static str,
    /// Which devices offer it.
    pub offered: &'static str,
    /// The test below `tests/` that shows it at work.
    pub test: &'static str,
}

/// A line of the table.
pub const fn feature(bit: u64, name: &'static str, offered: &'static str, test: &'static str) -> Feature {
    Feature { bit, name, offered, test }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_are_those_of_rings_and_sessions() {
        let rings = VIRTIO_F_INDIRECT_DESC
            | VIRTIO_F_EVENT_IDX
            | VIRTIO_F_RING_PACKED
            | VIRTIO_F_IN_ORDER
            | VIRTIO_F_RING_RESET;
        assert_eq!(rings, virtqueue::RingFeatures::ALL);
        assert_eq!(VIRTIO_F_VERSION_1, vhost_user::message::features::VERSION_1);
    }
}
