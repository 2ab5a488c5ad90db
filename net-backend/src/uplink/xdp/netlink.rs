//! As much netlink as an uplink needs: what an interface is, what its driver can do for AF_XDP, and which XDP program it
//! has.

#![expect(unsafe_code, reason = "system calls without a wrapper in the standard library")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct nlmsghdr`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct ifinfomsg`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LinkHeader {
    family: u8,
    pad: u8,
    kind: u16,
    index: i32,
    flags: u32,
    change: u32,
}

const HEADER: usize = size_of::<Header>();
const LINK_HEADER: usize = size_of::<LinkHeader>();
/// `struct genlmsghdr`: command, version, two bytes of nothing.
const GENERIC_HEADER: usize = 4;

const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;

/// An XDP program is attached in generic mode.
pub(super) const ATTACH_GENERIC: u32 = 1 << 1;
/// An XDP program is attached in the driver.
pub(super) const ATTACH_NATIVE: u32 = 1 << 2;
/// Only if there is none yet.
const ATTACH_IF_NONE: u32 = 1 << 0;

/// What RTM_GETLINK tells of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number.
    pub index: u32,
    /// Largest packet, without the Ethernet header.
    pub mtu: u32,
    /// IFF_UP.
    pub is_up: bool,
    /// "veth", "tun", "bridge", ...; empty for hardware.
    pub kind: String,
    /// Whether there is a piece of hardware (or a virtual machine's imitation of one) behind it.
    pub has_parent: bool,
    /// The XDP program that is there, with the flag of its mode.
    pub program: Option<(u32, u32)>,
}

/// What a driver tells of its AF_XDP (`netdev` family, Linux 6.3 and later).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DriverFeatures {
    /// `NETDEV_A_DEV_XDP_FEATURES`.
    pub xdp: u64,
    /// `NETDEV_A_DEV_XSK_FEATURES`.
    pub sockets: u64,
    /// Most buffers a frame may have with zero copy.
    pub zero_copy_segments: u32,
}

/// `NETDEV_XDP_ACT_XSK_ZEROCOPY`: zero copy is there.
pub(super) const ACT_ZERO_COPY: u64 = 1 << 3;
/// `NETDEV_XSK_FLAGS_TX_CHECKSUM`: the hardware completes checksums of frames sent with zero copy.
pub(super) const SOCKETS_CHECKSUM: u64 = 1 << 1;

/// One netlink socket.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// For questions about links.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// What there is to know of an interface; `None` when there is none of that name.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut request = Message::new(libc::RTM_GETLINK, 0);
        request.put(LinkHeader { family: 0, pad: 0, kind: 0, index: 0, flags: 0, change: 0 }.as_bytes());
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        request.attribute(libc::IFLA_IFNAME, &name);
        match self.ask(request) {
            Ok(answer) => answer.map(|bytes| link_of(&bytes)).transpose(),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Attaches a program where none is; it stays there until somebody takes it away, the end of the process included.
    pub(super) fn attach(&mut self, interface: u32, program: RawFd, mode: u32) -> io::Result<()> {
        self.set_program(interface, program, mode | ATTACH_IF_NONE)
    }

    /// Takes away whatever program is attached in this mode.
    pub(super) fn detach(&mut self, interface: u32, mode: u32) -> io::Result<()> {
        self.set_program(interface, -1, mode)
    }

    fn set_program(&mut self, interface: u32, program: RawFd, flags: u32) -> io::Result<()> {
        let mut request = Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK as u16);
        let index = interface as i32;
        request.put(LinkHeader { family: 0, pad: 0, kind: 0, index, flags: 0, change: 0 }.as_bytes());
        let mut nested = Message::default();
        nested.attribute(IFLA_XDP_FD, &program.to_ne_bytes());
        nested.attribute(IFLA_XDP_FLAGS, &flags.to_ne_bytes());
        request.attribute(IFLA_XDP | libc::NLA_F_NESTED as u16, &nested.0);
        self.ask(request).map(drop)
    }

    fn open(protocol: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointers are passed. The descriptor is new, and ours alone.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and returns what follows the header in the answer, or nothing for a bare acknowledgement.
    fn ask(&mut self, request: Message) -> io::Result<Option<Vec<u8>>> {
        self.sequence += 1;
        let request = request.finish(self.sequence);
        // SAFETY: the request is only read.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), request.as_ptr().cast(), request.len(), libc::MSG_NOSIGNAL)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut buffer = vec![0; 64 << 10];
        loop {
            // SAFETY: the buffer has room for as many bytes as are asked for.
            let len =
                unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if len < 0 {
                return Err(io::Error::last_os_error());
            }
            let (header, rest) =
                Header::read_from_prefix(&buffer[..len as usize]).map_err(|_| malformed())?;
            if header.sequence == self.sequence {
                return answer_of(&header, rest);
            }
        }
    }
}

