//! The sources of requests in place, until these are answered: in memory that the keeper holds (`--supervise`).
//!
//! A worker can be killed when it has overwritten a part of a request's source, or all of it, but has not told the guest. The
//! request then comes again, and must not be computed from what is left. So the source of a request whose destination
//! overlaps it is set aside first, and brought back for one that comes again. Requests out of place need none of this.
//!
//! # Layout
//!
//! A table of entries, then blocks of data. They are apart, so that no guest can make data that looks like an entry. Each
//! worker has its part of both, and nobody takes a lock. A process can be killed between any two stores: an entry counts from
//! the moment its state is set, which happens before the engine gets the request, until it is cleared, which
//! happens when the request is published and before its ring takes another.
//!
//! What a predecessor left is brought back when its request comes again, and serves that request from then on. It is dropped
//! when another request comes with the same name, for then the old one was published after all, and when the device's
//! frontend is gone ([`Journals::forget`]).

use memory::{Area, GuestSlice, HostRange, MemoryView};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::compiler_fence;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// There is no room now: complete and publish what is in flight, then try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("The journal is full")]
pub struct Full;

/// Which request it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The device, by a number that its successor has too: [`device_key`].
    pub device: u64,
    /// The ring.
    pub queue: u16,
    /// The id of the chain's token.
    pub id: u16,
}

