//! Requests to the kernel about interfaces: `ioctl` on queues of a TAP (linux/if_tun.h) and on a socket (netdevice(7)).

#![expect(unsafe_code, reason = "ioctl")]

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::uplink::MAX_NAME;

const SIOCBRADDIF: u64 = 0x89a2;
const SIOCDEVPRIVATE: u64 = 0x89f0;
/// `BRCTL_GET_PORT_LIST` of linux/if_bridge.h.
const BRCTL_GET_PORT_LIST: c_ulong = 7;
/// Ports a bridge can have (`BR_MAX_PORTS`).
const BRIDGE_PORTS: usize = 1024;
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ifreq`: a name and a union, of which `value` is the raw form.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Request {
    name: [u8; MAX_NAME + 1],
    value: [u8; 24],
}

impl Request {
    /// A request about the interface `name`, which has at most [`MAX_NAME`] bytes.
    pub(super) fn about(name: &str) -> Self {
        let mut request = Self { name: [0; MAX_NAME + 1], value: [0; 24] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }

    pub(super) fn with_flags(mut self, flags: u16) -> Self {
        self.value[..2].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn with_int(mut self, value: i32) -> Self {
        self.value[..4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn with_pointer<T>(mut self, data: *mut T) -> Self {
        self.value[..8].copy_from_slice(&(data.expose_provenance() as u64).to_ne_bytes());
        self
    }

    pub(super) fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.value[0], self.value[1]])
    }

    fn int(&self) -> i32 {
        i32::from_ne_bytes([self.value[0], self.value[1], self.value[2], self.value[3]])
    }

    /// The name, which the kernel may have completed.
    pub(super) fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An `ioctl` on a queue that reads and writes a [`Request`].
pub(super) fn exchange(fd: impl AsFd, code: libc::Ioctl, request: &mut Request) -> io::Result<()> {
    // SAFETY: the codes used here take a `struct ifreq`, which `Request` is laid out as.
    checked(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, std::ptr::from_mut(request)) })
}

/// An `ioctl` on a queue whose argument is a pointer to an `int`.
pub(super) fn set_int(fd: impl AsFd, code: libc::Ioctl, value: i32) -> io::Result<()> {
    // SAFETY: the codes used here read one `int`.
    checked(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, std::ptr::from_ref(&value)) })
}

/// An `ioctl` on a queue whose argument is the value itself.
pub(super) fn set_value(fd: impl AsFd, code: libc::Ioctl, value: u32) -> io::Result<()> {
    // SAFETY: the codes used here take no pointer.
    checked(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code, c_ulong::from(value)) })
}

/// A socket to ask and tell the kernel about interfaces of this network namespace.
pub(super) struct Control(OwnedFd);

impl Control {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        checked(fd)?;
        // SAFETY: a new descriptor, which nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn call(&self, code: u64, mut request: Request) -> io::Result<Request> {
        exchange(&self.0, code as libc::Ioctl, &mut request)?;
        Ok(request)
    }

    /// The interface's number, if it exists.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(self.call(libc::SIOCGIFINDEX, Request::about(name))?.int() as u32)
    }

    pub(super) fn mtu(&self, name: &str) -> io::Result<u32> {
        Ok(self.call(libc::SIOCGIFMTU, Request::about(name))?.int() as u32)
    }

    pub(super) fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mtu = i32::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.call(libc::SIOCSIFMTU, Request::about(name).with_int(mtu)).map(drop)
    }

    pub(super) fn set_queue_length(&self, name: &str, frames: u32) -> io::Result<()> {
        let frames = i32::try_from(frames).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.call(libc::SIOCSIFTXQLEN, Request::about(name).with_int(frames)).map(drop)
    }

    /// Takes the interface up, if it is not.
    pub(super) fn bring_up(&self, name: &str) -> io::Result<()> {
        let flags = self.call(libc::SIOCGIFFLAGS, Request::about(name))?.flags();
        let up = libc::IFF_UP as u16;
        if flags & up != 0 {
            return Ok(());
        }
        self.call(libc::SIOCSIFFLAGS, Request::about(name).with_flags(flags | up)).map(drop)
    }

    /// Whether the interface is a TAP, as its driver says.
    pub(super) fn is_tap(&self, name: &str) -> bool {
        /// `struct ethtool_drvinfo`.
        #[repr(C)]
        struct Driver {
            command: u32,
            driver: [u8; 32],
            versions: [[u8; 32]; 2],
            bus: [u8; 32],
            rest: [u8; 64],
        }
        let mut driver = Driver {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            versions: [[0; 32]; 2],
            bus: [0; 32],
            rest: [0; 64],
        };
        let request = Request::about(name).with_pointer(&raw mut driver);
        self.call(libc::SIOCETHTOOL, request).is_ok()
            && driver.driver.starts_with(b"tun\0")
            && driver.bus.starts_with(b"tap\0")
    }

    /// The numbers of a bridge's ports.
    pub(super) fn bridge_ports(&self, bridge: &str) -> io::Result<Vec<u32>> {
        let mut ports = vec![0_i32; BRIDGE_PORTS];
        let list = ports.as_mut_ptr().expose_provenance() as c_ulong;
        let mut arguments: [c_ulong; 4] = [BRCTL_GET_PORT_LIST, list, BRIDGE_PORTS as c_ulong, 0];
        self.call(SIOCDEVPRIVATE, Request::about(bridge).with_pointer(&raw mut arguments))?;
        Ok(ports.into_iter().filter(|&port| port > 0).map(|port| port as u32).collect())
    }

    pub(super) fn add_to_bridge(&self, bridge: &str, index: u32) -> io::Result<()> {
        self.call(SIOCBRADDIF, Request::about(bridge).with_int(index as i32)).map(drop)
    }
}
