//! The disk as its vhost-user session sees it: configuration space, features, and the rings, which are handed
//! on to the workers.

use crate::config::WRITEBACK_OFFSET;
use crate::disk::Disk;
use crate::features::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_F_RING_PACKED};
use crate::service::Message;
use daemon::device::{Rings, let_go, tell_each};
use daemon::forward_to_rings;
use runtime::attach::Attached;
use runtime::worker::WorkerGone;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_user::message::protocol;
use vhost_user::{Device, Refused};
use virtqueue::Queue;

/// How long a file lock held by somebody else is waited for: a predecessor may just be going away.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// State of a disk saved by DEVICE_STATE: a version, then the cache mode.
const STATE_VERSION: u8 = 1;

/// A disk with its queues on the workers. Lives on the session thread of the disk.
pub struct BlkDevice {
    disk: Arc<Disk>,
    rings: Rings<Message>,
    locked: bool,
    /// A ring has been stopped, or the mode been set, on this connection: how the guest caches is known.
    mode_known: bool,
}

/// A disk could not be given to its workers.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A worker has failed.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// A worker cannot do I/O on the file.
    #[error("A worker cannot use the disk: {0}")]
    File(#[from] io::Error),
}

impl BlkDevice {
    /// Makes the disk known to the workers that will have its queues.
    pub fn new(disk: Arc<Disk>, attached: Attached<Message>) -> Result<Self, AttachError> {
        let device = attached.device();
        let added =
            tell_each(attached.workers(), |reply| Message::Add { device, disk: disk.clone(), reply })?;
        added.into_iter().collect::<io::Result<()>>()?;
        let rings = Rings::new(disk.id(), attached);
        Ok(Self { disk, rings, locked: false, mode_known: false })
    }

    /// Takes the lock on the file when the first ring starts. It is not held before, so that a migration
    /// within one host, whose two daemons have the same file open, can hand over.
    fn lock(&mut self) {
        if self.locked {
            return;
        }
        let deadline = Instant::now() + LOCK_PATIENCE;
        let outcome = loop {
            match self.disk.lock(true) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                outcome => break outcome,
            }
        };
        if let Err(error) = &outcome {
            tracing::error!(disk = self.disk.id(), %error, "Another process has locked the file: every request fails");
        }
        self.locked = outcome.is_ok();
        self.disk.set_locked_out(outcome.is_err());
    }

    fn unlock_if_idle(&mut self) {
        if self.rings.attached().running() > 0 {
            return;
        }
        self.disk.set_in_use(false);
        if self.locked {
            if let Err(error) = self.disk.lock(false) {
                tracing::warn!(disk = self.disk.id(), %error, "The lock on the file cannot be dropped");
            }
            self.locked = false;
        }
    }

    /// Whether the ring has been used before: by a driver that this process may not know.
    fn resumes(&self, queue: &Queue) -> bool {
        let fresh = if self.disk.negotiated() & VIRTIO_F_RING_PACKED != 0 { 0x8000_8000 } else { 0 };
        queue.base() != fresh
    }

    fn set_writeback(&mut self, value: u8) -> Result<(), Refused> {
        if self.disk.offered() & VIRTIO_BLK_F_CONFIG_WCE == 0 {
            return Err(Refused("the cache mode cannot be changed"));
        }
        if value > 1 {
            return Err(Refused("writeback is neither 0 nor 1"));
        }
        self.mode_known = true;
        self.disk.set_writeback(value == 1).map_err(|error| {
            tracing::error!(disk = self.disk.id(), %error, "Earlier writes cannot be made stable");
            Refused("earlier writes could not be made stable")
        })
    }
}

impl Device for BlkDevice {
    fn max_queues(&self) -> u16 {
        self.disk.options().num_queues
    }

    fn features(&self) -> u64 {
        self.disk.offered()
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG | protocol::DEVICE_STATE
    }

    fn max_queue_size(&self) -> u16 {
        self.disk.options().queue_size
    }

    fn read_config(&self, offset: usize, buf: &mut [u8]) {
        // A frontend that (re)connects sees the size that the file has by now.
        self.disk.take_growth();
        self.disk.config().read(offset, buf);
    }

    /// Only `writeback` can be written. A frontend that restores a migrated guest may write all of it.
    fn write_config(&mut self, offset: usize, data: &[u8], migration: bool) -> Result<(), Refused> {
        let field = WRITEBACK_OFFSET.checked_sub(offset).and_then(|at| data.get(at));
        match field {
            Some(value) if data.len() == 1 || migration => self.set_writeback(*value),
            None if migration => Ok(()),
            _ => Err(Refused("only the cache mode can be written")),
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.disk.negotiate(features);
    }

    forward_to_rings!(rings);

    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        self.lock();
        if !self.mode_known && self.resumes(&queue) {
            self.disk.resumed_elsewhere();
        }
        self.disk.set_in_use(true);
        self.rings.start_queue(index, queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        let stopped = self.rings.stop_queue(index);
        self.mode_known |= stopped.is_some();
        self.unlock_if_idle();
        stopped
    }

    fn disconnected(&mut self) {
        self.rings.disconnected();
        self.unlock_if_idle();
        self.mode_known = false;
    }

    fn save_state(&mut self) -> Result<Vec<u8>, Refused> {
        Ok(vec![STATE_VERSION, self.disk.writeback().into()])
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), Refused> {
        match *state {
            [STATE_VERSION, writeback] if self.disk.writeback() == (writeback == 1) => Ok(()),
            [STATE_VERSION, writeback] => self.set_writeback(writeback),
            _ => Err(Refused("the saved state is not one of a disk")),
        }
    }
}

impl Drop for BlkDevice {
    /// The workers let go of the disk, so that its file can be closed.
    fn drop(&mut self) {
        self.disconnected();
        let device = self.rings.attached().device();
        let_go(self.rings.attached().workers(), |reply| Message::Remove { device, reply });
    }
}