/// The number of a device, from its name.
pub fn device_key(name: &str) -> u64 {
    // FNV-1a, 64 bits.
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A source set aside, to be released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saved(u32);

/// Whether a source shares bytes with a destination.
pub fn overlaps(source: &[HostRange], destination: &[HostRange]) -> bool {
    // Usually one is all behind the other, or there are few pieces.
    let (Some(from), Some(to)) = (span(source), span(destination)) else { return false };
    from.start < to.end && to.start < from.end && any_meet(source, destination)
}

/// From the first byte of any piece to the last of any.
fn span(ranges: &[HostRange]) -> Option<Range<usize>> {
    let full = || ranges.iter().map(bytes).filter(|range| !range.is_empty());
    Some(full().map(|range| range.start).min()?..full().map(|range| range.end).max()?)
}

fn any_meet(source: &[HostRange], destination: &[HostRange]) -> bool {
    /// Pairs that are compared one by one.
    const FEW: usize = 64;
    let meet = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
    let full =
        |ranges: &[HostRange]| ranges.iter().map(bytes).filter(|range| !range.is_empty()).collect::<Vec<_>>();
    if source.len() * destination.len() <= FEW {
        let some = |a: &HostRange, b: &HostRange| a.len > 0 && b.len > 0 && meet(&bytes(a), &bytes(b));
        return source.iter().any(|a| destination.iter().any(|b| some(a, b)));
    }
    // Pieces of one list may overlap each other (the Linux driver's do), so each end counts only when it is the furthest.
    let mut sorted: Vec<(Range<usize>, bool)> =
        full(source).into_iter().map(|range| (range, false)).collect();
    sorted.extend(full(destination).into_iter().map(|range| (range, true)));
    sorted.sort_unstable_by_key(|(range, _)| range.start);
    let mut ends = [0; 2];
    sorted.into_iter().any(|(range, side)| {
        let other = range.start < ends[usize::from(!side)];
        ends[usize::from(side)] = ends[usize::from(side)].max(range.end);
        other
    })
}

fn bytes(range: &HostRange) -> Range<usize> {
    let start = range.base.addr();
    start..start + range.len
}

/// Entries of the table.
const ENTRIES: usize = 4096;
/// Bytes of an entry.
const ENTRY: usize = 64;
/// Where the table begins: behind a page with the version of the layout.
const TABLE: usize = 4096;
/// Where the blocks begin.
const DATA: usize = TABLE + ENTRIES * ENTRY;
/// Bytes of a block.
const BLOCK: usize = 1024;
/// The first bytes of a memory that was used.
const MAGIC: u64 = u64::from_le_bytes(*b"vhjourn1");

/// Offsets in an entry.
mod field {
    pub const STATE: usize = 0;
    pub const ID: usize = 4;
    pub const QUEUE: usize = 6;
    pub const DEVICE: usize = 8;
    pub const BLOCK: usize = 16;
    pub const LEN: usize = 24;
}

/// The state of an entry that counts.
const LIVE: u32 = 1;

/// Where something was set aside.
#[derive(Clone, Copy)]
struct Kept {
    block: usize,
    len: usize,
}

impl Kept {
    fn blocks(&self) -> Range<usize> {
        self.block..self.block + self.len.div_ceil(BLOCK)
    }
}

/// The memory, before it is split among the workers.
#[derive(Clone)]
pub struct Journals(Arc<Whole>);

struct Whole {
    /// Each worker has a handle of its own.
    area: Mutex<Area>,
    blocks: usize,
    /// What a predecessor left, by entry.
    left: HashMap<usize, (Place, Kept)>,
}

/// Something that a predecessor left, as one worker knows it.
#[derive(Clone, Copy)]
struct Left {
    entry: usize,
    kept: Kept,
    /// Its request has come again, and has its source again.
    restored: bool,
}

impl Journals {
    /// Maps the memory and finds what a predecessor left in it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let len = std::fs::File::from(fd.try_clone()?).metadata()?.len();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let blocks = len.saturating_sub(DATA) / BLOCK;
        if blocks == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the journal's memory is too small"));
        }
        let area = Area::map(&fd, len, 0)?;
        let left = if area.load_u64(0, Relaxed) == MAGIC {
            (0..ENTRIES).filter_map(|entry| Some((entry, left(&area, entry, blocks)?))).collect()
        } else {
            area.store_u64(0, MAGIC, Relaxed);
            HashMap::new()
        };
        Ok(Self(Arc::new(Whole { area: Mutex::new(area), blocks, left })))
    }

    /// Drops what was left of a device: its frontend is gone, and none of its rings runs.
    pub fn forget(&self, device: u64) {
        let area = self.area();
        for (entry, _) in self.0.left.iter().filter(|(_, (place, _))| place.device == device) {
            let at = TABLE + entry * ENTRY;
            // It may have served its request since, and be another device's by now. One that still counts and is of this
            // device stays so meanwhile, since none of its rings runs. The state is looked at first: it is written last.
            let counts = area.load_u32(at + field::STATE, SeqCst) == LIVE;
            if counts && area.load_u64(at + field::DEVICE, SeqCst) == device {
                area.store_u32(at + field::STATE, 0, SeqCst);
            }
        }
    }

    /// The part of worker `index` of `of`.
    pub fn worker(&self, index: usize, of: usize) -> Journal {
        let of = of.max(1);
        let part = |total: usize| total * index / of..total * (index + 1) / of;
        let (blocks, table) = (part(self.0.blocks), part(ENTRIES));
        let entries = table.clone().rev().filter(|entry| !self.0.left.contains_key(entry)).collect();
        let known = |(entry, (place, kept)): (&usize, &(Place, Kept))| {
            (*place, Left { entry: *entry, kept: *kept, restored: false })
        };
        let area = self.area().clone();
        let taken = vec![false; blocks.len()];
        let left = self.0.left.iter().map(known).collect();
        let mut journal = Journal { area, blocks, table, taken, next: 0, entries, left };
        self.0.left.values().for_each(|(_, kept)| journal.set(kept.blocks(), true));
        journal
    }

    fn area(&self) -> MutexGuard<'_, Area> {
        self.0.area.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept under an entry, if it counts.
