//! The arena that keys live in: one reservation of address space, locked a chunk at a time.
//!
//! A chunk of 64 KiB holds slots of one size, a power of two; larger pieces take whole chunks. What is where is kept
//! outside of the arena. Chunks stay locked once they are: the arena is as large as it ever had to be. When no more
//! can be locked, chunks of which all slots are free serve slots of another size.

use super::{NoMemory, Usage};
use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Every piece begins at a multiple of this: a cache line.
pub(super) const ALIGN: usize = 64;

/// Bytes that are locked at a time.
const CHUNK: usize = 64 << 10;
/// The largest slot; more than one always fits a chunk.
const MAX_SLOT: usize = CHUNK / 2;
/// Slot sizes: 64 bytes to 32 KiB.
const CLASSES: usize = 10;
/// Address space that is tried for, largest first. Costs nothing until it is used.
const RESERVATIONS: [usize; 3] = [4 << 30, 512 << 20, 64 << 20];
/// Chunks that new keys leave for operations: temporaries of a few RSA operations of the largest size.
const RESERVE: usize = 16;

/// What a chunk is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chunk {
    /// Locked, nobody's.
    Spare,
    /// Slots of a class.
    Slots(usize),
    /// The first of so many that are one piece.
    Piece(usize),
    /// Another one of a piece.
    Inside,
}

#[derive(Debug)]
struct State {
    /// The chunks that were locked so far, from the start of the arena.
    chunks: Vec<Chunk>,
    /// How many of them are spare.
    spare: usize,
    /// Slots nobody uses, by class: their numbers in units of [`ALIGN`].
    free: [Vec<u32>; CLASSES],
    used: usize,
}

/// The arena.
#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    len: usize,
    state: Mutex<State>,
}

// SAFETY: the memory behind `base` is given away piece by piece, each to one owner, under the lock of `state`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

