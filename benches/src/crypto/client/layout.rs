//! Where the requests of one queue lie in guest memory, and their prebuilt descriptors.
//!
//! A slot is a request that can be in flight: head, IV and status in cache lines of their own, and pages for source,
//! destination and digest. Descriptors never change, so they are built once.

use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use virtqueue::driver::Segment;

use crate::crypto::algorithm::Sizes;
use crate::guest::memory::{PAGE, area, footprint};

/// Bytes of a cache line.
const LINE: usize = 64;

/// What the slots of a queue have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Requests that can be in flight.
    pub depth: u16,
    /// Bytes of the head: header, fixed part, keys.
    pub head: usize,
    /// Bytes of the rest.
    pub sizes: Sizes,
    /// Descriptors that source and destination are cut into.
    pub segments: usize,
    /// The destination is the source.
    pub in_place: bool,
}

/// Buffers and descriptors of all slots of a queue.
pub(super) struct Slots {
    pub plan: Plan,
    control: Area,
    data: Area,
    /// Per slot: head, IV, source; destination, digest, status.
    chains: Vec<Segment>,
    /// Descriptors of a chain, and those of them that the device reads.
    parts: usize,
    readable: usize,
}

impl Plan {
    /// Distance of control blocks: head, IV, and the status in a line of its own.
    fn control_stride(&self) -> usize {
        self.status_at() + LINE
    }

    fn iv_at(&self) -> usize {
        self.head.next_multiple_of(16)
    }

    fn status_at(&self) -> usize {
        (self.iv_at() + self.sizes.iv).next_multiple_of(LINE)
    }

    fn dst_at(&self) -> usize {
        if self.in_place { 0 } else { self.sizes.src.next_multiple_of(PAGE) }
    }

    /// The digest comes behind both.
    fn digest_at(&self) -> usize {
        let end = (self.dst_at() + self.sizes.dst).max(self.sizes.src);
        end.next_multiple_of(LINE)
    }

    fn data_stride(&self) -> usize {
        (self.digest_at() + self.sizes.digest).next_multiple_of(PAGE)
    }

    /// Bytes of guest memory.
    pub fn footprint(&self) -> usize {
        let depth = usize::from(self.depth);
        footprint([depth * self.control_stride(), depth * self.data_stride()])
    }

    /// Descriptors of a request at most.
    pub fn descriptors(sizes: Sizes, segments: u16) -> u16 {
        let some = |len: usize, count: u16| if len > 0 { count } else { 0 };
        1 + some(sizes.iv, 1)
            + some(sizes.src, segments)
            + some(sizes.dst, segments)
            + some(sizes.digest, 1)
            + 1
    }
}

impl Slots {
    pub fn new(memory: &OwnMemory, plan: Plan) -> Result<Self, OutOfRange> {
        let depth = usize::from(plan.depth);
        let control = area(memory, depth * plan.control_stride())?;
        let data = area(memory, depth * plan.data_stride())?;
        let at = |area: &Area, offset: usize| GuestAddr(area.guest_addr().0 + offset as u64);
        let (mut chains, mut readable) = (Vec::new(), 0);
        for slot in 0..depth {
            let (block, base) = (slot * plan.control_stride(), slot * plan.data_stride());
            let mut part =
                |addr: GuestAddr, len: usize, pieces: usize| {
                    chains.extend(cut(len, pieces).map(|(from, len)| Segment {
                        addr: GuestAddr(addr.0 + from as u64),
                        len: len as u32,
                    }));
                    chains.len()
                };
            let Sizes { iv, src, dst, digest } = plan.sizes;
            let first = part(at(&control, block), plan.head, 1) - 1;
            part(at(&control, block + plan.iv_at()), iv, 1);
            readable = part(at(&data, base), src, plan.segments) - first;
            part(at(&data, base + plan.dst_at()), dst, plan.segments);
            part(at(&data, base + plan.digest_at()), digest, 1);
            part(at(&control, block + plan.status_at()), 1, 1);
        }
        let parts = chains.len() / depth.max(1);
        Ok(Self { plan, control, data, chains, parts, readable })
    }

    /// What the device reads, and what it writes.
    #[inline]
    pub fn chain(&self, slot: u16) -> (&[Segment], &[Segment]) {
        self.chains[self.parts * usize::from(slot)..][..self.parts].split_at(self.readable)
    }

    fn block(&self, slot: u16) -> usize {
        usize::from(slot) * self.plan.control_stride()
    }

    fn base(&self, slot: u16) -> usize {
        usize::from(slot) * self.plan.data_stride()
    }

    pub fn write_head(&self, slot: u16, head: &[u8]) {
        assert_eq!(head.len(), self.plan.head, "the head has its length");
        self.control.write_bytes(self.block(slot), head);
    }

