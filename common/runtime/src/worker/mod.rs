//! A thread that owns a [`Service`]: its rings, its I/O and nobody else's.
//!
//! The loop is in `run.rs`; what a service gets to use is its [`Context`]; what control holds is a [`Worker`], or clones
//! of its [`WorkerHandle`].
//!
//! A panic in a service is caught on its thread. The worker then tells its rings (the service's
//! [`panicked`](Service::panicked)), waits for the I/O in flight, drops the service and is failed from then on: messages
//! sent to it are errors, and replies that it owed are dropped, so that nobody waits for them. The process goes on.

mod context;
mod run;
mod watchdog;

use std::any::Any;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use crate::cpu::{self, Affinity};
use crate::deadlines::Deadlines;
use crate::doorbell::{Doorbell, EventBell};
use crate::io::{IoConfig, WatchId};
use crate::policy::PollPolicy;
use crate::stats::WorkerStats;

use self::watchdog::Pulse;

pub use context::Context;
pub(crate) use watchdog::Watchdog;

/// What a worker runs: one value a thread, built on that thread, owning its rings outright. All methods are called on
/// the worker's thread, one at a time; none may block.
pub trait Service {
    /// What control can tell it.
    type Message: Send + 'static;

    /// Takes one message.
    fn message(&mut self, message: Self::Message, cx: &mut Context);

    /// Takes new work, executes it and publishes what has been completed; returns the units of work done, 0 when there
    /// was none. Called every round, after the completions of the round. I/O pushed here is submitted when it returns.
    fn poll_once(&mut self, cx: &mut Context) -> usize;

    /// One I/O operation has ended. What it completes is published by the [`poll_once`](Self::poll_once) that follows.
    fn completed(&mut self, user_data: u64, result: i32, cx: &mut Context);

    /// A descriptor watched by [`Context::watch`] became readable. A kick needs no answer: the rings are polled anyway.
    fn ready(&mut self, watch: WatchId, cx: &mut Context) {
        let _ = (watch, cx);
    }

    /// The worker is about to sleep: kicks on, everywhere. True when there is work already, for which no kick will come.
    #[must_use = "true means that there is work, for which no kick will come"]
    fn arm(&mut self) -> bool;

    /// The worker is awake: kicks off, where that pays.
    fn suppress(&mut self);

    /// Requests taken and not completed. A stopping worker goes on until there are none.
    fn outstanding(&self) -> usize;

    /// The worker is to end: take no new work, complete what was taken.
    fn close(&mut self) {}

    /// Another method has panicked, and this is the last call: tell the rings' owners. Panics in here are caught too.
    fn panicked(&mut self) {}
}

/// How to start a worker.
#[derive(Clone, Debug, Default)]
pub struct WorkerConfig {
    /// Name of the thread; the kernel shows its first 15 bytes.
    pub name: String,
    /// Pin the thread to this CPU.
    pub cpu: Option<usize>,
    /// How it waits.
    pub poll: PollPolicy,
    /// Its I/O engine.
    pub io: IoConfig,
    /// Far deadlines go to this shared table instead of the timeout of the worker's own wait.
    pub deadlines: Option<Arc<Deadlines>>,
}

/// A message cannot be delivered, or an answer will not come: the worker has failed or was stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Worker {name} is gone: {reason}")]
pub struct WorkerGone {
    /// The worker's name.
    pub name: String,
    /// The panic's message, or that it was stopped.
    pub reason: String,
}

enum Command<M> {
    Service(M),
    Poll(PollPolicy),
    Stop,
}

struct Shared {
    name: String,
    cpu: Option<usize>,
    doorbell: Arc<Doorbell<EventBell>>,
    stats: Arc<WorkerStats>,
    failure: OnceLock<String>,
    pulse: Pulse,
}

/// Speaks to a worker from any thread. Cheap to clone; does not keep the worker running.
pub struct WorkerHandle<M> {
    shared: Arc<Shared>,
    commands: Sender<Command<M>>,
}

impl<M> Clone for WorkerHandle<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), commands: self.commands.clone() }
    }
}

impl<M> fmt::Debug for WorkerHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("name", &self.name()).field("failure", &self.failure()).finish()
    }
}

impl<M> WorkerHandle<M> {
    /// Puts a message into the worker's queue and wakes it if it sleeps. Never blocks.
    pub fn send(&self, message: M) -> Result<(), WorkerGone> {
        self.command(Command::Service(message))
    }

    /// Changes how the worker waits.
    pub fn set_poll(&self, policy: PollPolicy) -> Result<(), WorkerGone> {
        self.command(Command::Poll(policy))
    }

