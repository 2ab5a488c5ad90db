//! The data path of one queue. Completions of the I/O engine arrive in [`QueueState::completed`];
//! [`QueueState::burst`] fetches, parses and executes what the driver made available. Neither publishes: the
//! worker submits the operations of all its queues with one system call and publishes each ring once a round.
//!
//! Memory and null disks finish a request inside the burst (`crate::inline`); a file's requests live in a
//! slab until their last operation is done (`crate::requests`). After warm-up nothing here allocates, locks or counts references.

use crate::accept::Refusal;
use crate::backend::Backend;
use crate::bounce::BouncePool;
use crate::disk::Disk;
use crate::inline;
use crate::request::{Direction, Request, Status};
use crate::requests::{FileLane, Requests};
use crate::stats::{Op, QueueStats};
use memory::{Epochs, MemoryView};
use runtime::io::{FileSlot, Io};
use runtime::stats::WorkerStats;
use std::sync::Arc;
use virtqueue::{Chain, DeviceRing};

/// Most requests of one queue in a round while a rate limit is on.
const LIMITED_BURST: u16 = 16;

/// What a worker lends to a queue for one call.
pub struct Env<'a> {
    /// The I/O engine.
    pub io: &'a mut Io,
    /// Guest memory of the disk's frontend.
    pub epochs: &'a mut Epochs,
    /// Bounce buffers of the worker.
    pub pool: &'a mut BouncePool,
    /// Monotonic time of this round, in nanoseconds.
    pub now: u64,
    /// The queue's part of user data.
    pub key: u64,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
}

/// A disk, the counters of one of its queues and those of the worker that serves it.
pub struct Lane<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// Counters of the queue.
    pub stats: &'a QueueStats,
    /// Counters of the worker.
    pub worker: &'a WorkerStats,
}

impl<'a> Lane<'a> {
    /// Queue `index` of a disk, on the worker with these counters.
    pub fn of(disk: &'a Disk, index: usize, worker: &'a WorkerStats) -> Self {
        Lane { disk, stats: &disk.queue_stats()[index], worker }
    }

    /// Counts `n` completed requests of one kind.
    #[inline]
    pub fn completed(&self, op: Op, n: u64, bytes: u64) {
        self.stats.completed(op, n, bytes);
        self.worker.requests.add(n);
        self.worker.bytes.add(bytes);
    }

    /// Records how long `n` requests of one kind took together.
    #[inline]
    pub fn took(&self, op: Op, n: u64, ns: u64) {
        self.stats.latency_ns[op as usize].record_n(ns, n);
        self.worker.latency_ns.record_n(ns, n);
    }

    /// Writes the status of a request that has ended; `Ok` is the number of data bytes written to the guest.
    /// Returns the length for the used ring.
    #[inline]
    pub fn answer(&self, op: Op, chain: &Chain, mem: &MemoryView, outcome: Result<u32, Refusal>) -> u32 {
        let (status, written) = match outcome {
            Ok(written) => (Some(Status::Ok), written),
            Err(refusal) => {
                self.stats.failed(refusal.fault);
                self.stats.errors[op as usize].add(1);
                (refusal.status, 0)
            }
        };
        match status {
            Some(status) if chain.write_status(mem, status as u8).is_ok() => written + 1,
            _ => 0,
        }
    }
}

/// Whether the rate limits of the disk let the queue go on.
#[derive(Debug, Default)]
pub struct Turn {
    /// Nanosecond before which they let nothing through.
    not_before: Option<u64>,
    /// What was paid for the next request, which was given back to the ring to wait for its time. The driver may put
    /// another one in its place meanwhile.
    paid: Option<(Direction, u64)>,
    /// Requests taken at once while there are limits, as a power of two: one after having been held back, so that
    /// queues that wait for the same tokens take turns, and more while there is no wait.
    stride: u16,
}

impl Turn {
    /// How many requests may be fetched at once.
    #[inline]
    pub fn size(&mut self, disk: &Disk) -> u16 {
        let most = disk.backend().burst();
        if disk.limiter().active() { self.next_stride().min(most) } else { most }
    }

    fn next_stride(&mut self) -> u16 {
        self.stride = (self.stride * 2).clamp(1, LIMITED_BURST);
        self.stride
    }

