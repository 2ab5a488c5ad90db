//! A network namespace for a test, and the host's side of a TAP interface in it.

#![expect(unsafe_code, reason = "namespaces, and packet sockets with a virtio-net header")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use memory::{GuestAddr, HostRange, MemoryView, OwnMemory};
use net_backend::frame::{Body, NetHeader, Packet};
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::tap::{self, Queue, Source, Spec};

/// An experimental EtherType (IEEE 802), which no network stack answers to.
pub const ETHERTYPE: u16 = 0x88b5;

/// Gives this thread a network namespace of its own, which ends with the thread. False, with a note, where that is
/// forbidden; never on a machine of the continuous integration.
pub fn own_namespace(test: &str) -> bool {
    // SAFETY: no pointers; concerns this thread only.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result == 0 && std::path::Path::new("/dev/net/tun").exists() {
        // Nothing but the test's own frames.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        return true;
    }
    let why = io::Error::last_os_error();
    assert!(std::env::var_os("CI").is_none(), "no namespace or no TAP: {why}");
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: needs root and /dev/net/tun ({why})");
    false
}

/// Starts a test in a namespace of its own, or leaves it.
#[macro_export]
macro_rules! in_namespace {
    () => {
        if !tap_support::own_namespace(module_path!()) {
            return;
        }
    };
}

/// Runs `ip` with these arguments in this thread's namespace.
pub fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether an interface of this name is there.
pub fn exists(name: &str) -> bool {
    Command::new("ip").args(["link", "show", name]).output().is_ok_and(|output| output.status.success())
}

/// The default uplink on the interface `name`.
pub fn spec(name: &str) -> Spec {
    Spec::new(Source::Name(name.into()))
}

/// The one queue of an uplink.
pub fn open_one(spec: &Spec) -> Queue {
    let mut queues = tap::open(spec, 1).expect("the uplink opens");
    assert_eq!(queues.len(), 1);
    queues.remove(0)
}

/// `len` bytes that are like no other frame's, from addresses that are nobody's.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 0x99, 0x52, 0x54, 0, 0, 0, seed];
    frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed));
    frame
}

/// Waits for `condition`.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Guest memory with a frame in it.
pub struct Guest {
    pub view: MemoryView,
    memory: OwnMemory,
}

impl Guest {
    pub fn new() -> Self {
        let memory = OwnMemory::new(1 << 20, GuestAddr(0)).expect("memory");
        Self { view: MemoryView::new(memory.table().clone()), memory }
    }

    /// Memory of `len` bytes.
    pub fn room(&self, len: usize) -> HostRange {
        let at = self.memory.alloc(len, 1).expect("room");
        self.memory.slice(at, len).expect("inside").range()
    }

    /// Puts `bytes` there in pieces of `piece` bytes.
    pub fn put(&self, bytes: &[u8], piece: usize) -> Vec<HostRange> {
        let put = |bytes: &[u8]| {
            let range = self.room(bytes.len());
            self.view.reenter(range).expect("inside").write(0, bytes);
            range
        };
        bytes.chunks(piece).map(put).collect()
    }

    /// What is in the ranges.
    pub fn bytes(&self, ranges: &[HostRange]) -> Vec<u8> {
        bytes_of(&self.view, ranges)
    }
}

/// What is in the ranges of `view`.
pub fn bytes_of(view: &MemoryView, ranges: &[HostRange]) -> Vec<u8> {
    let len = ranges.iter().map(|range| range.len).sum();
    let mut bytes = vec![0; len];
    assert_eq!(Body::new(view, ranges, 0, len).read(&mut bytes), len);
    bytes
}

