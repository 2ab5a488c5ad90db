//! The frames of one burst, between their source and their destinations.
//!
//! A frame's virtio-net header and its first bytes are copied into private memory once, and everything is decided on that
//! copy. The rest stays where it is: in the buffers of a transmit chain, or of an uplink, until every destination has it.

use memory::{HostRange, MemoryView};
use virtqueue::{Chain, DeviceRing};

use crate::frame::{Body, Frame, HEAD, Head, HeaderSize, Meta, NetHeader, parse};
use crate::switch::{Drop, To, Verdict};

/// Most frames in work at once: their private heads stay in the first-level cache, and a set of them is one word.
pub const STRIDE: usize = 32;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Longest frame (virtio 1.3 §5.1.6.3.1: 65,550 bytes, plus two VLAN tags): what is longer no receive buffer must hold.
pub const MAX_FRAME: usize = 65_550 + 8;

/// A set of frames of a burst: bit `i` is frame `i`.
pub(super) type Frames = u32;

/// The members of a set of frames, in order.
#[inline]
pub(super) fn each(mut frames: Frames) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (frames != 0).then(|| frames.trailing_zeros() as usize)?;
        frames &= frames - 1;
        Some(first)
    })
}

/// What is known of one frame.
pub(super) struct Entry {
    /// What the sender left undone.
    pub header: NetHeader,
    /// Addresses and tag.
    pub meta: Meta,
    /// Where it goes.
    pub verdict: Verdict,
    /// Bytes of the frame.
    pub len: usize,
    /// Bytes of its ranges that come before the body: virtio-net header and head.
    skip: usize,
    /// Its first bytes.
    pub head: Head,
}

impl Entry {
    fn new() -> Self {
        let none = crate::frame::MacAddr([0; 6]);
        Self {
            header: NetHeader::PLAIN,
            meta: Meta { dst: none, src: none, tag: None, ethertype: 0 },
            verdict: Verdict { vlan: 0, to: To::None(Drop::NoRoute) },
            len: 0,
            skip: 0,
            head: Head::new(),
        }
    }
}

