//! The attached device: handshake, memory, rings, and coming back after the backend's death.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use vhost_user::frontend::FrontendError;
use vhost_user::frontend::driver::Session;
use vhost_user::message::protocol;
use virtqueue::driver::{DriverRing, IndirectTables, RingAreas};
use virtqueue::layout::{DESC_BYTES, INDEX_OFFSET};
use virtqueue::{Format, RingAddresses, RingFeatures, SetupError, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{self, Slots};
use super::queue::Queue;
use crate::blk::wire::{Config, SECTOR, feature};
use crate::wait;

/// Where our memory begins for the backend: not at 0, so that a null address is an error there.
const GUEST_BASE: GuestAddr = GuestAddr(1 << 30);

/// Protocol features this driver makes use of.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIG
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::INFLIGHT_SHMFD;

/// Both wrap counters of a packed ring start at 1, both indices at 0 (virtio 1.3 §2.8.1; vhost-user: SET_VRING_BASE).
const PACKED_START: u32 = 0x8000_8000;

/// What the driver asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Request queues.
    pub queues: u16,
    /// Descriptors per ring.
    pub queue_size: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Bytes of each request's buffer.
    pub block: usize,
    /// Data segments of each request.
    pub segments: usize,
    /// Packed rings; refused if the backend has none.
    pub packed: bool,
    /// Buffers are used in order; taken if offered.
    pub in_order: bool,
    /// Indirect descriptors; refused if the backend has none.
    pub indirect: bool,
    /// Notifications by index; taken if offered.
    pub event_idx: bool,
}

impl Default for Setup {
    /// One split queue of 256 descriptors with 32 requests of 4 KiB.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            depth: 32,
            block: 4096,
            segments: 1,
            packed: false,
            in_order: false,
            indirect: false,
            event_idx: true,
        }
    }
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
    #[error("The backend has {have} queues, {want} are asked for")]
    Queues {
        /// Queues of the backend.
        have: u16,
        /// Queues asked for.
        want: u16,
    },
    /// More segments than the backend takes.
    #[error("The backend takes {have} segments a request, {want} are asked for")]
    Segments {
        /// Its limit.
        have: u32,
        /// Segments asked for.
        want: usize,
    },
}

/// A vhost-user-blk device with running queues.
pub struct Disk {
    path: PathBuf,
    session: Session,
    config: Config,
    memory: OwnMemory,
    rings: Vec<Wiring>,
    setup: Setup,
}

/// What it takes to start a ring once more on a new backend process.
struct Wiring {
    addresses: RingAddresses,
    /// The device area: a split ring's used index says where a restarted backend goes on.
    device: Area,
    kick: EventFd,
    call: EventFd,
}

impl Disk {
    /// Connects to `path`, negotiates, shares memory and starts all queues.
    pub fn attach(path: &Path, setup: &Setup) -> Result<(Self, Vec<Queue>), AttachError> {
        let mut session = Session::negotiate(open(path)?, setup.wanted_features(), PROTOCOL)?;
        let config = read_config(&mut session, setup)?;
        let memory = OwnMemory::new(setup.footprint(), GUEST_BASE)?;
        session.share_memory(&memory.config(), memory.fd())?;
        session.setup_inflight(setup.queues, setup.queue_size)?;
        let mut disk =
            Self { path: path.to_owned(), session, config, memory, rings: Vec::new(), setup: setup.clone() };
        let queues = (0..setup.queues).map(|_| disk.add_queue()).collect::<Result<Vec<_>, _>>()?;
        disk.start_rings(|wiring| wiring.first_base(setup.format()))?;
        Ok((disk, queues))
    }

    /// Size in bytes.
    pub fn capacity(&self) -> u64 {
        self.config.capacity.get().saturating_mul(SECTOR)
    }

    /// Configuration space, as read at the start.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Negotiated virtio features.
    pub fn features(&self) -> u64 {
        self.session.features()
    }

    /// Requests that change the disk are refused.
    pub fn is_read_only(&self) -> bool {
        self.features() & feature::RO != 0
    }

    /// Requests in flight survive the backend's death.
    pub fn has_inflight(&self) -> bool {
        self.session.inflight().is_some()
    }

    /// Process of the backend, if it is visible from here.
    pub fn backend_pid(&self) -> Option<i32> {
        self.session.peer_pid().ok().filter(|&pid| pid > 0)
    }

    /// Waits up to `limit` for the backend to close the connection; `true` when it has.
    pub fn hung_up_within(&self, limit: Duration) -> bool {
        wait::hung_up_within(self.session.frontend.as_fd().as_raw_fd(), limit)
    }

    /// One attempt to go on with a new backend process: whole handshake, same memory, same rings, same inflight region.
    ///
    /// The queues' owners need not stop: requests in flight are completed by the new process, and new ones are kicked.
    /// Without an inflight region a split ring resubmits nothing: its requests in flight are lost.
    pub fn reattach(&mut self) -> Result<(), AttachError> {
        self.session.reconnect(open(&self.path)?)?;
        let format = self.setup.format();
        self.start_rings(|wiring| wiring.base_after_crash(format))?;
        for wiring in &self.rings {
            // The old process may have taken a kick and died before it served it.
            let _ = wiring.kick.write(1);
            let _ = wiring.call.write(1);
        }
        Ok(())
    }

    /// Wakes every queue's owner that sleeps for an interrupt.
    pub fn wake_all(&self) {
        for wiring in &self.rings {
            let _ = wiring.call.write(1);
        }
    }

