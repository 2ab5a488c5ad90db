//! One connection after another on the same device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::backend::{Arrival, Session};
use crate::connection::Connection;
use crate::device::Device;
use crate::listen::{self, Source, Transport};
use crate::log::ConnectionLog;
use crate::notifier::NotifierHandle;
use crate::scm;

/// What may be tuned; the defaults suit every known front-end.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a message that has begun may take until it is complete, and a reply until it is taken.
    pub patience: Duration,
    /// Shortest pause between two attempts to connect; doubled after each failure.
    pub retry_min: Duration,
    /// Longest pause between two attempts to connect.
    pub retry_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: Connection::PATIENCE,
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(2),
        }
    }
}

/// Serves one front-end after another until [`Notifier::shutdown`](crate::Notifier::shutdown), or, for a connection that was
/// handed over, until it ends. Blocks; each device has a thread of its own for this.
///
/// A second front-end waits in the listen backlog until the first is gone; the log says so, and
/// [`SessionStatus::waits`](crate::SessionStatus::waits) counts it.
///
/// # Errors
/// Only when the listening socket itself fails; whatever a front-end does ends its connection at most.
pub fn serve(
    transport: Transport,
    device: &mut dyn Device,
    handle: NotifierHandle,
    options: &Options,
) -> io::Result<()> {
    let mut server = Server { device, handle, options: *options, log: ConnectionLog::new() };
    match transport.0 {
        Source::Single(socket) => {
            server.connection(socket, None);
            Ok(())
        }
        Source::Listener(socket, _file) => server.accept_all(socket),
        Source::Connect(path) => server.connect_all(&path),
        Source::Handover(channel) => server.take_all(&channel),
    }
}

struct Server<'d> {
    device: &'d mut dyn Device,
    handle: NotifierHandle,
    options: Options,
    log: ConnectionLog,
}

impl Server<'_> {
    fn accept_all(&mut self, socket: OwnedFd) -> io::Result<()> {
        let listener = UnixListener::from(socket);
        while self.wait(Some(listener.as_fd()), None)? {
            match listener.accept() {
                Ok((stream, _)) => {
                    self.connection(stream.into(), Some(listener.as_fd()));
                }
                Err(e) if is_passing(&e) => tracing::debug!(error = %e, "accept"),
                Err(e) => {
                    // Out of descriptors or memory: others may free some.
                    tracing::warn!(error = %e, "cannot accept a connection");
                    self.wait(None, Some(self.options.retry_max))?;
                }
            }
        }
        Ok(())
    }

    /// Serves the connections that another process hands over, until it closes its end.
    fn take_all(&mut self, channel: &OwnedFd) -> io::Result<()> {
        while self.wait(Some(channel.as_fd()), None)? {
            match listen::handed_over(channel.as_fd()) {
                Ok(Some(socket)) => {
                    self.connection(socket, None);
                }
                Ok(None) => break,
                Err(e) if is_passing(&e) => tracing::debug!(error = %e, "no connection was handed over"),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Retries the whole handshake: a connection that ends before any ring has run counts as a failure, since connecting to
    /// a dying peer can succeed.
    fn connect_all(&mut self, path: &Path) -> io::Result<()> {
        let mut pause = self.options.retry_min;
        while !self.handle.stopping() {
            match listen::connect(path) {
                Ok(socket) => {
                    if self.connection(socket, None) {
                        pause = self.options.retry_min;
                    }
                }
                Err(e) => tracing::debug!(path = %path.display(), error = %e, "cannot connect yet"),
            }
            if !self.wait(None, Some(pause))? {
                break;
            }
            pause = (pause * 2).min(self.options.retry_max);
        }
        Ok(())
    }

    /// Waits for a connection or for a time. False when it is time to stop.
    fn wait(&self, source: Option<BorrowedFd<'_>>, time: Option<Duration>) -> io::Result<bool> {
        let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let deadline = time.map(|time| Instant::now() + time);
        loop {
            let mut fds = [
                scm::pollfd(scm::borrow(self.handle.stop_event()), libc::POLLIN),
                scm::pollfd(self.handle.wake_fd(), libc::POLLIN),
                source.map_or(nothing, |source| scm::pollfd(source, libc::POLLIN)),
            ];
            let in_time = scm::wait(&mut fds, deadline)?;
            if fds[0].revents != 0 {
                return Ok(false);
            }
            if fds[1].revents != 0 {
                // Nobody is connected, and who connects later reads the configuration anyway.
                self.handle.drain();
                self.handle.take_config_changed();
            }
            if !in_time || fds[2].revents != 0 {
                return Ok(true);
            }
        }
    }

    /// Serves one connection to its end; others come from `listener`. True if it got as far as starting a ring.
    fn connection(&mut self, socket: OwnedFd, listener: Option<BorrowedFd<'_>>) -> bool {
        let mut connection = Connection::new(UnixStream::from(socket));
        connection.set_patience(self.options.patience);
        let peer_pid = connection.peer_pid().ok();
        let logged = self.log.connected(peer_pid);
        self.handle.update(|status| {
            status.connections += 1;
            status.connections_unlogged += u64::from(!logged);
            status.connected = true;
            status.peer_pid = peer_pid;
        });
        let arrival = Arrival { connection, peer_pid, listener, log: &self.log };
        let mut session = Session::new(&mut *self.device, &self.handle, arrival);
        let error = session.run();
        let useful = session.was_useful();
        drop(session);
        self.log.ended(&error);
        self.handle.update(|status| *status = status.disconnected());
        useful
    }
}

/// Errors of accept(2) that concern one connection only.
fn is_passing(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}
