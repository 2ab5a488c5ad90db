//! vhostd-compress: compression devices over vhost-user, with batched engines whose work is stolen by idle workers.
//!
//! # Parts
//!
//! A request goes through these modules in this order: [`queue`] takes a burst of chains from a ring and checks their headers;
//! what is small is answered at once, the rest collected until [`offload::flush`] says so, and computed when its turn comes
//! ([`queue::lanes`]). Its source is copied to private memory first, unless the guest is trusted; an [`engine`] writes the
//! result straight to the guest where that is one piece; then comes the response, and the chain is completed. What a worker has
//! too much of becomes a [`task`], which others [`steal`]. [`streams`] keeps the streams of a queue, [`service`] is what a
//! worker runs, [`mod@unit`] what all workers know of a device.
//!
//! # Threads
//!
//! Workers own their rings. A task is self-contained: whoever computes it touches neither a ring nor the guest's memory, which
//! only the owner does when the task has come back. No lock, no allocation and no system call a request on the owner's own
//! path once it is warm; a request of a stream takes one lock that nobody else wants.
//!
//! # Which status
//!
//! The specification, `docs/compress-device.md`, says which status a request gets. Beyond it:
//!
//! | what happened | status |
//! |---|---|
//! | more bytes of the device are in flight than `max-in-flight` allows | BUSY |
//! | the ring stops before the request is begun, and a later one has ended already | BUSY |
//! | guest memory is gone, or every engine failed or panicked | ERROR |
//! | the stream was with a task that failed | BAD_STREAM from then on |
//!
//! # Crashes
//!
//! Requests that were in flight are done again by whoever takes over, with the same result ([`supervise`]); sources are never
//! written to. Streams are lost, and their names are not used again.

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
