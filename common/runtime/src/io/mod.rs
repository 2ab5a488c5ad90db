//! Asynchronous I/O and the one place where a worker sleeps.
//!
//! An [`Io`] belongs to one worker thread. Operations are pushed, submitted together by [`Io::flush`] (one system call a
//! batch), and their completions come out of [`Io::harvest`], mixed with the events of watched file descriptors: kick
//! eventfds, the doorbell, a TAP. The worker sleeps in it until there is something to harvest. Two engines stand behind
//! it:
//!
//! - [`uring`]: everything on one io_uring, the watched descriptors included;
//! - [`threads`]: epoll and a few helper threads, where io_uring is forbidden or too old.
//!
//! # Contract of the buffers
//!
//! From a successful [`Io::push`] until its completion has been harvested, whatever happens in between (a failed
//! `flush` included), the kernel or a helper thread may read or write the buffers: they must stay mapped, and the
//! `iovec` array must stay in place. For guest memory that means: hold the `memory::Epoch` it was translated under.
#![expect(unsafe_code, reason = "`Io::push` passes its caller's promise about the buffers on to the engines")]

pub mod pool;
mod registered;
pub mod threads;
pub mod uring;
mod watch;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::{fmt, io};

use memory::MemoryTable;

use crate::cpu::Affinity;
use crate::doorbell::{Doorbell, EventBell};

pub use watch::WatchId;

/// Which engine a worker uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// io_uring where it works, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll and helper threads.
    Threads,
}

/// How to set an engine up.
#[derive(Clone, Copy, Debug)]
pub struct IoConfig {
    /// Which engine.
    pub kind: IoKind,
    /// Most operations in flight; beyond it [`Io::push`] says [`Full`].
    pub depth: u32,
    /// Most helper threads (the thread engine's I/O, and [`Io::offload`] in both).
    pub threads: usize,
    /// Register guest memory with the kernel ([`Io::register_memory`]): saves the page lookups of each transfer, but
    /// pins all of the guest's memory at once.
    pub register_memory: bool,
}

impl Default for IoConfig {
    fn default() -> Self {
        Self { kind: IoKind::Auto, depth: 1024, threads: 8, register_memory: false }
    }
}

impl From<IoKind> for IoConfig {
    fn from(kind: IoKind) -> Self {
        Self { kind, ..Self::default() }
    }
}

/// A file known to an [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSlot(u32);

/// No room for another operation in flight: complete some first, then push again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Too many I/O operations in flight")]
pub struct Full;

/// One operation. Its result is what the system call returns, or `-errno`. Transfers may be short.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// `preadv2`. One segment inside registered guest memory becomes a fixed-buffer read.
    Readv {
        /// The file to read.
        file: FileSlot,
        /// First of `n` segments; a slice of [`memory::HostRange`] casts to it.
        iov: *const libc::iovec,
        /// How many segments; at most 1024 (`UIO_MAXIOV`).
        n: u32,
        /// Byte offset in the file.
        offset: u64,
        /// `RWF_*` flags.
        flags: i32,
    },
    /// `pwritev2`. One segment inside registered guest memory becomes a fixed-buffer write.
    Writev {
        /// The file to write.
        file: FileSlot,
        /// First of `n` segments; a slice of [`memory::HostRange`] casts to it.
        iov: *const libc::iovec,
        /// How many segments; at most 1024 (`UIO_MAXIOV`).
        n: u32,
        /// Byte offset in the file.
        offset: u64,
        /// `RWF_*` flags, for example `RWF_DSYNC`.
        flags: i32,
    },
    /// `fdatasync` or `fsync`.
    Fsync {
        /// The file to sync.
        file: FileSlot,
        /// Data, and only the metadata needed to read it back.
        data_only: bool,
    },
    /// `fallocate`.
    Fallocate {
        /// The file to change.
        file: FileSlot,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Does nothing, and completes with 0.
    Nop,
    /// Tries to cancel the operation pushed with this `user_data`. Completes with 0 when that operation will complete
    /// with `-ECANCELED`, else with `-ENOENT` or `-EALREADY`. Either way both complete.
    Cancel {
        /// The other operation's `user_data`.
        target: u64,
    },
}

