//! The device as its vhost-user session sees it, whatever the guest is shown.
//!
//! | door | frontend | what shows it | features in force |
//! |---|---|---|---|
//! | the device itself | `vhost-user-test-device-pci` of QEMU, other VMMs | CONFIG | what the driver negotiated |
//! | a file system's | `vhost-user-fs-pci` of QEMU | no CONFIG | all (docs/compress-device.md §1.7) |
//!
//! The second has a configuration space of its own and feature bits of its own, so the driver asks for ours by GET_CONFIG, and
//! cannot refuse any of it. Nothing else depends on the door: all queues are alike, the file system's first one too.

use crate::features;
use crate::service::Message;
use crate::unit::Unit;
use daemon::device::{Rings, let_go, tell_each};
use daemon::forward_to_rings;
use runtime::attach::Attached;
use runtime::worker::WorkerGone;
use std::sync::Arc;
use vhost_user::message::protocol;
use vhost_user::{Device, Refused};
use virtqueue::Queue;

/// What the guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// A compression device.
    Device,
    /// A file system that is none.
    FileSystem,
}

impl Door {
    /// The door that these protocol features show.
    pub fn of(protocol_features: u64) -> Self {
        if protocol_features & protocol::CONFIG != 0 { Self::Device } else { Self::FileSystem }
    }

    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "vhost-user-test-device",
            Self::FileSystem => "vhost-user-fs",
        }
    }

    /// Which of the device's own features are in force when the frontend has passed these on.
    fn in_force(self, negotiated: u64) -> u64 {
        match self {
            Self::Device => negotiated & features::OWN,
            Self::FileSystem => features::OWN,
        }
    }
}

/// A device with its queues on the workers. Lives on the session thread of the device.
pub struct CompressDevice {
    unit: Arc<Unit>,
    rings: Rings<Message>,
    protocol: u64,
    negotiated: u64,
}

impl CompressDevice {
    /// Makes the device known to the workers that will have its queues.
    pub fn new(unit: Arc<Unit>, attached: Attached<Message>) -> Result<Self, WorkerGone> {
        let device = attached.device();
        tell_each(attached.workers(), |reply| Message::Add { device, unit: unit.clone(), reply })?;
        let rings = Rings::new(unit.id(), attached);
        Ok(Self { unit, rings, protocol: 0, negotiated: 0 })
    }

    fn negotiate(&self) {
        self.unit.negotiate(Door::of(self.protocol).in_force(self.negotiated));
    }
}

impl Device for CompressDevice {
    fn max_queues(&self) -> u16 {
        self.unit.queues()
    }

    fn features(&self) -> u64 {
        features::offered()
    }

    /// QEMU's file system prints a warning about CONFIG, which it does not use; the other door cannot do without.
    fn protocol_features(&self) -> u64 {
        protocol::CONFIG
    }

    fn max_queue_size(&self) -> u16 {
        self.unit.queue_size()
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        self.unit.config().read(offset, buf);
    }

    /// Nothing in it can be written; a frontend that restores a migrated guest may try.
    fn write_config(&mut self, _: usize, _: &[u8], migration: bool) -> Result<(), Refused> {
        if migration { Ok(()) } else { Err(Refused("the configuration space is read-only")) }
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
        self.negotiate();
    }

    fn protocol_negotiated(&mut self, features: u64) {
        self.protocol = features;
        self.negotiate();
    }

    forward_to_rings!(rings);

    /// A ring at its first entry is that of a driver that begins, or begins anew: whoever had streams there is gone. (A guest
    /// that was paused just there loses them, which it has to be ready for.)
    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        if queue.base() == first_base(self.negotiated) {
            self.unit.streams(index).close_all();
        }
        self.rings.start_queue(index, queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        self.rings.stop_queue(index)
    }

    fn reset(&mut self) {
        self.unit.close_streams();
    }

    /// The next frontend may belong to another guest, which must not find this one's streams.
    fn disconnected(&mut self) {
        self.rings.disconnected();
        self.unit.close_streams();
        self.negotiated = 0;
        self.protocol_negotiated(0);
    }
}

impl Drop for CompressDevice {
    /// The workers let go of the device.
    fn drop(&mut self) {
        self.disconnected();
        let device = self.rings.attached().device();
        let_go(self.rings.attached().workers(), |reply| Message::Remove { device, reply });
    }
}

/// The base of a ring in which nothing has happened yet.
fn first_base(negotiated: u64) -> u32 {
    if negotiated & features::VIRTIO_F_RING_PACKED != 0 { 0x8000_8000 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_cannot_refuse_a_feature_has_them_all() {
        assert_eq!(Door::of(protocol::CONFIG | protocol::MQ), Door::Device);
        assert_eq!(Door::Device.in_force(1 << 32 | 0b010), 0b010);
        assert_eq!(Door::of(protocol::MQ), Door::FileSystem);
        assert_eq!(Door::FileSystem.in_force(1 << 32), features::OWN);
    }
}
