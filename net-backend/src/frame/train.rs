//! Runs of frames of one flow, joined into one frame that its receiver cuts again: the reverse of `segment`.
//!
//! For receivers to which each frame is a system call. A sender without segmentation offload (a user-space network stack, a
//! router, a UDP server) gives a flow as many small frames; the kernel takes a run of them as one with `gso_size`, and cuts it
//! where it must. Nothing is lost or made up: only frames that cutting gives back as they were are joined (but for the
//! identification of IPv4 packets that may not be fragmented, which means nothing, RFC 6864 section 4.1), and only those
//! whose checksum is right or left undone, because the joined frame has a new one.

use super::body::Packet;
use super::checksum::Sum;
use super::header::{Gso, HeaderSize, NetHeader};
use super::layout::{IPV6_LEN, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, UDP_LEN, get16, get32, put16};
use super::offload::Offloads;
use super::parse::{Deep, Fragment, L3, L4, deep_bytes, protocol};

/// Longest frame that is joined to others: above it the copy costs more than the system call.
const LONGEST: usize = 16_384;
/// Most frames of a train: what Linux cuts a UDP frame into (`UDP_MAX_SEGMENTS` of its older versions).
const MOST: u16 = 64;
/// Bytes of an IPv4 header without options.
const IPV4_LEN: usize = 20;
/// Bytes that a train has room for: the front, two VLAN tags, Ethernet and what an IP length can say.
const ROOM: usize = NetHeader::MAX_LEN + 24 + u16::MAX as usize;

/// TCP flags (RFC 9293 section 3.1).
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Where the headers of a frame are that may be joined to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    v6: bool,
    tcp: bool,
    /// Offsets of the network and the transport header, and the end of that.
    l3: usize,
    l4: usize,
    end: usize,
    /// How the joined frame is to be cut.
    gso: Gso,
}

impl Place {
    /// `None` for a frame that is to be sent alone: it is none of TCP or UDP data without IP options, it is segmented or
    /// fragmented already, not what its lengths say, or of a kind that the receiver does not cut.
    #[inline]
    pub fn of(packet: &Packet<'_>, can: Offloads) -> Option<Self> {
        let (head, len) = (packet.head, packet.len());
        if packet.header.gso != Gso::None || len > LONGEST || !can.csum {
            return None;
        }
        let deep = deep_bytes(head);
        let place = Self::behind(&deep, can).filter(|place| !deep.truncated && place.end < len)?;
        let counted = if place.v6 { place.l3 + 4 } else { place.l3 + 2 };
        let from = if place.v6 { place.l3 + IPV6_LEN } else { place.l3 };
        let whole = usize::from(get16(head, counted)) == len - from;
        (whole && place.is_data(packet) && place.header_is_sound(head)).then_some(place)
    }

    fn behind(deep: &Deep, can: Offloads) -> Option<Self> {
        let (v6, l3) = match deep.l3 {
            L3::Ipv4 { at, len: IPV4_LEN, fragment: Fragment::No, .. } => (false, at),
            L3::Ipv6 { at, len: IPV6_LEN, fragment: Fragment::No, .. } => (true, at),
            _ => return None,
        };
        let (tcp, l4, end) = match deep.l4 {
            L4::Tcp { at, len } => (true, at, at + len),
            L4::Udp { at } => (false, at, at + UDP_LEN),
            _ => return None,
        };
        let (takes, gso) = match (tcp, v6) {
            (true, false) => (can.tso4, Gso::TcpV4 { ecn: false }),
            (true, true) => (can.tso6, Gso::TcpV6 { ecn: false }),
            (false, v6) => (if v6 { can.uso6 } else { can.uso4 }, Gso::UdpL4),
        };
        takes.then_some(Self { v6, tcp, l3, l4, end, gso })
    }

    /// Whether the transport header is that of plain data, with a checksum that can be made anew.
    fn is_data(&self, packet: &Packet<'_>) -> bool {
        let (head, header) = (packet.head, &packet.header);
        let undone = header.needs_csum();
        let placed = (usize::from(header.csum_start), header.csum_offset) == (self.l4, self.checksum());
        let plain = if self.tcp {
            head[self.l4 + TCP_FLAGS] & !(PSH | FIN) == ACK
        } else {
            let checked = undone || get16(head, self.l4 + usize::from(UDP_CHECKSUM)) != 0;
            checked && usize::from(get16(head, self.l4 + 4)) == packet.len() - self.l4
        };
        plain && (placed || !undone)
    }

