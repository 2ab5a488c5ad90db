//! The engine for hosts where io_uring is forbidden (containers, `io_uring_disabled`) or older than Linux 5.19: epoll
//! for waiting, helper threads for the file operations. The semantics are those of the io_uring engine.
#![expect(
    unsafe_code,
    reason = "epoll and positioned I/O are C functions; the buffers are the caller's promise"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::pool::{Job, Pool, Work};
use super::watch::Watches;
use super::{Event, FileSlot, Full, IoCounters, Op, Setup, WatchId};
use crate::doorbell::{Doorbell, EventBell};

/// A file operation, ready to run anywhere.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Read { iov: *const libc::iovec, n: u32, offset: u64, flags: i32 },
    Write { iov: *const libc::iovec, n: u32, offset: u64, flags: i32 },
    Fsync { data_only: bool },
    Fallocate { mode: i32, offset: u64, len: u64 },
}

// SAFETY: the `iovec` array and its buffers stay valid until the completion, whichever thread uses them (the contract of
// `Io::push`), and only the thread that runs the call touches them.
unsafe impl Send for Call {}

impl Call {
    /// Runs it; the result or `-errno`. A signal does not end it.
    pub fn run(self, fd: RawFd) -> i32 {
        loop {
            let result = self.attempt(fd);
            if result >= 0 {
                return i32::try_from(result).unwrap_or(i32::MAX);
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                error => return -error.unwrap_or(libc::EIO),
            }
        }
    }

    fn attempt(self, fd: RawFd) -> isize {
        // An offset beyond i64::MAX is refused by the kernel as negative.
        match self {
            Self::Read { iov, n, offset, flags } => {
                // SAFETY: `iov` has `n` segments, which stay valid until the completion: contract of `Io::push`.
                unsafe { libc::preadv2(fd, iov, n as i32, offset as i64, flags) }
            }
            Self::Write { iov, n, offset, flags } => {
                // SAFETY: as above.
                unsafe { libc::pwritev2(fd, iov, n as i32, offset as i64, flags) }
            }
            // SAFETY: no memory is involved.
            Self::Fsync { data_only: true } => unsafe { libc::fdatasync(fd) as isize },
            // SAFETY: no memory is involved.
            Self::Fsync { data_only: false } => unsafe { libc::fsync(fd) as isize },
            Self::Fallocate { mode, offset, len } => {
                // SAFETY: no memory is involved.
                unsafe { libc::fallocate(fd, mode, offset as i64, len as i64) as isize }
            }
        }
    }
}

/// A file with the number of operations that use its descriptor; removed while they run, it is closed after the last.
struct File {
    fd: OwnedFd,
    in_flight: u32,
    removed: bool,
}

/// What an operation in flight was, by job key.
#[derive(Clone, Copy)]
struct Running {
    user_data: u64,
    file: Option<u32>,
}

/// Tag of the doorbell among the epoll events; watches are below it.
const BELL: u64 = u64::MAX;

/// See the module's text.
pub struct Engine {
    epoll: OwnedFd,
    doorbell: Arc<Doorbell<EventBell>>,
    watches: Watches,
    ready: VecDeque<Event>,
    files: Vec<Option<File>>,
    pool: Pool,
    queued: Vec<Job>,
    /// Keyed by the job's `user_data`, an index into this slab.
    running: Vec<Option<Running>>,
    free: Vec<u32>,
    in_flight: u32,
    depth: u32,
    counters: IoCounters,
}

impl Engine {
    pub(super) fn new(setup: &Setup) -> io::Result<Self> {
        // SAFETY: a plain system call; a non-negative result is a new descriptor that nobody else owns.
        let epoll = unsafe { own(libc::epoll_create1(libc::EPOLL_CLOEXEC))? };
        let engine = Self {
            epoll,
            doorbell: setup.doorbell.clone(),
            watches: Watches::default(),
            ready: VecDeque::new(),
            files: Vec::new(),
            pool: Pool::new(setup),
            queued: Vec::new(),
            running: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            depth: setup.config.depth.max(1),
            counters: IoCounters::default(),
        };
        engine.control(libc::EPOLL_CTL_ADD, engine.doorbell.bell().as_raw_fd(), BELL)?;
        Ok(engine)
    }

