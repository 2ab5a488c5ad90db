//! Interrupts workers that are held up in a system call.
//!
//! The eventfds a worker writes are shared with frontends. Whoever sent one may make it blocking and fill it, at any time:
//! the write then waits for a reader, and with it the rings of every other device of the worker. Looking at the descriptor
//! before each write would cost a system call and leave a moment between the look and the write. So the write is made as it
//! is, and a thread of its own looks ten times a second whether the workers that are awake get on with their rounds. One
//! that does not is sent a signal that does nothing, except that its write ends with `EINTR`; [`virtqueue::Queue`] then
//! gives the descriptor up.
//!
//! While all workers sleep, so does the watchdog, without a timer. A worker pays one store a round, and a fence and a load
//! each time it wakes up.
#![expect(unsafe_code, reason = "a signal is sent to a chosen thread, which has no safe wrapper")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence};
use std::sync::{OnceLock, mpsc};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::Shared;

/// A worker that is awake has this long for a round, and at most twice as long.
const PERIOD: Duration = Duration::from_millis(100);

/// What a worker shows of its progress.
#[derive(Default)]
pub(super) struct Pulse {
    /// Rounds begun; the worker alone writes it.
    rounds: CachePadded<AtomicU64>,
    /// The thread's id while it runs, else 0.
    thread: AtomicI32,
    alarm: OnceLock<Arc<Alarm>>,
}

impl Pulse {
    /// The calling thread is the worker. Without the signal it works as well, as long as nobody holds it up.
    pub fn begin(&self) {
        let _ = unblock_signal(SIGRTMIN());
        // SAFETY: takes and changes nothing.
        self.thread.store(unsafe { libc::gettid() }, Ordering::Relaxed);
        // Pairs with the fence in `rest`, as the one in `raise` does: a watchdog that started to rest before there was an
        // alarm to raise sees this worker, and one that rests already is told. The worker may be held up before its first sleep.
        fence(Ordering::SeqCst);
        self.awake();
    }

    /// A new round.
    #[inline]
    pub fn beat(&self) {
        self.rounds.store(self.rounds.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The worker has woken up.
    #[inline]
    pub fn awake(&self) {
        if let Some(alarm) = self.alarm.get() {
            alarm.raise();
        }
    }

    /// The worker ends.
    pub fn end(&self) {
        self.thread.store(0, Ordering::Relaxed);
    }
}

/// Where workers wake the watchdog.
struct Alarm {
    /// The watchdog looks at the workers, or is about to.
    raised: AtomicBool,
    stop: AtomicBool,
    watchdog: Thread,
}

impl Alarm {
    #[inline]
    fn raise(&self) {
        // Pairs with the fence in `rest`: either the watchdog sees that the worker is awake, or we see that it rests.
        fence(Ordering::SeqCst);
        if !self.raised.load(Ordering::Relaxed) && !self.raised.swap(true, Ordering::Relaxed) {
            self.watchdog.unpark();
        }
    }
}

/// The thread that looks after the workers of a pool; ends when this is dropped.
pub(crate) struct Watchdog {
    alarm: Option<Arc<Alarm>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Looks after these workers from now on.
    pub(super) fn start(workers: Vec<Arc<Shared>>) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), interrupted).map_err(io::Error::from)?;
        let (sender, receiver) = mpsc::sync_channel::<Arc<Alarm>>(1);
        let watched = workers.clone();
        let thread = thread::Builder::new().name("watchdog".into()).spawn(move || {
            if let Ok(alarm) = receiver.recv() {
                watch(&watched, &alarm);
            }
        })?;
        let alarm = Arc::new(Alarm {
            raised: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            watchdog: thread.thread().clone(),
        });
        for worker in &workers {
            // A worker belongs to one pool.
            let _ = worker.pulse.alarm.set(alarm.clone());
        }
        // The thread waits for it.
        let _ = sender.send(alarm.clone());
        Ok(Self { alarm: Some(alarm), thread: Some(thread) })
    }

    /// For a host that has no thread left for it.
    pub(super) fn none() -> Self {
        Self { alarm: None, thread: None }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(alarm) = &self.alarm {
            alarm.stop.store(true, Ordering::Relaxed);
            alarm.watchdog.unpark();
        }
        if let Some(thread) = self.thread.take() {
            // It runs nothing that panics.
            let _ = thread.join();
        }
    }
}

/// Has a system call that waits end with `EINTR`: it is installed without SA_RESTART.
extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn watch(workers: &[Arc<Shared>], alarm: &Alarm) {
    let mut seen = vec![None; workers.len()];
    while !alarm.stop.load(Ordering::Relaxed) {
        if !workers.iter().any(|worker| is_awake(worker)) {
            rest(workers, alarm);
        }
        thread::park_timeout(PERIOD);
        for (worker, seen) in workers.iter().zip(&mut seen) {
            let rounds = is_awake(worker).then(|| worker.pulse.rounds.load(Ordering::Relaxed));
            if rounds.is_some() && rounds == *seen {
                interrupt(worker);
            }
            *seen = rounds;
        }
    }
}

/// Sleeps until a worker wakes up, or the end.
fn rest(workers: &[Arc<Shared>], alarm: &Alarm) {
    alarm.raised.store(false, Ordering::Relaxed);
    // Pairs with the fence in `raise`.
    fence(Ordering::SeqCst);
    while !alarm.stop.load(Ordering::Relaxed)
        && !alarm.raised.load(Ordering::Relaxed)
        && !workers.iter().any(|worker| is_awake(worker))
    {
        thread::park();
    }
    alarm.raised.store(true, Ordering::Relaxed);
}

fn is_awake(worker: &Shared) -> bool {
    worker.pulse.thread.load(Ordering::Relaxed) != 0 && !worker.doorbell.is_asleep()
}

/// A worker that is merely slow does not notice.
fn interrupt(worker: &Shared) {
    let thread = worker.pulse.thread.load(Ordering::Relaxed);
    tracing::debug!(worker = worker.name, "A worker is held up");
    // SAFETY: the signal has a handler, which does nothing. A thread that has ended meanwhile is none of this process.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGRTMIN()) };
}
