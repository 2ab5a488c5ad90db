//! Engines: what computes, and how a worker talks to it.

mod job;
mod prepared;
mod ranges;
mod select;

pub mod library;
pub mod test;

pub use job::{AkcipherOp, Bytes, Finished, Iv, Job, KeyRef, MAX_IV, Outcome, Span, Tag, Work};
pub use prepared::{Group, KeyError, KeyId, KeySpec, Prepared};
pub use ranges::{Cursor, Pairs, Pieces, Ranges};
pub use select::{Choice, Counters, Description, Engines, UnknownChoice, list};

use std::os::fd::RawFd;

/// Something that computes. One instance belongs to one worker thread, which calls all of its methods; none may block.
///
/// The worker calls [`submit`](Self::submit) with a batch, [`flush`](Self::flush) when nothing more will come for now, and
/// [`poll`](Self::poll) until it has delivered everything. An engine may compute at any of these calls, or by itself in between.
pub trait Engine: Send {
    /// Its name, for counters and messages.
    fn name(&self) -> &'static str;

    /// Whether it can and should do requests of `len` bytes with this key. Asked once a job; has to be quick.
    fn takes(&self, key: &Prepared, len: usize) -> bool;

    /// Takes jobs from the front of `jobs` while there is room, and says how many. They may be done in any order. Each one
    /// [`takes`](Self::takes) said yes to, and was checked by [`Prepared::check`].
    ///
    /// # Safety
    ///
    /// Until `poll` has delivered a job, all that it names is there: its key; the lists its [`Ranges`] were made of, where
    /// they were, unchanged; the memory of every range, mapped, and writable where it is a destination; its [`Bytes`], to
    /// which nobody writes. The guest may change the bytes in the ranges at any time.
    #[expect(unsafe_code, reason = "the memory of a job is raw, and the caller keeps it")]
    unsafe fn submit(&mut self, jobs: &[Job]) -> usize;

    /// Nothing more will come for now: starts what was only collected.
    fn flush(&mut self) {}

    /// Delivers what has ended since the last call; returns how many.
    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize;

    /// How many jobs were taken and not yet delivered.
    fn in_flight(&self) -> usize;

    /// What becomes readable when `poll` has something to deliver, for a worker that wants to sleep. `None`: the engine computes
    /// only inside its calls, so that after `flush` a `poll` has everything.
    fn completion_fd(&self) -> Option<RawFd> {
        None
    }

    /// The key is about to go, and none of its jobs is in flight: drops what was kept under its name.
    fn forget(&mut self, key: KeyId) {
        let _ = key;
    }
}
