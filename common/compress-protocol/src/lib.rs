//! The wire format of the compression device, for whoever speaks it: the daemon, a driver, a load generator.
//!
//! `docs/compress-device.md` is the specification; section numbers in this crate are those of that document. Everything is
//! little-endian and has a fixed place, so that it is encoded into and decoded from arrays, without `unsafe` and without a heap.
//!
//! - [`Header`] is what a request begins with, as it is on the wire: numbers nobody knows stay what they are.
//! - [`Request`] is what a header says, checked against a [`Config`] and the features in force ([`Request::parse`]): the one place
//!   that decides between OK, NOT_SUPPORTED and BAD_REQUEST.
//! - [`Response`] is what a request ends with, and [`Status`] what became of it.
//! - [`Config`] is the configuration space, and the answer to GET_CONFIG.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod carrier;
mod config;
mod header;
mod number;
mod request;
#[cfg(test)]
mod request_tests;
mod response;
mod wire;

pub use carrier::{FS_DEVICE_ID, FS_TAG_LEN, FS_TAG_PREFIX, carries};
pub use config::{CONFIG_LEN, Config, Foreign, Levels, MAGIC, VERSION, feature};
pub use header::{HEADER_LEN, Header, flag};
pub use number::{Checksum, Direction, Format, Opcode, Status};
pub use request::{Flush, Operation, Request, compress_bound};
pub use response::{RESPONSE_LEN, Response, response_flag};

/// The virtio device ID unless another one is chosen (§1.1): assigned to something that neither has a specification nor drivers,
/// since QEMU shows no device whose number is not assigned. Whether a device is one of ours is said by [`MAGIC`] alone.
pub const DEVICE_ID: u16 = 38;