fn left(area: &Area, entry: usize, blocks: usize) -> Option<(Place, Kept)> {
    let at = TABLE + entry * ENTRY;
    if area.load_u32(at + field::STATE, Relaxed) != LIVE {
        return None;
    }
    let number = |field| usize::try_from(area.load_u64(at + field, Relaxed)).ok();
    let kept = Kept { block: number(field::BLOCK)?, len: number(field::LEN)? };
    let end = kept.block.checked_add(kept.len.div_ceil(BLOCK))?;
    let place = Place {
        device: area.load_u64(at + field::DEVICE, Relaxed),
        queue: area.load_u16(at + field::QUEUE, Relaxed),
        id: area.load_u16(at + field::ID, Relaxed),
    };
    (end <= blocks).then_some((place, kept))
}

/// One worker's part.
pub struct Journal {
    area: Area,
    /// Its blocks.
    blocks: Range<usize>,
    /// Its entries.
    table: Range<usize>,
    /// Which of its blocks are taken.
    taken: Vec<bool>,
    /// Where to look for free ones.
    next: usize,
    /// Free entries.
    entries: Vec<usize>,
    /// What a predecessor left, in whichever part.
    left: HashMap<Place, Left>,
}

impl Journal {
    /// Sets the source of a request aside, when it overlaps the destination. `source` and `destination` are ranges of `mem`; of
    /// a request that came again the source was [restored](Self::restore) before.
    pub fn protect(
        &mut self,
        at: Place,
        mem: &MemoryView,
        source: &[HostRange],
        destination: &[HostRange],
    ) -> Result<Option<Saved>, Full> {
        if !overlaps(source, destination) {
            return Ok(None);
        }
        match self.left.remove(&at) {
            // It is what was set aside for this very request.
            Some(left) if left.restored => return Ok(Some(Saved(left.entry as u32))),
            // Its request was published after all. Before the new one counts: two of one name would be one too many.
            Some(left) => self.drop_entry(left.entry, left.kept),
            None => {}
        }
        let len = source.iter().map(|range| range.len).sum();
        let kept = self.find_room(len).ok_or(Full)?;
        let entry = self.take_entry().ok_or(Full)?;
        self.set(kept.blocks(), true);
        self.next = kept.blocks().end - self.blocks.start;
        let mut offset = DATA + kept.block * BLOCK;
        each_piece(mem, source, |piece, len| {
            let mut bytes = [0; PIECE];
            piece.read(0, &mut bytes[..len]);
            self.area.write_bytes(offset, &bytes[..len]);
            offset += len;
        });
        self.write(entry, at, kept);
        Ok(Some(Saved(entry as u32)))
    }

    /// Whether there is room for a source of so many bytes once nothing is in flight.
    pub fn holds(&self, len: usize) -> bool {
        len.div_ceil(BLOCK) <= self.blocks.len()
    }

    /// Whether more than half of the entries are taken: no time for requests that keep theirs for long.
    pub fn is_crowded(&mut self) -> bool {
        let few = |journal: &Self| journal.entries.len() * 2 < journal.table.len();
        few(self) && {
            self.reclaim();
            few(self)
        }
    }

    /// The request was published. To be called before its ring takes another one.
    pub fn release(&mut self, saved: Saved) {
        let entry = saved.0 as usize;
        let at = TABLE + entry * ENTRY;
        let number = |field| self.area.load_u64(at + field, Relaxed) as usize;
        let kept = Kept { block: number(field::BLOCK), len: number(field::LEN) };
        self.drop_entry(entry, kept);
        if self.blocks.contains(&kept.block) {
            self.next = kept.block - self.blocks.start;
        }
    }

    /// Brings back the source of a request that came again. False when nothing was set aside for it.
    pub fn restore(&mut self, at: Place, mem: &MemoryView, source: &[HostRange]) -> bool {
        let Some(left) = self.left.get_mut(&at) else { return false };
        // Another worker may have dealt with it.
        let live = self.area.load_u32(TABLE + left.entry * ENTRY + field::STATE, SeqCst) == LIVE;
        if !live || source.iter().map(|range| range.len).sum::<usize>() != left.kept.len {
            return false;
        }
        left.restored = true;
        let mut offset = DATA + left.kept.block * BLOCK;
        each_piece(mem, source, |piece, len| {
            let mut bytes = [0; PIECE];
            self.area.read_bytes(offset, &mut bytes[..len]);
            piece.write(0, &bytes[..len]);
            offset += len;
        });
        true
    }

