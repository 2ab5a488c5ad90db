//! The attached device: what is particular to a disk about the handshake, and its queues.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use memory::OwnMemory;
use vhost_user::message::protocol;
use zerocopy::{FromZeros, IntoBytes};

use super::layout::Slots;
use super::queue::Queue;
use crate::blk::wire::{Config, SECTOR, feature};
use crate::guest::memory::of_guest;
use crate::guest::{AttachError, Attachment, Guest, Shape, Socket};

/// Protocol features this driver makes use of.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIG
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::INFLIGHT_SHMFD;

/// Device features this driver makes use of.
const FEATURES: u64 = feature::SEG_MAX
    | feature::BLK_SIZE
    | feature::RO
    | feature::FLUSH
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES;

/// What the driver asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Request queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Bytes of each request's buffer.
    pub block: usize,
    /// Data segments of each request.
    pub segments: usize,
    /// How the rings look.
    pub shape: Shape,
}

impl Default for Setup {
    /// One split queue of 256 descriptors with 32 requests of 4 KiB.
    fn default() -> Self {
        Self { queues: 1, depth: 32, block: 4096, segments: 1, shape: Shape::default() }
    }
}

/// A vhost-user-blk device with running queues.
pub struct Disk {
    guest: Guest,
    config: Config,
}

impl Disk {
    /// Connects to `path`, negotiates, shares memory and starts all queues.
    pub fn attach(path: &Path, setup: &Setup) -> Result<(Self, Vec<Queue>), AttachError> {
        Self::attach_in(path, setup, of_guest(setup.footprint())?)
    }

    /// The same in a guest that has other devices too: its memory has room for the [`Setup::footprint`].
    pub fn attach_in(
        path: &Path,
        setup: &Setup,
        memory: Arc<OwnMemory>,
    ) -> Result<(Self, Vec<Queue>), AttachError> {
        let mut guest = Guest::attach(&Attachment {
            socket: Socket::Connect(path),
            shape: setup.shape,
            wanted: FEATURES,
            demanded: &[],
            protocol: PROTOCOL,
            secretive: false,
            memory,
        })?;
        let config = read_config(&mut guest, setup)?;
        guest.session.setup_inflight(setup.queues, setup.shape.size)?;
        let queues = (0..setup.queues).map(|_| add_queue(&mut guest, setup)).collect::<Result<_, _>>()?;
        guest.start()?;
        Ok((Self { guest, config }, queues))
    }

    /// Size in bytes.
    pub fn capacity(&self) -> u64 {
        self.config.capacity.get().saturating_mul(SECTOR)
    }

    /// Configuration space, as read at the start.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Requests that change the disk are refused.
    pub fn is_read_only(&self) -> bool {
        self.features() & feature::RO != 0
    }

    /// Requests in flight survive the backend's death.
    pub fn has_inflight(&self) -> bool {
        self.session.inflight().is_some()
    }

    /// Stops all queues, which must be idle, and closes the connection.
    pub fn detach(self, queues: Vec<Queue>) -> Result<(), AttachError> {
        self.guest.detach()?;
        drop(queues);
        Ok(())
    }
}

impl Deref for Disk {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Disk {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

fn add_queue(guest: &mut Guest, setup: &Setup) -> Result<Queue, AttachError> {
    let ring = guest.add_ring(Some(setup.table_entries()))?;
    let slots = Slots::new(guest.memory(), setup.depth, setup.block, setup.segments)?;
    Ok(Queue::new(ring, slots))
}

impl Setup {
    /// Descriptors of an indirect table: header, data, status.
    fn table_entries(&self) -> u16 {
        (self.segments + 2).max(3) as u16
    }

    /// Bytes of guest memory for everything, each piece on pages of its own.
    pub fn footprint(&self) -> usize {
        let queue = self.shape.footprint(self.table_entries()) + Slots::footprint(self.depth, self.block);
        usize::from(self.queues) * queue
    }
}

/// Reads the configuration space and holds what was asked for against what there is.
fn read_config(guest: &mut Guest, setup: &Setup) -> Result<Config, AttachError> {
    let mut config = Config::new_zeroed();
    guest.session.get_config(0, config.as_mut_bytes())?;
    AttachError::unless_enough("queues", guest.session.max_queues().into(), setup.queues.into())?;
    if guest.features() & feature::SEG_MAX != 0 {
        AttachError::unless_enough("segments a request", config.seg_max.get(), setup.segments as u32)?;
    }
    Ok(config)
}
