//! What a device gives to the session that serves it.

use std::io;
use std::sync::Arc;

use memory::{DirtyLog, MemoryTable};
use virtqueue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// The device refuses a request; the session tells the front-end if the protocol has a way to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Refused by the device: {0}")]
pub struct Refused(pub &'static str);

const UNSUPPORTED: Refused = Refused("not supported");

/// A vhost-user device as its session sees it.
///
/// All methods are called on the session's own thread, one at a time; they may block (a drain waits for the I/O in flight)
/// and never run concurrently with each other. A device keeps its rings on worker threads and forwards to them; the session
/// never touches a ring between [`Device::start_queue`] and [`Device::stop_queue`].
///
/// # Life of a ring
///
/// A queue is started at most once before it is stopped again. It starts *disabled*; [`Device::enable_queue`] follows at
/// once if the front-end has enabled it, and whenever that changes. `enable_queue(index, true)` for an enabled queue is a
/// kick: the device must look at the ring. A newly started or enabled ring must be looked at without waiting for a kick.
pub trait Device: Send {
    /// Number of queues, at most 256.
    fn max_queues(&self) -> u16;

    /// Virtio feature bits offered, ring features included; without `LOG_ALL` (26) and `PROTOCOL_FEATURES` (30), which the
    /// session adds.
    fn features(&self) -> u64;

    /// Protocol features offered on top of the session's own: `CONFIG`, `STATUS`, `NET_MTU`, `RARP`, `CRYPTO_SESSION`,
    /// `DEVICE_STATE`.
    fn protocol_features(&self) -> u64 {
        0
    }

    /// Largest ring size accepted.
    fn max_queue_size(&self) -> u16 {
        1024
    }

    /// Rings need no `SET_VRING_ENABLE`, although protocol features are negotiated. QEMU's cryptodev never sends it. A ring
    /// for which it is sent all the same obeys it. Asked whenever a ring starts.
    fn rings_start_enabled(&self) -> bool {
        false
    }

    /// What the front-end says in `SET_FEATURES` is not what the driver negotiated, so rings must suit any driver
    /// ([`Queue::assume_any_driver`]). QEMU's cryptodev acknowledges `PROTOCOL_FEATURES` and nothing else, whatever the
    /// driver has. Asked whenever a ring starts.
    fn driver_features_unknown(&self) -> bool {
        false
    }

    /// Fills `buf` from the configuration space at `offset`; zeros beyond its end.
    fn read_config(&self, offset: usize, buf: &mut [u8]);

    /// Writes the configuration space. `migration`: restored by live migration, so read-only fields may come along and must
    /// not be refused.
    ///
    /// Do not let them take effect, though: crate `vhost`, and with it cloud-hypervisor, marks every write of the guest like
    /// this, so `migration` says nothing about who wrote.
    fn write_config(&mut self, offset: usize, data: &[u8], migration: bool) -> Result<(), Refused> {
        let _ = (offset, data, migration);
        Err(Refused("the configuration space is read-only"))
    }

    /// The front-end has chosen these features (a subset of [`Device::features`]). No ring runs.
    fn negotiated(&mut self, features: u64);

    /// The front-end has chosen these protocol features, maybe once more: QEMU's cryptodev repeats the handshake for each
    /// queue. After a disconnection none are chosen.
    fn protocol_negotiated(&mut self, features: u64) {
        let _ = features;
    }

    /// Guest memory has changed. Returns once every worker uses the new table. A running ring keeps its guest addresses and
    /// must be translated anew; the session has made sure that it can be.
    fn set_memory(&mut self, table: Arc<MemoryTable>);

    /// Live migration begins (`Some`) or ends: every running queue logs its writes, and so does one started later (its
    /// setup already has the log). Returns once every worker has switched.
    fn set_log(&mut self, log: Option<Arc<DirtyLog>>);

    /// A ring begins to run, disabled. The thread that serves it begins with [`Queue::interrupt`], and so after each
    /// [`set_call`](Self::set_call); the session never writes an event that it might have to wait for.
    fn start_queue(&mut self, index: u16, queue: Box<Queue>);

    /// The ring ends: nothing is fetched any more, I/O in flight completes, and the ring is given back drained. `None` if it does not
    /// run.
    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>>;

    /// Replaces the interrupt of a running ring; `None`: the driver polls.
    fn set_call(&mut self, index: u16, call: Option<EventFd>);

    /// Replaces the error event of a running ring.
    fn set_err(&mut self, index: u16, err: Option<EventFd>);

    /// Enables or disables a running ring; see the life of a ring above.
    fn enable_queue(&mut self, index: u16, enabled: bool);

    /// The driver wrote the virtio device status; all rings are stopped when it is 0. That is a reset for virtio, but QEMU
    /// also writes it when it only pauses the device, and goes on later without restoring any configuration.
    fn set_status(&mut self, status: u8) {
        let _ = status;
    }

    /// The status the front-end reads: what the driver wrote last, and `DEVICE_NEEDS_RESET` if the device wants to add it.
    fn status(&self, written: u8) -> u8 {
        written
    }

    /// `RESET_DEVICE`: back to the initial state. All rings are stopped.
    fn reset(&mut self) {}

    /// The connection is gone: stop every queue (I/O in flight completes) and forget what was negotiated.
    fn disconnected(&mut self);

    /// `NET_SET_MTU`.
    fn set_mtu(&mut self, mtu: u16) -> Result<(), Refused> {
        let _ = mtu;
        Err(UNSUPPORTED)
    }

    /// `SEND_RARP`: announce this address on the network.
    fn rarp(&mut self, mac: [u8; 6]) -> Result<(), Refused> {
        let _ = mac;
        Err(UNSUPPORTED)
    }

    /// `CREATE_CRYPTO_SESSION`: the description as it came, 632 or 1,072 bytes. Returns the session identifier, at most
    /// `i64::MAX`. The front-end (QEMU under its big lock) waits, so this must be quick. The description holds keys; the
    /// session wipes it afterwards.
    fn create_crypto_session(&mut self, description: &[u8]) -> Result<u64, Refused> {
        let _ = description;
        Err(UNSUPPORTED)
    }

    /// `CLOSE_CRYPTO_SESSION`.
    fn close_crypto_session(&mut self, id: u64) -> Result<(), Refused> {
        let _ = id;
        Err(UNSUPPORTED)
    }

    /// `SET_DEVICE_STATE_FD`, save: the whole internal state. All rings are stopped.
    fn save_state(&mut self) -> Result<Vec<u8>, Refused> {
        Err(UNSUPPORTED)
    }

    /// `CHECK_DEVICE_STATE` after a load: the whole state has arrived. All rings are stopped.
    fn load_state(&mut self, state: &[u8]) -> Result<(), Refused> {
        let _ = state;
        Err(UNSUPPORTED)
    }

    /// `GPU_SET_SOCKET`.
    fn set_gpu_socket(&mut self, socket: std::os::fd::OwnedFd) -> Result<(), Refused> {
        let _ = socket;
        Err(UNSUPPORTED)
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        io::Error::other(refused)
    }
}
