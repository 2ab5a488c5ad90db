//! The arena that keys live in: one reservation of address space, locked a chunk at a time.
//!
//! A chunk of 64 KiB holds slots of one size, a power of two; larger pieces take whole chunks. What is where is kept
//! outside of the arena. Chunks stay locked once they are: the arena is as large as it ever had to be. Chunks of which all
//! slots are free serve slots of another size, but for one of each size, which is kept until it is needed.
//!
//! What is allocated for a key is charged to an account, of which each device has one, and no account may have more than its
//! equal share of what can be locked: a guest with many sessions leaves others theirs.

use super::{NoMemory, Usage, Why};
use std::cell::Cell;
use std::collections::BTreeSet;
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
#[derive(Debug)]
enum Chunk {
    /// Locked, nobody's.
    Spare,
    /// Slots of a class.
    Slots(Slots),
    /// The first of so many that are one piece, and whose account it is charged to.
    Piece(usize, u16),
    /// Another one of a piece.
    Inside,
}

/// A chunk of slots.
#[derive(Debug)]
struct Slots {
    class: usize,
    /// Numbers of the slots nobody uses.
    free: Vec<u16>,
    /// By slot: which account it is charged to.
    owners: Box<[u16]>,
    /// Where the chunk is listed among those of its class with free slots.
    place: usize,
}

impl Slots {
    /// All of them free; the first is handed out first.
    fn new(class: usize) -> Self {
        let count = (CHUNK / ALIGN) >> class;
        let free = (0..count as u16).rev().collect();
        Self { class, free, owners: vec![NOBODY; count].into(), place: 0 }
    }

    fn is_unused(&self) -> bool {
        self.free.len() == self.owners.len()
    }
}

/// The chunks of one class.
#[derive(Debug, Default)]
struct Class {
    /// Those with free slots.
    open: Vec<u32>,
    /// One of these of which all slots are free.
    unused: Option<u32>,
}

/// What is charged to a device.
#[derive(Debug, Default)]
struct Balance {
    used: usize,
    open: bool,
}

/// The account of what belongs to no device.
const NOBODY: u16 = 0;

#[derive(Debug, Default)]
struct State {
    /// The chunks that were locked so far, from the start of the arena.
    chunks: Vec<Chunk>,
    /// Which of them are spare.
    spare: BTreeSet<u32>,
    classes: [Class; CLASSES],
    used: usize,
    /// By number of the account, from 1 on.
    balances: Vec<Balance>,
}

/// The arena.
#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    len: usize,
    /// Bytes that the process may lock.
    limit: usize,
    state: Mutex<State>,
}

// SAFETY: the memory behind `base` is given away piece by piece, each to one owner, under the lock of `state`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

