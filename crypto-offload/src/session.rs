//! The sessions of a device.
//!
//! Sessions are made and closed on the session thread (`CREATE_CRYPTO_SESSION`) or on the worker of the control queue,
//! and used by every worker that has a queue of the device. [`Sessions`] is what all of them share; a [`Cache`] is what one
//! worker knows of it.
//!
//! # How a worker finds a session
//!
//! Without a lock and without a reference count: its cache holds one reference to the keys of each session it has seen,
//! and a plain number of requests in flight. Per request it looks into the cache, at the place that the id names, and at
//! one shared word that says whether the session still exists. Only the first use of a session by a worker takes the
//! lock. Closing a session clears the word, so that later requests are refused, and rings the bell of each worker that
//! has it in its cache; that worker lets go of the keys when its last request in flight has ended. The last one to let go
//! wipes them.
//!
//! # Ids
//!
//! An id is a place and a generation, below 2^31 (some frontends keep it in an `int`), and never 0. A place is given away
//! again as late as possible, with another generation, so that a request with the id of a closed session is told so.

use crate::engine::{KeyError, KeyId, KeySpec, Prepared};
use crate::keys::Account;
use crate::vault::{DeviceVault, Origin};
use offload::bell::Bell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Most sessions a device can have.
pub const MAX_SESSIONS: u32 = 1 << INDEX_BITS;

/// Bits of an id that name the place.
const INDEX_BITS: u32 = 20;

/// Bits of an id; those above the place count generations, from 1 on.
const ID_BITS: u32 = 31;

/// Words that say which sessions exist come so many at a time.
const CHUNK: usize = 1024;

/// The name of a session on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u32);

impl SessionId {
    /// The value for a reply; never negative as an `i64`, nor as an `i32`.
    pub fn wire(self) -> u64 {
        self.0.into()
    }

    fn of(index: u32, generation: u32) -> Self {
        Self(generation << INDEX_BITS | index)
    }

    fn index(self) -> u32 {
        self.0 & (MAX_SESSIONS - 1)
    }

    /// The id of a request; `None` when no session can have it.
    pub fn from_wire(id: u64) -> Option<Self> {
        u32::try_from(id).ok().filter(|id| *id != 0 && *id < 1 << ID_BITS).map(Self)
    }
}

/// Why there is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The device has as many as it may have.
    #[error("All {0} sessions are in use")]
    Limit(u32),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A session to be restored has the id of another one, or one that cannot be.
    #[error("Session {0} cannot be restored")]
    Restore(u64),
    /// The session cannot be recorded for a process that takes over.
    #[error("There is no room to record another session")]
    Unrecorded,
}

/// What the worker of a cache is told.
#[derive(Debug)]
struct Inbox {
    closed: Mutex<Vec<SessionId>>,
    bell: Arc<Bell>,
}

/// Where a session is.
struct Place {
    generation: u32,
    key: Option<Arc<Prepared>>,
    /// Bit `n`: the cache of user `n` has it.
    cached_by: u64,
}

struct Table {
    places: Vec<Place>,
    /// The newest generation of an id: places that no session has had begin with it.
    newest: u32,
    /// The generation that the vault knows of.
    noted: Option<u32>,
    /// Places given back, oldest first. One that was restored meanwhile may still be listed.
    free: VecDeque<u32>,
    open: u32,
    users: Vec<Option<Arc<Inbox>>>,
}

/// A place rests until so many others have been given back.
const RESTING: usize = 256;

impl Table {
    /// Without sessions; ids of the generation that was `noted` may have been given away by a predecessor.
    fn new(noted: Option<u32>) -> Self {
        Self {
            places: Vec::new(),
            newest: noted.map_or(1, next_generation),
            noted,
            free: VecDeque::new(),
            open: 0,
            users: Vec::new(),
        }
    }

    /// A place that no session has: one that has rested, or a new one.
    fn take_place(&mut self, limit: u32) -> Result<u32, SessionError> {
        let unused = self.places.len() as u32;
        if self.open >= limit {
            return Err(SessionError::Limit(limit));
        }
        while self.free.len() > RESTING || unused == MAX_SESSIONS {
            match self.free.pop_front() {
                Some(index) if self.places[index as usize].key.is_none() => return Ok(index),
                Some(_) => {}
                None => return Err(SessionError::Limit(limit)),
            }
        }
        self.places.push(Place { generation: self.newest, key: None, cached_by: 0 });
        Ok(unused)
    }
}

