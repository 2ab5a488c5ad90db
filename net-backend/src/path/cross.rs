//! Frames for a receive ring of another worker.
//!
//! A worker never touches another one's rings. What is for them is copied into a bounded queue of private buffers, one for
//! each pair of workers and direction: the sender's descriptors are free at once, and a worker that is late costs frames
//! (counted), not time. Everything of a queue, indices included, lies in memory of our own that is accessed as a guest's is,
//! so that the frames in it are delivered by the same code.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, fence};

use memory::{Area, GuestAddr, MemoryView, OwnMemory};
use runtime::io::WatchId;
use runtime::worker::Context;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::frame::{NetHeader, Packet};
use crate::switch::{Drop, PortId};

use super::burst::Burst;

/// Bytes of one queue: 16 of the largest frames, or 8,192 of the smallest.
const BYTES: u32 = 1 << 20;
/// Records begin at multiples of this.
const ALIGN: u32 = 64;
/// Bytes before the frame: its length, its port, its virtio-net header.
const PREFIX: u32 = 32;
const HEADER_AT: usize = 8;
/// In place of a length: the next record is at the start.
const WRAP: u32 = u32::MAX;

/// Where one worker sleeps.
struct Bed {
    asleep: AtomicBool,
    bell: EventFd,
}

/// What both ends of a queue have: places are free-running numbers, modulo [`BYTES`].
#[derive(Clone)]
struct Shared {
    memory: Arc<OwnMemory>,
    start: GuestAddr,
    /// Place behind the last record; the sender writes it.
    head: Area,
    /// Place of the first record; the receiver writes it.
    tail: Area,
}

impl Shared {
    fn new() -> io::Result<Self> {
        let memory = OwnMemory::new(BYTES as usize + 4096, GuestAddr(0))?;
        let lost = || io::Error::other("The crossing's memory is too small");
        let start = memory.alloc(BYTES as usize, 4096).ok_or_else(lost)?;
        let index = || memory.alloc(128, 128).and_then(|at| memory.area(at, 4).ok()).ok_or_else(lost);
        let (head, tail) = (index()?, index()?);
        Ok(Self { memory: Arc::new(memory), start, head, tail })
    }

    fn at(&self, place: u32) -> GuestAddr {
        GuestAddr(self.start.0 + u64::from(place % BYTES))
    }
}

/// The sender's end of a queue.
pub(super) struct Sender {
    shared: Shared,
    peer: Arc<Bed>,
    head: u32,
    /// The tail as last seen.
    tail: u32,
    /// As the receiver sees it.
    published: u32,
}

impl Sender {
    /// Copies a frame for `port` into the queue; [`flush`](Self::flush) shows it.
    pub fn send(&mut self, port: PortId, packet: &Packet<'_>) -> Result<(), Drop> {
        let len = packet.len() as u32;
        let size = (PREFIX + len).next_multiple_of(ALIGN);
        let to_end = BYTES - self.head % BYTES;
        let skipped = if size > to_end { to_end } else { 0 };
        if !self.has_room(skipped + size) {
            return Err(Drop::CrossingFull);
        }
        if skipped > 0 {
            self.prefix(self.head, WRAP, port, &NetHeader::PLAIN).ok_or(Drop::CrossingFull)?;
            self.head = self.head.wrapping_add(skipped);
        }
        self.prefix(self.head, len, port, &packet.header).ok_or(Drop::CrossingFull)?;
        let at = self.shared.at(self.head.wrapping_add(PREFIX));
        let place = self.shared.memory.slice(at, len as usize).map_err(|_| Drop::CrossingFull)?;
        place.write(0, packet.head);
        let mut done = packet.head.len();
        packet.body.for_each(|piece| {
            if let Some(part) = place.sub(done, piece.len()) {
                piece.copy_to(part);
            }
            done += piece.len();
        });
        if done != len as usize {
            // What lies there is of another frame, perhaps of another guest.
            return Err(Drop::Malformed);
        }
        self.head = self.head.wrapping_add(size);
        Ok(())
    }

    fn has_room(&mut self, size: u32) -> bool {
        let fits = |head: u32, tail: u32| head.wrapping_sub(tail) + size <= BYTES;
        if !fits(self.head, self.tail) {
            // Pairs with the release in `release`: the receiver has done with the bytes.
            self.tail = self.shared.tail.load_u32(0, Acquire);
        }
        fits(self.head, self.tail)
    }

    fn prefix(&self, place: u32, len: u32, port: PortId, header: &NetHeader) -> Option<()> {
        let prefix = self.shared.memory.slice(self.shared.at(place), PREFIX as usize).ok()?;
        prefix.write_obj(0, len)?;
        prefix.write_obj(4, port.0)?;
        prefix.write(HEADER_AT, &header.to_bytes());
        Some(())
    }

