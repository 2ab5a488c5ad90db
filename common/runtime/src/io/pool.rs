//! Helper threads for calls that block: the thread engine's I/O, and [`Io::offload`](super::Io::offload) in both engines.
//!
//! Threads are started one by one when a job finds none idle, and sleep in a futex while there is nothing to do. A
//! finished job goes back through a lock-free channel, then rings the worker's doorbell, which costs a system call only
//! when the worker sleeps.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{fmt, panic, thread};

use super::Setup;
use super::threads::Call;
use crate::cpu::Affinity;
use crate::doorbell::{Doorbell, EventBell};

/// What a helper thread does.
pub(super) enum Work {
    /// A file operation of the thread engine on this descriptor.
    File(RawFd, Call),
    /// Anything that blocks.
    Offload(Box<dyn FnOnce() -> i32 + Send>),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(fd, call) => f.debug_tuple("File").field(fd).field(call).finish(),
            Self::Offload(_) => f.write_str("Offload"),
        }
    }
}

/// One job.
#[derive(Debug)]
pub(super) struct Job {
    pub user_data: u64,
    pub work: Work,
}

/// A finished job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    pub user_data: u64,
    pub result: i32,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    doorbell: Arc<Doorbell<EventBell>>,
}

impl Shared {
    /// No code that can panic runs under the lock, so a poisoned one is as good as any.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The helper threads of one engine.
pub(super) struct Pool {
    shared: Arc<Shared>,
    finished: Receiver<Finished>,
    /// Cloned into each helper.
    report: Sender<Finished>,
    threads: Vec<JoinHandle<()>>,
    max: usize,
    affinity: Option<Affinity>,
    name: String,
    outstanding: usize,
}

impl Pool {
    /// No thread is started yet.
    pub fn new(setup: &Setup) -> Self {
        let (report, finished) = channel();
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                work: Condvar::new(),
                doorbell: setup.doorbell.clone(),
            }),
            finished,
            report,
            threads: Vec::new(),
            max: setup.config.threads.max(1),
            affinity: setup.helpers,
            name: setup.name.clone(),
            outstanding: 0,
        }
    }

    /// Hands over a batch: one lock for all of it.
    pub fn submit(&mut self, jobs: impl IntoIterator<Item = Job>) {
        let mut queue = self.shared.queue();
        let before = queue.jobs.len();
        queue.jobs.extend(jobs);
        let added = queue.jobs.len() - before;
        let missing = queue.jobs.len().saturating_sub(queue.idle);
        drop(queue);
        self.outstanding += added;
        for _ in 0..added {
            self.shared.work.notify_one();
        }
        self.start_threads(missing);
    }

    /// Removes a job that no helper has begun.
    pub fn cancel(&mut self, user_data: u64) -> bool {
        let mut queue = self.shared.queue();
        let place = queue.jobs.iter().position(|job| job.user_data == user_data);
        let cancelled = place.and_then(|place| queue.jobs.remove(place)).is_some();
        drop(queue);
        self.outstanding -= usize::from(cancelled);
        cancelled
    }

    /// The next finished job.
    #[inline]
    pub fn next_finished(&mut self) -> Option<Finished> {
        if self.outstanding == 0 {
            return None;
        }
        let finished = self.finished.try_recv().ok()?;
        self.outstanding -= 1;
        Some(finished)
    }

    fn start_threads(&mut self, missing: usize) {
        for _ in 0..missing.min(self.max - self.threads.len()) {
            let (shared, report, affinity) = (self.shared.clone(), self.report.clone(), self.affinity);
            // The kernel keeps 15 bytes of a thread's name.
            let name = format!("{:.12}-io", self.name);
            match thread::Builder::new().name(name).spawn(move || help(&shared, &report, affinity)) {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => return self.run_here(&error),
                Err(_) => return,
            }
        }
    }

    /// Without a single helper the jobs run on the worker itself: slow, but they end.
    #[cold]
    fn run_here(&mut self, error: &std::io::Error) {
        tracing::warn!(worker = self.name, %error, "No helper thread can be started: I/O blocks its worker");
        let jobs = std::mem::take(&mut self.shared.queue().jobs);
        for job in jobs {
            run(job, &self.report);
        }
        self.shared.doorbell.ring();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A helper catches the panics of its jobs; there is nothing else in its result.
            let _ = thread.join();
        }
    }
}

fn help(shared: &Shared, report: &Sender<Finished>, affinity: Option<Affinity>) {
    // A helper inherits the affinity of a pinned worker: on the same CPU it would only be in its way.
    if let Some(Err(error)) = affinity.map(|affinity| affinity.apply()) {
        tracing::debug!(%error, "A helper thread stays on its worker's CPU");
    }
    while let Some(job) = next_job(shared) {
        run(job, report);
        shared.doorbell.ring();
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut queue = shared.queue();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        if queue.closed {
            return None;
        }
        queue.idle += 1;
        queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
    }
}

fn run(Job { user_data, work }: Job, report: &Sender<Finished>) {
    let result = match work {
        Work::File(fd, call) => call.run(fd),
        Work::Offload(call) => panic::catch_unwind(panic::AssertUnwindSafe(call)).unwrap_or(-libc::EIO),
    };
    // The engine that would receive it may be gone; then nobody waits for it.
    let _ = report.send(Finished { user_data, result });
}
