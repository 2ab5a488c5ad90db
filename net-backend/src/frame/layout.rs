//! Where the headers of a frame are that is to be segmented, and whether it is what it claims to be.

use super::body::{Body, Frame};
use super::checksum::Sum;
use super::header::{Gso, NetHeader};
use super::offload::{BadOffload, Scratch};
use super::parse::{Fragment, L3, L4, deep_bytes, protocol};

/// Offset of the checksum in a TCP header.
pub(super) const TCP_CHECKSUM: u16 = 16;
/// Offset of the checksum in a UDP header.
pub(super) const UDP_CHECKSUM: u16 = 6;
/// Bytes of a UDP header.
pub(super) const UDP_LEN: usize = 8;
/// Bytes of an IPv6 header.
pub(super) const IPV6_LEN: usize = 40;
/// Bytes of the smallest fragment: offsets count by so many.
pub(super) const FRAGMENT_MIN: usize = 8;
/// The flags byte of a TCP header.
pub(super) const TCP_FLAGS: usize = 13;

/// Where the headers of a frame are that is to be segmented.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub v6: bool,
    /// Offset of the network header.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// End of the transport header.
    pub end: usize,
    /// Offset of the checksum in the transport header.
    pub checksum: u16,
    /// What the TCP flags byte is.
    pub flags: u8,
}

/// A frame whose front is in private memory, all headers included, and is not read again.
pub(super) struct Loaded<'m> {
    pub header: NetHeader,
    pub layout: Layout,
    /// How much of it is in [`Scratch::head`].
    pub private: usize,
    /// What follows.
    pub body: Body<'m>,
}

/// Copies the front of the frame: the head, or more when the headers go on behind it.
pub(super) fn load<'m>(frame: &Frame<'m>, scratch: &mut Scratch) -> Result<Loaded<'m>, BadOffload> {
    let mut wanted = 0;
    loop {
        let (bytes, body) = scratch.load(frame, wanted)?;
        match Layout::parse(bytes, frame.header.gso) {
            Ok(layout) => return Ok(Loaded { header: frame.header, layout, private: bytes.len(), body }),
            Err(BadOffload::Headers) if wanted == 0 && !body.is_empty() => {
                wanted = frame.len().min(Scratch::HEADERS_MAX);
            }
            Err(bad) => return Err(bad),
        }
    }
}

impl Loaded<'_> {
    /// Bytes of the frame.
    pub fn len(&self) -> usize {
        self.private + self.body.len()
    }

    /// Whether nothing is left to cut. Senders may leave it to the receiver to see that (Linux does).
    pub fn is_one_segment(&self) -> bool {
        let size = usize::from(self.header.gso_size);
        match self.header.gso {
            Gso::Udp => self.len() - self.layout.l4 <= size.max(FRAGMENT_MIN),
            _ => self.len() - self.layout.end <= size,
        }
    }
}

impl Layout {
    /// Finds the headers in the front of a frame.
    fn parse(bytes: &[u8], gso: Gso) -> Result<Self, BadOffload> {
        let deep = deep_bytes(bytes);
        if deep.truncated {
            return Err(BadOffload::Headers);
        }
        let (v6, l3) = match deep.l3 {
            L3::Ipv4 { at, fragment: Fragment::No, .. } => (false, at),
            L3::Ipv6 { at, fragment: Fragment::No, .. } => (true, at),
            _ => return Err(BadOffload::Protocol),
        };
        let layout = |l4, len, checksum, flags| Self { v6, l3, l4, end: l4 + len, checksum, flags };
        match (gso, v6, deep.l4) {
            (Gso::TcpV4 { .. }, false, L4::Tcp { at, len })
            | (Gso::TcpV6 { .. }, true, L4::Tcp { at, len }) => {
                Ok(layout(at, len, TCP_CHECKSUM, bytes[at + TCP_FLAGS]))
            }
            (Gso::Udp | Gso::UdpL4, _, L4::Udp { at }) => Ok(layout(at, UDP_LEN, UDP_CHECKSUM, 0)),
            _ => Err(BadOffload::Protocol),
        }
    }

    /// Whether what the header says, besides the protocol, is true of this frame.
    pub fn check(&self, header: &NetHeader, len: usize) -> Result<(), BadOffload> {
        let place = (header.csum_start, header.csum_offset);
        if header.needs_csum() && place != (self.l4 as u16, self.checksum) {
            return Err(BadOffload::Checksum);
        }
        let counted = if self.v6 { self.l3 + IPV6_LEN } else { self.l3 };
        if len - counted > usize::from(u16::MAX) {
            return Err(BadOffload::TooLong);
        }
        Ok(())
    }

    /// Whether it is UDP that goes without a checksum, which only IPv4 allows (RFC 768).
    pub fn is_unchecked(&self, header: &NetHeader, head: &[u8]) -> bool {
        let udp = self.checksum == UDP_CHECKSUM && !self.v6;
        udp && !header.needs_csum() && get16(head, self.l4 + usize::from(UDP_CHECKSUM)) == 0
    }

    /// Writes the transport checksum field.
    pub fn set_checksum(&self, head: &mut [u8], value: u16) {
        put16(head, self.l4 + usize::from(self.checksum), value);
    }

    /// The sum of the pseudo header without the length of the transport part.
    ///
    /// A sender that leaves the checksum undone has put the sum with the length there; only it knows the final
    /// destination that a routing header hides (RFC 8200 section 8.1).
    pub fn pseudo_header(&self, header: &NetHeader, head: &[u8], len: usize) -> Sum {
        let mut sum = Sum::default();
        if header.needs_csum() {
            let field = self.l4 + usize::from(self.checksum);
            sum.add(&head[field..field + 2]);
            sum.add_word(!length_word(len - self.l4));
            return sum;
        }
        let addresses = if self.v6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        sum.add(&head[addresses]);
        let tcp = self.checksum == TCP_CHECKSUM;
        sum.add_word(u16::from(if tcp { protocol::TCP } else { protocol::UDP }));
        sum
    }
}

/// A transport length as it goes into a pseudo header. It is below 2^16 as [`Layout::check`] has seen.
pub(super) fn length_word(len: usize) -> u16 {
    len as u16
}

pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