/// What the driver of an interface says of its AF_XDP; `None` where the kernel has no such question.
pub(super) fn driver_features(interface: u32) -> Option<DriverFeatures> {
    const GENL_ID_CTRL: u16 = 0x10;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    const NETDEV_CMD_DEV_GET: u8 = 1;
    const NETDEV_A_DEV_IFINDEX: u16 = 1;
    let mut netlink = Netlink::open(libc::NETLINK_GENERIC).ok()?;
    let mut ask = |family: u16, command: u8, version: u8, attribute: u16, value: &[u8]| {
        let mut request = Message::new(family, 0);
        request.put(&[command, version, 0, 0]);
        request.attribute(attribute, value);
        netlink.ask(request).ok().flatten()
    };
    let family = ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, CTRL_ATTR_FAMILY_NAME, b"netdev\0")?;
    let id = attributes(family.get(GENERIC_HEADER..)?).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)?.1;
    let id = u16::from_ne_bytes(id.get(..2)?.try_into().ok()?);
    let device = ask(id, NETDEV_CMD_DEV_GET, 1, NETDEV_A_DEV_IFINDEX, &interface.to_ne_bytes())?;
    Some(features_of(device.get(GENERIC_HEADER..)?))
}

fn features_of(device: &[u8]) -> DriverFeatures {
    const XDP_FEATURES: u16 = 3;
    const XDP_ZC_MAX_SEGS: u16 = 4;
    const XSK_FEATURES: u16 = 6;
    let mut features = DriverFeatures::default();
    for (kind, value) in attributes(device) {
        match kind {
            XDP_FEATURES => features.xdp = integer(value),
            XDP_ZC_MAX_SEGS => features.zero_copy_segments = integer(value) as u32,
            XSK_FEATURES => features.sockets = integer(value),
            _ => {}
        }
    }
    features
}

fn link_of(bytes: &[u8]) -> io::Result<Link> {
    let (header, rest) = LinkHeader::read_from_prefix(bytes).map_err(|_| malformed())?;
    let is_up = header.flags & libc::IFF_UP as u32 != 0;
    let mut link = Link { index: header.index as u32, is_up, ..Link::default() };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFLA_MTU => link.mtu = integer(value) as u32,
            IFLA_LINKINFO => link.kind = kind_of(value),
            IFLA_PARENT_DEV_NAME => link.has_parent = true,
            IFLA_XDP => link.program = program_of(value),
            _ => {}
        }
    }
    Ok(link)
}

fn kind_of(info: &[u8]) -> String {
    let kind = attributes(info).find(|(kind, _)| *kind == IFLA_INFO_KIND).map_or(&[][..], |(_, value)| value);
    String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned()
}

fn program_of(xdp: &[u8]) -> Option<(u32, u32)> {
    let find =
        |wanted| attributes(xdp).find(|(kind, _)| *kind == wanted).map(|(_, value)| integer(value) as u32);
    let native = find(IFLA_XDP_DRV_PROG_ID).map(|id| (id, ATTACH_NATIVE));
    let generic = || find(IFLA_XDP_SKB_PROG_ID).map(|id| (id, ATTACH_GENERIC));
    let other = || find(IFLA_XDP_PROG_ID).map(|id| (id, 0));
    native.or_else(generic).or_else(other).filter(|(id, _)| *id != 0)
}

fn answer_of(header: &Header, rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    if i32::from(header.kind) != libc::NLMSG_ERROR {
        let len = (header.len as usize).saturating_sub(HEADER).min(rest.len());
        return Ok(Some(rest[..len].to_vec()));
    }
    match i32::read_from_prefix(rest) {
        Ok((0, _)) => Ok(None),
        Ok((error, _)) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
        Err(_) => Err(malformed()),
    }
}

/// Unsigned, of whatever width.
fn integer(value: &[u8]) -> u64 {
    value.iter().take(8).rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// The attributes of a message; ends at the first that is not whole.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & libc::NLA_TYPE_MASK as u16, value))
    })
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "A netlink answer is shorter than its header")
}

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let flags = flags | libc::NLM_F_REQUEST as u16;
        Self(Header { len: 0, kind, flags, sequence: 0, port: 0 }.as_bytes().to_vec())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = (value.len() + 4) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.put(value);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

// The lengths above are those of the kernel's structures.
const _: () = assert!(HEADER == 16 && LINK_HEADER == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_described_without_any_privilege() {
        let mut netlink = Netlink::route().expect("a netlink socket");
        let link = netlink.link("lo").expect("an answer").expect("lo is always there");
        assert_eq!((link.index, link.has_parent, link.program), (1, false, None));
        assert!(link.mtu >= 1280);
        assert_eq!(netlink.link("no-such-if").expect("an answer"), None);
    }

    #[test]
    fn attributes_that_are_cut_off_end_the_list() {
        let mut message = Message::default();
        message.attribute(7, b"abc");
        message.attribute(8, b"defg");
        let whole: Vec<_> = attributes(&message.0).collect();
        assert_eq!(whole, [(7, &b"abc"[..]), (8, &b"defg"[..])]);
        assert_eq!(attributes(&message.0[..12]).count(), 1);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[]).count(), 0);
    }
}
