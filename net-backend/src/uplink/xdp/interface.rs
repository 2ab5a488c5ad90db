//! What there is to know of an interface before it becomes an uplink.

#![expect(unsafe_code, reason = "an ioctl without a wrapper in the standard library")]

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::ptr;

use super::error::OpenError;
use super::netlink::{self, DriverFeatures, Link, Netlink};
use crate::uplink::{MAX_NAME, is_name};

/// An interface of this network namespace.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub name: String,
    pub link: Link,
    /// Queues it receives on, at least one.
    pub queues: u32,
    /// What its driver says of AF_XDP, where the kernel asks it.
    pub driver: Option<DriverFeatures>,
}

impl Interface {
    pub(super) fn find(name: &str, netlink: &mut Netlink) -> Result<Self, OpenError> {
        check_name(name)?;
        let link =
            netlink.link(name).map_err(|error| OpenError::system("looking up the interface", error))?;
        let link = link.ok_or_else(|| OpenError::UnknownInterface(name.to_owned()))?;
        let driver = netlink::driver_features(link.index);
        Ok(Self { name: name.to_owned(), queues: receive_queues(name).unwrap_or(1), link, driver })
    }

    /// Whether frames may come from it that the kernel has not finished: from anything that is not hardware, and from
    /// anything at all in generic mode, where XDP runs behind the driver.
    pub(super) fn may_be_unfinished(&self, is_generic: bool) -> bool {
        is_generic || !self.link.has_parent
    }
}

fn check_name(name: &str) -> Result<(), OpenError> {
    let is_good = name.len() <= MAX_NAME && is_name(name);
    if is_good { Ok(()) } else { Err(OpenError::BadName(name.to_owned())) }
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Queues the interface receives on now; `None` where the driver does not tell.
fn receive_queues(name: &str) -> Option<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    // Any socket will do.
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0))).ok()?;
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: a structure of integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().take(MAX_NAME).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut channels).cast();
    // SAFETY: the name ends with a zero, and the data are a `struct ethtool_channels`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    (result == 0).then(|| (channels.rx + channels.combined).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a/b", "eth0:1", "two words", "sixteen-letters-"] {
            assert!(matches!(check_name(name), Err(OpenError::BadName(_))), "{name}");
        }
        for name in ["eth0", "fifteen-letters", "br-0.7"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }
}
