//! The attached device: handshake, memory, rings, and coming back after the backend's death.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use memory::{GuestAddr, OutOfRange, OwnMemory};
use vhost_user::frontend::FrontendError;
use vhost_user::frontend::driver::Session;
use vhost_user::message::protocol;
use virtqueue::driver::{DriverRing, IndirectTables, RingAreas};
use virtqueue::layout::DESC_BYTES;
use virtqueue::{Format, RingAddresses, RingFeatures, SetupError, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::buffers::{self, Buffers};
use super::receive::Look;
use super::transmit::{Content, Stamp};
use super::{Receive, Ring, Transmit};
use crate::net::frame::{Flow, Template};
use crate::net::wire::feature;
use crate::wait;

/// Where our memory begins for the backend: not at 0, so that a null address is an error there.
const GUEST_BASE: GuestAddr = GuestAddr(1 << 30);

/// Protocol features this driver makes use of. Requests in flight are not tracked, as no frontend does for a network
/// device: tracking costs the backend a store per frame.
const PROTOCOL: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS;

/// Both wrap counters of a packed ring start at 1, both indices at 0 (virtio 1.3 §2.8.1; vhost-user: SET_VRING_BASE).
const PACKED_START: u32 = 0x8000_8000;

/// What the driver asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which guest this is, for its address.
    pub guest: usize,
    /// The guest that its frames go to.
    pub to: usize,
    /// Pairs of queues.
    pub queues: u16,
    /// Descriptors per ring.
    pub ring_size: u16,
    /// Bytes of a frame.
    pub frame: usize,
    /// Frames are segments that nobody has cut; refused if the backend does not take them.
    pub tso: bool,
    /// Bytes of a receive buffer.
    pub rx_buffer: usize,
    /// A frame may take several receive buffers; refused if the backend cannot and frames need it.
    pub mergeable: bool,
    /// Packed rings; refused if the backend has none.
    pub packed: bool,
    /// Buffers are used in order; taken if offered.
    pub in_order: bool,
    /// Indirect descriptors; refused if the backend has none.
    pub indirect: bool,
    /// Notifications by index; taken if offered.
    pub event_idx: bool,
    /// What the sender writes into each frame.
    pub stamp: Stamp,
    /// We listen and the backend connects.
    pub server: bool,
}

