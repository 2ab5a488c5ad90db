//! One queue of a TAP interface: frames to the kernel and from it.

#![expect(
    unsafe_code,
    reason = "reads frames into buffers and writes them from guest memory, by system call"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use memory::{HostRange, MemoryView};

use super::link::{HEADER, Link, Presence};
use super::slots::{LONGEST, Slots};
use super::trains::Trains;
use super::{Info, OpenError};
use crate::frame::{HEAD, Head, NetHeader, Offloads, Packet, Place, Train};
use crate::path::Burst;
use crate::switch::Drop;
use crate::uplink::{Arrival, Direct, UplinkCounters, UplinkQueue};

/// Bytes of a virtio-net header.
const HEADER_LEN: usize = 12;
/// A frame of at most this many bytes is gathered in private memory: one buffer saves the kernel more than the copy costs.
const GATHER: usize = 4096;
/// Most pieces in one `writev` (`UIO_MAXIOV`).
const PIECES: usize = 1024;
/// Frames larger than this on average are worth reading in place.
const BULK: u32 = 16_384;

/// One queue of a TAP interface. Belongs to one worker, and never blocks.
pub struct Queue {
    wire: Wire,
    slots: Slots,
    /// Where frames to the kernel are gathered.
    front: Box<[u8; HEADER_LEN + GATHER]>,
    pieces: Vec<HostRange>,
    /// Frames of too many pieces.
    whole: Vec<u8>,
    trains: Trains,
    /// The last read found nothing, so the descriptor will become readable.
    drained: bool,
    /// Size of received frames: rises at once, and falls with the average.
    average: u32,
}

/// The kernel's end of a queue.
struct Wire {
    file: OwnedFd,
    link: Arc<Link>,
    presence: Presence,
    counters: UplinkCounters,
    /// Frames that the kernel refused after `send` had taken them.
    refused: usize,
}

impl Wire {
    /// Hands joined frames to the kernel.
    fn send(&mut self, train: &mut Train) {
        let frames = train.frames();
        let bytes = train.finish();
        // SAFETY: reads private memory, all of which is initialised.
        let written = unsafe { libc::write(self.file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if let Err(_why) = self.sent(frames, written) {
            self.refused += frames;
        }
    }

    /// Counts `frames` that went with one system call, if they went.
    #[inline]
    fn sent(&mut self, frames: usize, written: isize) -> Result<(), Drop> {
        self.counters.calls += 1;
        if written < 0 {
            return Err(self.failed(frames));
        }
        self.counters.sent += frames as u64;
        Ok(())
    }

    #[cold]
    fn failed(&mut self, frames: usize) -> Drop {
        self.counters.dropped += frames as u64;
        match io::Error::last_os_error().raw_os_error() {
            // Deleted; or down, which nobody needs to be told who has taken it down.
            Some(libc::EBADFD) => {
                self.presence.lose(&self.link);
                Drop::LinkDown
            }
            Some(libc::EIO) => Drop::LinkDown,
            Some(libc::EINVAL) => Drop::BadOffload,
            Some(libc::EMSGSIZE | libc::E2BIG) => Drop::TooLong,
            // The memory of a guest that has gone.
            Some(libc::EFAULT) => Drop::Malformed,
            _ => Drop::UplinkFull,
        }
    }
}

impl Queue {
    pub(super) fn new(file: OwnedFd, link: Arc<Link>) -> Result<Self, OpenError> {
        let slots = Slots::new().map_err(|error| OpenError::system("No memory for frames", error))?;
        let (presence, counters) = (Presence::default(), UplinkCounters::default());
        Ok(Self {
            wire: Wire { file, link, presence, counters, refused: 0 },
            slots,
            front: Box::new([0; HEADER_LEN + GATHER]),
            pieces: Vec::with_capacity(PIECES),
            whole: Vec::new(),
            trains: Trains::new(),
            drained: false,
            average: 0,
        })
    }

    /// What the uplink is.
    pub fn info(&self) -> &Info {
        &self.wire.link.info
    }

    /// Whether the interface was deleted and is not back yet.
    pub fn is_gone(&self) -> bool {
        self.wire.presence.is_gone()
    }

    /// The room that `receive_into` wants, so that no frame is cut off.
    pub fn longest(&self) -> usize {
        match self.wire.link.info.from_kernel {
            Offloads::NONE if self.wire.link.info.mtu != 0 => self.wire.link.info.mtu as usize + 64,
            _ => LONGEST,
        }
    }

    #[inline]
    fn header_len(&self) -> usize {
        if self.wire.link.info.header { HEADER_LEN } else { 0 }
    }

    /// The header that was read, as far as it makes sense.
    #[inline]
    fn parse(&self, bytes: &[u8; HEADER_LEN]) -> Option<NetHeader> {
        if !self.wire.link.info.header {
            return Some(NetHeader::PLAIN);
        }
        NetHeader::parse_trusted(bytes).ok()
    }

    #[inline]
    fn count_arrival(&mut self, len: usize) {
        self.wire.counters.received += 1;
        self.average = (self.average - self.average / 8 + len as u32 / 8).max(len as u32);
    }

    /// How much was read, or `None` with the state settled.
    #[inline]
    fn after_read(&mut self, result: isize) -> Option<usize> {
        self.wire.counters.calls += 1;
        if let Ok(read) = usize::try_from(result) {
            self.drained = false;
            return Some(read);
        }
        self.drained = true;
        self.read_failed();
        None
    }

    #[cold]
    fn read_failed(&mut self) {
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EBADFD) => self.wire.presence.lose(&self.wire.link),
            // One frame was not to be had; others may wait.
            Some(libc::EINVAL | libc::EFAULT) => {
                self.wire.counters.dropped += 1;
                self.drained = false;
            }
            Some(libc::EINTR) => self.drained = false,
            _ => {}
        }
    }

