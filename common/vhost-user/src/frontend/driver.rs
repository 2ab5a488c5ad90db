//! The whole handshake in one place: what a driver program needs between a socket path and a running ring.
//!
//! [`Session::connect`] negotiates and leaves memory and rings to the caller; [`Session::start`] also sets up driver rings in
//! memory of the caller, ready to use. [`Session::reconnect`] goes on with them on a new connection, as a VMM does after its
//! back-end has died.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use memory::{GuestAddr, OwnMemory, RegionConfig};
use virtqueue::driver::DriverRing;
use virtqueue::{Format, RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Frontend, FrontendError, InflightFd, Result};
use crate::message::{VringAddr, features, protocol};
use crate::scm;

/// Protocol features a driver session can make use of.
pub const USEFUL_PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::LOG_SHMFD
    | protocol::BACKEND_REQ
    | protocol::RESET_DEVICE
    | protocol::STATUS;

/// What [`Session::start`] sets up.
#[derive(Clone, Copy)]
pub struct SessionConfig<'m> {
    /// Number of rings.
    pub queues: u16,
    /// Entries of each ring.
    pub size: u16,
    /// Virtio features to accept if they are offered; `VERSION_1` and `RING_PACKED` are added as needed.
    pub features_wanted: u64,
    /// Use packed rings; fails if they are not offered.
    pub packed: bool,
    /// Ask for an inflight region, if the back-end has them.
    pub inflight: bool,
    /// Memory to share and to put the rings in.
    pub memory: &'m OwnMemory,
}

/// A running ring and its events.
pub struct DriverQueue {
    /// The driver side.
    pub ring: DriverRing,
    /// Written by the driver when [`DriverRing::publish`] says so.
    pub kick: EventFd,
    /// Written by the device when buffers are used.
    pub call: EventFd,
    /// Where the ring is.
    pub addresses: RingAddresses,
    /// Entries.
    pub size: u16,
}

impl DriverQueue {
    /// Shows new buffers to the device and kicks it if it wants that. True if it was kicked.
    pub fn publish(&mut self) -> std::io::Result<bool> {
        let wanted = self.ring.publish();
        if wanted {
            self.kick.write(1)?;
        }
        Ok(wanted)
    }
}

/// A negotiated connection to a back-end.
pub struct Session {
    /// The connection, for everything else.
    pub frontend: Frontend,
    /// Rings set up by [`Session::start`], by index.
    pub rings: Vec<DriverQueue>,
    features: u64,
    regions: Vec<(RegionConfig, OwnedFd)>,
    inflight: Option<InflightFd>,
    max_queues: u16,
}

impl Session {
    /// Connects and negotiates what is both wanted and offered. Works with back-ends that lack any protocol feature.
    pub fn connect(path: impl AsRef<Path>, wanted_features: u64, wanted_protocol: u64) -> Result<Self> {
        Self::negotiate(UnixStream::connect(path)?, wanted_features, wanted_protocol)
    }

    /// The same on a connected socket.
    pub fn negotiate(socket: UnixStream, wanted_features: u64, wanted_protocol: u64) -> Result<Self> {
        let mut frontend = Frontend::from_stream(socket);
        let (features, max_queues) = handshake(&mut frontend, wanted_features, wanted_protocol)?;
        Ok(Self { frontend, rings: Vec::new(), features, regions: Vec::new(), inflight: None, max_queues })
    }

    /// Connects, shares the memory, and starts and enables all rings.
    pub fn start(socket: UnixStream, config: &SessionConfig<'_>) -> Result<Self> {
        let packed = if config.packed { features::RING_PACKED } else { 0 };
        let wanted = (config.features_wanted & !features::RING_PACKED) | features::VERSION_1 | packed;
        let mut session = Self::negotiate(socket, wanted, USEFUL_PROTOCOL_FEATURES)?;
        if config.packed && session.features & features::RING_PACKED == 0 {
            return Err(FrontendError::Missing("RING_PACKED"));
        }
        if config.queues > session.max_queues {
            return Err(FrontendError::Missing("as many queues"));
        }
        session.share_memory(&config.memory.config(), config.memory.fd())?;
        if config.inflight {
            session.setup_inflight(config.queues, config.size)?;
        }
        for _ in 0..config.queues {
            session.add_ring(config)?;
        }
        session.start_rings()?;
        Ok(session)
    }

