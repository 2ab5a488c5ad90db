//! From a decided burst to the destinations of its frames.

use memory::MemoryView;
use runtime::rings::{Rings, Slot, SlotId};
use virtqueue::{Broken, DeviceRing, Ring};

use crate::frame::{
    Frame, Gso, Head, Meta, NetHeader, Offloads, Packet, Scratch, TAG_LEN, Tag, Work, emit, hash, needs_work,
};
use crate::port::Port;
use crate::service::Steering;
use crate::stats::Lane;
use crate::switch::{Direction, Drop, Mirror, PortId, Switch, TagEdit};

use super::burst::{Burst, ETHERNET, Frames, each};
use super::cross::Sender;
use super::receive::{Filling, Form, Intake, Sink, Tally};
use super::{Kind, RingState};

/// Bytes of a UDP header.
const UDP: usize = 8;
/// A frame that is cut into more segments than this is finely cut: no sender does that whose packets are near 1500 bytes.
const FINE: usize = 64;
/// Most segments of finely cut frames in one stride, of which a guest could make the work of a second: as many as segments of
/// 536 bytes, which every host takes (RFC 9293 §3.7.1), are in a stride of the largest frames.
const FINE_MOST: usize = 4096;

/// Where the frames of a burst are.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// In chains of this transmit ring.
    Ring(SlotId),
    /// In buffers of our own.
    Own(&'a MemoryView),
}

/// What frames are changed with on their way out.
pub(super) struct Tools {
    scratch: Scratch,
    /// A head with another tag.
    edited: Head,
    /// Segments of finely cut frames that this stride may still be made into.
    fine: usize,
}

impl Tools {
    pub fn new() -> Self {
        Self { scratch: Scratch::new(), edited: Head::new(), fine: FINE_MOST }
    }

    /// A stride begins: its finely cut frames have not been worked on.
    pub fn begin_stride(&mut self) {
        self.fine = FINE_MOST;
    }

    /// Whether this stride had finely cut frames.
    pub fn has_cut_finely(&self) -> bool {
        self.fine < FINE_MOST
    }
}

/// How frames leave to one port.
pub(super) struct Egress<'a> {
    pub dest: PortId,
    pub port: &'a Port,
    pub lane: &'a Lane,
    pub steering: Option<&'a Steering>,
    pub switch: &'a mut Switch,
    pub tools: &'a mut Tools,
    pub now: u64,
    /// The switch has let them pass already: copies of a mirror, and what has crossed from another worker.
    pub admitted: bool,
}

