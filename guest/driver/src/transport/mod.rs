//! How a device is reached: over PCI in a guest, or over its daemon's socket on the machine where the daemon runs. What
//! drives the device is the same.

mod pci;
mod socket;

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use memory::Area;
use vhost_user::frontend::FrontendError;
use virtqueue::RingAddresses;
use vmm_sys_util::eventfd::EventFd;

pub use pci::Pci;
pub use socket::Socket;

use crate::dma::{Arena, DmaError};
use crate::pci::PciError;

/// Why a device cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// On PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// Over a socket.
    #[error("The daemon does not answer as a device")]
    VhostUser(#[from] FrontendError),
    /// Nothing listens there.
    #[error("Cannot connect to {path}")]
    Connect {
        /// The socket.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Memory for it.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// An event or a file.
    #[error("Cannot set up the device")]
    Io(#[from] io::Error),
    /// It does not take what it offers.
    #[error("The device refuses the features {0:#x}")]
    Features(u64),
    /// It is a device of an older kind than virtio 1.0.
    #[error("The device is not one of virtio 1.x")]
    Legacy,
    /// It does not do what it is told.
    #[error("The device does not {0}")]
    Stubborn(&'static str),
    /// It has fewer queues.
    #[error("The device has no queue {0}")]
    NoQueue(u16),
}

/// What is known of a device before anything is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A virtio device with this id.
    Device(u16),
    /// A device of another kind whose queues are ours: its feature bits and its configuration are not.
    Carrier,
    /// Whoever listens on a socket: nobody says which device it is.
    Unnamed,
}

/// One device, from its discovery to its end. Dropping it resets the device, so that nothing of ours is accessed any more.
///
/// Calls come in this order: `negotiate`, `memory`, `start_queue` for each queue, `start`.
pub trait Transport: Send {
    /// What it is.
    fn identity(&self) -> Identity;

    /// Where it is, for people.
    fn describe(&self) -> String;

    /// Accepts those of the `wanted` features that are offered; returns which.
    fn negotiate(&mut self, wanted: u64) -> Result<u64, TransportError>;

    /// Queues that it has.
    fn queues(&self) -> u16;

    /// Entries of a queue, at most.
    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError>;

    /// Reads of its configuration.
    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError>;

    /// Memory that it reaches.
    fn memory(&mut self, len: usize) -> Result<Arena, TransportError>;

    /// Tells it of a queue, in memory of [`Transport::memory`].
    fn start_queue(
        &mut self,
        index: u16,
        size: u16,
        addresses: &RingAddresses,
    ) -> Result<Doorbell, TransportError>;

    /// The driver is ready: requests are served from here on.
    fn start(&mut self) -> Result<(), TransportError>;

    /// Whether it was reset, wants to be, or is gone. Costs a system call or an access to the device.
    fn lost(&mut self) -> bool;
}

/// What is rung when a queue has something new.
pub enum Doorbell {
    /// A register of the device, which is told the number of the queue.
    Register {
        /// The structure it is in.
        area: Area,
        /// Where.
        offset: usize,
        /// The queue.
        queue: u16,
    },
    /// An event, and one that the device writes: nobody reads it, since we poll, but a device may insist.
    Event {
        /// Ours.
        kick: EventFd,
        /// The device's.
        call: EventFd,
    },
}

impl Doorbell {
    /// Rings.
    #[inline]
    pub fn ring(&self) {
        match self {
            Self::Register { area, offset, queue } => area.store_u16(*offset, *queue, Relaxed),
            // A full counter is a kick as well.
            Self::Event { kick, .. } => drop(kick.write(1)),
        }
    }
}
