//! AES-CBC encryption of many requests at once.
//!
//! A block of CBC encryption needs the ciphertext of the block before, so one request runs at the *latency* of the AES
//! instructions and leaves their units idle nine cycles of ten. Requests do not depend on one another: one lane for
//! each, and the units work at their throughput. A lane has its own key, initialisation vector, length and buffers.

mod cursor;
mod engine;
mod kernel;
mod key;
mod machine;
mod request;
mod schedule;
mod scheduler;
mod table;
#[cfg(test)]
mod tests;

pub use engine::MultiBuffer;
pub use key::{CbcKey, KeySize};
pub use machine::{Kind, Machine};
pub use request::Request;

/// Bytes of one block of AES, the unit of everything here.
pub const BLOCK: usize = 16;

/// One block, aligned as the vector instructions like it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(16))]
pub struct Block(pub [u8; BLOCK]);
