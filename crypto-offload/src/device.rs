//! The device as its vhost-user session sees it, behind both doors.
//!
//! | door | frontend | what shows it | sessions |
//! |---|---|---|---|
//! | A | QEMU's `cryptodev-vhost-user` | CRYPTO_SESSION without CONFIG | messages of the frontend |
//! | B | `vhost-user-test-device-pci` of QEMU, other VMMs | CONFIG | control queue |
//!
//! Nothing depends on the door but what door A's frontends leave out: they never enable a ring, and do not pass on what the
//! driver negotiated. The former is told by the protocol features. The latter is told by VERSION_1, which every driver of this
//! device negotiates, since it never had a legacy interface: where it is missing, nobody has said what the driver can do.

use crate::config::CryptoConfig;
use crate::description::Description;
use crate::features::{self, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use crate::service::{Message, Unit};
use crate::session::SessionId;
use crate::vault::Origin;
use daemon::device::{Rings, let_go, tell_each};
use daemon::forward_to_rings;
use runtime::attach::Attached;
use runtime::worker::WorkerGone;
use std::sync::Arc;
use vhost_user::message::protocol;
use vhost_user::{Device, Refused};
use virtqueue::Queue;

/// How the guest reaches the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// Through QEMU's own virtio-crypto device.
    Cryptodev,
    /// Directly.
    Device,
}

impl Door {
    /// The door that these protocol features show; `None`: neither.
    pub fn of(protocol_features: u64) -> Option<Self> {
        match (protocol_features & protocol::CONFIG != 0, protocol_features & protocol::CRYPTO_SESSION != 0) {
            (true, _) => Some(Self::Device),
            (false, true) => Some(Self::Cryptodev),
            (false, false) => None,
        }
    }

    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cryptodev => "cryptodev-vhost-user",
            Self::Device => "virtio-crypto",
        }
    }
}

/// A device with its queues on the workers. Lives on the session thread of the device.
pub struct CryptoDevice {
    unit: Arc<Unit>,
    rings: Rings<Message>,
    protocol: u64,
    negotiated: u64,
    /// Where the queue that shows a reset was stopped.
    stopped_at: Option<u32>,
    /// All queues have been stopped since that one last started.
    rested: bool,
}

impl CryptoDevice {
    /// Makes the device known to the workers that will have its queues: those with data, and the control queue behind them.
    pub fn new(unit: Arc<Unit>, attached: Attached<Message>) -> Result<Self, WorkerGone> {
        let device = attached.device();
        tell_each(attached.workers(), |reply| Message::Add { device, unit: unit.clone(), reply })?;
        let rings = Rings::new(unit.id(), attached);
        Ok(Self { unit, rings, protocol: 0, negotiated: 0, stopped_at: None, rested: false })
    }

    fn door(&self) -> Option<Door> {
        Door::of(self.protocol)
    }

    /// The queue that a driver cannot do without, and begins anew after a reset.
    fn telltale(&self) -> u16 {
        match self.door() {
            Some(Door::Cryptodev) => 0,
            _ => self.unit.data_queues(),
        }
    }

    /// The driver was reset, and its sessions are nobody's any more: all queues were stopped, and this one begins at its first
    /// entry, although it had been stopped at another. No message says so: a frontend that pauses the guest sends the same
    /// ones, but goes on where it stopped; and a single queue that is reset takes no session with it.
    fn begins_anew(&self, queue: &Queue) -> bool {
        let first = if self.negotiated & VIRTIO_F_RING_PACKED != 0 { 0x8000_8000 } else { 0 };
        let moved = self.stopped_at.is_some_and(|stopped_at| stopped_at != first);
        self.rested && moved && queue.base() == first
    }

    /// Keys are wiped as soon as no request in flight needs them.
    fn close_sessions(&mut self) {
        self.unit.sessions().close_all();
        self.stopped_at = None;
    }
}

impl Device for CryptoDevice {
    /// The data queues and the control queue.
    fn max_queues(&self) -> u16 {
        self.unit.data_queues() + 1
    }

    fn features(&self) -> u64 {
        features::offered()
    }

    /// QEMU's cryptodev prints a warning about CONFIG, which it does not use; door B cannot do without.
    fn protocol_features(&self) -> u64 {
        protocol::CONFIG | protocol::CRYPTO_SESSION
    }

    fn max_queue_size(&self) -> u16 {
        self.unit.queue_size()
    }

    fn rings_start_enabled(&self) -> bool {
        self.door() == Some(Door::Cryptodev)
    }

    fn driver_features_unknown(&self) -> bool {
        self.negotiated & VIRTIO_F_VERSION_1 == 0
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        CryptoConfig::new(self.unit.data_queues(), self.unit.max_size()).read(offset, buf);
    }

    /// Nothing in it can be written; a frontend that restores a migrated guest may try.
    fn write_config(&mut self, _: usize, _: &[u8], migration: bool) -> Result<(), Refused> {
        if migration { Ok(()) } else { Err(Refused("the configuration space is read-only")) }
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
        self.unit.negotiate(features::effective(features));
    }

    fn protocol_negotiated(&mut self, features: u64) {
        self.protocol = features;
    }

    forward_to_rings!(rings);

    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        if index == self.telltale() {
            if self.begins_anew(&queue) {
                self.close_sessions();
            }
            self.rested = false;
        }
        self.rings.start_queue(index, queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        let stopped = self.rings.stop_queue(index);
        if index == self.telltale()
            && let Some(queue) = &stopped
        {
            self.stopped_at = Some(queue.base());
        }
        self.rested |= self.rings.attached().running() == 0;
        stopped
    }

    fn reset(&mut self) {
        self.close_sessions();
    }

    fn disconnected(&mut self) {
        self.rings.disconnected();
        self.close_sessions();
        self.negotiated(0);
        self.protocol_negotiated(0);
    }

    /// A frontend that repeats a message, because it does not know whether a process that died had answered it, gets the session
    /// that was made then.
    fn create_crypto_session(&mut self, description: &[u8]) -> Result<u64, Refused> {
        let description = Description::parse(description).map_err(|status| Refused(status.name()))?;
        let origin = Origin::message(description.number);
        if let Some(id) = self.unit.vault().and_then(|vault| vault.find(origin)) {
            return Ok(id);
        }
        self.unit.sessions().create(&description.spec, origin).map(SessionId::wire).map_err(|error| {
            tracing::debug!(device = self.unit.id(), %error, "A session is refused");
            Refused("the session cannot be made")
        })
    }

    fn close_crypto_session(&mut self, id: u64) -> Result<(), Refused> {
        let closed = SessionId::from_wire(id).is_some_and(|id| self.unit.sessions().close(id));
        if closed { Ok(()) } else { Err(Refused("there is no such session")) }
    }
}

impl Drop for CryptoDevice {
    /// The workers let go of the device.
    fn drop(&mut self) {
        self.disconnected();
        let device = self.rings.attached().device();
        let_go(self.rings.attached().workers(), |reply| Message::Remove { device, reply });
    }
}