/// Exclusive upper bound of the `user_data` of an operation; the engines keep the bits above for themselves.
pub const USER_DATA_END: u64 = 1 << 56;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An operation has ended.
    Done {
        /// As given to [`Io::push`].
        user_data: u64,
        /// The return value or `-errno`.
        result: i32,
    },
    /// A watched descriptor became readable, or failed.
    Ready(WatchId),
    /// The worker's own doorbell was rung while it slept.
    Rung,
}

/// Figures of an engine, for the statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// System calls: `io_uring_enter`, `epoll_wait`.
    pub enters: u64,
    /// Operations submitted.
    pub submitted: u64,
    /// Operations completed.
    pub completed: u64,
    /// Transfers on registered guest memory.
    pub fixed: u64,
    /// Registrations that the kernel refused.
    pub register_refused: u64,
}

/// The engine of one worker. Not `Send`: it is made on the thread that uses it (io_uring's SINGLE_ISSUER binds a ring
/// to its thread).
pub enum Io {
    /// io_uring.
    Uring(uring::Engine),
    /// epoll and helper threads.
    Threads(threads::Engine),
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("engine", &self.kind()).field("in_flight", &self.in_flight()).finish()
    }
}

/// What both engines are built from.
pub(crate) struct Setup {
    pub config: IoConfig,
    pub doorbell: Arc<Doorbell<EventBell>>,
    /// What helper threads may run on: not the one CPU their worker is pinned to.
    pub helpers: Option<Affinity>,
    pub name: String,
}

macro_rules! each {
    ($io:expr, $engine:ident => $call:expr) => {
        match $io {
            Io::Uring($engine) => $call,
            Io::Threads($engine) => $call,
        }
    };
}

impl Io {
    /// An engine on the calling thread; `doorbell` ends its waits. Outside a worker: for tests and tools.
    pub fn new(config: IoConfig, doorbell: Arc<Doorbell<EventBell>>) -> io::Result<Self> {
        Self::with_setup(Setup { config, doorbell, helpers: None, name: "io".into() })
    }

    pub(crate) fn with_setup(setup: Setup) -> io::Result<Self> {
        match setup.config.kind {
            IoKind::Uring => uring::Engine::new(&setup).map(Self::Uring),
            IoKind::Threads => threads::Engine::new(&setup).map(Self::Threads),
            IoKind::Auto => match uring::Engine::new(&setup) {
                Ok(engine) => Ok(Self::Uring(engine)),
                Err(error) => {
                    tracing::info!(worker = setup.name, %error, "io_uring cannot be used here: threads instead");
                    threads::Engine::new(&setup).map(Self::Threads)
                }
            },
        }
    }

    /// Which engine this is; never `Auto`.
    pub fn kind(&self) -> IoKind {
        match self {
            Self::Uring(_) => IoKind::Uring,
            Self::Threads(_) => IoKind::Threads,
        }
    }

    /// Makes a file usable by operations. The caller may close its own descriptor afterwards.
    pub fn add_file(&mut self, file: impl AsFd) -> io::Result<FileSlot> {
        each!(self, engine => engine.add_file(file.as_fd()))
    }

    /// Forgets a file. Operations in flight on it end normally; new ones complete with `-EBADF`.
    pub fn remove_file(&mut self, file: FileSlot) {
        each!(self, engine => engine.remove_file(file))
    }

    /// Queues an operation; it starts at the next [`Io::flush`] (the worker sees to that).
    ///
    /// # Safety
    ///
    /// The buffers and the `iovec` array of `op` satisfy the module's contract until the completion with this
    /// `user_data` has been harvested.
    ///
    /// # Panics
    ///
    /// Debug builds panic when `user_data` is not below [`USER_DATA_END`].
    #[inline]
    pub unsafe fn push(&mut self, op: Op, user_data: u64) -> Result<(), Full> {
        debug_assert!(user_data < USER_DATA_END);
        // SAFETY: the caller's promise is passed on as it is.
        each!(self, engine => unsafe { engine.push(op, user_data) })
    }

