//! The pool of threads for asymmetric requests.
//!
//! A public-key operation takes from 10 µs to 100 ms: on a worker it would keep every ring waiting. A [`Task`] therefore
//! takes private copies of its input with it, is computed by a thread of the pool, and comes back as an [`Answer`] through
//! the worker's [`Bell`]. The threads take turns between devices, so that one guest's tasks do not keep another's waiting
//! for more than those already being computed.
//!
//! Nothing here is bounded by a length of its own: a task is a chain that its ring has in flight, and rings are.
//!
//! Locks are held for a push or a pop. They are taken per asymmetric request and never for a symmetric one.

use crate::engine::{AkcipherOp, Outcome, Prepared};
use crate::flush::Thresholds;
use offload::bell::Bell;
use runtime::cpu::monotonic_ns;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use zeroize::Zeroizing;

/// An asymmetric request.
pub struct Task {
    /// The caller's, and comes back with the answer.
    pub tag: u64,
    /// Whose it is: devices take turns.
    pub device: u32,
    /// With which key.
    pub key: Arc<Prepared>,
    /// What to do.
    pub op: AkcipherOp,
    /// Plaintext, ciphertext, digest or signature.
    pub input: Zeroizing<Vec<u8>>,
    /// What a signature is checked against.
    pub digest: Vec<u8>,
    /// It takes long: a private RSA operation.
    pub slow: bool,
}

/// What became of a [`Task`].
pub struct Answer {
    /// As in the task.
    pub tag: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// The result, where there is one; longer than what was written.
    pub output: Zeroizing<Vec<u8>>,
}

/// Answers on their way to one worker.
struct Desk {
    bell: Arc<Bell>,
    answers: Mutex<Answers>,
    /// Tasks of the worker that have no answer yet.
    left: AtomicUsize,
}

#[derive(Default)]
struct Answers {
    ready: Vec<Answer>,
    /// When the oldest of them became ready.
    since: u64,
    thresholds: Thresholds,
}

/// Tasks of one device, of whatever worker, and where their answers go.
struct Lane {
    device: u32,
    tasks: VecDeque<(Task, Arc<Desk>)>,
}

/// What waits for a thread: lanes with tasks, of which the first is next.
#[derive(Default)]
struct Line {
    lanes: VecDeque<Lane>,
    /// Threads that wait for a task.
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    line: Mutex<Line>,
    more: Condvar,
    waiting: AtomicU64,
    done: AtomicU64,
    busy_ns: AtomicU64,
}

/// What the pool is and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Threads.
    pub threads: u64,
    /// Tasks that wait for a thread now.
    pub waiting: u64,
    /// Tasks done.
    pub done: u64,
    /// Time the threads have computed, in nanoseconds.
    pub busy_ns: u64,
}

/// The threads. Drop it after the workers: it waits for what is being computed.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts so many threads, at least one.
    pub fn start(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut pool = Self { shared, threads: Vec::new() };
        for index in 0..threads.max(1) {
            let shared = pool.shared.clone();
            let name = format!("asym-{index}");
            pool.threads.push(thread::Builder::new().name(name).spawn(move || work(&shared))?);
        }
        Ok(pool)
    }

    /// What a worker needs to use the pool; `bell` is rung when there are answers.
    pub fn client(&self, bell: Arc<Bell>) -> Client {
        let desk = Desk { bell, answers: Mutex::default(), left: AtomicUsize::new(0) };
        Client { shared: self.shared.clone(), desk: Arc::new(desk) }
    }

    /// What the pool is and did.
    pub fn figures(&self) -> PoolFigures {
        PoolFigures {
            threads: self.threads.len() as u64,
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            done: self.shared.done.load(Ordering::Relaxed),
            busy_ns: self.shared.busy_ns.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.line).closed = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("A thread of the asymmetric pool panicked");
            }
        }
    }
}

/// One worker's way to the pool.
pub struct Client {
    shared: Arc<Shared>,
    desk: Arc<Desk>,
}

impl Client {
    /// Hands a task over. Never blocks for longer than another push takes.
    pub fn submit(&mut self, task: Task) {
        self.desk.left.fetch_add(1, Ordering::Relaxed);
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let mut line = lock(&self.shared.line);
        line.push(task, self.desk.clone());
        let idle = line.idle > 0;
        drop(line);
        if idle {
            self.shared.more.notify_one();
        }
    }

