#![expect(unsafe_code, reason = "sigaction")]
//! Control-C: the run ends at the next request, so that its device and its partial output are cleaned up.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::failure::Failure;

static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
}

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Notes signals that would end the process, unless they are ignored already (`nohup`). Calls that wait are interrupted.
pub fn catch() {
    for signal in SIGNALS {
        // SAFETY: both structures may be zero; the handler only stores to an atomic.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut old);
            if old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = note as *const () as usize;
            libc::sigaction(signal, &new, std::ptr::null_mut());
        }
    }
}

/// An error as soon as there was a signal.
pub fn check() -> Result<(), Failure> {
    if CAUGHT.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(Failure::Interrupted) }
}

/// Ends the process by the signal that was caught, so that a shell knows.
pub fn end() -> ! {
    let signal = match CAUGHT.load(Ordering::Relaxed) {
        0 => libc::SIGINT,
        signal => signal,
    };
    raise(signal)
}

/// Ends the process as one whose output nobody reads.
pub fn broken_pipe() -> ! {
    raise(libc::SIGPIPE)
}

fn raise(signal: libc::c_int) -> ! {
    // SAFETY: the default action ends the process.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    std::process::exit(1)
}
