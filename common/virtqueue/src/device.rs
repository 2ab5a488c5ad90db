//! What the device does with a ring, whatever its format.

use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, MemoryTable, MemoryView};

use crate::broken::{Broken, SetupError};
use crate::chain::Chain;
use crate::setup::{Format, RingSetup};
use crate::{packed, split};

/// Device side of one ring. All calls come from the worker that owns the ring; none blocks.
pub trait DeviceRing {
    /// How many chains, up to `max`, may now be taken with [`next`](Self::next): one look at what the driver published
    /// (an acquire load). Chains left in flight by a killed predecessor come first. 0 for a broken ring.
    fn fetch(&mut self, max: u16) -> u16;

    /// Copies and checks the descriptors of the next chain and translates its buffers into `chain`. A violation latches
    /// the ring as broken; `chain` is then worthless. Call it at most as often as `fetch` said.
    fn next(&mut self, mem: &MemoryView, chain: &mut Chain) -> Result<(), Broken>;

    /// [`next`](Self::next) for as many fetched chains as `chains` has room for; returns how many were taken. Fewer than
    /// that: all that were fetched, or a violation, which latches the ring as broken. Much cheaper than one by one for
    /// chains of one buffer.
    fn next_batch(&mut self, mem: &MemoryView, chains: &mut [Chain]) -> usize;

    /// Gives back the chain that was taken last, not executed: it will be fetched again. `false`, and no effect, when
    /// another was taken since. For a stop without drain.
    fn unfetch(&mut self, chain: &Chain) -> bool;

    /// Hands the chain back to the driver, which does not see it before [`publish`](Self::publish). `written` is the
    /// number of bytes written from the start of its writable buffers, a detached status byte included. Any order;
    /// with IN_ORDER early ones are held back here. While a dirty log is set, the written bytes are marked in it.
    fn complete(&mut self, mem: &MemoryView, chain: &Chain, written: u32);

    /// [`complete`](Self::complete) for several chains in the order they were taken, with what was written to each.
    ///
    /// # Panics
    /// When `written` is shorter than `chains`.
    fn complete_batch(&mut self, mem: &MemoryView, chains: &[Chain], written: &[u32]);

    /// Shows everything completed since the last time to the driver, with one release store, and decides about the
    /// interrupt: `true` when the driver wants one. The decision is made once per batch, so a `true` must be acted on.
    #[must_use = "true means that the driver is waiting for an interrupt"]
    fn publish(&mut self) -> bool;

    /// Chains completed and not yet published.
    fn unpublished(&self) -> u16;

    /// Asks for kicks. `true` when there is work already: do not sleep, `fetch`.
    #[must_use = "true means that there is work, for which no kick will come"]
    fn arm(&mut self) -> bool;

    /// Asks for no kicks, as far as the driver honours it. Cheap when nothing changes.
    fn suppress(&mut self);

    /// Whether a chain is waiting; one relaxed load, no fence. For polling.
    fn has_work(&self) -> bool;

    /// Chains left in flight by a killed predecessor that are still to be taken.
    fn resubmissions(&self) -> u16;

    /// Chains taken and not yet handed back.
    fn in_flight(&self) -> u16;

    /// Whether and why the ring was given up.
    fn broken(&self) -> Option<Broken>;

    /// Latches the ring as broken; the first reason stays.
    fn break_with(&mut self, why: Broken);
}

/// Device side of a ring of either format. Match once per batch and run a loop that is generic over [`DeviceRing`].
pub enum Ring {
    /// A split ring.
    Split(split::Device),
    /// A packed ring.
    Packed(packed::Device),
}

macro_rules! either {
    ($ring:expr, $it:ident => $call:expr) => {
        match $ring {
            Ring::Split($it) => $call,
            Ring::Packed($it) => $call,
        }
    };
}

impl Ring {
    /// Maps and checks a ring, and recovers its inflight region.
    pub fn new(setup: RingSetup<'_>) -> Result<Self, SetupError> {
        Ok(match setup.features.format() {
            Format::Split => Self::Split(split::Device::new(setup)?),
            Format::Packed => Self::Packed(packed::Device::new(setup)?),
        })
    }

    /// The driver's features are unknown, see [`split::Device::assume_any_driver`]. Nothing changes in a packed ring: whoever
    /// passed on RING_PACKED passed on the others, too.
    pub fn assume_any_driver(&mut self) {
        match self {
            Self::Split(ring) => ring.assume_any_driver(),
            Self::Packed(_) => {}
        }
    }

    /// The value for GET_VRING_BASE, see [`RingSetup::base`].
    pub fn base(&self) -> u32 {
        either!(self, ring => ring.base())
    }

    /// [`base`](Self::base) of a ring that is stopped for good. Once nothing is in flight this also marks the inflight region
    /// as unused, so that the next start is from SET_VRING_BASE: the ring may be reset meanwhile (RING_RESET).
    pub fn finish(&mut self) -> u32 {
        either!(self, ring => ring.finish())
    }

    /// Maps the areas again after the memory table changed.
    pub fn remap(&mut self, table: &MemoryTable) -> Result<(), SetupError> {
        either!(self, ring => ring.remap(table))
    }

    /// Switches the dirty log on, off or over.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log_addr: Option<GuestAddr>) {
        either!(self, ring => ring.set_log(log, used_log_addr))
    }
}

impl DeviceRing for Ring {
    #[inline]
    fn fetch(&mut self, max: u16) -> u16 {
        either!(self, ring => ring.fetch(max))
    }

    #[inline]
    fn next(&mut self, mem: &MemoryView, chain: &mut Chain) -> Result<(), Broken> {
        either!(self, ring => ring.next(mem, chain))
    }

    #[inline]
    fn next_batch(&mut self, mem: &MemoryView, chains: &mut [Chain]) -> usize {
        either!(self, ring => ring.next_batch(mem, chains))
    }

    #[inline]
    fn complete_batch(&mut self, mem: &MemoryView, chains: &[Chain], written: &[u32]) {
        either!(self, ring => ring.complete_batch(mem, chains, written))
    }

    fn unfetch(&mut self, chain: &Chain) -> bool {
        either!(self, ring => ring.unfetch(chain))
    }

    #[inline]
    fn complete(&mut self, mem: &MemoryView, chain: &Chain, written: u32) {
        either!(self, ring => ring.complete(mem, chain, written))
    }

    #[inline]
    fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        either!(self, ring => ring.unpublished())
    }

    fn arm(&mut self) -> bool {
        either!(self, ring => ring.arm())
    }

    fn suppress(&mut self) {
        either!(self, ring => ring.suppress())
    }

    #[inline]
    fn has_work(&self) -> bool {
        either!(self, ring => ring.has_work())
    }

    fn resubmissions(&self) -> u16 {
        either!(self, ring => ring.resubmissions())
    }

    fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }

    fn broken(&self) -> Option<Broken> {
        either!(self, ring => ring.broken())
    }

    fn break_with(&mut self, why: Broken) {
        either!(self, ring => ring.break_with(why))
    }
}
