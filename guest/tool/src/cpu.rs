#![expect(unsafe_code, reason = "getrusage")]
//! Processor time of this process.

use std::time::Duration;

/// So far, of all threads, in user and kernel mode.
pub fn used() -> Duration {
    // SAFETY: the structure may be zero, and is written by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
