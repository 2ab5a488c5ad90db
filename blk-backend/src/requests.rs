//! The requests of a queue to a file: each lives in a slab entry from fetch to completion, driven by its
//! [`Transfer`].
//!
//! # Order after a crash
//!
//! A process that takes over gets the requests its predecessor had in flight, oldest first. Two of them that
//! touch the same bytes are carried out in that order, one after the other; and as long as one is in flight, a
//! new request that conflicts with any other waits as well. Otherwise requests are as independent as virtio
//! leaves them.

#![expect(unsafe_code, reason = "hands buffers to the I/O engine")]

use crate::accept::{Refusal, accept, read_ranges, write_id};
use crate::backend::{FileBackend, sys};
use crate::disk::Disk;
use crate::queue::{Env, Lane, Turn};
use crate::request::{Extent, Request, Status};
use crate::slab::Slab;
use crate::stats::{Fault, Op};
use crate::transfer::{Kind, Step, StepContext, Transfer};
use memory::{Epoch, HostRange};
use runtime::io::{FileSlot, Full, Op as IoOp};
use std::collections::VecDeque;
use std::sync::Arc;
use virtqueue::{Chain, DeviceRing};

/// A disk with its file, and one of its queues.
pub struct FileLane<'a> {
    /// Disk and counters.
    pub lane: Lane<'a>,
    /// The disk again, to be kept alive by calls on helper threads.
    pub disk: &'a Arc<Disk>,
    /// Its file.
    pub file: &'a FileBackend,
    /// Its file in the worker's I/O engine.
    pub slot: Option<FileSlot>,
}

/// A request.
#[derive(Debug, Default)]
struct Entry {
    chain: Chain,
    transfer: Transfer,
    /// Held from the start of the first operation to the end of the last one.
    epoch: Option<Epoch>,
    started: u64,
    /// Taken over from a process that died.
    recovered: bool,
}

/// The requests of one queue.
#[derive(Debug, Default)]
pub struct Requests {
    entries: Slab<Entry>,
    /// Entries whose next operation could not start yet: no bounce buffer, or no room in the engine.
    waiting: VecDeque<u16>,
    /// An entry that must not overtake one in flight; nothing is fetched meanwhile.
    blocked: Option<u16>,
    /// Requests of a process that died, in flight.
    recovered: u32,
}

/// What became of a chain that was fetched.
enum Fetched {
    /// It ended at once, its operations run, or it waits.
    Moved,
    /// The ring is broken, or took the chain back.
    Stop,
}

impl Requests {
    /// Whether fetching has stopped until a conflicting request is done.
    pub fn blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Whether a request cannot go on before something else has ended.
    pub fn has_waiting(&self) -> bool {
        self.blocked.is_some() || !self.waiting.is_empty()
    }

    /// Fetches and starts up to a burst. Returns how many requests moved.
    pub fn burst<R: DeviceRing>(
        &mut self,
        at: &FileLane<'_>,
        turn: &mut Turn,
        ring: &mut R,
        env: &mut Env<'_>,
    ) -> usize {
        if self.blocked.is_some() {
            return 0;
        }
        let room = env.io.room().min(u32::from(turn.size(at.disk))) as u16;
        let mut moved = 0;
        for _ in 0..ring.fetch(room) {
            match self.fetch_one(at, turn, ring, env) {
                Fetched::Moved => moved += 1,
                Fetched::Stop => break,
            }
            if self.blocked.is_some() {
                break;
            }
        }
        moved
    }

    fn fetch_one<R: DeviceRing>(
        &mut self,
        at: &FileLane<'_>,
        turn: &mut Turn,
        ring: &mut R,
        env: &mut Env<'_>,
    ) -> Fetched {
        let index = self.entries.take();
        let Some(entry) = self.entries.get_mut(index) else { return Fetched::Stop };
        let mem = env.epochs.view();
        if ring.next(mem, &mut entry.chain).is_err() {
            self.entries.give(index);
            return Fetched::Stop;
        }
        let request = accept(&mut entry.chain, mem, &at.disk.rules());
        if turn.held_back(&at.lane, &request, (ring, &entry.chain), env.now) {
            self.entries.give(index);
            return Fetched::Stop;
        }
        let op = request.as_ref().map_or(Op::Other, Request::op);
        let outcome = match request.and_then(|request| entry.begin(at, request, env)) {
            Ok(Begun::Transfer) => {
                self.start(at, index, ring, env);
                return Fetched::Moved;
            }
            Ok(Begun::Answered(written)) => Ok(written),
            Err(refusal) => Err(refusal),
        };
        let mem = env.epochs.view();
        at.lane.completed(op, 1, 0);
        let written = at.lane.answer(op, &entry.chain, mem, outcome);
        ring.complete(mem, &entry.chain, written);
        self.entries.give(index);
        Fetched::Moved
    }

