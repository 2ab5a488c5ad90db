//! The receiving end of the back channel.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Frontend, Result};
use crate::connection::{Connection, ConnectionError, Message};
use crate::message::{BackendRequest, Header};

/// Our end of the socket of `SET_BACKEND_REQ_FD`.
#[derive(Debug)]
pub struct BackChannel {
    connection: Connection,
}

/// A request of the back-end.
#[derive(Debug)]
pub struct FromBackend {
    /// What it is; `None` for a code we do not know.
    pub request: Option<BackendRequest>,
    /// The whole message.
    pub message: Message,
}

impl Frontend {
    /// Makes a back channel and sends one end to the back-end.
    pub fn open_back_channel(&mut self) -> Result<BackChannel> {
        let (ours, theirs) = UnixStream::pair()?;
        self.set_backend_req_fd(theirs.as_fd())?;
        Ok(BackChannel { connection: Connection::new(ours) })
    }
}

impl BackChannel {
    /// Waits for a request of the back-end. `None` if there is none in this time.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<FromBackend>> {
        match self.connection.receive(Some(Instant::now() + timeout)) {
            Ok(message) => {
                let request = BackendRequest::from_code(message.header.request.get());
                Ok(Some(FromBackend { request, message }))
            }
            Err(ConnectionError::Stalled(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers a request, if it asks for that; zero is success.
    pub fn acknowledge(&mut self, header: Header, value: u64) -> Result<()> {
        if header.needs_reply() {
            self.connection.send(header.reply(8), &value.to_ne_bytes(), &[])?;
        }
        Ok(())
    }
}

impl AsFd for BackChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
