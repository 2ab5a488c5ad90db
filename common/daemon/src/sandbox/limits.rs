//! Resource limits a daemon needs, raised while it may: many memory regions mean many descriptors, and registered
//! buffers count as locked memory.
#![expect(unsafe_code, reason = "setrlimit and prctl have no safe wrappers")]

use std::io;

/// Raises the limits on open files and locked memory as far as allowed.
pub fn raise_limits() {
    for (resource, name) in [(libc::RLIMIT_NOFILE, "open files"), (libc::RLIMIT_MEMLOCK, "locked memory")] {
        match raise(resource) {
            Some(limit) => tracing::debug!(limit, "limit on {name}"),
            None => tracing::debug!("limit on {name} stays"),
        }
    }
}

/// Sets the soft limit to the hard one, after lifting that where privileged; the soft limit now.
fn raise(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the duration of the call.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
        return None;
    }
    let wanted = if resource == libc::RLIMIT_MEMLOCK { libc::RLIM_INFINITY } else { limit.rlim_max };
    let lifted = libc::rlimit { rlim_cur: wanted, rlim_max: wanted.max(limit.rlim_max) };
    let to_hard = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    [lifted, to_hard].into_iter().find_map(|limit| {
        // SAFETY: `limit` is a valid rlimit for the duration of the call.
        (unsafe { libc::setrlimit(resource, &limit) } == 0).then_some(limit.rlim_cur)
    })
}

/// No core file is ever written of this process, and other processes of its user cannot look into it: for daemons that hold
/// secrets. What is executed later starts without this.
pub fn keep_secrets() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid rlimit for the duration of the call; PR_SET_DUMPABLE takes a number.
    let outcomes =
        unsafe { [libc::setrlimit(libc::RLIMIT_CORE, &none), libc::prctl(libc::PR_SET_DUMPABLE, 0)] };
    if outcomes == [0, 0] { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_on_files_becomes_the_hard_one() {
        let limit = raise(libc::RLIMIT_NOFILE).unwrap();
        assert_eq!(raise(libc::RLIMIT_NOFILE), Some(limit));
        assert!(limit >= 1024);
    }
}