/// Why a backend could not be attached or driven.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The protocol failed.
    #[error(transparent)]
    Session(#[from] FrontendError),
    /// Nothing listens there.
    #[error("Cannot connect to {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("Cannot listen on {}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody came.
    #[error("No backend has connected to {} within {PATIENCE:?}", .0.display())]
    Nobody(PathBuf),
    /// Own memory could not be had.
    #[error("Cannot set up guest memory")]
    Memory(#[from] std::io::Error),
    /// Own memory was sized wrongly.
    #[error("Cannot lay out the rings")]
    Layout(#[from] OutOfRange),
    /// The ring cannot be built.
    #[error("Cannot build a ring")]
    Ring(#[from] SetupError),
    /// A feature was demanded that the backend lacks.
    #[error("The backend does not offer {0}")]
    NotOffered(&'static str),
    /// Fewer queues than asked for.
    #[error("The backend has {have} pairs of queues, {want} are asked for")]
    Queues {
        /// Pairs of the backend.
        have: u16,
        /// Pairs asked for.
        want: u16,
    },
}

/// How long a backend may take to connect to us.
const PATIENCE: Duration = Duration::from_secs(20);

/// The rings of one queue pair.
pub struct Pair {
    /// To the backend.
    pub transmit: Transmit,
    /// From the backend.
    pub receive: Receive,
}

/// A vhost-user-net device with running queues.
pub struct Port {
    path: PathBuf,
    listener: Option<UnixListener>,
    session: Session,
    memory: OwnMemory,
    rings: Vec<Wiring>,
    setup: Setup,
}

/// What it takes to start a ring once more on a new backend process.
struct Wiring {
    addresses: RingAddresses,
    kick: EventFd,
    call: EventFd,
}

impl Port {
    /// Connects to `path` (or waits there for the backend), negotiates, shares memory and starts all queues.
    pub fn attach(path: &Path, setup: &Setup) -> Result<(Self, Vec<Pair>), AttachError> {
        let listener = if setup.server { Some(listen(path)?) } else { None };
        let socket = open(path, listener.as_ref())?;
        let session = Session::negotiate(socket, setup.wanted_features(), PROTOCOL)?;
        setup.check(&session)?;
        let memory = OwnMemory::new(setup.footprint(), GUEST_BASE)?;
        let (rings, setup) = (Vec::new(), setup.clone());
        let mut port = Self { path: path.to_owned(), listener, session, memory, rings, setup };
        port.session.share_memory(&port.memory.config(), port.memory.fd())?;
        let mut pairs =
            (0..port.setup.queues).map(|queue| port.add_pair(queue)).collect::<Result<Vec<_>, _>>()?;
        let base = if port.setup.packed { PACKED_START } else { 0 };
        port.start_rings(&vec![base; port.rings.len()])?;
        pairs.iter_mut().for_each(|pair| pair.receive.open());
        Ok((port, pairs))
    }

    /// Negotiated virtio features.
    pub fn features(&self) -> u64 {
        self.session.features()
    }

    /// Process of the backend, if it is visible from here.
    pub fn backend_pid(&self) -> Option<i32> {
        self.session.peer_pid().ok().filter(|&pid| pid > 0)
    }

    /// Waits up to `limit` for the backend to close the connection; `true` when it has.
    pub fn hung_up_within(&self, limit: Duration) -> bool {
        wait::hung_up_within(self.session.frontend.as_fd().as_raw_fd(), limit)
    }

    /// One attempt to go on with a new backend process: whole handshake, same memory, same rings, which their owners have
    /// stopped using. `bases` says where each ring goes on, receive and transmit ring of each pair in turn.
    pub fn reattach(&mut self, bases: &[u32]) -> Result<(), AttachError> {
        self.session.reconnect(open(&self.path, self.listener.as_ref())?)?;
        self.start_rings(bases)?;
        for wiring in &self.rings {
            // The old process may have taken a kick and died before it served it.
            let _ = wiring.kick.write(1);
        }
        Ok(())
    }

    /// Wakes every owner of a ring that sleeps for an interrupt.
    pub fn wake_all(&self) {
        for wiring in &self.rings {
            let _ = wiring.call.write(1);
        }
    }

    /// Stops all rings and closes the connection.
    pub fn detach(mut self, pairs: Vec<Pair>) -> Result<(), AttachError> {
        for index in 0..self.rings.len() {
            self.session.stop_queue(index as u16)?;
        }
        drop(pairs);
        Ok(())
    }

    /// Receive ring `2 * queue`, transmit ring `2 * queue + 1` (virtio 1.3 §5.1.2).
    fn add_pair(&mut self, queue: u16) -> Result<Pair, AttachError> {
        let setup = self.setup.clone();
        let flow = Flow { from: setup.guest, to: setup.to, queue };
        let template = Template::new(flow, setup.frame, setup.tso);
        let spans = setup.rx_buffer < template.buffer_len();
        let look = Look {
            tag_at: (setup.stamp != Stamp::None).then(|| template.tag_at()),
            mergeable: self.features() & feature::MRG_RXBUF != 0 && (spans || setup.stamp != Stamp::None),
        };
        let ring = self.add_ring(false)?;
        let buffers = Buffers::new(&self.memory, setup.ring_size, setup.rx_buffer)?;
        let receive = Receive::new(ring, buffers, look);
        let ring = self.add_ring(setup.indirect)?;
        let buffers = Buffers::new(&self.memory, setup.ring_size, template.buffer_len())?;
        let stream = setup.stream(queue);
        let content = Content { template, stream, stamp: setup.stamp };
        Ok(Pair { receive, transmit: Transmit::new(ring, buffers, setup.indirect, content) })
    }

    fn add_ring(&mut self, indirect: bool) -> Result<Ring, AttachError> {
        let (format, size) = (self.setup.format(), self.setup.ring_size);
        let (desc, driver, device) = ring_sizes(format, size);
        let areas = RingAreas {
            desc: buffers::area(&self.memory, desc)?,
            driver: buffers::area(&self.memory, driver)?,
            device: buffers::area(&self.memory, device)?,
        };
        let addresses = RingAddresses {
            desc: areas.desc.guest_addr(),
            driver: areas.driver.guest_addr(),
            device: areas.device.guest_addr(),
        };
        let mut ring = DriverRing::new(areas, format, size, RingFeatures::from_bits(self.features()))?;
        if indirect {
            let area = buffers::area(&self.memory, self.setup.tables_len())?;
            ring.set_indirect(IndirectTables { area, entries: TABLE_ENTRIES })?;
        }
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let (kick, call) = (event()?, event()?);
        self.rings.push(Wiring { addresses, kick: kick.try_clone()?, call: call.try_clone()? });
        Ok(Ring::new(ring, kick, call))
    }

    fn start_rings(&mut self, bases: &[u32]) -> Result<(), AttachError> {
        for (index, (wiring, &base)) in self.rings.iter().zip(bases).enumerate() {
            let Wiring { addresses, kick, call } = wiring;
            self.session.start_queue(index as u16, self.setup.ring_size, base, addresses, kick, call)?;
        }
        Ok(())
    }
}

/// Descriptors of an indirect table: virtio-net header and frame.
const TABLE_ENTRIES: u16 = 2;

impl Setup {
    /// Number of the stream that queue `queue` of this guest sends.
    pub fn stream(&self, queue: u16) -> u8 {
        (self.guest * usize::from(self.queues) + usize::from(queue)) as u8
    }

    fn format(&self) -> Format {
        if self.packed { Format::Packed } else { Format::Split }
    }

    fn wanted_features(&self) -> u64 {
        let optional = |wanted: bool, bits: u64| if wanted { bits } else { 0 };
        let tso = feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;
        feature::VERSION_1
            | optional(self.tso, tso)
            | optional(self.mergeable, feature::MRG_RXBUF)
            | optional(self.queues > 1, feature::MQ)
            | optional(self.packed, feature::RING_PACKED)
            | optional(self.in_order, feature::IN_ORDER)
            | optional(self.indirect, feature::INDIRECT_DESC)
            | optional(self.event_idx, feature::EVENT_IDX)
    }

    /// Holds what was asked for against what there is.
    fn check(&self, session: &Session) -> Result<(), AttachError> {
        let features = session.features();
        let spans = self.mergeable && self.rx_buffer < self.frame + crate::net::wire::HEADER;
        let demanded = [
            (true, feature::VERSION_1, "VIRTIO_F_VERSION_1"),
            (self.packed, feature::RING_PACKED, "packed rings (VIRTIO_F_RING_PACKED)"),
            (self.indirect, feature::INDIRECT_DESC, "indirect descriptors (VIRTIO_F_INDIRECT_DESC)"),
            (spans, feature::MRG_RXBUF, "mergeable receive buffers (VIRTIO_NET_F_MRG_RXBUF)"),
            (self.tso, feature::HOST_TSO4, "segmentation (VIRTIO_NET_F_HOST_TSO4)"),
            (self.tso, feature::GUEST_TSO4, "frames left unsegmented (VIRTIO_NET_F_GUEST_TSO4)"),
        ];
        if let Some((.., name)) = demanded.into_iter().find(|(wanted, bit, _)| *wanted && features & bit == 0)
        {
            return Err(AttachError::NotOffered(name));
        }
        // GET_QUEUE_NUM counts pairs for a network device, as QEMU understands it.
        let have = session.max_queues();
        if self.queues > have {
            return Err(AttachError::Queues { have, want: self.queues });
        }
        Ok(())
    }

    fn tables_len(&self) -> usize {
        DESC_BYTES * usize::from(TABLE_ENTRIES) * usize::from(self.ring_size)
    }

    /// Bytes of guest memory for everything, each piece on pages of its own.
    fn footprint(&self) -> usize {
        const PAGE: usize = 4096;
        let (desc, driver, device) = ring_sizes(self.format(), self.ring_size);
        let ring = [desc, driver, device].iter().map(|len| len.next_multiple_of(PAGE) + PAGE).sum::<usize>();
        let tables = if self.indirect { self.tables_len() + 2 * PAGE } else { 0 };
        let frame = self.frame + crate::net::wire::HEADER;
        let buffers =
            [self.rx_buffer, frame].map(|len| Buffers::footprint(self.ring_size, len).next_multiple_of(PAGE));
        let pair = 2 * ring + tables + buffers.iter().sum::<usize>() + 4 * PAGE;
        (usize::from(self.queues) * pair).next_multiple_of(2 << 20)
    }
}

fn listen(path: &Path) -> Result<UnixListener, AttachError> {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|source| AttachError::Listen { path: path.to_owned(), source })
}

fn open(path: &Path, listener: Option<&UnixListener>) -> Result<UnixStream, AttachError> {
    let Some(listener) = listener else {
        return UnixStream::connect(path)
            .map_err(|source| AttachError::Connect { path: path.to_owned(), source });
    };
    if !wait::readable(listener.as_raw_fd(), Some(PATIENCE)) {
        return Err(AttachError::Nobody(path.to_owned()));
    }
    let accepted = listener.accept().map(|(socket, _)| socket);
    accepted.map_err(|source| AttachError::Listen { path: path.to_owned(), source })
}