    pub(super) fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<FileSlot> {
        let entry = File { fd: file.try_clone_to_owned()?, in_flight: 0, removed: false };
        let place = self.files.iter().position(Option::is_none).unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        self.files[place] = Some(entry);
        Ok(FileSlot(place as u32))
    }

    pub(super) fn remove_file(&mut self, slot: FileSlot) {
        if let Some(place) = self.files.get_mut(slot.0 as usize)
            && let Some(file) = place
        {
            file.removed = true;
            if file.in_flight == 0 {
                *place = None;
            }
        }
    }

    /// # Safety
    ///
    /// As [`Io::push`](super::Io::push).
    pub(super) unsafe fn push(&mut self, op: Op, user_data: u64) -> Result<(), Full> {
        let (file, call) = match op {
            Op::Readv { file, iov, n, offset, flags } => (file, Call::Read { iov, n, offset, flags }),
            Op::Writev { file, iov, n, offset, flags } => (file, Call::Write { iov, n, offset, flags }),
            Op::Fsync { file, data_only } => (file, Call::Fsync { data_only }),
            Op::Fallocate { file, mode, offset, len } => (file, Call::Fallocate { mode, offset, len }),
            Op::Nop => return self.finish_now(user_data, 0),
            Op::Cancel { target } => {
                self.reserve()?;
                let result = self.cancel(target);
                return self.finish_now(user_data, result);
            }
        };
        let known = self.files.get_mut(file.0 as usize).and_then(Option::as_mut).filter(|file| !file.removed);
        let Some(entry) = known else { return self.finish_now(user_data, -libc::EBADF) };
        if self.in_flight >= self.depth {
            return Err(Full);
        }
        entry.in_flight += 1;
        let fd = entry.fd.as_raw_fd();
        self.start(Running { user_data, file: Some(file.0) }, Work::File(fd, call));
        Ok(())
    }

    pub(super) fn offload(
        &mut self,
        user_data: u64,
        call: Box<dyn FnOnce() -> i32 + Send>,
    ) -> Result<(), Full> {
        self.reserve()?;
        self.start(Running { user_data, file: None }, Work::Offload(call));
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.queued.is_empty() {
            self.counters.submitted += self.queued.len() as u64;
            self.pool.submit(self.queued.drain(..));
        }
        Ok(())
    }

    pub(super) fn harvest(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        while let Some(finished) = self.pool.next_finished() {
            if let Some(running) = self.take_running(finished.user_data) {
                self.end(running.user_data, finished.result, events);
            }
        }
        while let Some(event) = self.ready.pop_front() {
            match event {
                Event::Done { user_data, result } => self.end(user_data, result, events),
                Event::Ready(id) if self.watches.fd(id).is_none() => {}
                other => events.push(other),
            }
        }
        Ok(())
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<()> {
        self.flush()?;
        // What ended without any work is there to be harvested.
        let timeout_ns = if self.ready.is_empty() { timeout_ns } else { Some(0) };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        self.counters.enters += 1;
        let n = match epoll_wait(&self.epoll, &mut events, timeout_ns) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..n] {
            // Copied out: the structure is packed on x86.
            let tag = event.u64;
            let ready = if tag == BELL { Event::Rung } else { Event::Ready(WatchId::from_bits(tag)) };
            self.ready.push_back(ready);
        }
        Ok(())
    }

    pub(super) fn watch(&mut self, fd: RawFd) -> io::Result<WatchId> {
        let id = self.watches.insert(fd);
        let added = self.control(libc::EPOLL_CTL_ADD, fd, id.bits());
        if added.is_err() {
            self.watches.remove(id);
        }
        added.map(|()| id)
    }

