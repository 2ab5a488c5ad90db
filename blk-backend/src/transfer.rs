//! One request to a file, from its first operation to its status: what to submit next, and what a result
//! means. No I/O happens here: [`Transfer::step`] says what to do and [`Transfer::result`] takes the answer,
//! until a [`Step::Finished`].
//!
//! Short transfers go on with the rest, EINTR and EAGAIN are tried again a bounded number of times, an end of
//! file inside the disk is an I/O error, and what the host cannot do (`ZERO_RANGE` on tmpfs, say) is remembered
//! and done another way. So every request ends, and OK means done.

use crate::backend::FileBackend;
use crate::backend::sys::{Alignment, RangeIoctl};
use crate::bounce::{BOUNCE_LEN, BounceBuffer, BouncePool};
use crate::request::{Extent, RangeOp, Status};
use crate::stats::{Fault, Op, QueueCounters};
use memory::{HostRange, MemoryView};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use virtqueue::Chain;

/// Most segments of one operation (IOV_MAX); a request with more goes in several.
const MAX_SEGMENTS: usize = 1024;

/// How often in a row an operation is tried again after EINTR or EAGAIN.
const MAX_RETRIES: u32 = 1000;

/// Zeroes to write where the host has no other way to make them.
#[repr(align(4096))]
struct ZeroBlock([u8; 64 << 10]);
static ZEROES: ZeroBlock = ZeroBlock([0; 64 << 10]);
const ZERO_SEGMENTS: usize = 16;

/// A piece of a range operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which bytes.
    pub extent: Extent,
    /// Whether they may be deallocated.
    pub unmap: bool,
}

/// What a transfer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// File to guest.
    #[default]
    Read,
    /// Guest to file.
    Write,
    /// fdatasync.
    Flush,
    /// One of the operations on ranges.
    Ranges(RangeOp),
}

impl Kind {
    /// Its counter.
    pub fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
            Self::Flush => Op::Flush,
            Self::Ranges(op) => op.into(),
        }
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Step<'a> {
    /// Read into the segments.
    Read {
        /// Where to, at most 1,024.
        segments: &'a [HostRange],
        /// Byte offset in the file.
        offset: u64,
    },
    /// Write the segments.
    Write {
        /// Where from, at most 1,024.
        segments: &'a [HostRange],
        /// Byte offset in the file.
        offset: u64,
        /// With RWF_DSYNC.
        durable: bool,
    },
    /// fdatasync.
    Sync,
    /// fallocate with this mode.
    Allocate {
        /// `FALLOC_FL_*`.
        mode: i32,
        /// What.
        extent: Extent,
    },
    /// A blocking call on a block device.
    Ioctl {
        /// Which.
        which: RangeIoctl,
        /// What.
        extent: Extent,
    },
    /// No bounce buffer is free: come back when one is.
    Wait,
    /// The end.
    Finished(Status),
}

/// What was submitted last, to know what its result means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pending {
    #[default]
    Nothing,
    Data,
    Sync,
    Range(Method),
    Zeroes,
}

/// How data travel between the guest's buffers and the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Route {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// Straight.
    Direct,
    /// Through a bounce buffer.
    Bounced,
}

/// A way to carry out a range operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    PunchHole,
    ZeroRange,
    Ioctl(RangeIoctl),
}

impl Method {
    fn step<'a>(self, extent: Extent) -> Step<'a> {
        match self {
            Self::PunchHole => {
                Step::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, extent }
            }
            Self::ZeroRange => {
                Step::Allocate { mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, extent }
            }
            Self::Ioctl(which) => Step::Ioctl { which, extent },
        }
    }

    /// Where it is remembered that the host cannot do it; a file that says it can erase is held to it.
    fn unsupported(self, file: &FileBackend) -> Option<&AtomicBool> {
        match self {
            Self::PunchHole => Some(&file.unsupported.punch_hole),
            Self::ZeroRange => Some(&file.unsupported.zero_range),
            Self::Ioctl(RangeIoctl::Discard) => Some(&file.unsupported.discard_ioctl),
            Self::Ioctl(RangeIoctl::ZeroOut | RangeIoctl::SecureErase) => None,
        }
    }
}

