//! The port as its vhost-user session sees it: configuration space, features, and the rings, which are handed on to the
//! workers.

use crate::features::{self, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use crate::frame::MacAddr;
use crate::guest::{Commands, Guest};
use crate::options::MIN_MTU;
use crate::service::{ControlQueue, Message};
use daemon::device::{Rings, let_go, tell};
use daemon::forward_to_rings;
use runtime::attach::Attached;
use runtime::worker::{WorkerGone, WorkerHandle};
use std::sync::Arc;
use vhost_user::message::protocol;
use vhost_user::{Device, Refused};
use virtqueue::Queue;

/// State of a port saved by DEVICE_STATE: a version, then what the guest has set.
const STATE_VERSION: u8 = 1;

/// Index of the control queue when there is only one pair (virtio 1.3 §5.1.2).
const CONTROL_OF_ONE_PAIR: u16 = 2;

const WORKER_FAILED: Refused = Refused("the worker has failed");

/// A port with its queues on the workers. Lives on the session thread of the port.
pub struct NetDevice {
    guest: Arc<Guest>,
    rings: Rings<Message>,
    /// All workers: frames for the port come from each of them.
    workers: Vec<WorkerHandle<Message>>,
    negotiated: u64,
}

/// Number of queues of a port, the control queue included.
pub fn queues_of(pairs: u16) -> u16 {
    2 * pairs + 1
}

impl NetDevice {
    /// Makes the port known to all workers.
    pub fn new(
        guest: Arc<Guest>,
        attached: Attached<Message>,
        workers: Vec<WorkerHandle<Message>>,
    ) -> Result<Self, WorkerGone> {
        let control = attached.worker_of(queues_of(guest.port().pairs()) - 1);
        for worker in &workers {
            let has_control = control.is_some_and(|control| control.name() == worker.name());
            let commands = || Box::new(Commands::new(guest.clone())) as Box<dyn ControlQueue>;
            let (device, port) = (attached.device(), guest.port());
            let control = has_control.then(commands);
            tell(worker, |reply| Message::AddPort { device, port: port.clone(), control, reply })?;
        }
        let rings = Rings::new(guest.port().name(), attached);
        Ok(Self { guest, rings, workers, negotiated: 0 })
    }

    /// Where the workers have the queue that driver and frontend call `index`. The control queue comes after the last pair
    /// of queues the driver can use, and that is the first one when MQ was not negotiated (virtio 1.3 §5.1.2); a frontend that
    /// keeps the control queue to itself (QEMU, virtio-user) does not negotiate CTRL_VQ, and numbers the pairs only.
    fn place(&self, index: u16) -> u16 {
        let alone = self.negotiated & (VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ) == VIRTIO_NET_F_CTRL_VQ;
        if alone && index == CONTROL_OF_ONE_PAIR { 2 * self.guest.port().pairs() } else { index }
    }
}

impl Device for NetDevice {
    fn max_queues(&self) -> u16 {
        queues_of(self.guest.port().pairs())
    }

    fn features(&self) -> u64 {
        features::offered(self.guest.options())
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG | protocol::STATUS | protocol::RARP | protocol::NET_MTU | protocol::DEVICE_STATE
    }

    fn max_queue_size(&self) -> u16 {
        self.guest.options().queue_size
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        self.guest.config().read(offset, buf);
    }

    /// Nothing in it can be written by a driver of virtio 1.0 or later; a frontend that restores a migrated guest may try.
    fn write_config(&mut self, _: usize, _: &[u8], migration: bool) -> Result<(), Refused> {
        if migration { Ok(()) } else { Err(Refused("the configuration space is read-only")) }
    }

    /// A frontend that negotiates the same again only goes on after a pause: what the guest has set stays.
    fn negotiated(&mut self, features: u64) {
        if self.negotiated != features {
            self.negotiated = features;
            self.guest.reset(features);
        }
    }

    forward_to_rings!(rings, place);

    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        self.rings.start_queue(self.place(index), queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        self.rings.stop_queue(self.place(index))
    }

    /// A frontend that passes the control queue resets the device with status 0. QEMU, which does not, writes 0 when it only
    /// pauses the guest; but then the guest has set nothing here.
    fn set_status(&mut self, status: u8) {
        if status == 0 && self.negotiated & VIRTIO_NET_F_CTRL_VQ != 0 {
            self.reset();
        }
    }

    fn reset(&mut self) {
        self.guest.reset(self.negotiated);
    }

    fn disconnected(&mut self) {
        self.rings.disconnected();
        self.negotiated = 0;
        self.guest.reset(0);
        self.guest.forget_addresses();
        self.guest.port().set_mtu(self.guest.options().mtu.unwrap_or_default());
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), Refused> {
        let most = self.guest.options().mtu.unwrap_or(u16::MAX);
        if !(MIN_MTU..=most).contains(&mtu) {
            return Err(Refused("the MTU is below 68 or above the port's"));
        }
        self.guest.port().set_mtu(mtu);
        Ok(())
    }

    /// The guest has moved here and cannot say so itself: the network learns it from a frame in its name.
    fn rarp(&mut self, mac: [u8; 6]) -> Result<(), Refused> {
        let frame = Box::new(announcement(MacAddr(mac)));
        let port = self.guest.port().id();
        let Some(worker) = self.rings.attached().worker_of(0) else {
            return Err(Refused("there is no queue"));
        };
        tell(worker, |reply| Message::Inject { port, frame, reply }).map_err(|_| WORKER_FAILED)
    }

    fn save_state(&mut self) -> Result<Vec<u8>, Refused> {
        Ok([&[STATE_VERSION][..], &self.guest.save()].concat())
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), Refused> {
        let restored = state
            .split_first()
            .is_some_and(|(version, settings)| *version == STATE_VERSION && self.guest.restore(settings));
        if !restored {
            return Err(Refused("the saved state is not one of this port"));
        }
        self.guest.announce();
        Ok(())
    }
}

impl Drop for NetDevice {
    /// The workers let go of the port.
    fn drop(&mut self) {
        self.disconnected();
        let_go(&self.workers, |reply| Message::RemovePort { port: self.guest.port().id(), reply });
    }
}

/// A RARP request (RFC 903) in the name of `mac`, as QEMU sends it to say where a guest is now.
fn announcement(mac: MacAddr) -> [u8; 60] {
    let mut frame = [0; 60];
    let parts: [&[u8]; 7] = [
        &MacAddr::BROADCAST.0,
        &mac.0,
        // EtherType RARP; Ethernet, IPv4, lengths of their addresses; operation 3, request reverse.
        &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3],
        &mac.0,
        &[0; 4],
        &mac.0,
        &[0; 4],
    ];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_a_rarp_request_from_the_guest_for_itself() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let frame = announcement(MacAddr(mac));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!(frame[20..22], [0, 3], "operation");
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
        assert_eq!(frame[42..], [0; 18], "padding");
    }
}
