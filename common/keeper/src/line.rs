//! One device: its socket, and one frontend after another. A thread of its own, which sleeps while nobody says anything.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::{Handover, LinkError};
use crate::session::{End, Session};
use crate::shared::Shared;
use crate::sys;

/// Shortest and longest pause between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Pause after a failure to accept a connection.
const EXHAUSTED: Duration = Duration::from_millis(500);

/// Where frontends come from.
pub(crate) enum Source {
    /// A socket that listens.
    Listener(UnixListener),
    /// A frontend that listens.
    Connect(PathBuf),
    /// One connection.
    Single(OwnedFd),
}

/// What the sessions of a device share.
pub(crate) struct LineContext {
    pub name: String,
    pub queue_size: u16,
    pub handover: Handover,
    pub shared: Arc<Shared>,
}

impl LineContext {
    /// Serves frontends until the process ends, or until there can be no more.
    pub fn run(&self, source: Source) {
        let outcome = match source {
            Source::Single(socket) => {
                self.serve(socket.into());
                Ok(())
            }
            Source::Listener(listener) => self.accept_all(&listener),
            Source::Connect(path) => self.connect_all(&path),
        };
        if let Err(error) = outcome {
            tracing::error!(device = self.name, %error, "the socket has failed");
        }
    }

    fn accept_all(&self, listener: &UnixListener) -> io::Result<()> {
        while self.pause(Some(listener), None)? {
            match listener.accept() {
                Ok((stream, _)) => {
                    self.serve(stream);
                }
                Err(error) if passing(&error) => {}
                Err(error) => {
                    tracing::warn!(device = self.name, %error, "a frontend cannot be accepted");
                    self.pause(None, Some(EXHAUSTED))?;
                }
            }
        }
        Ok(())
    }

    fn connect_all(&self, path: &PathBuf) -> io::Result<()> {
        let mut wait = RETRY.0;
        loop {
            if let Ok(stream) = UnixStream::connect(path)
                && self.serve(stream)
            {
                wait = RETRY.0;
            }
            if !self.pause(None, Some(wait))? {
                return Ok(());
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Waits for a connection or a time; false when the process ends.
    fn pause(&self, listener: Option<&UnixListener>, time: Option<Duration>) -> io::Result<bool> {
        let mut fds = [
            sys::readable(Some(sys::event(&**self.shared.stop_event()))),
            sys::readable(listener.map(AsFd::as_fd)),
        ];
        sys::wait(&mut fds, time.map(|time| Instant::now() + time))?;
        Ok(fds[0].revents == 0)
    }

    /// Serves one frontend to its end. True if it got as far as setting something up.
    fn serve(&self, stream: UnixStream) -> bool {
        tracing::info!(device = self.name, "frontend connected");
        let mut session = Session::new(self, stream);
        let end = session.run();
        match &end {
            End::Frontend(_) | End::Link(LinkError::Stopped) => {
                tracing::info!(device = self.name, reason = %end, "frontend disconnected");
            }
            end => tracing::warn!(device = self.name, reason = %end, "frontend disconnected"),
        }
        session.was_useful()
    }
}

/// Errors of accept(2) that concern one connection only.
fn passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | ConnectionAborted | Interrupted)
}
