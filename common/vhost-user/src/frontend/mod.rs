//! The front-end's half of the protocol: a client for any vhost-user back-end, ours or another.
//!
//! [`Frontend`] has one method for each message, and [`Frontend::send_raw`] for messages no sane front-end would send.
//! [`driver::Session`] does the whole handshake; [`BackChannel`] receives what the back-end has to say.

mod back_channel;
pub mod driver;
mod requests;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::back_channel::{BackChannel, FromBackend};
pub use self::requests::InflightFd;
use crate::connection::{Connection, ConnectionError, Message};
use crate::message::{Header, Request, Word, flags, protocol};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The connection cannot go on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The back-end answered with an error.
    #[error("Back-end refused {request} with {value}")]
    Refused {
        /// What was asked.
        request: Request,
        /// The acknowledgement, not zero.
        value: u64,
    },
    /// The reply does not fit the request.
    #[error("Back-end sent a malformed reply to {0}")]
    BadReply(Request),
    /// The back-end does not offer what the caller cannot do without.
    #[error("Back-end does not offer {0}")]
    Missing(&'static str),
    /// The caller's memory or rings do not fit the request.
    #[error("{0}")]
    Invalid(&'static str),
    /// A ring cannot be set up in the caller's memory.
    #[error("Ring cannot be set up: {0}")]
    Ring(#[from] virtqueue::SetupError),
    /// The operating system said no.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, FrontendError>;

/// How long the back-end may take for a reply; a drain before `GET_VRING_BASE` is included.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a back-end.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    protocol: u64,
    reply_timeout: Duration,
}

impl Frontend {
    /// Connects to a back-end that listens.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::from_stream(UnixStream::connect(path)?))
    }

    /// Uses a connected socket.
    pub fn from_stream(socket: UnixStream) -> Self {
        let connection = Connection::new(socket);
        Self { connection, protocol: 0, reply_timeout: REPLY_TIMEOUT }
    }

    /// Changes how long the back-end may take for a reply.
    pub fn set_reply_timeout(&mut self, timeout: Duration) {
        self.reply_timeout = timeout;
    }

    /// Protocol features negotiated so far.
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Process id of the back-end.
    pub fn peer_pid(&self) -> Result<i32> {
        Ok(self.connection.peer_pid()?)
    }

    /// Sends a message with any code, flags (version included) and payload, and waits for nothing.
    pub fn send_raw(&mut self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let header = Header { request: code.into(), flags: flags.into(), size: (body.len() as u32).into() };
        Ok(self.connection.send(header, body, fds)?)
    }

    /// Sends bytes that need not be a message.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        Ok(self.connection.send_bytes(bytes, fds)?)
    }

    /// Receives the next message, whatever it is.
    pub fn receive_raw(&mut self) -> Result<Message> {
        Ok(self.connection.receive(Some(Instant::now() + self.reply_timeout))?)
    }

    /// Sends a request that has no reply of its own; waits for its acknowledgement if they are negotiated and wanted.
    pub fn request(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let acknowledged = self.protocol & protocol::REPLY_ACK != 0;
        let extra = if acknowledged { flags::NEED_REPLY } else { 0 };
        self.connection.send(Header::request(request.into(), extra, body.len()), body, fds)?;
        if !acknowledged {
            return Ok(());
        }
        match self.reply::<Word>(request)?.value.get() {
            0 => Ok(()),
            value => Err(FrontendError::Refused { request, value }),
        }
    }

    /// Sends a request and receives its reply.
    pub fn query(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message> {
        self.connection.send(Header::request(request.into(), 0, body.len()), body, fds)?;
        self.reply_message(request)
    }

    fn query_word(&mut self, request: Request) -> Result<u64> {
        let message = self.query(request, &[], &[])?;
        message.payload::<Word>().map(|word| word.value.get()).ok_or(FrontendError::BadReply(request))
    }

    fn request_payload(&mut self, request: Request, payload: &(impl IntoBytes + Immutable)) -> Result<()> {
        self.request(request, payload.as_bytes(), &[])
    }

    fn reply<T: FromBytes + KnownLayout + Immutable>(&mut self, request: Request) -> Result<T> {
        self.reply_message(request)?.payload().ok_or(FrontendError::BadReply(request))
    }

    fn reply_message(&mut self, request: Request) -> Result<Message> {
        let message = self.receive_raw()?;
        if message.header.is_reply() && message.header.request.get() == u32::from(request) {
            Ok(message)
        } else {
            Err(FrontendError::BadReply(request))
        }
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
