//! The way out of the host: a TAP interface or an AF_XDP socket, as one more port of the switch.
//!
//! An uplink is opened before the sandbox closes, as one queue object for each worker, and handed to the workers by
//! [`Message::Uplink`](crate::service::Message). From then on the queue belongs to its worker's thread.

use std::os::fd::RawFd;

use memory::{HostRange, MemoryView};

use crate::frame::{Head, NetHeader, Offloads, Packet};
use crate::path::Burst;
use crate::switch::Drop;

pub mod tap;
pub mod xdp;

/// Longest name of an interface, in bytes (`IFNAMSIZ` less the final zero).
pub const MAX_NAME: usize = 15;

/// Whether the kernel takes this for the name of an interface, if it is not too long.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_graphic() && !b"/:".contains(&byte);
    !name.is_empty() && name != "." && name != ".." && name.bytes().all(good)
}

/// What one queue of an uplink has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkCounters {
    /// Frames from the wire.
    pub received: u64,
    /// Frames to the wire.
    pub sent: u64,
    /// Frames the kernel did not take, or that could not be used as they came.
    pub dropped: u64,
    /// System calls for frames.
    pub calls: u64,
}

/// What reading frames in place needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Room for the longest frame.
    pub longest: usize,
    /// What frames may have left undone, so that the receiver must take it.
    pub undone: Offloads,
}

/// A frame that was read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What is left undone.
    pub header: NetHeader,
    /// Bytes of the frame, those in the head included.
    pub len: usize,
}

/// One queue of an uplink.
///
/// All calls come from the worker that owns it, and none may block. A round of the worker is: [`receive`](Self::receive), the
/// delivery of that burst, [`release`](Self::release); then for each burst of the guests [`send`](Self::send) for each
/// frame and one [`flush`](Self::flush).
pub trait UplinkQueue: Send {
    /// What the wire side takes unfinished. Frames passed to `send` need no more than that. May change between rounds.
    fn offloads(&self) -> Offloads;

    /// The memory that the ranges pushed by `receive` lie in: buffers of the queue's own (`memory::OwnMemory`).
    fn view(&self) -> &MemoryView;

    /// Takes up to [`Burst::room`] frames that are there, without waiting, and pushes each by [`Burst::push`]: its
    /// virtio-net header (as far as the wire tells: checksum and segmentation state) and the buffers that hold it, from the
    /// destination address on. Returns how many. The buffers stay as they are until `release`.
    fn receive(&mut self, burst: &mut Burst) -> usize;

    /// The frames of the last `receive` are delivered: their buffers may be used again.
    fn release(&mut self);

    /// Sends one frame, or keeps it for `flush`. The bytes of `packet.body` stay where they are until `flush` returns, those
    /// of `packet.head` only during the call. An error says why the frame is dropped (`Drop::UplinkFull`, `Drop::TooLong`).
    fn send(&mut self, packet: &Packet<'_>) -> Result<(), Drop>;

    /// Everything sent so far goes to the kernel; nothing refers to the frames afterwards. One system call a burst where the
    /// kernel can. Returns how many frames the kernel refused (counted as `Drop::UplinkFull`).
    fn flush(&mut self) -> usize;

    /// Readable when frames are waiting. It is watched edge-triggered.
    fn watch_fd(&self) -> RawFd;

    /// The worker is about to sleep. True when frames are waiting already: do not sleep.
    fn arm(&mut self) -> bool;

    /// Whether frames may be waiting: cheap, without a system call. A queue that cannot know says no, and is looked at when
    /// its descriptor has become readable or `receive` has filled a burst.
    fn has_work(&self) -> bool;

    /// Whether frames from the wire are large at present: many buffers each.
    fn bulk(&self) -> bool {
        false
    }

    /// Whether [`receive_into`](Self::receive_into) is better than `receive` at present, and what it needs.
    fn direct(&self) -> Option<Direct> {
        None
    }

    /// Reads one frame straight into `room`, memory of `view`'s table: its first [`HEAD`](crate::frame::HEAD) bytes into `head`
    /// only, the rest from the start of `room` on. `None`: no frame is waiting, or it was unusable (and is counted).
    ///
    /// Whoever can see `room` sees the frame, before the switch has looked at it: to be used only when that is the one
    /// receiver that the frame can have. A frame that `room` is too small for is dropped.
    fn receive_into(&mut self, view: &MemoryView, room: &[HostRange], head: &mut Head) -> Option<Arrival> {
        let _ = (view, room, head);
        None
    }

    /// What it has done so far.
    fn counters(&self) -> UplinkCounters;
}