    /// Virtio features negotiated, `PROTOCOL_FEATURES` included.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The ring features among them.
    pub fn ring_features(&self) -> RingFeatures {
        RingFeatures::from_bits(self.features)
    }

    /// Protocol features negotiated.
    pub fn protocol_features(&self) -> u64 {
        self.frontend.protocol()
    }

    /// Queues the back-end has; 1 if it does not say.
    pub fn max_queues(&self) -> u16 {
        self.max_queues
    }

    /// The inflight region, if there is one.
    pub fn inflight(&self) -> Option<&InflightFd> {
        self.inflight.as_ref()
    }

    /// Reads the configuration space.
    pub fn get_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<()> {
        self.frontend.get_config(offset, buf)
    }

    /// Process id of the back-end.
    pub fn peer_pid(&self) -> Result<i32> {
        self.frontend.peer_pid()
    }

    /// Shares one more region of memory, by `ADD_MEM_REG` if the back-end has it, else by the whole table again.
    pub fn share_memory(&mut self, region: &RegionConfig, fd: BorrowedFd<'_>) -> Result<()> {
        self.regions.push((*region, fd.try_clone_to_owned()?));
        let result = if self.protocol_features() & protocol::CONFIGURE_MEM_SLOTS != 0 {
            self.frontend.add_mem_reg(region, fd)
        } else {
            self.send_memory_table()
        };
        if result.is_err() {
            self.regions.pop();
        }
        result
    }

    /// Gets an inflight region and sends it back for use. `None` if the back-end has no such thing.
    pub fn setup_inflight(&mut self, queues: u16, queue_size: u16) -> Result<Option<&InflightFd>> {
        if self.protocol_features() & protocol::INFLIGHT_SHMFD == 0 {
            return Ok(None);
        }
        let inflight = self.frontend.get_inflight_fd(queues, queue_size)?;
        self.frontend.set_inflight_fd(&inflight)?;
        Ok(Some(self.inflight.insert(inflight)))
    }

    /// Sets up and starts one ring whose areas lie in shared memory, and enables it.
    pub fn start_queue(
        &mut self,
        index: u16,
        size: u16,
        base: u32,
        addresses: &RingAddresses,
        kick: &EventFd,
        call: &EventFd,
    ) -> Result<()> {
        let (kick, call) = (scm::borrow(kick), scm::borrow(call));
        self.start_queue_with(index, size, base, addresses, Some(kick), Some(call))
    }

