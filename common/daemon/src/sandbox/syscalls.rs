//! seccomp: the system calls a daemon makes after its devices are open, and the few whose arguments matter.
//!
//! Calls that are always allowed cost nothing: the kernel keeps a bitmap of them and does not run the filter.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::Failure;
use crate::cli::SandboxMode;

/// Allowed with any arguments.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // Disk images, memory files and sockets.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_fallocate, libc::SYS_ftruncate,
    libc::SYS_fadvise64, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_flock,
    libc::SYS_fcntl, libc::SYS_dup, libc::SYS_dup3, libc::SYS_getdents64, libc::SYS_memfd_create, libc::SYS_pipe2,
    // Devices added later, their sockets made and removed; Landlock says where.
    libc::SYS_openat, libc::SYS_readlinkat, libc::SYS_unlinkat, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_fchmod, libc::SYS_fchown, libc::SYS_umask, libc::SYS_getcwd,
    libc::SYS_bind, libc::SYS_listen, libc::SYS_connect, libc::SYS_accept4, libc::SYS_accept, libc::SYS_shutdown,
    libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_getsockopt,
    libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    // Asynchronous I/O; what a ring may do is limited to descriptors this process holds.
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    // Waiting.
    libc::SYS_eventfd2, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
    libc::SYS_ppoll, libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4, libc::SYS_futex, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_restart_syscall,
    // Memory; `mmap` and `mprotect` are below.
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk, libc::SYS_mlock, libc::SYS_munlock,
    libc::SYS_membarrier,
    // Threads and their CPUs.
    libc::SYS_clone, libc::SYS_clone3, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_exit,
    libc::SYS_exit_group, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_tgkill, libc::SYS_tkill, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_getcpu,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // Clocks and facts.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_getrusage,
    libc::SYS_getrandom, libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getegid,
];

/// Older names of allowed calls, which only x86 has and C libraries still use.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_unlink,
    libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_dup2,
    libc::SYS_pipe, libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// No daemon has a reason to make these, whatever goes wrong: the process ends before they take effect.
#[rustfmt::skip]
const FATAL: &[i64] = &[
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_bpf,
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_setns, libc::SYS_unshare,
    libc::SYS_open_by_handle_at, libc::SYS_perf_event_open, libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_reboot,
];

/// `ioctl` requests on block devices and descriptors (`linux/fs.h`, `asm-generic/ioctls.h`).
#[rustfmt::skip]
const IOCTLS: &[u64] = &[
    0x1277,      // BLKDISCARD
    0x127d,      // BLKSECDISCARD
    0x127f,      // BLKZEROOUT
    0x8008_1272, // BLKGETSIZE64
    0x1268,      // BLKSSZGET
    0x127b,      // BLKPBSZGET
    0x1278,      // BLKIOMIN
    0x1279,      // BLKIOOPT
    0x127a,      // BLKALIGNOFF
    0x127e,      // BLKROTATIONAL
    0x1261,      // BLKFLSBUF
    0x125e,      // BLKROGET
    0x5421,      // FIONBIO, which is how Rust makes a socket non-blocking
    0x5451,      // FIOCLEX
    0x541b,      // FIONREAD
    0x5401,      // TCGETS, isatty(3)
];

/// `prctl` options: naming threads and anonymous memory, timer slack.
const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_TIMERSLACK as u64,
    0x5356_4d41, /* PR_SET_VMA */
];

/// A system call that is allowed with some first arguments only.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    pub number: i64,
    pub first: Vec<u64>,
}

/// Installs the filters for all threads.
pub(super) fn install(
    mode: SandboxMode,
    syscalls: &[i64],
    commands: &[Commands],
    ioctls: &[u64],
) -> Result<(), Failure> {
    let refused = match mode {
        SandboxMode::Off => return Ok(()),
        SandboxMode::Log => SeccompAction::Log,
        SandboxMode::Enforce => SeccompAction::Errno(libc::EPERM as u32),
    };
    let failed = |error: String| {
        Failure::runtime(format!("System calls cannot be filtered: {error}"))
            .hint("--no-sandbox runs without a filter")
    };
    let mut programs =
        vec![allow_list(refused, syscalls, commands, ioctls).map_err(|error| failed(error.to_string()))?];
    if mode == SandboxMode::Enforce {
        let numbers = commands.iter().map(|commands| commands.number);
        let wanted: Vec<i64> = syscalls.iter().copied().chain(numbers).collect();
        programs.push(deny_list(&wanted).map_err(|error| failed(error.to_string()))?);
    }
    // The last filter installed runs first, and the kernel takes the strictest answer of all. The filter that refuses
    // most comes last, because `seccomp` itself is not on its list.
    for program in programs.iter().rev() {
        seccompiler::apply_filter_all_threads(program).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

fn allow_list(
    refused: SeccompAction,
    syscalls: &[i64],
    commands: &[Commands],
    ioctls: &[u64],
) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    rules.insert(libc::SYS_ioctl, any_of(1, IOCTLS.iter().chain(ioctls))?);
    rules.insert(libc::SYS_prctl, any_of(0, PRCTLS)?);
    rules.insert(libc::SYS_socket, any_of(0, &[libc::AF_UNIX as u64])?);
    // Only reading a limit, of which glibc asks the stack's when a thread starts.
    rules.insert(libc::SYS_prlimit64, vec![rule(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?]);
    let never_executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, SeccompCmpArgLen::Dword, never_executable.clone(), 0)?]);
    }
    for Commands { number, first } in commands {
        rules.insert(*number, any_of(0, first)?);
    }
    // Last, so that a device that needs one of the above with any arguments gets it.
    rules.extend(ALLOWED.iter().chain(ALLOWED_HERE).chain(syscalls).map(|call| (*call, Vec::new())));
    compile(rules, refused, SeccompAction::Allow)
}

fn deny_list(syscalls: &[i64]) -> Result<BpfProgram, seccompiler::BackendError> {
    let fatal = FATAL.iter().filter(|call| !syscalls.contains(call)).map(|call| (*call, Vec::new()));
    compile(fatal.collect(), SeccompAction::Allow, SeccompAction::KillProcess)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// One rule for each value the argument may have.
fn any_of<'a>(
    argument: u8,
    values: impl IntoIterator<Item = &'a u64>,
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let equal = |value: &u64| rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value);
    values.into_iter().map(equal).collect()
}

fn rule(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_fatal() {
        assert!(FATAL.iter().all(|call| !ALLOWED.contains(call) && !ALLOWED_HERE.contains(call)));
    }

    #[test]
    fn the_filters_fit_in_a_bpf_program() {
        let program = allow_list(SeccompAction::Errno(1), &[libc::SYS_kill], &[], &[1, 2]).unwrap();
        assert!(program.len() < 4096, "{}", program.len());
        deny_list(&[]).unwrap();
    }

    #[test]
    fn a_call_with_chosen_commands_needs_rules_of_its_own() {
        let length =
            |commands: &[Commands]| allow_list(SeccompAction::Errno(1), &[], commands, &[]).unwrap().len();
        assert!(length(&[Commands { number: libc::SYS_bpf, first: vec![1, 2] }]) > length(&[]));
    }

    #[test]
    fn a_call_a_device_asks_for_is_not_fatal() {
        assert!(deny_list(&[libc::SYS_bpf]).unwrap().len() < deny_list(&[]).unwrap().len());
    }
}
