//! The blocks that requests work on, and where they lie in guest memory.

use anyhow::{Context, Result, ensure};
use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use virtqueue::driver::Segment;

use super::algorithm::Operation;
use super::foreign;
use super::options::Load;
use crate::guest::memory::{PAGE, area, footprint};

/// A corpus in blocks.
pub struct Material {
    /// All of them, one behind the other.
    plain: Vec<u8>,
    size: usize,
    /// By block, when requests decompress.
    packed: Vec<Vec<u8>>,
}

impl Material {
    /// The blocks of a load. Those that are to be decompressed are compressed here, by libraries that are not the daemon's.
    pub fn new(load: &Load) -> Result<Self> {
        let plain = load.corpus.load(load.corpus_size as usize, load.seed)?;
        let mut material = Self::of(plain, load.size as usize)?;
        if load.op == Operation::Decompress {
            let pack = |block| foreign::encode(load.format, load.level, material.plain(block));
            material.packed = (0..material.len()).map(pack).collect::<Result<_>>()?;
        }
        Ok(material)
    }

    /// `plain` in blocks of `size` bytes; what is left over is left out.
    pub fn of(mut plain: Vec<u8>, size: usize) -> Result<Self> {
        plain.truncate(plain.len() / size * size);
        ensure!(!plain.is_empty(), "The corpus is smaller than one block of {size} bytes");
        Ok(Self { plain, size, packed: Vec::new() })
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.plain.len() / self.size
    }

    /// Never: there is at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of a block before it is compressed.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A block before it is compressed.
    pub fn plain(&self, block: usize) -> &[u8] {
        &self.plain[block * self.size..][..self.size]
    }

    /// What a request about a block reads.
    pub fn input(&self, block: usize) -> &[u8] {
        self.packed.get(block).map_or(self.plain(block), Vec::as_slice)
    }

    /// Bytes of the longest input.
    pub fn longest_input(&self) -> usize {
        (0..self.len()).map(|block| self.input(block).len()).max().unwrap_or(0)
    }

    /// CRC-32 of the corpus, by which two runs are known to have had the same.
    pub fn sum(&self) -> u32 {
        foreign::sum(compress_protocol::Checksum::Crc32, &self.plain) as u32
    }

    /// Bytes of guest memory that the inputs take.
    pub fn footprint(&self) -> usize {
        footprint([(0..self.len()).map(|block| self.input(block).len().next_multiple_of(PAGE)).sum()])
    }

    /// Puts all inputs into guest memory, each on pages of its own.
    pub fn place(&self, memory: &OwnMemory) -> Result<Vec<Segment>, OutOfRange> {
        let area = area(memory, self.footprint() - PAGE)?;
        let mut at = 0;
        let put = |block| {
            let input = self.input(block);
            area.write_bytes(at, input);
            let addr = GuestAddr(area.guest_addr().0 + at as u64);
            at += input.len().next_multiple_of(PAGE);
            Segment { addr, len: input.len() as u32 }
        };
        Ok((0..self.len()).map(put).collect())
    }
}

/// Destinations of a queue: one a slot, on pages of its own, with a page behind each that nobody may write.
pub struct Outputs {
    area: Area,
    stride: usize,
    room: usize,
}

/// What lies behind a destination.
const GUARD: [u8; 64] = [0xa5; 64];

impl Outputs {
    /// Bytes of guest memory.
    pub fn footprint(slots: u16, room: usize) -> usize {
        footprint([usize::from(slots) * Self::stride(room)])
    }

    fn stride(room: usize) -> usize {
        (room + GUARD.len()).next_multiple_of(PAGE)
    }

    /// `slots` destinations of `room` bytes.
    pub fn new(memory: &OwnMemory, slots: u16, room: usize) -> Result<Self, OutOfRange> {
        let stride = Self::stride(room);
        let area = area(memory, usize::from(slots) * stride)?;
        for slot in 0..usize::from(slots) {
            area.write_bytes(slot * stride + room, &GUARD);
        }
        Ok(Self { area, stride, room })
    }

    fn at(&self, slot: u16) -> usize {
        usize::from(slot) * self.stride
    }

    /// The destination of a slot.
    pub fn segment(&self, slot: u16) -> Segment {
        let addr = GuestAddr(self.area.guest_addr().0 + self.at(slot) as u64);
        Segment { addr, len: self.room as u32 }
    }

    /// Copies the first bytes of a destination out.
    pub fn read(&self, slot: u16, into: &mut [u8]) {
        assert!(into.len() <= self.room, "a destination holds {} bytes", self.room);
        self.area.read_bytes(self.at(slot), into);
    }

    /// Writes the first bytes of a destination.
    pub fn write(&self, slot: u16, bytes: &[u8]) {
        assert!(bytes.len() <= self.room, "a destination holds {} bytes", self.room);
        self.area.write_bytes(self.at(slot), bytes);
    }

    /// Nothing was written behind a destination.
    pub fn is_intact(&self, slot: u16) -> bool {
        let mut behind = [0; GUARD.len()];
        self.area.read_bytes(self.at(slot) + self.room, &mut behind);
        behind == GUARD
    }
}

