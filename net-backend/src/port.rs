//! A port of the switch, as its session thread, the control socket and the workers share it.
//!
//! The session thread and the control queue write, workers read once a burst; everything is a relaxed atomic, because no
//! field is used to reach another one. What has to be in step with the rings (memory, steering, policy) travels to the
//! workers by [`Message`](crate::service::Message) instead.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64};

use serde::{Deserialize, Serialize};

use crate::features::VIRTIO_NET_F_MRG_RXBUF;
use crate::frame::{HeaderSize, Offloads};
use crate::stats::PortStats;
use crate::switch::PortId;

/// Most queue pairs of a port.
pub const MAX_PAIRS: u16 = 16;

/// What never changes while a port exists.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its number in the switch.
    pub id: PortId,
    /// What people call it.
    pub name: String,
    /// Queue pairs it has at most, 1 to [`MAX_PAIRS`]; the uplink counts as having one on each worker.
    pub pairs: u16,
    /// Workers of the process, each with counters of its own.
    pub workers: usize,
}

/// How long a driver lets its interrupts wait (NOTF_COAL, virtio 1.3 §5.1.6.5.9): until this many frames have come, or this
/// much time has passed since the first of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coalescing {
    /// Frames, as buffers; 0: any number.
    pub frames: u32,
    /// Microseconds; 0: interrupts do not wait.
    pub usecs: u32,
}

impl Coalescing {
    /// Whether any interrupt waits.
    pub fn waits(self) -> bool {
        self.usecs != 0 && self.frames != 1
    }
}

/// One port.
pub struct Port {
    identity: Identity,
    features: AtomicU64,
    /// VIRTIO_NET_F_GUEST_* bits of what the receiver takes unfinished.
    guest_offloads: AtomicU64,
    link: AtomicBool,
    mtu: AtomicU16,
    active_pairs: AtomicU16,
    /// Of receive and of transmit queues: frames and microseconds in one word, 0 when no interrupt waits.
    coalescing: [AtomicU64; 2],
    /// Bit `i`: the receive ring of pair `i` takes frames.
    receiving: AtomicU32,
    /// Its counters.
    pub stats: PortStats,
}

impl Port {
    /// A port with its link up and nothing negotiated.
    pub fn new(identity: Identity) -> Self {
        let stats = PortStats::new(identity.workers, identity.pairs);
        Self {
            active_pairs: AtomicU16::new(identity.pairs),
            identity,
            features: AtomicU64::new(0),
            guest_offloads: AtomicU64::new(0),
            link: AtomicBool::new(true),
            mtu: AtomicU16::new(0),
            coalescing: [AtomicU64::new(0), AtomicU64::new(0)],
            receiving: AtomicU32::new(0),
            stats,
        }
    }

    /// Its number in the switch.
    #[inline]
    pub fn id(&self) -> PortId {
        self.identity.id
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Queue pairs it has at most.
    pub fn pairs(&self) -> u16 {
        self.identity.pairs
    }

    /// Takes over what driver and device agreed on: the length of the header, what the receiver takes unfinished, and that
    /// all pairs are active until the driver says otherwise.
    pub fn negotiated(&self, features: u64) {
        self.features.store(features, Relaxed);
        self.set_guest_offloads(features);
        self.active_pairs.store(self.identity.pairs, Relaxed);
    }

    /// The features agreed on.
    #[inline]
    pub fn features(&self) -> u64 {
        self.features.load(Relaxed)
    }

    /// The form of the virtio-net header on its rings.
    #[inline]
    pub fn header_size(&self) -> HeaderSize {
        HeaderSize::of(self.features())
    }

    /// What the receiver takes unfinished.
    #[inline]
    pub fn offloads(&self) -> Offloads {
        Offloads::from_guest_features(self.guest_offloads.load(Relaxed))
    }

    /// Sets what the receiver takes unfinished, as VIRTIO_NET_F_GUEST_* bits (VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET).
    pub fn set_guest_offloads(&self, features: u64) {
        self.guest_offloads.store(features, Relaxed);
    }

    /// Whether a frame may fill several receive buffers (MRG_RXBUF).
    #[inline]
    pub fn mergeable(&self) -> bool {
        self.features.load(Relaxed) & VIRTIO_NET_F_MRG_RXBUF != 0
    }

    /// Whether frames pass: the operator or the driver may have taken the link down.
    #[inline]
    pub fn link_up(&self) -> bool {
        self.link.load(Relaxed)
    }

    /// Takes the link up or down. Frames of a port whose link is down are dropped and counted, both ways.
    pub fn set_link(&self, up: bool) {
        self.link.store(up, Relaxed);
    }

    /// Largest frame without its Ethernet header and tags, in bytes; 0: no limit of the port's own.
    #[inline]
    pub fn mtu(&self) -> u16 {
        self.mtu.load(Relaxed)
    }

    /// Sets the MTU.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Relaxed);
    }

    /// Pairs the driver uses (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET).
    #[inline]
    pub fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Relaxed)
    }

    /// Sets the pairs the driver uses.
    pub fn set_active_pairs(&self, pairs: u16) {
        self.active_pairs.store(pairs.clamp(1, self.identity.pairs), Relaxed);
    }

    /// How long interrupts of queue `index` wait; `None`: not at all.
    #[inline]
    pub fn coalescing(&self, index: u16) -> Option<Coalescing> {
        match self.coalescing[usize::from(index % 2)].load(Relaxed) {
            0 => None,
            both => Some(Coalescing { frames: (both >> 32) as u32, usecs: both as u32 }),
        }
    }

    /// Sets how long interrupts of receive and of transmit queues wait (VIRTIO_NET_CTRL_NOTF_COAL).
    pub fn set_coalescing(&self, receive: Coalescing, transmit: Coalescing) {
        for (held, wanted) in self.coalescing.iter().zip([receive, transmit]) {
            let both = u64::from(wanted.frames) << 32 | u64::from(wanted.usecs);
            held.store(if wanted.waits() { both } else { 0 }, Relaxed);
        }
    }

    /// The pairs whose receive rings take frames, one bit each. Workers keep it.
    #[inline]
    pub fn receiving(&self) -> u32 {
        self.receiving.load(Relaxed)
    }

    /// Notes whether the receive ring of a pair takes frames; by the worker that has it.
    pub(crate) fn set_receiving(&self, pair: u16, on: bool) {
        let bit = 1u32.checked_shl(pair.into()).unwrap_or(0);
        if on {
            self.receiving.fetch_or(bit, Relaxed);
        } else {
            self.receiving.fetch_and(!bit, Relaxed);
        }
    }
}
