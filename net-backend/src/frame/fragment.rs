//! UDP datagrams cut into IP fragments (UFO).

use super::body::Packet;
use super::checksum::Sum;
use super::layout::{FRAGMENT_MIN, IPV6_LEN, Layout, Loaded, put16};
use super::offload::{BadOffload, Scratch, Work};
use super::parse::{Extensions, protocol};
use super::segment::{Payload, count};

/// Bytes of an IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;

/// Cuts a UDP datagram into IP fragments. Its checksum covers all of them, so it is completed here whatever the
/// receiver can do.
pub(super) fn fragments(
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

    /// Payload of all fragments but the last when `wanted` is asked for: a multiple of what offsets count by, and so
    /// little that its packet is no longer than lengths can say, with the fragment header.
    fn size(&self, wanted: usize) -> usize {
        let most = usize::from(u16::MAX) - (self.headers() - self.layout.l3);
        (wanted.min(most) / FRAGMENT_MIN * FRAGMENT_MIN).max(FRAGMENT_MIN)
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
