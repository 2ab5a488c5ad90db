//! The worker threads of a daemon: how many, on which CPUs, how they wait, and whether they still answer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::attach::WorkerPool;
use runtime::deadlines::Deadlines;
use runtime::io::IoConfig;
use runtime::rings::Reply;
use runtime::stats::WorkerSnapshot;
use runtime::worker::{Context, Service, Worker, WorkerConfig, WorkerGone, WorkerHandle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;
use crate::cli::{MOST_POLL_US, Poll, PollPreset, WorkerArgs, poll_policy};
use crate::control::{Method, RpcError, params, result};

/// Tolerance of far deadlines; nearer ones use the worker's own wait.
const DEADLINE_PERIOD_NS: u64 = 1_000_000;

/// How the workers wait for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Polling {
    /// When a worker spins.
    pub poll: Poll,
    /// Longest spin in microseconds.
    pub max_us: u32,
    /// How the adaptive window grows and shrinks.
    pub preset: PollPreset,
}

impl Polling {
    /// What these arguments ask for.
    pub fn of(args: &WorkerArgs) -> Self {
        Self { poll: args.poll, max_us: args.poll_max_us, preset: args.poll_preset }
    }
}

/// The control method that reads and changes [`Polling`]; see [`Workers::poll_set`].
pub const POLL_SET: Method = Method {
    name: "poll.set",
    params: "{poll?: off|adaptive|always, max-us?: integer, preset?: string}",
    help: "Reads or changes how the workers wait for work; what is not given stays as it is",
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SetPoll {
    poll: Option<Poll>,
    max_us: Option<u32>,
    preset: Option<PollPreset>,
}

/// The workers of a process, from before they start until after they have ended. `M` is what they are told.
pub struct Workers<M> {
    args: WorkerArgs,
    polling: Mutex<Polling>,
    pool: Mutex<Option<WorkerPool<M>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Send + 'static> Workers<M> {
    /// None yet, but what the operator wants of them.
    pub fn new(args: &WorkerArgs) -> Self {
        Self { args: args.clone(), polling: Mutex::new(Polling::of(args)), pool: Mutex::default() }
    }

    /// How many there will be: as many as was asked for, otherwise `wanted`, but no more than CPUs.
    pub fn count(&self, wanted: usize) -> usize {
        let cpus = self.args.cpus.as_ref().map_or(0, |list| list.cpus().len());
        let available = match cpus {
            0 => runtime::cpu::available().map_or(1, |cpus| cpus.len()),
            pinned => pinned,
        };
        self.args.workers.map_or(wanted.clamp(1, available.max(1)), usize::from)
    }

    /// Starts `count` of them, named `PREFIX-INDEX`; `build` makes the service of each on its own thread.
    pub fn start<S, B>(
        &self,
        prefix: &str,
        count: usize,
        io: IoConfig,
        mut build: impl FnMut(usize) -> B,
    ) -> Result<(), Failure>
    where
        S: Service<Message = M> + 'static,
        B: FnOnce(&mut Context) -> S + Send + 'static,
    {
        let failed = |error| Failure::runtime(format!("The workers cannot be started: {error}"));
        let cpus = self.args.cpus.as_ref().map_or(&[][..], |list| list.cpus());
        let deadlines = Deadlines::start(count, DEADLINE_PERIOD_NS).map_err(failed)?;
        let spawn = |index: usize| {
            let config = WorkerConfig {
                name: format!("{prefix}-{index}"),
                cpu: (!cpus.is_empty()).then(|| cpus[index % cpus.len()]),
                poll: self.args.poll_policy(),
                io,
                deadlines: Some(deadlines.clone()),
            };
            Worker::spawn(config, build(index))
        };
        let workers: Result<Vec<_>, _> = (0..count).map(spawn).collect();
        *lock(&self.pool) = Some(WorkerPool::new(workers.map_err(failed)?));
        Ok(())
    }

    /// What I/O they were asked to use.
    pub fn io(&self) -> IoConfig {
        IoConfig::from(self.args.io_kind())
    }

    /// Does something with the pool, if they run.
    pub fn pool<R>(&self, use_it: impl FnOnce(&WorkerPool<M>) -> R) -> Result<R, Failure> {
        lock(&self.pool).as_ref().map(use_it).ok_or_else(|| Failure::runtime("The workers have ended"))
    }

    /// All of them; none before the start and after the end.
    pub fn handles(&self) -> Vec<WorkerHandle<M>> {
        self.pool(WorkerPool::handles).unwrap_or_default()
    }

    /// Their counters, by name and CPU.
    pub fn stats(&self) -> Vec<(String, Option<usize>, WorkerSnapshot)> {
        self.pool(WorkerPool::stats).unwrap_or_default()
    }

    /// One line each, for `status`.
    pub fn status(&self) -> Value {
        let of = |worker: &WorkerHandle<M>| serde_json::json!({"name": worker.name(), "cpu": worker.cpu(), "failure": worker.failure()});
        self.handles().iter().map(of).collect()
    }

    /// Changes how all of them wait, and says how they wait now.
    pub fn change_polling(&self, change: impl FnOnce(Polling) -> Polling) -> Result<Polling, WorkerGone> {
        let mut held = lock(&self.polling);
        let polling = change(*held);
        let policy = poll_policy(polling.poll, polling.preset, polling.max_us);
        self.handles().iter().try_for_each(|worker| worker.set_poll(policy))?;
        *held = polling;
        Ok(polling)
    }

    /// Answers [`POLL_SET`].
    pub fn poll_set(&self, value: Value) -> Result<Value, RpcError> {
        let change: SetPoll = params(value)?;
        if change.max_us.is_some_and(|us| us > MOST_POLL_US) {
            return Err(RpcError::invalid_params(format!("max-us is at most {MOST_POLL_US}")));
        }
        let polling = self.change_polling(|now| Polling {
            poll: change.poll.unwrap_or(now.poll),
            max_us: change.max_us.unwrap_or(now.max_us),
            preset: change.preset.unwrap_or(now.preset),
        });
        result(polling.map_err(|error| RpcError::internal(error.to_string()))?)
    }

    /// Tells all of them something, all at once, and waits until `deadline` for their answers; false when one is missing.
    pub fn ask(&self, message: impl Fn(Reply<()>) -> M, deadline: Instant) -> bool {
        let ask = |worker: &WorkerHandle<M>| {
            let (reply, answer) = Reply::new();
            worker.send(message(reply)).map(|()| answer)
        };
        let asked: Vec<_> = self.handles().iter().map(ask).collect();
        asked.into_iter().all(|asked| {
            let left = deadline.saturating_duration_since(Instant::now());
            asked.is_ok_and(|answer| answer.recv_timeout(left).is_ok())
        })
    }

    /// Whether all of them answer `ping` within this time.
    pub fn responsive(&self, within: Duration, ping: impl Fn(Reply<()>) -> M) -> bool {
        self.ask(ping, Instant::now() + within)
    }

    /// Stops them and waits for them; false when one had failed.
    pub fn join(&self) -> bool {
        let pool = lock(&self.pool).take();
        pool.is_none_or(|pool| pool.join().is_empty())
    }
}
