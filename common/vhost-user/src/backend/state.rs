//! Transfer of a device's internal state in live migration (vhost-user: Migrating back-end state).
//!
//! The session moves the bytes itself, a piece whenever the channel is ready, so that neither end waits for the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::dispatch::{one_fd, payload};
use super::refusal::Refusal;
use super::{Answer, Handled, Session};
use crate::connection::Message;
use crate::message::{DeviceStateTransfer, NOFD, protocol};
use crate::scm;

/// Largest state accepted.
const MAX_STATE: usize = 64 << 20;
/// Bytes moved at a time.
const PIECE: usize = 64 * 1024;
/// How long `CHECK_DEVICE_STATE` waits for the rest of a transfer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A transfer that is under way or has ended.
pub(super) struct Transfer {
    /// `None` once the transfer has ended.
    channel: Option<File>,
    direction: Direction,
    data: Vec<u8>,
    result: Result<(), io::Error>,
}

enum Direction {
    /// To the front-end; so much of the data is written.
    Save { written: usize },
    /// From the front-end.
    Load,
}

impl Transfer {
    fn new(channel: OwnedFd, direction: Direction, data: Vec<u8>) -> io::Result<Self> {
        scm::set_nonblocking(channel.as_fd())?;
        Ok(Self { channel: Some(File::from(channel)), direction, data, result: Ok(()) })
    }

    /// What to wait for while the transfer is under way.
    pub(super) fn pollfd(&self) -> Option<libc::pollfd> {
        let events = match self.direction {
            Direction::Save { .. } => libc::POLLOUT,
            Direction::Load => libc::POLLIN,
        };
        self.channel.as_ref().map(|channel| scm::pollfd(channel.as_fd(), events))
    }

    /// Moves what can be moved now. The channel is closed at the end, which is what tells the front-end.
    pub(super) fn advance(&mut self) {
        match self.step() {
            Ok(false) => {}
            Ok(true) => self.channel = None,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => {
                self.channel = None;
                self.result = Err(e);
            }
        }
    }

    /// One piece; true at the end.
    fn step(&mut self) -> io::Result<bool> {
        let Some(channel) = &mut self.channel else { return Ok(true) };
        match &mut self.direction {
            Direction::Save { written } => {
                let rest = &self.data[*written..];
                if !rest.is_empty() {
                    *written += channel.write(&rest[..rest.len().min(PIECE)])?;
                }
                Ok(*written == self.data.len())
            }
            Direction::Load => {
                let mut piece = [0; 4096];
                let n = channel.read(&mut piece)?;
                if self.data.len() + n > MAX_STATE {
                    return Err(io::Error::other("device state is too large"));
                }
                self.data.extend_from_slice(&piece[..n]);
                Ok(n == 0)
            }
        }
    }

    /// Brings the transfer to its end.
    fn finish(&mut self, stop: libc::pollfd) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(pollfd) = self.pollfd() {
            let mut fds = [pollfd, stop];
            if !scm::wait(&mut fds, Some(deadline))? || fds[1].revents != 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.advance();
        }
        std::mem::replace(&mut self.result, Ok(()))
    }
}

impl Session<'_> {
    pub(super) fn set_device_state_fd(&mut self, mut message: Message) -> Handled {
        let parameters: DeviceStateTransfer = payload(&message)?;
        let channel = one_fd(&mut message)?;
        self.transfer = None;
        if !self.has_protocol(protocol::DEVICE_STATE) {
            return Err(Refusal::Unsupported);
        }
        if parameters.phase.get() != 0 {
            return Err(Refusal::BadValue(parameters.phase.get().into()));
        }
        if self.rings.iter().any(|ring| ring.running.is_some()) {
            return Err(Refusal::NotSuspended);
        }
        self.transfer = Some(match parameters.direction.get() {
            0 => Transfer::new(channel, Direction::Save { written: 0 }, self.device.save_state()?)?,
            1 => Transfer::new(channel, Direction::Load, Vec::new())?,
            other => return Err(Refusal::BadValue(other.into())),
        });
        // Success, and no channel of ours.
        Ok(Answer::word(NOFD))
    }

    pub(super) fn check_device_state(&mut self) -> Handled {
        let mut transfer = self.transfer.take().ok_or(Refusal::Unsupported)?;
        transfer.finish(scm::pollfd(scm::borrow(self.handle.stop_event()), libc::POLLIN))?;
        if let Direction::Load = transfer.direction {
            self.device.load_state(&transfer.data)?;
        }
        Ok(Answer::word(0))
    }
}
