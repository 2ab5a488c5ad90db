//! Compression and crypto devices from user space: what a program in a guest needs, and nothing of the kernel's but sysfs.
//!
//! `docs/guest.md` is for users. From the top:
//!
//! - [`compress`]: requests to a compression device, with software beside it ([`fallback`]); futures look for results when the
//!   [`reaper`] says so.
//! - [`crypto`]: ciphers of virtio-crypto devices.
//! - [`queue`]: a ring of `virtqueue`'s driver side, with its doorbell.
//! - [`transport`]: how a device is reached: over PCI in a guest, or over a daemon's socket.
//! - [`pci`]: finding a device, taking it from the kernel and giving it back; [`dma`]: memory that the device reaches.
//!
//! # Trust
//!
//! The device is the host's, which can read and write all of the guest's memory anyway. What it answers is checked all the same:
//! lengths before anything is copied, the ring's rules by the ring. A device that breaks them is given up.
//!
//! # Threads
//!
//! A client belongs to one thread at a time and starts none. On PCI it forks a child that watches over the device
//! ([`pci::Guard`]).

pub mod compress;
pub mod crypto;
pub mod dma;
pub mod fallback;
pub mod pci;
pub mod queue;
pub mod reaper;
pub mod transport;

/// The examples of the users' page compile and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guest.md")]
struct UsersPage;