    /// Stops all queues, which must be idle, and closes the connection.
    pub fn detach(mut self, queues: Vec<Queue>) -> Result<(), AttachError> {
        for index in 0..self.setup.queues {
            self.session.stop_queue(index)?;
        }
        drop(queues);
        Ok(())
    }

    fn add_queue(&mut self) -> Result<Queue, AttachError> {
        let (format, size) = (self.setup.format(), self.setup.queue_size);
        let (desc, driver, device) = ring_sizes(format, size);
        let areas = RingAreas {
            desc: layout::area(&self.memory, desc)?,
            driver: layout::area(&self.memory, driver)?,
            device: layout::area(&self.memory, device)?,
        };
        let addresses = RingAddresses {
            desc: areas.desc.guest_addr(),
            driver: areas.driver.guest_addr(),
            device: areas.device.guest_addr(),
        };
        let device = areas.device.clone();
        let mut ring = DriverRing::new(areas, format, size, RingFeatures::from_bits(self.features()))?;
        if self.setup.indirect {
            let area = layout::area(&self.memory, self.setup.tables_len())?;
            ring.set_indirect(IndirectTables { area, entries: self.setup.table_entries() })?;
        }
        let slots = Slots::new(&self.memory, self.setup.depth, self.setup.block, self.setup.segments)?;
        let (kick, call) = (EventFd::new(EFD_CLOEXEC)?, EventFd::new(EFD_CLOEXEC)?);
        self.rings.push(Wiring { addresses, device, kick: kick.try_clone()?, call: call.try_clone()? });
        Ok(Queue::new(ring, slots, self.setup.indirect, kick, call))
    }

    fn start_rings(&mut self, base: impl Fn(&Wiring) -> u32) -> Result<(), AttachError> {
        for (index, wiring) in self.rings.iter().enumerate() {
            let Wiring { addresses, kick, call, .. } = wiring;
            self.session.start_queue(
                index as u16,
                self.setup.queue_size,
                base(wiring),
                addresses,
                kick,
                call,
            )?;
        }
        Ok(())
    }
}

impl Wiring {
    fn first_base(&self, format: Format) -> u32 {
        match format {
            Format::Split => 0,
            Format::Packed => PACKED_START,
        }
    }

    /// As QEMU does: a split ring goes on where the used index stands; a packed ring has no such index in memory, and
    /// its inflight region knows better than we do.
    fn base_after_crash(&self, format: Format) -> u32 {
        match format {
            Format::Split => u32::from(self.device.load_u16(INDEX_OFFSET, Ordering::Acquire)),
            Format::Packed => PACKED_START,
        }
    }
}

impl Setup {
    fn format(&self) -> Format {
        if self.packed { Format::Packed } else { Format::Split }
    }

    fn wanted_features(&self) -> u64 {
        let optional = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
        let always = feature::VERSION_1
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::RO
            | feature::FLUSH
            | feature::MQ
            | feature::DISCARD
            | feature::WRITE_ZEROES;
        always
            | optional(self.packed, feature::RING_PACKED)
            | optional(self.in_order, feature::IN_ORDER)
            | optional(self.indirect, feature::INDIRECT_DESC)
            | optional(self.event_idx, feature::EVENT_IDX)
    }

    /// Descriptors of an indirect table: header, data, status.
    fn table_entries(&self) -> u16 {
        (self.segments + 2).max(3) as u16
    }

    fn tables_len(&self) -> usize {
        DESC_BYTES * usize::from(self.table_entries()) * usize::from(self.queue_size)
    }

    /// Bytes of guest memory for everything, each piece on pages of its own.
    fn footprint(&self) -> usize {
        const PAGE: usize = 4096;
        let (desc, driver, device) = ring_sizes(self.format(), self.queue_size);
        let tables = if self.indirect { self.tables_len() } else { 0 };
        let pieces = [desc, driver, device, tables, Slots::footprint(self.depth, self.block)];
        usize::from(self.queues) * pieces.iter().map(|len| len.next_multiple_of(PAGE) + PAGE).sum::<usize>()
    }
}

fn open(path: &Path) -> Result<UnixStream, AttachError> {
    UnixStream::connect(path).map_err(|source| AttachError::Connect { path: path.to_owned(), source })
}

/// Reads the configuration space and holds what was asked for against what there is.
fn read_config(session: &mut Session, setup: &Setup) -> Result<Config, AttachError> {
    let features = session.features();
    let demanded = [
        (true, feature::VERSION_1, "VIRTIO_F_VERSION_1"),
        (setup.packed, feature::RING_PACKED, "packed rings (VIRTIO_F_RING_PACKED)"),
        (setup.indirect, feature::INDIRECT_DESC, "indirect descriptors (VIRTIO_F_INDIRECT_DESC)"),
    ];
    if let Some((.., name)) = demanded.into_iter().find(|(wanted, bit, _)| *wanted && features & bit == 0) {
        return Err(AttachError::NotOffered(name));
    }
    let mut config = Config::new_zeroed();
    session.get_config(0, config.as_mut_bytes())?;
    let have = session.max_queues();
    if setup.queues > have {
        return Err(AttachError::Queues { have, want: setup.queues });
    }
    let seg_max = config.seg_max.get();
    if features & feature::SEG_MAX != 0 && setup.segments > seg_max as usize {
        return Err(AttachError::Segments { have: seg_max, want: setup.segments });
    }
    Ok(config)
}
