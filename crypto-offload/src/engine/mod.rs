//! Engines: what computes, and how a worker talks to it.
//!
//! A worker turns requests into [`Job`]s and gives them to its [`Engines`], which hand each one to the first
//! [`Engine`] that takes it: [`multibuffer`](crate::multibuffer) for AES-CBC encryption, the [`library`] for
//! everything else. Whoever adds an engine needs this page and [`test::Delayed`], which is one in a hundred lines.
//!
//! # The life of a job
//!
//! 1. The worker collects jobs of one [`Group`] (algorithm, direction, key size) and calls [`Engine::submit`] with
//!    all of them. The engine takes as many as it has room for, from the front; the library does the rest. No request
//!    waits for room.
//! 2. When the worker has nothing more to add, it calls [`Engine::flush`]. An engine that collects, as lanes of a
//!    vector unit or the ring of a device do, must not wait any longer.
//! 3. The worker calls [`Engine::poll`] until the job comes back as [`Finished`], once, in any order. It then writes
//!    the guest's status byte.
//!
//! All calls come from one thread, one engine instance a worker: no engine needs a lock. None of them may block or
//! allocate a job. Asymmetric jobs take too long for that and go to threads of their own, which call
//! [`Prepared::akcipher`]; an engine that does them asynchronously takes [`Work::Akcipher`] like any other.
//!
//! # Memory
//!
//! A job names memory and owns none ([`Engine::submit`] has the contract). [`Ranges`] point into the list of pieces
//! of the guest's descriptor chain, as many and as odd as the guest made them. The guest can write to these pieces at
//! any time, so that
//!
//! - no reference to them may exist: [`Ranges::pieces`], [`Pairs`] and [`Cursor`] give addresses;
//! - what an engine reads twice may differ. That is harmless where it only ciphers, since a guest that does so harms
//!   its own data. What is parsed or compared ([`Iv`], [`Bytes`], [`Tag::Check`]) is a private copy for this reason.
//!
//! Source and destination are the same memory or apart. A decryption that ends with [`Outcome::BadMessage`] leaves
//! zeros in its destination, never plaintext.
//!
//! # Keys
//!
//! [`Prepared`] is a key that the library has expanded, in locked memory. An engine with keys of another form builds
//! its own from [`Prepared::spec`], at the first job that has it, keeps it under [`Prepared::id`] and drops it at
//! [`Engine::forget`], which comes after the last job. Ids are never used again.
//!
//! # Failure
//!
//! An outcome is the request's: [`Outcome::Error`] tells the guest that its request was wrong. When the engine is
//! what went wrong (a device reset, a full ring found too late), it gives the job back as [`Finished::Failed`] and
//! the library does it; the worker counts that and logs it now and then. It may do so only while the source is whole:
//! a job whose source is its destination, and was written to, ends as [`Outcome::Error`].
//!
//! # Sleep
//!
//! An engine that goes on by itself after `flush` has a descriptor ([`Engine::completion_fd`]) on which the worker
//! sleeps. One that computes inside its calls has none, and delivers everything at the poll that follows the flush: each
//! job as soon as it is done, so that the guest goes on with it while the rest is computed.
//!
//! # A hardware engine: QAT with qatlib
//!
//! How the pieces fit, with the names of Intel's API (`cpa_cy_sym.h`, `icp_sal_poll.h`):
//!
//! | here | there |
//! |---|---|
//! | a worker's engine | one `CpaInstanceHandle` of its own: `cpaCyGetInstances`, `cpaCySetAddressTranslation`, `cpaCyStartInstance` |
//! | `takes` | the algorithms of `cpaCySymQueryCapabilities`, and a length above which the device is faster (2 KiB is a usual start) |
//! | `submit` | `cpaCySymPerformOp` for each job, with a cookie that holds the [`Job`]; `CPA_STATUS_RETRY` is "no more room" |
//! | `flush` | nothing: the device starts at once |
//! | `poll` | `icp_sal_CyPollInstance(instance, 0)`; the callback puts cookie and status on a list, which `poll` then delivers |
//! | `completion_fd` | `icp_sal_CyGetFileDescriptor`, when the instance is configured for events |
//! | a key | a session: `cpaCySymInitSession` with what [`Prepared::spec`] says, in a table by [`KeyId`] |
//! | `forget` | `cpaCySymRemoveSession` |
//! | [`Ranges`] | a `CpaBufferList` of `CpaFlatBuffer`s, one a piece, in the cookie |
//! | [`Tag::Check`] | `verifyDigest` of the session, with `verifyResult` false as [`Outcome::BadMessage`] |
//! | `Finished::Failed` | any other status of the callback, and every cookie in flight at `CPA_INSTANCE_EVENT_RESTARTING` |
//!
//! The device reads memory by itself. With shared virtual memory (an IOMMU with PASID) it takes the addresses of
//! [`Ranges`] as they are, and its page faults replace pinning. Without, source and destination are copied through
//! buffers of the device's memory driver, which pays only for ciphers that are slow in software. In both cases memory
//! stays mapped until `poll` has delivered the job: the worker keeps the memory of its jobs until then, also when the
//! guest's memory changes.

