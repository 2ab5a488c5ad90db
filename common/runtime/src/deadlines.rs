//! Timers without timer system calls: the exitless-timer idea of the KVM world, in user space.
//!
//! Each worker has one slot in a table, an atomic deadline on its own cache line. Arming is a store. One housekeeper
//! thread owns the only timerfd; it scans the table when the earliest deadline is due, and rings the doorbells of those
//! whose time has come. While no deadline is armed it sleeps without any timer. Arming makes a system call only when
//! the new deadline is sooner than what the housekeeper sleeps for, or it sleeps without a timer.
//!
//! A deadline `d` fires within `[d, d + period]` (plus what the scheduler adds): deadlines are gathered into wake-ups
//! that are multiples of the period, so that any number of them costs at most one wake-up a period. Deadlines nearer
//! than the period are not worth the table; a worker waits for them with the timeout of its own wait.
#![expect(unsafe_code, reason = "timerfd and poll are C functions over plain structures")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use crossbeam_utils::CachePadded;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::cpu;
use crate::doorbell::{Bell, Doorbell};

/// No deadline.
pub const NEVER: u64 = u64::MAX;

/// What a due deadline wakes.
pub trait Wake: Send + Sync {
    /// Called by the housekeeper; must not block.
    fn wake(&self);
}

impl<B: Bell + Send + Sync> Wake for Doorbell<B> {
    fn wake(&self) {
        self.ring();
    }
}

/// The shared slots: pure logic over atomics, with the clock as a parameter.
struct Table {
    deadlines: Box<[CachePadded<AtomicU64>]>,
    /// When the housekeeper's timer goes off; [`NEVER`] when it sleeps without.
    timer: CachePadded<AtomicU64>,
    period: u64,
}

impl Table {
    fn new(slots: usize, period: u64) -> Self {
        let never = || CachePadded::new(AtomicU64::new(NEVER));
        Self { deadlines: (0..slots).map(|_| never()).collect(), timer: never(), period: period.max(1) }
    }

    /// Stores a deadline. True when the housekeeper would sleep past it and must be woken to plan anew.
    fn arm(&self, slot: usize, deadline: u64) -> bool {
        self.deadlines[slot].store(deadline, Ordering::Relaxed);
        // Pairs with the fence in `plan`: either the scan there sees the deadline, or this load sees the plan.
        fence(Ordering::SeqCst);
        self.gathered(deadline) < self.timer.load(Ordering::Relaxed)
    }

    fn disarm(&self, slot: usize) {
        self.deadlines[slot].store(NEVER, Ordering::Relaxed);
    }

    /// Calls `fire` for each slot that is due, and disarms it. A slot that its owner re-arms meanwhile keeps the new
    /// deadline.
    fn fire(&self, now: u64, mut fire: impl FnMut(usize)) {
        for (slot, deadline) in self.deadlines.iter().enumerate() {
            let due = deadline.load(Ordering::Relaxed);
            let (ok, failed) = (Ordering::Relaxed, Ordering::Relaxed);
            if due <= now && deadline.compare_exchange(due, NEVER, ok, failed).is_ok() {
                fire(slot);
            }
        }
    }

    /// When to wake up next; published for `arm` before the slots are looked at for the last time.
    fn plan(&self) -> u64 {
        loop {
            let planned = self.gathered(self.earliest());
            self.timer.store(planned, Ordering::Relaxed);
            // Pairs with the fence in `arm`.
            fence(Ordering::SeqCst);
            if self.gathered(self.earliest()) >= planned {
                return planned;
            }
        }
    }

    fn earliest(&self) -> u64 {
        self.deadlines.iter().map(|deadline| deadline.load(Ordering::Relaxed)).min().unwrap_or(NEVER)
    }

    /// The wake-up that serves a deadline: the next multiple of the period.
    fn gathered(&self, deadline: u64) -> u64 {
        deadline.div_ceil(self.period).checked_mul(self.period).unwrap_or(NEVER)
    }
}

struct Shared {
    table: Table,
    wakers: Mutex<Vec<Option<Arc<dyn Wake>>>>,
    stop: AtomicBool,
    /// Ends the housekeeper's sleep.
    replan: EventFd,
}

/// The table and its housekeeper; the thread ends when this is dropped.
pub struct Deadlines {
    shared: Arc<Shared>,
    housekeeper: Option<JoinHandle<()>>,
}

