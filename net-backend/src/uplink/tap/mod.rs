//! A TAP interface as the uplink.
//!
//! The interface is made, or attached to when it exists; or its queues come as open descriptors. Every worker has a
//! queue of its own (`IFF_MULTI_QUEUE`), and the kernel sends a flow's frames to the queue on which it saw that flow
//! last. Frames carry a virtio-net header of 12 bytes (`IFF_VNET_HDR`), so checksums and segments that one side has left
//! undone pass through.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | [`Spec`], [`open`], [`Info`] |
//! | `attach.rs` | making the interface, attaching to it, and taking open queues |
//! | `control.rs` | the kernel's interface for all that |
//! | `queue.rs` | [`Queue`]: frames out and in |
//! | `link.rs` | an interface that is deleted under us, and comes back |
//! | `trains.rs` | frames of one flow joined, so that they are one system call |
//! | `slots.rs` | private buffers for frames from the wire |
//!
//! # Frames of a flow are one system call
//!
//! A TAP takes and gives one frame a call, and the call costs as much as the way of the frame through the host. So frames of
//! one flow in a burst are joined, as the kernel's GRO joins them, and go as one that it cuts where it has to
//! ([`Train`](crate::frame::Train)): datagrams and segments of senders that do not leave the segmentation to others. One
//! `write` took 2.4 us here, of one datagram of 18 bytes as of 32 of them; 40 of 1472 bytes took 4.4 us.
//!
//! # One system call a frame of other kinds
//!
//! Of all others a TAP takes one a call; only the kernel's own vhost has a batched way in. These are nanoseconds of CPU
//! time a frame of 60 bytes on the reference machine (kernel 6.18, receiver drops in `ip_rcv`); at 1514 bytes the order
//! is the same:
//!
//! | frames out | ns | frames in | ns |
//! |---|---|---|---|
//! | `write`, one buffer | 665 | `read`, one buffer | 442 |
//! | `writev`, two buffers | 740 | `readv`, two buffers | 523 |
//! | io_uring, 256 WRITE an enter | 737 | io_uring, 64 READ an enter | 583 |
//! | io_uring, 256 WRITEV an enter | 781 | io_uring, 64 READV an enter | 656 |
//! | `write`, IFF_NAPI | 1130 | io_uring, multishot READ | 630 |
//! | `write`, IFF_NAPI_FRAGS | 951 | nothing there: `read` / io_uring | 200 / 330 |
//!
//! io_uring saves a system call (119 ns here) and costs more than that for each operation; so there is none here. A frame of up
//! to 4 KiB is gathered into one private buffer (60 bytes: 739 against 791 ns with a vector, 1514: 764 against 914, 4000: 1043
//! against 1121; at 9000 the copy costs more than the vector). `IFF_NAPI` sends every frame through a softirq and is worth it
//! only where the kernel's GRO merges what a guest without TSO has segmented: it is an option. A receive queue longer than the
//! kernel's 500 frames absorbs bursts while the worker is elsewhere.
//!
//! Reading into the receiver's buffers instead of copying there pays for large frames only, so it is done while frames are
//! larger than 16 KiB ([`UplinkQueue::direct`](super::UplinkQueue::direct)); nanoseconds a frame:
//!
//! | bytes | `read` and copy | in place, one buffer | in place, buffers of 1526 bytes |
//! |---|---|---|---|
//! | 60 | 534 | 634 | 776 |
//! | 1514 | 554 | 640 | 796 |
//! | 9000 | 1150 | 1262 | 1378 |
//! | 20000 | 1688 | 1708 | 1937 |
//! | 40000 | 3933 | 2795 | 2205 |
//! | 65000 | 4898 | 3919 | 2967 |
//!
//! # System calls
//!
//! After [`open`]: `read`, `readv`, `write`, `writev`; and, once a second while the interface is gone, the `ioctl`s in
//! [`IOCTLS`]. No capability.

