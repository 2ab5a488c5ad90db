//! Block contents that prove themselves: where a block belongs, which write it came from, and every byte.
//!
//! A block starts with a stamp (where it belongs, which write it is, a checksum); the rest is a pseudo-random stream
//! seeded by offset and generation. A reader that knows the expected generation compares every byte; the checksum
//! tells a torn or corrupted block from a whole one that is stale or sits in the wrong place.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::access::Random;

/// "vhostdOK" in little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"vhostdOK");

/// Smallest block that can be verified.
pub const MIN_BLOCK: usize = 512;

/// First bytes of every verified block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Stamp {
    magic: U64,
    offset: U64,
    seed: U64,
    /// 1 for the first write of this block in a run, then one more each time.
    generation: U32,
    /// CRC-32C of the fields above and of everything behind the stamp.
    checksum: U32,
}

const STAMP: usize = size_of::<Stamp>();
/// Bytes of the stamp that its checksum covers.
const SUMMED: usize = STAMP - 4;

impl Stamp {
    fn sum(&self, body: &[u8]) -> u32 {
        let mut sum = Crc32c::default();
        sum.update(&self.as_bytes()[..SUMMED]);
        sum.update(body);
        sum.finish()
    }
}

/// What a mismatching block turned out to be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The block is whole, but from an earlier or later write: an acknowledged write was lost or reordered.
    #[error("Block at byte {offset} holds write {found} instead of write {expected}")]
    Generation {
        /// Where it was read.
        offset: u64,
        /// The last acknowledged write.
        expected: u32,
        /// The write found there.
        found: u32,
    },
    /// The block is whole, but belongs elsewhere.
    #[error("Block at byte {offset} holds the block of byte {found}")]
    Misplaced {
        /// Where it was read.
        offset: u64,
        /// Where it belongs.
        found: u64,
    },
    /// Bytes differ: torn, corrupted, or never written by us.
    #[error(
        "Byte {byte} is {found:#04x} instead of {expected:#04x} (block at byte {offset}, write {generation})"
    )]
    Corrupt {
        /// Start of the block.
        offset: u64,
        /// The first wrong byte, counted from the start of the disk.
        byte: u64,
        /// What was written there.
        expected: u8,
        /// What was read.
        found: u8,
        /// The last acknowledged write.
        generation: u32,
    },
}

/// Writes and checks the blocks of one run.
#[derive(Clone, Debug)]
pub struct Pattern {
    seed: u64,
    expected: Vec<u8>,
}

impl Pattern {
    /// Contents of blocks of `block` bytes, different for each `seed`.
    pub fn new(seed: u64, block: usize) -> Self {
        assert!(block >= MIN_BLOCK, "a verified block has at least {MIN_BLOCK} bytes");
        Self { seed, expected: vec![0; block] }
    }

    /// The contents of the block at byte `offset` after its `generation`th write; 0 means all zeros.
    pub fn contents(&mut self, offset: u64, generation: u32) -> &[u8] {
        if generation == 0 {
            self.expected.fill(0);
            return &self.expected;
        }
        let (stamp, body) = self.expected.split_at_mut(STAMP);
        let mut random = Random::new(self.seed ^ offset.rotate_left(20) ^ u64::from(generation));
        for chunk in body.chunks_mut(8) {
            chunk.copy_from_slice(&random.bits().to_le_bytes()[..chunk.len()]);
        }
        let mut filled = Stamp {
            magic: U64::new(MAGIC),
            offset: U64::new(offset),
            seed: U64::new(self.seed),
            generation: U32::new(generation),
            checksum: U32::ZERO,
        };
        filled.checksum = U32::new(filled.sum(body));
        stamp.copy_from_slice(filled.as_bytes());
        &self.expected
    }

    /// Compares every byte of `found` with what write `generation` put at `offset`.
    pub fn check(&mut self, offset: u64, generation: u32, found: &[u8]) -> Result<(), Mismatch> {
        let seed = self.seed;
        let expected = self.contents(offset, generation);
        if expected == found {
            return Ok(());
        }
        let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) else { return Ok(()) };
        if let Some(stamp) = whole_stamp(found, seed) {
            if stamp.offset.get() != offset {
                return Err(Mismatch::Misplaced { offset, found: stamp.offset.get() });
            }
            if stamp.generation.get() != generation {
                return Err(Mismatch::Generation {
                    offset,
                    expected: generation,
                    found: stamp.generation.get(),
                });
            }
        }
        let (expected, found) = (expected[at], found[at]);
        Err(Mismatch::Corrupt { offset, byte: offset + at as u64, expected, found, generation })
    }

    /// Generation of an untouched block of this seed, whatever write it came from; `None` for anything else.
    pub fn generation_of(&self, found: &[u8]) -> Option<u32> {
        whole_stamp(found, self.seed).map(|stamp| stamp.generation.get())
    }
}

/// The stamp of `block` if its magic, seed and checksum are right.
fn whole_stamp(block: &[u8], seed: u64) -> Option<Stamp> {
    let (stamp, body) = Stamp::read_from_prefix(block).ok()?;
    let whole =
        stamp.magic.get() == MAGIC && stamp.seed.get() == seed && stamp.checksum.get() == stamp.sum(body);
    whole.then_some(stamp)
}

