//! What a worker thread runs: its share of the rings of all ports, and one queue of the uplink.

use std::io;
use std::sync::Arc;

use memory::MemoryView;
use runtime::io::WatchId;
use runtime::rings::{Reply, RingCommand, Rings, Role};
use runtime::worker::{Context, Service};
use virtqueue::Ring;

use crate::frame::hash::{self, Rss};
use crate::frame::{Head, Meta};
use crate::path::{Crossing, Kind, Path, RingState};
use crate::port::Port;
use crate::switch::{Fabric, Policy, PortId, Switch};
use crate::uplink::UplinkQueue;

/// Executes the commands of a port's control queue (virtio 1.3 §5.1.6.5), on the worker that has the queue.
pub trait ControlQueue: Send {
    /// Takes the chains that are there, executes and completes them (unpublished); returns how many. Must not block and not
    /// wait for a session thread, which may be waiting for this worker.
    fn serve(&mut self, ring: &mut Ring, mem: &MemoryView, port: &Port) -> usize;
}

/// How frames are spread over the pairs of a receiver that asked for it (VIRTIO_NET_F_RSS, HASH_REPORT).
#[derive(Clone)]
pub struct Steering {
    /// Computes the hash.
    pub rss: Rss,
    /// Whether frames carry it (HASH_REPORT).
    pub report: bool,
    /// Pair for each low part of the hash; a power of two of entries. Empty: the hash is only reported.
    pub table: Box<[u16]>,
    /// Pair for frames that the hash does not apply to.
    pub unclassified: u16,
}

impl Steering {
    /// The pair a frame belongs in; `None`: any.
    pub fn pair(&self, head: &Head, meta: &Meta) -> Option<u16> {
        let last = self.table.len().checked_sub(1)?;
        let hash = self.rss.report(head, meta);
        match hash.report {
            hash::report::NONE => Some(self.unclassified),
            _ => self.table.get(hash.value as usize & last).copied(),
        }
    }
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
        reply: Reply<io::Result<()>>,
    },
    /// Switches a frame as if this port had sent it: the announcement of a guest that has moved here (SEND_RARP).
    Inject {
        /// The port.
        port: PortId,
        /// The frame, from its destination address on.
        frame: Box<[u8]>,
        /// Answered when it is out: who asks for the next one before that could fill the worker's time and memory.
        reply: Reply<()>,
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

/// The service of one worker.
pub struct NetService {
    rings: Rings<RingState>,
    path: Path,
}

impl NetService {
    /// A service without ports; `crossing` is the worker's element of [`crossings`](crate::path::crossings). To be called
    /// on the worker's thread.
    pub fn new(mut crossing: Crossing, fabric: Arc<Fabric>, policy: Arc<Policy>, cx: &mut Context) -> Self {
        if let Err(error) = crossing.attach(cx) {
            tracing::error!(%error, "Frames from other workers cannot wake this one");
        }
        Self { rings: Rings::new(), path: Path::new(Switch::new(fabric, policy), crossing) }
    }

    fn rings(&mut self, command: RingCommand, cx: &mut Context) {
        let device = device_of(&command);
        if matches!(command, RingCommand::Stop { .. }) {
            self.path.settle_owed(&mut self.rings, cx, true);
        }
        // The other workers may look at what `refresh` changes, but nothing breaks when they see it late.
        let path = &self.path;
        self.rings.apply_as(command, cx, |device, index, _| {
            let state = path.state_of(device, index);
            let role = if state.kind == Kind::Receive { Role::Sink } else { Role::Served };
            (state, role)
        });
        self.path.refresh(&mut self.rings, device);
    }
}

fn device_of(command: &RingCommand) -> u32 {
    match command {
        RingCommand::Start { device, .. }
        | RingCommand::Stop { device, .. }
        | RingCommand::Memory { device, .. }
        | RingCommand::Log { device, .. }
        | RingCommand::Call { device, .. }
        | RingCommand::Err { device, .. }
        | RingCommand::Enable { device, .. } => *device,
    }
}

impl Service for NetService {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Context) {
        match message {
            Message::Rings(command) => self.rings(command, cx),
            Message::AddPort { device, port, control, reply } => {
                self.path.add_port(device, port, control);
                self.path.refresh(&mut self.rings, device);
                reply.send(());
            }
            Message::RemovePort { port, reply } => {
                self.path.remove_port(port, cx);
                reply.send(());
            }
            Message::Policy { policy, reply } => {
                self.path.set_policy(policy);
                self.path.release_held(&mut self.rings, cx, true);
                reply.send(());
            }
            Message::Steering { port, steering } => self.path.set_steering(port, steering),
            Message::Uplink { port, queue, reply } => reply.send(self.path.set_uplink(port, queue, cx)),
            Message::Inject { port, frame, reply } => {
                self.path.inject(&mut self.rings, port, &frame, cx);
                reply.send(());
            }
            Message::Ping { reply } => reply.send(()),
        }
    }

    #[inline]
    fn poll_once(&mut self, cx: &mut Context) -> usize {
        let Self { rings, path } = self;
        path.release_held(rings, cx, false);
        path.settle_owed(rings, cx, false);
        let mut work = path.take_crossed(rings, cx);
        work += path.serve_uplink(rings, cx);
        work += rings.serve_among(cx, |rings, id, cx| path.serve(rings, id, cx));
        rings.settle(cx);
        work
    }

    fn completed(&mut self, _: u64, _: i32, _: &mut Context) {}

    fn ready(&mut self, watch: WatchId, _: &mut Context) {
        if !self.path.ready(watch) {
            self.rings.kicked(watch);
        }
    }

    fn arm(&mut self) -> bool {
        let frames = self.path.arm();
        self.rings.arm() || frames
    }

    fn suppress(&mut self) {
        self.path.crossing().suppress();
        self.rings.suppress();
    }

    fn outstanding(&self) -> usize {
        self.rings.outstanding()
    }

    fn close(&mut self) {
        self.rings.close();
    }

    fn panicked(&mut self) {
        self.rings.fail();
    }
}
