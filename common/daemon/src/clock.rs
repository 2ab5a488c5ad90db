//! The process's CPU time, and its immediate end.
#![expect(unsafe_code, reason = "clock_gettime and _exit have no safe wrapper in the standard library")]

/// CPU time of all threads of this process, user and system, in nanoseconds.
pub(crate) fn process_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    let nanoseconds = |number: i64| u64::try_from(number).unwrap_or(0);
    nanoseconds(time.tv_sec).wrapping_mul(1_000_000_000).wrapping_add(nanoseconds(time.tv_nsec))
}

/// Ends the process at once: no destructor, no exit handler that a stuck thread could block.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: `_exit` takes any code and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}
