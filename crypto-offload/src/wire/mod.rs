//! The wire format of virtio-crypto requests.

pub mod request;
pub mod status;