mod job;
mod prepared;
mod ranges;
mod select;

pub mod library;
pub mod test;

pub use job::{AkcipherOp, Bytes, Finished, Iv, Job, KeyRef, MAX_IV, Outcome, Span, Tag, Work};
pub(crate) use prepared::Recipe;
pub use prepared::{Group, KeyError, KeyId, KeySpec, Prepared};
pub use ranges::{Cursor, Pairs, Pieces, Ranges};
pub use select::{Choice, Counters, Description, Engines, UnknownChoice, list};

use crate::keys::NoMemory;
use std::os::fd::RawFd;

/// Makes keys and library ready, so that the first session need not wait for that and no system call beyond those of
/// every request is needed later. For the start of a daemon, before it is confined; says what is wrong when there is
/// someone to read it. The first key does the same when nobody did.
pub fn start() -> Result<(), NoMemory> {
    library::start()
}

/// Something that computes. One instance belongs to one worker thread, which calls all of its methods; none may block.
///
/// The worker calls [`submit`](Self::submit) with a batch, [`flush`](Self::flush) when nothing more will come for
/// now, and [`poll`](Self::poll) until it has delivered everything. An engine may compute at any of these calls, or
/// by itself in between.
pub trait Engine: Send {
    /// Its name, for counters and messages.
    fn name(&self) -> &'static str;

    /// Whether it can and should do requests of `len` bytes with this key. Asked once a job; has to be quick.
    fn takes(&self, key: &Prepared, len: usize) -> bool;

    /// Takes jobs from the front of `jobs` while there is room, and says how many. They may be done in any order.
    /// Each one [`takes`](Self::takes) said yes to, and was checked by [`Prepared::check`].
    ///
    /// # Safety
    ///
    /// Until `poll` has delivered a job, all that it names is there: its key; the lists its [`Ranges`] were made of,
    /// where they were, unchanged; the memory of every range, mapped, and writable where it is a destination; its
    /// [`Bytes`], to which nobody writes. The guest may change the bytes in the ranges at any time.
    #[expect(unsafe_code, reason = "the memory of a job is raw, and the caller keeps it")]
    unsafe fn submit(&mut self, jobs: &[Job]) -> usize;

    /// Nothing more will come for now: starts what was only collected.
    fn flush(&mut self) {}

    /// Delivers what has ended since the last call; returns how many.
    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize;

    /// How many jobs were taken and not yet delivered.
    fn in_flight(&self) -> usize;

    /// What becomes readable when `poll` has something to deliver, for a worker that wants to sleep. `None`: the
    /// engine computes only inside its calls, so that after `flush` a `poll` has everything.
    fn completion_fd(&self) -> Option<RawFd> {
        None
    }

    /// The key is about to go, and none of its jobs is in flight: drops what was kept under its name.
    fn forget(&mut self, key: KeyId) {
        let _ = key;
    }
}
