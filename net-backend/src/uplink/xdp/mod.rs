//! An AF_XDP socket as the uplink, by plain system calls.

mod attach;
mod bpf;
mod error;
mod filter;
mod interface;
mod netlink;
mod open;
mod partial;
mod program;
mod queue;
mod ring;
mod socket;
mod spec;
mod umem;

pub use error::OpenError;
pub use filter::{Filter, Groups, MAX_CHOSEN};
pub use open::{Control, Opened, Report, open};
pub use queue::{Buffers, Queue};
/// System calls of the queues and of [`Control`], for the sandbox. bpf(2) changes maps only: commands 1 to 4.
pub const SYSCALLS: &[i64] = &[libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_getsockopt, libc::SYS_bpf];

pub use spec::{DEFAULT_RING, MAX_RING, Mode, ModeChoice, Spec};

#[cfg(test)]
mod tests;
