//! What is registered with an io_uring: files by slot, guest memory by address. Bookkeeping only; the system calls are
//! made by the engine.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use memory::{HostRange, MemoryTable};

/// A file of the engine.
#[derive(Debug)]
pub(super) enum File {
    /// In the ring's file table under the slot's own number.
    Registered,
    /// The table is full or was refused: by descriptor.
    Plain(OwnedFd),
}

/// The files of one engine.
#[derive(Debug, Default)]
pub(super) struct Files {
    entries: Vec<Option<File>>,
    /// Size of the ring's table; slots from here on are plain.
    pub table: u32,
}

impl Files {
    /// No file yet, and a ring with a table of this size.
    pub fn new(table: u32) -> Self {
        Self { entries: Vec::new(), table }
    }

    /// The lowest free slot.
    pub fn free_slot(&mut self) -> u32 {
        let place = self.entries.iter().position(Option::is_none).unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        place as u32
    }

    pub fn set(&mut self, slot: u32, file: File) {
        self.entries[slot as usize] = Some(file);
    }

    #[inline]
    pub fn get(&self, slot: u32) -> Option<&File> {
        self.entries.get(slot as usize)?.as_ref()
    }

    pub fn remove(&mut self, slot: u32) -> Option<File> {
        self.entries.get_mut(slot as usize)?.take()
    }
}

/// The kernel takes no longer buffer than this (`io_buffer_validate`).
const MAX_BUFFER: usize = 1 << 30;

/// One registered buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    pub base: usize,
    pub len: usize,
    pub index: u16,
}

impl Buffer {
    fn contains(&self, range: HostRange) -> bool {
        // A base below ours wraps to a huge offset.
        let offset = (range.base as usize).wrapping_sub(self.base);
        offset < self.len && range.len <= self.len - offset
    }
}

/// The registered guest memory of one owner (device).
#[derive(Debug)]
struct Owner {
    id: u32,
    /// Keeps the mappings while their addresses are registered: an address that is mapped anew must not find the old
    /// registration.
    _table: Arc<MemoryTable>,
    buffers: Vec<Buffer>,
}

/// The registered guest memory of one engine.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    owners: Vec<Owner>,
    /// All buffers by address.
    sorted: Vec<Buffer>,
    last: std::cell::Cell<usize>,
    free: Vec<u16>,
}

/// What to tell the kernel when an owner's memory changes.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub remove: Vec<Buffer>,
    pub add: Vec<Buffer>,
    keep: Vec<Buffer>,
}

impl Buffers {
    /// `table` places, all empty.
    pub fn new(table: u16) -> Self {
        Self { free: (0..table).rev().collect(), ..Self::default() }
    }

    /// Splits the table's mappings into buffers and compares them with the owner's old ones. Mappings that stay keep
    /// their registration. `None` when there are not enough places.
    pub fn plan(&self, owner: u32, table: &MemoryTable) -> Option<Change> {
        let old = self.owners.iter().find(|known| known.id == owner);
        let mut change = Change::default();
        change.remove.extend(old.iter().flat_map(|owner| owner.buffers.iter().copied()));
        let mut free = self.free.iter().rev();
        for (base, len) in table.host_ranges().flat_map(split) {
            match change.remove.iter().position(|buffer| (buffer.base, buffer.len) == (base, len)) {
                Some(place) => change.keep.push(change.remove.swap_remove(place)),
                None => change.add.push(Buffer { base, len, index: *free.next()? }),
            }
        }
        Some(change)
    }

    /// Notes that the change has been made.
    pub fn apply(&mut self, owner: u32, table: &Arc<MemoryTable>, change: Change) {
        self.free.truncate(self.free.len() - change.add.len());
        self.free.extend(change.remove.iter().map(|buffer| buffer.index));
        self.owners.retain(|known| known.id != owner);
        let buffers = [change.keep, change.add].concat();
        if !buffers.is_empty() {
            self.owners.push(Owner { id: owner, _table: table.clone(), buffers });
        }
        self.sorted = self.owners.iter().flat_map(|owner| owner.buffers.iter().copied()).collect();
        self.sorted.sort_unstable_by_key(|buffer| buffer.base);
        self.last.set(0);
    }