    fn header_is_sound(&self, head: &[u8]) -> bool {
        let mut sum = Sum::default();
        sum.add(&head[self.l3..self.l3 + if self.v6 { 0 } else { IPV4_LEN }]);
        self.v6 || sum.checksum() == 0
    }

    fn checksum(&self) -> u16 {
        if self.tcp { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    /// The sum of the pseudo header for a transport part of `len` bytes.
    fn pseudo_header(&self, head: &[u8], len: usize) -> Sum {
        let mut sum = Sum::default();
        sum.add(if self.v6 { &head[self.l3 + 8..self.l3 + 40] } else { &head[self.l3 + 12..self.l3 + 20] });
        sum.add_word(u16::from(if self.tcp { protocol::TCP } else { protocol::UDP }));
        sum.add_word(len as u16);
        sum
    }

    /// Whether two frames with headers at these places are of one flow: they must stay in order.
    #[inline]
    fn is_flow_of(&self, ours: &[u8], theirs: &[u8]) -> bool {
        let addresses = if self.v6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        ours[self.l4..self.l4 + 4] == theirs[self.l4..self.l4 + 4]
            && ours[addresses.clone()] == theirs[addresses]
            && ours[..self.l3] == theirs[..self.l3]
    }

    /// Whether two frames of a flow have headers that differ only in what cutting sets.
    #[inline]
    fn is_like(&self, ours: &[u8], theirs: &[u8]) -> bool {
        let same = |from: usize, to: usize| ours[from..to] == theirs[from..to];
        let (l3, l4) = (self.l3, self.l4);
        let network = if self.v6 {
            same(l3, l3 + 4) && same(l3 + 6, l3 + 8)
        } else {
            same(l3, l3 + 2) && same(l3 + 6, l3 + 10)
        };
        // Acknowledgement, header length, window, urgent pointer and options.
        let transport = || same(l4 + 8, l4 + TCP_FLAGS) && same(l4 + 14, l4 + 16) && same(l4 + 18, self.end);
        network && (!self.tcp || transport())
    }
}

/// What became of a frame that was offered to a train.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// It is part of the train.
    Joined,
    /// It is of the same flow and does not fit: the train goes first.
    Next,
    /// It is of another flow, or the train is empty.
    Other,
}

/// Frames of one flow, joined in private memory.
pub struct Train {
    /// A virtio-net header, and from `front` on the frame.
    bytes: Box<[u8]>,
    front: HeaderSize,
    /// Bytes of the frame.
    len: usize,
    frames: u16,
    /// Of the first frame.
    header: NetHeader,
    place: Option<Place>,
    /// Payload of the first frame.
    segment: usize,
    /// Another frame may follow.
    open: bool,
    /// The checksum of the first frame is known to be right, or left undone.
    sound: bool,
}

impl Train {
    /// An empty one, whose bytes will begin with a virtio-net header of this form.
    pub fn new(front: HeaderSize) -> Self {
        Self {
            bytes: vec![0; ROOM].into(),
            front,
            len: 0,
            frames: 0,
            header: NetHeader::PLAIN,
            place: None,
            segment: 0,
            open: false,
            sound: false,
        }
    }

    /// Frames in it.
    pub fn frames(&self) -> usize {
        self.frames.into()
    }

    /// Begins anew with `packet`, whose headers are at `place`.
    #[inline]
    pub fn start(&mut self, packet: &Packet<'_>, place: Place) {
        let front = self.front.len();
        let private = packet.head.len();
        self.bytes[front..front + private].copy_from_slice(packet.head);
        let read = packet.body.read(&mut self.bytes[front + private..front + packet.len()]);
        self.len = private + read;
        self.header = packet.header;
        self.frames = 1;
        self.segment = packet.len() - place.end;
        self.open = self.len == packet.len() && !ends_run(&place, packet.head);
        self.sound = packet.header.needs_csum();
        self.place = Some(place);
    }

    /// Offers a frame whose headers are at `place`.
    #[inline]
    pub fn offer(&mut self, packet: &Packet<'_>, place: Place) -> Offer {
        let Some(ours) = self.place.filter(|_| self.frames > 0) else { return Offer::Other };
        let frame = &self.bytes[self.front.len()..];
        if ours != place || !place.is_flow_of(frame, packet.head) {
            return Offer::Other;
        }
        if self.fits(packet, &place) && self.append(packet, &place) { Offer::Joined } else { Offer::Next }
    }

