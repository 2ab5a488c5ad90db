//! Clocks of the kernel, for stamping snapshots.
#![expect(unsafe_code, reason = "clock_gettime and _exit have no safe wrapper in the standard library")]

use std::time::Duration;

/// Time since boot that never goes back.
pub(crate) fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time of all threads of this process, user and system.
pub(crate) fn process_cpu() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call; any clock id is allowed (EINVAL leaves zero).
    unsafe { libc::clock_gettime(clock, &mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Ends the process at once: no destructor, no exit handler that a stuck thread could block.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: `_exit` takes any code and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}