    /// Reads one frame into a private buffer of [`view`](UplinkQueue::view), where it stays until `release`. `None`: no frame
    /// is waiting, or no buffer is free. The header is not checked against the frame yet.
    #[inline]
    pub fn receive_one(&mut self) -> Option<(NetHeader, HostRange)> {
        let skip = self.header_len();
        while !self.wire.presence.is_gone() {
            let slot = self.slots.free()?;
            // SAFETY: the slot lies in memory of our own, which nobody holds a reference into.
            let read = unsafe { libc::read(self.wire.file.as_raw_fd(), slot.base, slot.len) };
            let read = self.after_read(read)?;
            let mut header = [0; HEADER_LEN];
            self.slots.view().reenter(slot)?.read(0, &mut header[..skip]);
            let frame =
                read.checked_sub(skip).and_then(|len| slot.sub(skip, len)).filter(|_| read < slot.len);
            if let (Some(header), Some(frame)) = (self.parse(&header), frame) {
                self.slots.take();
                self.count_arrival(frame.len);
                return Some((header, frame));
            }
            self.wire.counters.dropped += 1;
        }
        None
    }

    /// Hands one frame to the kernel.
    #[inline]
    fn write(&mut self, packet: &Packet<'_>) -> isize {
        let skip = self.header_len();
        let front = skip + packet.head.len();
        let len = packet.len();
        let mut header = packet.header;
        // A hint that the kernel does not take beyond the end of the frame.
        header.hdr_len = header.hdr_len.min(len.min(u16::MAX.into()) as u16);
        if skip > 0 {
            header.write(&mut self.front[..skip], HEADER);
        }
        self.front[skip..front].copy_from_slice(packet.head);
        if len <= GATHER {
            let rest = packet.body.read(&mut self.front[front..skip + len]);
            // SAFETY: reads private memory, all of which is initialised.
            return unsafe {
                libc::write(self.wire.file.as_raw_fd(), self.front.as_ptr().cast(), front + rest)
            };
        }
        self.pieces.clear();
        self.pieces.push(private(&mut self.front[..front]));
        packet.body.for_each(|piece| self.pieces.push(piece.range()));
        if self.pieces.len() > PIECES {
            return self.write_whole(front, packet);
        }
        // SAFETY: the first piece is private, the others are memory that the view in `packet.body` keeps mapped.
        unsafe {
            libc::writev(self.wire.file.as_raw_fd(), self.pieces.as_ptr().cast(), self.pieces.len() as i32)
        }
    }