    pub(super) fn unwatch(&mut self, id: WatchId) {
        if let Some(fd) = self.watches.remove(id) {
            // It fails when the descriptor was closed before; then epoll has forgotten it already.
            let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0);
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

    fn reserve(&self) -> Result<(), Full> {
        if self.in_flight < self.depth { Ok(()) } else { Err(Full) }
    }

    fn start(&mut self, running: Running, work: Work) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.running.push(None);
            self.running.len() as u32 - 1
        });
        self.running[key as usize] = Some(running);
        self.in_flight += 1;
        self.queued.push(Job { user_data: u64::from(key), work });
    }

    fn take_running(&mut self, key: u64) -> Option<Running> {
        let running = self.running.get_mut(key as usize)?.take()?;
        self.free.push(key as u32);
        if let Some(place) = running.file.and_then(|file| self.files.get_mut(file as usize))
            && let Some(file) = place
        {
            file.in_flight -= 1;
            if file.removed && file.in_flight == 0 {
                *place = None;
            }
        }
        Some(running)
    }

    /// A result that is known without any work; delivered by the next harvest like all others.
    fn finish_now(&mut self, user_data: u64, result: i32) -> Result<(), Full> {
        self.reserve()?;
        self.in_flight += 1;
        self.counters.submitted += 1;
        self.ready.push_back(Event::Done { user_data, result });
        Ok(())
    }

    fn end(&mut self, user_data: u64, result: i32, events: &mut Vec<Event>) {
        self.in_flight -= 1;
        self.counters.completed += 1;
        events.push(Event::Done { user_data, result });
    }

    /// As the kernel's ASYNC_CANCEL: 0, or why not.
    fn cancel(&mut self, target: u64) -> i32 {
        let matches = |running: &Option<Running>| running.is_some_and(|running| running.user_data == target);
        let Some(key) = self.running.iter().position(matches) else { return -libc::ENOENT };
        let key = key as u64;
        let queued = self.queued.iter().position(|job| job.user_data == key);
        let cancelled = match queued {
            Some(place) => {
                self.queued.remove(place);
                true
            }
            None => self.pool.cancel(key),
        };
        if !cancelled {
            return -libc::EALREADY;
        }
        if let Some(running) = self.take_running(key) {
            self.ready.push_back(Event::Done { user_data: running.user_data, result: -libc::ECANCELED });
        }
        0
    }

    fn control(&self, op: i32, fd: RawFd, tag: u64) -> io::Result<()> {
        // EPOLLET: an eventfd need not be read, each write is an edge.
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: tag };
        // SAFETY: `event` is a valid event for the duration of the call.
        let r = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &mut event) };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Jobs not yet handed over never start; the pool's own drop waits for those that did.
        self.queued.clear();
    }
}

/// # Safety
///
/// `fd`, if not negative, is a descriptor that nobody else owns.
unsafe fn own(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `epoll_wait` with nanoseconds: `epoll_pwait2` (Linux 5.11), else rounded up to milliseconds.
fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    timeout_ns: Option<u64>,
) -> io::Result<usize> {
    let (fd, room) = (epoll.as_raw_fd(), events.len() as i32);
    let millis = match timeout_ns {
        None => -1,
        Some(0) => 0,
        Some(ns) => {
            let timeout = libc::timespec {
                tv_sec: (ns / 1_000_000_000) as libc::time_t,
                tv_nsec: (ns % 1_000_000_000) as libc::c_long,
            };
            let no_mask = std::ptr::null::<libc::sigset_t>();
            // SAFETY: `events` has `room` places, `timeout` lives through the call, and there is no signal mask.
            let n = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    fd,
                    events.as_mut_ptr(),
                    room,
                    &timeout,
                    no_mask,
                    0usize,
                )
            };
            if n >= 0 {
                return Ok(n as usize);
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOSYS) {
                return Err(error);
            }
            i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        }
    };
    // SAFETY: `events` has `room` places.
    let n = unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), room, millis) };
    if n >= 0 { Ok(n as usize) } else { Err(io::Error::last_os_error()) }
}
