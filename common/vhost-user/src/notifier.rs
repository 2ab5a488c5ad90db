//! How the rest of the process reaches a session thread: configuration changes, shutdown, and a snapshot of its state.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::scm;

/// What a session is doing, for `status` output. A copy; never on the data path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// A front-end is connected.
    pub connected: bool,
    /// Process id of the front-end.
    pub peer_pid: Option<i32>,
    /// Connections so far, the current one included.
    pub connections: u64,
    /// Of these, those that the log does not speak of, because there were too many.
    pub connections_unlogged: u64,
    /// Connections during which another front-end connected, and had to wait.
    pub waits: u64,
    /// Virtio features negotiated, `LOG_ALL` and `PROTOCOL_FEATURES` included.
    pub features: u64,
    /// Protocol features negotiated.
    pub protocol_features: u64,
    /// Virtio device status last written by the driver.
    pub device_status: u8,
    /// Memory regions mapped.
    pub memory_regions: usize,
    /// Bytes of guest memory mapped.
    pub memory_bytes: u64,
    /// Writes to guest memory are being logged.
    pub logging: bool,
    /// In-flight requests are tracked in memory shared with the front-end.
    pub inflight: bool,
    /// Messages refused on the current connection.
    pub refused: u64,
    /// Rings the front-end has touched.
    pub rings: Vec<RingStatus>,
}

impl SessionStatus {
    /// What is left when the connection is gone: the counters.
    pub(crate) fn disconnected(&self) -> Self {
        let Self { connections, connections_unlogged, waits, .. } = *self;
        Self { connections, connections_unlogged, waits, ..Self::default() }
    }
}

/// One ring in a [`SessionStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStatus {
    /// Ring index.
    pub index: u16,
    /// Ring size, 0 if not set.
    pub size: u16,
    /// The ring runs.
    pub started: bool,
    /// The ring is enabled.
    pub enabled: bool,
}

#[derive(Debug)]
struct Shared {
    /// Readable when there is something to look at.
    wake: EventFd,
    /// Readable, for ever, once the session shall end; never emptied.
    stop: Arc<EventFd>,
    stopping: AtomicBool,
    config_changed: AtomicBool,
    status: Mutex<SessionStatus>,
}

impl Shared {
    fn wake(&self) {
        // A full counter wakes just as well, so the result does not matter.
        let _ = self.wake.write(1);
    }

    fn status(&self) -> MutexGuard<'_, SessionStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaches the session thread from anywhere; cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<Shared>);

/// The session's end of a [`Notifier`], for [`serve`](crate::serve).
#[derive(Debug)]
pub struct NotifierHandle(Arc<Shared>);

impl Notifier {
    /// A notifier and the handle to give to [`serve`](crate::serve).
    pub fn new() -> io::Result<(Self, NotifierHandle)> {
        let shared = Arc::new(Shared {
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            stop: Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?),
            stopping: AtomicBool::new(false),
            config_changed: AtomicBool::new(false),
            status: Mutex::default(),
        });
        Ok((Self(shared.clone()), NotifierHandle(shared)))
    }

    /// The configuration space has changed: the front-end is told by `BACKEND_CONFIG_CHANGE_MSG`, if it has a back channel.
    /// Several changes in a row may become one message.
    pub fn config_changed(&self) {
        self.0.config_changed.store(true, Ordering::Release);
        self.0.wake();
    }

    /// Ends [`serve`](crate::serve): the connection is closed, I/O in flight completes, the socket file is removed.
    pub fn shutdown(&self) {
        self.0.stopping.store(true, Ordering::Release);
        let _ = self.0.stop.write(1);
    }

    /// What the session is doing.
    pub fn status(&self) -> SessionStatus {
        self.0.status().clone()
    }
}

impl NotifierHandle {
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        scm::borrow(&self.0.wake)
    }

    /// Empties the eventfd. Must come before the flags are read, so that none is lost.
    pub(crate) fn drain(&self) {
        let _ = self.0.wake.read();
    }

    pub(crate) fn stop_event(&self) -> &Arc<EventFd> {
        &self.0.stop
    }

    pub(crate) fn stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn take_config_changed(&self) -> bool {
        self.0.config_changed.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut SessionStatus)) {
        change(&mut self.0.status());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_change_is_taken_once_and_wakes() {
        let (notifier, handle) = Notifier::new().unwrap();
        notifier.config_changed();
        notifier.config_changed();
        assert!(scm::wait(&mut [scm::pollfd(handle.wake_fd(), libc::POLLIN)], None).unwrap());
        handle.drain();
        assert!(handle.take_config_changed());
        assert!(!handle.take_config_changed());
        assert!(!handle.stopping());
    }

    #[test]
    fn status_is_a_copy_of_the_last_update() {
        let (notifier, handle) = Notifier::new().unwrap();
        handle.update(|status| status.connections = 3);
        let copy = notifier.clone().status();
        handle.update(|status| status.connections = 4);
        assert_eq!(copy.connections, 3);
        assert_eq!(notifier.status().connections, 4);
    }
}
