//! virtio-crypto devices: QEMU's own, and those of `vhostd-crypto`.
//!
//! - [`device`]: what QEMU is told. [`afalg`]: work for the guest's driver.

pub mod afalg;
pub mod device;
