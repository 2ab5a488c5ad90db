//! Frames built byte by byte, and their way through `emit`.

use std::cell::RefCell;

use memory::{GuestAddr, HostRange, MemoryView, OwnMemory};
use net_backend::frame::{
    BadOffload, Body, Frame, Gso, Head, NetHeader, Offloads, Scratch, Work, emit, flag, needs_work,
};

use crate::reference::{ones_sum, pseudo_header};

/// A frame to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    /// VLAN tags.
    pub tags: usize,
    pub network: Network,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Network {
    /// With so many bytes of options.
    V4 { options: usize },
    /// With these extension headers: number and length.
    V6 { extensions: Vec<(u8, usize)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// With so many bytes of options.
    Tcp {
        options: usize,
        flags: u8,
    },
    Udp,
}

/// What is in the transport checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The right one.
    Complete,
    /// The sum of the pseudo header.
    Partial,
}

pub const SEQUENCE: u32 = 0xffff_f000;
pub const IDENTIFICATION: u16 = 0xfffe;

impl Spec {
    pub fn tcp4(flags: u8, payload: usize) -> Self {
        Self::new(Network::V4 { options: 0 }, Transport::Tcp { options: 12, flags }, payload)
    }

    pub fn tcp6(flags: u8, payload: usize) -> Self {
        Self::new(Network::V6 { extensions: Vec::new() }, Transport::Tcp { options: 12, flags }, payload)
    }

    pub fn udp4(payload: usize) -> Self {
        Self::new(Network::V4 { options: 0 }, Transport::Udp, payload)
    }

    pub fn udp6(payload: usize) -> Self {
        Self::new(Network::V6 { extensions: Vec::new() }, Transport::Udp, payload)
    }

    pub fn new(network: Network, transport: Transport, payload: usize) -> Self {
        Self { tags: 0, network, transport, payload: bytes(payload) }
    }

    pub fn v6(&self) -> bool {
        matches!(self.network, Network::V6 { .. })
    }

    pub fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    pub fn l4(&self) -> usize {
        let network = match &self.network {
            Network::V4 { options } => 20 + options,
            Network::V6 { extensions } => 40 + extensions.iter().map(|(_, len)| len).sum::<usize>(),
        };
        self.l3() + network
    }

    pub fn headers(&self) -> usize {
        self.l4()
            + match self.transport {
                Transport::Tcp { options, .. } => 20 + options,
                Transport::Udp => 8,
            }
    }

    /// Offset of the checksum in the transport header.
    pub fn field(&self) -> usize {
        match self.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp => 6,
        }
    }

    /// The frame.
    pub fn build(&self, checksum: Checksum) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..self.tags {
            frame.extend([
                if tag + 1 < self.tags { 0x88 } else { 0x81 },
                if tag + 1 < self.tags { 0xa8 } else { 0 },
            ]);
            frame.extend([0x60, 7 + tag as u8]);
        }
        let transport = self.headers() - self.l4() + self.payload.len();
        self.push_network(&mut frame, transport);
        self.push_transport(&mut frame, transport);
        frame.extend(&self.payload);
        let (l4, field) = (self.l4(), self.l4() + self.field());
        let sum = match checksum {
            Checksum::Partial => pseudo_header(&frame[self.l3()..], self.protocol(), transport),
            Checksum::Complete => {
                let pseudo = pseudo_header(&frame[self.l3()..], self.protocol(), transport);
                match !ones_sum(u32::from(pseudo), &frame[l4..]) {
                    0 => 0xffff,
                    sum => sum,
                }
            }
        };
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp => 17,
        }
    }

    fn push_network(&self, frame: &mut Vec<u8>, transport: usize) {
        match &self.network {
            Network::V4 { options } => {
                frame.extend([0x08, 0]);
                let start = frame.len();
                frame.extend([0x40 | ((20 + options) / 4) as u8, 0x10]);
                frame.extend(((20 + options + transport) as u16).to_be_bytes());
                frame.extend(IDENTIFICATION.to_be_bytes());
                frame.extend([0x40, 0, 64, self.protocol(), 0, 0, 10, 1, 2, 3, 10, 4, 5, 6]);
                frame.extend(vec![1; *options]);
                let sum = !ones_sum(0, &frame[start..]);
                frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
            }
            Network::V6 { extensions } => {
                let more: usize = extensions.iter().map(|(_, len)| len).sum();
                frame.extend([0x86, 0xdd, 0x60, 0x12, 0x34, 0x56]);
                frame.extend(((more + transport) as u16).to_be_bytes());
                let number = |at: usize| extensions.get(at).map_or(self.protocol(), |&(number, _)| number);
                frame.extend([number(0), 64, 0xfd]);
                frame.extend([1; 15]);
                frame.push(0xfd);
                frame.extend([2; 15]);
                for (at, &(number_here, len)) in extensions.iter().enumerate() {
                    let units = if number_here == 51 { len / 4 - 2 } else { len / 8 - 1 };
                    frame.extend([number(at + 1), units as u8]);
                    // A routing header at its end, or padding of the rest.
                    let content = if number_here == 43 { vec![0; len - 2] } else { padding(len - 2) };
                    frame.extend(content);
                }
            }
        }
    }

    fn push_transport(&self, frame: &mut Vec<u8>, transport: usize) {
        frame.extend([0x30, 0x39, 0x00, 0x50]);
        match self.transport {
            Transport::Udp => {
                frame.extend((transport as u16).to_be_bytes());
                frame.extend([0, 0]);
            }
            Transport::Tcp { options, flags } => {
                frame.extend(SEQUENCE.to_be_bytes());
                frame.extend([1, 2, 3, 4, ((20 + options) / 4 * 16) as u8, flags, 0x7f, 0xff, 0, 0, 0, 0]);
                frame.extend(vec![1; options]);
            }
        }
    }

    /// The virtio-net header of a sender that leaves the checksum undone.
    pub fn needs_csum(&self) -> NetHeader {
        NetHeader {
            flags: flag::NEEDS_CSUM,
            csum_start: self.l4() as u16,
            csum_offset: self.field() as u16,
            ..NetHeader::PLAIN
        }
    }

    /// The virtio-net header of a sender that leaves the segmentation undone.
    pub fn segmented(&self, gso: Gso, gso_size: u16) -> NetHeader {
        NetHeader { gso, gso_size, hdr_len: 7777, ..self.needs_csum() }
    }
}

