//! vhostd-blk: virtio block devices (virtio 1.3 §5.2) over vhost-user, on files, block devices and memory.
//!
//! # Parts
//!
//! [`disk::Disk`] is one disk: what the session, the control socket and the workers share about it. The session
//! thread of a disk owns a [`device::BlkDevice`]; each worker thread runs a [`service::BlkService`] with the
//! queues it was given, of any disks. A request is checked by [`request`] (pure), and then either finished at
//! once ([`backend::Inline`]: memory, null) or driven by a [`transfer::Transfer`] (files). [`app`] puts it
//! together with the command line and the control socket.
//!
//! # Threads
//!
//! Workers own their rings and never block: no lock, no allocation after warm-up, no reference count per
//! request. Session and control threads change a disk's atomics or send a message and wait for the answer.
//!
//! # Features
//!
//! [`features::FEATURES`] lists every virtio feature a disk may offer, with the test that shows it at work.
//! Protocol features beyond those of every session: CONFIG, and DEVICE_STATE for the cache mode.
//!
//! # Which status
//!
//! | what happened | status |
//! |---|---|
//! | unknown or unnegotiated type; unknown flag of a range; UNMAP where it has no meaning | UNSUPP |
//! | outside the disk; no whole sectors; too many ranges; a change to a read-only disk | IOERR |
//! | the host's I/O failed, no space, the file is shorter than the disk | IOERR |
//! | a header of fewer than 16 bytes | IOERR |
//! | no device-writable byte | none: completed with length 0 |
//! | a discard the host does not support | OK: it is a hint |
//!
//! Descriptor chains that break the rules of virtqueues break their ring, and nothing else.

pub mod accept;
pub mod app;
pub mod backend;
pub mod bounce;
pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod disk;
pub mod features;
mod inline;
pub mod limit;
pub mod options;
mod qemu;
pub mod queue;
mod report;
pub mod request;
mod requests;
pub mod service;
mod sizes;
pub mod slab;
pub mod spec;
pub mod stats;
pub mod transfer;
