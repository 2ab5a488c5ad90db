//! Messages to the front-end (vhost-user: Back-end communication).
//!
//! The session never waits for the front-end here: QEMU reads the configuration space on the main socket before it
//! acknowledges a change of it. A message is sent when the socket has room, its acknowledgement is taken when it comes, and
//! until then further changes wait and become one message.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use zerocopy::IntoBytes;

use super::refusal::Refusal;
use super::{Answer, Handled, Session};
use crate::connection::{Connection, ConnectionError};
use crate::message::{BackendRequest, HEADER_LEN, Header, Word, flags, protocol};
use crate::scm;

/// The socket of `SET_BACKEND_REQ_FD`.
pub(super) struct BackChannel {
    connection: Connection,
    /// Code of the request whose acknowledgement is outstanding.
    awaited: Option<BackendRequest>,
    /// The socket was full.
    full: bool,
}

impl BackChannel {
    pub(super) fn pollfd(&self) -> libc::pollfd {
        let out = if self.full { libc::POLLOUT } else { 0 };
        scm::pollfd(self.connection.as_fd(), libc::POLLIN | out)
    }

    /// Sends a request without payload unless the socket is full. A Unix socket takes so few bytes whole or not at all.
    fn try_send(&mut self, request: BackendRequest, need_reply: bool) -> io::Result<bool> {
        let header = Header::request(request.into(), if need_reply { flags::NEED_REPLY } else { 0 }, 0);
        match scm::send(self.connection.as_fd(), header.as_bytes(), &[]) {
            Ok(HEADER_LEN) => {
                self.full = false;
                self.awaited = need_reply.then_some(request);
                Ok(true)
            }
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.full = true;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Takes an acknowledgement.
    fn receive(&mut self) -> Result<(), ConnectionError> {
        let message = self.connection.receive(None)?;
        let code = BackendRequest::from_code(message.header.request.get());
        let value = message.payload::<Word>().map(|word| word.value.get());
        if self.awaited.is_none() || code != self.awaited || !message.header.is_reply() {
            tracing::warn!(code = message.header.request.get(), "unexpected message on the back channel");
            return Ok(());
        }
        self.awaited = None;
        if value != Some(0) {
            tracing::warn!(
                request = code.map_or("unknown", BackendRequest::name),
                ?value,
                "front-end refused"
            );
        }
        Ok(())
    }
}

impl Session<'_> {
    pub(super) fn set_back_channel(&mut self, fd: OwnedFd) -> Handled {
        // Also fails when the descriptor is no socket.
        let kind = scm::socket_option(fd.as_fd(), libc::SO_TYPE)?;
        if kind != libc::SOCK_STREAM {
            return Err(Refusal::BadValue(kind as u64));
        }
        let mut connection = Connection::new(UnixStream::from(fd));
        connection.stop_by(self.handle.stop_event().clone());
        self.back = Some(BackChannel { connection, awaited: None, full: false });
        Ok(Answer::Done)
    }

    /// Takes what the front-end has sent on the back channel; forgets a channel that is closed.
    pub(super) fn receive_on_back_channel(&mut self) {
        if let Some(back) = &mut self.back
            && let Err(error) = back.receive()
        {
            tracing::debug!(%error, "back channel closed");
            self.back = None;
        }
    }

    /// Sends a due `BACKEND_CONFIG_CHANGE_MSG` if that is possible now. It waits while no ring runs: a suspended device sends
    /// nothing (vhost-user: Suspended device state), and QEMU would ignore it.
    pub(super) fn announce_config_change(&mut self) {
        let able = self.has_protocol(protocol::BACKEND_REQ) && self.has_protocol(protocol::CONFIG);
        let suspended = self.rings.iter().all(|ring| ring.running.is_none());
        if !self.config_change_due || !able || suspended {
            return;
        }
        let need_reply = self.has_protocol(protocol::REPLY_ACK);
        let Some(back) = self.back.as_mut().filter(|back| back.awaited.is_none()) else { return };
        match back.try_send(BackendRequest::ConfigChangeMsg, need_reply) {
            Ok(sent) => self.config_change_due = !sent,
            Err(error) => {
                tracing::warn!(%error, "configuration change could not be announced");
                self.back = None;
            }
        }
    }
}