    fn command(&self, command: Command<M>) -> Result<(), WorkerGone> {
        self.commands.send(command).map_err(|_| self.gone())?;
        self.shared.doorbell.ring();
        Ok(())
    }

    /// The error for a worker that does not answer any more.
    pub fn gone(&self) -> WorkerGone {
        let reason = self.failure().unwrap_or("it was stopped").to_owned();
        WorkerGone { name: self.name().to_owned(), reason }
    }

    /// Why the worker has failed, if it has.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// The worker's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The CPU it is pinned to.
    pub fn cpu(&self) -> Option<usize> {
        self.shared.cpu
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.shared.stats
    }
}

/// A running worker; dropping it stops the thread and waits for it.
pub struct Worker<M> {
    handle: WorkerHandle<M>,
    thread: Option<JoinHandle<()>>,
}

impl<M> std::ops::Deref for Worker<M> {
    type Target = WorkerHandle<M>;

    fn deref(&self) -> &WorkerHandle<M> {
        &self.handle
    }
}

impl<M> fmt::Debug for Worker<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

impl<M: Send + 'static> Worker<M> {
    /// Starts a thread, pins it, sets its I/O up, and has `build` make the service there. Returns when that is done or
    /// has failed.
    pub fn spawn<S>(
        config: WorkerConfig,
        build: impl FnOnce(&mut Context) -> S + Send + 'static,
    ) -> io::Result<Self>
    where
        S: Service<Message = M> + 'static,
    {
        let doorbell = Arc::new(Doorbell::new(EventBell::new()?));
        let shared = Arc::new(Shared {
            name: config.name.clone(),
            cpu: config.cpu,
            doorbell,
            stats: Arc::default(),
            failure: OnceLock::new(),
            pulse: Pulse::default(),
        });
        let (commands, inbox) = mpsc::channel();
        let (started, start) = mpsc::sync_channel(1);
        let own = shared.clone();
        let thread = thread::Builder::new().name(config.name.clone()).spawn(move || {
            match set_up(&config, &own) {
                Ok(cx) => {
                    // The spawner waits for this; it cannot be gone.
                    let _ = started.send(Ok(()));
                    own.pulse.begin();
                    run::run(&own, cx, config.poll, Inbox(inbox), build);
                    own.pulse.end();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let lost = || Err(io::Error::other("The worker thread ended before it began"));
        start.recv().unwrap_or_else(|_| lost())?;
        Ok(Self { handle: WorkerHandle { shared, commands }, thread: Some(thread) })
    }
}

/// Has workers that are held up by a frontend interrupted, for as long as the result lives.
pub(crate) fn watch_over<M>(workers: &[Worker<M>]) -> Watchdog {
    let watched = workers.iter().map(|worker| worker.handle.shared.clone()).collect();
    Watchdog::start(watched).unwrap_or_else(|error| {
        tracing::warn!(%error, "No watchdog: a frontend may hold a worker up");
        Watchdog::none()
    })
}

impl<M> Worker<M> {
    /// A handle for others.
    pub fn handle(&self) -> WorkerHandle<M> {
        self.handle.clone()
    }

    /// Asks the worker to finish its I/O in flight and end. Stop its queues first: what it has not taken stays untaken.
    pub fn stop(&self) {
        // A worker that is gone needs no asking.
        let _ = self.handle.command(Command::Stop);
    }

    /// Stops the worker and waits until its thread has ended.
    pub fn join(mut self) -> Result<(), WorkerGone> {
        self.end();
        match self.handle.failure() {
            Some(_) => Err(self.handle.gone()),
            None => Ok(()),
        }
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop();
            if thread.join().is_err() {
                tracing::error!(worker = self.handle.name(), "A worker thread panicked outside its service");
            }
        }
    }
}

impl<M> Drop for Worker<M> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The worker's end of its queue of commands.
struct Inbox<M>(Receiver<Command<M>>);

impl<M> Inbox<M> {
    /// The next command. When every handle is gone, nobody can stop the worker any more: that is a stop.
    fn next(&self) -> Option<Command<M>> {
        match self.0.try_recv() {
            Ok(command) => Some(command),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Command::Stop),
        }
    }
}

fn set_up(config: &WorkerConfig, shared: &Shared) -> io::Result<Context> {
    let helpers = match config.cpu {
        Some(cpu) => {
            let unpinned = Affinity::current()?;
            cpu::pin(cpu)?;
            Some(unpinned)
        }
        None => None,
    };
    Context::new(config, shared.doorbell.clone(), shared.stats.clone(), helpers)
}

/// The text of a panic.
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no message"))
}
