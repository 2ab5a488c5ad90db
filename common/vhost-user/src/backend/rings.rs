//! The state machine of the rings (vhost-user: Ring states).
//!
//! A ring runs from `SET_VRING_KICK` (or `VRING_KICK`) until `GET_VRING_BASE`; `SET_VRING_ENABLE` is a second, independent
//! state. The specification would have the ring start at the first kick on that descriptor; like libvhost-user and DPDK we
//! start it with the message, which no driver can tell from an early kick and which cannot lose one.
//!
//! A ring that shall run but lacks its memory is parked and runs when the memory comes. What a message sets wrongly is
//! forgotten, so that a ring never runs with a mixture of old and new values.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Instant;

use virtqueue::{Format, Queue, QueueSize, RingSetup};
use vmm_sys_util::eventfd::EventFd;

use super::refusal::Refusal;
use super::vring::{Kick, is_aligned};
use super::{Answer, Handled, Session};
use crate::message::{INDEX_MASK, NOFD, VringAddr, VringState};
use crate::scm;

impl Session<'_> {
    pub(super) fn set_vring_num(&mut self, state: VringState) -> Handled {
        let index = self.ring_index(state.index.get())?;
        let num = state.num.get();
        let size = u16::try_from(num).ok().filter(|&size| size <= self.device.max_queue_size());
        // The format is known once features are set; until then both are allowed, and the start checks again.
        let format = if self.features.is_some() { self.ring_features().format() } else { Format::Packed };
        let size = size.filter(|&size| QueueSize::new(format, size).is_ok());
        if size.is_none() || size != self.rings[index].size {
            self.halt_for_change(index)?;
        }
        self.rings[index].size = size;
        size.map(|_| Answer::Done).ok_or(Refusal::RingSize(num))
    }

    /// vhost-user: SET_VRING_ADDR. On a running ring it switches logging, or moves the ring.
    pub(super) fn set_vring_addr(&mut self, addr: VringAddr) -> Handled {
        let index = self.ring_index(addr.index.get())?;
        let before = self.rings[index].addr.take();
        if !is_aligned(&addr) {
            self.stop_ring(index);
            return Err(Refusal::Misaligned);
        }
        self.rings[index].addr = Some(addr);
        let same_place = before.is_some_and(|before| {
            (before.descriptor, before.available, before.used) == (addr.descriptor, addr.available, addr.used)
        });
        let ring = &self.rings[index];
        let log_moves = ring.running.as_ref().is_some_and(|at| ring.used_log(at).is_some());
        if !ring.started || (same_place && !log_moves) {
            return Ok(Answer::Done);
        }
        if ring.running.is_some() && self.halt_for_change(index).is_ok() {
            return Ok(Answer::Done);
        }
        self.stop_ring(index);
        self.start_ring(index)
    }

    /// vhost-user: SET_VRING_BASE. A split ring has one 16-bit index, a packed one two with their wrap counters.
    pub(super) fn set_vring_base(&mut self, state: VringState) -> Handled {
        let index = self.ring_index(state.index.get())?;
        let base = state.num.get();
        self.halt_for_change(index)?;
        if self.features.is_some() && !self.ring_features().packed && base > u16::MAX.into() {
            return Err(Refusal::RingBase(base));
        }
        self.rings[index].base = base;
        Ok(Answer::Done)
    }

    /// vhost-user: GET_VRING_BASE. Drains and stops; the ring stays stopped until the next kick is set. An index that is out
    /// of range owes a reply, so it ends the connection.
    pub(super) fn get_vring_base(&mut self, state: VringState) -> Handled {
        let index = self.ring_index(state.index.get())?;
        self.halt(index);
        let reply = VringState { index: state.index, num: self.rings[index].base.into() };
        Ok(Answer::body(zerocopy::IntoBytes::as_bytes(&reply)))
    }

    pub(super) fn set_vring_kick(&mut self, word: u64, fds: Vec<OwnedFd>) -> Handled {
        let (index, fd) = self.vring_fd(word, fds)?;
        self.stop_ring(index);
        self.rings[index].kick = Some(fd.map_or(Kick::Polled, Kick::Fd));
        self.start_ring(index)
    }

    /// vhost-user: VRING_KICK, the in-band kick: starts a ring that is set up, or makes the device look at a running one.
    pub(super) fn vring_kick(&mut self, state: VringState) -> Handled {
        let index = self.ring_index(state.index.get())?;
        let ring = &mut self.rings[index];
        if ring.running.is_some() {
            self.device.enable_queue(index as u16, ring.enabled);
            return Ok(Answer::Done);
        }
        ring.kick.get_or_insert(Kick::Polled);
        self.start_ring(index)
    }

    pub(super) fn set_vring_call(&mut self, word: u64, fds: Vec<OwnedFd>) -> Handled {
        let (index, call) = self.vring_fd(word, fds)?;
        let call = call.map(writable_event).transpose()?;
        if self.rings[index].running.is_some() {
            self.device.set_call(index as u16, call);
        } else {
            self.rings[index].call = call;
        }
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_err(&mut self, word: u64, fds: Vec<OwnedFd>) -> Handled {
        let (index, err) = self.vring_fd(word, fds)?;
        let err = err.map(writable_event).transpose()?;
        if self.rings[index].running.is_some() {
            self.device.set_err(index as u16, err);
        } else {
            self.rings[index].err = err;
        }
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_enable(&mut self, state: VringState) -> Handled {
        let index = self.ring_index(state.index.get())?;
        let enabled = match state.num.get() {
            0 => false,
            1 => true,
            other => return Err(Refusal::BadValue(other.into())),
        };
        self.rings[index].told = true;
        self.set_enabled(index, enabled);
        Ok(Answer::Done)
    }

    /// Enables or disables a ring, running or not.
    pub(super) fn set_enabled(&mut self, index: usize, enabled: bool) {
        self.rings[index].enabled = enabled;
        if self.rings[index].running.is_some() {
            self.device.enable_queue(index as u16, enabled);
        }
    }

    /// Stops every ring, for a reset; each must be kicked again.
    pub(super) fn stop_all(&mut self) {
        for index in 0..self.rings.len() {
            self.halt(index);
        }
    }

    /// Before something changes that a running ring cannot change. cloud-hypervisor resets a device by disabling its rings
    /// and sets them up anew without `GET_VRING_BASE`, so for a disabled ring the change is the stop.
    pub(super) fn halt_for_change(&mut self, index: usize) -> Result<(), Refusal> {
        let ring = &self.rings[index];
        if ring.running.is_some() && ring.enabled {
            return Err(Refusal::RingRuns(index as u16));
        }
        if ring.running.is_some() {
            self.halt(index);
        }
        Ok(())
    }

    /// Stops a ring until it is kicked anew.
    fn halt(&mut self, index: usize) {
        self.stop_ring(index);
        self.rings[index].started = false;
        self.rings[index].kick = None;
    }

    fn start_ring(&mut self, index: usize) -> Handled {
        self.rings[index].started = true;
        let result = self.run_ring(index);
        if let Err(reason) = &result
            && !matches!(reason, Refusal::RingOutside(_))
        {
            self.fail_ring(index);
        }
        result.map(|()| Answer::Done)
    }

    /// A ring that can never run: tells the front-end by the error event, since few ask for acknowledgements.
    fn fail_ring(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        ring.started = false;
        if let Some(err) = &ring.err
            && has_room(scm::borrow(err))
        {
            // Nobody else is there to tell.
            let _ = err.write(1);
        }
    }

    /// Makes a queue of what is known of the ring and gives it to the device, which raises one spurious interrupt: a
    /// predecessor that died may have owed one.
    pub(super) fn run_ring(&mut self, index: usize) -> Result<(), Refusal> {
        let (addresses, queue) = self.make_queue(index)?;
        let ring = &mut self.rings[index];
        let enabled = ring.enabled || (!ring.told && self.device.rings_start_enabled());
        let mut queue = Box::new(queue);
        queue.set_kick(match ring.kick.take() {
            Some(Kick::Fd(fd)) => Some(fd),
            Some(Kick::Polled) | None => None,
        });
        queue.set_err(ring.err.take());
        queue.set_call(ring.call.take());
        ring.running = Some(addresses);
        ring.enabled = enabled;
        self.device.start_queue(index as u16, queue);
        if enabled {
            self.device.enable_queue(index as u16, true);
        }
        Ok(())
    }

    fn make_queue(&self, index: usize) -> Result<(virtqueue::RingAddresses, Queue), Refusal> {
        let ring = &self.rings[index];
        let missing = |missing| Refusal::NotConfigured { index: index as u16, missing };
        let size = ring.size.ok_or_else(|| missing("size"))?;
        if ring.addr.is_none() {
            return Err(missing("addresses"));
        }
        let features = self.ring_features();
        let addresses = ring.locate(self.memory.table(), features)?;
        let setup = RingSetup {
            size,
            features,
            table: self.memory.table(),
            addresses,
            base: ring.start_base(self.memory.table(), features, &addresses),
            inflight: self.inflight_of(index as u16, size)?,
            log: self.active_log(),
            used_log_addr: ring.used_log(&addresses),
        };
        let mut queue = Queue::new(setup)?;
        if self.device.driver_features_unknown() {
            queue.assume_any_driver();
        }
        Ok((addresses, queue))
    }

    /// Stops a ring and keeps what it takes to run it again: the base and the events.
    pub(super) fn stop_ring(&mut self, index: usize) {
        if self.rings[index].running.take().is_none() {
            return;
        }
        let Some(mut queue) = self.device.stop_queue(index as u16) else {
            tracing::warn!(ring = index, "the device had lost a running ring");
            return;
        };
        let ring = &mut self.rings[index];
        // Drained, so the inflight region has nothing to say any more and the base counts at the next start.
        ring.base = queue.finish();
        ring.kick = Some(queue.take_kick().map_or(Kick::Polled, Kick::Fd));
        ring.call = queue.take_call();
        ring.err = queue.take_err();
    }

    fn ring_index(&self, index: u32) -> Result<usize, Refusal> {
        let count = self.rings.len();
        let found = usize::try_from(index).ok().filter(|&index| index < count);
        found.ok_or(Refusal::NoSuchRing { index, count: count as u16 })
    }

    /// vhost-user: SET_VRING_KICK. Bits 0 to 7 are the index, bit 8 says that there is no descriptor.
    fn vring_fd(&self, word: u64, mut fds: Vec<OwnedFd>) -> Result<(usize, Option<OwnedFd>), Refusal> {
        if word & !(INDEX_MASK | NOFD) != 0 {
            return Err(Refusal::BadValue(word));
        }
        let index = self.ring_index((word & INDEX_MASK) as u32)?;
        let want = usize::from(word & NOFD == 0);
        if fds.len() != want {
            return Err(Refusal::FdCount { got: fds.len(), want });
        }
        Ok((index, fds.pop()))
    }
}

/// An event that a worker will write and must never wait for. Nobody waits on the write end of a pipe or socket, so it can be
/// made non-blocking; the flags of an eventfd are shared with the front-end, which may rely on waiting in a read, so it is
/// only refused when it is full already (nobody counts that far). A front-end that fills it later, or takes the flag back,
/// is dealt with by the workers' watchdog.
fn writable_event(fd: OwnedFd) -> Result<EventFd, Refusal> {
    let file = File::from(fd);
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        scm::set_nonblocking(file.as_fd())?;
    } else if !has_room(file.as_fd()) {
        return Err(Refusal::EventFull);
    }
    Ok(scm::event_fd(file.into()))
}

/// Whether an event can be written without waiting. What cannot be polled never makes a writer wait.
fn has_room(event: BorrowedFd<'_>) -> bool {
    scm::wait(&mut [scm::pollfd(event, libc::POLLOUT)], Some(Instant::now())).unwrap_or(true)
}
