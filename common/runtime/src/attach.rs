//! The control side of a device's queues: which worker has which queue, and the messages that say so.
//!
//! [`Attached`] has the ring half of `vhost_user`'s `Device` trait under the same names; a device forwards to it. All
//! methods wait for the workers' answers, so they belong on a session's thread, never on a worker's. A worker that has
//! failed is an error, never a wait without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use memory::{DirtyLog, MemoryTable};
use virtqueue::{Broken, Queue};
use vmm_sys_util::eventfd::EventFd;

use crate::rings::{Reply, RingCommand};
use crate::stats::{QueueStats, WorkerSnapshot};
use crate::worker::{Watchdog, Worker, WorkerGone, WorkerHandle, watch_over};

/// The workers of a process, and the order in which queues are given to them.
pub struct WorkerPool<M> {
    workers: Vec<Worker<M>>,
    watchdog: Watchdog,
    next_device: AtomicU32,
    next_worker: AtomicUsize,
}

impl<M> WorkerPool<M> {
    /// A pool of these workers.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(workers: Vec<Worker<M>>) -> Self {
        assert!(!workers.is_empty(), "a pool needs a worker");
        let watchdog = watch_over(&workers);
        Self { workers, watchdog, next_device: AtomicU32::new(0), next_worker: AtomicUsize::new(0) }
    }

    /// Gives a new device's queues to the workers in turn, going on where the last device ended. After a device with a
    /// queue for each worker the next one starts one further: drivers often use the first queue only, and these must not
    /// meet on one worker.
    pub fn attach(&self, queues: u16) -> Attached<M> {
        let device = self.next_device.fetch_add(1, Ordering::Relaxed);
        let queues_each = usize::from(queues);
        let step = if queues_each < self.workers.len() { queues_each } else { 1 };
        let first = self.next_worker.fetch_add(step, Ordering::Relaxed);
        Attached::new(device, &self.handles(), queues, first)
    }

    /// For a device whose queues belong together in pairs, such as a network device's: queues `2 * i` and `2 * i + 1` go to
    /// worker `i`, modulo the number of workers, and so do those of every other such device. What is moved from one
    /// device's pair to the same pair of another one stays on its worker.
    pub fn attach_pairs(&self, queues: u16) -> Attached<M> {
        let device = self.next_device.fetch_add(1, Ordering::Relaxed);
        Attached::in_pairs(device, &self.handles(), queues)
    }

    /// All workers.
    pub fn handles(&self) -> Vec<WorkerHandle<M>> {
        self.workers.iter().map(Worker::handle).collect()
    }

    /// The counters of all workers, by name and CPU.
    pub fn stats(&self) -> Vec<(String, Option<usize>, WorkerSnapshot)> {
        let of =
            |handle: &WorkerHandle<M>| (handle.name().to_owned(), handle.cpu(), handle.stats().snapshot());
        self.handles().iter().map(of).collect()
    }

    /// Stops all workers and waits for them; the failures of those that had failed.
    pub fn join(self) -> Vec<WorkerGone> {
        let Self { workers, watchdog, .. } = self;
        workers.iter().for_each(Worker::stop);
        let gone = workers.into_iter().filter_map(|worker| worker.join().err()).collect();
        // To the last: a worker may be held up at its end, too.
        drop(watchdog);
        gone
    }
}

struct Placement {
    worker: usize,
    stats: Arc<QueueStats>,
    running: bool,
}

/// The queues of one device on its workers.
pub struct Attached<M> {
    device: u32,
    /// Only those that have a queue of this device.
    workers: Vec<WorkerHandle<M>>,
    queues: Vec<Placement>,
}

/// An answer under way.
struct Pending<'a, M, R> {
    worker: &'a WorkerHandle<M>,
    answer: Receiver<R>,
}

impl<M, R> Pending<'_, M, R> {
    fn wait(self) -> Result<R, WorkerGone> {
        // The reply is dropped unanswered only when the worker is gone.
        self.answer.recv().map_err(|_| self.worker.gone())
    }
}

impl<M> Attached<M> {
    /// Queue `i` goes to worker `first + i`, modulo their number.
    pub fn new(device: u32, workers: &[WorkerHandle<M>], queues: u16, first: usize) -> Self {
        let used = workers.len().min(usize::from(queues).max(1));
        let workers = (0..used).map(|i| workers[(first + i) % workers.len()].clone()).collect();
        let place = |i| Placement { worker: i % used, stats: Arc::default(), running: false };
        Self { device, workers, queues: (0..usize::from(queues)).map(place).collect() }
    }

    /// Queues `2 * i` and `2 * i + 1` go to worker `i`, modulo their number.
    pub fn in_pairs(device: u32, workers: &[WorkerHandle<M>], queues: u16) -> Self {
        let used = workers.len().min(usize::from(queues).div_ceil(2).max(1));
        let place = |i| Placement { worker: i / 2 % used, stats: Arc::default(), running: false };
        let queues = (0..usize::from(queues)).map(place).collect();
        Self { device, workers: workers[..used].to_vec(), queues }
    }

    /// The device's number, as its workers know it.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// The workers that serve it.
    pub fn workers(&self) -> &[WorkerHandle<M>] {
        &self.workers
    }

