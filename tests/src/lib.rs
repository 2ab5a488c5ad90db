//! End-to-end tests of whole daemons: what the tests in `tests/` stand on.
//!
//! - [`bed`]: where the testbed and the binaries under test are.
//! - [`process`]: children that die with the test, and what `/proc` says about them.
//! - [`daemon`]: `vhostd-blk`, `vhostd-net`, and `qemu-storage-daemon` as a peer nobody here wrote.
//! - [`driver`]: a small user-space driver that can misbehave; [`bare`] is the ring under it, [`attack`] how to.
//! - [`guest`]: a Linux guest in QEMU, with a shell ([`shell`]) and a monitor ([`qmp`]).
//! - [`garbage`]: what no frontend should send. [`refusal`]: how a daemon says no.
//! - [`image`]: disk images. [`load`]: verified load in the guest.
//! - [`crypto`]: crypto devices and work for them. [`compress`]: the same for compression.
//! - [`net`]: network devices, namespaces, traffic and frontends for `vhostd-net`.
//!
//! A component that is missing is an error that names what to install; nothing is skipped.

pub mod attack;
pub mod bare;
mod base64;
pub mod bed;
pub mod compress;
pub mod crypto;
pub mod daemon;
pub mod driver;
pub mod garbage;
pub mod guest;
pub mod image;
mod line;
pub mod load;
pub mod net;
pub mod process;
pub mod qmp;
pub mod refusal;
pub mod shell;

/// True when `cargo xtask test --soak` asked for long runs.
pub fn soak() -> bool {
    std::env::var_os("VHOSTD_SOAK").is_some()
}

/// `normal` in an ordinary run, `long` in a soak.
pub fn rounds(normal: u32, long: u32) -> u32 {
    if soak() { long } else { normal }
}
