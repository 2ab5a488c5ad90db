//! The attached device: both doors, sessions, queues.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use memory::OwnMemory;
use vhost_user::frontend::FrontendError;
use vhost_user::message::protocol;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::control::Control;
use super::encode::{Format, Task, destroy};
use super::layout::{Plan, Slots};
use super::queue::Queue;
use crate::crypto::algorithm::{Algorithm, Direction};
use crate::crypto::library::Keys;
use crate::crypto::wire::{Config, Created, description, feature, number, status};
use crate::guest::memory::of_guest;
use crate::guest::{AttachError, Attachment, Guest, Shape, Socket};

/// Protocol features through door A: what QEMU's cryptodev-vhost-user has a use for.
const PROTOCOL_A: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CRYPTO_SESSION;
/// Protocol features through door B.
const PROTOCOL_B: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::CONFIGURE_MEM_SLOTS;

/// How the driver comes to the device.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Door {
    /// As cryptodev-vhost-user of QEMU up to 8.0: sessions by messages of 632 bytes
    A632,
    /// As cryptodev-vhost-user of QEMU from 8.1 on: sessions by messages of 1072 bytes
    A,
    /// As a driver that has the whole device: control queue, any number of data queues
    B,
}

impl Door {
    fn description(self) -> Option<usize> {
        match self {
            Self::A632 => Some(description::OLD),
            Self::A => Some(description::NEW),
            Self::B => None,
        }
    }
}

/// What the driver asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How it comes to the device.
    pub door: Door,
    /// What is computed.
    pub algorithm: Algorithm,
    /// What is done with it.
    pub direction: Direction,
    /// Bytes of a request.
    pub size: usize,
    /// Descriptors that source and destination are cut into.
    pub segments: u16,
    /// The destination is the source.
    pub in_place: bool,
    /// Data queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Formats of requests.
    pub format: Format,
    /// How the rings look.
    pub shape: Shape,
}

/// Why there is no device, or no session.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// No device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The connection failed.
    #[error(transparent)]
    Session(#[from] FrontendError),
    /// The device is there but not ready.
    #[error("The device is not ready (VIRTIO_CRYPTO_S_HW_READY is off)")]
    NotReady,
    /// The algorithm has no session through this door.
    #[error(
        "A session for {0} cannot be described in a message of this door, or its key is too long for it; use --door b"
    )]
    NoDescription(Algorithm),
    /// Sessions are needed where nothing else is negotiated.
    #[error("Door A has sessions only")]
    NoStateless,
    /// The device did not make the session.
    #[error("The backend refused a session for {algorithm}: {reason}")]
    Refused {
        /// What for.
        algorithm: Algorithm,
        /// A status, or what came instead of one.
        reason: String,
    },
}

/// A virtio-crypto device with running queues.
pub struct Crypto {
    guest: Guest,
    /// Door B: configuration space and control queue.
    whole: Option<Whole>,
    setup: Setup,
    sessions: Vec<u64>,
}

struct Whole {
    config: Config,
    control: Control,
}

impl Setup {
    fn plan(&self, keys: &Keys) -> Plan {
        let sizes = self.algorithm.sizes(self.direction, self.size);
        // The session's number does not change the length.
        let session = (!self.format.stateless).then_some(0);
        let head = self.task(keys).head(sizes, session, self.format).len();
        let segments = usize::from(self.segments);
        Plan { depth: self.depth, head, sizes, segments, in_place: self.in_place }
    }

    /// Descriptors of a request.
    pub fn descriptors(&self) -> u16 {
        Plan::descriptors(self.algorithm.sizes(self.direction, self.size), self.segments)
    }

    /// The task of a session with these keys.
    pub fn task<'a>(&self, keys: &'a Keys) -> Task<'a> {
        Task { algorithm: self.algorithm, direction: self.direction, keys }
    }

    fn features(&self) -> u64 {
        let optional = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
        optional(self.format.revision_1, feature::REVISION_1)
            | optional(self.format.stateless, self.algorithm.service().stateless())
    }

    fn attachment<'a>(
        &self,
        path: &'a Path,
        demanded: &'a [(u64, &'static str)],
        memory: Arc<OwnMemory>,
    ) -> Attachment<'a> {
        let messages = self.door != Door::B;
        Attachment {
            socket: Socket::Connect(path),
            shape: self.shape,
            wanted: if messages { 0 } else { self.features() },
            demanded: if messages { &[] } else { demanded },
            protocol: if messages { PROTOCOL_A } else { PROTOCOL_B },
            secretive: messages,
            memory,
        }
    }

    fn demanded(&self) -> Vec<(u64, &'static str)> {
        let Format { revision_1, stateless } = self.format;
        [
            (revision_1, feature::REVISION_1, "revision 1 (VIRTIO_CRYPTO_F_REVISION_1)"),
            (stateless, self.algorithm.service().stateless(), "requests without a session for this service"),
        ]
        .into_iter()
        .filter_map(|(wanted, bit, name)| wanted.then_some((bit, name)))
        .collect()
    }
}

