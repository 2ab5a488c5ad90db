//! The wire format of virtio-crypto requests.

pub mod akcipher;
pub mod request;
pub mod status;
