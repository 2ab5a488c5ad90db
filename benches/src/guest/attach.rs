//! The attached device: handshake, memory, rings, and coming back after the backend's death.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memory::{Area, OutOfRange, OwnMemory};
use vhost_user::frontend::driver::Session;
use vhost_user::frontend::{Frontend, FrontendError};
use vhost_user::message::VringAddr;
use virtqueue::driver::{DriverRing, IndirectTables, RingAreas};
use virtqueue::layout::INDEX_OFFSET;
use virtqueue::{Format, RingAddresses, RingFeatures, SetupError, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::memory::area;
use super::ring::{Ring, Shape};
use crate::wait;

/// Both wrap counters of a packed ring start at 1, both indices at 0 (virtio 1.3 §2.8.1; vhost-user: SET_VRING_BASE).
const PACKED_START: u32 = 0x8000_8000;

/// How long a backend may take to connect to us.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the backend is.
#[derive(Clone, Copy, Debug)]
pub enum Socket<'a> {
    /// It listens.
    Connect(&'a Path),
    /// We listen and it connects.
    Listen(&'a Path),
}

/// What a driver needs of a backend.
pub struct Attachment<'a> {
    /// Where it is.
    pub socket: Socket<'a>,
    /// How the rings look.
    pub shape: Shape,
    /// Features to accept if they are offered, on top of those of the rings.
    pub wanted: u64,
    /// Those of them that must be offered, with the words for the refusal.
    pub demanded: &'a [(u64, &'static str)],
    /// Protocol features the driver makes use of.
    pub protocol: u64,
    /// The frontend keeps to itself what the guest negotiates, and enables no ring, as QEMU's cryptodev-vhost-user does:
    /// the rings have the features of their shape whatever the backend knows.
    pub secretive: bool,
    /// Guest memory; devices of one guest may share it.
    pub memory: Arc<OwnMemory>,
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
    /// Fewer of something than asked for.
    #[error("The backend has {have} {what}, {want} are asked for")]
    TooFew {
        /// Queues, segments a request.
        what: &'static str,
        /// What the backend has.
        have: u32,
        /// What is asked for.
        want: u32,
    },
}

impl AttachError {
    /// Holds what is asked for against what there is.
    pub fn unless_enough(what: &'static str, have: u32, want: u32) -> Result<(), Self> {
        if want > have { Err(Self::TooFew { what, have, want }) } else { Ok(()) }
    }
}

/// A connection with memory and rings: all of a device but what its requests mean.
pub struct Guest {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// The connection, for what only one kind of device needs.
    pub session: Session,
    features: u64,
    secretive: bool,
    memory: Arc<OwnMemory>,
    rings: Vec<Wiring>,
    shape: Shape,
}

/// What it takes to start a ring once more on a new backend process.
struct Wiring {
    index: u16,
    addresses: RingAddresses,
    /// The device area: a split ring's used index says where a restarted backend goes on.
    device: Area,
    size: u16,
    kick: EventFd,
    call: EventFd,
}

impl Guest {
    /// Connects, negotiates, checks what is demanded, and shares memory. Rings come next: [`Guest::add_ring`],
    /// [`Guest::start`].
    pub fn attach(what: &Attachment<'_>) -> Result<Self, AttachError> {
        let (path, listener) = match what.socket {
            Socket::Connect(path) => (path.to_owned(), None),
            Socket::Listen(path) => (path.to_owned(), Some(listen(path)?)),
        };
        let socket = open(&path, listener.as_ref())?;
        let shape = what.shape;
        let wanted = if what.secretive { 0 } else { what.wanted | shape.wanted() };
        let mut session = Session::negotiate(socket, wanted, what.protocol)?;
        let features = if what.secretive { shape.wanted() } else { session.features() };
        let mut demanded = shape.demanded().chain(what.demanded.iter().copied());
        if let Some((_, name)) = demanded.find(|(bit, _)| features & bit == 0) {
            return Err(AttachError::NotOffered(name));
        }
        let memory = Arc::clone(&what.memory);
        session.share_memory(&memory.config(), memory.fd())?;
        let secretive = what.secretive;
        Ok(Self { path, listener, session, features, secretive, memory, rings: Vec::new(), shape })
    }

    /// Negotiated virtio features, as the guest sees them.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Guest memory, for buffers.
    pub fn memory(&self) -> &OwnMemory {
        &self.memory
    }

    /// Process of the backend, if it is visible from here.
    pub fn backend_pid(&self) -> Option<i32> {
        self.session.peer_pid().ok().filter(|&pid| pid > 0)
    }

    /// Waits up to `limit` for the backend to close the connection; `true` when it has.
    pub fn hung_up_within(&self, limit: Duration) -> bool {
        wait::hung_up_within(self.session.frontend.as_fd().as_raw_fd(), limit)
    }

