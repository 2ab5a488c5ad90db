//! The virtio-net header (virtio 1.3 §5.1.6), as a private native copy.

use thiserror::Error;

/// Bits of `flags` (virtio 1.3 §5.1.6).
pub mod flag {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum at `csum_start + csum_offset` covers the pseudo header only so far.
    pub const NEEDS_CSUM: u8 = 1;
    /// VIRTIO_NET_HDR_F_DATA_VALID: somebody trusted has verified the checksum.
    pub const DATA_VALID: u8 = 2;
}

/// Values of `gso_type` (virtio 1.3 §5.1.6).
mod gso_type {
    pub(super) const NONE: u8 = 0;
    pub(super) const TCPV4: u8 = 1;
    pub(super) const UDP: u8 = 3;
    pub(super) const TCPV6: u8 = 4;
    pub(super) const UDP_L4: u8 = 5;
    pub(super) const ECN: u8 = 0x80;
}

/// Bytes of an Ethernet header; no checksum starts inside it.
const ETHERNET: u16 = 14;

/// How a frame is to be cut into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// It is one frame.
    #[default]
    None,
    /// TCP over IPv4 (TSO4).
    TcpV4 {
        /// Only the first segment carries CWR (RFC 3168).
        ecn: bool,
    },
    /// TCP over IPv6 (TSO6).
    TcpV6 {
        /// Only the first segment carries CWR (RFC 3168).
        ecn: bool,
    },
    /// One UDP datagram, cut into IP fragments (UFO).
    Udp,
    /// Many UDP datagrams of one flow (USO).
    UdpL4,
}

/// The hash of a received frame (virtio 1.3 §5.1.6.4.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HashReport {
    /// The Toeplitz hash.
    pub value: u32,
    /// What went into it: one of the VIRTIO_NET_HASH_REPORT values in [`super::hash::report`].
    pub report: u16,
}

/// Which form of the header the driver negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HeaderSize {
    /// 10 bytes: a legacy driver without MRG_RXBUF.
    Legacy,
    /// 12 bytes: VERSION_1 or MRG_RXBUF.
    #[default]
    Modern,
    /// 20 bytes: HASH_REPORT.
    Hash,
}

impl HeaderSize {
    /// The form that goes with the negotiated `features`.
    pub fn of(features: u64) -> Self {
        const MRG_RXBUF: u64 = 1 << 15;
        const VERSION_1: u64 = 1 << 32;
        const HASH_REPORT: u64 = 1 << 57;
        match features {
            bits if bits & HASH_REPORT != 0 => Self::Hash,
            bits if bits & (VERSION_1 | MRG_RXBUF) != 0 => Self::Modern,
            _ => Self::Legacy,
        }
    }

    /// Bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub fn len(self) -> usize {
        match self {
            Self::Legacy => 10,
            Self::Modern => 12,
            Self::Hash => 20,
        }
    }
}

/// A virtio-net header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetHeader {
    /// [`flag`] bits.
    pub flags: u8,
    /// Segmentation that is left to do.
    pub gso: Gso,
    /// Bytes of all headers, as the sender says: a hint that nothing relies on.
    pub hdr_len: u16,
    /// Payload bytes of a segment; never 0 when `gso` is not `None`.
    pub gso_size: u16,
    /// Where the checksum starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is stored, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that hold the frame (MRG_RXBUF); not looked at from a driver.
    pub num_buffers: u16,
    /// The hash, for drivers that negotiated HASH_REPORT.
    pub hash: Option<HashReport>,
}

/// Why a virtio-net header is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadHeader {
    /// Fewer bytes than the smallest form has.
    #[error("The virtio-net header is cut off")]
    Short,
    /// A `gso_type` that virtio does not define.
    #[error("Unknown gso_type {0:#04x}")]
    GsoType(u8),
    /// Segments without a size.
    #[error("Segmentation with a gso_size of 0")]
    GsoSize,
    /// The checksum starts in the Ethernet header or is stored behind the end of the frame.
    #[error("The checksum at {start} + {offset} is outside the frame of {len} bytes")]
    Checksum {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Bytes of the frame.
        len: usize,
    },
    /// The checksum is stored where the frame says who it is from, where it goes or what it is.
    #[error("The checksum at {start} + {offset} is in a header that is not its own")]
    Place {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
    },
}

impl NetHeader {
    /// Bytes of the largest form.
    pub const MAX_LEN: usize = 20;
    /// A frame with nothing left undone, in one buffer.
    pub const PLAIN: Self = Self {
        flags: 0,
        gso: Gso::None,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 1,
        hash: None,
    };

    /// Reads what a driver put before a frame it sends: 10, 12 or 20 bytes. A driver says nothing about checksums that
    /// were verified, and bits that have no meaning are ignored (virtio 1.3 §5.1.6.2.2).
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, BadHeader> {
        Self::parse_with(bytes, flag::NEEDS_CSUM)
    }

