//! Frames into the receive ring of a guest (virtio 1.3 §5.1.6.3, §5.1.6.4).

use memory::{GuestSlice, HostRange, MemoryView};
use virtqueue::{Broken, Chain, DeviceRing};

use crate::frame::{HeaderSize, NetHeader, Packet};
use crate::switch::Drop;

use super::burst::STRIDE;

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

/// Receive buffers that were taken from a ring and not filled yet. Taking them ahead of the frames lets their memory arrive
/// in the cache meanwhile. What is left at the end goes back to the ring, so that short of buffers a frame loses nothing but
/// itself.
#[derive(Default)]
pub(super) struct Intake {
    chains: Vec<Chain>,
    /// The first that is not filled.
    front: usize,
    /// How many were taken.
    taken: usize,
    /// How many the ring has still promised.
    granted: u16,
}

/// A receive ring that is being filled.
pub(super) struct Filling<'a, R: DeviceRing> {
    ring: &'a mut R,
    mem: &'a MemoryView,
    intake: &'a mut Intake,
    form: Form,
    /// What was put in so far.
    pub tally: Tally,
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
        (intake.front, intake.taken) = (0, 0);
        intake.granted = ring.fetch(frames.min(STRIDE) as u16);
        let mut filling = Self { ring, mem, intake, form, tally: Tally::default() };
        while filling.intake.granted > 0 && filling.take() {}
        filling
    }

    /// One more buffer; false when there is none.
    #[inline]
    fn take(&mut self) -> bool {
        let Intake { chains, taken, granted, .. } = &mut *self.intake;
        if *granted == 0 {
            *granted = self.ring.fetch(STRIDE as u16);
        }
        let Some(left) = granted.checked_sub(1) else { return false };
        if *taken == chains.len() {
            chains.push(Chain::new());
        }
        let chain = &mut chains[*taken];
        if self.ring.next(self.mem, chain).is_err() {
            *granted = 0;
            return false;
        }
        *granted = left;
        *taken += 1;
        if let Some(range) = chain.writable().first() {
            range.prefetch(0);
            range.prefetch_write(64);
        }
        true
    }

    /// Copies a frame into the next buffers and completes them, not published yet. On an error the buffers are still there
    /// for the next frame.
    #[inline]
    pub fn put(&mut self, packet: &Packet<'_>) -> Result<(), Drop> {
        let need = self.form.header.len() + packet.len();
        if self.intake.front == self.intake.taken && !self.refill() {
            return Err(Drop::NoReceiveBuffer);
        }
        let chain = &self.intake.chains[self.intake.front];
        let &[range] = chain.writable() else { return self.put_scattered(packet, need) };
        if range.len < need {
            return self.put_scattered(packet, need);
        }
        let slice = self.mem.reenter(range).ok_or(Drop::NoReceiveBuffer)?;
        write_header(slice, &packet.header, self.form.header);
        write_frame(slice, self.form.header.len(), packet);
        self.ring.complete(self.mem, chain, need as u32);
        self.intake.front += 1;
        self.count(1, packet.len());
        Ok(())
    }

    #[inline]
    fn count(&mut self, chains: usize, bytes: usize) {
        self.tally.frames += 1;
        self.tally.bytes += bytes as u64;
        self.tally.chains += chains as u64;
    }

    /// All buffers are filled: the next ones go to the front.
    #[cold]
    fn refill(&mut self) -> bool {
        (self.intake.front, self.intake.taken) = (0, 0);
        self.take()
    }

    /// A frame for several descriptors or several chains.
    #[inline(never)]
    fn put_scattered(&mut self, packet: &Packet<'_>, need: usize) -> Result<(), Drop> {
        let count = self.gather(need)?;
        let first = self.intake.front;
        let chains = &self.intake.chains[first..first + count];
        let mut cursor = Cursor::new(self.mem, chains);
        let header = NetHeader { num_buffers: count as u16, ..packet.header };
        cursor.write(&header.to_bytes()[..self.form.header.len()]);
        cursor.write(packet.head);
        packet.body.for_each(|piece| cursor.copy(piece));
        let mut left = need;
        for chain in &mut self.intake.chains[first..first + count] {
            let here = left.min(chain.writable_len() as usize);
            self.ring.complete(self.mem, chain, here as u32);
            chain.trim();
            left -= here;
        }
        self.intake.front += count;
        self.count(count, packet.len());
        Ok(())
    }

    /// How many buffers, from the front on, hold `need` bytes.
    fn gather(&mut self, need: usize) -> Result<usize, Drop> {
        let (mut room, mut count) = (0, 0);
        while room < need {
            if self.intake.front + count == self.intake.taken && !self.take() {
                return Err(Drop::NoReceiveBuffer);
            }
            let here = self.intake.chains[self.intake.front + count].writable_len() as usize;
            if here == 0 || count == 0 && here < self.form.header.len() {
                self.ring.break_with(Broken::Refused("a receive buffer is too small for its header"));
                return Err(Drop::NoReceiveBuffer);
            }
            room += here;
            count += 1;
            if !self.form.mergeable && room < need {
                return Err(Drop::TooLong);
            }
        }
        Ok(count)
    }

    /// Gives back what was not filled, the newest first, and says what was put in.
    #[inline]
    pub fn end(self) -> Tally {
        let Intake { chains, front, taken, .. } = self.intake;
        if front != taken {
            give_back(self.ring, &chains[*front..*taken]);
        }
        self.tally
    }
}

#[cold]
fn give_back<R: DeviceRing>(ring: &mut R, chains: &[Chain]) {
    for chain in chains.iter().rev() {
        let returned = ring.unfetch(chain);
        debug_assert!(returned, "the newest chain is given back");
    }
}

/// Writes the header of a frame in one buffer, unless it is there already: most headers are like the last one in that
/// buffer, and a line that is not written need not be fetched by the guest's processor.
#[inline]
fn write_header(slice: GuestSlice<'_>, header: &NetHeader, size: HeaderSize) {
    let bytes = NetHeader { num_buffers: 1, ..*header }.to_bytes();
    match size {
        HeaderSize::Legacy => write_changed::<10>(slice, &bytes),
        HeaderSize::Modern => write_changed::<12>(slice, &bytes),
        HeaderSize::Hash => write_changed::<20>(slice, &bytes),
    }
}

#[inline]
fn write_changed<const N: usize>(slice: GuestSlice<'_>, bytes: &[u8; NetHeader::MAX_LEN]) {
    let Some(new) = bytes.first_chunk::<N>() else { return };
    if slice.read_obj::<[u8; N]>(0) != Some(*new) {
        slice.write(0, new);
    }
}

/// Writes a frame behind its header; it fits.
#[inline]
fn write_frame(slice: GuestSlice<'_>, at: usize, packet: &Packet<'_>) {
    slice.write(at, packet.head);
    let mut at = at + packet.head.len();
    packet.body.for_each(|piece| {
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
