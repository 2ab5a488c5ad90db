//! vhostd-net: virtio-net ports over vhost-user (virtio 1.3 §5.1), switched in one process, with a TAP or AF_XDP uplink.

pub mod cli;
pub mod frame;
pub mod options;
pub mod path;
pub mod port;
pub mod service;
pub mod spec;
pub mod stats;
pub mod switch;
pub mod uplink;
pub mod values;
