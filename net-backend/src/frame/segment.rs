//! Frames that are to be segmented: checked, passed on, or segmented in software.
//!
//! TCP and UDP segments are packets of their own (TSO, USO): the headers are repeated with length, identification,
//! sequence number, flags and checksum of the segment. A datagram that is to be fragmented (UFO) keeps its one UDP
//! header in the first fragment; only the network header is repeated.

use super::body::{Body, Frame, Packet};
use super::checksum::Sum;
use super::header::{Gso, NetHeader};
use super::offload::{BadOffload, MAX_SEGMENTS, Offloads, Scratch, Work, emit_one};
use super::parse::{Extensions, Fragment, L3, L4, deep_bytes, protocol};

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: u16 = 6;
/// Bytes of a UDP header.
const UDP_LEN: usize = 8;
/// Bytes of an IPv6 header, and of its fragment header.
const IPV6_LEN: usize = 40;
const FRAGMENT_LEN: usize = 8;
/// The TCP flags byte, and those flags that not every segment carries (RFC 9293 section 3.1, RFC 3168 section 6.1.2).
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Where the headers of a frame are that is to be segmented.
#[derive(Clone, Copy)]
struct Layout {
    v6: bool,
    l3: usize,
    l4: usize,
    /// End of the transport header.
    end: usize,
    /// Offset of the checksum in the transport header.
    checksum: u16,
    /// What the TCP flags byte is.
    flags: u8,
}

/// A frame whose front is in private memory, all headers included, and is not read again.
struct Loaded<'m> {
    header: NetHeader,
    layout: Layout,
    /// How much of it is in [`Scratch::head`].
    private: usize,
    /// What follows.
    body: Body<'m>,
}