thread_local! {
    /// Whether what this thread allocates is for a key that is being made.
    static BUILDING: Cell<bool> = const { Cell::new(false) };
    /// Whether such an allocation failed.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, what its thread allocates is for a key, and leaves the reserve alone.
pub(crate) struct Building {
    outer: bool,
    /// Belongs to its thread.
    _here: PhantomData<*const ()>,
}

impl Building {
    /// From now on.
    pub(crate) fn new() -> Self {
        REFUSED.set(false);
        Self { outer: BUILDING.replace(true), _here: PhantomData }
    }

    /// Whether there was no memory for something.
    pub(crate) fn refused(&self) -> bool {
        REFUSED.get()
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        BUILDING.set(self.outer);
    }
}

/// At least `len` bytes, of which the contents are unspecified, aligned to [`ALIGN`].
pub(crate) fn allocate(len: usize) -> Result<NonNull<u8>, NoMemory> {
    Arena::get()?.allocate(len).inspect_err(|_| REFUSED.set(true))
}

/// Wipes a piece and gives it back.
///
/// # Safety
///
/// [`allocate`] gave it, and nobody uses it any more.
pub(crate) unsafe fn release(piece: NonNull<u8>) {
    let arena = Arena::get().expect("whatever has a piece of the arena had the arena");
    // SAFETY: the caller's promise.
    unsafe { arena.release(piece) }
}

/// How many bytes a piece has.
///
/// # Safety
///
/// [`allocate`] gave it, and its owner asks.
pub(crate) unsafe fn usable_size(piece: NonNull<u8>) -> usize {
    let arena = Arena::get().expect("whatever has a piece of the arena had the arena");
    let index = arena.chunk_of(piece);
    arena.lock().size_of(index)
}

impl Arena {
    /// The arena of the process, made at the first call.
    pub(super) fn get() -> Result<&'static Self, NoMemory> {
        static ARENA: OnceLock<Result<Arena, NoMemory>> = OnceLock::new();
        ARENA.get_or_init(Self::reserve).as_ref().map_err(|error| *error)
    }

    fn reserve() -> Result<Self, NoMemory> {
        raise_limit();
        for len in RESERVATIONS {
            if let Some(base) = map(len) {
                let state = State { chunks: Vec::new(), spare: 0, free: Default::default(), used: 0 };
                return Ok(Self { base, len, state: Mutex::new(state) });
            }
        }
        Err(NoMemory { wanted: RESERVATIONS[RESERVATIONS.len() - 1], locked: 0, limit: None })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { locked: state.chunks.len() * CHUNK, used: state.used }
    }

    /// Sees to it that as many chunks are spare as operations may need.
    pub(super) fn keep_reserve(&self) -> Result<(), NoMemory> {
        let mut state = self.lock();
        let missing = RESERVE.saturating_sub(state.spare);
        self.grow(&mut state, missing)
    }

    fn allocate(&self, len: usize) -> Result<NonNull<u8>, NoMemory> {
        let mut state = self.lock();
        let offset = match class_of(len) {
            Some(class) => self.slot(&mut state, class)?,
            None => self.piece(&mut state, len)?,
        };
        state.used += state.size_of(offset / CHUNK);
        // SAFETY: below the number of locked chunks, and so inside of the reservation.
        Ok(unsafe { self.base.add(offset) })
    }

    /// The offset of a slot.
    fn slot(&self, state: &mut State, class: usize) -> Result<usize, NoMemory> {
        if let Some(unit) = state.free[class].pop() {
            return Ok(unit as usize * ALIGN);
        }
        let index = self.run(state, 1)?;
        state.chunks[index] = Chunk::Slots(class);
        let size = ALIGN << class;
        // The first slot is the caller's; the list hands out the rest from low to high.
        let units = (1..CHUNK / size).rev().map(|slot| ((index * CHUNK + slot * size) / ALIGN) as u32);
        state.free[class].extend(units);
        Ok(index * CHUNK)
    }

    /// The offset of a piece of whole chunks.
    fn piece(&self, state: &mut State, len: usize) -> Result<usize, NoMemory> {
        let count = len.div_ceil(CHUNK);
        let index = self.run(state, count)?;
        state.chunks[index] = Chunk::Piece(count);
        state.chunks[index + 1..index + count].fill(Chunk::Inside);
        Ok(index * CHUNK)
    }

    /// The index of the first of `count` spare chunks in a row, which are no longer counted as such. For a key, as
    /// many as the reserve has must be left.
    fn run(&self, state: &mut State, count: usize) -> Result<usize, NoMemory> {
        let kept = if BUILDING.get() { RESERVE } else { 0 };
        let missing = (kept + count).saturating_sub(state.spare);
        if let Err(error) = self.grow(state, missing) {
            state.reclaim();
            if state.spare < kept + count {
                return Err(error);
            }
        }
        let index = match state.row(count) {
            Some(index) => index,
            None => {
                self.grow(state, count)?;
                state.chunks.len() - count
            }
        };
        state.spare -= count;
        Ok(index)
    }

    /// Locks `count` more chunks.
    fn grow(&self, state: &mut State, count: usize) -> Result<(), NoMemory> {
        if count == 0 {
            return Ok(());
        }
        let place = state.chunks.len() * CHUNK;
        let wanted = count.saturating_mul(CHUNK);
        let no_memory = |limit| NoMemory { wanted, locked: place, limit };
        if wanted > self.len - place {
            return Err(no_memory(None));
        }
        // SAFETY: inside of the reservation, as was just checked; locking changes nothing but the residency of its
        // pages.
        let locked = unsafe { libc::mlock(self.base.add(place).as_ptr().cast(), wanted) };
        if locked != 0 {
            return Err(no_memory(Some(limit())));
        }
        state.chunks.resize(state.chunks.len() + count, Chunk::Spare);
        state.spare += count;
        Ok(())
    }

    /// # Safety
    ///
    /// [`allocate`](Self::allocate) gave the piece, and nobody uses it any more.
    unsafe fn release(&self, piece: NonNull<u8>) {
        let index = self.chunk_of(piece);
        let size = self.lock().size_of(index);
        // SAFETY: the piece has this size, and until it is on a list below it is the caller's alone. The function is
        // a memset that the compiler does not see through.
        unsafe { aws_lc_sys::OPENSSL_cleanse(piece.as_ptr().cast(), size) };
        let mut state = self.lock();
        state.used -= size;
        match state.chunks[index] {
            Chunk::Slots(class) => {
                let unit = (piece.addr().get() - self.base.addr().get()) / ALIGN;
                state.free[class].push(unit as u32);
            }
            Chunk::Piece(count) => {
                state.chunks[index..index + count].fill(Chunk::Spare);
                state.spare += count;
            }
            Chunk::Spare | Chunk::Inside => unreachable!("pieces begin in chunks of their own"),
        }
    }

    /// The chunk that a piece begins in. Panics for one that is not the arena's: going on would corrupt it.
    fn chunk_of(&self, piece: NonNull<u8>) -> usize {
        let offset = piece.addr().get().wrapping_sub(self.base.addr().get());
        assert!(offset < self.len, "the piece is not from the arena");
        offset / CHUNK
    }
}