    /// As [`parse`](Self::parse), from the host's kernel (a TAP device), which verifies checksums and says so.
    #[inline]
    pub fn parse_trusted(bytes: &[u8]) -> Result<Self, BadHeader> {
        Self::parse_with(bytes, flag::NEEDS_CSUM | flag::DATA_VALID)
    }

    #[inline(always)]
    fn parse_with(bytes: &[u8], flags: u8) -> Result<Self, BadHeader> {
        let &[raw_flags, gso_type, ..] = bytes else { return Err(BadHeader::Short) };
        if raw_flags & flags == 0 && gso_type == gso_type::NONE && bytes.len() >= 10 {
            return Ok(Self::PLAIN);
        }
        Self::parse_offload(bytes, raw_flags & flags)
    }

    fn parse_offload(bytes: &[u8], flags: u8) -> Result<Self, BadHeader> {
        let bytes: &[u8; 10] = bytes.first_chunk().ok_or(BadHeader::Short)?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let gso = Gso::from_wire(bytes[1]).ok_or(BadHeader::GsoType(bytes[1]))?;
        let gso_size = u16_at(4);
        if gso != Gso::None && gso_size == 0 {
            return Err(BadHeader::GsoSize);
        }
        // Fields without a meaning are not passed on.
        let mut header = Self { flags, ..Self::PLAIN };
        if gso != Gso::None {
            (header.gso, header.hdr_len, header.gso_size) = (gso, u16_at(2), gso_size);
        }
        if header.needs_csum() {
            (header.csum_start, header.csum_offset) = (u16_at(6), u16_at(8));
        }
        Ok(header)
    }

    /// Checks what the header says against a frame of `len` bytes: to be called once for every frame that comes in.
    #[inline]
    pub fn check(&self, len: usize) -> Result<(), BadHeader> {
        if self.flags & flag::NEEDS_CSUM == 0 || self.checksum_inside(len) {
            return Ok(());
        }
        Err(BadHeader::Checksum { start: self.csum_start, offset: self.csum_offset, len })
    }

    fn checksum_inside(&self, len: usize) -> bool {
        let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        self.csum_start >= ETHERNET && end <= len
    }

    /// Whether the checksum is left to be completed.
    #[inline]
    pub fn needs_csum(&self) -> bool {
        self.flags & flag::NEEDS_CSUM != 0
    }

    /// The same with nothing left to do.
    #[inline]
    pub fn finished(&self) -> Self {
        Self { num_buffers: self.num_buffers, hash: self.hash, ..Self::PLAIN }
    }

    /// The same with only the checksum left to do, which starts at `start` and is stored at `start + offset`.
    #[inline]
    pub fn with_checksum(&self, start: u16, offset: u16) -> Self {
        Self { flags: flag::NEEDS_CSUM, csum_start: start, csum_offset: offset, ..self.finished() }
    }

    /// Moves the places it names by `by` bytes: after VLAN tags were pushed (4 each) or popped (-4 each).
    #[inline]
    pub fn shift(&mut self, by: i16) {
        if self.flags & flag::NEEDS_CSUM != 0 {
            self.csum_start = self.csum_start.saturating_add_signed(by);
        }
        if self.gso != Gso::None {
            self.hdr_len = self.hdr_len.saturating_add_signed(by);
        }
    }

