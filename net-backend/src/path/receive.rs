//! Frames into the receive ring of a guest (virtio 1.3 §5.1.6.3, §5.1.6.4).

use memory::{GuestSlice, HostRange, MemoryView};
use virtqueue::{Broken, Chain, DeviceRing};

use crate::frame::{Body, HeaderSize, NetHeader, Packet};
use crate::switch::Drop;

use super::burst::STRIDE;

/// Most buffers of one frame: the longest one in buffers of 65 bytes. Without a limit a guest whose buffers are no larger than
/// their headers would have thousands of them taken and given back for each frame that others send.
const MOST_BUFFERS: usize = 1024;

/// How a port receives.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Its virtio-net header.
    pub header: HeaderSize,
    /// Whether a frame may fill several buffers (MRG_RXBUF).
    pub mergeable: bool,
}

/// What has happened in one delivery.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub frames: u64,
    pub bytes: u64,
    pub chains: u64,
}

/// Where frames go, one by one.
pub(super) trait Sink {
    /// Takes a frame.
    fn put(&mut self, packet: &Packet<'_>) -> Result<(), Drop>;

    /// Takes a frame with nothing left undone.
    #[inline]
    fn put_plain(&mut self, head: &[u8], body: Body<'_>) -> Result<(), Drop> {
        self.put(&Packet { header: NetHeader::PLAIN, head, body })
    }
}

/// Receive buffers that were taken from a ring and not filled yet. Taking them ahead of the frames lets their memory arrive
/// in the cache meanwhile. What is left at the end goes back to the ring, so that short of buffers a frame loses nothing but
/// itself.
#[derive(Default)]
pub(super) struct Intake {
    chains: Vec<Chain>,
    /// Bytes written to each.
    written: Vec<u32>,
    /// The first that is filled and not completed.
    filled: usize,
    /// The first that is not filled.
    front: usize,
    /// How many were taken.
    taken: usize,
    /// How many the ring has still promised.
    granted: usize,
}

impl Intake {
    fn reserve(&mut self, chains: usize) {
        if self.chains.len() < chains {
            self.chains.resize_with(chains, Chain::new);
            self.written.resize(chains, 0);
        }
    }
}

/// A receive ring that is being filled.
pub(super) struct Filling<'a, R: DeviceRing> {
    ring: &'a mut R,
    mem: &'a MemoryView,
    intake: &'a mut Intake,
    form: Form,
    /// What was put in so far.
    tally: Tally,
}

impl<'a, R: DeviceRing> Filling<'a, R> {
    /// Takes a buffer for each of `frames` frames, as far as there are.
    #[inline]
    pub fn begin(
        ring: &'a mut R,
        mem: &'a MemoryView,
        intake: &'a mut Intake,
        form: Form,
        frames: usize,
    ) -> Self {
        (intake.filled, intake.front, intake.taken, intake.granted) = (0, 0, 0, 0);
        let mut filling = Self { ring, mem, intake, form, tally: Tally::default() };
        filling.take(frames);
        filling
    }

    /// Takes up to `count` buffers more; false when there are none.
    #[inline]
    fn take(&mut self, count: usize) -> bool {
        let intake = &mut *self.intake;
        if intake.granted == 0 {
            intake.granted = self.ring.fetch(STRIDE as u16).into();
        }
        let count = count.min(intake.granted).min(STRIDE);
        intake.reserve(intake.taken + count);
        let chains = &mut intake.chains[intake.taken..][..count];
        let taken = self.ring.next_batch(self.mem, chains);
        for range in chains[..taken].iter().filter_map(|chain| chain.writable().first()) {
            range.prefetch(0);
            range.prefetch_write(64);
        }
        intake.granted = if taken == count { intake.granted - count } else { 0 };
        intake.taken += taken;
        taken > 0
    }

    #[inline]
    fn count(&mut self, chains: usize, bytes: usize) {
        self.tally.frames += 1;
        self.tally.bytes += bytes as u64;
        self.tally.chains += chains as u64;
    }

    /// Completes what is filled, not published yet.
    #[inline]
    fn complete(&mut self) {
        let Intake { chains, written, filled, front, .. } = &mut *self.intake;
        self.ring.complete_batch(self.mem, &chains[*filled..*front], &written[*filled..*front]);
        *filled = *front;
    }

    /// Another buffer, when all that were taken are filled.
    #[cold]
    fn refill(&mut self) -> bool {
        self.complete();
        (self.intake.filled, self.intake.front, self.intake.taken) = (0, 0, 0);
        self.take(1)
    }

