//! One queue: frames in and out of the buffers.
//!
//! A chunk is always in exactly one place. Those to receive into are with the kernel (fill ring, driver, receive ring) or
//! held by the burst that is being delivered; those to send from are free or with the kernel (transmit ring, driver,
//! completion ring). [`Buffers`] counts them.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use memory::{GuestAddr, HostRange, MemoryView};
use zerocopy::{Immutable, IntoBytes};

use super::attach::Attached;
use super::partial::{self, LOOK};
use super::ring::{Consumer, Desc, Producer};
use super::socket::Socket;
use super::umem::{Layout, TX_METADATA, TX_OFFSET, Umem};
use crate::frame::{NetHeader, Offloads, Packet};
use crate::path::Burst;
use crate::switch::Drop;
use crate::uplink::{UplinkCounters, UplinkQueue};

/// Most buffers of one received frame: 64 KiB in the smallest ones.
const MAX_PIECES: usize = 40;
/// Most buffers of one frame to be sent: the kernel makes the first the linear part of an `sk_buff`, and each other a
/// fragment, of which there are 17 (`MAX_SKB_FRAGS`).
const MAX_SENT_PIECES: usize = 17;
/// Most calls for one flush: a call takes the transmit budget, 32 on kernels that cannot set it.
const MAX_CALLS: usize = 64;
/// Addresses, ethertype and two tags.
const ETHERNET: usize = 14 + 8;
const RUNT: usize = 14;

/// The four rings of a socket.
pub(super) struct Rings {
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
    pub rx: Consumer<Desc>,
    pub tx: Producer<Desc>,
}

/// What the queues of an uplink have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub mtu: u32,
    /// Frames may have several buffers.
    pub multi_buffer: bool,
    /// The kernel copies, in the call.
    pub copies: bool,
    /// Checksum requests go with the frames.
    pub checksum: bool,
    /// The kernel says when it needs a call.
    pub need_wakeup: bool,
    /// Receiving needs calls, to drive the interface.
    pub busy_poll: bool,
    /// Frames come that the kernel has not finished.
    pub unfinished: bool,
}

/// Where the chunks of a queue are. The sums never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// To receive into, with the kernel.
    pub receiving: u32,
    /// Of the burst that is being delivered.
    pub held: u32,
    /// To send from, free.
    pub free: u32,
    /// To send from, with the kernel.
    pub sending: u32,
}

/// Whether the interface takes frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Up,
    /// `ip link set down`; it may come back.
    Down,
    /// Deleted.
    Gone,
}

/// A checksum request (`struct xsk_tx_metadata`).
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct ChecksumRequest {
    flags: u64,
    start: u16,
    offset: u16,
    unused: u32,
    launch_time: u64,
}

const _: () = assert!(size_of::<ChecksumRequest>() == TX_METADATA as usize);

/// One queue of an interface, for one worker.
pub struct Queue {
    socket: Arc<Socket>,
    rings: Rings,
    view: MemoryView,
    layout: Layout,
    traits: Traits,
    index: u32,
    /// Free chunks to send from; the last one was used last, and is the most likely to be in the cache.
    free: Vec<u64>,
    /// Chunks of the burst that is being delivered.
    held: Vec<u64>,
    /// Chunks to receive into that are with the kernel.
    receiving: u32,
    carrier: Carrier,
    counters: UplinkCounters,
    /// Frames that the interface threw away since the last flush.
    refused: usize,
    /// Frames wait in the transmit ring for a kernel that had no room or no memory.
    stuck: bool,
    /// Keeps the program on the interface, and the buffers where they are.
    umem: Arc<Umem>,
    _attached: Arc<Attached>,
}

impl Queue {
    /// A bound socket with its rings, whose fill ring has all chunks of the queue.
    pub(super) fn new(
        index: u32,
        socket: Arc<Socket>,
        rings: Rings,
        umem: Arc<Umem>,
        attached: Arc<Attached>,
        traits: Traits,
    ) -> Self {
        let layout = umem.layout();
        let free = umem.tx_chunks(index).step_by(layout.chunk as usize).collect();
        Self {
            socket,
            rings,
            view: MemoryView::new(Arc::clone(umem.memory().table())),
            layout,
            traits,
            index,
            free,
            held: Vec::with_capacity(layout.rx as usize),
            receiving: layout.rx,
            carrier: Carrier::Up,
            counters: UplinkCounters::default(),
            refused: 0,
            stuck: false,
            umem,
            _attached: attached,
        }
    }

