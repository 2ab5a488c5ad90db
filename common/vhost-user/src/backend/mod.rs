//! The back-end's half of the protocol: one [`Session`] per connection.
//!
//! A session is a value: it owns everything a connection brings with it (sockets, mappings, eventfds) and is dropped when
//! the connection ends. The device outlives it.
//!
//! | file | messages |
//! |---|---|
//! | `dispatch.rs` | which handler takes which request, acknowledgements |
//! | `negotiate.rs` | features, owner, status, reset, configuration space, device extras |
//! | `memory.rs` | memory regions, dirty log |
//! | `rings.rs` | `SET_VRING_*`, `GET_VRING_BASE`, start and stop |
//! | `inflight.rs` | `GET/SET_INFLIGHT_FD` |
//! | `state.rs` | `SET_DEVICE_STATE_FD`, `CHECK_DEVICE_STATE` |
//! | `back_channel.rs` | messages to the front-end |

mod back_channel;
mod dispatch;
mod inflight;
mod memory;
mod negotiate;
mod refusal;
mod rings;
mod state;
mod vring;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use ::memory::{DirtyLog, MemoryMap, MemoryTable};
use virtqueue::RingFeatures;

use self::back_channel::BackChannel;
use self::inflight::InflightRegion;
use self::state::Transfer;
use self::vring::Vring;
use crate::connection::{Connection, ConnectionError};
use crate::device::Device;
use crate::log::ConnectionLog;
use crate::message::{MAX_VRINGS, features, protocol};
use crate::notifier::{NotifierHandle, RingStatus};
use crate::scm;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The connection cannot go on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A message failed whose failure the front-end could not be told.
    #[error("{request} failed and the front-end cannot be told: {reason}")]
    Unanswerable { request: &'static str, reason: String },
}

/// Protocol features that every device has, because the session implements them.
const OWN_PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::BACKEND_SEND_FD
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// Protocol features a device may add.
const DEVICE_PROTOCOL_FEATURES: u64 = protocol::CONFIG
    | protocol::RARP
    | protocol::NET_MTU
    | protocol::CRYPTO_SESSION
    | protocol::DEVICE_STATE
    | protocol::STATUS;

/// A connection that has just been made.
pub(crate) struct Arrival<'d> {
    pub connection: Connection,
    /// Process id of the front-end.
    pub peer_pid: Option<i32>,
    /// Where the next one comes from.
    pub listener: Option<BorrowedFd<'d>>,
    pub log: &'d ConnectionLog,
}

/// One connection to a front-end.
pub(crate) struct Session<'d> {
    device: &'d mut dyn Device,
    handle: &'d NotifierHandle,
    connection: Connection,
    peer_pid: Option<i32>,
    /// Readable when another front-end has connected; `None` once that is known.
    listener: Option<BorrowedFd<'d>>,
    log: &'d ConnectionLog,
    /// `SET_FEATURES` as it came.
    features: Option<u64>,
    protocol: u64,
    memory: MemoryMap,
    rings: Vec<Vring>,
    /// `SET_LOG_BASE`; in use while `LOG_ALL` is set.
    dirty_log: Option<Arc<DirtyLog>>,
    inflight: Option<InflightRegion>,
    back: Option<BackChannel>,
    config_change_due: bool,
    transfer: Option<Transfer>,
    device_status: u8,
    refused: u64,
}

impl<'d> Session<'d> {
    /// A session on a fresh connection.
    pub fn new(device: &'d mut dyn Device, handle: &'d NotifierHandle, arrival: Arrival<'d>) -> Self {
        let Arrival { mut connection, peer_pid, listener, log } = arrival;
        connection.stop_by(handle.stop_event().clone());
        let count = device.max_queues().min(MAX_VRINGS);
        Self {
            device,
            handle,
            connection,
            peer_pid,
            listener,
            log,
            features: None,
            protocol: 0,
            memory: MemoryMap::new(),
            rings: std::iter::repeat_with(Vring::default).take(count.into()).collect(),
            dirty_log: None,
            inflight: None,
            back: None,
            config_change_due: false,
            transfer: None,
            device_status: 0,
            refused: 0,
        }
    }

    /// Serves the connection until it ends.
    pub fn run(&mut self) -> SessionError {
        loop {
            if let Err(error) = self.turn() {
                return error;
            }
        }
    }

    /// Some ring was started: the handshake went through.
    pub fn was_useful(&self) -> bool {
        self.rings.iter().any(|ring| ring.started)
    }

