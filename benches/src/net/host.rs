#![expect(unsafe_code, reason = "packet sockets: socket(2), bind(2), sendmmsg(2)")]
//! The host's end of an uplink: frames sent into an interface, and frames counted at it.

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use super::frame::{self, Flow, TAG, Tag, Template};
use super::wire::HEADER;

/// Most frames in one system call.
const BATCH: usize = 64;

/// Where frames of a guest are counted that leave by the uplink.
pub enum Counter {
    /// Where an interface hands them to the host.
    Interface(String),
    /// Where the host hands datagrams to a socket. Nobody reads it: once it is full the kernel counts each that it brings
    /// there, and the processor is left to the backend.
    Socket(UdpSocket),
}

impl Counter {
    /// Opens the socket that the frames of [`Flow`]s to guest 1 are for.
    pub fn socket(interface: &str) -> Result<Self> {
        let (address, port) = frame::destination(1);
        let socket = UdpSocket::bind((address, port)).with_context(|| {
            format!("Cannot receive on {address}:{port}: give it to {interface} (ip address add {address}/24 dev {interface})")
        })?;
        Ok(Self::Socket(socket))
    }

    /// How many so far.
    pub fn count(&self) -> Result<u64> {
        match self {
            Self::Interface(interface) => packets(interface),
            Self::Socket(_) => datagrams(),
        }
    }
}

/// Frames that `interface` has handed to the host.
fn packets(interface: &str) -> Result<u64> {
    let path = format!("/sys/class/net/{interface}/statistics/rx_packets");
    let text = std::fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} has no number"))
}

/// Datagrams that the kernel has brought to sockets: those that were read, and those that found the socket full.
fn datagrams() -> Result<u64> {
    const PATH: &str = "/proc/net/snmp";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("Cannot read {PATH}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let wanted = |(name, _): &(&str, &str)| matches!(*name, "InDatagrams" | "RcvbufErrors");
    names.split(' ').zip(values.split(' ')).filter(wanted).try_fold(0, |sum, (_, value)| {
        Ok(sum + value.parse::<u64>().with_context(|| format!("{PATH} has no number"))?)
    })
}

/// Sends the frames of one stream into an interface through a packet socket.
pub struct Sender {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
    stream: u8,
    tag_at: usize,
    number: u64,
    whole: bool,
}

impl Sender {
    /// Opens a packet socket on `interface`. `whole`: the payload follows from the tag, else only the tag changes.
    pub fn open(interface: &str, flow: Flow, size: usize, stream: u8, whole: bool) -> Result<Self> {
        let socket =
            packet_socket(interface).with_context(|| format!("Cannot send on {interface} (CAP_NET_RAW)"))?;
        let template = Template::new(flow, size, false);
        let mut frame = template.head()[HEADER..].to_vec();
        frame.resize(size, 0);
        let tag_at = template.tag_at() - HEADER;
        Ok(Self { socket, frames: vec![frame; BATCH], stream, tag_at, number: 0, whole })
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.number
    }

    /// Sends up to `count` frames with one system call; returns how many the interface took.
    pub fn send(&mut self, count: u32) -> u32 {
        let count = BATCH.min(count as usize);
        for (frame, number) in self.frames[..count].iter_mut().zip(self.number..) {
            let tag = Tag { stream: self.stream, number }.word();
            frame[self.tag_at..self.tag_at + TAG].copy_from_slice(&tag.to_le_bytes());
            if self.whole {
                frame::fill(tag, &mut frame[self.tag_at + TAG..]);
            }
        }
        let sent = send_all(&self.socket, &self.frames[..count]);
        self.number += u64::from(sent);
        sent
    }
}

fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let name = CString::new(interface).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `name` is a string with a terminating zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers. Protocol 0: the socket receives nothing.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of the length passed.
    if unsafe { libc::bind(fd, std::ptr::from_ref(&address).cast(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    bypass_qdisc(&socket);
    Ok(socket)
}

/// A queueing discipline costs the sender more than the backend costs: go past it where the kernel can.
fn bypass_qdisc(socket: &OwnedFd) {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS);
    // SAFETY: `on` is an int of the length passed. Without it frames go through the discipline: slower, nothing worse.
    let _ =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&on).cast(), len) };
}

fn send_all(socket: &OwnedFd, frames: &[Vec<u8>]) -> u32 {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all-zero is a valid mmsghdr: no name, no control data, no flags.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    // SAFETY: each message has one iovec over a frame that outlives the call and is only read.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0) };
    u32::try_from(sent).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = format!("{:#}", packets("no-such-if0").unwrap_err());
        assert!(error.contains("no-such-if0"), "{error}");
        let flow = Flow { from: 0, to: 1, queue: 0 };
        let error = format!("{:#}", Sender::open("no-such-if0", flow, 64, 0, false).err().unwrap());
        assert!(error.contains("Cannot send on no-such-if0"), "{error}");
    }

    #[test]
    fn the_loopback_interface_counts_its_frames() {
        assert!(packets("lo").is_ok());
    }

    #[test]
    fn a_datagram_counts_when_it_was_read_or_found_the_socket_full() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = datagrams().unwrap();
        sender.send_to(&[1], socket.local_addr().unwrap()).unwrap();
        socket.recv_from(&mut [0]).unwrap();
        assert!(datagrams().unwrap() > before);
    }
}
