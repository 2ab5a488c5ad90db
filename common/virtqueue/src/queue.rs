//! A ring with its eventfds and counters: what a worker owns.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, MemoryTable};
use vmm_sys_util::eventfd::EventFd;

use crate::broken::{Broken, SetupError};
use crate::device::{DeviceRing, Ring};
use crate::setup::{RingFeatures, RingSetup};

/// What happened on one queue. Plain numbers of the owning worker, which copies them where others may read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kicks taken; the worker counts them, it reads the eventfd.
    pub kicks: u64,
    /// Interrupts sent.
    pub signals_sent: u64,
    /// Batches published for which the driver wanted no interrupt.
    pub signals_suppressed: u64,
    /// Batches published.
    pub bursts: u64,
}

/// One virtqueue of a device, owned by one worker.
pub struct Queue {
    /// The ring. Match on it once per batch.
    pub ring: Ring,
    /// What happened so far.
    pub counters: Counters,
    call: Option<EventFd>,
    kick: Option<OwnedFd>,
    err: Option<EventFd>,
    size: u16,
    features: RingFeatures,
    reported: bool,
    deaf: bool,
}

impl Queue {
    /// Maps and checks the ring, and recovers its inflight region.
    pub fn new(setup: RingSetup<'_>) -> Result<Self, SetupError> {
        let (size, features) = (setup.size, setup.features);
        Ok(Self {
            ring: Ring::new(setup)?,
            counters: Counters::default(),
            call: None,
            kick: None,
            err: None,
            size,
            features,
            reported: false,
            deaf: false,
        })
    }

    /// SET_VRING_CALL. Whoever serves the ring goes on with [`interrupt`](Self::interrupt).
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call.filter(|_| !self.deaf);
    }

    /// Interrupts the driver for nothing, which it must bear: an interrupt may have been due while there was no call eventfd,
    /// or have gone to a predecessor that died. For the thread that serves the ring, since a frontend can make the write wait.
    pub fn interrupt(&mut self) {
        if self.call.as_ref().is_some_and(|call| !signal(call)) {
            self.give_up_call();
        }
    }

    /// SET_VRING_ERR.
    pub fn set_err(&mut self, err: Option<EventFd>) {
        self.err = err;
    }

    /// SET_VRING_KICK; `None` is a frontend that wants the ring polled.
    pub fn set_kick(&mut self, kick: Option<OwnedFd>) {
        self.kick = kick;
    }

    /// The eventfd of kicks, to wait on.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(AsFd::as_fd)
    }

    /// Takes the kick eventfd away, when the ring stops and its descriptors are to be used again.
    pub fn take_kick(&mut self) -> Option<OwnedFd> {
        self.kick.take()
    }

    /// Takes the call eventfd away.
    pub fn take_call(&mut self) -> Option<EventFd> {
        self.call.take()
    }

    /// Takes the err eventfd away.
    pub fn take_err(&mut self) -> Option<EventFd> {
        self.err.take()
    }

    /// Where the ring stands, as in SET_VRING_BASE and GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    /// The value to answer GET_VRING_BASE with, after a drain; the ring is not used any more. This also marks its inflight
    /// region as unused, see [`Ring::finish`]. Not for a connection that was lost: there the region is what counts.
    pub fn finish(&mut self) -> u32 {
        self.ring.finish()
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The features the ring was made with.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// The driver may have negotiated other features than the ring was made with: the frontend does not pass them on. See
    /// [`split::Device::assume_any_driver`](crate::split::Device::assume_any_driver). Before the ring is used.
    pub fn assume_any_driver(&mut self) {
        self.ring.assume_any_driver();
    }

    /// Switches the dirty log on, off or over; `used_log_addr` as in [`RingSetup`].
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log_addr: Option<GuestAddr>) {
        self.ring.set_log(log, used_log_addr);
    }

    /// Maps the three areas again; on an error the ring still uses the old mapping and should be broken by the caller.
    pub fn rebuild_after_memory_change(&mut self, table: &MemoryTable) -> Result<(), SetupError> {
        self.ring.remap(table)
    }

    /// Publishes what was completed and interrupts the driver if it wants that. `true` when it was interrupted.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.ring.unpublished() == 0 {
            return false;
        }
        let wanted = self.ring.publish();
        self.notify(wanted)
    }

    /// The second half of [`publish`](Self::publish), for a loop that called the ring's own `publish` on a batch.
    #[inline]
    pub fn notify(&mut self, wanted: bool) -> bool {
        self.counters.bursts += 1;
        match &self.call {
            Some(call) if wanted => {
                self.counters.signals_sent += 1;
                if !signal(call) {
                    self.give_up_call();
                }
                true
            }
            _ => {
                self.counters.signals_suppressed += 1;
                false
            }
        }
    }

    /// Latches the ring as broken and tells the frontend by the err eventfd, once.
    pub fn break_ring(&mut self, why: Broken) {
        self.ring.break_with(why);
        if !std::mem::replace(&mut self.reported, true)
            && let Some(err) = &self.err
            && !signal(err)
        {
            self.deaf = true;
            self.err = None;
        }
    }

    /// Whether the frontend has let an eventfd fill up until a write had to wait. Such a ring is broken.
    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Waiting once for a frontend that does not listen is enough.
    #[cold]
    fn give_up_call(&mut self) {
        self.deaf = true;
        self.call = None;
        self.break_ring(Broken::Deaf);
    }
}

