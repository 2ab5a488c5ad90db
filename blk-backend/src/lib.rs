//! vhostd-blk: a virtio block device (virtio 1.3 §5.2) over vhost-user.

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
pub mod queue;
mod report;
pub mod request;
mod requests;
pub mod service;
pub mod slab;
pub mod spec;
pub mod stats;
pub mod transfer;
