//! Which engine does which request, and what happens when one fails.

#![expect(unsafe_code, reason = "passes on the contract of Engine::submit")]

use super::library::Library;
use super::{Engine, Finished, Job, KeyId, Outcome};
use crate::multibuffer::MultiBuffer;
use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

/// Which engines a worker has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// The best one for each request.
    #[default]
    Auto,
    /// The library alone.
    Library,
    /// The multi-buffer engine wherever it can, whatever the size of the request.
    MultiBuffer,
}

impl Choice {
    /// Every choice, as the command line spells it.
    pub const NAMES: [&str; 3] = ["auto", "library", "multibuffer"];

    /// As the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Library => "library",
            Self::MultiBuffer => "multibuffer",
        }
    }
}

/// Not the name of a choice of engines.
#[derive(Debug, thiserror::Error)]
#[error("Unknown engine {0:?}: auto, library or multibuffer")]
pub struct UnknownChoice(pub String);

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Self, UnknownChoice> {
        match name {
            "auto" => Ok(Self::Auto),
            "library" => Ok(Self::Library),
            "multibuffer" => Ok(Self::MultiBuffer),
            other => Err(UnknownChoice(other.to_owned())),
        }
    }
}

/// What the engines of one worker did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Jobs that the library did, for whatever reason.
    pub library: u64,
    /// Jobs that other engines took.
    pub offloaded: u64,
    /// Jobs that another engine would have taken and had no room for; the library did them.
    pub overflowed: u64,
    /// Jobs that another engine failed at; the library did them.
    pub fallbacks: u64,
    /// Jobs that made no sense and reached no engine.
    pub refused: u64,
}

/// Who does a job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The engine with this index.
    Engine(usize),
    Library,
    /// Nobody: it makes no sense.
    Nowhere(Outcome),
}

/// The engines of one worker.
pub struct Engines {
    /// In the order in which they are asked.
    others: Vec<Box<dyn Engine>>,
    library: Library,
    refused: Vec<(u64, Outcome)>,
    failed: Vec<Job>,
    counters: Counters,
    complaints: Complaints,
}

impl Engines {
    /// Those of a choice.
    pub fn new(choice: Choice) -> Self {
        Self::with(multi_buffer(choice).into_iter().collect())
    }

    /// These, the first that takes a job first, and the library behind them.
    pub fn with(engines: Vec<Box<dyn Engine>>) -> Self {
        Self {
            others: engines,
            library: Library::new(),
            refused: Vec::with_capacity(BATCH),
            failed: Vec::with_capacity(BATCH),
            counters: Counters::default(),
            complaints: Complaints::default(),
        }
    }

    /// Starts every job. What makes no sense ends at once; what no other engine takes, has room for or can do, the
    /// library does.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`], until [`poll`](Self::poll) has delivered the job.
    pub unsafe fn submit(&mut self, jobs: &[Job]) {
        let Some(first) = jobs.first() else { return };
        // SAFETY: the caller's promise, here and below.
        let (mut from, mut place) = (0, unsafe { self.place_of(first) });
        for (index, job) in jobs.iter().enumerate().skip(1) {
            // SAFETY: as above.
            let next = unsafe { self.place_of(job) };
            if next != place {
                // SAFETY: as above.
                unsafe { self.give_out(&jobs[from..index], place) };
                (from, place) = (index, next);
            }
        }
        // SAFETY: as above.
        unsafe { self.give_out(&jobs[from..], place) };
    }

    /// Who is to do a job: the first engine that takes it.
    ///
    /// # Safety
    ///
    /// As for [`submit`](Self::submit).
    #[inline]
    unsafe fn place_of(&self, job: &Job) -> Place {
        // SAFETY: the caller's promise.
        let key = unsafe { job.key.get() };
        if let Err(outcome) = key.check(&job.work) {
            return Place::Nowhere(outcome);
        }
        let len = job.work.len();
        self.others.iter().position(|engine| engine.takes(key, len)).map_or(Place::Library, Place::Engine)
    }

    /// # Safety
    ///
    /// As for [`submit`](Self::submit), for jobs of this place.
    unsafe fn give_out(&mut self, jobs: &[Job], place: Place) {
        let mut left = jobs;
        match place {
            Place::Nowhere(outcome) => {
                self.counters.refused += jobs.len() as u64;
                return self.refused.extend(jobs.iter().map(|job| (job.tag, outcome)));
            }
            Place::Engine(index) => {
                // SAFETY: the caller's promise; `place_of` asked the engine and checked the jobs.
                let taken = unsafe { self.others[index].submit(jobs) }.min(jobs.len());
                left = &jobs[taken..];
                self.counters.offloaded += taken as u64;
                self.counters.overflowed += left.len() as u64;
            }
            Place::Library => {}
        }
        self.counters.library += left.len() as u64;
        // SAFETY: the caller's promise.
        unsafe { self.library.submit(left) };
    }