    /// The front buffer, if it has one descriptor and room for `need` bytes.
    #[inline(always)]
    fn single(&self, need: usize) -> Option<GuestSlice<'a>> {
        let chain = self.intake.chains[..self.intake.taken].get(self.intake.front)?;
        match chain.writable() {
            [range] if range.len >= need => self.mem.reenter(*range),
            _ => None,
        }
    }

    #[inline(always)]
    fn filled(&mut self, need: usize) {
        self.intake.written[self.intake.front] = need as u32;
        self.intake.front += 1;
        self.count(1, need - self.form.header.len());
    }

    /// A frame for several descriptors or several chains.
    #[inline(never)]
    fn put_scattered(&mut self, packet: &Packet<'_>, need: usize) -> Result<(), Drop> {
        if self.intake.front == self.intake.taken && !self.refill() {
            return Err(Drop::NoReceiveBuffer);
        }
        let count = self.gather(need)?;
        let first = self.intake.front;
        let chains = &self.intake.chains[first..first + count];
        let mut cursor = Cursor::new(self.mem, chains);
        let header = NetHeader { num_buffers: count as u16, ..packet.header };
        cursor.write(&header.to_bytes()[..self.form.header.len()]);
        cursor.write(packet.head);
        packet.body.for_each(|piece| cursor.copy(piece));
        let mut left = need;
        for place in first..first + count {
            let here = left.min(chains[place - first].writable_len() as usize);
            self.intake.written[place] = here as u32;
            left -= here;
        }
        self.intake.front += count;
        self.count(count, need - self.form.header.len());
        Ok(())
    }

    /// Where a frame of up to `longest` bytes is to be written, from byte `skip` of it on: the buffers behind what comes
    /// before. False when there are too few.
    pub fn lay_out(&mut self, skip: usize, longest: usize, ranges: &mut Vec<HostRange>) -> bool {
        ranges.clear();
        if self.intake.front == self.intake.taken && !self.refill() {
            return false;
        }
        let Ok(count) = self.gather(self.form.header.len() + longest) else { return false };
        let mut skip = self.form.header.len() + skip;
        let chains = &self.intake.chains[self.intake.front..][..count];
        for range in chains.iter().flat_map(|chain| chain.writable()) {
            let before = skip.min(range.len);
            skip -= before;
            ranges.extend(range.sub(before, range.len - before).filter(|range| !range.is_empty()));
        }
        true
    }

    /// A frame of `len` bytes of which all but the head is where [`lay_out`](Self::lay_out) has said.
    pub fn put_in_place(&mut self, header: NetHeader, head: &[u8], len: usize) -> Result<(), Drop> {
        let packet = Packet { header, head, body: Body::empty(self.mem) };
        self.put_scattered(&packet, self.form.header.len() + len)
    }

    /// How many buffers, from the front on, hold `need` bytes.
    fn gather(&mut self, need: usize) -> Result<usize, Drop> {
        let (mut room, mut count) = (0, 0);
        while room < need {
            if self.intake.front + count == self.intake.taken && !self.take(1) {
                return Err(Drop::NoReceiveBuffer);
            }
            let here = self.intake.chains[self.intake.front + count].writable_len() as usize;
            // virtio 1.3 §5.1.6.3.1: each of them holds a header at least.
            if here < self.form.header.len() {
                self.ring.break_with(Broken::Refused("a receive buffer is too small for its header"));
                return Err(Drop::NoReceiveBuffer);
            }
            room += here;
            count += 1;
            if room < need && (!self.form.mergeable || count == MOST_BUFFERS) {
                return Err(Drop::TooLong);
            }
        }
        Ok(count)
    }

    /// Completes what was filled, gives back what was not, the newest first, and says what was put in.
    #[inline]
    pub fn end(mut self) -> Tally {
        self.complete();
        let Intake { chains, front, taken, .. } = &mut *self.intake;
        if front != taken {
            give_back(self.ring, &chains[*front..*taken]);
        }
        chains[..*taken].iter_mut().for_each(Chain::trim);
        self.tally
    }
}