impl Egress<'_> {
    /// Hands `frames` of a burst to `sink`, as the receiver can take them.
    #[inline]
    fn run<S: Sink>(
        &mut self,
        burst: &Burst,
        view: &MemoryView,
        frames: Frames,
        can: Offloads,
        sink: &mut S,
    ) {
        let mtu = usize::from(self.port.mtu());
        let longest = if mtu == 0 { usize::MAX } else { mtu + ETHERNET };
        let hashed = self.steering.is_some_and(|steering| steering.report);
        // The leader of frames that leave as they came, unasked.
        let mut plain = None;
        for place in each(frames) {
            let entry = burst.entry(place);
            let unasked = self.admitted || plain == Some(entry.leader);
            let put = if unasked && entry.plain && entry.len <= longest && !hashed {
                sink.put_plain(entry.head.as_slice(), burst.body(place, view))
            } else {
                self.asked(burst, view, place, can, &mut plain, sink)
            };
            if let Err(why) = put {
                self.lane.drop_out(why, 1);
            }
        }
    }

    /// A frame that the switch is asked about, or that something is left to be done with.
    #[inline(never)]
    fn asked<S: Sink>(
        &mut self,
        burst: &Burst,
        view: &MemoryView,
        place: usize,
        can: Offloads,
        plain: &mut Option<u8>,
        sink: &mut S,
    ) -> Result<(), Drop> {
        let edit = if self.admitted { TagEdit::None } else { self.admit(burst, place, plain)? };
        let Tools { scratch, edited: copy, fine } = &mut *self.tools;
        let mut frame = burst.frame(place, view);
        if edit != TagEdit::None {
            frame = edited(&frame, edit, copy).ok_or(Drop::Malformed)?;
        }
        let longest = match usize::from(self.port.mtu()) {
            0 => usize::MAX,
            mtu => mtu + header_len(frame.head),
        };
        if frame.header.gso == Gso::None && frame.len() > longest {
            return Err(Drop::TooLong);
        }
        if let Some(steering) = self.steering.filter(|steering| steering.report) {
            let entry = burst.entry(place);
            frame.header.hash = Some(steering.rss.report(&entry.head, &burst.leader(place).meta));
        }
        if needs_work(&frame.header, can) {
            let outlet = Outlet { scratch, fine, lane: self.lane, longest };
            outlet.emit(&frame, can, sink)
        } else {
            sink.put(&frame.packet())
        }
    }

    fn admit(&mut self, burst: &Burst, place: usize, plain: &mut Option<u8>) -> Result<TagEdit, Drop> {
        let (entry, leader) = (burst.entry(place), burst.leader(place));
        if leader.meta.tag.is_none() && self.switch.is_plain_egress(self.dest, &leader.verdict) {
            *plain = Some(entry.leader);
            return Ok(TagEdit::None);
        }
        self.switch.egress(self.dest, &leader.verdict, &leader.meta, &entry.head, entry.len, self.now)
    }

    /// Delivers into a receive ring. Not published yet.
    pub fn fill_ring(
        &mut self,
        burst: &Burst,
        view: &MemoryView,
        frames: Frames,
        (slot, mem): (&mut Slot<RingState>, &MemoryView),
        intake: &mut Intake,
    ) {
        if mem.table().failed() {
            slot.break_ring(Broken::Refused("guest memory is shorter than announced"));
        }
        let tally = match &mut slot.queue.ring {
            Ring::Split(ring) => self.fill(burst, view, frames, (ring, mem), intake),
            Ring::Packed(ring) => self.fill(burst, view, frames, (ring, mem), intake),
        };
        account(slot, self.port, self.lane, tally);
    }

    #[inline]
    fn fill<R: DeviceRing>(
        &mut self,
        burst: &Burst,
        view: &MemoryView,
        frames: Frames,
        (ring, mem): (&mut R, &MemoryView),
        intake: &mut Intake,
    ) -> Tally {
        let form = Form { header: self.port.header_size(), mergeable: self.port.mergeable() };
        let count = frames.count_ones() as usize;
        let mut filling = Filling::begin(ring, mem, intake, form, count);
        let can = self.port.offloads();
        self.run(burst, view, frames, can, &mut filling);
        filling.end()
    }

    /// Delivers by `send`, which takes frames with what `can` says left undone.
    pub fn by(
        &mut self,
        burst: &Burst,
        view: &MemoryView,
        frames: Frames,
        can: Offloads,
        send: impl FnMut(&Packet<'_>) -> Result<(), Drop>,
    ) -> Tally {
        let mut sending = Sending { send, tally: Tally::default() };
        self.run(burst, view, frames, can, &mut sending);
        sending.tally
    }

    /// Delivers to the worker that has a ring of the port.
    pub fn cross(&mut self, burst: &Burst, view: &MemoryView, frames: Frames, sender: &mut Sender) {
        let dest = self.dest;
        let tally = self.by(burst, view, frames, Offloads::ALL, |packet| sender.send(dest, packet));
        self.lane.crossed.add(tally.frames);
    }

    /// Records what the port gets, where that is asked for; the port to which copies go, if it is a port.
    pub fn mirror(&mut self, burst: &Burst, view: &MemoryView, frames: Frames) -> Option<PortId> {
        match self.switch.mirror(self.dest, Direction::In)? {
            Mirror::Port(port) => Some(*port),
            Mirror::File(capture) => {
                for place in each(frames) {
                    capture.record(self.dest, Direction::In, &burst.frame(place, view).packet());
                }
                None
            }
        }
    }
}