/// Emits a frame whose header asks for segments.
pub(super) fn emit(
    frame: &Frame<'_>,
    can: Offloads,
    scratch: &mut Scratch,
    out: &mut dyn FnMut(&Packet<'_>) -> bool,
) -> Result<Work, BadOffload> {
    let loaded = load(frame, scratch)?;
    loaded.layout.check(&loaded.header, loaded.len())?;
    if loaded.is_one_segment() {
        let header = NetHeader { gso: Gso::None, gso_size: 0, hdr_len: 0, ..frame.header };
        return emit_one(&Frame { header, ..*frame }, can, scratch, out);
    }
    match (can.takes(frame.header.gso, &loaded.layout), frame.header.gso) {
        (Some(gso), _) => Ok(pass(&loaded, gso, scratch, out)),
        (None, Gso::Udp) => fragments(&loaded, scratch, out),
        (None, _) => segments(&loaded, can, scratch, out),
    }
}

/// Copies the front of the frame: the head, or more when the headers go on behind it.
fn load<'m>(frame: &Frame<'m>, scratch: &mut Scratch) -> Result<Loaded<'m>, BadOffload> {
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
    fn len(&self) -> usize {
        self.private + self.body.len()
    }

    /// Whether nothing is left to cut. Senders may leave it to the receiver to see that (Linux does).
    fn is_one_segment(&self) -> bool {
        let headers = if self.header.gso == Gso::Udp { self.layout.l4 } else { self.layout.end };
        self.len() - headers <= usize::from(self.header.gso_size)
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
    fn check(&self, header: &NetHeader, len: usize) -> Result<(), BadOffload> {
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
    fn is_unchecked(&self, header: &NetHeader, head: &[u8]) -> bool {
        let udp = self.checksum == UDP_CHECKSUM && !self.v6;
        udp && !header.needs_csum() && get16(head, self.l4 + usize::from(UDP_CHECKSUM)) == 0
    }

    /// Writes the transport checksum field.
    fn set_checksum(&self, head: &mut [u8], value: u16) {
        put16(head, self.l4 + usize::from(self.checksum), value);
    }

    /// The sum of the pseudo header without the length of the transport part.
    ///
    /// A sender that leaves the checksum undone has put the sum with the length there; only it knows the final
    /// destination that a routing header hides (RFC 8200 section 8.1).
    fn pseudo_header(&self, header: &NetHeader, head: &[u8], len: usize) -> Sum {
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
fn length_word(len: usize) -> u16 {
    len as u16
}

impl Offloads {
    /// What the receiver is told when it takes the frame unsegmented, or `None` when it cannot.
    fn takes(self, gso: Gso, layout: &Layout) -> Option<Gso> {
        // Without CWR in the packet there is nothing that ECN would have to say.
        let tcp = |can: bool, ecn: bool| {
            let ecn = ecn && layout.flags & CWR != 0;
            (can && (!ecn || self.ecn)).then_some(ecn)
        };
        let gso = match gso {
            Gso::None => Some(Gso::None),
            Gso::TcpV4 { ecn } => tcp(self.tso4, ecn).map(|ecn| Gso::TcpV4 { ecn }),
            Gso::TcpV6 { ecn } => tcp(self.tso6, ecn).map(|ecn| Gso::TcpV6 { ecn }),
            Gso::Udp => self.ufo.then_some(Gso::Udp),
            Gso::UdpL4 if layout.v6 => self.uso6.then_some(Gso::UdpL4),
            Gso::UdpL4 => self.uso4.then_some(Gso::UdpL4),
        };
        gso.filter(|_| self.csum)
    }
}

/// Passes the frame on unsegmented, its header in order: the length of the headers as found, and the checksum left to
/// do, as virtio 1.3 §5.1.6.4.1 wants it with every segmentation.
fn pass(
    frame: &Loaded<'_>,
    gso: Gso,
    scratch: &mut Scratch,
    out: &mut dyn FnMut(&Packet<'_>) -> bool,
) -> Work {
    let layout = &frame.layout;
    let header = frame.header.with_checksum(layout.l4 as u16, layout.checksum);
    let header = NetHeader { gso, gso_size: frame.header.gso_size, hdr_len: layout.end as u16, ..header };
    let head = &mut scratch.head[..frame.private];
    if !frame.header.needs_csum() {
        let mut sum = layout.pseudo_header(&frame.header, head, frame.len());
        sum.add_word(length_word(frame.len() - layout.l4));
        layout.set_checksum(head, sum.folded());
    }
    out(&Packet { header, head, body: frame.body });
    Work::Passed
}

/// The payload of a frame, taken in pieces: first what is private, then what is not.
struct Payload<'a, 'm> {
    private: &'a [u8],
    body: Body<'m>,
}

impl<'a, 'm> Payload<'a, 'm> {
    /// All of the frame from `start` on, out of the way of the heads that are built.
    fn of(frame: &Loaded<'m>, start: usize, head: &[u8], copy: &'a mut [u8]) -> Self {
        let private = &mut copy[..frame.private - start];
        private.copy_from_slice(&head[start..frame.private]);
        Self { private, body: frame.body }
    }

    fn len(&self) -> usize {
        self.private.len() + self.body.len()
    }

    /// Takes the next `len` bytes: the private ones are put into `head` from `at` on. Returns how far `head` is filled
    /// now, and the others.
    fn take(&mut self, len: usize, head: &mut [u8], at: usize) -> (usize, Body<'m>) {
        let (now, later) = self.private.split_at(len.min(self.private.len()));
        self.private = later;
        let end = at + now.len();
        head[at..end].copy_from_slice(now);
        (end, self.body.take(len - now.len()))
    }
}

/// How many pieces of `size` the payload makes, if not too many.
fn count(payload: usize, size: usize) -> Result<usize, BadOffload> {
    let count = payload.div_ceil(size);
    if count > MAX_SEGMENTS { Err(BadOffload::TooManySegments) } else { Ok(count) }
}

/// Cuts TCP and UDP payload into packets of their own.
fn segments(
    frame: &Loaded<'_>,
    can: Offloads,
    scratch: &mut Scratch,
    out: &mut dyn FnMut(&Packet<'_>) -> bool,
) -> Result<Work, BadOffload> {
    let (size, start) = (usize::from(frame.header.gso_size), frame.layout.end);
    let count = count(frame.len() - start, size)?;
    let head = &mut scratch.head;
    let mut payload = Payload::of(frame, start, head, &mut scratch.payload);
    let segment = Segment::new(frame, can, head);
    for index in 0..count {
        let (end, body) = payload.take(size.min(payload.len()), head, start);
        segment.write(&mut head[..end], body, index, index + 1 == count);
        if !out(&Packet { header: segment.header, head: &head[..end], body }) {
            break;
        }
    }
    Ok(Work::Segmented(count))
}

/// What all segments of a frame share.
struct Segment {
    layout: Layout,
    /// The virtio-net header they go with.
    header: NetHeader,
    size: usize,
    /// IPv4: the identification of the first, and the sum of the header without length, identification and checksum.
    identification: u16,
    network: Sum,
    transport: Transport,
    /// Sum of the pseudo header without the length, or `None` for UDP without a checksum.
    pseudo: Option<Sum>,
    /// The receiver completes the checksums.
    partial: bool,
}

#[derive(Clone, Copy)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

impl Segment {
    /// Reads it off the headers of the frame. Afterwards those fields hold nothing that differ between segments.
    fn new(frame: &Loaded<'_>, can: Offloads, head: &mut [u8]) -> Self {
        let layout = frame.layout;
        let (l3, l4) = (layout.l3, layout.l4);
        let transport = match layout.checksum {
            TCP_CHECKSUM => Transport::Tcp { sequence: get32(head, l4 + 4), flags: head[l4 + TCP_FLAGS] },
            _ => Transport::Udp,
        };
        let unchecked = layout.is_unchecked(&frame.header, head);
        let pseudo = (!unchecked).then(|| layout.pseudo_header(&frame.header, head, frame.len()));
        let identification = get16(head, l3 + 4);
        let mut network = Sum::default();
        if !layout.v6 {
            for field in [2, 4, 10] {
                put16(head, l3 + field, 0);
            }
            network.add(&head[l3..l4]);
        }
        let partial = can.csum && !unchecked;
        let header = match partial {
            true => frame.header.with_checksum(l4 as u16, layout.checksum),
            false => frame.header.finished(),
        };
        let size = usize::from(frame.header.gso_size);
        Self { layout, header, size, identification, network, transport, pseudo, partial }
    }

    /// Writes the headers of segment `index`, whose payload is `body` behind what `head` has of it.
    fn write(&self, head: &mut [u8], body: Body<'_>, index: usize, last: bool) {
        let len = head.len() + body.len();
        self.write_network(head, len, index);
        self.write_transport(head, len, index, last);
        let Some(mut sum) = self.pseudo else { return };
        sum.add_word(length_word(len - self.layout.l4));
        if self.partial {
            return self.layout.set_checksum(head, sum.folded());
        }
        self.layout.set_checksum(head, 0);
        sum.add(&head[self.layout.l4..]);
        sum.add_sum(body.checksum());
        self.layout.set_checksum(head, sum.nonzero_checksum());
    }

    fn write_network(&self, head: &mut [u8], len: usize, index: usize) {
        let l3 = self.layout.l3;
        if self.layout.v6 {
            return put16(head, l3 + 4, (len - l3 - IPV6_LEN) as u16);
        }
        let (length, id) = ((len - l3) as u16, self.identification.wrapping_add(index as u16));
        let mut sum = self.network;
        sum.add_word(length);
        sum.add_word(id);
        put16(head, l3 + 2, length);
        put16(head, l3 + 4, id);
        put16(head, l3 + 10, sum.checksum());
    }

    fn write_transport(&self, head: &mut [u8], len: usize, index: usize, last: bool) {
        let l4 = self.layout.l4;
        match self.transport {
            Transport::Tcp { sequence, mut flags } => {
                if !last {
                    flags &= !(FIN | PSH);
                }
                if index > 0 {
                    flags &= !CWR;
                }
                let sequence = sequence.wrapping_add((index * self.size) as u32);
                head[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
                head[l4 + TCP_FLAGS] = flags;
            }
            Transport::Udp => put16(head, l4 + 4, (len - l4) as u16),
        }
    }
}

/// Cuts a UDP datagram into IP fragments. Its checksum covers all of them, so it is completed here whatever the
/// receiver can do.
fn fragments(
    frame: &Loaded<'_>,
    scratch: &mut Scratch,
    out: &mut dyn FnMut(&Packet<'_>) -> bool,
) -> Result<Work, BadOffload> {
    let head = &mut scratch.head;
    if frame.header.needs_csum() {
        let mut sum = Sum::default();
        sum.add(&head[frame.layout.l4..frame.private]);
        sum.add_sum(frame.body.checksum());
        frame.layout.set_checksum(head, sum.nonzero_checksum());
    }
    let fragment = Fragmenter::new(&frame.layout, head, scratch.datagram);
    let size = fragment.size(usize::from(frame.header.gso_size));
    let count = count(frame.len() - fragment.cut, size)?;
    scratch.datagram = scratch.datagram.wrapping_add(1);
    let mut payload = Payload::of(frame, fragment.cut, head, &mut scratch.payload);
    fragment.insert_header(head);
    for index in 0..count {
        let len = size.min(payload.len());
        let (end, body) = payload.take(len, head, fragment.headers());
        fragment.write(head, len, index * size, index + 1 == count);
        if !out(&Packet { header: frame.header.finished(), head: &head[..end], body }) {
            break;
        }
    }
    Ok(Work::Segmented(count))
}

/// What all fragments of a datagram share.
struct Fragmenter {
    layout: Layout,
    /// Where the part that is fragmented starts.
    cut: usize,
    /// IPv6: where the number of the first fragmented header is, which the fragment header takes over.
    next: usize,
    datagram: u32,
}

impl Fragmenter {
    fn new(layout: &Layout, head: &[u8], datagram: u32) -> Self {
        if !layout.v6 {
            return Self { layout: *layout, cut: layout.l4, next: 0, datagram };
        }
        // RFC 8200 section 4.5: headers up to a routing header, or to the hop-by-hop options, go with every fragment.
        let start = layout.l3 + IPV6_LEN;
        let every = |protocol| matches!(protocol, protocol::HOP_BY_HOP | protocol::ROUTING);
        let headers = Extensions::new(&head[..layout.l4], start, head[layout.l3 + 6]);
        let last = headers.filter(|header| every(header.protocol)).last();
        let (cut, next) = match last {
            Some(header) => (header.at + header.len, header.at),
            None => (start, layout.l3 + 6),
        };
        Self { layout: *layout, cut, next, datagram }
    }

    /// Bytes of headers before the payload of a fragment.
    fn headers(&self) -> usize {
        if self.layout.v6 { self.cut + FRAGMENT_LEN } else { self.cut }
    }

    /// Payload of all fragments but the last when `wanted` is asked for: a multiple of eight bytes, and no more than an
    /// IPv6 length can say with the fragment header.
    fn size(&self, wanted: usize) -> usize {
        let most = usize::from(u16::MAX) - (self.headers() - self.layout.l3);
        (wanted.min(most) & !7).max(8)
    }

    /// IPv6: puts a fragment header behind those that go with every fragment.
    fn insert_header(&self, head: &mut [u8]) {
        if self.layout.v6 {
            let next = std::mem::replace(&mut head[self.next], protocol::FRAGMENT);
            let [a, b, c, d] = self.datagram.to_be_bytes();
            head[self.cut..self.headers()].copy_from_slice(&[next, 0, 0, 0, a, b, c, d]);
        }
    }

    /// Writes the headers of the fragment with the `len` bytes of payload from `offset` on.
    fn write(&self, head: &mut [u8], len: usize, offset: usize, last: bool) {
        let (l3, end) = (self.layout.l3, self.headers());
        if self.layout.v6 {
            put16(head, l3 + 4, (end + len - l3 - IPV6_LEN) as u16);
            return put16(head, self.cut + 2, offset as u16 | u16::from(!last));
        }
        const MORE: u16 = 0x2000;
        put16(head, l3 + 2, (end + len - l3) as u16);
        put16(head, l3 + 6, (offset / 8) as u16 | if last { 0 } else { MORE });
        put16(head, l3 + 10, 0);
        let mut sum = Sum::default();
        sum.add(&head[l3..end]);
        put16(head, l3 + 10, sum.checksum());
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