    fn fits(&self, packet: &Packet<'_>, place: &Place) -> bool {
        let (ours, theirs) = (&self.bytes[self.front.len()..], packet.head);
        let payload = packet.len() - place.end;
        let room = self.open
            && self.frames < MOST
            && payload <= self.segment
            && self.len + payload - place.l3 <= usize::from(u16::MAX);
        let follows = || match place.tcp {
            true => {
                let so_far = (self.len - place.end) as u32;
                get32(theirs, place.l4 + 4) == get32(ours, place.l4 + 4).wrapping_add(so_far)
            }
            false => true,
        };
        let counted = || {
            // "Don't fragment": the identification means nothing.
            let free = place.v6 || ours[place.l3 + 6] & 0x40 != 0;
            free || get16(theirs, place.l3 + 4) == get16(ours, place.l3 + 4).wrapping_add(self.frames)
        };
        room && place.is_like(ours, theirs) && follows() && counted()
    }

    /// False, and no effect, when a checksum is wrong: neither frame may be given a right one.
    fn append(&mut self, packet: &Packet<'_>, place: &Place) -> bool {
        let front = self.front.len();
        if !self.sound {
            let frame = &self.bytes[front..front + self.len];
            let mut sum = place.pseudo_header(frame, self.len - place.l4);
            sum.add(&frame[place.l4..]);
            self.sound = sum.checksum() == 0;
        }
        let (theirs, end) = (packet.head, front + self.len);
        let private = &theirs[place.end..];
        let payload = packet.len() - place.end;
        self.bytes[end..end + private.len()].copy_from_slice(private);
        let read = packet.body.read(&mut self.bytes[end + private.len()..end + payload]);
        let complete = private.len() + read == payload;
        let sound = packet.header.needs_csum() || {
            let mut sum = place.pseudo_header(theirs, packet.len() - place.l4);
            sum.add(&theirs[place.l4..place.end]);
            // A header of an odd number of bytes there is not: the payload begins a word.
            sum.add(&self.bytes[end..end + payload]);
            sum.checksum() == 0
        };
        if !(self.sound && sound && complete) {
            return false;
        }
        self.len += payload;
        self.frames += 1;
        self.open = payload == self.segment;
        if place.tcp && ends_run(place, theirs) {
            self.bytes[front + place.l4 + TCP_FLAGS] |= theirs[place.l4 + TCP_FLAGS] & (PSH | FIN);
            self.open = false;
        }
        true
    }

    /// The bytes to send, the virtio-net header first.
    pub fn finish(&mut self) -> &[u8] {
        let front = self.front.len();
        if let Some(place) = self.place.filter(|_| self.frames > 1) {
            self.header = joined(&mut self.bytes[front..front + self.len], &place, self.segment);
        }
        self.header.write(&mut self.bytes[..front], self.front);
        &self.bytes[..front + self.len]
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.frames = 0;
    }
}

/// Whether no frame may follow this one in a train: cutting leaves these flags to the last segment.
fn ends_run(place: &Place, head: &[u8]) -> bool {
    place.tcp && head[place.l4 + TCP_FLAGS] & (PSH | FIN) != 0
}

/// Sets lengths and checksums of a joined frame; returns how it is to be cut.
fn joined(frame: &mut [u8], place: &Place, segment: usize) -> NetHeader {
    let (len, l3, l4) = (frame.len(), place.l3, place.l4);
    // All below 2^16, as `fits` has seen.
    if place.v6 {
        put16(frame, l3 + 4, (len - l3 - IPV6_LEN) as u16);
    } else {
        put16(frame, l3 + 2, (len - l3) as u16);
        put16(frame, l3 + 10, 0);
        let mut sum = Sum::default();
        sum.add(&frame[l3..l3 + IPV4_LEN]);
        put16(frame, l3 + 10, sum.checksum());
    }
    if !place.tcp {
        put16(frame, l4 + 4, (len - l4) as u16);
    }
    let pseudo = place.pseudo_header(frame, len - l4).folded();
    put16(frame, l4 + usize::from(place.checksum()), pseudo);
    NetHeader {
        gso: place.gso,
        hdr_len: place.end as u16,
        gso_size: segment as u16,
        ..NetHeader::PLAIN.with_checksum(l4 as u16, place.checksum())
    }
}