impl<R: DeviceRing> Sink for Filling<'_, R> {
    /// Copies a frame into the next buffers. On an error the buffers are still there for the next frame.
    #[inline(never)]
    fn put(&mut self, packet: &Packet<'_>) -> Result<(), Drop> {
        let need = self.form.header.len() + packet.len();
        let Some(slice) = self.single(need) else { return self.put_scattered(packet, need) };
        write_header(slice, &packet.header, self.form.header);
        write_frame(slice, self.form.header.len(), packet.head, packet.body);
        self.filled(need);
        Ok(())
    }

    #[inline(always)]
    fn put_plain(&mut self, head: &[u8], body: Body<'_>) -> Result<(), Drop> {
        let need = self.form.header.len() + head.len() + body.len();
        let Some(slice) = self.single(need) else {
            return self.put(&Packet { header: NetHeader::PLAIN, head, body });
        };
        match self.form.header {
            HeaderSize::Legacy => write_changed(slice, &[0; 10]),
            HeaderSize::Modern => write_changed(slice, &PLAIN),
            HeaderSize::Hash => write_header(slice, &NetHeader::PLAIN, HeaderSize::Hash),
        }
        write_frame(slice, self.form.header.len(), head, body);
        self.filled(need);
        Ok(())
    }
}

/// [`NetHeader::PLAIN`] in its modern form: all zeroes but `num_buffers`.
const PLAIN: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

#[cold]
fn give_back<R: DeviceRing>(ring: &mut R, chains: &[Chain]) {
    for chain in chains.iter().rev() {
        let returned = ring.unfetch(chain);
        debug_assert!(returned, "the newest chain is given back");
    }
}

/// Writes the header of a frame in one buffer.
fn write_header(slice: GuestSlice<'_>, header: &NetHeader, size: HeaderSize) {
    let bytes = NetHeader { num_buffers: 1, ..*header }.to_bytes();
    match size {
        HeaderSize::Legacy => bytes.first_chunk::<10>().into_iter().for_each(|new| write_changed(slice, new)),
        HeaderSize::Modern => bytes.first_chunk::<12>().into_iter().for_each(|new| write_changed(slice, new)),
        HeaderSize::Hash => write_changed(slice, &bytes),
    }
}

/// Writes a header unless it is there already: most headers are like the last one in that buffer, and a line that is not
/// written need not be fetched by the guest's processor.
#[inline(always)]
fn write_changed<const N: usize>(slice: GuestSlice<'_>, new: &[u8; N]) {
    if slice.read_obj::<[u8; N]>(0) != Some(*new) {
        slice.write(0, new);
    }
}

/// Writes a frame behind its header; it fits.
#[inline(always)]
fn write_frame(slice: GuestSlice<'_>, at: usize, head: &[u8], body: Body<'_>) {
    slice.write(at, head);
    let mut at = at + head.len();
    if body.is_empty() {
        return;
    }
    body.for_each(|piece| {
        // The body is as long as its packet says, which was compared with the buffer.
        if let Some(place) = slice.sub(at, piece.len()) {
            piece.copy_to(place);
        }
        at += piece.len();
    });
}

/// Writes through the buffers of several chains.
struct Cursor<'a> {
    mem: &'a MemoryView,
    chains: &'a [Chain],
    /// What is left of the chain at the front.
    segments: &'a [HostRange],
    /// What is left of the segment at the front.
    place: Option<GuestSlice<'a>>,
}

impl<'a> Cursor<'a> {
    fn new(mem: &'a MemoryView, chains: &'a [Chain]) -> Self {
        Self { mem, chains, segments: &[], place: None }
    }

    /// Room for up to `len` bytes; `None` at the end.
    fn room(&mut self, len: usize) -> Option<GuestSlice<'a>> {
        let place = loop {
            if let Some(place) = self.place.take().filter(|place| !place.is_empty()) {
                break place;
            }
            match self.segments.split_first() {
                Some((segment, rest)) => {
                    self.segments = rest;
                    self.place = Some(self.mem.reenter(*segment)?);
                }
                None => {
                    let (chain, rest) = self.chains.split_first()?;
                    (self.chains, self.segments) = (rest, chain.writable());
                }
            }
        };
        let (here, rest) = place.split_at(len.min(place.len()))?;
        self.place = Some(rest);
        Some(here)
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(place) = self.room(bytes.len())
        {
            let (now, later) = bytes.split_at(place.len());
            place.write(0, now);
            bytes = later;
        }
    }

    fn copy(&mut self, piece: GuestSlice<'_>) {
        let mut done = 0;
        while done < piece.len()
            && let Some(place) = self.room(piece.len() - done)
            && let Some(part) = piece.sub(done, place.len())
        {
            part.copy_to(place);
            done += part.len();
        }
    }
}