    /// The worker of a queue.
    pub fn worker_of(&self, index: u16) -> Option<&WorkerHandle<M>> {
        self.queues.get(usize::from(index)).map(|queue| &self.workers[queue.worker])
    }

    /// The counters of each queue; they live as long as anybody holds them.
    pub fn stats(&self) -> impl Iterator<Item = &Arc<QueueStats>> {
        self.queues.iter().map(|queue| &queue.stats)
    }

    /// How many queues run.
    pub fn running(&self) -> usize {
        self.queues.iter().filter(|queue| queue.running).count()
    }
}

impl<M: From<RingCommand>> Attached<M> {
    /// Gives a queue to its worker. When that has failed, the queue's err eventfd is written.
    pub fn start_queue(&mut self, index: u16, mut queue: Box<Queue>) -> Result<(), WorkerGone> {
        let device = self.device;
        let Some(place) = self.queues.get(usize::from(index)) else { return Ok(()) };
        let worker = &self.workers[place.worker];
        if worker.failure().is_some() {
            queue.break_ring(Broken::Refused("the device has failed"));
            return Err(worker.gone());
        }
        let stats = place.stats.clone();
        let started = ask(worker, |reply| RingCommand::Start { device, index, queue, stats, reply })?.wait();
        self.queues[usize::from(index)].running = started.is_ok();
        started
    }

    /// Drains a queue and takes it back; `None` when it was not running.
    pub fn stop_queue(&mut self, index: u16) -> Result<Option<Box<Queue>>, WorkerGone> {
        let drained = match self.begin_stop(index) {
            Some(stop) => stop.and_then(Pending::wait),
            None => Ok(None),
        };
        self.stopped(index);
        drained
    }

    /// Gives all workers of the device its new memory, and waits until they use it.
    pub fn set_memory(&mut self, table: Arc<MemoryTable>) -> Result<(), WorkerGone> {
        let device = self.device;
        self.ask_all(|reply| RingCommand::Memory { device, table: table.clone(), reply })
    }

    /// Switches dirty logging on all workers of the device.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) -> Result<(), WorkerGone> {
        let device = self.device;
        self.ask_all(|reply| RingCommand::Log { device, log: log.clone(), reply })
    }

    /// Replaces a running queue's interrupt.
    pub fn set_call(&mut self, index: u16, call: Option<EventFd>) -> Result<(), WorkerGone> {
        let device = self.device;
        self.ask_one(index, |reply| RingCommand::Call { device, index, call, reply })
    }

    /// Replaces a running queue's error event.
    pub fn set_err(&mut self, index: u16, err: Option<EventFd>) -> Result<(), WorkerGone> {
        let device = self.device;
        self.ask_one(index, |reply| RingCommand::Err { device, index, err, reply })
    }

    /// Enables or disables a running queue; enabling an enabled one is a kick.
    pub fn enable_queue(&mut self, index: u16, enable: bool) -> Result<(), WorkerGone> {
        let device = self.device;
        self.ask_one(index, |reply| RingCommand::Enable { device, index, enable, reply })
    }

    /// Stops all queues, all at once, and lets go of log and memory. Everything is tried; the first error is returned.
    pub fn disconnected(&mut self) -> Result<(), WorkerGone> {
        let indices = 0..self.queues.len() as u16;
        let pending: Vec<_> = indices.clone().filter_map(|index| self.begin_stop(index)).collect();
        let stops: Vec<_> = pending.into_iter().map(|stop| stop?.wait().map(drop)).collect();
        indices.for_each(|index| self.stopped(index));
        let rest = [self.set_log(None), self.set_memory(MemoryTable::empty())];
        stops.into_iter().chain(rest).collect()
    }

    #[expect(clippy::type_complexity, reason = "an option of a result of a pending answer, used twice above")]
    fn begin_stop(&self, index: u16) -> Option<Result<Pending<'_, M, Option<Box<Queue>>>, WorkerGone>> {
        let device = self.device;
        let place = self.queues.get(usize::from(index)).filter(|place| place.running)?;
        let worker = &self.workers[place.worker];
        Some(ask(worker, |reply| RingCommand::Stop { device, index, reply }))
    }

    fn stopped(&mut self, index: u16) {
        if let Some(place) = self.queues.get_mut(usize::from(index)) {
            place.running = false;
        }
    }

    fn ask_one(&self, index: u16, command: impl FnOnce(Reply<()>) -> RingCommand) -> Result<(), WorkerGone> {
        match self.worker_of(index) {
            Some(worker) => ask(worker, command)?.wait(),
            None => Ok(()),
        }
    }

    fn ask_all(&self, command: impl Fn(Reply<()>) -> RingCommand) -> Result<(), WorkerGone> {
        let pending: Vec<_> = self.workers.iter().map(|worker| ask(worker, &command)).collect();
        // All are waited for, also after an error: a caller may unmap what they used.
        let answers: Vec<_> = pending.into_iter().map(|pending| pending?.wait()).collect();
        answers.into_iter().collect()
    }
}

fn ask<M: From<RingCommand>, R>(
    worker: &WorkerHandle<M>,
    command: impl FnOnce(Reply<R>) -> RingCommand,
) -> Result<Pending<'_, M, R>, WorkerGone> {
    let (reply, answer) = Reply::new();
    worker.send(command(reply).into())?;
    Ok(Pending { worker, answer })
}
