//! Drives compression and crypto devices from a program in the guest.

pub mod compress;
pub mod crypto;
pub mod dma;
pub mod fallback;
pub mod pci;
pub mod queue;
pub mod reaper;
pub mod transport;