impl State {
    /// The first of `count` spare chunks in a row.
    fn row(&self, count: usize) -> Option<usize> {
        self.chunks.windows(count).position(|row| row.iter().all(|chunk| *chunk == Chunk::Spare))
    }

    /// Makes chunks spare of which every slot is free.
    fn reclaim(&mut self) {
        const UNITS: usize = CHUNK / ALIGN;
        let mut free = vec![0; self.chunks.len()];
        for unit in self.free.iter().flatten() {
            free[*unit as usize / UNITS] += 1;
        }
        for (chunk, free) in self.chunks.iter_mut().zip(free) {
            if matches!(chunk, Chunk::Slots(class) if free == UNITS >> *class) {
                *chunk = Chunk::Spare;
                self.spare += 1;
            }
        }
        let chunks = &self.chunks;
        for list in &mut self.free {
            list.retain(|unit| chunks[*unit as usize / UNITS] != Chunk::Spare);
        }
    }

    fn size_of(&self, index: usize) -> usize {
        match self.chunks[index] {
            Chunk::Slots(class) => ALIGN << class,
            Chunk::Piece(count) => count * CHUNK,
            Chunk::Spare | Chunk::Inside => 0,
        }
    }
}

/// The class of the smallest slots with `len` bytes; `None` for what takes whole chunks.
fn class_of(len: usize) -> Option<usize> {
    let size = len.max(ALIGN).checked_next_power_of_two()?;
    (size <= MAX_SLOT).then(|| (size / ALIGN).trailing_zeros() as usize)
}

/// Reserves address space that neither core files nor children see.
fn map(len: usize) -> Option<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel has room; nothing refers to it yet.
    let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping was just made, with this length, and is ours alone.
    let advised = unsafe { advise(base, len) };
    if !advised {
        // SAFETY: as above.
        unsafe { libc::munmap(base, len) };
        return None;
    }
    NonNull::new(base.cast())
}

/// # Safety
///
/// `base` and `len` are a whole mapping of the caller's.
unsafe fn advise(base: *mut c_void, len: usize) -> bool {
    [libc::MADV_DONTDUMP, libc::MADV_DONTFORK, libc::MADV_NOHUGEPAGE].into_iter().all(|advice| {
        // SAFETY: the caller's promise. A kernel without huge pages knows nothing of the last one.
        unsafe { libc::madvise(base, len, advice) == 0 || advice == libc::MADV_NOHUGEPAGE }
    })
}

/// `RLIMIT_MEMLOCK` up to what the process may have without asking.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both take a pointer to a limit, which lives through the calls. A failure leaves the limit as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        }
    }
}