/// Sends `bytes` with this header: `head` bytes from private memory, the others from a guest's, in pieces.
pub fn send(
    queue: &mut Queue,
    header: NetHeader,
    bytes: &[u8],
    head: usize,
    piece: usize,
) -> Result<(), net_backend::switch::Drop> {
    let guest = Guest::new();
    let head = head.min(bytes.len());
    let ranges = guest.put(&bytes[head..], piece);
    let body = Body::new(&guest.view, &ranges, 0, bytes.len() - head);
    queue.send(&Packet { header, head: &bytes[..head], body })?;
    assert_eq!(queue.flush(), 0);
    Ok(())
}

/// The next frame from the host, which must come.
pub fn receive(queue: &mut Queue) -> (NetHeader, Vec<u8>) {
    let mut arrived = None;
    wait_for("a frame from the host", || {
        arrived = queue.receive_one();
        arrived.is_some()
    });
    let (header, range) = arrived.expect("waited for");
    let bytes = bytes_of(queue.view(), &[range]);
    queue.release();
    (header, bytes)
}

/// A packet socket on an interface: it sends to the TAP's queues, and sees what they send.
pub struct Host(OwnedFd);

const VIRTIO_NET_HEADER: usize = 10;

impl Host {
    /// On the interface `name`, for frames of `ethertype`.
    pub fn new(name: &str, ethertype: u16) -> Self {
        let protocol = ethertype.to_be();
        // SAFETY: no pointers.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol.into()) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: new, and nobody else's.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.option(libc::PACKET_VNET_HDR, 1);
        let name = std::ffi::CString::new(name).expect("a name");
        // SAFETY: a terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: all zeros are a valid address.
        let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the address and its length.
        let bound = unsafe {
            libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        assert_eq!(bound, 0, "bind: {}", io::Error::last_os_error());
        socket
    }

    fn option(&self, option: i32, value: i32) {
        let value = &raw const value;
        // SAFETY: an int and its length.
        let set = unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_PACKET, option, value.cast(), 4) };
        assert_eq!(set, 0, "option {option}: {}", io::Error::last_os_error());
    }

    /// Sends a frame to the TAP.
    pub fn send(&self, header: NetHeader, frame: &[u8]) {
        let mut bytes = header.to_bytes()[..VIRTIO_NET_HEADER].to_vec();
        bytes.extend_from_slice(frame);
        // SAFETY: initialised bytes and their number.
        let sent = unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        assert_eq!(sent, bytes.len() as isize, "send: {}", io::Error::last_os_error());
    }

    /// A frame that has come from the TAP, if there is one.
    pub fn try_receive(&self) -> Option<(NetHeader, Vec<u8>)> {
        let mut bytes = vec![0; 80_000];
        // SAFETY: a buffer and its length.
        let read = unsafe { libc::read(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        let read = usize::try_from(read).ok()?;
        bytes.truncate(read);
        let frame = bytes.split_off(VIRTIO_NET_HEADER);
        Some((NetHeader::parse_trusted(&bytes).expect("the kernel's header"), frame))
    }

    /// The next frame from the TAP, which must come.
    pub fn receive(&self) -> (NetHeader, Vec<u8>) {
        let mut frame = None;
        wait_for("a frame from the uplink", || {
            frame = self.try_receive();
            frame.is_some()
        });
        frame.expect("waited for")
    }
}

/// A frame of TCP over IPv4 with `payload` bytes, whose checksum is left to be completed.
pub fn tcp_frame(payload: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 0x99, 0x52, 0x54, 0, 0, 0, seed, 8, 0];
    let total = (40 + payload) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let check = !fold(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    frame.extend_from_slice(&ip);
    let mut tcp = [0x30, 0x39, 0, seed, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    // The pseudo header's sum, as NEEDS_CSUM wants it.
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&(20 + payload as u16).to_be_bytes());
    tcp[16..18].copy_from_slice(&fold(&pseudo).to_be_bytes());
    frame.extend_from_slice(&tcp);
    frame.extend((0..payload).map(|at| (at as u8).wrapping_mul(7) ^ seed ^ (at >> 8) as u8));
    frame
}

/// The Internet checksum's sum of an even number of bytes.
pub fn fold(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
