//! Names of watched descriptors that are never mistaken for their successors.

use std::os::fd::RawFd;

/// A watched descriptor. The name of a watch that has ended is never given to another one (until 2^24 have come and
/// gone in the same place), so a late event cannot be taken for somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId {
    index: u32,
    generation: u32,
}

const INDEX_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << 24) - 1;

impl WatchId {
    /// 48 bits that name it, for the user data of the kernel's interfaces.
    pub(super) const fn bits(self) -> u64 {
        ((self.generation as u64) << INDEX_BITS) | self.index as u64
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self {
            index: (bits as u32) & ((1 << INDEX_BITS) - 1),
            generation: (bits >> INDEX_BITS) as u32 & GENERATION_MASK,
        }
    }
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    fd: Option<RawFd>,
}

/// The watches of one engine.
#[derive(Debug, Default)]
pub(super) struct Watches(Vec<Entry>);

impl Watches {
    pub(super) fn insert(&mut self, fd: RawFd) -> WatchId {
        let index = self.0.iter().position(|entry| entry.fd.is_none()).unwrap_or_else(|| {
            self.0.push(Entry { generation: 0, fd: None });
            self.0.len() - 1
        });
        self.0[index].fd = Some(fd);
        WatchId { index: index as u32, generation: self.0[index].generation }
    }

    /// The descriptor, if the watch has not ended.
    pub(super) fn fd(&self, id: WatchId) -> Option<RawFd> {
        let entry = self.0.get(id.index as usize)?;
        entry.fd.filter(|_| entry.generation == id.generation)
    }

    pub(super) fn remove(&mut self, id: WatchId) -> Option<RawFd> {
        let fd = self.fd(id)?;
        let entry = &mut self.0[id.index as usize];
        *entry = Entry { generation: (entry.generation + 1) & GENERATION_MASK, fd: None };
        Some(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_watch_is_not_its_successor() {
        let mut watches = Watches::default();
        let first = watches.insert(7);
        assert_eq!(watches.remove(first), Some(7));
        let second = watches.insert(8);
        assert_eq!(watches.fd(first), None);
        assert_eq!(watches.fd(second), Some(8));
        assert_eq!(watches.remove(first), None);
    }

    #[test]
    fn names_survive_the_kernel() {
        let mut watches = Watches::default();
        for _ in 0..3 {
            let id = watches.insert(1);
            watches.remove(id);
        }
        let id = watches.insert(1);
        assert_eq!(WatchId::from_bits(id.bits()), id);
        assert!(id.bits() < super::super::USER_DATA_END);
    }
}
