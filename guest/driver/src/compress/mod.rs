//! Compression: requests to the device, or to software when there is none.
//!
//! - [`Client`] submits, polls and waits; [`Request`] is what it is asked for and [`Completion`] what comes back.
//! - [`Shared`] is the same for tasks of an asynchronous program: a [`Reply`] is a future.
//! - [`Stream`] compresses or decompresses what is too long for a request.
//!
//! The wire format is that of `docs/compress-device.md` (crate `compress-protocol`).

mod client;
mod options;
mod remote;
mod request;
mod shared;
mod slots;
mod software;
mod stream;

pub use client::{Client, Full};
pub use compress_protocol::{
    Checksum, Config, DEVICE_ID, Direction, Flush, Format, Levels, Status, compress_bound, feature,
};
pub use options::{OpenError, Options, Place};
pub use request::{By, Completion, Operation, Request, Ticket};
pub use shared::{Reply, Shared, Task};
pub use stream::{Step, Stream, StreamError};
