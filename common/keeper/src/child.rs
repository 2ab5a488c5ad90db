//! The worker process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::config::{Handed, KeeperConfig};
use crate::notify::Relay;
use crate::sys;

/// A running worker.
pub(crate) struct Worker {
    child: Child,
    pidfd: OwnedFd,
    /// When it was first heard that it serves.
    ready: Option<Instant>,
    /// Its last sign of life.
    alive: Instant,
}

impl Worker {
    /// Starts one. It inherits the descriptors, and gets SIGTERM should this thread end.
    pub fn start(config: &KeeperConfig, handed: &Handed, relay: &Relay) -> io::Result<Self> {
        let mut command = Command::new(&config.executable);
        command.args((config.arguments)(handed)).stdin(Stdio::null());
        // Sockets that systemd passes are for this process.
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        relay.prepare(&mut command);
        let devices = handed.devices.iter().map(|(_, fd)| *fd);
        sys::bequeath(&mut command, devices.chain(handed.memories.iter().map(|(_, fd)| *fd)).collect());
        let child = command.spawn()?;
        let pidfd = sys::pidfd(&child)?;
        Ok(Self { child, pidfd, ready: None, alive: Instant::now() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It serves.
    pub fn is_ready(&mut self) {
        self.ready.get_or_insert_with(Instant::now);
    }

    /// It has given a sign of life.
    pub fn is_alive(&mut self) {
        self.alive = Instant::now();
    }

    /// When it counts as hung, if it gives none within this time.
    pub fn hangs_at(&self, limit: Duration) -> Instant {
        self.ready.map_or(self.alive, |ready| ready.max(self.alive)) + limit
    }

    /// How long it has served; `None` if it has not.
    pub fn served(&self) -> Option<Duration> {
        self.ready.map(|since| since.elapsed())
    }

    pub fn signal(&self, signal: libc::c_int) {
        sys::signal(&self.child, signal);
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// How a worker ended, for people.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal} ({})", signal_name(signal)),
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => "SIGKILL: killed by somebody, or out of memory",
        libc::SIGSEGV => "SIGSEGV: invalid memory access",
        libc::SIGBUS => "SIGBUS: memory that is gone",
        libc::SIGABRT => "SIGABRT: it gave up",
        libc::SIGILL => "SIGILL: invalid instruction",
        libc::SIGSYS => "SIGSYS: a system call that the sandbox forbids",
        libc::SIGTERM => "SIGTERM",
        _ => "see signal(7)",
    }
}
