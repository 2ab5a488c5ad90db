//! Which engine does which request, and what happens when one fails.

#![expect(unsafe_code, reason = "passes on the contract of Engine::submit")]

use super::library::Library;
use super::{Engine, Finished, Job, KeyId, Outcome};
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
    /// Jobs that the library did.
    pub library: u64,
    /// Jobs that other engines took.
    pub offloaded: u64,
    /// Jobs that another engine had no room for; the library did them.
    pub overflowed: u64,
    /// Jobs that another engine failed at; the library did them.
    pub fallbacks: u64,
    /// Jobs that made no sense and reached no engine.
    pub refused: u64,
}

/// The engines of one worker.
pub struct Engines {
    others: Vec<Box<dyn Engine>>,
    library: Library,
    refused: Vec<(u64, Outcome)>,
    counters: Counters,
}

impl Engines {
    /// Those of a choice.
    pub fn new(choice: Choice) -> Self {
        let _ = choice;
        Self::with(Vec::new())
    }

    /// These, the first that takes a job first, and the library behind them.
    pub fn with(others: Vec<Box<dyn Engine>>) -> Self {
        Self { others, library: Library::new(), refused: Vec::new(), counters: Counters::default() }
    }

    /// Starts every job. What makes no sense ends at once; what no other engine takes, has room for or can do, the library does.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`], until [`poll`](Self::poll) has delivered the job.
    pub unsafe fn submit(&mut self, jobs: &[Job]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.library.submit(jobs);
        }
    }

    /// Nothing more will come for now: see [`Engine::flush`].
    pub fn flush(&mut self) {
        self.others.iter_mut().for_each(|engine| engine.flush());
    }

    /// Delivers what has ended, in any order: tag and outcome.
    pub fn poll(&mut self, done: &mut dyn FnMut(u64, Outcome)) -> usize {
        let refused = self.refused.len();
        self.refused.drain(..).for_each(|(tag, outcome)| done(tag, outcome));
        refused
            + self.library.poll(&mut |finished| match finished {
                Finished::Done(tag, outcome) => done(tag, outcome),
                Finished::Failed(job) => done(job.tag, Outcome::Error),
            })
    }

    /// How many jobs were started and not yet delivered.
    pub fn in_flight(&self) -> usize {
        self.refused.len()
            + self.library.in_flight()
            + self.others.iter().map(|engine| engine.in_flight()).sum::<usize>()
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
