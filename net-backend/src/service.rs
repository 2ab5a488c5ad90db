//! What a worker thread runs: its share of the rings of all ports, and one queue of the uplink.

use std::sync::Arc;

use memory::MemoryView;
use runtime::rings::{Reply, RingCommand};
use virtqueue::Ring;

use crate::port::Port;
use crate::switch::{Policy, PortId};
use crate::uplink::UplinkQueue;

/// Executes the commands of a port's control queue (virtio 1.3 §5.1.6.5), on the worker that has the queue.
pub trait ControlQueue: Send {
    /// Takes the chains that are there, executes and completes them (unpublished); returns how many. Must not block and not
    /// wait for a session thread, which may be waiting for this worker.
    fn serve(&mut self, ring: &mut Ring, mem: &MemoryView, port: &Port) -> usize;
}

/// How frames are spread over the pairs of a receiver that asked for it (VIRTIO_NET_F_RSS, HASH_REPORT).
#[derive(Clone, Debug)]
pub struct Steering {
    /// Hash types the driver enabled (VIRTIO_NET_RSS_HASH_TYPE_*).
    pub types: u32,
    /// Key of the Toeplitz hash.
    pub key: [u8; 40],
    /// Pair for each low part of the hash; a power of two of entries. Empty: the hash is only reported.
    pub table: Box<[u16]>,
    /// Pair for frames without a hash.
    pub unclassified: u16,
}

/// What control tells a worker.
pub enum Message {
    /// About the rings of one port.
    Rings(RingCommand),
    /// From now on rings of this port may be started, and frames switched to it.
    AddPort {
        /// Number of the device, see [`runtime::attach::Attached::device`].
        device: u32,
        /// The port.
        port: Arc<Port>,
        /// Serves the queue after the last pair, if the port has one, on the worker that gets it.
        control: Option<Box<dyn ControlQueue>>,
        /// Answered when it holds.
        reply: Reply<()>,
    },
    /// The rings of this port are gone for good.
    RemovePort {
        /// The port.
        port: PortId,
        /// Answered when the worker has let go of it.
        reply: Reply<()>,
    },
    /// The policy of the switch from now on.
    Policy {
        /// The policy.
        policy: Arc<Policy>,
        /// Answered when no frame is switched by the old one any more.
        reply: Reply<()>,
    },
    /// How the receiver wants its frames spread; `None`: by the switch's own hash.
    Steering {
        /// The port.
        port: PortId,
        /// The wish.
        steering: Option<Arc<Steering>>,
    },
    /// The worker's queue of the uplink.
    Uplink {
        /// The uplink's port.
        port: Arc<Port>,
        /// Its queue.
        queue: Box<dyn UplinkQueue>,
        /// Answered when it is served.
        reply: Reply<std::io::Result<()>>,
    },
    /// Switches a frame as if this port had sent it: the announcement of a guest that has moved here (SEND_RARP).
    Inject {
        /// The port.
        port: PortId,
        /// The frame, from its destination address on.
        frame: Box<[u8]>,
    },
    /// Are you there?
    Ping {
        /// Answered at once.
        reply: Reply<()>,
    },
}

impl From<RingCommand> for Message {
    fn from(command: RingCommand) -> Self {
        Self::Rings(command)
    }
}