impl Crypto {
    /// Connects to `path`, negotiates, shares memory and starts all queues. `keys` has those of the longest heads.
    pub fn attach(path: &Path, setup: &Setup, keys: &Keys) -> Result<(Self, Vec<Queue>), CryptoError> {
        if setup.door != Door::B && setup.format.stateless {
            return Err(CryptoError::NoStateless);
        }
        let plan = setup.plan(keys);
        let table = setup.descriptors();
        let queue = setup.shape.footprint(table) + plan.footprint();
        let control = setup.shape.footprint(2) + Control::footprint();
        let memory = of_guest(usize::from(setup.queues) * queue + control).map_err(AttachError::from)?;
        let mut guest = Guest::attach(&setup.attachment(path, &setup.demanded(), memory))?;
        let whole = setup.door == Door::B;
        let config = if whole { Some(read_config(&mut guest)?) } else { None };
        let have = config.map_or(1, |config| config.max_dataqueues.get());
        AttachError::unless_enough("data queues", have, setup.queues.into())?;
        let mut queues = Vec::new();
        for index in 0..setup.queues {
            let ring = guest.add_ring_at(index, Some(table))?;
            let slots = Slots::new(guest.memory(), plan).map_err(AttachError::from)?;
            queues.push(Queue::new(ring, slots));
        }
        let whole = match config {
            Some(config) => {
                let ring = guest.add_ring_at(have as u16, Some(2))?;
                let control = Control::new(guest.memory(), ring).map_err(AttachError::from)?;
                Some(Whole { config, control })
            }
            None => None,
        };
        guest.start()?;
        Ok((Self { guest, whole, setup: setup.clone(), sessions: Vec::new() }, queues))
    }

    /// Configuration space, where the driver has one.
    pub fn config(&self) -> Option<&Config> {
        self.whole.as_ref().map(|whole| &whole.config)
    }

    /// A new session for requests of data queue `queue`.
    pub fn create_session(&mut self, keys: &Keys, queue: u16) -> Result<u64, CryptoError> {
        let task = self.setup.task(keys);
        let algorithm = task.algorithm;
        let refused = |reason: String| CryptoError::Refused { algorithm, reason };
        let session = match (&mut self.whole, self.setup.door.description()) {
            (Some(whole), _) => {
                let request = task.create(self.setup.format, queue.into());
                let answer = whole.control.call::<16>(&request);
                let answer = answer.ok_or_else(|| refused("it has no answer of 16 bytes".to_owned()))?;
                let created = Created::read_from_bytes(&answer).expect("16 bytes make one");
                match created.status.get() as u8 {
                    status::OK => created.session_id.get(),
                    code => return Err(refused(format!("status {code} ({})", status::name(code)))),
                }
            }
            (None, len) => {
                let description = len.and_then(|len| task.description(len));
                let description = description.ok_or(CryptoError::NoDescription(algorithm))?;
                let id = self.guest.session.frontend.create_crypto_session(&description);
                id.map_err(|error| refused(error.to_string()))?
            }
        };
        self.sessions.push(session);
        Ok(session)
    }

    /// Closes a session.
    pub fn close_session(&mut self, session: u64) -> Result<(), CryptoError> {
        self.sessions.retain(|&open| open != session);
        let algorithm = self.setup.algorithm;
        let Some(whole) = &mut self.whole else {
            self.guest.session.frontend.close_crypto_session(session)?;
            return Ok(());
        };
        let reason = match whole.control.call::<1>(&destroy(algorithm, session, self.setup.format)) {
            Some([status::OK]) => return Ok(()),
            Some([code]) => format!("closing it ended with status {code} ({})", status::name(code)),
            None => "closing it has no answer of one byte".to_owned(),
        };
        Err(CryptoError::Refused { algorithm, reason })
    }

    /// Closes all sessions, stops all queues, which must be idle, and closes the connection.
    pub fn detach(mut self, queues: Vec<Queue>) -> Result<(), CryptoError> {
        for session in std::mem::take(&mut self.sessions) {
            self.close_session(session)?;
        }
        self.guest.detach()?;
        drop(queues);
        Ok(())
    }
}

impl Deref for Crypto {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

fn read_config(guest: &mut Guest) -> Result<Config, CryptoError> {
    let mut config = Config::new_zeroed();
    guest.session.get_config(0, config.as_mut_bytes())?;
    if config.status.get() & number::HW_READY == 0 {
        return Err(CryptoError::NotReady);
    }
    // The control queue comes behind the data queues.
    let queues = config.max_dataqueues.get() + 1;
    AttachError::unless_enough("queues", guest.session.max_queues().into(), queues)?;
    Ok(config)
}