    /// The queue of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where its chunks are now.
    pub fn buffers(&self) -> Buffers {
        Buffers {
            receiving: self.receiving,
            held: self.held.len() as u32,
            free: self.free.len() as u32,
            sending: self.layout.tx - self.free.len() as u32,
        }
    }

    /// Whether the interface was deleted: no frame will ever pass again.
    pub fn is_gone(&self) -> bool {
        self.carrier == Carrier::Gone
    }

    /// Frames that the kernel dropped before they could be received: no free chunk, a full ring, or too large. A system
    /// call.
    pub fn kernel_drops(&self) -> u64 {
        self.socket.statistics().map_or(0, |counts| counts.rx_dropped + counts.rx_ring_full)
    }

    /// Takes up to `max` frames and shows each to `sink`, as [`UplinkQueue::receive`] does: what it has to be finished by,
    /// and its pieces. They stay as they are until [`release`](UplinkQueue::release).
    pub fn receive_with(
        &mut self,
        max: usize,
        mut sink: impl FnMut(&MemoryView, NetHeader, &[HostRange]) -> Result<(), Drop>,
    ) -> usize {
        if self.traits.busy_poll && !self.rings.rx.is_waiting() {
            self.counters.calls += 1;
            self.socket.receive_wakeup();
        }
        if self.stuck {
            // Nobody else would try again before the next frame.
            self.push_out();
        }
        let mut frames = 0;
        while frames < max && self.receive_one(&mut sink) {
            frames += 1;
        }
        frames
    }

    /// Takes one frame off the receive ring; false when there is none (that is whole).
    #[inline]
    fn receive_one(
        &mut self,
        sink: &mut impl FnMut(&MemoryView, NetHeader, &[HostRange]) -> Result<(), Drop>,
    ) -> bool {
        let mut pieces = [HostRange::EMPTY; MAX_PIECES];
        let Some(count) = self.whole_frame() else { return false };
        let mut good = 0;
        for ahead in 0..count {
            let desc = self.rings.rx.peek(ahead);
            let Some(range) = self.received(desc) else { continue };
            self.held.push(desc.addr & !u64::from(self.layout.chunk - 1));
            self.receiving -= 1;
            if let Some(place) = pieces.get_mut(good) {
                *place = range;
            }
            good += 1;
        }
        self.rings.rx.advance(count);
        if good != count as usize || good > MAX_PIECES {
            self.counters.dropped += 1;
            return true;
        }
        let pieces = &pieces[..good];
        let header = if self.traits.unfinished { self.header_of(pieces) } else { Ok(NetHeader::PLAIN) };
        match header.and_then(|header| sink(&self.view, header, pieces)) {
            Ok(()) => self.counters.received += 1,
            Err(_) => self.counters.dropped += 1,
        }
        true
    }

    /// Descriptors of the next frame, when all of them are there. Kernels publish whole frames; that is not relied on.
    #[inline]
    fn whole_frame(&mut self) -> Option<u32> {
        let known = self.rings.rx.available();
        if known == 0 {
            return None;
        }
        self.frame_in(known).or_else(|| {
            let known = self.rings.rx.available_now();
            self.frame_in(known)
        })
    }

    #[inline]
    fn frame_in(&self, available: u32) -> Option<u32> {
        let is_last = |ahead: &u32| self.rings.rx.peek(*ahead).options & libc::XDP_PKT_CONTD == 0;
        (0..available).find(is_last).map(|last| last + 1)
    }

    /// The piece that a descriptor names, when it is one of ours.
    #[inline]
    fn received(&self, desc: Desc) -> Option<HostRange> {
        let chunks = self.umem.rx_chunks(self.index);
        let slice = self.view.slice(GuestAddr(desc.addr), desc.len as usize).ok()?;
        chunks.contains(&desc.addr).then(|| slice.range())
    }

