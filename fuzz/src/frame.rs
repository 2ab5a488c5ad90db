//! One frame with one virtio-net header, in any layout, on its way to one receiver.

use std::cell::RefCell;

use memory::{GuestAddr, HostRange, MemoryView, OwnMemory};
use net_backend::frame::hash::{KEY_LEN, Rss, flow};
use net_backend::frame::{
    Body, Deep, Frame, Gso, HEAD, HEAD_MAX, Head, HeaderSize, NetHeader, Offer, Offloads, Packet, Place,
    Scratch, TAG_LEN, Tag, Train, Work, emit, needs_work, parse,
};

use crate::input::Input;

/// Longer than any frame, so that the limits are reached.
const MEMORY: usize = 1 << 18;

/// Most that headers can add to a segment: as much as is looked at, and a fragment header.
const HEADERS_MAX: usize = 512 + 8;

struct Bench {
    memory: OwnMemory,
    scratch: Scratch,
    rss: Rss,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench {
        memory: OwnMemory::new(MEMORY, GuestAddr(0)).expect("memory"),
        scratch: Scratch::new(),
        rss: Rss::new(std::array::from_fn::<u8, KEY_LEN, _>(|at| at as u8 ^ 0x6d), u32::MAX),
    });
}

/// Runs one input to its end.
pub fn run(bytes: &[u8]) {
    BENCH.with_borrow_mut(|bench| Case::read(&mut Input::new(bytes)).run(bench));
}

/// One input.
struct Case<'a> {
    header: &'a [u8],
    trusted: bool,
    can: Offloads,
    head: usize,
    ranges: Vec<usize>,
    frame: Vec<u8>,
}

impl<'a> Case<'a> {
    fn read(input: &mut Input<'a>) -> Self {
        let bits = input.u8();
        let size = [HeaderSize::Legacy, HeaderSize::Modern, HeaderSize::Hash][usize::from(bits & 3) % 3];
        let can = Offloads::from_bits(input.u8());
        let head = usize::from(input.u8()) + 1;
        let count = input.below(6);
        let ranges = (0..count).map(|_| usize::from(input.u16())).collect();
        let header = input.take(size.len());
        let filler = usize::from(input.u16());
        let mut frame = input.take(usize::MAX).to_vec();
        frame.extend((0..filler).map(|at| (at * 7 >> 2) as u8));
        Self { header, trusted: bits & 4 != 0, can, head, ranges, frame }
    }

    fn run(self, bench: &mut Bench) {
        let header =
            if self.trusted { NetHeader::parse_trusted(self.header) } else { NetHeader::parse(self.header) };
        let Ok(mut header) = header else { return };
        let inside = header.check(self.frame.len()).is_ok();
        let mut written = [0; NetHeader::MAX_LEN];
        header.write(&mut written, HeaderSize::Hash);
        assert_eq!(NetHeader::parse_trusted(&written), Ok(header));

        let head = Head::from_slice(&self.frame[..self.head.min(HEAD_MAX).min(self.frame.len())]);
        look_into(&head, &bench.rss);
        let (result, outs) = self.emit(bench, &header, &head);
        assert_eq!(result.is_err(), outs.is_empty());
        if inside && !needs_work(&header, self.can) {
            assert_eq!(outs, [(header, self.frame.clone())]);
        }
        for (out, frame) in &outs {
            assert!(out.flags == 0 || self.can.csum);
            assert!(out.gso == Gso::None || self.takes(out.gso));
            assert!(out.gso == Gso::None || out.check(frame.len()).is_ok());
        }
        if let Ok(Work::Segmented(count)) = result {
            assert_eq!(count, outs.len());
            self.check_segments(header.gso, usize::from(header.gso_size), &outs);
        } else {
            assert!(outs.iter().all(|(_, frame)| frame.len() == self.frame.len()));
        }
        join(bench, &outs);
        header.shift(-(TAG_LEN as i16));
    }

    fn takes(&self, gso: Gso) -> bool {
        let Offloads { tso4, tso6, ecn: can_ecn, ufo, uso4, uso6, .. } = self.can;
        self.can.csum
            && match gso {
                Gso::None => true,
                Gso::TcpV4 { ecn } => tso4 && (can_ecn || !ecn),
                Gso::TcpV6 { ecn } => tso6 && (can_ecn || !ecn),
                Gso::Udp => ufo,
                Gso::UdpL4 => uso4 || uso6,
            }
    }

    /// Sends the frame through `emit` and collects what comes out.
    fn emit(
        &self,
        bench: &mut Bench,
        header: &NetHeader,
        head: &Head,
    ) -> (Result<Work, net_backend::frame::BadOffload>, Vec<(NetHeader, Vec<u8>)>) {
        let ranges = self.lay_out(&bench.memory);
        let view = MemoryView::new(bench.memory.table().clone());
        let body = Body::new(&view, &ranges, head.len(), self.frame.len() - head.len());
        let mut outs = Vec::new();
        let frame = Frame { header: *header, head, body };
        let result = emit(&frame, self.can, &mut bench.scratch, |packet| {
            let mut frame = packet.head.to_vec();
            frame.resize(packet.len(), 0);
            assert_eq!(packet.body.read(&mut frame[packet.head.len()..]), packet.body.len());
            outs.push((packet.header, frame));
            true
        });
        (result, outs)
    }