    /// One more ring, not yet started. Its indirect tables, if it is to have any, have `table` descriptors each.
    pub fn add_ring(&mut self, table: Option<u16>) -> Result<Ring, AttachError> {
        self.add_ring_at(self.rings.last().map_or(0, |last| last.index + 1), table)
    }

    /// The same with an index of its own, larger than those before.
    pub fn add_ring_at(&mut self, index: u16, table: Option<u16>) -> Result<Ring, AttachError> {
        let (format, size) = (self.shape.format(), self.shape.size);
        let (desc, driver, device) = ring_sizes(format, size);
        let areas = RingAreas {
            desc: area(&self.memory, desc)?,
            driver: area(&self.memory, driver)?,
            device: area(&self.memory, device)?,
        };
        let addresses = RingAddresses {
            desc: areas.desc.guest_addr(),
            driver: areas.driver.guest_addr(),
            device: areas.device.guest_addr(),
        };
        let device = areas.device.clone();
        let mut ring = DriverRing::new(areas, format, size, RingFeatures::from_bits(self.features()))?;
        let table = table.filter(|_| self.shape.indirect);
        if let Some(entries) = table {
            let area = area(&self.memory, self.shape.tables_len(entries))?;
            ring.set_indirect(IndirectTables { area, entries })?;
        }
        let (kick, call) = (EventFd::new(EFD_CLOEXEC)?, EventFd::new(EFD_CLOEXEC)?);
        self.rings.push(Wiring {
            index,
            addresses,
            device,
            size,
            kick: kick.try_clone()?,
            call: call.try_clone()?,
        });
        Ok(Ring::new(ring, table.is_some(), kick, call))
    }

    /// Starts all rings at their beginning.
    pub fn start(&mut self) -> Result<(), AttachError> {
        let first = match self.shape.format() {
            Format::Split => 0,
            Format::Packed => PACKED_START,
        };
        self.start_at(&vec![first; self.rings.len()])
    }

    /// One attempt to go on with a new backend process: whole handshake, same memory, same rings, same inflight region.
    ///
    /// The rings' owners need not stop: requests in flight are completed by the new process, and new ones are kicked.
    /// Without an inflight region a split ring resubmits nothing: its requests in flight are lost.
    pub fn reattach(&mut self) -> Result<(), AttachError> {
        let format = self.shape.format();
        let bases: Vec<u32> = self.rings.iter().map(|wiring| wiring.base_after_crash(format)).collect();
        self.reattach_at(&bases)?;
        self.wake_all();
        Ok(())
    }

    /// The same with rings that their owners have stopped using; `bases` says where each of them goes on.
    pub fn reattach_at(&mut self, bases: &[u32]) -> Result<(), AttachError> {
        self.session.reconnect(open(&self.path, self.listener.as_ref())?)?;
        self.start_at(bases)?;
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

    /// Stops all rings, which must be idle, and closes the connection.
    pub fn detach(mut self) -> Result<(), AttachError> {
        for wiring in &self.rings {
            self.session.stop_queue(wiring.index)?;
        }
        Ok(())
    }

    fn start_at(&mut self, bases: &[u32]) -> Result<(), AttachError> {
        for (wiring, &base) in self.rings.iter().zip(bases) {
            let Wiring { index, addresses, size, kick, call, .. } = wiring;
            if self.secretive {
                wiring.start_quietly(&mut self.session.frontend, &self.memory, base)?;
            } else {
                self.session.start_queue(*index, *size, base, addresses, kick, call)?;
            }
        }
        Ok(())
    }
}

impl Wiring {
    /// The messages of QEMU's cryptodev-vhost-user: the kick starts the ring, nothing enables it.
    fn start_quietly(
        &self,
        frontend: &mut Frontend,
        memory: &OwnMemory,
        base: u32,
    ) -> Result<(), AttachError> {
        let Self { index, addresses, size, kick, call, .. } = self;
        let addr = VringAddr {
            index: u32::from(*index).into(),
            flags: 0.into(),
            descriptor: memory.user_of(addresses.desc).0.into(),
            used: memory.user_of(addresses.device).0.into(),
            available: memory.user_of(addresses.driver).0.into(),
            log: 0.into(),
        };
        frontend.set_vring_num(*index, (*size).into())?;
        frontend.set_vring_base(*index, base)?;
        frontend.set_vring_addr(&addr)?;
        frontend.set_vring_kick(*index, Some(borrow(kick)))?;
        frontend.set_vring_call(*index, Some(borrow(call)))?;
        Ok(())
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

/// The descriptor of an event.
#[expect(unsafe_code, reason = "the type of the event predates BorrowedFd")]
fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns its descriptor and keeps it open while it is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
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
