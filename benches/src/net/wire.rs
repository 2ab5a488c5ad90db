//! virtio-net as it stands in memory: the header in front of every frame and the feature bits (virtio 1.3 §5.1).

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bits, virtio 1.3 §5.1.3.
pub mod feature {
    /// The device takes frames with a partial checksum.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames with a partial checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver takes TCP over IPv4 that is not yet segmented.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The device takes TCP over IPv4 that is not yet segmented.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// A frame may span several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// More than one pair of queues.
    pub const MQ: u64 = 1 << 22;
}

/// `flags`: the checksum from `csum_start` on is to be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const NEEDS_CSUM: u8 = 1;
/// `gso_type`: TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
pub const GSO_TCPV4: u8 = 1;

/// `struct virtio_net_hdr` with `num_buffers`, which VERSION_1 always has (virtio 1.3 §5.1.6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// [`NEEDS_CSUM`] and others.
    pub flags: u8,
    /// [`GSO_TCPV4`] or 0.
    pub gso_type: u8,
    /// Bytes of all protocol headers, for segmentation.
    pub hdr_len: U16,
    /// Payload of each segment.
    pub gso_size: U16,
    /// Where the checksum begins.
    pub csum_start: U16,
    /// Where it is to be put, from there.
    pub csum_offset: U16,
    /// Receive buffers that the frame takes.
    pub num_buffers: U16,
}

/// Bytes of [`Header`].
pub const HEADER: usize = size_of::<Header>();
/// Offset of `num_buffers` in it.
pub const NUM_BUFFERS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_header_has_the_layout_of_the_specification() {
        assert_eq!(HEADER, 12);
        assert_eq!(offset_of!(Header, hdr_len), 2);
        assert_eq!(offset_of!(Header, csum_start), 6);
        assert_eq!(offset_of!(Header, num_buffers), NUM_BUFFERS);
    }
}