    fn lay_out(&self, memory: &OwnMemory) -> Vec<HostRange> {
        let (mut rest, mut at, mut ranges) = (&self.frame[..], 0, Vec::new());
        for &len in self.ranges.iter().chain([&usize::MAX]) {
            let (now, later) = rest.split_at(len.min(rest.len()));
            let slice = memory.slice(GuestAddr(at), now.len()).expect("room");
            slice.write(0, now);
            ranges.push(slice.range());
            (rest, at) = (later, at + now.len() as u64 + 3);
        }
        ranges
    }

    /// Segments repeat the headers and carry the payload, all of it and nothing else.
    fn check_segments(&self, gso: Gso, size: usize, outs: &[(NetHeader, Vec<u8>)]) {
        assert!(outs.len() > 1);
        let all: usize = outs.iter().map(|(_, frame)| frame.len()).sum();
        let v6 = be16(&outs[0].1, network_at(&outs[0].1) - 2) == parse::ethertype::IPV6;
        let inserted = if gso == Gso::Udp && v6 { 8 } else { 0 };
        // Every segment but one adds its headers to the frame, and every one what was inserted.
        let headers = (all - self.frame.len() - outs.len() * inserted) / (outs.len() - 1);
        assert!(headers + inserted <= HEADERS_MAX);
        let mut payload = Vec::new();
        for (out, frame) in outs {
            assert!(out.gso == Gso::None);
            check_network(frame);
            let piece = &frame[headers + inserted..];
            assert!(!piece.is_empty() && piece.len() <= size.max(8));
            payload.extend(piece);
        }
        let mut expected = self.frame[headers..].to_vec();
        if gso == Gso::Udp {
            let deep = deep_of(&self.frame);
            if let parse::L4::Udp { at } = deep.l4 {
                // The checksum, which may have been completed.
                payload[at + 6 - headers..at + 8 - headers].fill(0);
                expected[at + 6 - headers..at + 8 - headers].fill(0);
            }
        }
        assert!(payload == expected);
    }
}

/// Joins what came out where it is of one flow: what is joined is cut into as many frames again.
fn join(bench: &mut Bench, outs: &[(NetHeader, Vec<u8>)]) {
    let view = MemoryView::new(bench.memory.table().clone());
    let mut train = Train::new(HeaderSize::Modern);
    for (header, frame) in outs {
        let packet = Packet { header: *header, head: frame, body: Body::empty(&view) };
        let Some(place) = Place::of(&packet, Offloads::ALL) else { continue };
        if train.offer(&packet, place) != Offer::Joined {
            leave(bench, &view, &mut train);
            train.start(&packet, place);
        }
    }
    leave(bench, &view, &mut train);
}

fn leave(bench: &mut Bench, view: &MemoryView, train: &mut Train) {
    let frames = train.frames();
    if frames < 2 {
        return;
    }
    let bytes = train.finish();
    let (header, frame) = bytes.split_at(HeaderSize::Modern.len());
    let header = NetHeader::parse(header).expect("a header");
    assert!(header.check(frame.len()).is_ok());
    let (front, rest) = frame.split_at(frame.len().min(HEAD));
    let slice = bench.memory.slice(GuestAddr(0), rest.len()).expect("room");
    slice.write(0, rest);
    let (head, ranges) = (Head::from_slice(front), [slice.range()]);
    let body = Body::new(view, &ranges, 0, rest.len());
    let cut = Frame { header, head: &head, body };
    let result = emit(&cut, Offloads::NONE, &mut bench.scratch, |packet| {
        assert!(packet.len() <= frame.len());
        true
    });
    assert_eq!(result, Ok(Work::Segmented(frames)));
}

fn deep_of(frame: &[u8]) -> Deep {
    let head = Head::from_slice(frame);
    parse::deep(&head, &parse::l2(&head).expect("a frame that was segmented"))
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Where the network header is, behind at most two tags.
fn network_at(frame: &[u8]) -> usize {
    let is_tag =
        |at: &usize| matches!(be16(frame, *at), parse::ethertype::VLAN | parse::ethertype::SERVICE_VLAN);
    [12, 16].iter().take_while(|at| is_tag(at)).count() * TAG_LEN + 14
}

/// Lengths and the IPv4 header checksum are right.
fn check_network(frame: &[u8]) {
    let at = network_at(frame);
    let packet = &frame[at..];
    if be16(frame, at - 2) == parse::ethertype::IPV6 {
        return assert_eq!(usize::from(be16(packet, 4)), packet.len() - 40);
    }
    assert_eq!(usize::from(be16(packet, 2)), packet.len());
    let header = &packet[..usize::from(packet[0] & 0xf) * 4];
    let sum: u32 = header.chunks(2).map(|word| u32::from(be16(word, 0))).sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
}

/// Everything that is asked of a head.
fn look_into(head: &Head, rss: &Rss) {
    let Ok(meta) = parse::l2(head) else { return };
    let deep = parse::deep(head, &meta);
    if let parse::L4::Tcp { at, len } = deep.l4 {
        assert!(deep.truncated || at + len <= head.len());
    }
    let _ = (flow(head, &meta), rss.report(head, &meta));
    let mut tagged = head.clone();
    tagged.push_tag(Tag::new(7)).expect("room");
    let again = parse::l2(&tagged).expect("a tagged frame");
    assert_eq!((again.tag, again.dst, again.src), (Some(Tag::new(7)), meta.dst, meta.src));
    assert_eq!(tagged.pop_tag(), Some(Tag::new(7)));
    assert_eq!(tagged.as_slice(), head.as_slice());
}
