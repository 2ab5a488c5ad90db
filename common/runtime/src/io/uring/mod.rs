//! The io_uring engine: operations, kicks and the doorbell on one ring, one system call a batch.
//!
//! The ring belongs to its thread (SINGLE_ISSUER), completions are only processed when this thread asks for them
//! (DEFER_TASKRUN), and a flag in shared memory tells a spinning worker that asking is worth a system call
//! (TASKRUN_FLAG). Older kernels, down to Linux 5.19, get what they have.
#![expect(
    unsafe_code,
    reason = "operations are submitted with raw buffers, whose lifetime the caller promises"
)]

mod setup;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{self, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{cqueue, opcode};
use memory::{HostRange, MemoryTable};

use self::setup::{Mode, Parts, build, restrict};
use super::pool::{Job, Pool, Work};
use super::registered::{Buffers, File, Files};
use super::watch::Watches;
use super::{Event, FileSlot, Full, IoCounters, Op, Setup, USER_DATA_END, WatchId};
use crate::doorbell::{Doorbell, EventBell};

pub(super) use self::setup::MODES;

/// Places in the ring's file table; further files are used by descriptor.
const FILES: u32 = 256;
/// Places in the ring's buffer table: 1 TiB of guest memory at 1 GiB each, over all devices of the worker.
const BUFFERS: u16 = 1024;

/// IORING_ENTER_GETEVENTS, IORING_ENTER_EXT_ARG, IORING_ENTER_NO_IOWAIT (`linux/io_uring.h`).
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_NO_IOWAIT: u32 = 1 << 7;

/// Who a completion is for: the bits of the user data above [`USER_DATA_END`].
const TAG_WATCH: u64 = USER_DATA_END;
const TAG_BELL: u64 = 2 * USER_DATA_END;
const TAG_IGNORED: u64 = 3 * USER_DATA_END;

/// See the module's text.
pub struct Engine {
    parts: Parts,
    doorbell: Arc<Doorbell<EventBell>>,
    watches: Watches,
    files: Files,
    buffers: Option<Buffers>,
    /// Started at the first offloaded call.
    pool: Pool,
    /// Entries in the queue that the kernel has not taken.
    queued: u32,
    in_flight: u32,
    depth: u32,
    no_iowait: bool,
    /// Polls to arm again: the doorbell's and watches', by user data.
    rearm: Vec<u64>,
    /// Offloaded calls cancelled before they began; their completions are delivered by the next harvest.
    cancelled: Vec<u64>,
    counters: IoCounters,
}

impl Engine {
    pub(super) fn new(setup: &Setup) -> io::Result<Self> {
        Self::with_modes(setup, &MODES)
    }

