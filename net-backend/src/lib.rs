//! vhostd-net: virtio-net ports over vhost-user (virtio 1.3 §5.1), switched in one process, with a TAP or AF_XDP uplink.

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