    /// Whether the request just fetched has to wait for its time; it is then back in the ring.
    #[inline]
    pub fn held_back<R: DeviceRing>(
        &mut self,
        lane: &Lane<'_>,
        request: &Result<Request, Refusal>,
        (ring, chain): (&mut R, &Chain),
        now: u64,
    ) -> bool {
        if !lane.disk.limiter().active() {
            return false;
        }
        let Some(price) = request.as_ref().ok().and_then(price) else { return false };
        let paid =
            self.paid.take().is_some_and(|(direction, bytes)| direction == price.0 && bytes >= price.1);
        let until = if paid { None } else { lane.disk.limiter().pay(price.0, price.1, now) };
        if until.is_none() || !ring.unfetch(chain) {
            return false;
        }
        lane.stats.limited.add(1);
        self.not_before = until;
        self.paid = Some(price);
        self.stride = 0;
        true
    }
}

/// What the rate limits count of a request.
fn price(request: &Request) -> Option<(Direction, u64)> {
    match request {
        Request::In(extent) => Some((Direction::Read, extent.len)),
        Request::Out(extent) => Some((Direction::Write, extent.len)),
        Request::Ranges { .. } => Some((Direction::Write, 0)),
        Request::Flush | Request::GetId => None,
    }
}

/// A queue of a disk on its worker, beside the ring.
#[derive(Debug)]
pub struct QueueState {
    disk: Arc<Disk>,
    index: usize,
    /// The disk's file in the worker's I/O engine; `None` for disks without one.
    file: Option<FileSlot>,
    turn: Turn,
    /// For requests that end inside the burst.
    scratch: inline::Scratch,
    requests: Requests,
}

impl QueueState {
    /// Queue `index` of `disk`, which has that many.
    pub fn new(disk: Arc<Disk>, index: u16, file: Option<FileSlot>) -> Self {
        Self {
            disk,
            index: usize::from(index),
            file,
            turn: Turn::default(),
            scratch: inline::Scratch::default(),
            requests: Requests::default(),
        }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The queue's counters.
    pub fn stats(&self) -> &QueueStats {
        &self.disk.queue_stats()[self.index]
    }

    /// When a rate limit lets the next request through, if one holds the queue back.
    pub fn held_until(&self) -> Option<u64> {
        self.turn.not_before
    }

    /// Forgets that a limit held the queue back: the limits have changed.
    pub fn release_hold(&mut self) {
        self.turn.not_before = None;
    }

    /// Whether a kick would be pointless because nothing can be fetched anyway; a deadline or a completion
    /// will wake the worker.
    pub fn stalled(&self, io: &Io) -> bool {
        let full = self.disk.backend().file().is_some() && io.room() == 0;
        self.turn.not_before.is_some() || self.requests.blocked() || full
    }

    /// Whether requests wait for something the engine or the pool has not got now.
    pub fn has_waiting(&self) -> bool {
        self.requests.has_waiting()
    }

    /// Takes what the driver made available, and executes or starts it. Returns how many requests moved.
    #[inline]
    pub fn burst<R: DeviceRing>(&mut self, ring: &mut R, env: &mut Env<'_>) -> usize {
        if self.turn.not_before.is_some_and(|until| env.now < until) {
            return 0;
        }
        self.turn.not_before = None;
        let Self { disk, index, file: slot, turn, scratch, requests } = self;
        let lane = Lane::of(disk, *index, env.stats);
        let moved = match disk.backend() {
            Backend::Null(null) => inline::burst(&lane, turn, scratch, ring, env, null),
            Backend::Mem(mem) => inline::burst(&lane, turn, scratch, ring, env, mem),
            Backend::File(file) => {
                requests.burst(&FileLane { lane, disk, file, slot: *slot }, turn, ring, env)
            }
        };
        if moved > 0 {
            let depth = u64::from(ring.in_flight()).max(moved as u64);
            self.stats().depth.record(depth);
        }
        moved
    }

    /// Goes on with requests that had to wait. Returns how many moved.
    pub fn resume<R: DeviceRing>(&mut self, ring: &mut R, env: &mut Env<'_>) -> usize {
        let lane = Lane::of(&self.disk, self.index, env.stats);
        match self.disk.backend() {
            Backend::File(file) => {
                let lane = FileLane { lane, disk: &self.disk, file, slot: self.file };
                self.requests.resume(&lane, ring, env)
            }
            Backend::Mem(_) | Backend::Null(_) => 0,
        }
    }

    /// Takes the result of an operation of entry `index`.
    pub fn completed<R: DeviceRing>(&mut self, ring: &mut R, index: u16, result: i32, env: &mut Env<'_>) {
        let lane = Lane::of(&self.disk, self.index, env.stats);
        if let Backend::File(file) = self.disk.backend() {
            let lane = FileLane { lane, disk: &self.disk, file, slot: self.file };
            self.requests.completed(&lane, ring, index, result, env);
        }
    }
}