/// Counts what was put into a receive ring, and gives the ring up if it turns out to be broken.
#[inline]
pub(super) fn account(slot: &mut Slot<RingState>, port: &Port, lane: &Lane, tally: Tally) {
    slot.stats.requests.add(tally.chains);
    lane.sent.add(tally.frames, tally.bytes);
    if let Some(traffic) = port.stats.queue(slot.index) {
        traffic.add(tally.frames, tally.bytes);
    }
    if let Some(why) = slot.queue.ring.broken() {
        slot.break_ring(why);
    }
}

/// A sink that is a function.
struct Sending<F> {
    send: F,
    tally: Tally,
}

impl<F: FnMut(&Packet<'_>) -> Result<(), Drop>> Sink for Sending<F> {
    fn put(&mut self, packet: &Packet<'_>) -> Result<(), Drop> {
        (self.send)(packet)?;
        self.tally.frames += 1;
        self.tally.bytes += packet.len() as u64;
        Ok(())
    }
}

/// Bytes of the Ethernet header, with its tags, of which there may be two.
#[inline]
pub(super) fn header_len(head: &Head) -> usize {
    const TAGGED: usize = ETHERNET + TAG_LEN;
    match head.tag() {
        None => ETHERNET,
        Some(_) if matches!(head.as_slice().get(TAGGED - 2..TAGGED), Some([0x81, 0] | [0x88, 0xa8])) => {
            TAGGED + TAG_LEN
        }
        Some(_) => TAGGED,
    }
}

/// The frame with its tag changed, on a copy of its head: other destinations get another one.
#[cold]
fn edited<'a>(frame: &Frame<'a>, edit: TagEdit, copy: &'a mut Head) -> Option<Frame<'a>> {
    copy.clone_from(frame.head);
    match edit {
        TagEdit::None => {}
        TagEdit::Push(tci) => copy.push_tag(Tag::new(tci)).ok()?,
        TagEdit::Pop => drop(copy.pop_tag()?),
        TagEdit::Set(tci) => drop(copy.set_tci(tci)),
    }
    let mut header = frame.header;
    header.shift(edit.growth() as i16);
    Some(Frame { header, head: copy, body: frame.body })
}

/// What frames with something left undone go through.
struct Outlet<'a> {
    scratch: &'a mut Scratch,
    fine: &'a mut usize,
    lane: &'a Lane,
    /// Bytes that no frame may exceed, nor any segment.
    longest: usize,
}

impl Outlet<'_> {
    /// Does what the sender left undone and the receiver cannot do.
    fn emit<S: Sink>(self, frame: &Frame<'_>, can: Offloads, sink: &mut S) -> Result<(), Drop> {
        let NetHeader { gso, gso_size, .. } = frame.header;
        let finely = gso != Gso::None && frame.len() > FINE * usize::from(gso_size);
        if finely && *self.fine == 0 {
            return Err(Drop::BadOffload);
        }
        let (mut outcome, mut made) = (Ok(()), 0);
        let work = emit(frame, can, self.scratch, |packet| {
            made += 1;
            outcome = if longest_of(packet) > self.longest { Err(Drop::TooLong) } else { sink.put(packet) };
            outcome.is_ok()
        });
        match work.map_err(|_| Drop::BadOffload)? {
            Work::Passed => {}
            Work::Checksummed => self.lane.checksummed.add(1),
            Work::Segmented(_) => {
                self.lane.segmented.add(1);
                *self.fine = self.fine.saturating_sub(if finely { made } else { 0 });
            }
        }
        outcome
    }
}

/// Bytes of the longest segment that is, or is to be, made of a packet.
#[inline]
fn longest_of(packet: &Packet<'_>) -> usize {
    let NetHeader { gso, hdr_len, gso_size, .. } = packet.header;
    let (headers, payload) = (usize::from(hdr_len), usize::from(gso_size));
    match gso {
        Gso::None => packet.len(),
        // Only the network header is repeated.
        Gso::Udp => headers.saturating_sub(UDP) + payload,
        _ => headers + payload,
    }
}