impl Table {
    /// An id of this generation is about to be given away: the next process must know. False when it cannot.
    fn note(&mut self, generation: u32, vault: Option<&DeviceVault>) -> bool {
        if is_newer(generation, self.newest) {
            self.newest = generation;
        }
        if let Some(vault) = vault
            && self.noted != Some(self.newest)
        {
            if vault.note_generation(self.newest).is_err() {
                return false;
            }
            self.noted = Some(self.newest);
        }
        true
    }
}

/// The bit of a user; the last one stands for all that have no bit of their own.
fn user_bit(user: usize) -> u64 {
    1 << user.min(63)
}

/// What happened to the sessions of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionFigures {
    /// Sessions that exist.
    pub open: u64,
    /// Sessions made so far.
    pub created: u64,
    /// Sessions closed so far.
    pub closed: u64,
    /// Sessions refused, because of the limit or their keys.
    pub refused: u64,
    /// Most sessions the device may have.
    pub limit: u64,
}

/// The sessions of one device.
pub struct Sessions {
    limit: AtomicU32,
    /// The id of the session at each place; 0: none.
    live: Box<[OnceLock<Box<[AtomicU32]>>]>,
    table: Mutex<Table>,
    vault: Option<DeviceVault>,
    account: Account,
    created: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
}

impl Sessions {
    /// Room for `limit` sessions, at least 1 and at most [`MAX_SESSIONS`].
    /// Each is put into the vault, if there is one, for a process that takes over.
    pub fn new(limit: u32, vault: Option<DeviceVault>) -> Self {
        let noted = vault.as_ref().and_then(DeviceVault::generation);
        Self {
            limit: AtomicU32::new(limit.clamp(1, MAX_SESSIONS)),
            live: (0..MAX_SESSIONS as usize / CHUNK).map(|_| OnceLock::new()).collect(),
            table: Mutex::new(Table::new(noted)),
            vault,
            account: Account::open(),
            created: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Most sessions from now on. Those beyond it stay, but there will be no others.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit.clamp(1, MAX_SESSIONS), Ordering::Relaxed);
    }

    /// What all keys of the device are charged to.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Most sessions.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Makes a session, asked for by the request `origin`. The caller wipes its copy of the key.
    pub fn create(&self, spec: &KeySpec<'_>, origin: Origin) -> Result<SessionId, SessionError> {
        let made = Prepared::on(&self.account, spec).map_err(SessionError::Key).and_then(|key| {
            let mut table = self.lock();
            let index = table.take_place(self.limit())?;
            let generation = table.places[index as usize].generation;
            let noted = table.note(generation, self.vault.as_ref());
            let id = SessionId::of(index, generation);
            let record = |vault: &DeviceVault| noted && vault.put(id.wire(), origin, spec).is_ok();
            self.install(&mut table, id, key, record)
        });
        self.created.fetch_add(u64::from(made.is_ok()), Ordering::Relaxed);
        self.refused.fetch_add(u64::from(made.is_err()), Ordering::Relaxed);
        made
    }

    /// Makes a session that a predecessor had, under its id. It is not recorded again.
    pub fn restore(&self, id: SessionId, spec: &KeySpec<'_>) -> Result<(), SessionError> {
        let refused = SessionError::Restore(id.wire());
        let (index, generation) = (id.index(), id.0 >> INDEX_BITS);
        if generation == 0 {
            return Err(refused);
        }
        let key = Prepared::on(&self.account, spec)?;
        let mut table = self.lock();
        while table.places.len() <= index as usize {
            let unused = table.places.len() as u32;
            let generation = table.newest;
            table.places.push(Place { generation, key: None, cached_by: 0 });
            table.free.push_back(unused);
        }
        if table.places[index as usize].key.is_some() {
            return Err(refused);
        }
        table.places[index as usize].generation = generation;
        self.install(&mut table, id, key, |_| true).map(|_| self.count_created())
    }

