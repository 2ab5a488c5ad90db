//! What a worker thread of an offload daemon runs: the rings of any number of devices.
//!
//! A round is: look at the bell (what other threads have done), take a burst from every ring, submit what was collected if
//! [`flush`](crate::flush) says so, end what the engines have done, publish each ring once. [`Service`] is that round; what a
//! request is, and who computes it, is said by the [`Offload`] of the device crate. There is one on each worker.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use memory::Epochs;
use runtime::io::WatchId;
use runtime::rings::{Reply, RingCommand, Rings, Slot, SlotId};
use runtime::stats::WorkerStats;
use runtime::worker::{self, Context};
use virtqueue::{Broken, DeviceRing, Ring};

use crate::bell::Bell;
use crate::flush::{Mode, Policy, Ticker};
use crate::stats::BatchCounters;

/// What control tells a worker; `U` is a device as its session thread and its workers share it.
pub enum Message<U> {
    /// About the rings of one device.
    Rings(RingCommand),
    /// From now on rings of this device may be started.
    Add {
        /// Number of the device.
        device: u32,
        /// The device.
        unit: Arc<U>,
        /// Answered when it is known.
        reply: Reply<()>,
    },
    /// The rings of this device are gone for good.
    Remove {
        /// Number of the device.
        device: u32,
        /// Answered when the worker has let go of the device.
        reply: Reply<()>,
    },
    /// Wait and submit like this from now on. [`Mode::poll_policy`] has to be set on the worker as well.
    Policy(Policy),
    /// Are you there?
    Ping {
        /// Answered at once.
        reply: Reply<()>,
    },
}

impl<U> From<RingCommand> for Message<U> {
    fn from(command: RingCommand) -> Self {
        Self::Rings(command)
    }
}

/// The rings of a worker; without a state when their device is not known.
pub type OffloadRings<Q> = Rings<Option<Q>>;

/// What a ring may use of its worker, for one burst.
pub struct Env<'a> {
    /// Memory of the device's frontend.
    pub epochs: &'a mut Epochs,
    /// The ring's place.
    pub slot: SlotId,
    /// Monotonic time of this round, in nanoseconds.
    pub now: u64,
    /// Counts the rounds, for [`fair`](crate::fair).
    pub round: u64,
    /// The worker's counters.
    pub worker: &'a WorkerStats,
    /// To be set by a ring that leaves the rest to others, its share being used up.
    pub throttled: bool,
    /// To be set by a ring that has something it cannot take now: it is left alone until a request ends, or for a moment,
    /// instead of keeping the worker awake.
    pub held_up: bool,
}

/// How long a ring is left alone that could not go on.
const HELD_UP_NS: u64 = 100_000;

/// What a worker found when it had looked at all rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Nothing is left in any ring that may be served.
    pub rings_empty: bool,
    /// A ring has used up its share of the round.
    pub throttled: bool,
    /// Monotonic time in nanoseconds.
    pub now: u64,
}

/// What a worker did besides looking at the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Requests that ended, or other units of work.
    pub ended: usize,
    /// There is more to do at once: the next round must not wait.
    pub more: bool,
}

/// What a device crate does with requests, on one worker. All methods are called on the worker's own thread, and none may
/// block: other devices' rings are waiting.
pub trait Offload {
    /// A device, as its session thread and its workers share it.
    type Unit: Send + Sync + 'static;
    /// The state of a ring.
    type Queue;

