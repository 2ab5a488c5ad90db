//! Confinement of the threads that hear frontends and worker.
//!
//! Each device's thread closes off the file system and TCP (Landlock), drops its capabilities, and keeps no system call but
//! those for sockets and memory (seccomp). The main thread starts processes, so it is left alone, and so is the worker, which has a
//! sandbox of its own; all that the main thread hears are signals, the end of the worker, and a few words from it.

use std::collections::BTreeMap;
use std::io;

use caps::CapSet;
use daemon::cli::SandboxMode;
use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Rights of the newest kernel interface this was tested with; an older kernel enforces those it knows.
const TESTED_ABI: ABI = ABI::V7;

/// What the threads do once they run.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // Messages and their descriptors.
    libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_accept4, libc::SYS_accept,
    libc::SYS_socket, libc::SYS_connect, libc::SYS_socketpair, libc::SYS_getsockopt, libc::SYS_shutdown,
    libc::SYS_read, libc::SYS_write, libc::SYS_writev, libc::SYS_close, libc::SYS_fcntl, libc::SYS_ioctl,
    // Where a ring stands.
    libc::SYS_pread64,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_futex, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory of the process.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_brk,
    // Threads, signals, clocks.
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_tgkill, libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack, libc::SYS_clock_gettime,
    libc::SYS_gettimeofday, libc::SYS_getrandom, libc::SYS_rseq, libc::SYS_set_robust_list,
];

/// Older names that only x86 has and the C library still uses.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Closes the sandbox around the calling thread.
pub(crate) fn enter(mode: SandboxMode) -> io::Result<()> {
    let refused = match mode {
        SandboxMode::Off => return Ok(()),
        SandboxMode::Log => SeccompAction::Log,
        SandboxMode::Enforce => SeccompAction::Errno(libc::EPERM as u32),
    };
    if mode == SandboxMode::Enforce {
        close_files().map_err(io::Error::other)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    seccompiler::apply_filter(&program(refused)?).map_err(io::Error::other)
}

fn close_files() -> Result<(), landlock::RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TESTED_ABI))?
        .handle_access(AccessNet::from_all(TESTED_ABI))?
        .scope(Scope::Signal | Scope::AbstractUnixSocket)?
        .create()?;
    rules.restrict_self().map(|_| ())
}

fn program(refused: SeccompAction) -> io::Result<BpfProgram> {
    let rules: BTreeMap<_, _> = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let machine = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter =
        SeccompFilter::new(rules, refused, SeccompAction::Allow, machine).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_confined_thread_still_talks_and_does_nothing_else() {
        let confined = std::thread::spawn(|| {
            enter(SandboxMode::Enforce).unwrap();
            let (a, mut b) = UnixStream::pair().unwrap();
            drop(a);
            let silence = io::Read::read(&mut b, &mut [0]).unwrap();
            (
                silence,
                std::fs::File::open("/dev/null").is_err(),
                std::process::Command::new("true").spawn().is_err(),
            )
        });
        assert_eq!(confined.join().unwrap(), (0, true, true));
    }
}
