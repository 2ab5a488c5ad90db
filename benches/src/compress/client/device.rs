//! The attached device: what is particular to it about the handshake, and its queues.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use compress_protocol::{CONFIG_LEN, Config, Foreign, feature};
use memory::OwnMemory;
use vhost_user::message::protocol;

use super::queue::Queue;
use crate::guest::memory::of_guest;
use crate::guest::{AttachError, Attachment, Guest, Shape, Socket};

/// Protocol features this driver makes use of.
const PROTOCOL: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::CONFIGURE_MEM_SLOTS;

/// What the driver asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Most descriptors of a request, header and response included.
    pub descriptors: u16,
    /// Device features that are needed.
    pub features: u64,
    /// How the rings look.
    pub shape: Shape,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum CompressorError {
    /// It cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It is another kind of device.
    #[error(transparent)]
    Foreign(#[from] Foreign),
}

/// A compression device with running queues.
pub struct Compressor {
    guest: Guest,
    config: Config,
}

impl Compressor {
    /// Connects to `path`, negotiates, shares memory with room for `data` more bytes, and starts all queues.
    pub fn attach(path: &Path, setup: &Setup, data: usize) -> Result<(Self, Vec<Queue>), CompressorError> {
        let memory = of_guest(setup.footprint() + data).map_err(AttachError::from)?;
        Self::attach_in(path, setup, memory)
    }

    /// The same in a guest that has other devices too: its memory has room for the [`Setup::footprint`].
    pub fn attach_in(
        path: &Path,
        setup: &Setup,
        memory: Arc<OwnMemory>,
    ) -> Result<(Self, Vec<Queue>), CompressorError> {
        let mut guest = Guest::attach(&Attachment {
            socket: Socket::Connect(path),
            shape: setup.shape,
            wanted: setup.features,
            demanded: &[
                (feature::CHECKSUM & setup.features, "checksums (VIRTIO_COMPRESS_F_CHECKSUM)"),
                (feature::VERIFY & setup.features, "verified results (VIRTIO_COMPRESS_F_VERIFY)"),
            ]
            .into_iter()
            .filter(|(bit, _)| *bit != 0)
            .collect::<Vec<_>>(),
            protocol: PROTOCOL,
            secretive: false,
            memory,
        })?;
        let config = read_config(&mut guest, setup)?;
        let queues = (0..setup.queues).map(|_| add_queue(&mut guest, setup)).collect::<Result<_, _>>()?;
        guest.start()?;
        Ok((Self { guest, config }, queues))
    }

    /// Configuration space, as read at the start.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Stops all queues, which must be idle, and closes the connection.
    pub fn detach(self, queues: Vec<Queue>) -> Result<(), CompressorError> {
        self.guest.detach()?;
        drop(queues);
        Ok(())
    }
}

impl Deref for Compressor {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Setup {
    /// Bytes of guest memory for the rings, headers and responses of all queues.
    pub fn footprint(&self) -> usize {
        let queue = self.shape.footprint(self.descriptors) + Queue::footprint(self.depth);
        usize::from(self.queues) * queue
    }
}

fn add_queue(guest: &mut Guest, setup: &Setup) -> Result<Queue, AttachError> {
    let ring = guest.add_ring(Some(setup.descriptors))?;
    Ok(Queue::new(ring, guest.memory(), setup.depth)?)
}

/// Reads the configuration space and holds what was asked for against what there is.
fn read_config(guest: &mut Guest, setup: &Setup) -> Result<Config, CompressorError> {
    let mut wire = [0; CONFIG_LEN];
    guest.session.get_config(0, &mut wire).map_err(AttachError::from)?;
    let config = Config::decode(&wire);
    config.check()?;
    AttachError::unless_enough("queues", config.num_queues.into(), setup.queues.into())?;
    AttachError::unless_enough(
        "descriptors a request",
        config.max_segments.into(),
        setup.descriptors.into(),
    )?;
    Ok(config)
}