/// Progress of one request. Lives in a queue's slab and is used again and again; what it allocated it keeps.
#[derive(Debug, Default)]
pub struct Transfer {
    kind: Kind,
    extent: Extent,
    durable: bool,
    pending: Pending,
    /// Bytes of `extent`, or of the present range, that are done.
    done: u64,
    synced: bool,
    retries: u32,
    failed: Option<Status>,
    /// Segments of a continued, bounced or zeroing operation; else the chain's own are used.
    segments: Vec<HostRange>,
    route: Route,
    bounce: Option<BounceBuffer>,
    ranges: Vec<Range>,
    next_range: usize,
    /// The host refused the alignment of the present range: zeroes are written.
    by_writing: bool,
}

impl Transfer {
    /// Begins a read, a write or a flush of a chain whose header and status are taken off. `durable`: complete
    /// only when on stable storage.
    pub fn begin(&mut self, kind: Kind, extent: Extent, durable: bool) {
        debug_assert!(self.bounce.is_none());
        let (segments, ranges) = (std::mem::take(&mut self.segments), std::mem::take(&mut self.ranges));
        *self = Self { kind, extent, durable, segments, ranges, ..Self::default() };
        self.segments.clear();
        self.ranges.clear();
    }

    /// Adds a piece to a range operation that has begun.
    pub fn add_range(&mut self, range: Range) {
        self.ranges.push(range);
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes the request is about, for counters.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => self.extent.len,
            Kind::Flush => 0,
            Kind::Ranges(_) => self.ranges.iter().map(|r| r.extent.len).sum(),
        }
    }

    /// Whether two requests must not be reordered: they touch a common byte and one of them changes it.
    pub fn conflicts(&self, other: &Self) -> bool {
        let changes = |t: &Self| matches!(t.kind, Kind::Write | Kind::Ranges(_));
        (changes(self) || changes(other))
            && self.extents().any(|mine| other.extents().any(|theirs| mine.overlaps(&theirs)))
    }

    fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let data = matches!(self.kind, Kind::Read | Kind::Write).then_some(self.extent);
        data.into_iter().chain(self.ranges.iter().map(|r| r.extent))
    }

    /// What to do next.
    pub fn step<'c>(&'c mut self, cx: &mut StepContext<'c, '_>) -> Step<'c> {
        if let Some(status) = self.failed {
            return self.finish(status, cx.pool);
        }
        match self.kind {
            Kind::Read | Kind::Write if self.done < self.extent.len => self.data_step(cx),
            Kind::Read | Kind::Write => self.finish(Status::Ok, cx.pool),
            Kind::Flush => self.sync_step(cx),
            Kind::Ranges(op) => self.range_step(op, cx),
        }
    }

    fn finish(&mut self, status: Status, pool: &mut BouncePool) -> Step<'_> {
        if let Some(buffer) = self.bounce.take() {
            pool.give(buffer);
        }
        Step::Finished(status)
    }

    fn fail(&mut self, fault: Fault, cx: &StepContext<'_, '_>) {
        cx.stats.failed(fault);
        self.failed = Some(Status::IoErr);
    }

    fn sync_step<'c>(&'c mut self, cx: &mut StepContext<'c, '_>) -> Step<'c> {
        if self.synced {
            return Step::Finished(Status::Ok);
        }
        if cx.file.cache_lost() {
            cx.stats.failed(Fault::Host);
            return Step::Finished(Status::IoErr);
        }
        self.pending = Pending::Sync;
        Step::Sync
    }

    fn data_step<'c>(&'c mut self, cx: &mut StepContext<'c, '_>) -> Step<'c> {
        if self.route == Route::Unknown {
            self.route = self.choose_route(cx);
        }
        if self.route == Route::Bounced {
            return self.bounced_step(cx);
        }
        self.pending = Pending::Data;
        let offset = self.extent.offset + self.done;
        let segments = if self.done == 0 {
            let all = self.data(cx.chain);
            &all[..all.len().min(MAX_SEGMENTS)]
        } else {
            let mut rest = std::mem::take(&mut self.segments);
            tail(self.data(cx.chain), self.done, &mut rest);
            self.segments = rest;
            &self.segments
        };
        data_operation(self.kind, segments, offset, self.durable)
    }

    fn data<'c>(&self, chain: &'c Chain) -> &'c [HostRange] {
        if self.kind == Kind::Read { chain.writable() } else { chain.readable() }
    }

    fn choose_route(&self, cx: &StepContext<'_, '_>) -> Route {
        if !cx.file.direct().is_some_and(|align| misaligned(self.data(cx.chain), align)) {
            return Route::Direct;
        }
        cx.stats.bounced.add(1);
        if !cx.pool.available() {
            cx.stats.bounce_waits.add(1);
        }
        Route::Bounced
    }

    /// The next piece through an aligned buffer.
    fn bounced_step<'c>(&'c mut self, cx: &mut StepContext<'c, '_>) -> Step<'c> {
        if self.bounce.is_none() {
            self.bounce = cx.pool.take();
        }
        let left = self.extent.len - self.done;
        let len = left.min(BOUNCE_LEN as u64) as usize;
        let Some(buffer) = &mut self.bounce else {
            if cx.pool.in_use() > 0 {
                return Step::Wait;
            }
            // The host has no memory for the first buffer: nothing would ever end the wait.
            self.fail(Fault::Host, cx);
            return Step::Finished(Status::IoErr);
        };
        if self.kind == Kind::Write
            && cx.chain.read_at(cx.mem, self.done as usize, buffer.bytes_mut(len)).is_err()
        {
            self.fail(Fault::Malformed, cx);
            return self.finish(Status::IoErr, cx.pool);
        }
        let range = buffer.range(len);
        self.segments.clear();
        self.segments.push(range);
        self.pending = Pending::Data;
        data_operation(self.kind, &self.segments, self.extent.offset + self.done, self.durable)
    }

    fn range_step<'c>(&'c mut self, op: RangeOp, cx: &mut StepContext<'c, '_>) -> Step<'c> {
        while let Some(range) = self.ranges.get(self.next_range).copied() {
            if self.done < range.extent.len {
                match method(op, range.unmap, cx.file) {
                    Some(method) if !self.by_writing => {
                        self.pending = Pending::Range(method);
                        return method.step(range.extent);
                    }
                    _ if op == RangeOp::WriteZeroes => return self.zero_step(range.extent),
                    // A discard the host cannot do: only a hint (virtio 1.3 §5.2.6), so it is done.
                    _ => cx.stats.discards_ignored.add(1),
                }
            }
            self.next_range += 1;
            self.done = 0;
            self.by_writing = false;
        }
        if self.durable { self.sync_step(cx) } else { Step::Finished(Status::Ok) }
    }

    /// Zeroes written like data; made durable, if they must be, by the sync that ends the request.
    fn zero_step(&mut self, extent: Extent) -> Step<'_> {
        let mut left = extent.len - self.done;
        self.segments.clear();
        while left > 0 && self.segments.len() < ZERO_SEGMENTS {
            let len = left.min(ZEROES.0.len() as u64) as usize;
            // Only ever read: the operation is a write to the file.
            let base = std::ptr::from_ref(&ZEROES).cast_mut().cast();
            self.segments.push(HostRange { base, len });
            left -= len as u64;
        }
        self.pending = Pending::Zeroes;
        let offset = extent.offset + self.done;
        Step::Write { segments: &self.segments, offset, durable: false }
    }

    /// Takes the result of what the last [`step`](Self::step) asked for: a count or `-errno`.
    pub fn result(&mut self, result: i32, cx: &mut StepContext<'_, '_>) {
        if result == -libc::EINTR || result == -libc::EAGAIN {
            self.retries += 1;
            cx.stats.retries.add(1);
            if self.retries > MAX_RETRIES {
                self.fail(Fault::Host, cx);
            }
            return;
        }
        self.retries = 0;
        match self.pending {
            Pending::Data | Pending::Zeroes if result > 0 => self.advance(result as u64, cx),
            Pending::Data | Pending::Zeroes if result == 0 => self.fail(Fault::EndOfFile, cx),
            Pending::Range(method) if result < 0 => self.range_failed(method, -result, cx),
            Pending::Range(_) => self.done = self.range_len(),
            Pending::Sync if result < 0 => {
                cx.file.flush_failed();
                self.fail(Fault::of_errno(-result), cx);
            }
            Pending::Sync => self.synced = true,
            Pending::Data | Pending::Zeroes => self.fail(Fault::of_errno(-result), cx),
            Pending::Nothing => debug_assert!(false, "a result without an operation"),
        }
    }

    fn range_len(&self) -> u64 {
        self.ranges.get(self.next_range).map_or(0, |r| r.extent.len)
    }

    fn advance(&mut self, bytes: u64, cx: &mut StepContext<'_, '_>) {
        let total = if self.pending == Pending::Zeroes { self.range_len() } else { self.extent.len };
        let bytes = bytes.min(total - self.done);
        if self.kind == Kind::Read
            && let Some(buffer) = &mut self.bounce
        {
            let bytes = bytes as usize;
            if cx.chain.write_at(cx.mem, self.done as usize, buffer.bytes_mut(bytes)).is_err() {
                return self.fail(Fault::Malformed, cx);
            }
        }
        self.done += bytes;
        if self.done < total && self.pending == Pending::Data && self.bounce.is_none() {
            cx.stats.partial.add(1);
        }
    }

    /// What the host cannot do is remembered; the next step chooses another way.
    fn range_failed(&mut self, method: Method, errno: i32, cx: &mut StepContext<'_, '_>) {
        let cannot = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY);
        match method.unsupported(cx.file) {
            Some(flag) if cannot => flag.store(true, Relaxed),
            // A block device refuses pieces of its logical blocks; writing them or skipping the hint works.
            Some(_) if errno == libc::EINVAL => self.by_writing = true,
            _ => self.fail(Fault::of_errno(errno), cx),
        }
    }
}