    /// An entry does not count any more.
    fn drop_entry(&mut self, entry: usize, kept: Kept) {
        self.area.store_u32(TABLE + entry * ENTRY + field::STATE, 0, SeqCst);
        self.take_back(entry, kept);
    }

    /// What of an entry that does not count is of this part can be used again. What is in another worker's part that one
    /// takes back by itself, and may have done so.
    fn take_back(&mut self, entry: usize, kept: Kept) {
        self.set(kept.blocks(), false);
        if self.table.contains(&entry) {
            self.entries.push(entry);
        }
    }

    /// Takes back the room of what was forgotten.
    fn reclaim(&mut self) {
        let live =
            |left: &Left| self.area.load_u32(TABLE + left.entry * ENTRY + field::STATE, SeqCst) == LIVE;
        let gone: Vec<_> =
            self.left.iter().filter(|(_, left)| !live(left)).map(|(place, left)| (*place, *left)).collect();
        for (place, left) in gone {
            self.left.remove(&place);
            self.take_back(left.entry, left.kept);
        }
    }

    fn write(&self, entry: usize, place: Place, kept: Kept) {
        let at = TABLE + entry * ENTRY;
        self.area.store_u64(at + field::DEVICE, place.device, Relaxed);
        self.area.store_u16(at + field::QUEUE, place.queue, Relaxed);
        self.area.store_u16(at + field::ID, place.id, Relaxed);
        self.area.store_u64(at + field::BLOCK, kept.block as u64, Relaxed);
        self.area.store_u64(at + field::LEN, kept.len as u64, Relaxed);
        // After all of that, and before anything is overwritten. A process that dies leaves a prefix of its stores.
        self.area.store_u32(at + field::STATE, LIVE, SeqCst);
        compiler_fence(SeqCst);
    }

    /// Free blocks in a row.
    fn find_room(&mut self, len: usize) -> Option<Kept> {
        let wanted = len.div_ceil(BLOCK).max(1);
        let block = self.find_blocks(wanted).or_else(|| {
            self.reclaim();
            self.find_blocks(wanted)
        });
        block.map(|block| Kept { block, len })
    }

    fn take_entry(&mut self) -> Option<usize> {
        self.entries.pop().or_else(|| {
            self.reclaim();
            self.entries.pop()
        })
    }

    fn find_blocks(&self, wanted: usize) -> Option<usize> {
        let free = |from: usize, to: usize| {
            let mut run = 0;
            (from..to).find(|block| {
                run = if self.taken[*block] { 0 } else { run + 1 };
                run == wanted
            })
        };
        let last = free(self.next, self.taken.len()).or_else(|| free(0, self.taken.len()))?;
        Some(self.blocks.start + last + 1 - wanted)
    }

    /// Marks those of some blocks that are of this part.
    fn set(&mut self, blocks: Range<usize>, taken: bool) {
        let here = |block: usize| block.clamp(self.blocks.start, self.blocks.end) - self.blocks.start;
        self.taken[here(blocks.start)..here(blocks.end)].fill(taken);
    }
}

/// Bytes copied at a time.
const PIECE: usize = 4096;

/// Calls `piece` for each few bytes of guest memory, in order.
fn each_piece(mem: &MemoryView, ranges: &[HostRange], mut piece: impl FnMut(GuestSlice<'_>, usize)) {
    for range in ranges {
        let mut at = 0;
        while at < range.len {
            let len = (range.len - at).min(PIECE);
            // All of these were translated by this view, so that none is missing.
            if let Some(slice) = range.sub(at, len).and_then(|part| mem.reenter(part)) {
                piece(slice, len);
            }
            at += len;
        }
    }
}

#[cfg(test)]
mod tests;
