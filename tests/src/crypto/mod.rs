//! virtio-crypto devices: QEMU's own, and those of `vhostd-crypto`.
//!
//! - [`device`]: what QEMU is told. [`afalg`], [`rsa`]: work for the guest's driver. [`driver`]: one in the test itself.

pub mod afalg;
pub mod device;
pub mod driver;
pub mod rsa;
