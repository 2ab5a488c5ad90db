//! The threads that own rings: workers, adaptive polling, parking, asynchronous I/O, deadlines, counters.
//!
//! A [`worker::Worker`] is one thread with one [`worker::Service`], which owns its rings ([`rings::Rings`]) and its I/O
//! ([`io::Io`]) outright: nothing on the data path is shared, locked or counted. Control speaks to it by messages
//! ([`attach::Attached`] does so for one device) and waits for the answers.
//!
//! One round of a worker: take messages, harvest completions, poll the rings, submit I/O. When a round finds nothing, it
//! spins for as long as [`policy`] says (kicks off, no system call), then switches kicks on, looks once more, and sleeps
//! in one wait that covers kicks, messages, I/O and timeouts ([`doorbell`] says why nothing is slept through).

pub mod attach;
pub mod cpu;
pub mod deadlines;
pub mod doorbell;
pub mod io;
pub mod policy;
pub mod poll;
pub mod rings;
pub mod stats;
pub mod worker;
