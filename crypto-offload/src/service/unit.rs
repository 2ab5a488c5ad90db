//! A device as its session thread and its workers share it.

use crate::session::{SessionId, Sessions};
use crate::stats::{QueueSnapshot, QueueStats};
use crate::vault::DeviceVault;
use crate::wire::request::Layout;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a device is like.
pub struct UnitOptions {
    /// Its name, for messages and statistics.
    pub id: String,
    /// Data queues: `max_dataqueues` of the configuration space. The control queue comes after them.
    pub data_queues: u16,
    /// Most entries of a ring.
    pub queue_size: u16,
    /// Most bytes of source data of a request: `max_size` of the configuration space.
    pub max_size: u64,
    /// Most sessions.
    pub sessions: u32,
    /// Where sessions are kept for a process that takes over.
    pub vault: Option<DeviceVault>,
}

/// A device.
pub struct Unit {
    id: String,
    data_queues: u16,
    queue_size: u16,
    max_size: AtomicU64,
    sessions: Arc<Sessions>,
    vault: Option<DeviceVault>,
    features: AtomicU64,
    stats: Box<[QueueStats]>,
}

impl Unit {
    /// A device that nothing was negotiated with, and with the sessions that a predecessor has left in the vault.
    pub fn new(options: UnitOptions) -> Self {
        let UnitOptions { id, data_queues, queue_size, max_size, sessions, vault } = options;
        let data_queues = data_queues.max(1);
        let made = Sessions::new(sessions, vault.clone());
        if let Some(vault) = &vault {
            restore(&id, vault, &made);
        }
        Self {
            id,
            data_queues,
            queue_size,
            max_size: AtomicU64::new(max_size),
            sessions: Arc::new(made),
            vault,
            features: AtomicU64::new(0),
            stats: (0..=data_queues).map(|_| QueueStats::default()).collect(),
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Data queues.
    pub fn data_queues(&self) -> u16 {
        self.data_queues
    }

    /// The index of the control queue: behind the data queues (virtio 1.3 §5.9.2).
    pub fn control_queue(&self) -> u16 {
        self.data_queues
    }

    /// Most entries of a ring.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// Most bytes of source data of a request.
    pub fn max_size(&self) -> u64 {
        self.max_size.load(Ordering::Relaxed)
    }

    /// Most bytes from now on. A driver that has read the configuration space may not know.
    pub fn set_max_size(&self, max_size: u64) {
        self.max_size.store(max_size, Ordering::Relaxed);
    }

    /// Its sessions.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Where its sessions are kept for a process that takes over.
    pub fn vault(&self) -> Option<&DeviceVault> {
        self.vault.as_ref()
    }

    /// The driver has accepted these feature bits; 0 when nobody knows which. Rings that run take it up with their next
    /// burst.
    pub fn negotiate(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// The feature bits in force.
    pub fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// What the feature bits in force say about the shape of requests.
    #[inline]
    pub fn layout(&self) -> Layout {
        Layout::of(self.features())
    }

    /// The counters of each queue, the control queue's last.
    pub fn queue_stats(&self) -> &[QueueStats] {
        &self.stats
    }

    /// The counters of all queues together.
    pub fn totals(&self) -> QueueSnapshot {
        let mut sum = QueueSnapshot::default();
        self.stats.iter().for_each(|stats| sum.merge(&stats.snapshot()));
        sum
    }
}

/// Makes the sessions again that a predecessor has left. What cannot be is forgotten: its requests will be told so.
fn restore(device: &str, vault: &DeviceVault, sessions: &Sessions) {
    let mut lost = 0;
    for entry in vault.entries() {
        let restored = match (SessionId::from_wire(entry.id()), entry.spec()) {
            (Some(id), Some(spec)) => sessions.restore(id, &spec).is_ok(),
            _ => false,
        };
        if !restored {
            vault.remove(entry.id());
            lost += 1;
        }
    }
    if lost > 0 {
        tracing::warn!(device, lost, "Sessions that a predecessor has left cannot be restored");
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("id", &self.id)
            .field("data_queues", &self.data_queues)
            .finish_non_exhaustive()
    }
}