    /// Shows what was sent since the last time, and wakes the receiver if it sleeps.
    pub fn flush(&mut self) {
        if self.published == self.head {
            return;
        }
        self.published = self.head;
        // Pairs with the acquire in `look`.
        self.shared.head.store_u32(0, self.head, Release);
        // Pairs with the fence in `Crossing::arm`: either it sees the record or we see that it sleeps.
        fence(SeqCst);
        if self.peer.asleep.load(Relaxed) && self.peer.asleep.swap(false, Relaxed) {
            // A bell that is full rings already.
            let _ = self.peer.bell.write(1);
        }
    }
}

/// The receiver's end of a queue.
pub(super) struct Receiver {
    shared: Shared,
    /// The memory of the records.
    pub view: MemoryView,
    /// Place of the first record that was not taken.
    next: u32,
}

impl Receiver {
    fn look(&self) -> bool {
        self.shared.head.load_u32(0, Relaxed) != self.next
    }

    /// Takes records into a burst, and the port of each into `ports`.
    pub fn receive(&mut self, burst: &mut Burst, ports: &mut Vec<PortId>) {
        burst.clear();
        ports.clear();
        // Pairs with the release in `flush`: the records are there.
        let head = self.shared.head.load_u32(0, Acquire);
        while self.next != head && burst.room() > 0 {
            let Some((len, port, header)) = self.record() else { return };
            if len == WRAP {
                self.next = (self.next | (BYTES - 1)).wrapping_add(1);
                continue;
            }
            let at = self.shared.at(self.next.wrapping_add(PREFIX));
            if let Ok(frame) = self.shared.memory.slice(at, len as usize)
                && burst.push(&self.view, header, &[frame.range()]).is_ok()
            {
                ports.push(port);
            }
            self.next = self.next.wrapping_add((PREFIX + len).next_multiple_of(ALIGN));
        }
    }

    fn record(&self) -> Option<(u32, PortId, NetHeader)> {
        let prefix = self.shared.memory.slice(self.shared.at(self.next), PREFIX as usize).ok()?;
        let mut header = [0; NetHeader::MAX_LEN];
        prefix.read(HEADER_AT, &mut header);
        let header = NetHeader::parse_trusted(&header).ok()?;
        Some((prefix.read_obj(0)?, PortId(prefix.read_obj(4)?), header))
    }

    /// The frames of the last `receive` are delivered.
    pub fn release(&self) {
        self.shared.tail.store_u32(0, self.next, Release);
    }
}

/// All queues from and to one worker.
pub struct Crossing {
    worker: usize,
    bed: Arc<Bed>,
    /// By worker; none for the worker itself.
    senders: Vec<Option<Sender>>,
    /// `None` while one is lent.
    receivers: Vec<Option<Receiver>>,
    watch: Option<WatchId>,
}

/// The queues between `workers` workers; one element goes to each.
pub fn crossings(workers: usize) -> io::Result<Vec<Crossing>> {
    let beds: Vec<_> = (0..workers)
        .map(|_| Ok(Arc::new(Bed { asleep: AtomicBool::new(false), bell: EventFd::new(EFD_NONBLOCK)? })))
        .collect::<io::Result<_>>()?;
    let mut all: Vec<_> = beds
        .iter()
        .enumerate()
        .map(|(worker, bed)| Crossing {
            worker,
            bed: bed.clone(),
            senders: Vec::new(),
            receivers: Vec::new(),
            watch: None,
        })
        .collect();
    for from in 0..workers {
        for to in 0..workers {
            if from == to {
                all[from].senders.push(None);
                continue;
            }
            let shared = Shared::new()?;
            let view = MemoryView::new(shared.memory.table().clone());
            let sender =
                Sender { shared: shared.clone(), peer: beds[to].clone(), head: 0, tail: 0, published: 0 };
            all[from].senders.push(Some(sender));
            all[to].receivers.push(Some(Receiver { shared, view, next: 0 }));
        }
    }
    Ok(all)
}