    /// What an owner has registered.
    pub fn of(&self, owner: u32) -> Vec<Buffer> {
        let owner = self.owners.iter().find(|known| known.id == owner);
        owner.map(|owner| owner.buffers.clone()).unwrap_or_default()
    }

    /// Forgets an owner; its places are free again.
    pub fn forget(&mut self, owner: u32) {
        let remove = self.of(owner);
        self.apply(owner, &MemoryTable::empty(), Change { remove, ..Change::default() });
    }

    /// The buffer that holds the whole range; the last hit is looked at first.
    #[inline]
    pub fn find(&self, range: HostRange) -> Option<u16> {
        let last = self.sorted.get(self.last.get())?;
        if last.contains(range) {
            return Some(last.index);
        }
        let after = self.sorted.partition_point(|buffer| buffer.base <= range.base as usize);
        let place = after.checked_sub(1)?;
        let buffer = self.sorted[place];
        buffer.contains(range).then(|| {
            self.last.set(place);
            buffer.index
        })
    }
}

fn split(range: HostRange) -> impl Iterator<Item = (usize, usize)> {
    let base = range.base as usize;
    (0..range.len).step_by(MAX_BUFFER).map(move |offset| (base + offset, MAX_BUFFER.min(range.len - offset)))
}

#[cfg(test)]
mod tests {
    use memory::{GuestAddr, OwnMemory};

    use super::*;

    fn range(base: usize, len: usize) -> HostRange {
        HostRange { base: base as *mut _, len }
    }

    fn memory(len: usize) -> (OwnMemory, HostRange) {
        let memory = OwnMemory::new(len, GuestAddr(0)).unwrap();
        let host = memory.table().host_ranges().next().unwrap();
        (memory, host)
    }

    fn register(buffers: &mut Buffers, owner: u32, table: &Arc<MemoryTable>) -> Change {
        let change = buffers.plan(owner, table).unwrap();
        let seen =
            Change { remove: change.remove.clone(), add: change.add.clone(), keep: change.keep.clone() };
        buffers.apply(owner, table, change);
        seen
    }

    #[test]
    fn long_mappings_are_split_where_the_kernel_wants_it() {
        let pieces: Vec<_> = split(range(0x1000, (2 << 30) + 5)).collect();
        assert_eq!(pieces, [(0x1000, 1 << 30), (0x1000 + (1 << 30), 1 << 30), (0x1000 + (2 << 30), 5)]);
    }

    #[test]
    fn only_a_range_inside_one_buffer_is_found() {
        let (memory, host) = memory(0x4000);
        let mut buffers = Buffers::new(8);
        register(&mut buffers, 1, memory.table());
        let base = host.base as usize;
        assert!(buffers.find(range(base, 0x4000)).is_some());
        assert!(buffers.find(range(base + 0x3fff, 1)).is_some());
        assert_eq!(buffers.find(range(base + 1, 0x4000)), None);
        assert_eq!(buffers.find(range(base - 1, 1)), None);
        assert_eq!(buffers.find(range(base + 0x4000, 1)), None);
        assert_eq!(buffers.find(range(base, usize::MAX)), None);
    }

    #[test]
    fn a_mapping_that_stays_keeps_its_place_and_others_are_given_back() {
        let (first, _) = memory(0x4000);
        let (second, host) = memory(0x4000);
        let mut buffers = Buffers::new(2);
        let added = register(&mut buffers, 1, first.table()).add;
        let again = register(&mut buffers, 1, first.table());
        assert!(again.add.is_empty() && again.remove.is_empty());
        let swapped = register(&mut buffers, 1, second.table());
        assert_eq!(swapped.remove, added);
        assert!(buffers.find(host).is_some());
        register(&mut buffers, 1, &MemoryTable::empty());
        assert_eq!(buffers.find(host), None);
        assert_eq!(buffers.free.len(), 2, "all places are free again");
    }

    #[test]
    fn too_many_mappings_are_no_plan() {
        let (first, _) = memory(0x1000);
        let (second, _) = memory(0x1000);
        let mut buffers = Buffers::new(1);
        register(&mut buffers, 1, first.table());
        assert!(buffers.plan(2, second.table()).is_none());
        buffers.forget(1);
        assert!(buffers.plan(2, second.table()).is_some());
    }
}