    /// Does one job here and now, in the library.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`], until this returns.
    pub unsafe fn run(&mut self, job: &Job) -> Outcome {
        // SAFETY: the caller's promise, here and below.
        if let Err(outcome) = unsafe { job.key.get() }.check(&job.work) {
            self.counters.refused += 1;
            return outcome;
        }
        self.counters.library += 1;
        // SAFETY: as above.
        unsafe { self.library.run(job) }
    }

    /// Nothing more will come for now: see [`Engine::flush`].
    pub fn flush(&mut self) {
        self.others.iter_mut().for_each(|engine| engine.flush());
    }

    /// Delivers what has ended, in any order, each job once: tag and outcome.
    pub fn poll(&mut self, done: &mut dyn FnMut(u64, Outcome)) -> usize {
        let mut delivered = self.refused.len();
        self.refused.drain(..).for_each(|(tag, outcome)| done(tag, outcome));
        for engine in &mut self.others {
            if engine.in_flight() == 0 {
                continue;
            }
            engine.poll(&mut |finished| match finished {
                Finished::Done(tag, outcome) => {
                    delivered += 1;
                    done(tag, outcome);
                }
                Finished::Failed(job) => self.failed.push(job),
            });
            self.counters.fallbacks += self.failed.len() as u64;
            self.counters.library += self.failed.len() as u64;
            self.complaints.add(engine.name(), self.failed.len());
            // SAFETY: the jobs were not delivered yet, so that the promise of whoever submitted them holds.
            unsafe { self.library.submit(&self.failed) };
            self.failed.clear();
        }
        self.library.poll(&mut |finished| match finished {
            Finished::Done(tag, outcome) => {
                delivered += 1;
                done(tag, outcome);
            }
            Finished::Failed(job) => unreachable!("the library failed at job {}", job.tag),
        });
        delivered
    }

    /// How many jobs were started and not yet delivered.
    pub fn in_flight(&self) -> usize {
        let others: usize = self.others.iter().map(|engine| engine.in_flight()).sum();
        self.refused.len() + self.library.in_flight() + others
    }

    /// What becomes readable when an engine has something to deliver: see [`Engine::completion_fd`].
    pub fn completion_fds(&self) -> impl Iterator<Item = RawFd> {
        self.others.iter().filter_map(|engine| engine.completion_fd())
    }

    /// The key is about to go: see [`Engine::forget`].
    pub fn forget(&mut self, key: KeyId) {
        self.others.iter_mut().for_each(|engine| engine.forget(key));
    }

    /// The names of the engines, in the order in which they are asked.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.others.iter().map(|engine| engine.name()).chain([self.library.name()])
    }

    /// What they did.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Jobs that the lists have room for at the start.
const BATCH: usize = 256;

/// Says in the log that an engine fails: the first time, and then each time it has failed ten times as often.
#[derive(Default)]
struct Complaints {
    failures: u64,
    next: u64,
}

impl Complaints {
    fn add(&mut self, engine: &str, failures: usize) {
        self.failures += failures as u64;
        if self.failures > self.next {
            self.next = self.failures.saturating_mul(10);
            let total = self.failures;
            tracing::warn!(engine, total, "The engine failed, and the library took over");
        }
    }
}

/// An engine that a worker can have on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// What it is here.
    pub detail: String,
    /// What it takes.
    pub takes: &'static str,
}

/// The engines of this machine, in the order in which a job is offered to them.
pub fn list() -> Vec<Description> {
    let library = Description { name: "library", detail: "AWS-LC".to_owned(), takes: "everything" };
    multi_buffer_description().into_iter().chain([library]).collect()
}

fn multi_buffer(choice: Choice) -> Option<Box<dyn Engine>> {
    let wanted = match choice {
        Choice::Auto => MultiBuffer::describe().is_some(),
        Choice::Library => false,
        Choice::MultiBuffer => true,
    };
    if !wanted {
        return None;
    }
    MultiBuffer::new(choice)
        .inspect_err(|error| tracing::warn!(%error, "The multi-buffer engine is not used"))
        .ok()
        .map(|engine| Box::new(engine) as Box<dyn Engine>)
}

fn multi_buffer_description() -> Option<Description> {
    let detail = MultiBuffer::describe()?;
    Some(Description { name: "multibuffer", detail, takes: "AES-CBC encryption, also in chains" })
}