    pub fn write_iv(&self, slot: u16, iv: &[u8]) {
        assert_eq!(iv.len(), self.plan.sizes.iv, "the IV has its length");
        self.control.write_bytes(self.block(slot) + self.plan.iv_at(), iv);
    }

    pub fn write_source(&self, slot: u16, src: &[u8]) {
        assert_eq!(src.len(), self.plan.sizes.src, "the source has its length");
        self.data.write_bytes(self.base(slot), src);
    }

    /// Fills destination and digest, unless the destination is the source.
    pub fn fill_result(&self, slot: u16, byte: u8) {
        let Plan { sizes, in_place, .. } = self.plan;
        if !in_place {
            self.data.write_bytes(self.base(slot) + self.plan.dst_at(), &vec![byte; sizes.dst]);
        }
        self.data.write_bytes(self.base(slot) + self.plan.digest_at(), &vec![byte; sizes.digest]);
    }

    /// Destination and digest, one behind the other.
    pub fn read_result(&self, slot: u16, into: &mut Vec<u8>) {
        let Sizes { dst, digest, .. } = self.plan.sizes;
        into.resize(dst + digest, 0);
        let (text, mac) = into.split_at_mut(dst);
        self.data.read_bytes(self.base(slot) + self.plan.dst_at(), text);
        self.data.read_bytes(self.base(slot) + self.plan.digest_at(), mac);
    }

    #[inline]
    pub fn write_status(&self, slot: u16, status: u8) {
        self.control.write(self.block(slot) + self.plan.status_at(), status);
    }

    #[inline]
    pub fn read_status(&self, slot: u16) -> u8 {
        self.control.read(self.block(slot) + self.plan.status_at())
    }
}

/// Cuts `len` bytes into up to `pieces` parts, none of them empty: where each begins, and its length.
fn cut(len: usize, pieces: usize) -> impl Iterator<Item = (usize, usize)> {
    let each = len.div_ceil(pieces.max(1)).max(1);
    (0..len).step_by(each).map(move |from| (from, each.min(len - from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sizes: Sizes, segments: usize, in_place: bool) -> Plan {
        Plan { depth: 8, head: 72, sizes, segments, in_place }
    }

    fn slots(plan: Plan) -> Slots {
        let memory = OwnMemory::new(plan.footprint(), GuestAddr(1 << 20)).unwrap();
        Slots::new(&memory, plan).unwrap()
    }

    #[test]
    fn slots_do_not_overlap_and_a_chain_is_what_linux_builds() {
        let slots = slots(plan(Sizes { iv: 16, src: 5000, dst: 5000, digest: 20 }, 3, false));
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for slot in 0..8 {
            let (readable, writable) = slots.chain(slot);
            let lengths = |chain: &[Segment]| chain.iter().map(|segment| segment.len).collect::<Vec<_>>();
            assert_eq!(lengths(readable), [72, 16, 1667, 1667, 1666]);
            assert_eq!(lengths(writable), [1667, 1667, 1666, 20, 1]);
            assert_eq!((readable[2].addr.0 % 4096, writable[0].addr.0 % 4096), (0, 0));
            pieces.extend(readable.iter().chain(writable).map(|part| (part.addr.0, u64::from(part.len))));
        }
        pieces.sort_unstable();
        assert!(pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{pieces:?}");
    }

    #[test]
    fn in_place_the_destination_is_the_source_and_has_room_for_a_tag() {
        let slots = slots(plan(Sizes { iv: 12, src: 4096, dst: 4112, digest: 0 }, 1, true));
        let (readable, writable) = slots.chain(3);
        assert_eq!(readable[2].addr, writable[0].addr);
        assert_eq!((readable[2].len, writable[0].len, writable.len()), (4096, 4112, 2));
        assert!(slots.chain(4).0[2].addr.0 >= writable[0].addr.0 + 4112);
    }

    #[test]
    fn what_is_empty_has_no_descriptor() {
        let sizes = Sizes { iv: 0, src: 288, dst: 0, digest: 0 };
        let slots = slots(plan(sizes, 4, false));
        let (readable, writable) = slots.chain(0);
        assert_eq!((readable.len(), writable.len()), (5, 1));
        assert_eq!(Plan::descriptors(sizes, 4), 6);
        assert_eq!(cut(2, 4).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    }

    #[test]
    fn results_come_back_as_they_were_written() {
        let slots = slots(plan(Sizes { iv: 16, src: 32, dst: 32, digest: 20 }, 1, false));
        slots.write_source(1, &[1; 32]);
        slots.fill_result(1, 0xa5);
        slots.write_status(1, 7);
        let mut result = Vec::new();
        slots.read_result(1, &mut result);
        assert_eq!((result.len(), result[0], result[51]), (52, 0xa5, 0xa5));
        assert_eq!((slots.read_status(1), slots.read_status(0)), (7, 0));
    }
}
