#![expect(unsafe_code, reason = "poll(2)")]
//! A device that a daemon serves on a socket, with this process in the place of QEMU and of the guest.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vhost_user::frontend::driver::{Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::features;
use virtqueue::RingAddresses;
use virtqueue::RingFeatures;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Doorbell, Identity, Transport, TransportError};
use crate::dma::Arena;

/// Both wrap counters of a packed ring start at 1, both indices at 0 (vhost-user: SET_VRING_BASE).
const PACKED_START: u32 = 0x8000_8000;

/// A connection to a daemon.
pub struct Socket {
    path: PathBuf,
    socket: Option<UnixStream>,
    session: Option<Session>,
}

impl Socket {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Self, TransportError> {
        let socket = UnixStream::connect(path)
            .map_err(|source| TransportError::Connect { path: path.display().to_string(), source })?;
        Ok(Self { path: path.to_owned(), socket: Some(socket), session: None })
    }

    /// On a socket that is connected already.
    pub fn on(socket: UnixStream) -> Self {
        Self { path: PathBuf::new(), socket: Some(socket), session: None }
    }

    fn session(&mut self) -> Result<&mut Session, TransportError> {
        self.session.as_mut().ok_or(TransportError::Stubborn("negotiate twice on one connection"))
    }
}

impl Transport for Socket {
    fn identity(&self) -> Identity {
        Identity::Unnamed
    }

    fn describe(&self) -> String {
        format!("socket {}", self.path.display())
    }

    fn negotiate(&mut self, wanted: u64) -> Result<u64, TransportError> {
        let socket =
            self.socket.take().ok_or(TransportError::Stubborn("negotiate twice on one connection"))?;
        let session = Session::negotiate(socket, wanted, USEFUL_PROTOCOL_FEATURES)?;
        let accepted = session.features() & !features::PROTOCOL_FEATURES;
        self.session = Some(session);
        if accepted & features::VERSION_1 == 0 { Err(TransportError::Legacy) } else { Ok(accepted) }
    }

    fn queues(&self) -> u16 {
        self.session.as_ref().map_or(0, Session::max_queues)
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError> {
        // The protocol has no message for it; all of our daemons take more than we ask for.
        if index < self.queues() { Ok(1024) } else { Err(TransportError::NoQueue(index)) }
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        Ok(self.session()?.get_config(offset, buf)?)
    }

    fn memory(&mut self, len: usize) -> Result<Arena, TransportError> {
        let arena = Arena::shared(len)?;
        let (region, fd) = arena.region();
        self.session()?.share_memory(&region, fd)?;
        Ok(arena)
    }

    fn start_queue(
        &mut self,
        index: u16,
        size: u16,
        addresses: &RingAddresses,
    ) -> Result<Doorbell, TransportError> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let (kick, call) = (event()?, event()?);
        let session = self.session()?;
        let packed = session.features() & RingFeatures::RING_PACKED != 0;
        let base = if packed { PACKED_START } else { 0 };
        session.start_queue(index, size, base, addresses, &kick, &call)?;
        Ok(Doorbell::Event { kick, call })
    }

    fn start(&mut self) -> Result<(), TransportError> {
        Ok(())
    }

    fn lost(&mut self) -> bool {
        self.session.as_ref().is_none_or(|session| hung_up(session.frontend.as_fd()))
    }
}

/// Whether the other end is closed.
fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one live entry, and no waiting.
    let count = unsafe { libc::poll(&mut entry, 1, 0) };
    count > 0 && entry.revents & (libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR) != 0
}