/// A PadN option, so that what follows is not taken for one.
fn padding(len: usize) -> Vec<u8> {
    let mut option = vec![0; len];
    option[..2].copy_from_slice(&[1, (len - 2) as u8]);
    option
}

/// Bytes without a pattern that checksums do not notice.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 15) as u8).collect()
}

/// What came out of `emit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    pub header: NetHeader,
    pub frame: Vec<u8>,
}

/// How a frame lies in memory.
#[derive(Clone, Debug)]
pub struct Place {
    /// Bytes in the head.
    pub head: usize,
    /// Lengths of the ranges; the rest is in one more.
    pub ranges: Vec<usize>,
}

impl Place {
    pub const WHOLE: Self = Self { head: 128, ranges: Vec::new() };
}

thread_local! {
    static MEMORY: RefCell<Option<OwnMemory>> = const { RefCell::new(None) };
}

/// Sends the frame through `emit`, which is told to stop after `room` packets.
pub fn run(
    frame: &[u8],
    header: NetHeader,
    can: Offloads,
    place: &Place,
    room: usize,
) -> (Result<Work, BadOffload>, Vec<Out>) {
    MEMORY.with_borrow_mut(|memory| {
        let memory = memory.get_or_insert_with(|| OwnMemory::new(1 << 20, GuestAddr(0)).expect("memory"));
        run_in(memory, frame, header, can, place, room)
    })
}

/// Lays a frame out, and shows its head and the rest of it.
pub fn with_body(frame: &[u8], place: &Place, look: impl FnOnce(&[u8], Body<'_>)) {
    MEMORY.with_borrow_mut(|memory| {
        let memory = memory.get_or_insert_with(|| OwnMemory::new(1 << 20, GuestAddr(0)).expect("memory"));
        laid_out(memory, frame, place, |head, body| look(head.as_slice(), body));
    });
}

fn laid_out<T>(
    memory: &OwnMemory,
    frame: &[u8],
    place: &Place,
    look: impl FnOnce(&Head, Body<'_>) -> T,
) -> T {
    let view = MemoryView::new(memory.table().clone());
    let ranges = lay_out(memory, frame, &place.ranges);
    let head = Head::from_slice(&frame[..place.head.min(frame.len())]);
    look(&head, Body::new(&view, &ranges, VIRTIO_HEADER + head.len(), frame.len() - head.len()))
}

fn run_in(
    memory: &OwnMemory,
    frame: &[u8],
    header: NetHeader,
    can: Offloads,
    place: &Place,
    room: usize,
) -> (Result<Work, BadOffload>, Vec<Out>) {
    let mut outs = Vec::new();
    let result = laid_out(memory, frame, place, |head, body| {
        emitted(&Frame { header, head, body }, can, room, &mut outs)
    });
    if !needs_work(&header, can) {
        assert_eq!(outs, [Out { header, frame: frame.to_vec() }], "what needs no work is left alone");
    }
    (result, outs)
}

fn emitted(frame: &Frame<'_>, can: Offloads, room: usize, outs: &mut Vec<Out>) -> Result<Work, BadOffload> {
    emit(frame, can, &mut Scratch::new(), |packet| {
        let mut frame = packet.head.to_vec();
        packet.body.for_each(|piece| {
            let start = frame.len();
            frame.resize(start + piece.len(), 0);
            piece.read(0, &mut frame[start..]);
        });
        assert_eq!(frame.len(), packet.len(), "a packet has as many bytes as it says");
        outs.push(Out { header: packet.header, frame });
        outs.len() < room
    })
}

const VIRTIO_HEADER: usize = 12;

/// Puts a virtio-net header (of no meaning) and the frame into ranges with gaps between them.
fn lay_out(memory: &OwnMemory, frame: &[u8], lens: &[usize]) -> Vec<HostRange> {
    let mut bytes = vec![0xa5; VIRTIO_HEADER];
    bytes.extend(frame);
    let (mut rest, mut at, mut ranges) = (&bytes[..], 0, Vec::new());
    for &len in lens.iter().chain([&usize::MAX]) {
        let (now, later) = rest.split_at(len.min(rest.len()));
        let slice = memory.slice(GuestAddr(at), now.len()).expect("room");
        slice.write(0, now);
        ranges.push(slice.range());
        (rest, at) = (later, at + now.len() as u64 + 5);
    }
    ranges
}