    /// The same with optional events: without a kick the back-end must poll, without a call the driver does.
    pub fn start_queue_with(
        &mut self,
        index: u16,
        size: u16,
        base: u32,
        addresses: &RingAddresses,
        kick: Option<BorrowedFd<'_>>,
        call: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let addr = VringAddr {
            index: u32::from(index).into(),
            flags: 0.into(),
            descriptor: self.user_addr(addresses.desc)?.into(),
            used: self.user_addr(addresses.device)?.into(),
            available: self.user_addr(addresses.driver)?.into(),
            log: addresses.device.0.into(),
        };
        self.frontend.set_vring_num(index, size.into())?;
        self.frontend.set_vring_base(index, base)?;
        self.frontend.set_vring_addr(&addr)?;
        self.frontend.set_vring_call(index, call)?;
        self.frontend.set_vring_kick(index, kick)?;
        if self.features & features::PROTOCOL_FEATURES != 0 {
            self.frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Drains and stops a ring; returns its base.
    pub fn stop_queue(&mut self, index: u16) -> Result<u32> {
        self.frontend.get_vring_base(index)
    }

    /// Goes on with the same memory, inflight region and rings on a new connection. Kicks every ring, since a kick that the
    /// old back-end took may not have been served.
    ///
    /// On an error the session is unchanged but for its broken connection, so the call can be repeated with a new socket.
    pub fn reconnect(&mut self, socket: UnixStream) -> Result<()> {
        let mut frontend = Frontend::from_stream(socket);
        let wanted_protocol = self.protocol_features();
        let (features, max_queues) = handshake(&mut frontend, self.features, wanted_protocol)?;
        if features != self.features {
            return Err(FrontendError::Missing("the features negotiated before"));
        }
        self.frontend = frontend;
        self.max_queues = max_queues;
        self.share_memory_again()?;
        if let Some(inflight) = &self.inflight {
            self.frontend.set_inflight_fd(inflight)?;
        }
        self.start_rings()
    }

    /// Shares all regions with a back-end that has none.
    fn share_memory_again(&mut self) -> Result<()> {
        if self.protocol_features() & protocol::CONFIGURE_MEM_SLOTS == 0 {
            return self.send_memory_table();
        }
        self.regions.iter().try_for_each(|(region, fd)| self.frontend.add_mem_reg(region, fd.as_fd()))
    }

    fn send_memory_table(&mut self) -> Result<()> {
        let table: Vec<_> = self.regions.iter().map(|(region, fd)| (*region, fd.as_fd())).collect();
        self.frontend.set_mem_table(&table)
    }

    fn add_ring(&mut self, config: &SessionConfig<'_>) -> Result<()> {
        let features = self.ring_features();
        let addresses = allocate(config.memory, features.format(), config.size)?;
        let ring = DriverRing::in_table(
            config.memory.table(),
            &addresses,
            features.format(),
            config.size,
            features,
        )?;
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        self.rings.push(DriverQueue { ring, kick: event()?, call: event()?, addresses, size: config.size });
        Ok(())
    }

    /// Starts all rings where their driver sides are.
    fn start_rings(&mut self) -> Result<()> {
        let rings = std::mem::take(&mut self.rings);
        let mut result = Ok(());
        for (index, ring) in rings.iter().enumerate() {
            let base = ring.ring.base_for_restart();
            result = self.start_queue(index as u16, ring.size, base, &ring.addresses, &ring.kick, &ring.call);
            if result.is_err() {
                break;
            }
            // A full counter is a kick as well.
            let _ = ring.kick.write(1);
        }
        self.rings = rings;
        result
    }

    /// `SET_VRING_ADDR` speaks of addresses in this process.
    fn user_addr(&self, addr: GuestAddr) -> Result<u64> {
        let inside = |region: &RegionConfig| {
            let offset = addr.0.checked_sub(region.guest.0)?;
            (offset < region.len).then(|| region.user.0 + offset)
        };
        let found = self.regions.iter().find_map(|(region, _)| inside(region));
        found.ok_or(FrontendError::Invalid("Ring address lies outside the shared memory"))
    }
}

/// The messages every connection starts with, in the order of QEMU. Returns features and number of queues.
fn handshake(frontend: &mut Frontend, wanted_features: u64, wanted_protocol: u64) -> Result<(u64, u16)> {
    let offered = frontend.get_features()?;
    let mut max_queues = 1;
    if offered & features::PROTOCOL_FEATURES != 0 {
        let protocol_features = frontend.get_protocol_features()? & wanted_protocol;
        frontend.set_protocol_features(protocol_features)?;
        if protocol_features & protocol::MQ != 0 {
            max_queues = frontend.get_queue_num()?.min(u16::MAX.into()) as u16;
        }
    }
    frontend.set_owner()?;
    let chosen = offered & (wanted_features | features::PROTOCOL_FEATURES);
    frontend.set_features(chosen)?;
    Ok((chosen, max_queues))
}

fn allocate(memory: &OwnMemory, format: Format, size: u16) -> Result<RingAddresses> {
    let (desc, driver, device) = ring_sizes(format, size);
    let area =
        |len| memory.alloc(len, 64).ok_or(FrontendError::Invalid("No room for the rings in the memory"));
    Ok(RingAddresses { desc: area(desc)?, driver: area(driver)?, device: area(device)? })
}
