//! Signals as events of the main loop.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT | drain, unlink sockets, exit 0 in under a second; a second one exits at once |
//! | SIGHUP | nothing (logs go to standard error, which has nothing to reopen) |
//! | SIGUSR1 | all counters into the log |
//! | SIGPIPE | ignored by Rust's runtime: a write to a closed socket is an error of that write |
//! | SIGXFSZ | ignored: a write beyond the file size limit is an error of that write, and the guest's to see |
#![expect(unsafe_code, reason = "signalfd(2) has no safe wrapper")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, block_signal, create_sigset, unblock_signal};

use crate::clock;

const HANDLED: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Drain and exit.
    Terminate,
    /// Log all counters.
    Dump,
    /// Nothing.
    Ignored,
}

/// The signals of this process, as a descriptor that becomes readable.
pub struct Signals {
    fd: File,
}

impl Signals {
    /// Blocks the handled signals for this thread and all it will start, and opens the descriptor.
    ///
    /// Called before any other thread exists: a thread with them unblocked would be killed by them.
    pub fn new() -> io::Result<Self> {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        debug_assert!(HANDLED.iter().all(|signal| *signal < SIGRTMIN()));
        for signal in HANDLED {
            // Already blocked (by a parent's mask) is what we want.
            let _ = block_signal(signal);
        }
        let set = create_sigset(&HANDLED).map_err(io::Error::from)?;
        // SAFETY: `set` is an initialized signal set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made by the kernel and is owned by nobody else.
        Ok(Self { fd: File::from(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// Takes a pending signal.
    pub fn take(&mut self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.fd.read_exact(&mut info).ok()?;
        // signalfd_siginfo begins with the signal's number, `ssi_signo`.
        let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        Some(match number {
            libc::SIGTERM | libc::SIGINT => Signal::Terminate,
            libc::SIGUSR1 => Signal::Dump,
            _ => Signal::Ignored,
        })
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Ends the process with a message and exit code 1 when it is still there after `limit`, or at once when SIGTERM or
/// SIGINT comes again: a drain that hangs in a dead disk must not keep a host from shutting down.
pub fn force_exit_after(limit: Duration, program: &'static str) -> io::Result<()> {
    let watcher = std::thread::Builder::new().name("deadline".into()).stack_size(64 << 10);
    watcher.spawn(move || {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // From here on these signals have their default action again, in this thread: they end the process.
            let _ = unblock_signal(signal);
        }
        std::thread::sleep(limit);
        eprintln!(
            "{program}: I/O did not drain within {} ms, leaving it to the inflight log.",
            limit.as_millis()
        );
        clock::exit_now(crate::exit::RUNTIME);
    })?;
    Ok(())
}
