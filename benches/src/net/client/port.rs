//! The attached device: what is particular to a network device about the handshake, and its queue pairs.

use std::ops::{Deref, DerefMut};

use vhost_user::message::protocol;

use super::buffers::Buffers;
use super::receive::Look;
use super::transmit::{Content, Stamp};
use super::{Receive, Transmit};
use crate::guest::memory::of_guest;
use crate::guest::{AttachError, Attachment, Guest, Shape, Socket};
use crate::net::frame::{Flow, Template};
use crate::net::wire::{HEADER, feature};

/// Protocol features this driver makes use of. Requests in flight are not tracked, as no frontend does for a network
/// device: tracking costs the backend a store per frame.
const PROTOCOL: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS;

/// What the driver asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which guest this is, for its address.
    pub guest: usize,
    /// The guest that its frames go to.
    pub to: usize,
    /// Pairs of queues.
    pub queues: u16,
    /// Bytes of a frame.
    pub frame: usize,
    /// Frames are segments that nobody has cut; refused if the backend does not take them.
    pub tso: bool,
    /// Whether frames have a UDP checksum.
    pub checksum: bool,
    /// Bytes of a receive buffer.
    pub rx_buffer: usize,
    /// A frame may take several receive buffers; refused if the backend cannot and frames need it.
    pub mergeable: bool,
    /// How the rings look.
    pub shape: Shape,
    /// What the sender writes into each frame.
    pub stamp: Stamp,
}

/// The rings of one queue pair.
pub struct Pair {
    /// To the backend.
    pub transmit: Transmit,
    /// From the backend.
    pub receive: Receive,
}

/// A vhost-user-net device with running queues.
pub struct Port {
    guest: Guest,
}

impl Port {
    /// Connects to the backend (or waits for it), negotiates, shares memory and starts all queues.
    pub fn attach(socket: Socket<'_>, setup: &Setup) -> Result<(Self, Vec<Pair>), AttachError> {
        let guest = Guest::attach(&Attachment {
            socket,
            shape: setup.shape,
            wanted: setup.wanted_features(),
            demanded: &setup.demanded_features(),
            protocol: PROTOCOL,
            secretive: false,
            memory: of_guest(setup.footprint())?,
        })?;
        let mut port = Self { guest };
        // GET_QUEUE_NUM counts pairs for a network device, as QEMU understands it.
        let have = port.session.max_queues();
        AttachError::unless_enough("pairs of queues", have.into(), setup.queues.into())?;
        let mut pairs =
            (0..setup.queues).map(|queue| port.add_pair(setup, queue)).collect::<Result<Vec<_>, _>>()?;
        port.start()?;
        pairs.iter_mut().for_each(|pair| pair.receive.open());
        Ok((port, pairs))
    }

    /// Stops all rings and closes the connection.
    pub fn detach(self, pairs: Vec<Pair>) -> Result<(), AttachError> {
        self.guest.detach()?;
        drop(pairs);
        Ok(())
    }

    /// Receive ring `2 * queue`, transmit ring `2 * queue + 1` (virtio 1.3 §5.1.2).
    fn add_pair(&mut self, setup: &Setup, queue: u16) -> Result<Pair, AttachError> {
        let flow = Flow { from: setup.guest, to: setup.to, queue };
        let template = Template::new(flow, setup.frame, setup.tso);
        let template = if setup.checksum { template.with_checksum() } else { template };
        let spans = setup.rx_buffer < template.buffer_len();
        let look = Look {
            tag_at: (setup.stamp != Stamp::None).then(|| template.tag_at()),
            mergeable: self.features() & feature::MRG_RXBUF != 0 && (spans || setup.stamp != Stamp::None),
        };
        let ring = self.add_ring(None)?;
        let buffers = Buffers::new(self.memory(), setup.shape.size, setup.rx_buffer)?;
        let receive = Receive::new(ring, buffers, look);
        let ring = self.add_ring(Some(TABLE_ENTRIES))?;
        let buffers = Buffers::new(self.memory(), setup.shape.size, template.buffer_len())?;
        let stream = setup.stream(queue);
        let content = Content { template, stream, stamp: setup.stamp };
        Ok(Pair { receive, transmit: Transmit::new(ring, buffers, setup.shape.indirect, content) })
    }
}

impl Deref for Port {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Port {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// Descriptors of an indirect table: virtio-net header and frame.
const TABLE_ENTRIES: u16 = 2;

impl Setup {
    /// Number of the stream that queue `queue` of this guest sends.
    pub fn stream(&self, queue: u16) -> u8 {
        (self.guest * usize::from(self.queues) + usize::from(queue)) as u8
    }

    fn wanted_features(&self) -> u64 {
        let optional = |wanted: bool, bits: u64| if wanted { bits } else { 0 };
        let tso = feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;
        optional(self.tso, tso)
            | optional(self.mergeable, feature::MRG_RXBUF)
            | optional(self.queues > 1, feature::MQ)
    }

    fn demanded_features(&self) -> Vec<(u64, &'static str)> {
        let spans = self.mergeable && self.rx_buffer < self.frame + HEADER;
        [
            (spans, feature::MRG_RXBUF, "mergeable receive buffers (VIRTIO_NET_F_MRG_RXBUF)"),
            (self.tso, feature::HOST_TSO4, "segmentation (VIRTIO_NET_F_HOST_TSO4)"),
            (self.tso, feature::GUEST_TSO4, "frames left unsegmented (VIRTIO_NET_F_GUEST_TSO4)"),
        ]
        .into_iter()
        .filter_map(|(wanted, bit, name)| wanted.then_some((bit, name)))
        .collect()
    }

    /// Bytes of guest memory for everything.
    fn footprint(&self) -> usize {
        let buffers = [self.rx_buffer, self.frame + HEADER]
            .map(|len| Buffers::footprint(self.shape.size, len))
            .iter()
            .sum::<usize>();
        let pair = 2 * self.shape.footprint(TABLE_ENTRIES) + buffers;
        (usize::from(self.queues) * pair).next_multiple_of(2 << 20)
    }
}