    /// Takes back tasks of a device that wait for a thread, the newest first: those for whose tag `wanted` is true.
    pub fn take_back(&mut self, device: u32, mut wanted: impl FnMut(u64) -> bool) {
        let mut line = lock(&self.shared.line);
        let Some(place) = line.lanes.iter().position(|lane| lane.device == device) else { return };
        let tasks = &mut line.lanes[place].tasks;
        let before = tasks.len();
        for index in (0..before).rev() {
            let (task, desk) = &tasks[index];
            if Arc::ptr_eq(desk, &self.desk) && wanted(task.tag) {
                tasks.remove(index);
            }
        }
        let taken = before - tasks.len();
        if tasks.is_empty() {
            line.lanes.remove(place);
        }
        self.shared.waiting.fetch_sub(taken as u64, Ordering::Relaxed);
        self.desk.left.fetch_sub(taken, Ordering::Relaxed);
    }

    /// Moves the answers that are ready into `answers`.
    pub fn collect(&mut self, answers: &mut Vec<Answer>) {
        answers.append(&mut lock(&self.desk.answers).ready);
    }

    /// Tasks that have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.desk.left.load(Ordering::Relaxed)
    }

    /// Gathers answers by these thresholds from now on.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        lock(&self.desk.answers).thresholds = thresholds;
    }
}

impl Desk {
    /// Puts an answer down, and rings when the worker should come for it.
    fn put(&self, answer: Answer) {
        let now = monotonic_ns();
        let mut answers = lock(&self.answers);
        if answers.ready.is_empty() {
            answers.since = now;
        }
        answers.ready.push(answer);
        // Under the lock, so that of two threads with the last answers one sees that nothing is left.
        let left = self.left.fetch_sub(1, Ordering::Relaxed) - 1;
        let ring = answers.due(left, now, false);
        drop(answers);
        if ring {
            self.bell.ring();
        }
    }

    /// Rings for what is ready: the thread that asks goes away, for long or to somebody else.
    fn settle(&self) {
        let left = self.left.load(Ordering::Relaxed);
        let ring = lock(&self.answers).due(left, monotonic_ns(), true);
        if ring {
            self.bell.ring();
        }
    }
}

impl Answers {
    fn due(&self, left: usize, now: u64, next_is_slow: bool) -> bool {
        let age = now.saturating_sub(self.since);
        self.thresholds.deliver(self.ready.len(), left, age, next_is_slow)
    }
}

impl Line {
    /// At the end of its device's lane.
    fn push(&mut self, task: Task, desk: Arc<Desk>) {
        let device = task.device;
        match self.lanes.iter_mut().find(|lane| lane.device == device) {
            Some(lane) => lane.tasks.push_back((task, desk)),
            None => self.lanes.push_back(Lane { device, tasks: VecDeque::from([(task, desk)]) }),
        }
    }

    /// The next task: of the lane whose turn it is, which is the last one then.
    fn next(&mut self) -> Option<(Task, Arc<Desk>)> {
        let mut lane = self.lanes.pop_front()?;
        let next = lane.tasks.pop_front()?;
        if !lane.tasks.is_empty() {
            self.lanes.push_back(lane);
        }
        Some(next)
    }
}

/// A thread of the pool.
fn work(shared: &Shared) {
    // Where this thread has put answers that nobody may have been told of.
    let mut last: Option<Arc<Desk>> = None;
    loop {
        let next = lock(&shared.line).next();
        let goes_on = next.as_ref().is_some_and(|(task, desk)| {
            !task.slow && last.as_ref().is_none_or(|last| Arc::ptr_eq(last, desk))
        });
        if !goes_on && let Some(last) = last.take() {
            last.settle();
        }
        let Some((task, desk)) = next.or_else(|| wait(shared)) else { return };
        shared.waiting.fetch_sub(1, Ordering::Relaxed);
        let began = monotonic_ns();
        let answer = compute(task);
        shared.busy_ns.fetch_add(monotonic_ns().saturating_sub(began), Ordering::Relaxed);
        shared.done.fetch_add(1, Ordering::Relaxed);
        desk.put(answer);
        last = Some(desk);
    }
}

fn wait(shared: &Shared) -> Option<(Task, Arc<Desk>)> {
    let mut line = lock(&shared.line);
    loop {
        if let Some(next) = line.next() {
            return Some(next);
        }
        if line.closed {
            return None;
        }
        line.idle += 1;
        line = shared.more.wait(line).unwrap_or_else(PoisonError::into_inner);
        line.idle -= 1;
    }
}

fn compute(task: Task) -> Answer {
    let Task { tag, key, op, input, digest, .. } = task;
    let mut output = Zeroizing::new(vec![0; key.output_len()]);
    let computed = catch_unwind(AssertUnwindSafe(|| key.akcipher(op, &input, &digest, &mut output)));
    let outcome = computed.unwrap_or_else(|_| {
        tracing::error!("An asymmetric operation panicked; its request fails");
        Outcome::Error
    });
    Answer { tag, outcome, output }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "asym_tests.rs"]
mod tests;
