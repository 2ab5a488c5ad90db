//! What is measured: one ring shape.

use serde::Serialize;

/// Shape of a ring and of the chains in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// Packed instead of split (the baseline has split only).
    pub packed: bool,
    /// Buffers per chain: 1 (as a network driver) or 3 (header, data, status, as a block driver).
    pub buffers: u16,
    /// The buffers are listed in an indirect table.
    pub indirect: bool,
    /// Memory regions; consecutive chains lie in different ones.
    pub regions: u16,
}

/// Chains a device takes at once.
pub const BURST: u16 = 32;
/// Largest ring.
const RING: u16 = 256;

impl Case {
    /// All shapes, split ones first.
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for packed in [false, true] {
            for (buffers, indirect) in [(1, false), (3, false), (3, true)] {
                for regions in [1, 8] {
                    cases.push(Self { packed, buffers, indirect, regions });
                }
            }
        }
        cases
    }

    /// The shapes the headline figure is taken over: split and direct, as every driver has them.
    pub fn is_headline(&self) -> bool {
        !self.packed && !self.indirect
    }

    /// The baseline to compare with: the same shape on a split ring.
    pub fn baseline(self) -> Self {
        Self { packed: false, ..self }
    }

    /// Name on the command line and in tables: `split-3-indirect-8`.
    pub fn name(&self) -> String {
        let format = if self.packed { "packed" } else { "split" };
        let layout = if self.indirect { "indirect" } else { "direct" };
        format!("{format}-{}-{layout}-{}", self.buffers, self.regions)
    }

    /// Finds a case by its name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|case| case.name() == name)
    }

    /// Ring descriptors of a chain.
    pub fn descriptors(&self) -> u16 {
        if self.indirect { 1 } else { self.buffers }
    }

    /// Chains in the ring, a multiple of a burst.
    pub fn chains(&self) -> u16 {
        let fitting = RING / self.descriptors();
        // A power of two, so that laps and the avail ring stay in step.
        1 << fitting.ilog2()
    }

    /// Ring size; a packed ring is exactly one lap.
    pub fn ring_size(&self) -> u16 {
        if self.packed { self.chains() * self.descriptors() } else { RING }
    }

    /// Guest address of buffer `buffer` of chain `chain`, its length, and whether the device writes it.
    pub fn buffer(&self, chain: u16, buffer: u16) -> (u64, u32, bool) {
        let (len, writable) = match (self.buffers, buffer) {
            (1, _) => (1536, true),
            (_, 0) => (16, false),
            (_, 1) => (4096, true),
            _ => (1, true),
        };
        let region = u64::from(chain % self.regions);
        let slot = u64::from(chain / self.regions) * 0x2000 + [0x1000, 0, 0x1100][usize::from(buffer % 3)];
        (region_base(region) + BUFFERS + slot, len, writable)
    }

    /// Guest addresses and lengths of the regions.
    pub fn region_ranges(&self) -> Vec<(u64, u64)> {
        (0..u64::from(self.regions)).map(|region| (region_base(region), REGION)).collect()
    }

    /// Guest address of the indirect table of `chain`.
    pub fn table(&self, chain: u16) -> u64 {
        region_base(0) + TABLES + u64::from(chain) * 64
    }
}

/// Bytes of a region.
const REGION: u64 = 4 << 20;
/// Offsets in region 0.
const TABLES: u64 = 0x10000;
const BUFFERS: u64 = 0x20000;
/// Guest addresses of the three ring areas, in region 0.
pub const DESCRIPTORS: u64 = 1 << 32;
/// The driver's area.
pub const DRIVER_AREA: u64 = DESCRIPTORS + 0x4000;
/// The device's area.
pub const DEVICE_AREA: u64 = DESCRIPTORS + 0x8000;

/// Regions do not touch, so that a lookup cannot merge them.
fn region_base(region: u64) -> u64 {
    (region + 1) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_cases() {
        for case in Case::all() {
            assert_eq!(Case::parse(&case.name()), Some(case));
        }
        assert_eq!(Case::parse("split-2-direct-1"), None);
        assert_eq!(Case::all().len(), 12);
        assert_eq!(Case::all().iter().filter(|case| case.is_headline()).count(), 4);
    }

    #[test]
    fn a_lap_fits_into_the_ring_in_whole_bursts() {
        for case in Case::all() {
            assert!(case.chains() * case.descriptors() <= case.ring_size());
            assert_eq!(case.chains() % BURST, 0);
            assert_eq!(256 % case.chains(), 0);
        }
    }

    #[test]
    fn buffers_lie_inside_their_regions_and_apart() {
        for case in Case::all() {
            let ranges = case.region_ranges();
            let mut pieces = Vec::new();
            for chain in 0..case.chains() {
                for buffer in 0..case.buffers {
                    let (addr, len, _) = case.buffer(chain, buffer);
                    assert!(
                        ranges
                            .iter()
                            .any(|&(base, size)| addr >= base && addr + u64::from(len) <= base + size)
                    );
                    pieces.push((addr, u64::from(len)));
                }
            }
            pieces.sort_unstable();
            assert!(pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{}", case.name());
        }
    }
}