    fn start<R: DeviceRing>(&mut self, at: &FileLane<'_>, index: u16, ring: &mut R, env: &mut Env<'_>) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.started = env.now;
        entry.epoch = Some(env.epochs.enter());
        entry.recovered = entry.chain.token().resubmitted();
        if entry.recovered {
            self.recovered += 1;
            at.lane.stats.resubmitted.add(1);
        }
        if self.recovered > 0 && self.conflicts(index) {
            self.blocked = Some(index);
        } else {
            self.drive(at, index, ring, env);
        }
    }

    /// Whether entry `index` touches what another one in flight does. Only asked after a crash.
    #[cold]
    fn conflicts(&mut self, index: u16) -> bool {
        let Some(mine) = self.entries.get(index) else { return false };
        let others = self.entries.iter().filter(|(other, entry)| *other != index && entry.epoch.is_some());
        others.into_iter().any(|(_, entry)| entry.transfer.conflicts(&mine.transfer))
    }

    /// Entries that had to wait go on, oldest first, until one has to wait again.
    pub fn resume<R: DeviceRing>(&mut self, at: &FileLane<'_>, ring: &mut R, env: &mut Env<'_>) -> usize {
        let mut resumed = 0;
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            let before = self.waiting.len();
            self.drive(at, index, ring, env);
            if self.waiting.len() > before {
                self.waiting.rotate_right(1);
                break;
            }
            resumed += 1;
        }
        if let Some(index) = self.blocked
            && !self.conflicts(index)
        {
            self.blocked = None;
            self.drive(at, index, ring, env);
            resumed += 1;
        }
        resumed
    }

    /// Takes the result of the operation of entry `index` and goes on with it.
    pub fn completed<R: DeviceRing>(
        &mut self,
        at: &FileLane<'_>,
        ring: &mut R,
        index: u16,
        result: i32,
        env: &mut Env<'_>,
    ) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let Some(epoch) = entry.epoch else { return };
        entry.transfer.result(result, &mut context(at, &entry.chain, epoch, env));
        self.drive(at, index, ring, env);
    }

    /// Starts the next operation of entry `index`, or ends it.
    fn drive<R: DeviceRing>(&mut self, at: &FileLane<'_>, index: u16, ring: &mut R, env: &mut Env<'_>) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let Some(epoch) = entry.epoch else { return };
        let user_data = env.key | u64::from(index);
        let pushed = match entry.transfer.step(&mut context(at, &entry.chain, epoch, env)) {
            Step::Finished(status) => return self.finish(at, index, status, ring, env),
            Step::Wait => Err(Full),
            Step::Ioctl { which, extent } => {
                let disk = at.disk.clone();
                env.io.offload(user_data, move || range_ioctl(&disk, which, extent))
            }
            step => match operation(&step, at.slot) {
                // SAFETY: the segments are in the entry (its chain or its transfer, neither of which moves or
                // changes before the completion) and name guest memory of the epoch that the entry holds, the
                // bounce buffer it owns, or static zeroes. The entry is given back only when its last operation
                // has been harvested.
                Some(op) => unsafe { env.io.push(op, user_data) },
                None => Err(Full),
            },
        };
        if pushed.is_err() {
            self.waiting.push_back(index);
        }
    }

    fn finish<R: DeviceRing>(
        &mut self,
        at: &FileLane<'_>,
        index: u16,
        status: Status,
        ring: &mut R,
        env: &mut Env<'_>,
    ) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let (kind, bytes) = (entry.transfer.kind(), entry.transfer.bytes());
        // A failed read may have filled part of the buffers: all of them count as written, for the dirty log.
        let data = if kind == Kind::Read { entry.chain.writable_len() as u32 } else { 0 };
        let Some(epoch) = entry.epoch.take() else { return };
        let mem = env.epochs.view_of(epoch);
        let written = entry.chain.write_status(mem, status as u8).map_or(0, |()| data + 1);
        ring.complete(mem, &entry.chain, written);
        at.lane.completed(kind.op(), 1, bytes);
        at.lane.took(kind.op(), 1, env.now.saturating_sub(entry.started));
        if status != Status::Ok {
            at.lane.stats.errors[kind.op() as usize].add(1);
        }
        env.epochs.leave(epoch);
        self.recovered -= u32::from(std::mem::take(&mut entry.recovered));
        entry.chain.trim();
        self.entries.give(index);
    }
}

/// How a request begins.
enum Begun {
    /// It is done already, with so many data bytes written to the guest.
    Answered(u32),
    /// The entry's transfer is set up.
    Transfer,
}

