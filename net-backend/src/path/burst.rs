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

/// Bytes of an Ethernet header without tags.
pub(super) const ETHERNET: usize = 14;

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
    /// Nothing is left undone: `header` is [`NetHeader::PLAIN`].
    pub plain: bool,
    /// The frame of the burst whose `meta` and `verdict` are this one's, too.
    pub leader: u8,
    /// Bytes of the frame.
    pub len: usize,
    /// Bytes of its ranges that come before the body: virtio-net header and head.
    skip: usize,
    /// Both addresses and the ethertype, which overlap.
    pub key: Key,
    /// Addresses and tag, of a leader.
    pub meta: Meta,
    /// Where it goes, of a leader.
    pub verdict: Verdict,
    /// Its first bytes.
    pub head: Head,
}

/// The first [`ETHERNET`] bytes of a frame, to be compared.
pub(super) type Key = (u64, u64);

#[inline]
fn key(head: &[u8]) -> Option<Key> {
    let front = head.first_chunk::<8>()?;
    let back = head.get(ETHERNET - 8..)?.first_chunk::<8>()?;
    Some((u64::from_ne_bytes(*front), u64::from_ne_bytes(*back)))
}

impl Entry {
    fn new() -> Self {
        let none = crate::frame::MacAddr([0; 6]);
        Self {
            header: NetHeader::PLAIN,
            plain: true,
            leader: 0,
            len: 0,
            skip: 0,
            key: (0, 0),
            meta: Meta { dst: none, src: none, tag: None, ethertype: 0 },
            verdict: Verdict { vlan: 0, to: To::None(Drop::NoRoute) },
            head: Head::new(),
        }
    }

    /// Reads the addresses and the tag, and makes it a leader.
    pub fn parse(&mut self, place: usize) -> Result<(), Drop> {
        self.meta = parse::l2(&self.head).map_err(|_| Drop::Malformed)?;
        self.leader = place as u8;
        Ok(())
    }
}