    /// Descriptors that become readable when engines have results. Asked once.
    fn events(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// From now on rings of this device may be started.
    fn add(&mut self, device: u32, unit: Arc<Self::Unit>);

    /// The rings of this device are gone for good: nothing of it may be kept.
    fn remove(&mut self, device: u32);

    /// The state of ring `index`, which starts; `None` when there is no such device or ring.
    fn queue(&self, device: u32, index: u16) -> Option<Self::Queue>;

    /// This ring is about to stop, which waits for what it has in flight: the chains that were taken last may go back to it as
    /// long as nobody has begun them ([`DeviceRing::unfetch`]).
    fn stopping(&mut self, _: &mut OffloadRings<Self::Queue>, _: SlotId) {}

    /// Submit like this from now on.
    fn set_policy(&mut self, policy: Policy);

    /// Takes what the driver made available, as far as the ring's share goes
    /// ([`Account::burst`](crate::fair::Account::burst)). Returns how many chains. What ends here is completed, not published.
    fn burst<R: DeviceRing>(&mut self, queue: &mut Self::Queue, ring: &mut R, env: &mut Env<'_>) -> usize;

    /// The bell was rung: takes what other threads have done, and ends requests. Returns how many.
    fn rung(&mut self, rings: &mut OffloadRings<Self::Queue>, worker: &WorkerStats) -> usize;

    /// All rings were looked at: submits what was collected, if it is time to, and ends what has been computed. Only called
    /// when something was taken or there [is work](Self::has_work).
    fn turn(&mut self, rings: &mut OffloadRings<Self::Queue>, look: Look, worker: &WorkerStats) -> Done;

    /// Whether anything was collected, is with the engines, or waits to be computed here.
    fn has_work(&self) -> bool;

    /// Whether something will come that is not in the rings: while it is so, the timer ticks.
    fn awaits(&self) -> bool {
        self.has_work()
    }

    /// How long to sleep at most before the next look for results, in nanoseconds; `None`: nothing needs to be looked for.
    fn patience_ns(&self) -> Option<u64> {
        None
    }

    /// Requests were taken or have ended in this round: the last call before the rings are published.
    fn tidy(&mut self) {}

    /// What was completed on this ring has been published.
    fn published(&mut self, _: &mut Self::Queue) {}

    /// The worker is about to sleep. True: there is something to do, which no bell will announce.
    fn arm(&mut self) -> bool {
        false
    }

    /// The worker is awake again.
    fn awake(&mut self) {}

    /// Where batches and ticks are counted.
    fn counters(&self) -> &BatchCounters;
}

/// The service of one worker.
pub struct Service<O: Offload> {
    rings: OffloadRings<O::Queue>,
    offload: O,
    mode: Mode,
    bell: Arc<Bell>,
    /// The events of bell and engines; a kick is any other.
    watches: Vec<WatchId>,
    ticker: Ticker,
    round: u64,
    /// When rings that were held up are looked at again.
    retry: Option<u64>,
}

/// What a round took from the rings.
struct Bursts {
    taken: usize,
    /// A ring has more.
    more: bool,
    throttled: bool,
}

impl<O: Offload> Service<O> {
    /// A service without devices, whose worker is woken by `bell`.
    pub fn new(mut offload: O, policy: Policy, bell: Arc<Bell>, cx: &mut Context) -> Self {
        offload.set_policy(policy);
        let watch = |event| cx.watch(event).inspect_err(report).ok();
        let events = offload.events().into_iter().chain([bell.as_raw_fd()]);
        let watches = events.filter_map(watch).collect();
        let (rings, ticker) = (Rings::new(), Ticker::default());
        Self { rings, offload, mode: policy.mode, bell, watches, ticker, round: 0, retry: None }
    }

    fn ring_command(&mut self, command: RingCommand, cx: &mut Context) {
        let Self { rings, offload, .. } = self;
        if let RingCommand::Stop { device, index, .. } = command {
            let slot =
                rings.iter().find(|slot| (slot.device, slot.index) == (device, index)).map(|slot| slot.id);
            slot.into_iter().for_each(|slot| offload.stopping(rings, slot));
        }
        rings.apply(command, cx, |device, index, _| offload.queue(device, index));
    }

    fn set_policy(&mut self, policy: Policy) {
        self.mode = policy.mode;
        self.ticker = Ticker::default();
        self.offload.set_policy(policy);
    }

    /// Takes a burst from every ring.
    #[inline]
    fn take_bursts(&mut self, cx: &mut Context) -> Bursts {
        self.round += 1;
        let Self { rings, offload, round, retry, .. } = self;
        let (mut more, mut throttled) = (false, false);
        let taken = rings.serve(cx, |slot, epochs, cx| {
            let (taken, is_throttled) = serve(slot, epochs, offload, *round, cx);
            throttled |= is_throttled;
            if slot.paused() {
                let at = *retry.get_or_insert_with(|| cx.now_ns() + HELD_UP_NS);
                cx.wake_at(at);
            } else {
                more |= slot.queue.ring.has_work();
            }
            taken
        });
        Bursts { taken, more, throttled }
    }

    /// Looks again at the rings that were held up: after a while, or when something has `ended`.
    #[inline]
    fn retry(&mut self, ended: bool, cx: &mut Context) {
        if let Some(at) = self.retry
            && (ended || cx.now_ns() >= at)
        {
            self.retry = None;
            self.rings.for_each(cx, |slot, _, _| slot.resume());
        }
    }

    /// Publishes what was completed, once a ring.
    #[inline]
    fn publish(&mut self, cx: &mut Context) {
        let Self { rings, offload, .. } = self;
        rings.for_each(cx, |slot, _, cx| {
            if slot.queue.ring.unpublished() > 0 {
                slot.publish(cx);
                if let Some(queue) = &mut slot.state {
                    offload.published(queue);
                }
            }
        });
    }

    /// When to come back although nothing else happens.
    fn plan(&mut self, now: u64, worked: bool, more: bool, cx: &mut Context) {
        let busy = worked || self.offload.awaits();
        if let Some(tick) = self.ticker.looked(self.mode, now, busy, more) {
            self.offload.counters().ticks.add(1);
            cx.wake_at(tick);
        } else if let Some(patience) = self.offload.patience_ns() {
            cx.wake_at(now + patience);
        }
    }
}

fn report(error: &io::Error) {
    tracing::error!(%error, "A worker cannot wait for its engines");
}

/// Takes a burst from one ring. Returns how many chains, and whether the ring leaves the rest to others.
#[inline]
fn serve<O: Offload>(
    slot: &mut Slot<Option<O::Queue>>,
    epochs: &mut Epochs,
    offload: &mut O,
    round: u64,
    cx: &mut Context,
) -> (usize, bool) {
    let Some(queue) = &mut slot.state else {
        slot.break_ring(Broken::Refused("the device has no such queue"));
        return (0, false);
    };
    if epochs.view().table().failed() {
        slot.break_ring(Broken::Refused("guest memory is shorter than announced"));
        return (0, false);
    }
    let now = cx.now_ns();
    let mut env =
        Env { epochs, slot: slot.id, now, round, worker: &cx.stats, throttled: false, held_up: false };
    let taken = match &mut slot.queue.ring {
        Ring::Split(ring) => offload.burst(queue, ring, &mut env),
        Ring::Packed(ring) => offload.burst(queue, ring, &mut env),
    };
    let (throttled, held_up) = (env.throttled, env.held_up);
    if held_up {
        slot.pause();
    }
    if taken > 0 {
        slot.stats.requests.add(taken as u64);
        slot.stats.batch.record(taken as u64);
        cx.stats.batch.record(taken as u64);
    }
    (taken, throttled)
}

impl<O: Offload> worker::Service for Service<O> {
    type Message = Message<O::Unit>;

    fn message(&mut self, message: Self::Message, cx: &mut Context) {
        match message {
            Message::Rings(command) => self.ring_command(command, cx),
            Message::Add { device, unit, reply } => {
                self.offload.add(device, unit);
                reply.send(());
            }
            Message::Remove { device, reply } => {
                self.offload.remove(device);
                reply.send(());
            }
            Message::Policy(policy) => self.set_policy(policy),
            Message::Ping { reply } => reply.send(()),
        }
    }

    #[inline]
    fn poll_once(&mut self, cx: &mut Context) -> usize {
        self.retry(false, cx);
        if let Mode::Timer(_) = self.mode
            && !self.ticker.due(self.mode, cx.now_ns())
        {
            // Whatever has woken the worker early may have used up its wake-up for the tick, and kicks are off.
            self.ticker.next().into_iter().for_each(|tick| cx.wake_at(tick));
            self.rings.settle(cx);
            return 0;
        }
        let mut ended = 0;
        if self.bell.take() {
            ended += self.offload.rung(&mut self.rings, &cx.stats);
        }
        let Bursts { taken, mut more, throttled } = self.take_bursts(cx);
        if taken > 0 || self.offload.has_work() {
            let look = Look { rings_empty: !more, throttled, now: cx.now_ns() };
            let done = self.offload.turn(&mut self.rings, look, &cx.stats);
            ended += done.ended;
            more |= done.more;
        }
        if taken + ended > 0 {
            self.offload.tidy();
            self.publish(cx);
            self.retry(ended > 0, cx);
        }
        self.rings.settle(cx);
        let worked = taken + ended + usize::from(more);
        if worked > 0 || self.ticker.running() || self.offload.has_work() {
            let now = cx.now_ns();
            self.plan(now, worked > 0, more, cx);
        }
        worked
    }

    fn completed(&mut self, _: u64, _: i32, _: &mut Context) {
        // Nothing is done by the I/O engine.
    }

    fn ready(&mut self, watch: WatchId, _: &mut Context) {
        if !self.watches.contains(&watch) {
            self.rings.kicked(watch);
        }
    }

    fn arm(&mut self) -> bool {
        // While the timer runs, its tick is what the worker waits for, whatever happens.
        !self.ticker.running() && (self.bell.is_rung() | self.offload.arm() | self.rings.arm())
    }

    fn suppress(&mut self) {
        self.offload.awake();
        self.rings.suppress();
    }

    fn outstanding(&self) -> usize {
        self.rings.outstanding()
    }

    fn close(&mut self) {
        self.rings.close();
    }

    fn panicked(&mut self) {
        self.rings.fail();
    }
}
