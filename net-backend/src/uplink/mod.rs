//! The way out of the host: a TAP interface or an AF_XDP socket.

pub mod tap;
pub mod xdp;