/// Frames in work, up to 32. Lives as long as its worker and allocates only until it has seen the largest frame.
pub struct Burst {
    entries: Box<[Entry; STRIDE]>,
    /// The chains of a burst from a transmit ring.
    chains: Box<[Chain; STRIDE]>,
    /// The buffers of a burst from elsewhere, and where those of each frame are.
    ranges: Vec<HostRange>,
    spans: [(usize, usize); STRIDE],
    from_ring: bool,
    len: usize,
    /// Most frames that [`push`](Self::push) is to add.
    limit: usize,
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
            limit: STRIDE,
            opened: 0,
        }
    }

    /// How many more frames it takes.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.len)
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
        header.check_place(&entry.head).map_err(|_| Drop::BadOffload)?;
        (entry.header, entry.len, entry.skip) = (header, len, head);
        entry.plain = header == NetHeader::PLAIN;
        entry.key = key(entry.head.as_slice()).ok_or(Drop::Runt)?;
        entry.parse(place)?;
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
        self.clear_for(STRIDE);
    }

    /// The same, for at most so many frames.
    pub(super) fn clear_for(&mut self, frames: usize) {
        self.ranges.clear();
        self.from_ring = false;
        (self.len, self.opened) = (0, 0);
        self.limit = frames.min(STRIDE);
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

    /// The entry that has the addresses and the verdict of frame `place`.
    #[inline]
    pub(super) fn leader(&self, place: usize) -> &Entry {
        &self.entries[usize::from(self.entries[place].leader)]
    }

    /// Frame `place`, whose source's memory is `view`.
    #[inline]
    pub(super) fn frame<'m>(&'m self, place: usize, view: &'m MemoryView) -> Frame<'m> {
        let entry = &self.entries[place];
        Frame { header: entry.header, head: &entry.head, body: self.body(place, view) }
    }

    /// What follows the head of frame `place`.
    #[inline]
    pub(super) fn body<'m>(&'m self, place: usize, view: &'m MemoryView) -> Body<'m> {
        let entry = &self.entries[place];
        match entry.len - entry.head.len() {
            0 => Body::empty(view),
            rest => Body::new(view, self.ranges_of(place), entry.skip, rest),
        }
    }

    #[inline]
    fn ranges_of(&self, place: usize) -> &[HostRange] {
        if self.from_ring {
            return self.chains[place].readable();
        }
        let (first, count) = self.spans[place];
        &self.ranges[first..first + count]
    }

    /// Takes up to `want` chains from a transmit ring, of those that were fetched, and asks for their first bytes.
    #[inline]
    pub(super) fn take<R: DeviceRing>(&mut self, ring: &mut R, mem: &MemoryView, want: usize) -> usize {
        self.clear();
        self.from_ring = true;
        self.len = ring.next_batch(mem, &mut self.chains[..want.min(STRIDE)]);
        self.chains[..self.len].iter().for_each(ask_for);
        self.len
    }

    /// The same where `admit` is to be asked, with the length of each chain. The first one that it refuses goes back to the
    /// ring and ends the burst.
    pub(super) fn take_admitted<R: DeviceRing>(
        &mut self,
        ring: &mut R,
        mem: &MemoryView,
        want: usize,
        mut admit: impl FnMut(u64) -> bool,
    ) -> usize {
        self.clear();
        self.from_ring = true;
        for chain in &mut self.chains[..want.min(STRIDE)] {
            if ring.next(mem, chain).is_err() {
                break;
            }
            if !admit(chain.readable_len()) {
                // It is the newest one, so that the ring takes it back.
                ring.unfetch(chain);
                break;
            }
            ask_for(chain);
            self.len += 1;
        }
        self.len
    }

    /// Copies header and head of frame `place` of a transmit ring.
    #[inline]
    pub(super) fn open(&mut self, place: usize, mem: &MemoryView, size: HeaderSize) -> Result<(), Drop> {
        let (entry, chain) = (&mut self.entries[place], &self.chains[place]);
        // A chain is shorter than 4 GiB.
        let len = (chain.readable_len() as usize).checked_sub(size.len()).ok_or(Drop::Malformed)?;
        check_len(len)?;
        let head = len.min(HEAD);
        (entry.len, entry.skip) = (len, size.len() + head);
        let into = entry.head.fill(head);
        match read_plain(mem, chain.readable(), size, into) {
            true => (entry.plain, entry.header) = (true, NetHeader::PLAIN),
            false => {
                entry.header = read(mem, chain.readable(), size, into)?;
                entry.header.check(len).map_err(|_| Drop::BadOffload)?;
                entry.header.check_place(&entry.head).map_err(|_| Drop::BadOffload)?;
                entry.plain = entry.header == NetHeader::PLAIN;
            }
        }
        entry.key = key(entry.head.as_slice()).ok_or(Drop::Runt)?;
        self.opened |= 1 << place;
        Ok(())
    }

    /// Hands the chains back to their transmit ring, in the order they were taken; not published yet.
    #[inline]
    pub(super) fn give_back<R: DeviceRing>(&mut self, ring: &mut R, mem: &MemoryView) {
        let chains = &mut self.chains[..self.len];
        ring.complete_batch(mem, chains, &[0; STRIDE]);
        chains.iter_mut().for_each(Chain::trim);
        self.len = 0;
    }
}

/// Asks for the header and the first bytes of a frame.
#[inline]
fn ask_for(chain: &Chain) {
    if let [first, rest @ ..] = chain.readable() {
        first.prefetch(0);
        first.prefetch(64);
        // The header may be alone in its buffer.
        if let [second, ..] = rest {
            second.prefetch(0);
            second.prefetch(64);
        }
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

/// Copies the first bytes of a frame that leaves nothing undone and whose first buffer holds them all. False: it is not such
/// a one, and `head` is worthless.
#[inline]
fn read_plain(mem: &MemoryView, ranges: &[HostRange], size: HeaderSize, head: &mut [u8]) -> bool {
    /// `flags`, of which a driver sets NEEDS_CSUM only, and `gso_type` (virtio 1.3 §5.1.6).
    const UNDONE: u16 = u16::from_le_bytes([crate::frame::flag::NEEDS_CSUM, 0xff]);
    let Some(first) = ranges.first().filter(|first| first.len >= size.len() + head.len()) else {
        return false;
    };
    let Some(slice) = mem.reenter(*first) else { return false };
    if slice.read_obj::<u16>(0).is_none_or(|undone| u16::from_le(undone) & UNDONE != 0) {
        return false;
    }
    slice.read(size.len(), head);
    true
}

/// Copies the virtio-net header and the first bytes of a frame, however they are spread over buffers (virtio 1.3 §2.7.4.3).
#[inline(never)]
fn read(
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