    /// Waits for something to happen and handles it.
    fn turn(&mut self) -> Result<(), SessionError> {
        let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let mut fds = [
            scm::pollfd(self.connection.as_fd(), libc::POLLIN),
            scm::pollfd(scm::borrow(self.handle.stop_event()), libc::POLLIN),
            scm::pollfd(self.handle.wake_fd(), libc::POLLIN),
            self.back.as_ref().map_or(nothing, BackChannel::pollfd),
            self.transfer.as_ref().and_then(Transfer::pollfd).unwrap_or(nothing),
            self.listener.map_or(nothing, |listener| scm::pollfd(listener, libc::POLLIN)),
        ];
        scm::wait(&mut fds, None).map_err(ConnectionError::from)?;
        let [main, stop, wake, back, transfer, another] = fds.map(|fd| fd.revents);
        if stop != 0 {
            return Err(ConnectionError::Stopped.into());
        }
        if wake != 0 {
            self.handle.drain();
            self.config_change_due |= self.handle.take_config_changed();
        }
        if back & !libc::POLLOUT != 0 {
            self.receive_on_back_channel();
        }
        if transfer != 0
            && let Some(transfer) = &mut self.transfer
        {
            transfer.advance();
        }
        if main != 0 {
            let message = self.connection.receive(None)?;
            self.handle_message(message)?;
            self.publish_status();
        }
        self.announce_config_change();
        if another != 0 {
            self.another_waits()?;
        }
        Ok(())
    }

    /// Said once a connection: the listener stays readable until this one ends.
    fn another_waits(&mut self) -> Result<(), ConnectionError> {
        // A front-end that comes back at once has closed its old connection before, and that is still to be read.
        let mut main = [scm::pollfd(self.connection.as_fd(), libc::POLLIN)];
        if !scm::wait(&mut main, Some(Instant::now()))? {
            self.listener = None;
            self.handle.update(|status| status.waits += 1);
            self.log.another_waits(self.peer_pid);
        }
        Ok(())
    }

    /// A bit of `SET_FEATURES`.
    fn has_feature(&self, bit: u64) -> bool {
        self.features.unwrap_or(0) & bit != 0
    }

    fn has_protocol(&self, bit: u64) -> bool {
        self.protocol & bit != 0
    }

    fn ring_features(&self) -> RingFeatures {
        RingFeatures::from_bits(self.features.unwrap_or(0))
    }

    /// The log to write, if logging is on.
    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        self.dirty_log.clone().filter(|_| self.has_feature(features::LOG_ALL))
    }

    fn offered_protocol_features(&self) -> u64 {
        OWN_PROTOCOL_FEATURES | (self.device.protocol_features() & DEVICE_PROTOCOL_FEATURES)
    }

    /// Copies what `status` shows.
    pub fn publish_status(&self) {
        let regions = self.memory.table().regions();
        let (count, bytes) = regions.fold((0, 0), |(n, bytes), region| (n + 1, bytes + region.len));
        let rings = self.rings.iter().enumerate().filter(|(_, ring)| ring.touched());
        let rings = rings.map(|(index, ring)| RingStatus {
            index: index as u16,
            size: ring.size.unwrap_or(0),
            started: ring.running.is_some(),
            enabled: ring.enabled,
        });
        let (rings, logging) = (rings.collect(), self.active_log().is_some());
        self.handle.update(|status| {
            status.features = self.features.unwrap_or(0);
            status.protocol_features = self.protocol;
            status.device_status = self.device_status;
            status.memory_regions = count;
            status.memory_bytes = bytes;
            status.logging = logging;
            status.inflight = self.inflight.is_some();
            status.refused = self.refused;
            status.rings = rings;
        });
    }
}

impl Drop for Session<'_> {
    /// Leaves the device as if nobody had ever connected; I/O in flight completes first.
    fn drop(&mut self) {
        self.device.disconnected();
        self.device.set_log(None);
        self.device.set_memory(MemoryTable::empty());
    }
}

/// What a request handler leaves to be said.
enum Answer {
    /// The request has no reply of its own: an acknowledgement if one was asked for.
    Done,
    /// The request's own reply.
    Reply { body: Vec<u8>, fd: Option<OwnedFd> },
    /// A reply with keys in it, of which nothing may stay in memory.
    Secret { body: Vec<u8> },
}

impl Answer {
    fn word(value: u64) -> Self {
        Self::Reply { body: value.to_ne_bytes().to_vec(), fd: None }
    }

    fn body(bytes: &[u8]) -> Self {
        Self::Reply { body: bytes.to_vec(), fd: None }
    }
}

type Handled = Result<Answer, refusal::Refusal>;
