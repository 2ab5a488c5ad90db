//! vhostd-crypto: virtio-crypto devices (virtio 1.3 §5.9) over vhost-user, with batched, asynchronous engines.
//!
//! # Parts
//!
//! A request goes through these modules in this order: [`queue`] takes a burst of chains from a ring, [`wire`] parses
//! their headers, [`session`] finds the keys, [`offload::batch`] groups the jobs by algorithm and key size, [`flush`] says when
//! they are submitted, an [`engine`] computes, and [`queue`] writes the status byte and completes the chain.
//! [`fair`] shares a worker between devices and queues. Asymmetric requests leave the worker for the threads of
//! [`asym`] and come back through its doorbell.
//!
//! # Two doors
//!
//! One device object serves both kinds of frontend. Sessions reach it either as the vhost-user messages
//! `CREATE_CRYPTO_SESSION` and `CLOSE_CRYPTO_SESSION` ([`description`]), or as requests on the control queue
//! ([`ctrl`]), in which case the frontend also reads the configuration space ([`config`]).
//!
//! # Threads
//!
//! Workers own their rings and never block: no lock, no allocation after warm-up, no reference count per symmetric
//! request. Keys live in locked memory ([`keys`]) and are wiped when the last user lets go of them.
//!
//! # Features
//!
//! [`features`] lists every virtio feature that a device may offer, with the test that shows it at work; [`algorithm`] the
//! algorithms, with their numbers and sizes. Protocol features beyond those of every session: CONFIG and CRYPTO_SESSION.
//!
//! # Which status
//!
//! | what happened | status |
//! |---|---|
//! | an algorithm, operation or direction that the key cannot do | NOTSUPP |
//! | a length, nonce or number that does not fit; what was encrypted is no whole block | ERR |
//! | a tag that is wrong (the destination holds zeros), a decrypted padding that is none | BADMSG |
//! | a signature that is wrong, an asymmetric key that is none | KEY_REJECTED |
//! | a session that was closed or never was | INVSESS |
//! | too many sessions, or no locked memory for another key | NOSPC |
//!
//! # Crashes
//!
//! With `--supervise` ([`supervise`]) sessions ([`vault`]) and the sources of requests in place ([`journal`]) lie in memory that
//! another process holds, and the next worker process goes on with them.

pub mod algorithm;
pub mod app;
pub mod asym;
pub mod cli;
pub mod config;
pub mod control;
pub mod ctrl;
pub mod description;
pub mod device;
pub mod engine;
pub mod features;
pub mod journal;
pub mod keys;
pub mod multibuffer;
pub mod options;
pub mod parameters;
pub mod qemu;
pub mod queue;
pub mod report;
pub mod service;
pub mod session;
pub mod spec;
pub mod stats;
pub mod supervise;
pub mod vault;
pub mod wire;

pub use offload::{fair, flush};