pub(super) fn limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: takes a pointer to a limit, which lives through the call.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    limit.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        Arena::reserve().expect("address space")
    }

    #[test]
    fn pieces_of_all_sizes_are_apart() {
        let arena = arena();
        let sizes = [0, 1, 64, 65, 200, 4096, 32 << 10, (32 << 10) + 1, 64 << 10, 200_000];
        let mut spans: Vec<_> = sizes
            .iter()
            .flat_map(|len| [*len, *len])
            .map(|len| (arena.allocate(len).expect("memory").addr().get(), len.max(1)))
            .collect();
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            assert_eq!(pair[0].0 % ALIGN, 0);
        }
    }

    #[test]
    fn what_is_released_is_used_again() {
        let arena = arena();
        for _ in 0..10_000 {
            let pieces = [100, 5000, 100_000].map(|len| arena.allocate(len).expect("memory"));
            // SAFETY: they were just allocated, and nobody else knows of them.
            pieces.into_iter().for_each(|piece| unsafe { arena.release(piece) });
        }
        assert_eq!(arena.usage(), Usage { locked: 4 * CHUNK, used: 0 });
    }

    #[test]
    fn a_full_arena_says_so_and_goes_on() {
        let arena = Arena { len: 3 * CHUNK, ..arena() };
        let first = arena.allocate(2 * CHUNK).expect("memory");
        let error = arena.allocate(2 * CHUNK).expect_err("two of three chunks are gone");
        assert_eq!(error, NoMemory { wanted: 2 * CHUNK, locked: 2 * CHUNK, limit: None });
        assert!(arena.allocate(10).is_ok(), "the third one is there");
        // SAFETY: it was just allocated, and nobody else knows of it.
        unsafe { arena.release(first) };
        assert!(arena.allocate(2 * CHUNK).is_ok());
    }

    #[test]
    fn keys_leave_room_for_operations() {
        let arena = Arena { len: (RESERVE + 1) * CHUNK, ..arena() };
        arena.keep_reserve().expect("memory");
        let building = Building::new();
        let first = arena.allocate(10).expect("a key");
        arena.allocate(10).expect("another one, from the same chunk");
        assert!(arena.allocate(CHUNK / 2).is_err(), "only the reserve is left");
        drop(building);
        let temporary = arena.allocate(CHUNK).expect("an operation");
        let building = Building::new();
        // SAFETY: both were just allocated, and nobody else knows of them.
        unsafe {
            arena.release(temporary);
            arena.release(first);
        }
        arena.allocate(10).expect("what was given back");
        drop(building);
    }

    #[test]
    fn free_chunks_serve_other_sizes_when_no_more_can_be_locked() {
        let arena = Arena { len: 2 * CHUNK, ..arena() };
        let small: Vec<_> = (0..CHUNK / ALIGN).map(|_| arena.allocate(1).expect("memory")).collect();
        let large = arena.allocate(CHUNK).expect("the second chunk");
        assert!(arena.allocate(CHUNK).is_err());
        let (last, rest) = small.split_last().expect("many");
        // SAFETY: they were just allocated, and nobody else knows of them.
        rest.iter().for_each(|piece| unsafe { arena.release(*piece) });
        assert!(arena.allocate(CHUNK).is_err(), "one slot is in use");
        // SAFETY: as above.
        unsafe { arena.release(*last) };
        let other = arena.allocate(CHUNK).expect("the first chunk");
        assert!(other != large);
        assert!(arena.allocate(1).is_err(), "its slots are gone");
    }

    #[test]
    fn classes_are_powers_of_two_from_a_cache_line_to_half_a_chunk() {
        assert_eq!(class_of(0), Some(0));
        assert_eq!(class_of(64), Some(0));
        assert_eq!(class_of(65), Some(1));
        assert_eq!(class_of(MAX_SLOT), Some(CLASSES - 1));
        assert_eq!(class_of(MAX_SLOT + 1), None);
        assert_eq!(class_of(usize::MAX), None);
    }
}
