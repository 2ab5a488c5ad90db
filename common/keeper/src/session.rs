//! One frontend's connection, from its first message to its end, over the lives of any number of workers.
//!
//! One message at a time goes to the worker, which acknowledges each; what it has accepted is recorded. When the worker
//! dies the record is replayed to the next one, and the message that was under way is sent again. That is safe for all of
//! them: most set something, to what they have set it before; the few others are looked after here.
//!
//! | message | when it is sent again |
//! |---|---|
//! | `CREATE_CRYPTO_SESSION` | carries the same number, by which the worker knows a session that it has made for it |
//! | `CLOSE_CRYPTO_SESSION` | is refused when the session has gone already, which is a success |
//! | `GET_VRING_BASE` | the ring was started again from where it stands, and is drained once more |
//! | `SET_DEVICE_STATE_FD` | had not begun to move anything before its answer |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost_user::connection::{Connection, ConnectionError, Message};
use vhost_user::message::{Inflight, Request, Word, crypto_session_id_offset, features, flags, protocol};
use zerocopy::IntoBytes;
use zeroize::Zeroize;

use crate::back_channel::BackChannel;
use crate::inflight::{self, Tracking};
use crate::line::LineContext;
use crate::link::{Link, LinkError, serve_back_channel};
use crate::messages::{self, PASSED, has_reply, is_secret, must_agree};
use crate::record::Record;
use crate::replay::{self, replay};
use crate::sys;

