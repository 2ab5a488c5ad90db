//! AES-CBC encryption of many requests at once.
//!
//! A block of CBC encryption needs the ciphertext of the block before, so one request runs at the *latency* of the AES
//! instructions and leaves their units idle nine cycles of ten. Requests do not depend on one another: one lane for
//! each, and the units work at their throughput. A lane has its own key, initialisation vector, length and buffers.
//!
//! # Parts
//!
//! [`MultiBuffer`] is the [`Engine`](crate::engine::Engine): it collects jobs and hands them to a [`Machine`], which has
//! the lanes of one [`Kind`]. `scheduler` keeps them full; `cursor` cuts a request's buffers, which are ranges of guest
//! memory of any length and alignment, into runs of whole blocks, and passes the blocks that lie across a boundary
//! through a copy; `kernel` has the inner loops, `table` what they work on, `key` and `schedule` the expanded keys.
//!
//! A request costs nobody else anything but its share of the lanes: pieces too short to be worth a lane are encrypted by
//! themselves, so that a guest that sends its data in crumbs does not make the other lanes stop at each of them.
//!
//! # Speed
//!
//! What is said here of speed was measured (`cargo bench -p crypto-offload --bench engines`), and only in comparison,
//! turn by turn, on one core. On a Zen 5 server, AES-128, 4 KiB: sixteen lanes encrypt 12 to 14 times as fast as the
//! library from depth 16 on, four requests 3.6 times, one alone 1.04 times. With keys of 256 bits 13.5, 3.7 and 1.03
//! times. Sixteen lanes with sixteen keys are 6 % slower than with one. Together with HMAC-SHA256, which stays serial
//! and then takes nine tenths of the time, encryption is twice as fast.
//!
//! Wide vectors made some older CPUs lower their clock, for the code after them too. The bench measures that as well: on
//! the CPU above, ordinary code right after the lanes takes as long as right after the library. On another, look.

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