/// Cuts a buffer into up to `pieces` descriptors, none of them empty.
pub fn cut(buffer: Segment, pieces: u16, into: &mut Vec<Segment>) {
    let each = buffer.len.div_ceil(u32::from(pieces.max(1))).max(1);
    into.extend((0..buffer.len).step_by(each as usize).map(|from| Segment {
        addr: GuestAddr(buffer.addr.0 + u64::from(from)),
        len: each.min(buffer.len - from),
    }));
}

/// The bytes of a load's corpus as they count: compressed and not.
#[derive(Clone, Debug)]
pub struct Sizes {
    plain: u64,
    /// By block: bytes it has when compressed, or 0 as long as it is not known.
    packed: Vec<u32>,
}

impl Sizes {
    /// Nothing known of `blocks` blocks of `plain` bytes.
    pub fn new(blocks: usize, plain: usize) -> Self {
        Self { plain: plain as u64, packed: vec![0; blocks] }
    }

    /// A block has `packed` bytes when compressed.
    #[inline]
    pub fn note(&mut self, block: usize, packed: u32) {
        self.packed[block] = packed;
    }

    /// Adds what another queue knows.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        ensure!(self.packed.len() == other.packed.len(), "Two queues had different blocks");
        for (mine, theirs) in self.packed.iter_mut().zip(&other.packed) {
            *mine = (*mine).max(*theirs);
        }
        Ok(())
    }

    /// Every block is known.
    pub fn is_whole(&self) -> bool {
        self.packed.iter().all(|packed| *packed > 0)
    }

    /// Plain bytes for one compressed byte, over the blocks that are known; each counts once, however often it was compressed.
    pub fn ratio(&self) -> Option<f64> {
        let known = self.packed.iter().filter(|packed| **packed > 0);
        let (count, packed) =
            known.fold((0, 0), |(count, sum), &packed| (count + 1, sum + u64::from(packed)));
        (packed > 0).then(|| (count * self.plain) as f64 / packed as f64)
    }
}

/// Adds up what all queues know.
pub fn merged(sizes: impl IntoIterator<Item = Sizes>) -> Result<Sizes> {
    let mut sizes = sizes.into_iter();
    let mut all = sizes.next().context("There is no queue")?;
    sizes.try_for_each(|other| all.merge(&other))?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::memory::of_guest;

    #[test]
    fn inputs_lie_on_pages_of_their_own_and_are_what_they_were() {
        let load = Load::parse("--op decompress --format gzip --size 8k --corpus-size 64k").unwrap();
        let material = Material::new(&load).unwrap();
        assert_eq!((material.len(), material.size()), (8, 8192));
        let memory = of_guest(material.footprint()).unwrap();
        let places = material.place(&memory).unwrap();
        for (block, place) in places.iter().enumerate() {
            assert_eq!(place.addr.0 % PAGE as u64, 0);
            let mut packed = vec![0; place.len as usize];
            memory.slice(place.addr, packed.len()).unwrap().read(0, &mut packed);
            assert!(foreign::decode(load.format, &packed, 8192).unwrap() == material.plain(block));
        }
        assert!(places.windows(2).all(|pair| pair[0].addr.0 + u64::from(pair[0].len) <= pair[1].addr.0));
    }

    #[test]
    fn a_corpus_smaller_than_a_block_is_refused() {
        assert!(Material::of(vec![1; 4095], 4096).is_err());
        assert_eq!(Material::of(vec![1; 8191], 4096).unwrap().len(), 1);
    }

    #[test]
    fn a_byte_behind_a_destination_is_noticed() {
        let memory = of_guest(Outputs::footprint(2, 5000)).unwrap();
        let outputs = Outputs::new(&memory, 2, 5000).unwrap();
        outputs.write(0, &[1; 5000]);
        assert!(outputs.is_intact(0) && outputs.is_intact(1));
        let behind = GuestAddr(outputs.segment(0).addr.0 + 5000);
        memory.slice(behind, 1).unwrap().write(0, &[0]);
        assert!(!outputs.is_intact(0) && outputs.is_intact(1));
        assert!(outputs.segment(1).addr.0 > behind.0);
    }

    #[test]
    fn a_buffer_is_cut_into_pieces_that_are_not_empty() {
        let mut pieces = Vec::new();
        cut(Segment { addr: GuestAddr(100), len: 10 }, 3, &mut pieces);
        let shape: Vec<_> = pieces.iter().map(|piece| (piece.addr.0, piece.len)).collect();
        assert_eq!(shape, [(100, 4), (104, 4), (108, 2)]);
        pieces.clear();
        cut(Segment { addr: GuestAddr(0), len: 2 }, 7, &mut pieces);
        assert_eq!(pieces.len(), 2);
    }

    #[test]
    fn each_block_counts_once_for_the_ratio() {
        let mut sizes = Sizes::new(3, 100);
        assert_eq!(sizes.ratio(), None);
        sizes.note(0, 20);
        sizes.note(0, 20);
        sizes.note(2, 60);
        assert_eq!(sizes.ratio(), Some(2.5));
        let mut other = Sizes::new(3, 100);
        other.note(1, 20);
        assert!(!sizes.is_whole() && merged([sizes.clone(), other.clone()]).unwrap().is_whole());
        assert_eq!(merged([sizes, other]).unwrap().ratio(), Some(3.0));
    }
}
