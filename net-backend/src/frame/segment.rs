//! Frames that are to be segmented: checked, passed on, or segmented in software.
//!
//! TCP and UDP segments are packets of their own (TSO, USO): the headers are repeated with length, identification,
//! sequence number, flags and checksum of the segment. A datagram that is to be fragmented (UFO) keeps its one UDP
//! header in the first fragment; only the network header is repeated.

use super::body::{Body, Frame, Packet};
use super::checksum::Sum;
use super::fragment;
use super::header::{Gso, NetHeader};
use super::layout::{
    IPV6_LEN, Layout, Loaded, TCP_CHECKSUM, TCP_FLAGS, get16, get32, length_word, load, put16,
};
use super::offload::{BadOffload, MAX_SEGMENTS, Offloads, Scratch, Work, emit_one};

/// TCP flags that not every segment carries (RFC 9293 section 3.1, RFC 3168 section 6.1.2).
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

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
        (None, Gso::Udp) => fragment::fragments(&loaded, scratch, out),
        (None, _) => segments(&loaded, can, scratch, out),
    }
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
pub(super) struct Payload<'a, 'm> {
    private: &'a [u8],
    body: Body<'m>,
}

impl<'a, 'm> Payload<'a, 'm> {
    /// All of the frame from `start` on, out of the way of the heads that are built.
    pub fn of(frame: &Loaded<'m>, start: usize, head: &[u8], copy: &'a mut [u8]) -> Self {
        let private = &mut copy[..frame.private - start];
        private.copy_from_slice(&head[start..frame.private]);
        Self { private, body: frame.body }
    }

    pub fn len(&self) -> usize {
        self.private.len() + self.body.len()
    }

    /// Takes the next `len` bytes: the private ones are put into `head` from `at` on. Returns how far `head` is filled
    /// now, and the others.
    pub fn take(&mut self, len: usize, head: &mut [u8], at: usize) -> (usize, Body<'m>) {
        let (now, later) = self.private.split_at(len.min(self.private.len()));
        self.private = later;
        let end = at + now.len();
        head[at..end].copy_from_slice(now);
        (end, self.body.take(len - now.len()))
    }
}

/// How many pieces of `size` the payload makes, if not too many.
pub(super) fn count(payload: usize, size: usize) -> Result<usize, BadOffload> {
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
