//! Which device, and how it is driven.

use std::path::PathBuf;
use std::time::Duration;

use compress_protocol::{DEVICE_ID, Foreign};

use super::request::bound;
use crate::dma::DmaError;
use crate::pci::PciError;
use crate::queue::QueueError;
use crate::transport::TransportError;

/// Where to look for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The first one on PCI that is free.
    #[default]
    Any,
    /// The one at this PCI address.
    Pci(String),
    /// Whoever serves this vhost-user socket.
    Socket(PathBuf),
    /// Nowhere: software only.
    Nowhere,
}

/// How a client works. All fields have useful defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which device.
    pub place: Place,
    /// The virtio device id that compression devices have.
    pub device_id: u16,
    /// Bytes of the longest source or uncompressed result; memory is set aside for [`depth`](Self::depth) of them.
    pub max_size: usize,
    /// Requests in flight.
    pub depth: u16,
    /// Queues that requests are spread over; no more than the device has.
    pub queues: u16,
    /// Packed rings, if the device has them.
    pub packed: bool,
    /// A request that takes longer is done in software.
    pub deadline: Duration,
    /// Sources shorter than this are done in software at once.
    pub small: usize,
    /// How long the device is left alone after it was lost or too slow.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            place: Place::Any,
            device_id: DEVICE_ID,
            max_size: 256 << 10,
            depth: 16,
            queues: 1,
            packed: true,
            deadline: Duration::from_secs(2),
            small: 512,
            pause: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// Bytes of source and of destination that a request has memory for.
    pub(super) fn buffers(&self) -> (usize, usize) {
        let bound = bound(self.max_size);
        (bound, bound)
    }
}

/// Why a device is not used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("There is no such device")]
    Absent,
    /// The one that was named has the configuration of something else.
    #[error("{0} is a virtio device of another kind: its configuration is not that of a compression device")]
    AnotherKind(String),
    /// PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// Its transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its queues.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Its memory.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// It is something else.
    #[error(transparent)]
    Foreign(Foreign),
    /// It does not answer.
    #[error("The device does not answer")]
    Silent,
    /// No request fits into its rings.
    #[error("Not even a small request fits into the device's rings")]
    Cramped,
}

impl OpenError {
    /// The error with what it comes from.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }
}
