//! vhostd-compress: compression devices over vhost-user, with batched engines whose work is stolen by idle workers.
//!
//! # Parts
//!
//! A request goes through these modules in this order: [`queue`] takes a burst of chains from a ring, checks their headers and
//! copies their sources into private memory, [`task`] is what becomes of a request, [`steal`] shares tasks between workers, an
//! [`engine`] computes, and [`queue`] copies the result to the guest, writes the response and completes the chain. [`streams`]
//! keeps the streams of a device, [`service`] is what a worker runs, [`mod@unit`] what all workers know of a device.
//!
//! # Threads
//!
//! Workers own their rings. A task is self-contained: whoever computes it touches neither a ring nor the guest's memory, which
//! only the owner does when the task has come back. No lock, no allocation and no system call a request on the owner's own
//! path once it is warm.

pub mod algorithm;
pub mod app;
pub mod buffers;
pub mod checksum;
pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod engine;
pub mod features;
pub mod options;
pub mod qemu;
pub mod queue;
pub mod report;
pub mod service;
pub mod spec;
pub mod stats;
pub mod steal;
pub mod stream;
pub mod streams;
pub mod supervise;
pub mod task;
pub mod unit;
