//! The interface behind the queues, which somebody may delete and make again while we run.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::control::{self, Control, Request};
use super::{Info, Spec};
use crate::frame::{HeaderSize, Offloads};

/// How often a queue looks whether its interface is there again.
const RETRY: Duration = Duration::from_secs(1);

/// What all queues of one uplink share.
pub(super) struct Link {
    pub(super) info: Info,
    /// `ifr_flags` that TUNSETIFF was called with; `None`: the queues were inherited.
    flags: Option<u16>,
    send_buffer: Option<u32>,
    control: Control,
    deleted: AtomicBool,
}

/// The virtio-net header of a queue.
pub(super) const HEADER: HeaderSize = HeaderSize::Modern;

impl Link {
    pub(super) fn new(info: Info, flags: Option<u16>, spec: &Spec, control: Control) -> Self {
        Self { info, flags, send_buffer: spec.send_buffer, control, deleted: AtomicBool::new(false) }
    }

    /// The interface is gone; says so once, whichever queue sees it first.
    pub(super) fn lost(&self) {
        if !self.deleted.swap(true, Ordering::Relaxed) {
            tracing::warn!(interface = %self.info.name, "The uplink's TAP interface was deleted: frames to it are dropped until it is made again");
        }
    }

    fn found(&self) {
        if self.deleted.swap(false, Ordering::Relaxed) {
            tracing::info!(interface = %self.info.name, "The uplink's TAP interface is there again");
        }
    }

    /// Attaches `queue` to an interface of the old name, if somebody has made one that takes it. Never makes one itself.
    fn reattach(&self, queue: &OwnedFd) -> io::Result<()> {
        let Some(flags) = self.flags else { return Err(io::ErrorKind::Unsupported.into()) };
        self.control.index(&self.info.name)?;
        let mut request = Request::about(&self.info.name).with_flags(flags);
        control::exchange(queue, libc::TUNSETIFF, &mut request)?;
        prepare(queue, self.send_buffer)?;
        if self.info.header {
            // A kernel that has taken them once takes them again; without them frames come finished, which is good too.
            let _ = set_offloads(queue, self.info.from_kernel);
        }
        self.found();
        Ok(())
    }
}

/// Whether a queue's interface exists, as far as the queue has noticed.
#[derive(Default)]
pub(super) struct Presence {
    /// When to look for it next, if it was deleted.
    retry: Option<Instant>,
}

impl Presence {
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.retry.is_some()
    }

    pub(super) fn lose(&mut self, link: &Link) {
        link.lost();
        self.retry = Some(Instant::now() + RETRY);
    }

    /// Looks for the interface, at most once a second. True when `queue` belongs to it again.
    #[cold]
    pub(super) fn look(&mut self, link: &Link, queue: &OwnedFd) -> bool {
        let Some(at) = self.retry else { return true };
        let now = Instant::now();
        if now < at {
            return false;
        }
        let back = link.reattach(queue).is_ok();
        self.retry = (!back).then(|| now + RETRY);
        back
    }
}

/// Settles how frames lie in a queue that has just been attached.
pub(super) fn prepare(queue: &OwnedFd, send_buffer: Option<u32>) -> io::Result<()> {
    control::set_int(queue, libc::TUNSETVNETHDRSZ, HEADER.len() as i32)?;
    // Kernels before 3.19 have no choice, and the host's order is the one.
    if let Err(error) = control::set_int(queue, libc::TUNSETVNETLE, 1)
        && cfg!(target_endian = "big")
    {
        return Err(error);
    }
    if let Some(bytes) = send_buffer {
        control::set_int(queue, libc::TUNSETSNDBUF, bytes.min(i32::MAX as u32) as i32)?;
    }
    Ok(())
}

/// Tells the kernel what it may leave unfinished (TUNSETOFFLOAD).
pub(super) fn set_offloads(queue: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let bits = [
        (offloads.csum, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (offloads.ecn, libc::TUN_F_TSO_ECN),
        (offloads.ufo, libc::TUN_F_UFO),
        (offloads.uso4, libc::TUN_F_USO4),
        (offloads.uso6, libc::TUN_F_USO6),
    ];
    let value = bits.into_iter().filter(|(wanted, _)| *wanted).fold(0, |bits, (_, bit)| bits | bit);
    control::set_value(queue, libc::TUNSETOFFLOAD, value)
}
