//! A user-space virtio-crypto driver without a VM: [`Crypto`] is the attached device and its sessions (control plane),
//! [`Queue`] one data queue, owned by the thread that drives it.
//!
//! It comes through either door: as the frontend of any QEMU, with sessions by vhost-user messages and one data queue, or
//! as a driver that has the whole device, with configuration space, control queue and as many data queues as there are.

mod control;
mod device;
mod encode;
mod layout;
mod queue;

pub use device::{Crypto, CryptoError, Door, Setup};
pub use encode::{Format, Task};
pub use queue::{Completion, Queue};
