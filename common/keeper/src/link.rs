//! The connection to the worker of the moment.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost_user::connection::{Connection, ConnectionError, Message};
use vhost_user::message::{Header, Request, Word, features, flags, protocol};
use vmm_sys_util::eventfd::EventFd;

use crate::back_channel::BackChannel;
use crate::messages::{self, OWN};
use crate::shared::Shared;
use crate::sys;

/// How long after the end of a connection its worker may be found dead. Too short costs a guest its device when the thread that
/// finds it is held up; too long only delays the end of connections that a worker ends on purpose.
const DEATH: Duration = Duration::from_secs(5);
/// How long a worker may take over a message it has begun to send: it may have been stopped in the middle.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the worker does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The connection is gone.
    #[error("the worker is gone")]
    Lost,
    /// The worker says what no back-end says.
    #[error("the worker does not answer {0} as a back-end does")]
    Garbled(&'static str),
    /// The worker lacks something.
    #[error("the worker does not offer {0}")]
    Missing(&'static str),
    /// The worker refuses what its predecessor had accepted.
    #[error("the worker refuses {0}, which its predecessor had accepted")]
    Refused(&'static str),
    /// The process ends.
    #[error("the process ends")]
    Stopped,
}

/// Hands connections to workers: each finds those that its predecessor did not take.
pub(crate) struct Handover {
    channel: Connection,
    /// Written when a worker has died.
    death: Arc<EventFd>,
    shared: Arc<Shared>,
}

impl Handover {
    pub fn new(channel: OwnedFd, death: Arc<EventFd>, shared: Arc<Shared>) -> Self {
        Self { channel: Connection::new(UnixStream::from(channel)), death, shared }
    }

    /// Makes a connection and hands its other end over.
    pub fn connect(&self) -> io::Result<Link> {
        let (ours, theirs) = UnixStream::pair()?;
        // Before the handover: a worker that dies after it is a later one.
        let deaths = self.shared.deaths();
        self.channel.send_bytes(&[0], &[theirs.as_fd()]).map_err(io::Error::other)?;
        let mut connection = Connection::new(ours);
        connection.set_patience(PATIENCE);
        connection.stop_by(Arc::clone(self.shared.stop_event()));
        Ok(Link { connection, deaths, shared: Arc::clone(&self.shared), protocol: 0, queues: 1 })
    }

    /// After the end of a connection: true when its worker has died, false when it goes on and has ended the connection on
    /// purpose.
    pub fn has_died(&self, link: &Link) -> io::Result<bool> {
        let deadline = Instant::now() + DEATH;
        loop {
            // Before the look at the number, so that no death is missed.
            let _ = self.death.read();
            if self.shared.deaths() > link.deaths {
                return Ok(true);
            }
            if self.shared.leaving() {
                return Ok(false);
            }
            let stop = self.shared.stop_event();
            let mut fds =
                [sys::readable(Some(sys::event(&*self.death))), sys::readable(Some(sys::event(&**stop)))];
            if !sys::wait(&mut fds, Some(deadline))? || fds[1].revents != 0 {
                return Ok(false);
            }
        }
    }
}

/// A connection to a worker, which may have yet to be started.
pub(crate) struct Link {
    connection: Connection,
    /// Deaths when the connection was handed over.
    deaths: u64,
    shared: Arc<Shared>,
    /// Protocol features the worker offers.
    protocol: u64,
    /// Queues it has.
    queues: u16,
}

impl Link {
    /// Protocol features the worker offers.
    pub fn offers(&self, bit: u64) -> bool {
        self.protocol & bit != 0
    }

    /// Queues the worker has.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// The first messages: from then on the worker acknowledges everything. `wanted` is what the frontend has negotiated.
    pub fn greet(&mut self, wanted: u64) -> Result<(), LinkError> {
        if self.number(Request::GetFeatures)? & features::PROTOCOL_FEATURES == 0 {
            return Err(LinkError::Missing("PROTOCOL_FEATURES"));
        }
        self.protocol = self.number(Request::GetProtocolFeatures)?;
        if !self.offers(protocol::REPLY_ACK) {
            return Err(LinkError::Missing("REPLY_ACK"));
        }
        if wanted & !self.protocol != 0 {
            return Err(LinkError::Missing("the protocol features of its predecessor"));
        }
        let body = self.features_for(wanted).to_ne_bytes();
        if self.command(Request::SetProtocolFeatures, &body, &[])? != 0 {
            return Err(LinkError::Refused("SET_PROTOCOL_FEATURES"));
        }
        if self.offers(protocol::MQ) {
            self.queues = self.number(Request::GetQueueNum)?.min(u16::MAX.into()) as u16;
        }
        Ok(())
    }

    /// What to send the worker when a frontend negotiates `wanted`.
    pub fn features_for(&self, wanted: u64) -> u64 {
        wanted | (OWN & self.protocol)
    }

    fn number(&mut self, request: Request) -> Result<u64, LinkError> {
        let reply = self.query(request, &[])?;
        reply.payload::<Word>().map(|word| word.value.get()).ok_or(LinkError::Garbled(request.name()))
    }

    /// A message of our own that has a reply.
    pub fn query(&mut self, request: Request, body: &[u8]) -> Result<Message, LinkError> {
        self.ask(request.into(), 0, body, &[], &mut None, false)
    }

    /// A message of our own that is acknowledged; 0 is success.
    pub fn command(
        &mut self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, LinkError> {
        let reply = self.ask(request.into(), flags::NEED_REPLY, body, fds, &mut None, false)?;
        reply.payload::<Word>().map(|word| word.value.get()).ok_or(LinkError::Garbled(request.name()))
    }

    /// Sends a message and waits for its answer, however long that takes; meanwhile the back channel goes on.
    pub fn ask(
        &mut self,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        back: &mut Option<BackChannel>,
        acknowledges: bool,
    ) -> Result<Message, LinkError> {
        let sent = self.connection.send(Header::request(code, flags, body.len()), body, fds);
        if messages::is_secret(Request::from_code(code)) {
            self.connection.forget();
        }
        sent.map_err(gone)?;
        self.wait(back, acknowledges)?;
        let reply = self.connection.receive(None).map_err(gone)?;
        if !reply.header.is_reply() || reply.header.request.get() != code {
            return Err(LinkError::Garbled(messages::name(Request::from_code(code))));
        }
        self.shared.serves();
        Ok(reply)
    }

    fn wait(&mut self, back: &mut Option<BackChannel>, acknowledges: bool) -> Result<(), LinkError> {
        loop {
            let mut fds = [
                sys::readable(Some(self.connection.as_fd())),
                sys::readable(Some(sys::event(&**self.shared.stop_event()))),
                sys::readable(back.as_ref().and_then(BackChannel::worker)),
                sys::readable(back.as_ref().map(BackChannel::front)),
            ];
            sys::wait(&mut fds, None).map_err(|_| LinkError::Stopped)?;
            if fds[1].revents != 0 {
                return Err(LinkError::Stopped);
            }
            serve_back_channel(back, fds[2].revents != 0, fds[3].revents != 0, acknowledges);
            if fds[0].revents != 0 {
                return Ok(());
            }
        }
    }

    /// Something came that nobody asked for: usually the end. An error says that it is.
    pub fn unasked(&mut self) -> Result<(), LinkError> {
        let message = self.connection.receive(None).map_err(gone)?;
        tracing::warn!(code = message.header.request.get(), "the worker answers what nobody has asked");
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Passes on what is there on the back channel; a channel that the frontend has closed is forgotten.
pub(crate) fn serve_back_channel(
    back: &mut Option<BackChannel>,
    from_worker: bool,
    from_front: bool,
    acknowledges: bool,
) {
    let Some(channel) = back else { return };
    let mut outcome = if from_worker { channel.pass_to_front(acknowledges) } else { Ok(()) };
    if from_front {
        outcome = outcome.and_then(|()| channel.pass_to_worker());
    }
    if let Err(error) = outcome {
        tracing::debug!(%error, "back channel closed");
        *back = None;
    }
}

fn gone(error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::Stopped => LinkError::Stopped,
        error => {
            tracing::debug!(%error, "connection to the worker");
            LinkError::Lost
        }
    }
}