impl fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadlines").field("period_ns", &self.shared.table.period).finish_non_exhaustive()
    }
}

impl Deadlines {
    /// A table of `slots` (one a worker) and its housekeeper thread. `period_ns` is how late a deadline may fire.
    pub fn start(slots: usize, period_ns: u64) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            table: Table::new(slots, period_ns),
            wakers: Mutex::new(vec![None; slots]),
            stop: AtomicBool::new(false),
            replan: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        });
        let timer = Timer::new()?;
        let own = shared.clone();
        let housekeeper =
            thread::Builder::new().name("deadlines".into()).spawn(move || keep_house(&own, &timer))?;
        Ok(Arc::new(Self { shared, housekeeper: Some(housekeeper) }))
    }

    /// A slot that wakes `wake`; `None` when all are taken. It is free again when the slot is dropped.
    pub fn slot(self: &Arc<Self>, wake: Arc<dyn Wake>) -> Option<DeadlineSlot> {
        let mut wakers = self.shared.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let index = wakers.iter().position(Option::is_none)?;
        wakers[index] = Some(wake);
        Some(DeadlineSlot { deadlines: self.clone(), index })
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        ring(&self.shared.replan);
        if let Some(housekeeper) = self.housekeeper.take() {
            // It runs no foreign code that could panic but `Wake`.
            let _ = housekeeper.join();
        }
    }
}

/// One owner's place in the table.
#[derive(Debug)]
pub struct DeadlineSlot {
    deadlines: Arc<Deadlines>,
    index: usize,
}

impl DeadlineSlot {
    /// Wakes the owner within a period after `deadline_ns` of the monotonic clock, once; replaces an earlier wish.
    pub fn arm(&self, deadline_ns: u64) {
        if self.deadlines.shared.table.arm(self.index, deadline_ns) {
            ring(&self.deadlines.shared.replan);
        }
    }

    /// Takes the wish back. The wake-up may be under way already.
    pub fn disarm(&self) {
        self.deadlines.shared.table.disarm(self.index);
    }

    /// How late a deadline may fire.
    pub fn period_ns(&self) -> u64 {
        self.deadlines.shared.table.period
    }
}

impl Drop for DeadlineSlot {
    fn drop(&mut self) {
        self.disarm();
        let mut wakers = self.deadlines.shared.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers[self.index] = None;
    }
}

fn keep_house(shared: &Shared, timer: &Timer) {
    while !shared.stop.load(Ordering::Acquire) {
        let mut due = Vec::new();
        shared.table.fire(cpu::monotonic_ns(), |slot| due.push(slot));
        if !due.is_empty() {
            let wakers = shared.wakers.lock().unwrap_or_else(PoisonError::into_inner);
            due.iter().filter_map(|&slot| wakers[slot].as_ref()).for_each(|waker| waker.wake());
        }
        let planned = shared.table.plan();
        if let Err(error) = timer.set(planned).and_then(|()| timer.wait(&shared.replan)) {
            tracing::error!(%error, "The deadline housekeeper ends; timeouts are no longer exact");
            return;
        }
    }
}

fn ring(event: &EventFd) {
    // It fails only when the counter would overflow, and then the event is pending anyway.
    let _ = event.write(1);
}

/// An absolute timer on the monotonic clock.
struct Timer(OwnedFd);

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: a plain system call; a non-negative result is a new descriptor that nobody else owns.
        let fd = unsafe {
            let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, flags);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self(fd))
    }

    /// Goes off at `at`; [`NEVER`] stops it. Setting it also clears an expiry nobody has read.
    fn set(&self, at: u64) -> io::Result<()> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = match at {
            NEVER => none,
            at => libc::timespec {
                tv_sec: (at / 1_000_000_000) as libc::time_t,
                tv_nsec: (at % 1_000_000_000) as libc::c_long,
            },
        };
        let setting = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: `setting` lives through the call; the old setting is not asked for.
        let r = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &setting, std::ptr::null_mut())
        };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sleeps until the timer goes off or `replan` is rung, which is then read.
    fn wait(&self, replan: &EventFd) -> io::Result<()> {
        let on = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [on(self.0.as_raw_fd()), on(replan.as_raw_fd())];
        // SAFETY: `fds` has two places.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        if fds[1].revents != 0 {
            // Non-blocking; an empty one is as good.
            let _ = replan.read();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "deadlines_tests.rs"]
mod tests;