/// How often each block of a queue's range has been written, and which blocks are in flight.
#[derive(Clone, Debug)]
pub struct Ledger {
    first: u64,
    /// Acknowledged write count in the upper 31 bits, "in flight" in bit 0.
    entries: Vec<u32>,
}

impl Ledger {
    /// All blocks of `range` unwritten.
    pub fn new(range: std::ops::Range<u64>) -> Self {
        Self { first: range.start, entries: vec![0; (range.end - range.start) as usize] }
    }

    /// Reserves a block for one request: overlapping requests have no defined order, so their outcome
    /// could not be checked. `false` when it is taken.
    pub fn claim(&mut self, block: u64) -> bool {
        let entry = self.entry(block);
        let free = *entry & 1 == 0;
        *entry |= 1;
        free
    }

    /// The request on this block has ended.
    pub fn release(&mut self, block: u64) {
        *self.entry(block) &= !1;
    }

    /// Acknowledged writes of this block so far.
    pub fn generation(&self, block: u64) -> u32 {
        self.entries[(block - self.first) as usize] >> 1
    }

    /// A write of this block was acknowledged.
    pub fn set_generation(&mut self, block: u64, generation: u32) {
        let entry = self.entry(block);
        *entry = generation << 1 | *entry & 1;
    }

    /// The next written block at or behind `from`, and the end of the range otherwise.
    pub fn next_written(&self, from: u64) -> Option<u64> {
        let start = (from.max(self.first) - self.first) as usize;
        let found = self.entries.get(start..)?.iter().position(|&entry| entry >> 1 != 0)?;
        Some(self.first + (start + found) as u64)
    }

    fn entry(&mut self, block: u64) -> &mut u32 {
        &mut self.entries[(block - self.first) as usize]
    }
}

/// CRC-32C (Castagnoli), the checksum of iSCSI, ext4 and fio's `verify=crc32c`.
struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32c {
    fn update(&mut self, bytes: &[u8]) {
        let step = |crc: u32, &byte: &u8| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
        self.0 = bytes.iter().fold(self.0, step);
    }

    fn finish(self) -> u32 {
        !self.0
    }
}

const CRC_TABLE: [u32; 256] = {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 != 0 { REVERSED_POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_matches_the_published_check_value() {
        let mut sum = Crc32c::default();
        sum.update(b"1234");
        sum.update(b"56789");
        assert_eq!(sum.finish(), 0xe306_9283);
    }

    #[test]
    fn every_single_corrupted_byte_is_found_at_its_place() {
        let mut pattern = Pattern::new(3, 512);
        let good = pattern.contents(4096, 5).to_vec();
        assert_eq!(pattern.check(4096, 5, &good), Ok(()));
        for at in 0..512 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            match pattern.check(4096, 5, &bad) {
                Err(Mismatch::Corrupt { byte, expected, found, .. }) => {
                    assert_eq!((byte, expected, found), (4096 + at as u64, good[at], bad[at]));
                }
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_stale_block_is_told_from_a_corrupt_one() {
        let mut pattern = Pattern::new(3, 4096);
        let stale = pattern.contents(0, 1).to_vec();
        assert_eq!(
            pattern.check(0, 2, &stale),
            Err(Mismatch::Generation { offset: 0, expected: 2, found: 1 })
        );
    }

    #[test]
    fn a_block_in_the_wrong_place_names_its_home() {
        let mut pattern = Pattern::new(3, 4096);
        let other = pattern.contents(8192, 1).to_vec();
        assert_eq!(pattern.check(0, 1, &other), Err(Mismatch::Misplaced { offset: 0, found: 8192 }));
    }

    #[test]
    fn a_torn_block_is_corrupt_where_the_tear_begins() {
        let mut pattern = Pattern::new(9, 4096);
        let mut torn = pattern.contents(0, 2).to_vec();
        let old = pattern.contents(0, 1).to_vec();
        torn[512..].copy_from_slice(&old[512..]);
        let Err(Mismatch::Corrupt { byte, .. }) = pattern.check(0, 2, &torn) else { panic!("not corrupt") };
        assert_eq!(byte, 512);
    }

    #[test]
    fn an_unwritten_block_must_be_zero() {
        let mut pattern = Pattern::new(3, 512);
        assert_eq!(pattern.check(0, 0, &[0; 512]), Ok(()));
        let mut one = [0; 512];
        one[100] = 1;
        assert!(matches!(pattern.check(0, 0, &one), Err(Mismatch::Corrupt { byte: 100, .. })));
    }

    #[test]
    fn another_runs_seed_is_no_block_of_ours() {
        let block = Pattern::new(1, 512).contents(0, 7).to_vec();
        assert_eq!(Pattern::new(1, 512).generation_of(&block), Some(7));
        assert_eq!(Pattern::new(2, 512).generation_of(&block), None);
    }

    #[test]
    fn the_ledger_refuses_a_second_request_on_a_block_in_flight() {
        let mut ledger = Ledger::new(10..14);
        assert!(ledger.claim(12));
        assert!(!ledger.claim(12));
        ledger.set_generation(12, 1);
        ledger.release(12);
        assert!(ledger.claim(12));
        assert_eq!(ledger.generation(12), 1);
        assert_eq!((ledger.next_written(0), ledger.next_written(13)), (Some(12), None));
    }
}
