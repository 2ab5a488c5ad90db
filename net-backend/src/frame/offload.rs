//! The offload matrix: what a sender left undone against what a receiver can take unfinished.

use std::hash::{BuildHasher, RandomState};

use thiserror::Error;

use super::body::{Body, Frame, Packet};
use super::checksum::Sum;
use super::header::{Gso, NetHeader};
use super::segment;
use crate::features::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};

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
        let csum = features & VIRTIO_NET_F_GUEST_CSUM != 0;
        let has = |bits: u64| csum && features & bits != 0;
        Self {
            csum,
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN) && has(VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6),
            ufo: has(VIRTIO_NET_F_GUEST_UFO),
            uso4: has(VIRTIO_NET_F_GUEST_USO4),
            uso6: has(VIRTIO_NET_F_GUEST_USO6),
        }
    }

    /// Names of what is taken.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            ("csum", self.csum),
            ("tso4", self.tso4),
            ("tso6", self.tso6),
            ("ecn", self.ecn),
            ("ufo", self.ufo),
            ("uso4", self.uso4),
            ("uso6", self.uso6),
        ];
        all.into_iter().filter(|(_, taken)| *taken).map(|(name, _)| name).collect()
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
    /// The checksum is elsewhere than in its transport header, or too far behind.
    #[error("The checksum of the frame is not where its protocol has it")]
    Checksum,
    /// It is longer than an IP packet can be.
    #[error("The frame is longer than an IP packet can be")]
    TooLong,
    /// It would make more than [`MAX_SEGMENTS`] segments.
    #[error("The frame would be cut into too many segments")]
    TooManySegments,
}

/// Private memory to build heads in. One a worker.
pub struct Scratch {
    /// Headers of what leaves and, behind them, what of its payload is private already.
    pub(super) head: [u8; Self::LEN],
    /// The part of the payload that came with the head.
    pub(super) payload: [u8; Self::LEN],
    /// Identification of the next IPv6 datagram that is cut into fragments.
    pub(super) datagram: u32,
}

impl Scratch {
    /// The longest head: of [`HEADERS_MAX`](Self::HEADERS_MAX) bytes, with a fragment header and the private payload.
    const LEN: usize = 1024;
    /// The longest headers that are looked at; those that occur end within 256 bytes.
    pub(super) const HEADERS_MAX: usize = 512;

    /// Room for one frame at a time.
    pub fn new() -> Self {
        // Fragments must not be confused with those of another worker or of the process before (RFC 7739).
        let datagram = RandomState::new().hash_one(0) as u32;
        Self { head: [0; Self::LEN], payload: [0; Self::LEN], datagram }
    }

    /// Copies the first `len` bytes of the frame, or all of its head if that is more, and returns them together with
    /// what follows.
    pub(super) fn load<'m>(
        &mut self,
        frame: &Frame<'m>,
        len: usize,
    ) -> Result<(&mut [u8], Body<'m>), BadOffload> {
        let (head, mut body) = (frame.head.as_slice(), frame.body);
        let len = len.max(head.len());
        let bytes = self.head.get_mut(..len).ok_or(BadOffload::Headers)?;
        let (private, more) = bytes.split_at_mut(head.len());
        private.copy_from_slice(head);
        if !more.is_empty() && body.take(more.len()).read(more) < more.len() {
            return Err(BadOffload::Headers);
        }
        Ok((bytes, body))
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
/// A frame that is not what its header claims is refused before `out` is called.
pub fn emit(
    frame: &Frame<'_>,
    can: Offloads,
    scratch: &mut Scratch,
    mut out: impl FnMut(&Packet<'_>) -> bool,
) -> Result<Work, BadOffload> {
    match frame.header.gso {
        Gso::None => emit_one(frame, can, scratch, &mut out),
        _ => segment::emit(frame, can, scratch, &mut out),
    }
}

/// A frame that is not to be segmented.
pub(super) fn emit_one(
    frame: &Frame<'_>,
    can: Offloads,
    scratch: &mut Scratch,
    out: &mut dyn FnMut(&Packet<'_>) -> bool,
) -> Result<Work, BadOffload> {
    if frame.header.flags == 0 || can.csum {
        out(&frame.packet());
        return Ok(Work::Passed);
    }
    let header = frame.header.finished();
    if !frame.header.needs_csum() {
        out(&Packet { header, ..frame.packet() });
        return Ok(Work::Passed);
    }
    let (head, body) = complete(frame, scratch)?;
    out(&Packet { header, head, body });
    Ok(Work::Checksummed)
}

/// The frame with its checksum completed: over everything from `csum_start` on, the sum of the pseudo header that the
/// sender left in the field included (virtio 1.3 §5.1.6.2).
fn complete<'s, 'm>(frame: &Frame<'m>, scratch: &'s mut Scratch) -> Result<(&'s [u8], Body<'m>), BadOffload> {
    let start = usize::from(frame.header.csum_start);
    let field = start + usize::from(frame.header.csum_offset);
    if field + 2 > frame.len() || field + 2 > Scratch::LEN {
        return Err(BadOffload::Checksum);
    }
    let (head, body) = scratch.load(frame, field + 2)?;
    let mut sum = Sum::default();
    sum.add(&head[start..]);
    sum.add_sum(body.checksum());
    head[field..field + 2].copy_from_slice(&sum.nonzero_checksum().to_be_bytes());
    Ok((head, body))
}