/// Frames in work, up to [`STRIDE`]. Lives as long as its worker and allocates only until it has seen the largest frame.
pub struct Burst {
    entries: Box<[Entry; STRIDE]>,
    /// The chains of a burst from a transmit ring.
    chains: Box<[Chain; STRIDE]>,
    /// The buffers of a burst from elsewhere, and where those of each frame are.
    ranges: Vec<HostRange>,
    spans: [(usize, usize); STRIDE],
    from_ring: bool,
    len: usize,
    /// Those that turned out to be frames.
    opened: Frames,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            entries: Box::new(std::array::from_fn(|_| Entry::new())),
            chains: Box::new(std::array::from_fn(|_| Chain::new())),
            ranges: Vec::with_capacity(STRIDE),
            spans: [(0, 0); STRIDE],
            from_ring: false,
            len: 0,
            opened: 0,
        }
    }

    /// How many more frames it takes.
    pub fn room(&self) -> usize {
        STRIDE - self.len
    }

    /// Adds a frame that lies in `ranges` of `view`, from the destination address on. The first bytes are copied at once;
    /// the rest must stay until the burst is delivered. A frame that is too short or too long to be one is refused.
    ///
    /// # Panics
    /// When there is no [`room`](Self::room).
    pub fn push(&mut self, view: &MemoryView, header: NetHeader, ranges: &[HostRange]) -> Result<(), Drop> {
        let place = self.len;
        let entry = &mut self.entries[place];
        let len = ranges.iter().fold(0usize, |sum, range| sum.saturating_add(range.len));
        check_len(len)?;
        header.check(len).map_err(|_| Drop::BadOffload)?;
        let head = len.min(HEAD);
        if Body::new(view, ranges, 0, head).read(entry.head.fill(head)) < head {
            return Err(Drop::Malformed);
        }
        (entry.header, entry.len, entry.skip) = (header, len, head);
        entry.meta = parse::l2(&entry.head).map_err(|_| Drop::Malformed)?;
        self.spans[place] = (self.ranges.len(), ranges.len());
        self.ranges.extend_from_slice(ranges);
        self.opened |= 1 << place;
        self.len += 1;
        Ok(())
    }

    /// How many frames there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes it an empty burst, for [`push`](Self::push).
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.from_ring = false;
        (self.len, self.opened) = (0, 0);
    }

    /// The frames that could be read. The others are left with what was there before.
    pub(super) fn opened(&self) -> Frames {
        self.opened
    }

    #[inline]
    pub(super) fn entry(&self, place: usize) -> &Entry {
        &self.entries[place]
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, place: usize) -> &mut Entry {
        &mut self.entries[place]
    }

    /// Frame `place`, whose source's memory is `view`.
    #[inline]
    pub(super) fn frame<'m>(&'m self, place: usize, view: &'m MemoryView) -> Frame<'m> {
        let entry = &self.entries[place];
        let rest = entry.len - entry.head.len();
        let body = match rest {
            0 => Body::empty(view),
            _ => Body::new(view, self.ranges_of(place), entry.skip, rest),
        };
        Frame { header: entry.header, head: &entry.head, body }
    }

    #[inline]
    fn ranges_of(&self, place: usize) -> &[HostRange] {
        if self.from_ring {
            return self.chains[place].readable();
        }
        let (first, count) = self.spans[place];
        &self.ranges[first..first + count]
    }

    /// Takes up to `want` chains from a transmit ring, of those that were fetched, and asks for their first bytes. `admit`
    /// gets the length of each chain; the first one that it refuses goes back to the ring and ends the burst.
    #[inline]
    pub(super) fn take<R: DeviceRing>(
        &mut self,
        ring: &mut R,
        mem: &MemoryView,
        want: usize,
        mut admit: impl FnMut(u64) -> bool,
    ) -> usize {
        self.from_ring = true;
        (self.len, self.opened) = (0, 0);
        for chain in &mut self.chains[..want.min(STRIDE)] {
            if ring.next(mem, chain).is_err() {
                break;
            }
            if !admit(chain.readable_len()) {
                // It is the newest one, so that the ring takes it back.
                ring.unfetch(chain);
                break;
            }
            chain.readable().iter().take(2).for_each(|range| {
                range.prefetch(0);
                range.prefetch(64);
            });
            self.len += 1;
        }
        self.len
    }

    /// Copies header and head of frame `place` of a transmit ring, and reads its addresses.
    #[inline]
    pub(super) fn open(&mut self, place: usize, mem: &MemoryView, size: HeaderSize) -> Result<(), Drop> {
        let (entry, chain) = (&mut self.entries[place], &self.chains[place]);
        let total = usize::try_from(chain.readable_len()).map_err(|_| Drop::TooLong)?;
        let len = total.checked_sub(size.len()).ok_or(Drop::Malformed)?;
        check_len(len)?;
        let head = len.min(HEAD);
        (entry.len, entry.skip) = (len, size.len() + head);
        entry.header = read(mem, chain.readable(), size, entry.head.fill(head))?;
        if entry.header.flags != 0 {
            entry.header.check(len).map_err(|_| Drop::BadOffload)?;
        }
        entry.meta = parse::l2(&entry.head).map_err(|_| Drop::Malformed)?;
        self.opened |= 1 << place;
        Ok(())
    }

    /// Hands the chains back to their transmit ring, in the order they were taken; not published yet.
    #[inline]
    pub(super) fn give_back<R: DeviceRing>(&mut self, ring: &mut R, mem: &MemoryView) {
        for chain in &mut self.chains[..self.len] {
            ring.complete(mem, chain, 0);
            chain.trim();
        }
        self.len = 0;
    }
}

#[inline]
fn check_len(len: usize) -> Result<(), Drop> {
    match len {
        ..ETHERNET => Err(Drop::Runt),
        ETHERNET..=MAX_FRAME => Ok(()),
        _ => Err(Drop::TooLong),
    }
}

/// Copies the virtio-net header and the first bytes of a frame out of its buffers: each byte once.
#[inline]
fn read(
    mem: &MemoryView,
    ranges: &[HostRange],
    size: HeaderSize,
    head: &mut [u8],
) -> Result<NetHeader, Drop> {
    let first = ranges.first().ok_or(Drop::Malformed)?;
    if first.len < size.len() + head.len() {
        return read_scattered(mem, ranges, size, head);
    }
    let slice = mem.reenter(*first).ok_or(Drop::Malformed)?;
    // All that matters of a header from a driver is in its first ten bytes.
    let header: [u8; 10] = slice.read_obj(0).ok_or(Drop::Malformed)?;
    slice.read(size.len(), head);
    NetHeader::parse(&header).map_err(|_| Drop::BadOffload)
}

/// The same for a header in a buffer of its own, and for any other layout (virtio 1.3 §2.7.4.3).
#[inline(never)]
fn read_scattered(
    mem: &MemoryView,
    ranges: &[HostRange],
    size: HeaderSize,
    head: &mut [u8],
) -> Result<NetHeader, Drop> {
    let mut header = [0; NetHeader::MAX_LEN];
    let header = &mut header[..size.len()];
    let whole = |wanted: usize, read: usize| if read == wanted { Ok(()) } else { Err(Drop::Malformed) };
    whole(header.len(), Body::new(mem, ranges, 0, header.len()).read(header))?;
    whole(head.len(), Body::new(mem, ranges, size.len(), head.len()).read(head))?;
    NetHeader::parse(header).map_err(|_| Drop::BadOffload)
}
