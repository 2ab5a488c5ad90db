//! vhostd-crypto: virtio-crypto devices (virtio 1.3 §5.9) over vhost-user, with batched, asynchronous engines.
//!
//! # Parts
//!
//! A request goes through these modules in this order: [`queue`] takes a burst of chains from a ring, [`wire`] parses
//! their headers, [`session`] finds the keys, [`batch`] groups the jobs by algorithm and key size, [`flush`] says when
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

pub mod algorithm;
pub mod app;
pub mod asym;
pub mod batch;
pub mod cli;
pub mod config;
pub mod control;
pub mod ctrl;
pub mod description;
pub mod device;
pub mod engine;
pub mod fair;
pub mod features;
pub mod flush;
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
