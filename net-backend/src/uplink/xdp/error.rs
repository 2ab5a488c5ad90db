//! Why an interface cannot be the uplink: one sentence each, which says what to do.

use std::io;

use thiserror::Error;

/// Why an AF_XDP uplink could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The name is empty, too long or has characters that the kernel refuses.
    #[error(
        "{0:?} is no name of a network interface: those have 1 to 15 characters, without spaces, slashes and colons"
    )]
    BadName(String),
    /// There is no such interface.
    #[error(
        "There is no network interface {0} in this network namespace: `ip link` lists those that are there"
    )]
    UnknownInterface(String),
    /// A privilege is missing.
    #[error(
        "No permission for {what}: run as root, or with the capabilities CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
    )]
    Privilege {
        /// What was refused.
        what: &'static str,
    },
    /// Another AF_XDP socket is bound to the queue.
    #[error(
        "Queue {queue} of {interface} is used by another AF_XDP socket: stop the program that has it, or use another interface"
    )]
    QueueBusy {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
    },
    /// The interface has an XDP program that is not ours.
    #[error(
        "{interface} has an XDP program already, {name:?} (id {id}): detach it with `ip link set dev {interface} xdp off`, or stop the program that attached it"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// Name of the program there.
        name: String,
        /// Its number in the kernel.
        id: u32,
    },
    /// Frames of this size need several buffers each, and the kernel has only single ones.
    #[error(
        "An MTU of {mtu} bytes on {interface} needs XDP_USE_SG (Linux 6.6): set it to {most} or less with `ip link set dev {interface} mtu {most}`"
    )]
    MtuTooLarge {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// What fits in one buffer.
        most: u32,
    },
    /// The kernel was built without CONFIG_XDP_SOCKETS.
    #[error("This kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS): use a TAP uplink, or another kernel")]
    NoXdpSockets,
    /// The kernel was built without bpf(2).
    #[error("This kernel has no bpf system call (CONFIG_BPF_SYSCALL): use a TAP uplink, or another kernel")]
    NoBpf,
    /// None of the modes that may be tried works here.
    #[error("{interface} has no AF_XDP mode that may be used: {reasons}")]
    NoMode {
        /// The interface.
        interface: String,
        /// What each mode failed with.
        reasons: String,
    },
    /// The kernel pins the buffers and counts them as locked memory.
    #[error(
        "{kib} KiB of buffers are more than may be locked: raise RLIMIT_MEMLOCK (LimitMEMLOCK= of a systemd unit), or set ring= to a smaller size"
    )]
    LockedMemory {
        /// Size of the buffers.
        kib: usize,
    },
    /// A set of options that contradict each other or are out of range.
    #[error("{0}")]
    BadOption(String),
    /// Anything else that a system call answered.
    #[error("The kernel refused {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// The error of a system call, with what is known to be meant by a missing privilege.
    pub(super) fn system(what: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { what },
            _ => Self::System { what, source },
        }
    }
}
