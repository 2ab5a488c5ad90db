//! Drives compression and crypto devices from a program in the guest.

pub mod dma;
pub mod pci;
pub mod queue;
pub mod reaper;
pub mod transport;