    #[inline]
    fn header_of(&self, pieces: &[HostRange]) -> Result<NetHeader, Drop> {
        let mut front = [0; LOOK];
        let len = pieces.iter().map(|piece| piece.len).sum();
        let Some(first) = pieces.first().and_then(|piece| self.view.reenter(*piece)) else {
            return Ok(NetHeader::PLAIN);
        };
        let front = &mut front[..first.len().min(LOOK)];
        first.read(0, front);
        partial::header_of(front, len, self.traits.mtu).ok_or(Drop::TooLong)
    }

    /// Takes back the chunks of frames that are sent.
    fn reclaim(&mut self) {
        let chunks = self.umem.tx_chunks(self.index);
        let count = self.rings.completion.available();
        for ahead in 0..count {
            let chunk = self.rings.completion.peek(ahead) & !u64::from(self.layout.chunk - 1);
            if chunks.contains(&chunk) && self.free.len() < self.layout.tx as usize {
                self.free.push(chunk);
            }
        }
        self.rings.completion.advance(count);
        self.rings.completion.release();
    }

    /// How many chunks the frame takes, or why it cannot be sent.
    #[inline]
    fn pieces_for(&mut self, packet: &Packet<'_>) -> Result<usize, Drop> {
        let len = packet.len();
        let capacity = self.layout.tx_capacity() as usize;
        let pieces = len.div_ceil(capacity);
        if len < RUNT {
            return Err(Drop::Runt);
        }
        let most = if self.traits.multi_buffer { MAX_SENT_PIECES } else { 1 };
        if len > self.traits.mtu as usize + ETHERNET || pieces > most {
            return Err(Drop::TooLong);
        }
        if self.carrier != Carrier::Up {
            return Err(Drop::LinkDown);
        }
        if !self.has_room(pieces) {
            return Err(Drop::UplinkFull);
        }
        Ok(pieces)
    }

    #[inline]
    fn has_room(&mut self, pieces: usize) -> bool {
        let has_room =
            |queue: &mut Self| queue.free.len() >= pieces && queue.rings.tx.has_room(pieces as u32);
        has_room(self) || {
            // More frames than the ring has places since the last flush, or a kernel that does not keep up.
            self.rings.tx.publish();
            self.call();
            self.reclaim();
            has_room(self)
        }
    }

    /// Copies the frame into `pieces` chunks.
    fn fill(&mut self, packet: &Packet<'_>, pieces: usize, request: Option<ChecksumRequest>) {
        let capacity = self.layout.tx_capacity() as usize;
        let (mut head, mut body, mut left) = (packet.head, packet.body, packet.len());
        let mut request = request;
        for piece in 0..pieces {
            let Some(chunk) = self.free.pop() else { return };
            let addr = chunk + u64::from(TX_OFFSET);
            let len = left.min(capacity);
            left -= len;
            self.write_piece(addr, len, &mut head, &mut body);
            let mut options = if piece + 1 < pieces { libc::XDP_PKT_CONTD } else { 0 };
            if let Some(request) = request.take() {
                self.write_request(addr, request);
                options |= libc::XDP_TX_METADATA;
            }
            self.rings.tx.push(Desc { addr, len: len as u32, options });
        }
    }

    /// Writes the next `len` bytes of the frame: the rest of its head, then of its body.
    #[inline]
    fn write_piece(&self, addr: u64, len: usize, head: &mut &[u8], body: &mut crate::frame::Body<'_>) {
        let Ok(to) = self.view.slice(GuestAddr(addr), len) else { return };
        let (now, later) = head.split_at(head.len().min(len));
        *head = later;
        to.write(0, now);
        let mut at = now.len();
        body.take(len - at).for_each(|from| {
            if let Some(place) = to.sub(at, from.len()) {
                from.copy_to(place);
            }
            at += from.len();
        });
    }

    #[cold]
    fn write_request(&self, addr: u64, request: ChecksumRequest) {
        let at = GuestAddr(addr - u64::from(TX_METADATA));
        if let Ok(slice) = self.view.slice(at, TX_METADATA as usize) {
            slice.write(0, request.as_bytes());
        }
    }

