//! Why a TAP uplink cannot be opened: one sentence each, which says what to do.

use std::io;

use thiserror::Error;

use crate::uplink::MAX_NAME;

/// Why [`open`](super::open) failed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The name does not fit.
    #[error(
        "The interface name '{0}' is longer than {MAX_NAME} bytes, the most that Linux takes: choose a shorter one"
    )]
    NameTooLong(String),
    /// Not a name the kernel would take.
    #[error(
        "'{0}' cannot be the name of an interface: it must not be empty nor have '/', ':' or spaces in it"
    )]
    InvalidName(String),
    /// `attach`, and nothing to attach to.
    #[error(
        "There is no interface {0} to attach to: make it with `ip tuntap add {0} mode tap`, or leave out `attach`"
    )]
    Unknown(String),
    /// It exists as something else.
    #[error("The interface {0} exists and is not a TAP interface: choose another name, or remove it")]
    NotTap(String),
    /// Made without `multi_queue`.
    #[error(
        "The TAP interface {name} has one queue, but {queues} are needed: make it with `ip tuntap add {name} mode tap \
         multi_queue`, or use queues=1"
    )]
    NotMultiQueue {
        /// The interface.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// Its only queue is taken.
    #[error("The TAP interface {0} is in use by another process: stop that one, or choose another interface")]
    Busy(String),
    /// The kernel has a limit (256).
    #[error(
        "The TAP interface {name} does not take {queues} queues, of which others may have some: use fewer"
    )]
    TooManyQueues {
        /// The interface.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// No queue at all.
    #[error("A TAP uplink needs at least one queue")]
    NoQueue,
    /// Something needs a privilege.
    #[error("{what} needs the capability CAP_NET_ADMIN: {instead}")]
    MissingCapability {
        /// What was tried.
        what: String,
        /// How to do without, or how to get it.
        instead: String,
    },
    /// The kernel has no TUN/TAP.
    #[error("There is no /dev/net/tun here: load the kernel module tun, or give the container that device")]
    NoDriver,
    /// The device node is not ours to open.
    #[error("/dev/net/tun may not be opened by this user: its permissions should be 0666, or run as root")]
    DriverForbidden,
    /// Out of the interface's range.
    #[error("The TAP interface {name} does not take an MTU of {mtu}: give one from 68 to 65521")]
    Mtu {
        /// The interface.
        name: String,
        /// What was asked for.
        mtu: u32,
    },
    /// Nothing to attach the interface to.
    #[error("There is no bridge {0}: make it with `ip link add {0} type bridge`, or leave out `bridge`")]
    NoBridge(String),
    /// Exists as something else.
    #[error("The interface {0} is not a bridge: give the name of one, or leave out `bridge`")]
    NotBridge(String),
    /// Somebody else's port.
    #[error(
        "The TAP interface {name} belongs to another bridge already: remove it from there with `ip link set {name} \
         nomaster`, or leave out `bridge`"
    )]
    OtherBridge {
        /// The interface.
        name: String,
    },
    /// Not an open file.
    #[error("File descriptor {0} is not open: pass the descriptor of an open TAP queue")]
    NotOpen(i32),
    /// An open file, but no queue.
    #[error(
        "File descriptor {0} is not a queue of a TAP interface: pass one that TUNSETIFF was called on with IFF_TAP"
    )]
    NotQueue(i32),
    /// Frames would have four bytes before them.
    #[error("File descriptor {0} was opened without IFF_NO_PI: open it with that flag")]
    PacketInformation(i32),
    /// They would be two uplinks.
    #[error("The file descriptors are queues of two interfaces, {0} and {1}: pass those of one")]
    Mixed(String, String),
    /// Anything else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl OpenError {
    /// What the kernel said when `what` was tried.
    pub(super) fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}
