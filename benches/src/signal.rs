#![expect(unsafe_code, reason = "kill(2)")]
//! Signals to processes this program has started.

use std::io;

/// Asks a process to end.
pub fn terminate(pid: i32) -> io::Result<()> {
    send(pid, libc::SIGTERM)
}

fn send(pid: i32, signal: i32) -> io::Result<()> {
    // 0 and negative numbers would mean process groups.
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: no pointers are involved.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