/// What a step may use.
pub struct StepContext<'c, 'e> {
    /// The chain of the request.
    pub chain: &'c Chain,
    /// Guest memory as it was when the chain was fetched.
    pub mem: &'e MemoryView,
    /// The disk's file.
    pub file: &'e FileBackend,
    /// The worker's bounce buffers.
    pub pool: &'e mut BouncePool,
    /// The queue's counters.
    pub stats: &'e QueueCounters,
}

fn data_operation(kind: Kind, segments: &[HostRange], offset: u64, durable: bool) -> Step<'_> {
    match kind {
        Kind::Read => Step::Read { segments, offset },
        _ => Step::Write { segments, offset, durable },
    }
}

/// Whether O_DIRECT would refuse these buffers.
fn misaligned(segments: &[HostRange], align: Alignment) -> bool {
    let (memory, length) = (align.memory as usize, align.offset as usize);
    segments.iter().any(|s| !(s.base as usize).is_multiple_of(memory) || !s.len.is_multiple_of(length))
}

/// The segments from byte `skip` on, as many as one operation takes.
fn tail(segments: &[HostRange], mut skip: u64, rest: &mut Vec<HostRange>) {
    rest.clear();
    for segment in segments {
        if rest.len() == MAX_SEGMENTS {
            break;
        }
        let len = segment.len as u64;
        if skip >= len {
            skip -= len;
            continue;
        }
        rest.extend(segment.sub(skip as usize, (len - skip) as usize));
        skip = 0;
    }
}

/// The first way to carry out `op` that the host has not refused.
fn method(op: RangeOp, unmap: bool, file: &FileBackend) -> Option<Method> {
    let ways: &[Method] = match (op, file.is_block_device()) {
        (RangeOp::Discard, true) => &[Method::Ioctl(RangeIoctl::Discard)],
        (RangeOp::Discard, false) => &[Method::PunchHole],
        (RangeOp::WriteZeroes, _) if unmap => &[Method::PunchHole, Method::ZeroRange],
        // The kernel's ZERO_RANGE on a block device writes zeroes where the device has no command for it.
        (RangeOp::WriteZeroes, _) => &[Method::ZeroRange],
        (RangeOp::SecureErase, _) => &[Method::Ioctl(RangeIoctl::SecureErase)],
    };
    let works = |m: &&Method| m.unsupported(file).is_none_or(|flag| !flag.load(Relaxed));
    ways.iter().find(works).copied()
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