    fn count_created(&self) {
        self.created.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts the key where `id` says. A place that has no room in the vault goes back to the free ones.
    fn install(
        &self,
        table: &mut Table,
        id: SessionId,
        key: Arc<Prepared>,
        record: impl FnOnce(&DeviceVault) -> bool,
    ) -> Result<SessionId, SessionError> {
        let index = id.index();
        if !self.vault.as_ref().is_none_or(record) {
            table.free.push_back(index);
            return Err(SessionError::Unrecorded);
        }
        let place = &mut table.places[index as usize];
        (place.key, place.cached_by) = (Some(key), 0);
        table.open += 1;
        // Release: whoever sees the word finds the session.
        self.word(index).store(id.0, Ordering::Release);
        Ok(id)
    }

    /// Closes a session: requests that name it from now on are refused, those in flight end as if nothing had happened.
    /// `false` when there is no such session.
    pub fn close(&self, id: SessionId) -> bool {
        let key = self.remove(&mut self.lock(), id);
        // Dropped without the lock: wiping takes its time.
        key.is_some()
    }

    /// Closes all sessions: the frontend has gone, or the driver has reset the device.
    pub fn close_all(&self) {
        let mut table = self.lock();
        let open = |(index, place): (usize, &Place)| {
            place.key.is_some().then(|| SessionId::of(index as u32, place.generation))
        };
        let ids: Vec<SessionId> = table.places.iter().enumerate().filter_map(open).collect();
        let keys: Vec<_> = ids.into_iter().map(|id| self.remove(&mut table, id)).collect();
        if let Some(vault) = &self.vault {
            vault.clear();
        }
        drop(table);
        drop(keys);
    }

    fn remove(&self, table: &mut Table, id: SessionId) -> Option<Arc<Prepared>> {
        let index = id.index();
        let place = table.places.get_mut(index as usize)?;
        if SessionId::of(index, place.generation) != id {
            return None;
        }
        let key = place.key.take()?;
        place.generation = next_generation(place.generation);
        let cached_by = std::mem::take(&mut place.cached_by);
        self.word(index).store(0, Ordering::Release);
        table.free.push_back(index);
        table.open -= 1;
        self.closed.fetch_add(1, Ordering::Relaxed);
        if let Some(vault) = &self.vault {
            vault.remove(id.wire());
        }
        for (user, inbox) in table.users.iter().enumerate() {
            if let Some(inbox) = inbox
                && cached_by & user_bit(user) != 0
            {
                lock(&inbox.closed).push(id);
                inbox.bell.ring();
            }
        }
        Some(key)
    }

    /// What there is and has been.
    pub fn figures(&self) -> SessionFigures {
        SessionFigures {
            open: self.lock().open.into(),
            created: self.created.load(Ordering::Relaxed),
            closed: self.closed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            limit: self.limit().into(),
        }
    }

    /// Sessions that exist.
    pub fn open(&self) -> u32 {
        self.lock().open
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    fn word(&self, index: u32) -> &AtomicU32 {
        let chunk =
            self.live[index as usize / CHUNK].get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect());
        &chunk[index as usize % CHUNK]
    }

    /// Whether the session exists. Wait-free.
    #[inline]
    fn is_live(&self, id: SessionId) -> bool {
        let index = id.index() as usize;
        let chunk = self.live.get(index / CHUNK).and_then(OnceLock::get);
        // Acquire: pairs with the Release in `install`.
        chunk.is_some_and(|chunk| chunk[index % CHUNK].load(Ordering::Acquire) == id.0)
    }
}

/// The last generation, after which the first one comes again.
const LAST_GENERATION: u32 = (1 << (ID_BITS - INDEX_BITS)) - 1;

fn next_generation(generation: u32) -> u32 {
    if generation >= LAST_GENERATION { 1 } else { generation + 1 }
}

/// Whether a generation comes after another one, on the shorter way around.
fn is_newer(generation: u32, than: u32) -> bool {
    let ahead = (generation + LAST_GENERATION - than) % LAST_GENERATION;
    (1..=LAST_GENERATION / 2).contains(&ahead)
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session in the cache of a worker.
#[derive(Default)]
struct Cached {
    /// 0: nothing is here.
    id: u32,
    in_flight: u32,
    closed: bool,
    key: Option<Arc<Prepared>>,
}

impl Cached {
    fn let_go(&mut self, gone: &mut Vec<KeyId>) {
        gone.extend(std::mem::take(self).key.map(|key| key.id()));
    }
}

/// What one worker knows of the sessions of one device.
pub struct Cache {
    sessions: Arc<Sessions>,
    user: usize,
    inbox: Arc<Inbox>,
    /// By place.
    entries: Vec<Cached>,
    /// Closed ones whose place was given away again while they had requests in flight.
    retired: Vec<Cached>,
    /// Keys let go of, which engines may still know by name.
    gone: Vec<KeyId>,
}

impl Cache {
    /// An empty cache; `bell` is rung when there are sessions to let go of.
    pub fn new(sessions: Arc<Sessions>, bell: Arc<Bell>) -> Self {
        let inbox = Arc::new(Inbox { closed: Mutex::default(), bell });
        let user = {
            let mut table = sessions.lock();
            let vacant = table.users.iter().position(Option::is_none);
            let user = vacant.unwrap_or(table.users.len());
            match vacant {
                Some(user) => table.users[user] = Some(inbox.clone()),
                None => table.users.push(Some(inbox.clone())),
            }
            user
        };
        Self { sessions, user, inbox, entries: Vec::new(), retired: Vec::new(), gone: Vec::new() }
    }

    /// Begins a request of a session: its keys, until [`release`](Self::release). `None` when there is no such session.
    #[inline]
    pub fn acquire(&mut self, id: SessionId) -> Option<&Arc<Prepared>> {
        if !self.sessions.is_live(id) {
            return None;
        }
        let index = id.index() as usize;
        if self.entries.get(index).is_none_or(|entry| entry.id != id.0) {
            self.fetch(id, index)?;
        }
        let entry = &mut self.entries[index];
        entry.in_flight += 1;
        entry.key.as_ref()
    }

    /// The keys of a session that has a request in flight here.
    #[inline]
    pub fn get(&self, id: SessionId) -> Option<&Arc<Prepared>> {
        let entry = self.entries.get(id.index() as usize)?;
        entry.key.as_ref().filter(|_| entry.id == id.0)
    }

    /// Ends a request of a session that [`acquire`](Self::acquire) began.
    #[inline]
    pub fn release(&mut self, id: SessionId) {
        let index = id.index() as usize;
        match self.entries.get_mut(index) {
            Some(entry) if entry.id == id.0 => {
                debug_assert!(entry.in_flight > 0, "released more often than acquired");
                entry.in_flight = entry.in_flight.saturating_sub(1);
                if entry.closed && entry.in_flight == 0 {
                    entry.let_go(&mut self.gone);
                }
            }
            _ => self.release_retired(id),
        }
    }

    /// Lets go of the sessions that were closed since the last time. For when the bell has rung.
    pub fn sweep(&mut self) {
        let closed = std::mem::take(&mut *lock(&self.inbox.closed));
        for id in closed {
            let index = id.index() as usize;
            let entry = self.entries.get_mut(index).filter(|entry| entry.id == id.0);
            if let Some(entry) = entry {
                entry.closed = true;
                if entry.in_flight == 0 {
                    entry.let_go(&mut self.gone);
                }
            }
        }
    }

    /// Lets go of every session: the device is removed, and nothing is in flight.
    pub fn clear(&mut self) {
        let Self { entries, retired, gone, .. } = self;
        entries.drain(..).chain(retired.drain(..)).for_each(|mut entry| entry.let_go(gone));
    }

    /// Calls `forget` for each key that the cache has let go of since the last time.
    #[inline]
    pub fn forgotten(&mut self, forget: impl FnMut(KeyId)) {
        if !self.gone.is_empty() {
            self.gone.drain(..).for_each(forget);
        }
    }

    /// The device's sessions.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Keys that the cache holds.
    pub fn held(&self) -> usize {
        self.entries.iter().chain(&self.retired).filter(|entry| entry.key.is_some()).count()
    }

    /// The first use of a session by this worker.
    #[cold]
    fn fetch(&mut self, id: SessionId, index: usize) -> Option<()> {
        let key = {
            let mut table = self.sessions.lock();
            let place = table.places.get_mut(index)?;
            let generation = place.generation;
            // It may have been closed since the word was looked at.
            let key = place.key.clone().filter(|_| SessionId::of(index as u32, generation) == id)?;
            place.cached_by |= user_bit(self.user);
            key
        };
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, Cached::default);
        }
        let new = Cached { id: id.0, in_flight: 0, closed: false, key: Some(key) };
        let mut old = std::mem::replace(&mut self.entries[index], new);
        if old.in_flight > 0 {
            self.retired.push(old);
        } else {
            old.let_go(&mut self.gone);
        }
        Some(())
    }

    #[cold]
    fn release_retired(&mut self, id: SessionId) {
        let place = self.retired.iter().position(|entry| entry.id == id.0);
        debug_assert!(place.is_some(), "released without having been acquired");
        let Some(place) = place else { return };
        self.retired[place].in_flight -= 1;
        if self.retired[place].in_flight == 0 {
            self.retired.swap_remove(place).let_go(&mut self.gone);
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.sessions.lock().users[self.user] = None;
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