    /// The request for a frame whose checksum is left to us. It must be in the first piece, which alone is sure to be
    /// linear in the kernel.
    #[inline]
    fn request_for(&self, packet: &Packet<'_>) -> Result<Option<ChecksumRequest>, Drop> {
        let header = &packet.header;
        if !header.needs_csum() {
            return Ok(None);
        }
        let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
        let first = packet.len().min(self.layout.tx_capacity() as usize);
        if !self.traits.checksum || end > first || usize::from(header.csum_start) < RUNT {
            return Err(Drop::BadOffload);
        }
        let flags = u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM);
        let (start, offset) = (header.csum_start, header.csum_offset);
        Ok(Some(ChecksumRequest { flags, start, offset, unused: 0, launch_time: 0 }))
    }

    #[cold]
    fn set_gone(&mut self) {
        if self.carrier != Carrier::Gone {
            tracing::error!(
                queue = self.index,
                "The interface of the uplink was deleted: no frame passes any more"
            );
        }
        self.carrier = Carrier::Gone;
    }

    /// Shows the kernel all frames written and takes back what it has sent.
    fn push_out(&mut self) {
        if self.rings.tx.pending() > 0 {
            self.rings.tx.publish();
            self.call();
        }
        self.reclaim();
        // A kernel that copies takes frames during the call or not at all; with zero copy the hardware takes them later.
        self.stuck = self.traits.copies && self.carrier == Carrier::Up && self.rings.tx.pending() > 0;
    }

    /// Whether frames wait for a call; otherwise the driver finds them by itself.
    #[inline]
    fn calls_kernel(&self) -> bool {
        !self.traits.need_wakeup || self.rings.tx.needs_wakeup()
    }

    /// Calls the kernel until it has taken everything, or takes no more.
    fn call(&mut self) {
        if !self.calls_kernel() {
            return;
        }
        let mut pending = self.rings.tx.pending();
        for _ in 0..MAX_CALLS {
            self.counters.calls += 1;
            let result = self.socket.send();
            match result.map_err(|error| error.raw_os_error().unwrap_or(0)) {
                Ok(()) => return self.carrier = Carrier::Up,
                Err(libc::EINTR) => continue,
                // Taken and thrown away by the interface's queue.
                Err(libc::EBUSY) => self.refused += 1,
                // The budget of a call is used up, or the interface is busy.
                Err(libc::EAGAIN) => {}
                Err(libc::ENETDOWN) => return self.carrier = Carrier::Down,
                Err(libc::ENXIO | libc::ENODEV) => return self.set_gone(),
                // No memory, or no room in the completion ring: the next flush tries again.
                Err(_) => return,
            }
            self.carrier = Carrier::Up;
            self.reclaim();
            let now = self.rings.tx.pending();
            if now == pending || now == 0 {
                return;
            }
            pending = now;
        }
    }
}

impl UplinkQueue for Queue {
    fn offloads(&self) -> Offloads {
        Offloads { csum: self.traits.checksum, ..Offloads::NONE }
    }

    fn view(&self) -> &MemoryView {
        &self.view
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        self.receive_with(burst.room(), |view, header, pieces| burst.push(view, header, pieces))
    }

    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.rings.rx.release();
        self.receiving += self.held.len() as u32;
        // There is room: the ring has as many places as the queue has chunks to receive into.
        for chunk in self.held.drain(..) {
            self.rings.fill.push(chunk);
        }
        self.rings.fill.publish();
        if self.traits.need_wakeup && self.rings.fill.needs_wakeup() {
            self.counters.calls += 1;
            self.socket.receive_wakeup();
        }
    }

    fn send(&mut self, packet: &Packet<'_>) -> Result<(), Drop> {
        let pieces = self.pieces_for(packet)?;
        let request = self.request_for(packet)?;
        self.fill(packet, pieces, request);
        self.counters.sent += 1;
        Ok(())
    }

    fn flush(&mut self) -> usize {
        self.push_out();
        let refused = std::mem::take(&mut self.refused);
        self.counters.sent -= refused as u64;
        self.counters.dropped += refused as u64;
        refused
    }

    fn watch_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        self.stuck || self.rings.rx.is_waiting()
    }

    fn has_work(&self) -> bool {
        self.traits.busy_poll || self.stuck || self.rings.rx.is_waiting()
    }

    fn counters(&self) -> UplinkCounters {
        self.counters
    }
}
