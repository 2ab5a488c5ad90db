//! One end of a vhost-user connection: whole messages with their file descriptors, bounded in size and, once a message has
//! begun, in time. The same codec serves the back-end and the front-end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroize;

use crate::message::{Header, MAX_BODY, MAX_FDS, VERSION, flags};
use crate::scm;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer closed the connection between two messages.
    #[error("Peer closed the connection")]
    Closed,
    /// The peer closed the connection inside a message.
    #[error("Peer closed the connection inside a message, {got} of {want} bytes arrived")]
    Partial {
        /// Bytes that arrived.
        got: usize,
        /// Bytes that were expected.
        want: usize,
    },
    /// The peer began a message and did not finish it, or does not read what we send.
    #[error("Peer stalled inside a message for {0:?}")]
    Stalled(Duration),
    /// The flags name another protocol version.
    #[error("Message of unknown protocol version, flags {0:#x}")]
    Version(u32),
    /// The payload is larger than any in the specification.
    #[error("Message {request} with {size} bytes of payload exceeds the limit of {MAX_BODY}")]
    TooLarge {
        /// Request code.
        request: u32,
        /// Announced payload bytes.
        size: u32,
    },
    /// Asked to stop while waiting.
    #[error("Stopped")]
    Stopped,
    /// The socket failed.
    #[error("Socket failed: {0}")]
    Io(#[from] io::Error),
}

/// One received message. Descriptors that nobody takes are closed with it.
#[derive(Debug)]
pub struct Message {
    /// Request code, flags, payload size.
    pub header: Header,
    /// The payload.
    pub body: Vec<u8>,
    /// The file descriptors that came along.
    pub fds: Vec<OwnedFd>,
    /// Some descriptors were lost: too many for one message, or for this process.
    pub fds_lost: bool,
}

impl Message {
    /// The payload as `T`, if it has exactly that size.
    pub fn payload<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        T::read_from_bytes(&self.body).ok()
    }

    /// The start of the payload as `T` and what follows it.
    pub fn prefix<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<(T, &[u8])> {
        T::read_from_prefix(&self.body).ok()
    }
}

/// A connected socket that speaks whole messages.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    patience: Duration,
    /// Ends every wait when readable.
    stop: Option<Arc<EventFd>>,
    /// Reused for outgoing messages.
    out: Vec<u8>,
}

impl Connection {
    /// How long a message that has begun may take until it is complete, unless [`Connection::set_patience`] changes it.
    pub const PATIENCE: Duration = Duration::from_secs(5);

    /// Wraps a connected socket.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, patience: Self::PATIENCE, stop: None, out: Vec::new() }
    }

    /// Changes how long a begun message may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Every wait ends with [`ConnectionError::Stopped`] once `stop` is readable.
    pub fn stop_by(&mut self, stop: Arc<EventFd>) {
        self.stop = Some(stop);
    }

    /// Process id of the peer at the time it connected.
    pub fn peer_pid(&self) -> io::Result<i32> {
        scm::peer_pid(self.as_fd())
    }

    /// Receives the next message. Waits for its first byte until `first` (`None`: for ever), then for the rest until the
    /// connection's patience ends.
    pub fn receive(&self, first: Option<Instant>) -> Result<Message, ConnectionError> {
        let mut incoming = Incoming { connection: self, deadline: first, fds: Vec::new(), fds_lost: false };
        let mut header = Header::request(0, 0, 0);
        incoming.fill(header.as_mut_bytes(), true)?;
        let size = header.size.get();
        if header.flags.get() & flags::VERSION_MASK != VERSION {
            return Err(ConnectionError::Version(header.flags.get()));
        }
        if size as usize > MAX_BODY {
            return Err(ConnectionError::TooLarge { request: header.request.get(), size });
        }
        let mut body = vec![0; size as usize];
        incoming.fill(&mut body, false)?;
        let Incoming { fds, fds_lost, .. } = incoming;
        Ok(Message { header, body, fds, fds_lost })
    }

    /// Sends one message; waits at most the connection's patience for the peer to make room.
    pub fn send(
        &mut self,
        header: Header,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        self.out.clear();
        self.out.extend_from_slice(header.as_bytes());
        self.out.extend_from_slice(body);
        let out = std::mem::take(&mut self.out);
        let result = self.send_bytes(&out, fds);
        self.out = out;
        result
    }

    /// Overwrites what the last message sent has left in memory.
    pub fn forget(&mut self) {
        self.out.zeroize();
    }

    /// Sends any bytes, well-formed or not.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ConnectionError> {
        let deadline = Instant::now() + self.patience;
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            match scm::send(self.as_fd(), &bytes[sent..], fds) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLOUT, Some(deadline))?
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(ConnectionError::Closed);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, events: i16, deadline: Option<Instant>) -> Result<(), ConnectionError> {
        let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let stop = self.stop.as_deref().map_or(nothing, |stop| scm::pollfd(scm::borrow(stop), libc::POLLIN));
        let mut fds = [scm::pollfd(self.as_fd(), events), stop];
        if !scm::wait(&mut fds, deadline)? {
            return Err(ConnectionError::Stalled(self.patience));
        }
        if fds[1].revents != 0 { Err(ConnectionError::Stopped) } else { Ok(()) }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message that is being received.
struct Incoming<'c> {
    connection: &'c Connection,
    deadline: Option<Instant>,
    fds: Vec<OwnedFd>,
    fds_lost: bool,
}

impl Incoming<'_> {
    /// Fills `buf` completely. `first`: its first byte begins the message, so the end of the stream is a plain hang-up.
    fn fill(&mut self, buf: &mut [u8], first: bool) -> Result<(), ConnectionError> {
        let want = buf.len();
        let mut got = 0;
        while got < want {
            match scm::receive(self.connection.as_fd(), &mut buf[got..], &mut self.fds) {
                Ok(received) if received.len == 0 => {
                    return Err(if first && got == 0 {
                        ConnectionError::Closed
                    } else {
                        ConnectionError::Partial { got, want }
                    });
                }
                Ok(received) => {
                    if first && got == 0 {
                        self.deadline = Some(Instant::now() + self.connection.patience);
                    }
                    self.fds_lost |= received.truncated || self.fds.len() > MAX_FDS;
                    self.fds.truncate(MAX_FDS);
                    got += received.len;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.connection.wait(libc::POLLIN, self.deadline)?;
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(ConnectionError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