/// Workers that may die of one message before its frontend is disconnected.
const ATTEMPTS: u32 = 4;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("{0}")]
    Frontend(#[from] ConnectionError),
    #[error("the worker has ended the connection")]
    Worker,
    #[error(transparent)]
    Link(LinkError),
    #[error("{0} was refused and the frontend cannot be told")]
    Refused(&'static str),
    #[error("file descriptors of {0} were lost on the way")]
    Descriptors(&'static str),
    #[error("{ATTEMPTS} workers have died of {0}")]
    Deadly(&'static str),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// What the worker made of a message.
enum Answer {
    /// An acknowledgement; 0 is success.
    Ack(u64),
    Reply(Message),
}

/// The state of one connection.
pub(crate) struct Session<'l> {
    context: &'l LineContext,
    front: Connection,
    /// `None` until the first worker, and after an end in which there was none.
    link: Option<Link>,
    record: Record,
    /// Our own inflight region.
    tracking: Option<Tracking>,
    back: Option<BackChannel>,
    /// The last look at the configuration space: message and reply.
    seen_config: Option<(Vec<u8>, Vec<u8>)>,
}

impl<'l> Session<'l> {
    pub fn new(context: &'l LineContext, front: UnixStream) -> Self {
        let mut front = Connection::new(front);
        front.stop_by(Arc::clone(context.shared.stop_event()));
        Self {
            context,
            front,
            link: None,
            record: Record::default(),
            tracking: None,
            back: None,
            seen_config: None,
        }
    }

    /// Serves the frontend to its end.
    pub fn run(&mut self) -> End {
        let end = loop {
            if let Err(end) = self.turn() {
                break end;
            }
        };
        // A worker that has state of this frontend, from its predecessor, hears that it is gone.
        if self.link.is_none() {
            let _ = self.context.handover.connect();
        }
        end
    }

    /// The frontend has set up a ring.
    pub fn was_useful(&self) -> bool {
        !self.record.rings.is_empty()
    }

    fn turn(&mut self) -> Result<(), End> {
        let Some(link) = &self.link else { return self.restore() };
        let mut fds = [
            sys::readable(Some(self.front.as_fd())),
            sys::readable(Some(link.as_fd())),
            sys::readable(self.back.as_ref().and_then(BackChannel::worker)),
            sys::readable(self.back.as_ref().map(BackChannel::front)),
            sys::readable(Some(sys::event(&**self.context.shared.stop_event()))),
        ];
        sys::wait(&mut fds, None)?;
        let [front, worker, back_worker, back_front, stop] = fds.map(|fd| fd.revents != 0);
        if stop {
            return Err(End::Link(LinkError::Stopped));
        }
        serve_back_channel(&mut self.back, back_worker, back_front, self.record.acknowledges());
        if worker {
            let outcome = self.link()?.unasked();
            return self.recover(outcome).map(|_| ());
        }
        if front {
            let message = self.front.receive(None)?;
            self.handle(message)?;
        }
        Ok(())
    }

    fn link(&mut self) -> Result<&mut Link, End> {
        self.link.as_mut().ok_or(End::Worker)
    }

    /// Turns the loss of the worker into a new one: `None` then.
    fn recover<T>(&mut self, outcome: Result<T, LinkError>) -> Result<Option<T>, End> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(LinkError::Lost) => {
                let link = self.link.take().ok_or(End::Worker)?;
                if let Some(back) = &mut self.back {
                    back.detach();
                }
                if !self.context.handover.has_died(&link)? {
                    return Err(End::Worker);
                }
                self.restore().map(|()| None)
            }
            Err(error) => Err(End::Link(error)),
        }
    }

    /// Brings a worker, however many it takes, to where the last one was.
    fn restore(&mut self) -> Result<(), End> {
        loop {
            let again = self.record.features.is_some();
            let mut link = self.context.handover.connect()?;
            match self.introduce(&mut link) {
                Ok(()) => {
                    if again {
                        tracing::info!(device = self.context.name, "the new worker has taken over");
                    }
                    self.link = Some(link);
                    return Ok(());
                }
                Err(LinkError::Lost) if self.context.handover.has_died(&link)? => {}
                Err(LinkError::Lost) => return Err(End::Worker),
                Err(error) => return Err(End::Link(error)),
            }
        }
    }

    /// Tells a worker everything.
    fn introduce(&mut self, link: &mut Link) -> Result<(), LinkError> {
        link.greet(self.record.protocol.unwrap_or(0))?;
        replay(&self.record, self.tracking.as_ref(), &mut Replaying(link))?;
        if let Some(back) = &mut self.back {
            let socket = back.attach(self.context.shared.stop_event()).map_err(|_| LinkError::Lost)?;
            link.command(Request::SetBackendReqFd, &[], &[socket.as_fd()])?;
        }
        self.compare_config(link)
    }

    /// What the last worker would have announced if it had lived.
    fn compare_config(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let Some((body, seen)) = &mut self.seen_config else { return Ok(()) };
        let now = link.query(Request::GetConfig, body)?.body;
        if now != *seen
            && let Some(back) = &mut self.back
            && self.record.has_protocol(protocol::CONFIG)
        {
            *seen = now;
            if back.config_changed().is_err() {
                self.back = None;
            }
        }
        Ok(())
    }

    /// One message of the frontend.
    fn handle(&mut self, mut message: Message) -> Result<(), End> {
        let request = Request::from_code(message.header.request.get());
        if message.header.is_reply() {
            tracing::warn!(request = messages::name(request), "the frontend answers what nobody has asked");
            return Ok(());
        }
        if message.fds_lost {
            return Err(End::Descriptors(messages::name(request)));
        }
        // Ours to set: a frontend that could would only name sessions of its own, but there is no need.
        stamp(request, &mut message.body, self.context.shared.number());
        let answer = self.deliver(request, &message);
        if is_secret(request) {
            message.body.zeroize();
        }
        match answer? {
            (Answer::Ack(value), sent) => self.settle(request, message, value, sent > 1),
            (Answer::Reply(reply), _) => self.reply(request, message, reply),
        }
    }

    /// Has a worker answer a message, and says how often it was sent.
    fn deliver(&mut self, request: Option<Request>, message: &Message) -> Result<(Answer, u32), End> {
        for sent in 1.. {
            let outcome = self.forward(request, message);
            if sent == ATTEMPTS && matches!(outcome, Err(LinkError::Lost)) {
                break;
            }
            if let Some(answer) = self.recover(outcome)? {
                return Ok((answer, sent));
            }
            tracing::debug!(request = messages::name(request), "sent again");
        }
        self.link = None;
        Err(End::Deadly(messages::name(request)))
    }

    /// Sends a message to the worker, as it came but for a few things.
    fn forward(&mut self, request: Option<Request>, message: &Message) -> Result<Answer, LinkError> {
        let Some(link) = &mut self.link else { return Err(LinkError::Lost) };
        let mut fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(AsFd::as_fd).collect();
        let (changed, socket): (Vec<u8>, OwnedFd);
        let mut body = message.body.as_slice();
        match request {
            Some(Request::SetProtocolFeatures) => {
                let wanted = message.payload::<Word>().map_or(0, |word| word.value.get());
                changed = link.features_for(wanted & PASSED).to_ne_bytes().to_vec();
                body = &changed;
            }
            Some(Request::SetVringKick | Request::VringKick) => self.track()?,
            Some(Request::SetBackendReqFd) if fds.len() == 1 => {
                let front = message.fds[0].try_clone().map_err(|_| LinkError::Lost)?;
                let stop = self.context.shared.stop_event();
                let back = self.back.insert(BackChannel::new(front, stop));
                socket = back.attach(stop).map_err(|_| LinkError::Lost)?;
                fds = vec![socket.as_fd()];
            }
            _ => {}
        }
        let Some(link) = &mut self.link else { return Err(LinkError::Lost) };
        let flags = if has_reply(request) { 0 } else { flags::NEED_REPLY };
        let acknowledges = self.record.acknowledges();
        let code = message.header.request.get();
        let reply = link.ask(code, flags, body, &fds, &mut self.back, acknowledges)?;
        if has_reply(request) {
            return Ok(Answer::Reply(reply));
        }
        let value = reply.payload::<Word>().map(|word| word.value.get());
        value.map(Answer::Ack).ok_or(LinkError::Garbled(messages::name(request)))
    }

    /// Before a ring starts: a frontend that has no inflight region gets one, without being told.
    fn track(&mut self) -> Result<(), LinkError> {
        let Some(link) = &mut self.link else { return Err(LinkError::Lost) };
        let packed = self.record.is_packed();
        if self.record.inflight.is_some() || !link.offers(protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if self.tracking.as_ref().is_some_and(|tracking| tracking.packed == packed) {
            return Ok(());
        }
        let wanted = inflight::wanted(link.queues(), self.context.queue_size);
        let mut reply = link.query(Request::GetInflightFd, wanted.as_bytes())?;
        let garbled = LinkError::Garbled("GET_INFLIGHT_FD");
        let (Some(fd), Some(_)) = (reply.fds.pop(), reply.payload::<Inflight>()) else { return Err(garbled) };
        if link.command(Request::SetInflightFd, &reply.body, &[fd.as_fd()])? != 0 {
            return Err(LinkError::Refused("SET_INFLIGHT_FD"));
        }
        self.tracking = Some(Tracking { body: reply.body, file: fd.into(), packed });
        Ok(())
    }

    /// The worker has acknowledged a message, or refused it.
    fn settle(
        &mut self,
        request: Option<Request>,
        message: Message,
        value: u64,
        again: bool,
    ) -> Result<(), End> {
        let value = match request {
            Some(Request::CloseCryptoSession) if again => 0,
            _ => value,
        };
        let header = message.header;
        let acknowledged = self.record.acknowledges();
        match request {
            // A ring whose memory is missing waits for it, and the message fails all the same.
            Some(request @ Request::SetVringKick) => self.record.accepted(request, message),
            Some(Request::SetBackendReqFd) if value != 0 => self.back = None,
            Some(request) if value == 0 => self.record.accepted(request, message),
            _ => {}
        }
        if header.needs_reply() && (acknowledged || self.record.acknowledges()) {
            return Ok(self.front.send(header.reply(8), &value.to_ne_bytes(), &[])?);
        }
        if value != 0 && must_agree(request) {
            return Err(End::Refused(messages::name(request)));
        }
        Ok(())
    }

    /// The worker has answered a message.
    fn reply(&mut self, request: Option<Request>, message: Message, mut reply: Message) -> Result<(), End> {
        let header = message.header;
        match request {
            Some(Request::GetProtocolFeatures) => mask(&mut reply, PASSED),
            // Nobody but the inflight region knows where a packed ring stands whose worker has died.
            Some(Request::GetFeatures) if !self.link()?.offers(protocol::INFLIGHT_SHMFD) => {
                mask(&mut reply, !features::RING_PACKED);
            }
            Some(Request::GetConfig) => self.seen_config = Some((message.body.clone(), reply.body.clone())),
            _ => {}
        }
        if let Some(request) = request {
            self.record.answered(request, message, &reply);
        }
        let fds: Vec<_> = reply.fds.iter().map(AsFd::as_fd).collect();
        let sent = self.front.send(header.reply(reply.body.len()), &reply.body, &fds);
        if is_secret(request) {
            reply.body.zeroize();
            self.front.forget();
        }
        Ok(sent?)
    }
}

/// Removes bits from a reply that is a word.
fn mask(reply: &mut Message, bits: u64) {
    if let Some(word) = reply.payload::<Word>() {
        reply.body = (word.value.get() & bits).to_ne_bytes().to_vec();
    }
}

/// Numbers a `CREATE_CRYPTO_SESSION` where its reply has the session's id.
fn stamp(request: Option<Request>, body: &mut [u8], number: u64) {
    let at = crypto_session_id_offset(body.len()).filter(|_| request == Some(Request::CreateCryptoSession));
    if let Some(place) = at.and_then(|at| body.get_mut(at..at + size_of::<u64>())) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
}

/// Replays to a worker.
struct Replaying<'k>(&'k mut Link);

impl replay::Send for Replaying<'_> {
    type Error = LinkError;

    fn send(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        match self.0.command(request, body, fds)? {
            0 => Ok(()),
            _ if must_agree(Some(request)) => Err(LinkError::Refused(request.name())),
            _ => {
                tracing::warn!(%request, "the new worker refuses what the last one had accepted");
                Ok(())
            }
        }
    }

    fn ask(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.0.ask(request.into(), 0, body, fds, &mut None, false).map(|_| ())
    }
}

#[cfg(test)]
mod tests;