thread_local! {
    /// Whose account a key that is being made is charged to, if what this thread allocates is for one.
    static BUILDING: Cell<Option<u16>> = const { Cell::new(None) };
    /// Whether such an allocation failed.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// What the keys of one device are charged to. What was charged stays, if this goes before the keys do.
#[derive(Debug)]
pub struct Account(u16);

impl Account {
    /// An account with nothing charged to it. Nobody's, which has no share of its own, where there is no arena or too many
    /// accounts.
    pub fn open() -> Self {
        Self(Arena::get().map_or(NOBODY, Arena::open_account))
    }

    /// Bytes charged to it.
    pub fn used(&self) -> usize {
        Arena::get().map_or(0, |arena| arena.lock().balance(self.0).map_or(0, |balance| balance.used))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Ok(arena) = Arena::get()
            && let Some(balance) = arena.lock().balance(self.0)
        {
            balance.open = false;
        }
    }
}

/// While it lives, what its thread allocates is for a key, and leaves the reserve alone.
pub(crate) struct Building {
    outer: Option<u16>,
    /// Belongs to its thread.
    _here: PhantomData<*const ()>,
}

impl Building {
    /// A key of nobody in particular.
    pub(crate) fn new() -> Self {
        Self::charging(NOBODY)
    }

    /// A key that is charged to this account.
    pub(crate) fn on(account: &Account) -> Self {
        Self::charging(account.0)
    }

    /// More of a key that has these bytes: charged to whom they are charged to.
    pub(crate) fn beside(bytes: &[u8]) -> Self {
        Self::charging(Arena::get().map_or(NOBODY, |arena| arena.owner_of(bytes.as_ptr().addr())))
    }

    fn charging(account: u16) -> Self {
        REFUSED.set(false);
        Self { outer: BUILDING.replace(Some(account)), _here: PhantomData }
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
                let limit = usize::try_from(limit()).unwrap_or(usize::MAX);
                return Ok(Self { base, len, limit, state: Mutex::default() });
            }
        }
        let wanted = RESERVATIONS[RESERVATIONS.len() - 1];
        Err(NoMemory { wanted, locked: 0, why: Why::ArenaFull })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { locked: state.chunks.len() * CHUNK, used: state.used }
    }

    fn open_account(&self) -> u16 {
        let mut state = self.lock();
        let vacant = state.balances.iter().position(|balance| !balance.open && balance.used == 0);
        let place = vacant.unwrap_or(state.balances.len());
        let Ok(number) = u16::try_from(place + 1) else { return NOBODY };
        if place == state.balances.len() {
            state.balances.push(Balance::default());
        }
        state.balances[place].open = true;
        number
    }

    /// Bytes that one account may have.
    fn share(&self, state: &State) -> usize {
        let room = self.len.min(self.limit).saturating_sub(RESERVE * CHUNK);
        room / state.balances.iter().filter(|balance| balance.open).count().max(1)
    }

    /// Sees to it that as many chunks are spare as operations may need.
    pub(super) fn keep_reserve(&self) -> Result<(), NoMemory> {
        let mut state = self.lock();
        let missing = RESERVE.saturating_sub(state.spare.len());
        self.grow(&mut state, missing)
    }

    fn allocate(&self, len: usize) -> Result<NonNull<u8>, NoMemory> {
        let owner = BUILDING.get().unwrap_or(NOBODY);
        let class = class_of(len);
        let size = class.map_or_else(|| len.div_ceil(CHUNK) * CHUNK, |class| ALIGN << class);
        let mut state = self.lock();
        self.charge(&mut state, owner, size)?;
        let place = match class {
            Some(class) => self.slot(&mut state, class, owner),
            None => self.piece(&mut state, size / CHUNK, owner),
        };
        let offset = place.inspect_err(|_| state.credit(owner, size))?;
        state.used += size;
        // SAFETY: below the number of locked chunks, and so inside of the reservation.
        Ok(unsafe { self.base.add(offset) })
    }

    fn charge(&self, state: &mut State, owner: u16, size: usize) -> Result<(), NoMemory> {
        if owner == NOBODY {
            return Ok(());
        }
        let (share, locked) = (self.share(state), state.chunks.len() * CHUNK);
        let Some(balance) = state.balance(owner) else { return Ok(()) };
        let used = balance.used.saturating_add(size);
        if used > share {
            return Err(NoMemory { wanted: size, locked, why: Why::Share(share) });
        }
        balance.used = used;
        Ok(())
    }

    /// The offset of a slot.
    fn slot(&self, state: &mut State, class: usize, owner: u16) -> Result<usize, NoMemory> {
        let index = match state.classes[class].open.last() {
            Some(index) => *index as usize,
            None => {
                let index = self.run(state, 1)?;
                state.chunks[index] = Chunk::Slots(Slots::new(class));
                state.list(index, class);
                index
            }
        };
        Ok(index * CHUNK + state.take_slot(index, class, owner) * (ALIGN << class))
    }

    /// The offset of a piece of whole chunks.
    fn piece(&self, state: &mut State, count: usize, owner: u16) -> Result<usize, NoMemory> {
        let index = self.run(state, count)?;
        state.chunks[index] = Chunk::Piece(count, owner);
        state.chunks[index + 1..index + count].iter_mut().for_each(|chunk| *chunk = Chunk::Inside);
        Ok(index * CHUNK)
    }

    /// The index of the first of `count` spare chunks in a row, which are no longer counted as such. For a key, as
    /// many as the reserve has must be left.
    fn run(&self, state: &mut State, count: usize) -> Result<usize, NoMemory> {
        let kept = if BUILDING.get().is_some() { RESERVE } else { 0 };
        let missing = (kept + count).saturating_sub(state.spare.len());
        if let Err(error) = self.grow(state, missing) {
            state.reclaim();
            if state.spare.len() < kept + count {
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
        for index in index..index + count {
            state.spare.remove(&(index as u32));
        }
        Ok(index)
    }

    /// Locks `count` more chunks.
    fn grow(&self, state: &mut State, count: usize) -> Result<(), NoMemory> {
        if count == 0 {
            return Ok(());
        }
        let first = state.chunks.len();
        let place = first * CHUNK;
        let wanted = count.saturating_mul(CHUNK);
        let no_memory = |why| NoMemory { wanted, locked: place, why };
        if wanted > self.len - place {
            return Err(no_memory(Why::ArenaFull));
        }
        // SAFETY: inside of the reservation, as was just checked; locking changes nothing but the residency of its
        // pages.
        let locked = unsafe { libc::mlock(self.base.add(place).as_ptr().cast(), wanted) };
        if locked != 0 {
            return Err(no_memory(Why::Limit(limit())));
        }
        state.chunks.resize_with(first + count, || Chunk::Spare);
        state.spare.extend((first..first + count).map(|index| index as u32));
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
        let slot = (piece.addr().get() - self.base.addr().get()) % CHUNK / size;
        let mut state = self.lock();
        state.used -= size;
        let owner = state.give_back(index, slot);
        state.credit(owner, size);
    }

    /// The account that what lies at an address is charged to.
    fn owner_of(&self, address: usize) -> u16 {
        let offset = address.wrapping_sub(self.base.addr().get());
        let state = self.lock();
        match state.chunks.get(offset / CHUNK) {
            Some(Chunk::Slots(slots)) => slots.owners[offset % CHUNK / (ALIGN << slots.class)],
            Some(Chunk::Piece(_, owner)) => *owner,
            Some(Chunk::Spare | Chunk::Inside) | None => NOBODY,
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
        let mut length = 0;
        let mut before = None;
        for &index in &self.spare {
            length = if before.is_some_and(|before| before + 1 == index) { length + 1 } else { 1 };
            if length == count {
                return Some(index as usize + 1 - count);
            }
            before = Some(index);
        }
        None
    }

    /// Chunk `index` has a free slot from now on.
    fn list(&mut self, index: usize, class: usize) {
        let open = &mut self.classes[class].open;
        if let Chunk::Slots(slots) = &mut self.chunks[index] {
            slots.place = open.len();
            open.push(index as u32);
        }
    }

    /// Chunk `index` has none any more, or serves another size.
    fn unlist(&mut self, index: usize, class: usize) {
        let Chunk::Slots(Slots { place, .. }) = self.chunks[index] else { return };
        let open = &mut self.classes[class].open;
        open.swap_remove(place);
        if let Some(moved) = open.get(place).map(|moved| *moved as usize)
            && let Chunk::Slots(slots) = &mut self.chunks[moved]
        {
            slots.place = place;
        }
    }

    /// The number of a free slot of chunk `index`, which is listed: it has one.
    fn take_slot(&mut self, index: usize, class: usize, owner: u16) -> usize {
        if self.classes[class].unused == Some(index as u32) {
            self.classes[class].unused = None;
        }
        let Chunk::Slots(slots) = &mut self.chunks[index] else { unreachable!("a chunk of slots") };
        let slot = usize::from(slots.free.pop().expect("a free slot"));
        slots.owners[slot] = owner;
        if slots.free.is_empty() {
            self.unlist(index, class);
        }
        slot
    }

    /// Takes back a slot of chunk `index`, or the piece that begins there. Returns whom it was charged to.
    fn give_back(&mut self, index: usize, slot: usize) -> u16 {
        match &mut self.chunks[index] {
            Chunk::Slots(slots) => {
                let (class, owner) = (slots.class, slots.owners[slot]);
                slots.free.push(slot as u16);
                let (listed, unused) = (slots.free.len() > 1, slots.is_unused());
                if !listed {
                    self.list(index, class);
                }
                match self.classes[class].unused {
                    Some(_) if unused => self.make_spare(index, class),
                    None if unused => self.classes[class].unused = Some(index as u32),
                    _ => {}
                }
                owner
            }
            Chunk::Piece(count, owner) => {
                let (count, owner) = (*count, *owner);
                self.chunks[index..index + count].iter_mut().for_each(|chunk| *chunk = Chunk::Spare);
                self.spare.extend((index..index + count).map(|index| index as u32));
                owner
            }
            Chunk::Spare | Chunk::Inside => unreachable!("pieces begin in chunks of their own"),
        }
    }

    /// All slots of chunk `index` are free.
    fn make_spare(&mut self, index: usize, class: usize) {
        self.unlist(index, class);
        self.chunks[index] = Chunk::Spare;
        self.spare.insert(index as u32);
    }

    /// Makes the chunks spare that are kept although all of their slots are free.
    fn reclaim(&mut self) {
        for class in 0..CLASSES {
            if let Some(index) = self.classes[class].unused.take() {
                self.make_spare(index as usize, class);
            }
        }
    }

    fn balance(&mut self, account: u16) -> Option<&mut Balance> {
        self.balances.get_mut(usize::from(account).checked_sub(1)?)
    }

    fn credit(&mut self, account: u16, size: usize) {
        if let Some(balance) = self.balance(account) {
            balance.used -= size;
        }
    }

    fn size_of(&self, index: usize) -> usize {
        match self.chunks[index] {
            Chunk::Slots(Slots { class, .. }) => ALIGN << class,
            Chunk::Piece(count, _) => count * CHUNK,
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

/// `RLIMIT_MEMLOCK` away, where the process may do that, or else up to what it may have without asking.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: all take a pointer to a limit, which lives through the calls. A failure leaves the limit as it was.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) == 0 {
            return;
        }
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
        assert_eq!(error, NoMemory { wanted: 2 * CHUNK, locked: 2 * CHUNK, why: Why::ArenaFull });
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
    fn an_account_has_its_share_and_leaves_the_others_theirs() {
        let arena = Arena { len: (RESERVE + 4) * CHUNK, ..arena() };
        let (one, two) = (arena.open_account(), arena.open_account());
        let fill = |account| {
            let _building = Building::charging(account);
            std::iter::from_fn(|| arena.allocate(1000).ok()).count()
        };
        let half = 2 * CHUNK / 1024;
        assert_eq!([fill(one), fill(one), fill(two), fill(two)], [half, 0, half, 0]);
        assert!(arena.allocate(1000).is_ok(), "operations have the reserve");
    }

    #[test]
    fn what_is_released_is_credited_to_whom_it_was_charged_to() {
        let arena = arena();
        let account = arena.open_account();
        let building = Building::charging(account);
        let pieces = [1, 5000, 2 * CHUNK].map(|len| arena.allocate(len).expect("memory"));
        drop(building);
        let owners = pieces.map(|piece| arena.owner_of(piece.addr().get()));
        assert_eq!((owners, arena.owner_of(0)), ([account; 3], NOBODY));
        let used = || arena.lock().balance(account).unwrap().used;
        assert_eq!(used(), ALIGN + (8 << 10) + 2 * CHUNK);
        // SAFETY: they were just allocated, and nobody else knows of them.
        pieces.into_iter().for_each(|piece| unsafe { arena.release(piece) });
        assert_eq!(used(), 0);
    }

    /// However many chunks there are: a refusal must not take long, because all other keys wait for the lock.
    #[test]
    fn a_refusal_looks_at_a_few_chunks_only() {
        let arena = arena();
        let pieces: Vec<_> = (0..4000).map(|_| arena.allocate(MAX_SLOT).expect("memory")).collect();
        // SAFETY: they were just allocated, and nobody else knows of them.
        pieces.into_iter().for_each(|piece| unsafe { arena.release(piece) });
        let state = arena.lock();
        let kept: usize = state.classes.iter().map(|class| class.open.len()).sum();
        assert_eq!((kept, state.spare.len()), (1, 1999));
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