impl Crossing {
    /// Which worker this is.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.senders.len()
    }

    /// Has the worker woken for frames from others. On its own thread.
    pub(crate) fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        if !self.receivers.is_empty() && self.watch.is_none() {
            self.watch = Some(cx.watch(self.bed.bell.as_raw_fd())?);
        }
        Ok(())
    }

    pub(super) fn sender(&mut self, worker: usize) -> Option<&mut Sender> {
        self.senders.get_mut(worker)?.as_mut()
    }

    /// Shows everything sent to the other workers.
    #[inline]
    pub(super) fn flush(&mut self) {
        self.senders.iter_mut().flatten().for_each(Sender::flush);
    }

    /// The worker is about to sleep. True when there are frames.
    pub(crate) fn arm(&mut self) -> bool {
        if self.receivers.is_empty() {
            return false;
        }
        self.bed.asleep.store(true, Relaxed);
        // Pairs with the fence in `Sender::flush`.
        fence(SeqCst);
        self.has_work()
    }

    /// The worker is awake.
    pub(crate) fn suppress(&mut self) {
        if !self.receivers.is_empty() {
            self.bed.asleep.store(false, Relaxed);
        }
    }

    /// Whether another worker has sent frames.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.receivers.iter().flatten().any(Receiver::look)
    }

    /// The queues from other workers.
    pub(super) fn queues(&self) -> usize {
        self.receivers.len()
    }

    /// Lends a queue that has frames, to be put back.
    #[inline]
    pub(super) fn lend(&mut self, queue: usize) -> Option<Receiver> {
        self.receivers[queue].take_if(|receiver| receiver.look())
    }

    /// Takes a queue back.
    pub(super) fn put_back(&mut self, queue: usize, receiver: Receiver) {
        self.receivers[queue] = Some(receiver);
    }
}

impl std::fmt::Debug for Crossing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crossing(worker {} of {})", self.worker, self.workers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Body;

    fn frame(fill: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![fill; len];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame
    }

    fn send(crossing: &mut Crossing, port: u16, bytes: &[u8]) -> Result<(), Drop> {
        let view = MemoryView::new(memory::MemoryTable::empty());
        let packet = Packet { header: NetHeader::PLAIN, head: bytes, body: Body::empty(&view) };
        crossing.sender(1).unwrap().send(PortId(port), &packet)
    }

    fn receive(crossing: &mut Crossing) -> Vec<(u16, Vec<u8>)> {
        let (mut burst, mut ports, mut frames) = (Burst::new(), Vec::new(), Vec::new());
        while let Some(mut receiver) = crossing.lend(0) {
            receiver.receive(&mut burst, &mut ports);
            for (place, port) in ports.iter().enumerate() {
                let frame = burst.frame(place, &receiver.view);
                let mut bytes = frame.head.as_slice().to_vec();
                frame.body.for_each(|piece| {
                    let mut part = vec![0; piece.len()];
                    piece.read(0, &mut part);
                    bytes.extend(part);
                });
                frames.push((port.0, bytes));
            }
            receiver.release();
            crossing.put_back(0, receiver);
        }
        frames
    }

    #[test]
    fn frames_of_all_lengths_arrive_whole_and_in_order_around_many_wraps() {
        let mut all = crossings(2).unwrap();
        let (mut to, mut from) = (all.pop().unwrap(), all.pop().unwrap());
        for round in 0..200 {
            let lens = [14, 60, 61, 1514, 9000, 65_550, 128 + round];
            for (port, len) in lens.iter().enumerate() {
                send(&mut from, port as u16, &frame(round as u8, *len)).unwrap();
            }
            assert!(!to.has_work(), "not before it is flushed");
            from.flush();
            let received = receive(&mut to);
            assert_eq!(received.len(), lens.len());
            for (port, (got, bytes)) in received.into_iter().enumerate() {
                assert_eq!(usize::from(got), port);
                assert_eq!(bytes, frame(round as u8, lens[port]));
            }
            assert!(!to.has_work());
        }
    }

    #[test]
    fn a_full_queue_refuses_and_takes_again_when_it_was_read() {
        let mut all = crossings(2).unwrap();
        let (mut to, mut from) = (all.pop().unwrap(), all.pop().unwrap());
        let bytes = frame(7, 60_000);
        let sent = (0..1000).take_while(|_| send(&mut from, 1, &bytes).is_ok()).count();
        assert!((10..=17).contains(&sent), "{sent}");
        assert_eq!(send(&mut from, 1, &bytes), Err(Drop::CrossingFull));
        from.flush();
        assert_eq!(receive(&mut to).len(), sent);
        send(&mut from, 1, &bytes).unwrap();
    }

    #[test]
    fn a_sleeping_worker_is_rung_once_and_an_awake_one_never() {
        let mut all = crossings(2).unwrap();
        let (mut to, mut from) = (all.pop().unwrap(), all.pop().unwrap());
        send(&mut from, 1, &frame(1, 60)).unwrap();
        from.flush();
        assert!(to.bed.bell.read().is_err(), "awake");
        assert!(to.arm(), "there is a frame: it must not sleep");
        receive(&mut to);
        assert!(!to.arm());
        for _ in 0..2 {
            send(&mut from, 1, &frame(1, 60)).unwrap();
            from.flush();
        }
        assert_eq!(to.bed.bell.read().unwrap(), 1);
        to.suppress();
        assert_eq!(receive(&mut to).len(), 2);
    }
}