    /// A frame of more pieces than a system call takes.
    #[cold]
    fn write_whole(&mut self, front: usize, packet: &Packet<'_>) -> isize {
        self.whole.clear();
        self.whole.extend_from_slice(&self.front[..front]);
        self.whole.resize(front + packet.body.len(), 0);
        let rest = packet.body.read(&mut self.whole[front..]);
        // SAFETY: reads private memory, all of which is initialised.
        unsafe { libc::write(self.wire.file.as_raw_fd(), self.whole.as_ptr().cast(), front + rest) }
    }
}

/// Private memory as a piece of a vector.
#[inline]
fn private(bytes: &mut [u8]) -> HostRange {
    HostRange { base: bytes.as_mut_ptr().cast(), len: bytes.len() }
}

impl UplinkQueue for Queue {
    fn offloads(&self) -> Offloads {
        self.wire.link.info.to_kernel
    }

    fn view(&self) -> &MemoryView {
        self.slots.view()
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let (before, bulk) = (burst.room(), self.bulk());
        // The first large frame ends a burst: of those, the receivers may have room for fewer.
        while burst.room() > 0 && self.bulk() == bulk {
            let Some((header, frame)) = self.receive_one() else { break };
            if burst.push(self.slots.view(), header, &[frame]).is_err() {
                self.slots.put_back();
                self.wire.counters.dropped += 1;
            }
        }
        before - burst.room()
    }

    fn release(&mut self) {
        self.slots.release();
    }

    #[inline]
    fn send(&mut self, packet: &Packet<'_>) -> Result<(), Drop> {
        let Self { wire, trains, .. } = self;
        if wire.presence.is_gone() && !wire.presence.look(&wire.link, &wire.file) {
            wire.counters.dropped += 1;
            return Err(Drop::LinkDown);
        }
        if let Some(place) = Place::of(packet, wire.link.info.to_kernel) {
            trains.put(packet, place, |train| wire.send(train));
            return Ok(());
        }
        trains.flush(|train| wire.send(train));
        let written = self.write(packet);
        self.wire.sent(1, written)
    }

    fn flush(&mut self) -> usize {
        let Self { wire, trains, .. } = self;
        trains.flush(|train| wire.send(train));
        std::mem::take(&mut wire.refused)
    }

    fn watch_fd(&self) -> RawFd {
        self.wire.file.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        self.has_work()
    }

    fn has_work(&self) -> bool {
        !self.drained && !self.wire.presence.is_gone()
    }

    /// Reading in place then saves more than it costs. For small frames `receive` and a copy are cheaper: a vector costs 80 ns
    /// more than one buffer.
    #[inline]
    fn bulk(&self) -> bool {
        self.average > BULK
    }

    fn direct(&self) -> Option<Direct> {
        self.bulk().then(|| Direct { longest: self.longest(), undone: self.wire.link.info.from_kernel })
    }

    fn receive_into(&mut self, view: &MemoryView, room: &[HostRange], head: &mut Head) -> Option<Arrival> {
        if self.wire.presence.is_gone() {
            return None;
        }
        let skip = self.header_len();
        let mut header = [0_u8; HEADER_LEN];
        let first = head.fill(HEAD);
        self.pieces.clear();
        self.pieces.push(private(&mut header[..skip]));
        self.pieces.push(private(first));
        let mut capacity = skip + HEAD;
        for &range in room.iter().take(PIECES - 2) {
            let range = view.reenter(range)?.range();
            capacity += range.len;
            self.pieces.push(range);
        }
        // SAFETY: the first two pieces are exclusively borrowed, the others are memory that `view` keeps mapped and that is
        // only ever copied to and from.
        let read = unsafe {
            libc::readv(self.wire.file.as_raw_fd(), self.pieces.as_ptr().cast(), self.pieces.len() as i32)
        };
        let read = self.after_read(read)?;
        let len = read.checked_sub(skip).filter(|_| read < capacity);
        let checked = len.and_then(|len| self.parse(&header).filter(|header| header.check(len).is_ok()));
        let (Some(len), Some(header)) = (len, checked) else {
            self.wire.counters.dropped += 1;
            return None;
        };
        head.fill(len.min(HEAD));
        self.count_arrival(len);
        Some(Arrival { header, len })
    }

    fn counters(&self) -> UplinkCounters {
        self.wire.counters
    }
}
