//! Two network namespaces joined by a veth pair: this thread's, with the uplink, and another, with a host.

#![expect(unsafe_code, reason = "namespaces and packet sockets")]

use std::io::{self, Write as _};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use memory::{GuestAddr, MemoryView, OwnMemory};
use net_backend::frame::{Body, NetHeader, Packet};
use net_backend::switch::Drop as Reason;
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::xdp::{self, ModeChoice, Opened, Queue, Spec};

/// An experimental EtherType (IEEE 802), which no network stack answers to.
pub const ETHERTYPE: u16 = 0x88b5;

/// The modes that a veth has.
pub const MODES: [ModeChoice; 2] = [ModeChoice::Copy, ModeChoice::Generic];

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own; interface and namespace end with it.
pub struct Far {
    thread_id: i32,
    jobs: mpsc::Sender<Job>,
}

impl Far {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            own_namespace().expect("a second namespace");
            // SAFETY: no preconditions.
            ready.send(unsafe { libc::gettid() }).expect("somebody waits");
            inbox.iter().for_each(|job| job());
        });
        Self { thread_id: is_ready.recv().expect("a namespace"), jobs }
    }

    /// Starts `work` in there.
    pub fn start<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> mpsc::Receiver<R> {
        let (answer, result) = mpsc::channel();
        let job = move || {
            let _ = answer.send(work());
        };
        self.jobs.send(Box::new(job)).expect("the thread lives");
        result
    }

    /// Does `work` in there.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        self.start(work).recv_timeout(Duration::from_secs(30)).expect("the work ends without a panic")
    }

    pub fn ip(&self, arguments: impl Into<String>) {
        let arguments = arguments.into();
        self.run(move || ip(&arguments));
    }

    /// A veth pair between `near` here and `far` there, with further `options`, both up.
    pub fn join(&self, near: &str, far: &str, options: &str, far_options: &str) {
        let thread = self.thread_id;
        ip(&format!("link add {near} {options} type veth peer name {far} {far_options} netns {thread}"));
        ip(&format!("link set {near} up"));
        self.ip(format!("link set {far} up"));
    }
}

fn own_namespace() -> io::Result<()> {
    // SAFETY: no pointers; concerns this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Nothing but the test's own frames.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").or(Ok(()))
}

/// The uplink's namespace on this thread, and the other, joined by `v0` here and `v1` there. `None`, with a note, where
/// namespaces are forbidden; never on a machine of the continuous integration.
pub fn bed(test: &str) -> Option<Far> {
    match own_namespace() {
        Ok(()) => {
            let far = Far::new();
            far.join("v0", "v1", "", "");
            Some(far)
        }
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "no namespace: {why}");
            let _ = writeln!(io::stderr(), "SKIPPED: {test}: needs root ({why})");
            None
        }
    }
}

/// Starts a test in namespaces of its own, or leaves it.
#[macro_export]
macro_rules! bed {
    () => {
        match $crate::support::bed(module_path!()) {
            Some(far) => far,
            None => return,
        }
    };
}

/// Runs `ip` with these arguments in this thread's namespace.
pub fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether an XDP program is on the interface.
pub fn has_program(name: &str) -> bool {
    let output = Command::new("ip").args(["link", "show", name]).output().expect("iproute2 is installed");
    String::from_utf8_lossy(&output.stdout).contains("xdp")
}

/// Sets the MTU of both ends of `v0` and `v1`.
pub fn set_mtu(far: &Far, mtu: u32) {
    ip(&format!("link set v0 mtu {mtu}"));
    far.ip(format!("link set v1 mtu {mtu}"));
}

pub fn spec(mode: ModeChoice) -> Spec {
    Spec { mode, ..Spec::new("v0") }
}

pub fn open(spec: &Spec) -> Opened {
    xdp::open(spec, 1).expect("the uplink opens")
}

/// The one queue of an uplink. The program stays as long as it.
pub fn open_one(spec: &Spec) -> Queue {
    let mut opened = open(spec);
    assert_eq!(opened.queues.len(), 1);
    opened.queues.remove(0)
}