    /// With the best of these modes that the kernel knows.
    pub(super) fn with_modes(setup: &Setup, modes: &[Mode]) -> io::Result<Self> {
        let depth = setup.config.depth.max(1);
        let mut parts = build(depth, modes)?;
        if !(parts.params().is_feature_ext_arg() && parts.params().is_feature_nodrop()) {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let mut counters = IoCounters::default();
        let mut counted = |registered: io::Result<()>| {
            counters.register_refused += u64::from(registered.is_err());
            registered.is_ok()
        };
        // Everything before `register_enable_rings`: the restrictions would forbid it afterwards.
        let files = counted(parts.submitter.register_files_sparse(FILES));
        let buffers = setup.config.register_memory
            && counted(parts.submitter.register_buffers_sparse(u32::from(BUFFERS)));
        restrict(&parts.submitter);
        parts.submitter.register_enable_rings()?;
        counted(parts.submitter.register_ring_fd());
        let no_iowait = parts.params().is_feature_no_iowait();
        // Half of the completion queue is for operations, the other half for polls; what does not fit is kept by the
        // kernel (NODROP) and fetched by `enter`.
        let depth = depth.min(parts.params().cq_entries() / 2);
        let mut engine = Self {
            parts,
            doorbell: setup.doorbell.clone(),
            watches: Watches::default(),
            files: Files::new(if files { FILES } else { 0 }),
            buffers: buffers.then(|| Buffers::new(BUFFERS)),
            pool: Pool::new(setup),
            queued: 0,
            in_flight: 0,
            depth,
            no_iowait,
            rearm: Vec::new(),
            cancelled: Vec::new(),
            counters,
        };
        engine.poll(engine.doorbell.bell().as_raw_fd(), TAG_BELL)?;
        engine.flush()?;
        Ok(engine)
    }

    pub(super) fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<FileSlot> {
        let slot = self.files.free_slot();
        let registered = slot < self.files.table
            && self.parts.submitter.register_files_update(slot, &[file.as_raw_fd()]).is_ok();
        let entry = match registered {
            true => File::Registered,
            false => File::Plain(file.try_clone_to_owned()?),
        };
        self.files.set(slot, entry);
        Ok(FileSlot(slot))
    }

    pub(super) fn remove_file(&mut self, slot: FileSlot) {
        // Entries not yet submitted name the file by number: let the kernel take its references first.
        if self.queued > 0
            && let Err(error) = self.flush()
        {
            tracing::warn!(%error, "Operations on a removed file may fail");
        }
        if let Some(File::Registered) = self.files.remove(slot.0) {
            // Operations in flight keep the file; its place is free at once.
            let _ = self.parts.submitter.register_files_update(slot.0, &[-1]);
        }
    }

    /// # Safety
    ///
    /// As [`Io::push`](super::Io::push).
    #[inline]
    pub(super) unsafe fn push(&mut self, op: Op, user_data: u64) -> Result<(), Full> {
        if self.in_flight >= self.depth {
            return Err(Full);
        }
        let entry = self.entry(op).user_data(user_data);
        // SAFETY: the caller keeps the buffers until the completion.
        unsafe { self.enqueue(&entry)? };
        self.in_flight += 1;
        self.counters.submitted += 1;
        Ok(())
    }

    pub(super) fn offload(
        &mut self,
        user_data: u64,
        call: Box<dyn FnOnce() -> i32 + Send>,
    ) -> Result<(), Full> {
        if self.in_flight >= self.depth {
            return Err(Full);
        }
        self.in_flight += 1;
        self.counters.submitted += 1;
        self.pool.submit([Job { user_data, work: Work::Offload(call) }]);
        Ok(())
    }

    /// One `io_uring_enter` if there is anything to submit or any deferred work to run.
    #[inline]
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.queued == 0 && !self.wants_enter() {
            return Ok(());
        }
        self.submit()
    }

    #[inline]
    pub(super) fn harvest(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        if self.wants_enter() {
            self.submit()?;
        }
        self.parts.cq.sync();
        while let Some(completion) = self.parts.cq.next() {
            let (user_data, result) = (completion.user_data(), completion.result());
            if user_data < USER_DATA_END {
                self.in_flight -= 1;
                self.counters.completed += 1;
                events.push(Event::Done { user_data, result });
            } else {
                self.polled(user_data, result, cqueue::more(completion.flags()), events);
            }
        }
        // Gives the entries back to the kernel.
        self.parts.cq.sync();
        self.harvest_offloaded(events);
        if self.rearm.is_empty() { Ok(()) } else { self.rearm_polls() }
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<()> {
        self.parts.sq.sync();
        self.parts.cq.sync();
        // A poll that could not be armed again must not be slept over.
        let want = u32::from(self.parts.cq.is_empty() && self.rearm.is_empty());
        let timeout =
            timeout_ns.map(|ns| Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32));
        let args = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
        // A worker that only waits for kicks is idle, not waiting for a disk: do not count it as iowait.
        let iowait = if self.no_iowait && self.in_flight == 0 { ENTER_NO_IOWAIT } else { 0 };
        let flags = ENTER_GETEVENTS | ENTER_EXT_ARG | iowait;
        self.counters.enters += 1;
        // SAFETY: EXT_ARG promises a `io_uring_getevents_arg`, which is what `SubmitArgs` is (the crate's own
        // `submit_with_args` does the same); it and the timeout live through the call.
        let result = unsafe { self.parts.submitter.enter(self.queued, want, flags, Some(&args)) };
        self.entered(result)
    }

