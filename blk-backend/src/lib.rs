//! vhostd-blk: a virtio block device (virtio 1.3 §5.2) over vhost-user.

pub mod accept;
pub mod backend;
pub mod bounce;
pub mod config;
pub mod disk;
pub mod features;
mod inline;
pub mod limit;
pub mod options;
pub mod queue;
pub mod request;
mod requests;
pub mod slab;
pub mod stats;
pub mod transfer;
