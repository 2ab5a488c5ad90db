#![expect(unsafe_code, reason = "ppoll(2)")]
//! Waiting for one descriptor with a fine-grained limit.

use std::os::fd::RawFd;
use std::time::Duration;

/// Waits until `fd` is readable or its other end is gone; `false` after `limit` (`None`: for ever).
pub fn readable(fd: RawFd, limit: Option<Duration>) -> bool {
    poll(fd, libc::POLLIN, limit) != 0
}

/// Waits up to `limit` for the other end of the socket to go; `true` when it has.
pub fn hung_up_within(fd: RawFd, limit: Duration) -> bool {
    poll(fd, libc::POLLRDHUP, Some(limit)) & (libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR) != 0
}

/// Waits up to `limit` until one of `fds` is readable.
pub fn any_readable(fds: &[RawFd], limit: Duration) {
    let mut entries: Vec<_> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    poll_all(&mut entries, Some(limit));
}

fn poll(fd: RawFd, events: libc::c_short, limit: Option<Duration>) -> libc::c_short {
    let mut entries = [libc::pollfd { fd, events, revents: 0 }];
    if poll_all(&mut entries, limit) > 0 { entries[0].revents } else { 0 }
}

fn poll_all(entries: &mut [libc::pollfd], limit: Option<Duration>) -> libc::c_int {
    let timeout = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: valid entries and their number, a timeout that is null or points to a live timespec, no signal mask.
    unsafe { libc::ppoll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout, std::ptr::null()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn data_ends_the_wait_and_silence_runs_into_the_limit() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let begin = Instant::now();
        assert!(!readable(there.as_raw_fd(), Some(Duration::from_millis(20))));
        assert!(begin.elapsed() >= Duration::from_millis(20));
        here.write_all(b"x").unwrap();
        assert!(readable(there.as_raw_fd(), None));
    }

    #[test]
    fn a_closed_peer_is_seen_even_with_data_unread() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"x").unwrap();
        assert!(!hung_up_within(there.as_raw_fd(), Duration::ZERO));
        drop(here);
        assert!(hung_up_within(there.as_raw_fd(), Duration::from_secs(5)));
    }
}