    /// The header in all its 20 bytes; the shorter forms are the front of it.
    #[inline]
    pub fn to_bytes(&self) -> [u8; Self::MAX_LEN] {
        let mut bytes = [0; Self::MAX_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso.to_wire();
        let mut put = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        put(2, self.hdr_len);
        put(4, self.gso_size);
        put(6, self.csum_start);
        put(8, self.csum_offset);
        put(10, self.num_buffers);
        if let Some(HashReport { value, report }) = self.hash {
            put(16, report);
            bytes[12..16].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Writes the form `size` to the front of `out`.
    ///
    /// # Panics
    /// When `out` is shorter than that.
    #[inline]
    pub fn write(&self, out: &mut [u8], size: HeaderSize) {
        out[..size.len()].copy_from_slice(&self.to_bytes()[..size.len()]);
    }
}

impl Gso {
    #[inline]
    fn from_wire(value: u8) -> Option<Self> {
        let ecn = value & gso_type::ECN != 0;
        Some(match value & !gso_type::ECN {
            gso_type::NONE if !ecn => Self::None,
            gso_type::TCPV4 => Self::TcpV4 { ecn },
            gso_type::TCPV6 => Self::TcpV6 { ecn },
            gso_type::UDP => Self::Udp,
            gso_type::UDP_L4 => Self::UdpL4,
            _ => return None,
        })
    }

    #[inline]
    fn to_wire(self) -> u8 {
        let ecn_bit = |ecn: bool| if ecn { gso_type::ECN } else { 0 };
        match self {
            Self::None => gso_type::NONE,
            Self::TcpV4 { ecn } => gso_type::TCPV4 | ecn_bit(ecn),
            Self::TcpV6 { ecn } => gso_type::TCPV6 | ecn_bit(ecn),
            Self::Udp => gso_type::UDP,
            Self::UdpL4 => gso_type::UDP_L4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: [u8; 12] = [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 9, 9];

    #[test]
    fn every_field_survives_the_way_there_and_back() {
        let header = NetHeader::parse(&SENT).expect("a header");
        let expected = NetHeader {
            flags: flag::NEEDS_CSUM,
            gso: Gso::TcpV4 { ecn: true },
            hdr_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 1,
            hash: None,
        };
        assert_eq!(header, expected);
        let hash = Some(HashReport { value: 0x0403_0201, report: 0x0605 });
        let mut bytes = [0xff; 20];
        NetHeader { num_buffers: 0x0201, hash, ..header }.write(&mut bytes, HeaderSize::Hash);
        assert_eq!(bytes[..10], SENT[..10]);
        assert_eq!(bytes[10..], [1, 2, 1, 2, 3, 4, 5, 6, 0, 0]);
        for gso in [Gso::None, Gso::TcpV4 { ecn: false }, Gso::TcpV6 { ecn: true }, Gso::Udp, Gso::UdpL4] {
            let header = NetHeader { gso, ..header };
            let parsed = NetHeader::parse(&header.to_bytes()).expect("a header");
            assert_eq!((parsed.gso, parsed.csum_start), (gso, 34));
            assert_eq!(parsed.gso_size, if gso == Gso::None { 0 } else { 1448 });
        }
        let unchecked = NetHeader::parse(&[0, 5, 1, 0, 9, 0, 7, 7, 7, 7]).expect("a header");
        assert_eq!(unchecked, NetHeader { gso: Gso::UdpL4, hdr_len: 1, gso_size: 9, ..NetHeader::PLAIN });
    }

    #[test]
    fn a_shorter_form_writes_no_byte_more() {
        for (size, len) in [(HeaderSize::Legacy, 10), (HeaderSize::Modern, 12), (HeaderSize::Hash, 20)] {
            let mut bytes = [0xff; 24];
            NetHeader::PLAIN.write(&mut bytes, size);
            assert_eq!(size.len(), len);
            assert!(bytes[len..].iter().all(|&byte| byte == 0xff));
            assert_eq!(bytes[..10], [0; 10]);
        }
    }

    #[test]
    fn features_choose_the_form() {
        let of = |bits: &[u32]| HeaderSize::of(bits.iter().map(|bit| 1_u64 << bit).sum());
        assert_eq!(of(&[]), HeaderSize::Legacy);
        assert_eq!(of(&[15]), HeaderSize::Modern);
        assert_eq!(of(&[32]), HeaderSize::Modern);
        assert_eq!(of(&[57, 32, 15]), HeaderSize::Hash);
    }

    #[test]
    fn what_a_driver_has_no_say_in_is_ignored() {
        let mut sent = SENT;
        sent[..2].copy_from_slice(&[0xfe, 0]);
        assert_eq!(NetHeader::parse(&sent), Ok(NetHeader::PLAIN));
        let trusted = NetHeader::parse_trusted(&sent).expect("a header");
        assert_eq!((trusted.flags, trusted.gso), (flag::DATA_VALID, Gso::None));
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        for len in 0..10 {
            assert_eq!(NetHeader::parse(&SENT[..len]), Err(BadHeader::Short));
            assert_eq!(NetHeader::parse(&[0; 10][..len]), Err(BadHeader::Short));
        }
        for gso_type in [2, 6, 0x20, 0x80, 0x82, 0xff] {
            let sent = [1, gso_type, 0, 0, 1, 0, 0, 0, 0, 0];
            assert_eq!(NetHeader::parse(&sent), Err(BadHeader::GsoType(gso_type)));
        }
        assert_eq!(NetHeader::parse(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Err(BadHeader::GsoSize));
    }

    #[test]
    fn checksums_must_be_inside_the_frame_and_behind_its_addresses() {
        let check = |start, offset, len| {
            let header = NetHeader { csum_start: start, csum_offset: offset, ..NetHeader::PLAIN };
            NetHeader { flags: flag::NEEDS_CSUM, ..header }.check(len).is_ok()
        };
        assert!(check(14, 0, 16) && check(34, 16, 52));
        assert!(!check(14, 0, 15) && !check(13, 1, 100) && !check(0, 0, 100));
        assert!(!check(u16::MAX, u16::MAX, 65_535));
        let ignored = NetHeader { csum_start: u16::MAX, ..NetHeader::PLAIN };
        assert!(ignored.check(14).is_ok());
    }

    #[test]
    fn tags_move_the_places_a_header_names() {
        let mut header = NetHeader::parse(&SENT).expect("a header");
        header.shift(4);
        assert_eq!((header.csum_start, header.hdr_len), (38, 70));
        header.shift(-8);
        assert_eq!((header.csum_start, header.hdr_len), (30, 62));
        header.csum_start = 2;
        header.shift(-4);
        assert_eq!(header.csum_start, 0);
        let mut plain = NetHeader::PLAIN;
        plain.shift(4);
        assert_eq!(plain, NetHeader::PLAIN);
    }
}
