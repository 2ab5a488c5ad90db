//! The back channel: messages of the worker to the frontend, passed on as they are.
//!
//! The frontend's socket stays with the keeper; each worker gets a socket of its own for it. An answer that comes when the
//! worker that asked has died is dropped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost_user::connection::{Connection, ConnectionError, Message};
use vhost_user::message::{BackendRequest, Header, flags};
use vmm_sys_util::eventfd::EventFd;

/// Both sides of the channel.
pub(crate) struct BackChannel {
    front: Connection,
    worker: Option<Connection>,
    /// Answers that the present worker waits for.
    owed: u32,
    /// Answers that a dead one waited for.
    stale: u32,
}

impl BackChannel {
    /// The channel to a frontend, by the descriptor of `SET_BACKEND_REQ_FD`.
    pub fn new(front: OwnedFd, stop: &Arc<EventFd>) -> Self {
        let mut front = Connection::new(UnixStream::from(front));
        front.stop_by(Arc::clone(stop));
        Self { front, worker: None, owed: 0, stale: 0 }
    }

    /// A socket for a new worker.
    pub fn attach(&mut self, stop: &Arc<EventFd>) -> io::Result<OwnedFd> {
        self.detach();
        let (ours, theirs) = UnixStream::pair()?;
        let mut worker = Connection::new(ours);
        worker.stop_by(Arc::clone(stop));
        self.worker = Some(worker);
        Ok(theirs.into())
    }

    /// The worker has gone.
    pub fn detach(&mut self) {
        self.stale += std::mem::take(&mut self.owed);
        self.worker = None;
    }

    pub fn front(&self) -> BorrowedFd<'_> {
        self.front.as_fd()
    }

    pub fn worker(&self) -> Option<BorrowedFd<'_>> {
        self.worker.as_ref().map(AsFd::as_fd)
    }

    /// Tells the frontend that the configuration space has changed, without asking for an answer.
    pub fn config_changed(&mut self) -> Result<(), ConnectionError> {
        self.front.send(Header::request(BackendRequest::ConfigChangeMsg.into(), 0, 0), &[], &[])
    }

    /// Passes on what the worker has sent. Without acknowledgements the frontend is not asked for one, and the worker gets it
    /// at once.
    pub fn pass_to_front(&mut self, acknowledges: bool) -> Result<(), ConnectionError> {
        let Some(worker) = &mut self.worker else { return Ok(()) };
        let message = match worker.receive(None) {
            Ok(message) => message,
            Err(_) => {
                // It has closed the channel, or has died: the frontend keeps its end.
                self.detach();
                return Ok(());
            }
        };
        let mut header = message.header;
        if header.needs_reply() && !acknowledges {
            header.flags = (header.flags.get() & !flags::NEED_REPLY).into();
            let _ = worker.send(header.reply(8), &0u64.to_ne_bytes(), &[]);
        } else if header.needs_reply() {
            self.owed += 1;
        }
        pass(&mut self.front, header, &message)
    }

    /// Passes on what the frontend has answered.
    pub fn pass_to_worker(&mut self) -> Result<(), ConnectionError> {
        let message = self.front.receive(None)?;
        if self.stale > 0 {
            self.stale -= 1;
            return Ok(());
        }
        self.owed = self.owed.saturating_sub(1);
        if let Some(worker) = &mut self.worker
            && pass(worker, message.header, &message).is_err()
        {
            self.detach();
        }
        Ok(())
    }
}

fn pass(to: &mut Connection, header: Header, message: &Message) -> Result<(), ConnectionError> {
    let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
    to.send(header, &message.body, &fds)
}