impl Entry {
    fn begin(&mut self, at: &FileLane<'_>, request: Request, env: &Env<'_>) -> Result<Begun, Refusal> {
        if at.disk.locked_out() {
            return Err(Refusal { status: Some(Status::IoErr), fault: Fault::Host });
        }
        let (chain, mem) = (&mut self.chain, env.epochs.view());
        match request {
            Request::In(extent) => self.transfer.begin(Kind::Read, extent, false),
            Request::Out(extent) => self.transfer.begin(Kind::Write, extent, at.disk.durable()),
            Request::Flush => {
                at.disk.flush_seen();
                self.transfer.begin(Kind::Flush, Extent::default(), false);
            }
            Request::GetId => return write_id(chain, mem, at.disk).map(Begun::Answered),
            Request::Ranges { op, count } => {
                let transfer = &mut self.transfer;
                transfer.begin(Kind::Ranges(op), Extent::default(), at.disk.durable());
                let add = |range| transfer.add_range(range);
                read_ranges(chain, mem, &at.disk.rules(), (op, count), add)?;
            }
        }
        Ok(Begun::Transfer)
    }
}

fn context<'c, 'e>(
    at: &'e FileLane<'_>,
    chain: &'c Chain,
    epoch: Epoch,
    env: &'e mut Env<'_>,
) -> StepContext<'c, 'e> {
    StepContext { chain, mem: env.epochs.view_of(epoch), file: at.file, pool: env.pool, stats: at.lane.stats }
}

/// A step as an operation of the I/O engine.
fn operation(step: &Step<'_>, file: Option<FileSlot>) -> Option<IoOp> {
    let file = file?;
    let iov = |segments: &[HostRange]| (segments.as_ptr().cast::<libc::iovec>(), segments.len() as u32);
    Some(match *step {
        Step::Read { segments, offset } => {
            let (iov, n) = iov(segments);
            IoOp::Readv { file, iov, n, offset, flags: 0 }
        }
        Step::Write { segments, offset, durable } => {
            let (iov, n) = iov(segments);
            IoOp::Writev { file, iov, n, offset, flags: if durable { libc::RWF_DSYNC } else { 0 } }
        }
        Step::Sync => IoOp::Fsync { file, data_only: true },
        Step::Allocate { mode, extent } => {
            IoOp::Fallocate { file, mode, offset: extent.offset, len: extent.len }
        }
        Step::Ioctl { .. } | Step::Wait | Step::Finished(_) => return None,
    })
}

/// Runs on a helper thread.
fn range_ioctl(disk: &Disk, which: sys::RangeIoctl, extent: Extent) -> i32 {
    let Some(file) = disk.backend().file() else { return -libc::EBADF };
    match sys::range_ioctl(file.file(), which, extent.offset, extent.len) {
        Ok(()) => 0,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounce::BouncePool;
    use crate::features::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
    use crate::options::{DiskOptions, Source};
    use memory::{Epochs, MemoryTable};
    use runtime::doorbell::{Doorbell, EventBell};
    use runtime::io::{Io, IoConfig};
    use runtime::stats::WorkerStats;

    /// The flags of the operation that a write to `disk` becomes.
    fn write_flags(disk: &Arc<Disk>) -> i32 {
        let doorbell = Arc::new(Doorbell::new(EventBell::new().unwrap()));
        let mut io = Io::new(IoConfig::default(), doorbell).unwrap();
        let (file, stats) = (disk.backend().file().unwrap(), WorkerStats::default());
        let slot = Some(io.add_file(file.file()).unwrap());
        let (mut epochs, mut pool) = (Epochs::new(MemoryTable::empty()), BouncePool::default());
        let epoch = epochs.enter();
        let mut env =
            Env { io: &mut io, epochs: &mut epochs, pool: &mut pool, now: 0, key: 0, stats: &stats };
        let at = FileLane { lane: Lane::of(disk, 0, &stats), disk, file, slot };
        let mut entry = Entry::default();
        let request = Request::Out(Extent { offset: 0, len: 512 });
        assert!(matches!(entry.begin(&at, request, &env), Ok(Begun::Transfer)));
        let step = entry.transfer.step(&mut context(&at, &entry.chain, epoch, &mut env));
        match operation(&step, slot) {
            Some(IoOp::Writev { flags, .. }) => flags,
            other => panic!("not a write: {other:?}"),
        }
    }

    #[test]
    fn writes_are_stable_when_they_complete_just_while_the_cache_is_write_through() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let disk = Disk::open(DiskOptions::new("test", Source::File(image.path().into()))).unwrap();
        let disk = Arc::new(disk);
        disk.negotiate(VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE);
        assert_eq!(write_flags(&disk), 0);
        disk.set_writeback(false).unwrap();
        assert_eq!(write_flags(&disk), libc::RWF_DSYNC);
        disk.set_writeback(true).unwrap();
        assert_eq!(write_flags(&disk), 0);
        disk.negotiate(0);
        assert_eq!(write_flags(&disk), libc::RWF_DSYNC, "a driver that cannot flush");
    }
}
