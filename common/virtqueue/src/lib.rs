//! Virtqueues: split and packed rings (virtio 1.3 §2.7, §2.8), the device side and the driver side, and the inflight
//! region of vhost-user.
//!
//! # Device side
//!
//! [`Queue`] is what a worker owns: a [`Ring`] (split or packed) and its eventfds. The data path is generic over
//! [`DeviceRing`] and goes in bursts: [`fetch`](DeviceRing::fetch) looks at the ring once and says how many chains
//! there are, [`next`](DeviceRing::next) copies, checks and translates one into a reusable [`Chain`],
//! [`complete`](DeviceRing::complete) writes its used element, in any order, and [`publish`](DeviceRing::publish) shows
//! everything completed since the last time to the driver with one release store and makes the one notification
//! decision. No lock, no allocation, no reference count and no system call but the eventfd write.
//!
//! Everything in shared memory is hostile: each descriptor is copied once and the copy is checked, sizes are frozen at
//! start, and the first violation latches that ring as [`Broken`]: it yields no more chains, while those already in
//! flight may still complete.
//!
//! # Driver side
//!
//! [`driver::DriverRing`] is the other end, for load generators, tests and guest code: as fast, and without anything
//! that needs an operating system.
//!
//! # Threads
//!
//! A ring, either side, belongs to one thread at a time (`Send`, not `Sync` in use); the other side runs elsewhere, and
//! every fence says what it pairs with. Words like "pairs with the driver's ..." are about the peer's memory accesses.
//!
//! # Features
//!
//! | virtio feature | here |
//! |---|---|
//! | INDIRECT_DESC (28), EVENT_IDX (29), RING_PACKED (34), IN_ORDER (35) | by [`RingFeatures`] |
//! | EVENT_IDX and INDIRECT_DESC of which nobody says whether the driver negotiated them | [`Queue::assume_any_driver`] |
//! | RING_RESET (40) | a ring holds all of its state: drop the [`Queue`], make a new one; others do not notice |

#![deny(unsafe_code)]

mod broken;
mod chain;
mod device;
pub mod driver;
mod event;
mod heads;
pub mod inflight;
pub mod layout;
mod log;
mod order;
pub mod packed;
mod position;
mod queue;
mod setup;
mod shared;
pub mod split;
#[cfg(test)]
mod tests;
mod walk;

pub use broken::{BadIndirect, Broken, SetupError};
pub use chain::{Chain, Short, Token};
pub use device::{DeviceRing, Ring};
pub use layout::ring_sizes;
pub use queue::{Counters, Queue};
pub use setup::{Format, QueueSize, RingAddresses, RingFeatures, RingSetup};
