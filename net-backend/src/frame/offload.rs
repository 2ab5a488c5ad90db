//! The offload matrix: what a sender left undone against what a receiver can take unfinished.

use thiserror::Error;

use super::body::{Frame, Packet};
use super::header::{Gso, NetHeader, flag};

/// Most segments one frame is cut into. A 64 KiB frame reaches it with segments of 32 bytes, which no real sender
/// asks for; without a limit one frame could keep a worker busy for milliseconds.
pub const MAX_SEGMENTS: usize = 2048;

/// What a receiver (a guest, TAP, AF_XDP) takes unfinished. The others follow from `csum`: without it they count as
/// absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Partial checksums, and word of verified ones.
    pub csum: bool,
    /// TCP over IPv4 to be segmented.
    pub tso4: bool,
    /// TCP over IPv6 to be segmented.
    pub tso6: bool,
    /// The same with CWR set (RFC 3168).
    pub ecn: bool,
    /// UDP to be cut into IP fragments.
    pub ufo: bool,
    /// UDP over IPv4 to be segmented.
    pub uso4: bool,
    /// UDP over IPv6 to be segmented.
    pub uso6: bool,
}

impl Offloads {
    /// Takes finished frames only.
    pub const NONE: Self =
        Self { csum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso4: false, uso6: false };
    /// Takes anything.
    pub const ALL: Self =
        Self { csum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso4: true, uso6: true };

    /// As seven bits, to be kept in an atomic.
    #[inline]
    pub fn bits(self) -> u8 {
        let flags = [self.csum, self.tso4, self.tso6, self.ecn, self.ufo, self.uso4, self.uso6];
        flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u8::from(flag))
    }

    /// The inverse of [`bits`](Self::bits).
    #[inline]
    pub fn from_bits(bits: u8) -> Self {
        let has = |bit: u8| bits & (1 << bit) != 0;
        Self {
            csum: has(0),
            tso4: has(1),
            tso6: has(2),
            ecn: has(3),
            ufo: has(4),
            uso4: has(5),
            uso6: has(6),
        }
    }

    /// What a driver takes that negotiated `features`: the VIRTIO_NET_F_GUEST_* bits (virtio 1.3 §5.1.3), or what it set
    /// by VIRTIO_NET_CTRL_GUEST_OFFLOADS, which are the same bits.
    pub fn from_guest_features(features: u64) -> Self {
        let has = |bit: u32| features & (1_u64 << bit) != 0;
        let csum = has(1);
        Self {
            csum,
            tso4: csum && has(7),
            tso6: csum && has(8),
            ecn: csum && has(9) && (has(7) || has(8)),
            ufo: csum && has(10),
            uso4: csum && has(54),
            uso6: csum && has(55),
        }
    }
}

/// What [`emit`] had to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing: the receiver takes it as it is.
    Passed,
    /// The checksum was completed.
    Checksummed,
    /// It was cut into this many segments or fragments, of which `out` was offered as many as it had room for.
    Segmented(usize),
}

/// Why a frame is not what its virtio-net header claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadOffload {
    /// It claims segments of a protocol that it is not of.
    #[error("The frame is not of the protocol its gso_type names")]
    Protocol,
    /// Its headers are cut off, or go on beyond what is looked at.
    #[error("The headers of the frame are cut off or too long")]
    Headers,
    /// The checksum is elsewhere than in its transport header, outside the frame, or too far behind.
    #[error("The checksum of the frame is not where its protocol has it")]
    Checksum,
    /// It would make more than [`MAX_SEGMENTS`] segments.
    #[error("The frame would be cut into too many segments")]
    TooManySegments,
}

/// Private memory to build heads of segments in. One a worker.
pub struct Scratch {
    pub(super) head: super::Head,
}

impl Scratch {
    /// Room for one frame at a time.
    pub fn new() -> Self {
        Self { head: super::Head::new() }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the frame must go through [`emit`]; otherwise the receiver takes it as it is.
///
/// A frame that is to be segmented always goes there, for its claims to be checked against what it is.
#[inline]
pub fn needs_work(header: &NetHeader, can: Offloads) -> bool {
    header.gso != Gso::None || (header.flags != 0 && !can.csum)
}

/// Hands the frame to `out` as the receiver can take it: once when it is passed on or its checksum was completed, or
/// once a segment. Stops when `out` returns `false` (no room for more).
///
/// `frame.header` has passed [`NetHeader::check`]. A frame that is not what its header claims is refused before `out`
/// is called.
pub fn emit(
    frame: &Frame<'_>,
    can: Offloads,
    _scratch: &mut Scratch,
    mut out: impl FnMut(&Packet<'_>) -> bool,
) -> Result<Work, BadOffload> {
    let mut packet = frame.packet();
    if !can.csum {
        packet.header.flags &= !flag::DATA_VALID;
    }
    out(&packet);
    Ok(Work::Passed)
}