    pub(super) fn watch(&mut self, fd: RawFd) -> io::Result<WatchId> {
        // As epoll does. A poll on one would end as soon as it is armed, for ever.
        if always_ready(fd)? {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let id = self.watches.insert(fd);
        let added = self.poll(fd, TAG_WATCH | id.bits());
        // Not deferred: the kernel must hold the file before the caller may close its descriptor.
        let added = added.and_then(|()| self.flush());
        if added.is_err() {
            self.watches.remove(id);
        }
        added.map(|()| id)
    }

    pub(super) fn unwatch(&mut self, id: WatchId) {
        if self.watches.remove(id).is_some() {
            let entry = opcode::AsyncCancel::new(TAG_WATCH | id.bits()).build().user_data(TAG_IGNORED);
            // SAFETY: a cancellation has no buffers.
            let queued = unsafe { self.enqueue(&entry) };
            if queued.is_err() || self.flush().is_err() {
                // The poll goes on; its events are dropped by the watch's generation.
                tracing::warn!("A watch could not be cancelled");
            }
        }
    }

    /// Puts the owner's registration in step with `table`.
    pub(super) fn register_memory(&mut self, owner: u32, table: &Arc<MemoryTable>) {
        let Some(buffers) = &self.buffers else { return };
        let change = match buffers.plan(owner, table) {
            Some(change) => change,
            None => return self.unregister_memory(owner, "more mappings than the kernel's table takes"),
        };
        let update = |index: u16, base: usize, len: usize| {
            let iovec = libc::iovec { iov_base: base as *mut _, iov_len: len };
            // SAFETY: the range is a mapping of `table`, or empty; the table is kept until it is replaced.
            unsafe { self.parts.submitter.register_buffers_update(u32::from(index), &[iovec], None) }
        };
        for buffer in &change.remove {
            // Operations in flight keep the pages.
            let _ = update(buffer.index, 0, 0);
        }
        let added = change.add.iter().try_for_each(|buffer| update(buffer.index, buffer.base, buffer.len));
        match added {
            Ok(()) => {
                if let Some(buffers) = &mut self.buffers {
                    buffers.apply(owner, table, change);
                }
            }
            Err(error) => {
                for buffer in &change.add {
                    let _ = update(buffer.index, 0, 0);
                }
                self.unregister_memory(owner, &refusal(&error));
            }
        }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn room(&self) -> u32 {
        self.depth.saturating_sub(self.in_flight)
    }

    pub(super) fn counters(&self) -> IoCounters {
        self.counters
    }

    pub(super) fn doorbell(&self) -> &Arc<Doorbell<EventBell>> {
        &self.doorbell
    }

    /// All of the owner's memory goes back to ordinary transfers.
    #[cold]
    fn unregister_memory(&mut self, owner: u32, why: &str) {
        tracing::info!(owner, why, "Guest memory is not registered; I/O goes on without");
        self.counters.register_refused += 1;
        let Some(buffers) = &mut self.buffers else { return };
        for buffer in buffers.of(owner) {
            let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: an empty range only empties the place.
            let _ = unsafe {
                self.parts.submitter.register_buffers_update(u32::from(buffer.index), &[empty], None)
            };
        }
        buffers.forget(owner);
    }

    #[inline]
    fn harvest_offloaded(&mut self, events: &mut Vec<Event>) {
        let before = events.len();
        while let Some(finished) = self.pool.next_finished() {
            events.push(Event::Done { user_data: finished.user_data, result: finished.result });
        }
        let cancelled = self.cancelled.drain(..);
        events.extend(cancelled.map(|user_data| Event::Done { user_data, result: -libc::ECANCELED }));
        let ended = events.len() - before;
        self.in_flight -= ended as u32;
        self.counters.completed += ended as u64;
    }

    /// Whether deferred completions or an overflow wait for an `enter`: two loads of one cached line.
    #[inline]
    fn wants_enter(&self) -> bool {
        self.parts.sq.taskrun() || self.parts.sq.cq_overflow()
    }

    fn submit(&mut self) -> io::Result<()> {
        self.parts.sq.sync();
        // GETEVENTS always: it runs the deferred work of what this very call submits, and polls' too.
        self.counters.enters += 1;
        // SAFETY: without EXT_ARG the argument is a signal mask, and there is none.
        let result =
            unsafe { self.parts.submitter.enter::<libc::sigset_t>(self.queued, 0, ENTER_GETEVENTS, None) };
        self.entered(result)
    }

    /// Accounts for what an `enter` took. What it did not take stays queued for the next one.
    fn entered(&mut self, result: io::Result<usize>) -> io::Result<()> {
        match result {
            Ok(taken) => {
                self.queued = self.queued.saturating_sub(taken as u32);
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                // The time is up, a signal, or the kernel wants the completions harvested first (CQ overflow, memory).
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {
                    // These errors are returned only when nothing was submitted, except ETIME and EINTR of the wait.
                    self.parts.sq.sync();
                    self.queued = self.parts.sq.len() as u32;
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// # Safety
    ///
    /// The buffers of `entry` live until its completion.
    #[inline]
    unsafe fn enqueue(&mut self, entry: &Entry) -> Result<(), Full> {
        if self.parts.sq.is_full() {
            self.make_room()?;
        }
        // SAFETY: the caller's promise; the opcode and its parameters are ours.
        unsafe { self.parts.sq.push(entry) }.map_err(|_| Full)?;
        self.queued += 1;
        Ok(())
    }

    /// The queue holds one batch: look whether the kernel has taken entries, or hand them over.
    #[cold]
    fn make_room(&mut self) -> Result<(), Full> {
        self.parts.sq.sync();
        if self.parts.sq.is_full() {
            self.submit().map_err(|_| Full)?;
            self.parts.sq.sync();
        }
        if self.parts.sq.is_full() { Err(Full) } else { Ok(()) }
    }

    /// How an entry names a file: by its place in the ring's table, or by descriptor. A file that was removed is a
    /// place without a file: `-EBADF` from the kernel.
    #[inline]
    fn target(&self, slot: FileSlot) -> (types::Fd, Flags) {
        match self.files.get(slot.0) {
            Some(File::Registered) => (types::Fd(slot.0 as i32), Flags::FIXED_FILE),
            Some(File::Plain(fd)) => (types::Fd(fd.as_raw_fd()), Flags::empty()),
            None => (types::Fd(-1), Flags::empty()),
        }
    }

    #[inline]
    fn entry(&mut self, op: Op) -> Entry {
        match op {
            Op::Readv { file, iov, n, offset, flags } => {
                let (fd, fixed) = self.target(file);
                match self.single(iov, n) {
                    Some((segment, Some(index))) => {
                        opcode::ReadFixed::new(fd, segment.base.cast(), length(segment), index)
                            .offset(offset)
                            .rw_flags(flags)
                            .build()
                    }
                    Some((segment, None)) => opcode::Read::new(fd, segment.base.cast(), length(segment))
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Readv::new(fd, iov, n).offset(offset).rw_flags(flags).build(),
                }
                .flags(fixed)
            }
            Op::Writev { file, iov, n, offset, flags } => {
                let (fd, fixed) = self.target(file);
                match self.single(iov, n) {
                    Some((segment, Some(index))) => {
                        opcode::WriteFixed::new(fd, segment.base.cast(), length(segment), index)
                            .offset(offset)
                            .rw_flags(flags)
                            .build()
                    }
                    Some((segment, None)) => opcode::Write::new(fd, segment.base.cast(), length(segment))
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Writev::new(fd, iov, n).offset(offset).rw_flags(flags).build(),
                }
                .flags(fixed)
            }
            Op::Fsync { file, data_only } => {
                let (fd, fixed) = self.target(file);
                let sync = if data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
                opcode::Fsync::new(fd).flags(sync).build().flags(fixed)
            }
            Op::Fallocate { file, mode, offset, len } => {
                let (fd, fixed) = self.target(file);
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build().flags(fixed)
            }
            Op::Nop => opcode::Nop::new().build(),
            Op::Cancel { target } => self.cancel(target),
        }
    }

    /// The segment of a transfer that has just one, and its registered buffer: both forms spare the kernel the copy of
    /// the `iovec` array.
    #[inline]
    fn single(&mut self, iov: *const libc::iovec, n: u32) -> Option<(HostRange, Option<u16>)> {
        if n != 1 {
            return None;
        }
        // SAFETY: the contract of `push`: `iov` points to `n` segments. `HostRange` has the layout of `iovec`.
        let segment = unsafe { *iov.cast::<HostRange>() };
        let index = self.buffers.as_ref().and_then(|buffers| buffers.find(segment));
        self.counters.fixed += u64::from(index.is_some());
        Some((segment, index))
    }

    /// An offloaded call is cancelled here, and then nothing is left to do for the kernel.
    fn cancel(&mut self, target: u64) -> Entry {
        if !self.pool.cancel(target) {
            return opcode::AsyncCancel::new(target).build();
        }
        self.cancelled.push(target);
        opcode::Nop::new().build()
    }

    fn poll(&mut self, fd: RawFd, user_data: u64) -> io::Result<()> {
        // Multishot without IORING_POLL_ADD_LEVEL is edge-triggered: an eventfd need not be read.
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build();
        // SAFETY: a poll has no buffers.
        unsafe { self.enqueue(&entry.user_data(user_data)) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// An event of a poll. It may be its last one (`more` is false), for example after an overflow.
    fn polled(&mut self, user_data: u64, result: i32, more: bool, events: &mut Vec<Event>) {
        let tag = user_data & !(USER_DATA_END - 1);
        let id = WatchId::from_bits(user_data & (USER_DATA_END - 1));
        match tag {
            TAG_BELL => events.push(Event::Rung),
            TAG_WATCH if self.watches.fd(id).is_some() => events.push(Event::Ready(id)),
            _ => return,
        }
        let over = result < 0 || result & i32::from(libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0;
        if over {
            tracing::debug!(result, "A watched descriptor has come to its end");
        } else if !more {
            self.rearm.push(user_data);
        }
    }

    /// What happened between the last event and the new poll is not lost: a poll looks at the descriptor first.
    #[cold]
    fn rearm_polls(&mut self) -> io::Result<()> {
        while let Some(user_data) = self.rearm.pop() {
            let fd = match user_data {
                TAG_BELL => Some(self.doorbell.bell().as_raw_fd()),
                watch => self.watches.fd(WatchId::from_bits(watch & (USER_DATA_END - 1))),
            };
            if let Some(fd) = fd
                && let Err(error) = self.poll(fd, user_data)
            {
                // No room: the next harvest tries again.
                self.rearm.push(user_data);
                tracing::debug!(%error, "A poll waits for room in the ring");
                break;
            }
        }
        self.flush()
    }
}

/// Why memory was not registered, with what an operator can do about it.
fn refusal(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::ENOMEM) => ": more than may be locked? (LimitMEMLOCK=, ulimit -l)",
        _ => "",
    };
    format!("{error}{hint}")
}

/// Whether a descriptor has no readiness to wait for.
fn always_ready(fd: RawFd) -> io::Result<bool> {
    // SAFETY: `stat` is plain integers, and the call fills it when it succeeds.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &mut stat) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat
    };
    Ok(matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR))
}

/// The kernel moves no more than this in one transfer (`MAX_RW_COUNT`).
const MAX_TRANSFER: usize = 0x7fff_f000;

#[inline]
fn length(segment: HostRange) -> u32 {
    segment.len.min(MAX_TRANSFER) as u32
}

#[cfg(test)]
mod tests;