mod attach;
mod control;
mod error;
mod link;
mod queue;
mod slots;
mod trains;

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::frame::Offloads;
use crate::options::TapOptions;

pub use error::OpenError;
pub use queue::Queue;

/// Length of the receive queue of an interface that is made: the kernel's 500 are 0.4 ms of small frames.
const QUEUE_LENGTH: u32 = 2048;

/// Requests a running uplink makes by `ioctl`, for the sandbox.
pub const IOCTLS: &[u64] = &[
    libc::SIOCGIFINDEX,
    libc::TUNSETIFF,
    libc::TUNSETVNETHDRSZ,
    libc::TUNSETVNETLE,
    libc::TUNSETOFFLOAD,
    libc::TUNSETSNDBUF,
];

/// Where the queues come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The interface of this name, made if it does not exist.
    Name(String),
    /// The interface of this name, which must exist.
    Existing(String),
    /// Open queues of one interface, inherited by this process. They become ours.
    Descriptors(Vec<RawFd>),
}

/// What the uplink should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Where the queues come from.
    pub source: Source,
    /// Queues; `None`: one a worker.
    pub queues: Option<u16>,
    /// The interface stays when the process ends. An interface that existed stays as it was.
    pub persist: bool,
    /// Bridge to attach the interface to.
    pub bridge: Option<String>,
    /// MTU to set.
    pub mtu: Option<u32>,
    /// Frames the kernel keeps for us before it drops; `None`: the interface's, or 2048 when it is made.
    pub queue_length: Option<u32>,
    /// Bytes of frames from us that the host may leave unprocessed before it refuses more; `None`: no limit.
    pub send_buffer: Option<u32>,
    /// Frames from us go through NAPI and GRO.
    pub napi: bool,
    /// Checksums and segments may be left undone on both sides.
    pub offloads: bool,
}

impl Spec {
    /// An uplink with every option at its default.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            queues: None,
            persist: false,
            bridge: None,
            mtu: None,
            queue_length: None,
            send_buffer: None,
            napi: false,
            offloads: true,
        }
    }
}

impl From<&TapOptions> for Spec {
    fn from(options: &TapOptions) -> Self {
        let name = || options.name.clone();
        let source = match (options.fds.as_slice(), options.attach) {
            ([], false) => Source::Name(name()),
            ([], true) => Source::Existing(name()),
            (numbers, _) => Source::Descriptors(numbers.to_vec()),
        };
        Self {
            queues: options.queues,
            persist: options.persist,
            bridge: options.bridge.clone(),
            mtu: options.mtu.map(u32::from),
            queue_length: options.txqueuelen,
            send_buffer: options.sndbuf,
            napi: options.napi,
            ..Self::new(source)
        }
    }
}

/// What an open uplink is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name of the interface.
    pub name: String,
    /// Its number; 0 when it is in another network namespace (inherited queues).
    pub index: u32,
    /// Whether it was made by us.
    pub created: bool,
    /// Queues of ours.
    pub queues: u16,
    /// Its MTU when it was opened; 0 when it is not known.
    pub mtu: u32,
    /// Frames carry a virtio-net header. False only for inherited queues.
    pub header: bool,
    /// What the kernel takes unfinished from us.
    pub to_kernel: Offloads,
    /// What it may leave unfinished for us: the outcome of TUNSETOFFLOAD.
    pub from_kernel: Offloads,
}

/// Opens the uplink: one queue object for each worker, or as many as `spec.queues` or the descriptors say.
///
/// To be called before privileges are dropped and the sandbox closes.
pub fn open(spec: &Spec, workers: u16) -> Result<Vec<Queue>, OpenError> {
    let attached = attach::attach(spec, spec.queues.unwrap_or(workers))?;
    let link = Arc::new(attached.link);
    attached.files.into_iter().map(|file| Queue::new(file, link.clone())).collect()
}