/// `len` bytes that are like no other frame's, from addresses that are nobody's.
pub fn frame(len: usize, seed: u32) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 0x99, 0x52, 0x54, 0, 0, 0, 1];
    frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
    frame.extend_from_slice(&seed.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed as u8));
    frame.truncate(len);
    frame
}

/// Waits for `condition`.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes what has arrived, up to `max` frames.
pub fn receive(queue: &mut Queue, max: usize) -> Vec<(NetHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    queue.receive_with(max, |view, header, pieces| {
        let len = pieces.iter().map(|piece| piece.len).sum();
        let mut bytes = vec![0; len];
        assert_eq!(Body::new(view, pieces, 0, len).read(&mut bytes), len);
        frames.push((header, bytes));
        Ok(())
    });
    queue.release();
    frames
}

/// Waits for one frame.
#[track_caller]
pub fn receive_one(queue: &mut Queue) -> (NetHeader, Vec<u8>) {
    let mut frames = Vec::new();
    wait_for("a frame", || {
        frames = receive(queue, 1);
        !frames.is_empty()
    });
    frames.remove(0)
}

/// Sends `bytes`, `head` of them from private memory and the rest from a guest's.
pub fn send(queue: &mut Queue, header: NetHeader, bytes: &[u8], head: usize) -> Result<(), Reason> {
    let memory = OwnMemory::new(1 << 17, GuestAddr(0)).expect("memory");
    let view = MemoryView::new(memory.table().clone());
    let (head, rest) = bytes.split_at(head.min(bytes.len()));
    let ranges: Vec<_> = (rest.chunks(1000))
        .map(|piece| {
            let addr = memory.alloc(piece.len(), 1).expect("room");
            let slice = memory.slice(addr, piece.len()).expect("inside");
            slice.write(0, piece);
            slice.range()
        })
        .collect();
    queue.send(&Packet { header, head, body: Body::new(&view, &ranges, 0, rest.len()) })
}

/// A packet socket: what a host sends and receives on an interface, as it is.
pub struct Wire(OwnedFd);

impl Wire {
    /// In this thread's namespace.
    pub fn new(interface: &str, ethertype: u16) -> Self {
        let protocol = i32::from(ethertype.to_be());
        // SAFETY: names end with a zero; addresses and lengths are those of the structures passed. The descriptor is new.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            assert!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
            let wire = Self(OwnedFd::from_raw_fd(fd));
            let name = std::ffi::CString::new(interface).expect("a name");
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ethertype.to_be();
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let len = mem::size_of_val(&address) as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
            let size = 8 << 20;
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const size).cast(), 4);
            let patience = libc::timeval { tv_sec: 20, tv_usec: 0 };
            let len = mem::size_of_val(&patience) as u32;
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const patience).cast(), len);
            wire
        }
    }

    pub fn send(&self, bytes: &[u8]) {
        // SAFETY: the bytes are only read.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    pub fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![MaybeUninit::<u8>::zeroed(); 1 << 16];
        // SAFETY: there is room for as many bytes as are asked for.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        assert!(len >= 0, "no frame: {}", io::Error::last_os_error());
        // SAFETY: zeroed, or written by the kernel.
        bytes[..len as usize].iter().map(|byte| unsafe { byte.assume_init() }).collect()
    }
}

/// Takes all capabilities from this thread.
pub fn drop_capabilities() {
    let header: [u32; 2] = [0x2008_0522, 0];
    let data = [0_u32; 6];
    // SAFETY: a header of version 3 and its two sets, for the calling thread.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }, 0);
}

/// Whether `fd` is readable now.
pub fn is_readable(fd: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Leaves a program little locked memory, and no capability to exceed or raise it.
pub fn limit_locked_memory(command: &mut Command, bytes: u64) {
    const CAP_IPC_LOCK: i32 = 14;
    const CAP_SYS_RESOURCE: i32 = 24;
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: system calls only, between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let failed = libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) < 0
                || [CAP_IPC_LOCK, CAP_SYS_RESOURCE]
                    .iter()
                    .any(|cap| libc::prctl(libc::PR_CAPBSET_DROP, *cap) < 0);
            if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}