/// Runs `deliver` with the memory of the source, the ring at `to` and its memory; `None` when one is not there.
pub(super) fn with_ends<T>(
    rings: &mut Rings<RingState>,
    source: Source<'_>,
    to: SlotId,
    deliver: impl FnOnce(&MemoryView, &mut Slot<RingState>, &MemoryView) -> T,
) -> Option<T> {
    match source {
        Source::Ring(from) => {
            let [(_, view), (slot, mem)] = rings.pair(from, to)?;
            Some(deliver(view, slot, mem))
        }
        Source::Own(view) => {
            let (slot, mem) = rings.with_view(to)?;
            Some(deliver(view, slot, mem))
        }
    }
}

/// Runs `deliver` with the memory of the source.
pub(super) fn with_source<T>(
    rings: &mut Rings<RingState>,
    source: Source<'_>,
    deliver: impl FnOnce(&MemoryView) -> T,
) -> Option<T> {
    match source {
        Source::Ring(from) => rings.with_view(from).map(|(_, view)| deliver(view)),
        Source::Own(view) => Some(deliver(view)),
    }
}

/// The receive rings of a port on this worker, and how frames are spread over them.
#[derive(Default)]
pub(super) struct ReceiveRings {
    /// By ascending pair.
    rings: Vec<(u16, SlotId)>,
}

/// Where a frame is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a ring of this worker.
    Here(SlotId),
    /// In a ring of another worker.
    Worker(usize),
    /// Nowhere: no ring takes frames.
    Nowhere,
}

impl ReceiveRings {
    /// Looks again which rings of the port there are.
    pub fn refresh(&mut self, rings: &Rings<RingState>, id: PortId) {
        self.rings.clear();
        let mine = |slot: &&Slot<RingState>| slot.state.port == id && slot.state.kind == Kind::Receive;
        self.rings.extend(
            rings.iter().filter(mine).filter(|slot| slot.takes()).map(|slot| (slot.index / 2, slot.id)),
        );
        self.rings.sort_unstable();
    }

    /// The pairs.
    pub fn pairs(&self) -> u32 {
        self.rings.iter().fold(0, |set, (pair, _)| set | 1 << pair)
    }

    /// The one ring that all frames go to, if there is no choice.
    #[inline]
    pub fn only(&self, port: &Port, workers: usize) -> Option<Place> {
        match self.rings[..] {
            [(_, slot)] if workers == 1 || port.receiving().count_ones() <= 1 => Some(Place::Here(slot)),
            [] if port.receiving() == 0 => Some(Place::Nowhere),
            _ => None,
        }
    }

    /// The ring for a frame: the one that the receiver's table says; else by a hash of the flow, a ring of this worker if
    /// there is one.
    pub fn choose(
        &self,
        port: &Port,
        steering: Option<&Steering>,
        (head, meta): (&Head, &Meta),
        workers: usize,
    ) -> Place {
        let receiving = port.receiving() & active(port);
        if let Some(pair) = steering.and_then(|steering| steering.pair(head, meta))
            && receiving >> pair & 1 == 1
        {
            return self.place_of(pair, workers);
        }
        let here = self.rings.iter().filter(|(pair, _)| receiving >> pair & 1 == 1);
        let hash = hash::flow(head, meta) as usize;
        match here.clone().count() {
            0 => match receiving.count_ones() {
                0 => Place::Nowhere,
                n => self.place_of(nth(receiving, hash as u32 % n), workers),
            },
            n => here.clone().nth(hash % n).map_or(Place::Nowhere, |(_, slot)| Place::Here(*slot)),
        }
    }

    fn place_of(&self, pair: u16, workers: usize) -> Place {
        match self.rings.iter().find(|ring| ring.0 == pair) {
            Some((_, slot)) => Place::Here(*slot),
            None => Place::Worker(usize::from(pair) % workers),
        }
    }
}

/// The pairs the driver uses, one bit each.
fn active(port: &Port) -> u32 {
    1u32.checked_shl(port.active_pairs().into()).map_or(u32::MAX, |bit| bit - 1)
}

/// The pair of the `n`-th bit of a set that has more.
fn nth(mut set: u32, n: u32) -> u16 {
    (0..n).for_each(|_| set &= set - 1);
    set.trailing_zeros() as u16
}
