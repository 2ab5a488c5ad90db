//! Buffers in the guest's memory, each between guards that show whoever writes beside them.

use memory::{GuestAddr, OwnMemory};
use virtqueue::driver::Segment;

/// What writable bytes hold before.
pub const UNTOUCHED: u8 = 0xee;
/// What is between buffers.
const GUARD: u8 = 0xc5;
const GUARD_LEN: usize = 64;
const PAGE: usize = 4096;

/// How the readable and the writable part of a request are cut into descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Header, source, destination and response each in one.
    #[default]
    Parts,
    /// One descriptor to read, one to write.
    Whole,
    /// So many bytes a descriptor.
    Every(usize),
    /// One to so many bytes a descriptor, by this seed.
    Random(u64, usize),
    /// As memory of a process is: source and destination begin at this offset of a page, and each further page is elsewhere.
    Pages(usize),
}

/// A piece of a buffer: its length, and the offset in a page it has to be at.
type Piece = (usize, Option<usize>);

impl Cut {
    /// What lies in front (a header), in the middle (source or destination) and at the end (a response), in pieces.
    fn pieces(self, parts: [usize; 3]) -> Vec<Piece> {
        let total = parts.iter().sum();
        let pieces: Vec<Piece> = match self {
            Self::Parts => parts.map(|len| (len, None)).to_vec(),
            Self::Whole => vec![(total, None)],
            Self::Every(len) => chunks(total, || len),
            Self::Random(seed, most) => {
                let mut seed = seed ^ total as u64;
                chunks(total, || 1 + next(&mut seed) as usize % most)
            }
            Self::Pages(offset) => {
                let mut at = offset % PAGE;
                let mut middle = chunks(parts[1], || PAGE - std::mem::take(&mut at));
                let mut first = offset % PAGE;
                middle.iter_mut().for_each(|piece| piece.1 = Some(std::mem::take(&mut first)));
                [vec![(parts[0], None)], middle, vec![(parts[2], None)]].concat()
            }
        };
        pieces.into_iter().filter(|(len, _)| *len > 0).collect()
    }
}

fn chunks(total: usize, mut len: impl FnMut() -> usize) -> Vec<Piece> {
    let (mut left, mut pieces) = (total, Vec::new());
    while left > 0 {
        let here = len().min(left);
        pieces.push((here, None));
        left -= here;
    }
    pieces
}

/// A generator of numbers, the same in every run.
pub fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let mixed = (*seed ^ *seed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Memory that is taken piece by piece, and given back as a whole.
pub struct Arena {
    start: GuestAddr,
    len: usize,
    next: usize,
}

/// A buffer in pieces.
pub struct Place {
    segments: Vec<Segment>,
    /// What it has to hold still; `None`: that is nobody's business.
    bytes: Option<Vec<u8>>,
    len: usize,
}

impl Arena {
    pub fn new(memory: &OwnMemory, len: usize) -> Self {
        Self { start: memory.alloc(len, PAGE).unwrap(), len, next: 0 }
    }

    /// Nothing of it is used any more.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// A buffer of three parts with these bytes, or with [`UNTOUCHED`] ones.
    pub fn place(&mut self, memory: &OwnMemory, cut: Cut, parts: [usize; 3], bytes: Option<&[u8]>) -> Place {
        let pieces = cut.pieces(parts);
        let segments: Vec<_> = pieces.into_iter().map(|piece| self.piece(memory, piece)).collect();
        let mut at = 0;
        for segment in segments.iter().filter(|_| bytes.is_some()) {
            let here = &bytes.unwrap()[at..at + segment.len as usize];
            memory.slice(segment.addr, here.len()).unwrap().write(0, here);
            at += here.len();
        }
        Place { segments, bytes: bytes.map(<[u8]>::to_vec), len: parts.iter().sum() }
    }

    /// One segment between guards.
    pub fn take(&mut self, memory: &OwnMemory, len: usize) -> Segment {
        self.piece(memory, (len, None))
    }

    fn piece(&mut self, memory: &OwnMemory, (len, offset): Piece) -> Segment {
        let mut at = self.next + GUARD_LEN;
        if let Some(offset) = offset {
            // Every other page stays empty, so that no two pieces touch.
            at = at.next_multiple_of(PAGE) + offset;
        }
        self.next = at + len + GUARD_LEN;
        assert!(self.next <= self.len, "the guest has too little memory");
        let addr = GuestAddr(self.start.0 + at as u64);
        let around = GuestAddr(addr.0 - GUARD_LEN as u64);
        let slice = memory.slice(around, len + 2 * GUARD_LEN).unwrap();
        slice.fill(GUARD);
        memory.slice(addr, len).unwrap().fill(UNTOUCHED);
        Segment { addr, len: len as u32 }
    }
}

impl Place {
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Its bytes may change.
    pub fn forget(&mut self) {
        self.bytes = None;
    }

    pub fn read(&self, memory: &OwnMemory) -> Vec<u8> {
        self.segments.iter().flat_map(|segment| read(memory, segment.addr, segment.len as usize)).collect()
    }

    /// Nobody has written into it or beside it.
    pub fn check(&self, memory: &OwnMemory) {
        self.check_guards(memory);
        if let Some(bytes) = &self.bytes {
            assert!(self.read(memory) == *bytes, "readable memory was written to");
        }
    }

    /// Nobody has written beside it.
    pub fn check_guards(&self, memory: &OwnMemory) {
        for segment in &self.segments {
            let len = u64::from(segment.len);
            for at in [segment.addr.0 - GUARD_LEN as u64, segment.addr.0 + len] {
                let guard = read(memory, GuestAddr(at), GUARD_LEN);
                assert!(guard.iter().all(|byte| *byte == GUARD), "memory beside a buffer was written to");
            }
        }
    }
}

fn read(memory: &OwnMemory, addr: GuestAddr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.slice(addr, len).unwrap().read(0, &mut bytes);
    bytes
}