/// Writes an event. False when it had to wait for a reader until somebody interrupted it: the frontend made the descriptor
/// blocking, and full. Any other error means that it made it something else; there is nobody to tell.
#[expect(unsafe_code, reason = "`EventFd::write` would begin again when it is interrupted")]
fn signal(fd: &EventFd) -> bool {
    // SAFETY: the descriptor is open as long as `fd` is borrowed, and not closed here.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) });
    let written = (&*file).write(&1u64.to_ne_bytes());
    !written.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use crate::driver::DriverRing;
    use crate::tests::rig::{PACKED, Rig, SPLIT};

    fn eventfd() -> (EventFd, EventFd) {
        let fd = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        (fd.try_clone().unwrap(), fd)
    }

    fn signals(fd: &EventFd) -> u64 {
        fd.read().unwrap_or(0)
    }

    /// One request, completed but not published.
    fn completed(rig: &Rig, driver: &mut DriverRing, queue: &mut Queue) {
        driver.add(&[rig.buffer(8)], &[], 0).unwrap();
        let _ = driver.publish();
        let mut chain = Chain::new();
        assert_eq!(queue.ring.fetch(8), 1);
        queue.ring.next(&rig.view, &mut chain).unwrap();
        queue.ring.complete(&rig.view, &chain, 0);
    }

    #[test]
    fn one_batch_is_one_interrupt_and_counted() {
        for features in [SPLIT, PACKED] {
            let rig = Rig::new(8, features);
            let (mut driver, mut queue) = (rig.driver(), Queue::new(rig.setup(rig.start())).unwrap());
            let (ours, theirs) = eventfd();
            queue.set_call(Some(ours));
            assert_eq!(signals(&theirs), 0, "the thread that sets the fd need not be the one that may wait");
            queue.interrupt();
            assert_eq!(signals(&theirs), 1);
            completed(&rig, &mut driver, &mut queue);
            completed(&rig, &mut driver, &mut queue);
            assert!(queue.publish());
            assert_eq!(signals(&theirs), 1);
            driver.suppress();
            completed(&rig, &mut driver, &mut queue);
            assert!(!queue.publish() && !queue.publish());
            assert_eq!(signals(&theirs), 0);
            let expected = Counters { signals_sent: 1, signals_suppressed: 1, bursts: 2, kicks: 0 };
            assert_eq!(queue.counters, expected);
        }
    }

    #[test]
    fn a_queue_without_a_call_fd_is_published_for_a_polling_guest() {
        let rig = Rig::new(8, SPLIT);
        let (mut driver, mut queue) = (rig.driver(), Queue::new(rig.setup(0)).unwrap());
        completed(&rig, &mut driver, &mut queue);
        assert!(!queue.publish());
        assert!(driver.pop().is_some());
    }

    #[test]
    fn a_broken_ring_tells_the_frontend_once() {
        let rig = Rig::new(8, SPLIT);
        let mut queue = Queue::new(rig.setup(0)).unwrap();
        let (ours, theirs) = eventfd();
        queue.set_err(Some(ours));
        queue.break_ring(Broken::DescriptorLoop);
        queue.break_ring(Broken::TooLong);
        assert_eq!((signals(&theirs), queue.ring.broken()), (1, Some(Broken::DescriptorLoop)));
    }

    #[test]
    fn a_stopped_queue_gives_its_descriptors_back() {
        let rig = Rig::new(8, SPLIT);
        let mut queue = Queue::new(rig.setup(0)).unwrap();
        queue.set_call(Some(eventfd().0));
        queue.set_err(Some(eventfd().0));
        queue.set_kick(Some(std::fs::File::open("/dev/null").unwrap().into()));
        assert!(queue.kick_fd().is_some());
        assert!(queue.take_call().is_some() && queue.take_err().is_some() && queue.take_kick().is_some());
        assert!(queue.take_call().is_none() && queue.take_err().is_none() && queue.kick_fd().is_none());
    }
}