    /// Runs a blocking call on a helper thread; what it returns (a value or `-errno`) is the result. For what has no
    /// asynchronous form, such as `ioctl(BLKDISCARD)`: it allocates.
    pub fn offload(
        &mut self,
        user_data: u64,
        call: impl FnOnce() -> i32 + Send + 'static,
    ) -> Result<(), Full> {
        debug_assert!(user_data < USER_DATA_END);
        each!(self, engine => engine.offload(user_data, Box::new(call)))
    }

    /// Starts everything pushed since the last time: at most one system call, none if there is nothing to start.
    #[inline]
    pub fn flush(&mut self) -> io::Result<()> {
        each!(self, engine => engine.flush())
    }

    /// Appends what has happened to `events`. Never blocks; costs a load or two when nothing has.
    #[inline]
    pub fn harvest(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        each!(self, engine => engine.harvest(events))
    }

    /// Looks for ready descriptors without sleeping, where [`Io::harvest`] alone does not: io_uring brings them by itself,
    /// epoll has to be asked. For a worker that never sleeps.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(_) => Ok(()),
            Self::Threads(engine) => engine.wait(Some(0)),
        }
    }

    /// Sleeps until there is something to harvest, the bell rings, or `timeout_ns` has passed; a signal ends it early. To
    /// be called inside
    /// [`Doorbell::sleep`], or the end of an offloaded call may be slept through.
    pub(crate) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<()> {
        each!(self, engine => engine.wait(timeout_ns))
    }

    /// Reports [`Event::Ready`] whenever `fd` becomes readable (edge-triggered: an eventfd need not be read, a socket
    /// or a TAP must be read until it is empty), and once at the start if it is readable already. A regular file, which
    /// is always readable, is refused.
    pub fn watch(&mut self, fd: RawFd) -> io::Result<WatchId> {
        each!(self, engine => engine.watch(fd))
    }

    /// Ends a watch; call it before the descriptor is closed. Its events stop at once.
    pub fn unwatch(&mut self, watch: WatchId) {
        each!(self, engine => engine.unwatch(watch))
    }

    /// Registers the mappings of one owner's guest memory in place of the ones it had; an empty table forgets them. The
    /// table is kept until it is replaced. When the kernel refuses (RLIMIT_MEMLOCK), I/O goes on without, and the
    /// refusal is counted. Does nothing unless [`IoConfig::register_memory`] is set.
    pub fn register_memory(&mut self, owner: u32, table: &Arc<MemoryTable>) {
        if let Self::Uring(engine) = self {
            engine.register_memory(owner, table);
        }
    }

    /// Operations pushed and not yet harvested.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        each!(self, engine => engine.in_flight())
    }

    /// How many operations may be pushed now.
    #[inline]
    pub fn room(&self) -> u32 {
        each!(self, engine => engine.room())
    }

    /// What happened so far.
    pub fn counters(&self) -> IoCounters {
        each!(self, engine => engine.counters())
    }

    /// Waits, for `timeout_ns` at most, until there may be something to harvest. For users of an `Io` that are no
    /// worker: it takes what the doorbell announces.
    pub fn pause(&mut self, timeout_ns: Option<u64>) -> io::Result<()> {
        self.flush()?;
        let doorbell = self.doorbell().clone();
        let mut result = Ok(());
        if !doorbell.take() {
            doorbell.sleep(|| false, || result = self.wait(timeout_ns));
        }
        result
    }

    fn doorbell(&self) -> &Arc<Doorbell<EventBell>> {
        each!(self, engine => engine.doorbell())
    }

    /// Waits for everything in flight and throws the results away: after it nothing touches a buffer any more. For the
    /// end of a worker.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        loop {
            self.harvest(&mut events)?;
            events.clear();
            if self.in_flight() == 0 {
                return Ok(());
            }
            self.pause(None)?;
        }
    }
}
