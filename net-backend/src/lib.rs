//! vhostd-net: virtio-net ports over vhost-user (virtio 1.3 §5.1), switched in one process, with a TAP or AF_XDP uplink.
//!
//! # Parts
//!
//! [`frame`] is what a frame is: headers, checksums, segments, hashes; pure. [`switch`] decides where a frame goes; it sees a
//! private copy of its first bytes. [`path`] moves frames from transmit rings into receive rings by these decisions, and
//! [`service::NetService`] is that path on a worker thread. [`uplink`] is the way out. [`port::Port`] is what session, control
//! socket and workers share about one port.
//!
//! The session thread of a port owns a [`device::NetDevice`]. What its guest asks for through the control queue is parsed by
//! [`ctrl`] (pure) and kept and put into force by [`guest::Guest`]. [`app`] puts it together with the command line ([`cli`],
//! [`spec`], [`options`]) and the control socket ([`control`]).
//!
//! # Threads
//!
//! Workers own their rings and never block: no lock, no allocation after warm-up, no reference count per frame; a command of
//! a control queue, which is no frame, may take a short lock. Session and control threads change a port's atomics, or send a
//! message and wait for the answer. Pair i of every port belongs to worker i modulo their number.
//!
//! # Features
//!
//! [`features::FEATURES`] lists every virtio feature a port may offer, with the test that shows it at work. Protocol features
//! beyond those of every session: CONFIG, STATUS, RARP, NET_MTU, and DEVICE_STATE for what the guest has set.
//!
//! # What becomes of a frame that cannot pass
//!
//! It is dropped, and counted for its port and direction under one of the reasons in [`switch::Drop`]. Descriptor chains that
//! break the rules of virtqueues break their ring, and nothing else.

pub mod app;
mod board;
pub mod cli;
pub mod config;
pub mod control;
pub mod ctrl;
pub mod device;
pub mod features;
pub mod frame;
pub mod guest;
pub mod options;
pub mod path;
pub mod port;
mod qemu;
mod report;
pub mod service;
pub mod spec;
pub mod stats;
pub mod switch;
pub mod uplink;
mod uplink_port;
pub mod values;
