//! What the tests of `vhostd-net` stand on.
//!
//! - [`nic`]: a vhost-user network device of a QEMU guest.
//! - [`host`]: what can run commands and has an address: a guest, or a [`namespace`] of this machine's network.
//! - [`traffic`]: pings, streams and files from one host to another, all checked.
//! - [`testpmd`]: DPDK's virtio-user, a frontend nobody here wrote.
//! - [`driver`]: a small user-space driver that checks every byte, and can misbehave. [`frame`]: what it sends.
//! - [`control`]: the daemon's control socket.

pub mod control;
pub mod driver;
pub mod frame;
pub mod host;
pub mod namespace;
pub mod nic;
pub mod testpmd;
pub mod traffic;
