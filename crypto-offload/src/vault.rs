//! Sessions that survive the worker process (`--supervise`): in memory that the keeper holds, the next one finds them.
//!
//! The guest keeps using the ids it was given, and nobody but it and this memory has the keys. So a session is put here before
//! anybody hears of its id, and wiped here when it is closed.
//!
//! # Layout
//!
//! A page with a head, then slots of 256 bytes. A session takes as many slots in a row as it needs: a head, the
//! algorithm and the keys. A process can be killed between any two stores, so a session counts from the moment
//! its state is set, which is the last store, until it is cleared, which is the first one of its end. Whatever does not count
//! is wiped when the memory is opened. What lies in the middle of such a remnant is looked at, too, and may be of a guest's
//! making, as the bytes of an asymmetric key are: it does not pass for a session of anybody, because guests do not know the
//! number that all checksums begin with.
//!
//! # Once and no more
//!
//! A request that was under way when a process died comes again, and must not make a second session. Each session has the
//! [`Origin`] of the request that made it: the number of the message, which the keeper repeats, or the place of a request in the
//! control queue, as long as it may come again.
//!
//! The id of a closed session is not given to another one soon, in the next process either: each device has a record of its own
//! that says which generation its ids have got to.

mod holes;
mod memory;
mod spec;

use self::holes::Holes;
use self::memory::Locked;
use crate::engine::KeySpec;
use crate::journal::{Journals, device_key};
use crate::keys::Secret;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// There is no room for another session, or none that can be locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("The vault is full")]
pub struct VaultFull;

/// Which request made a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Origin(u64);

impl Origin {
    /// Nothing that could come again.
    pub const NONE: Self = Self(0);

    /// A `CREATE_CRYPTO_SESSION` message, by what its `session_id` field held on the way in: the keeper numbers them there.
    /// 0 is nothing that could come again.
    pub fn message(number: u64) -> Self {
        Self(number & !CONTROL)
    }

    /// A request on the control queue, by its token's id. It may come again until [`DeviceVault::settle`].
    pub fn control(id: u16) -> Self {
        Self(CONTROL | u64::from(id))
    }
}

/// Marks origins on the control queue.
const CONTROL: u64 = 1 << 63;
/// Bytes of a slot.
const SLOT: usize = 256;
/// Where the slots begin.
const FIRST: usize = 4096;
/// The first bytes of a memory that was used, the version of the layout among them.
const MAGIC: [u8; 8] = *b"vhvault1";
/// The longest record: the private half of the longest RSA key takes less than 5 KiB.
const LONGEST: usize = 16 << 10;
/// In place of an id, which are shorter: what is known of the device itself.
const DEVICE: u64 = u64::MAX;
/// The state of a record that counts.
const LIVE: u32 = 1;

/// The start of the memory.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Start {
    magic: [u8; 8],
    /// Slots below this one have been used.
    used: u64,
    /// What the checksums begin with: random.
    salt: u64,
}

/// Offset of [`Start::used`].
const USED: usize = 8;

/// The start of a record. `state` is stored by itself.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Head {
    state: u32,
    slots: u32,
    device: u64,
    id: u64,
    origin: u64,
    len: u64,
    /// Of everything but state and origin: a process that dies of a stray store may have hit this memory, too.
    check: u64,
}

/// Offset of [`Head::origin`], which in the record of a device is the generation of its ids.
const ORIGIN: usize = 24;

impl Head {
    fn sum(&self, salt: u64, bytes: &[u8]) -> u64 {
        let start = [u64::from(self.slots), self.device, self.id, self.len];
        let words = start.iter().flat_map(|word| word.to_ne_bytes()).chain(bytes.iter().copied());
        // FNV-1a, 64 bits.
        let basis = 0xcbf2_9ce4_8422_2325 ^ salt;
        words.fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// The memory, shared by all devices.
#[derive(Clone)]
pub struct Vault {
    shelf: Arc<Mutex<Shelf>>,
    journals: Option<Journals>,
}

impl Vault {
    /// Maps the memory and finds what a predecessor left in it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { shelf: Arc::new(Mutex::new(Shelf::open(fd)?)), journals: None })
    }

    /// What else there is to forget of a device whose sessions are all forgotten.
    pub fn with(self, journals: &Journals) -> Self {
        Self { journals: Some(journals.clone()), ..self }
    }

    /// The sessions of one device.
    pub fn device(&self, name: &str) -> DeviceVault {
        DeviceVault { vault: self.clone(), device: device_key(name) }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sessions of one device. Any thread; a call takes a lock for about a microsecond.
#[derive(Clone)]
pub struct DeviceVault {
    vault: Vault,
    device: u64,
}

impl DeviceVault {
    /// Records a session. To be called before anybody hears of its id.
    pub fn put(&self, id: u64, origin: Origin, spec: &KeySpec<'_>) -> Result<(), VaultFull> {
        let bytes = spec::encode(spec).map_err(|_| VaultFull)?;
        self.vault.lock().put((self.device, id), origin, &bytes)
    }

    /// Forgets a session and wipes its keys.
    pub fn remove(&self, id: u64) {
        self.vault.lock().remove((self.device, id));
    }

    /// Forgets all sessions, and what was left of requests: the frontend is gone, or has reset the device.
    pub fn clear(&self) {
        if let Some(journals) = &self.vault.journals {
            journals.forget(self.device);
        }
        let mut shelf = self.vault.lock();
        let all: Vec<_> = shelf.of(self.device).collect();
        all.into_iter().for_each(|id| shelf.remove((self.device, id)));
    }

    /// The session that this request has made already.
    pub fn find(&self, origin: Origin) -> Option<u64> {
        self.vault.lock().origins.get(&(self.device, origin)).copied()
    }

    /// The control queue has published what it answered, and has taken nothing since: none of the requests that have made
    /// sessions can come again.
    pub fn settle(&self) {
        self.vault.lock().settle(self.device);
    }

    /// The newest generation of ids that was noted, by whatever process.
    pub fn generation(&self) -> Option<u32> {
        self.vault.lock().generation(self.device)
    }

    /// Notes a generation of ids. To be called before anybody hears of such an id.
    pub fn note_generation(&self, generation: u32) -> Result<(), VaultFull> {
        self.vault.lock().note_generation(self.device, generation)
    }

    /// What the predecessor left.
    pub fn entries(&self) -> Vec<Entry> {
        let shelf = self.vault.lock();
        shelf.of(self.device).filter_map(|id| shelf.entry((self.device, id))).collect()
    }
}

/// A recorded session.
pub struct Entry {
    id: u64,
    bytes: Secret,
}

impl Entry {
    /// Its id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its algorithm and keys; `None` when they are of a version that this program does not know.
    pub fn spec(&self) -> Option<KeySpec<'_>> {
        spec::decode(&self.bytes)
    }
}

/// A session: device and id.
type Name = (u64, u64);

/// The memory and what is known of it.
struct Shelf {
    memory: Locked,
    salt: u64,
    /// Slots there are.
    slots: usize,
    /// Slots below this one are in use, but for the holes. The last of them is no hole.
    used: usize,
    holes: Holes,
    /// The first slot and the number of slots of each session.
    records: BTreeMap<Name, (usize, usize)>,
    origins: HashMap<(u64, Origin), u64>,
    /// Sessions of the control queue whose requests may come again.
    unsettled: HashMap<u64, Vec<u64>>,
}

impl Shelf {
    fn open(fd: OwnedFd) -> io::Result<Self> {
        let memory = Locked::map(fd)?;
        let slots = memory.len().checked_sub(FIRST).map_or(0, |room| room / SLOT);
        if slots == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the vault's memory is too small"));
        }
        let mut shelf = Self {
            memory,
            salt: 0,
            slots,
            used: 0,
            holes: Holes::default(),
            records: BTreeMap::new(),
            origins: HashMap::new(),
            unsettled: HashMap::new(),
        };
        shelf.memory.lock(0, FIRST)?;
        let start: Start = shelf.memory.read(0);
        if start.magic == MAGIC {
            shelf.used = usize::try_from(start.used).unwrap_or(slots).min(slots);
            shelf.salt = start.salt;
            shelf.memory.lock(FIRST, shelf.used * SLOT)?;
            shelf.recover();
        } else {
            shelf.salt = memory::random()?;
            shelf.memory.write(0, &Start { magic: MAGIC, used: 0, salt: shelf.salt });
        }
        Ok(shelf)
    }

    /// Lists the records, and wipes what is not one.
    fn recover(&mut self) {
        let mut slot = 0;
        while slot < self.used {
            match self.read_record(slot) {
                Some((head, _)) if !self.records.contains_key(&(head.device, head.id)) => {
                    self.list(slot, &head);
                    slot += head.slots as usize;
                }
                _ => {
                    self.memory.wipe(offset(slot), SLOT);
                    self.holes.give(slot, 1);
                    slot += 1;
                }
            }
        }
        self.trim();
    }

    /// The record that begins at a slot, if one does.
    fn read_record(&self, slot: usize) -> Option<(Head, Secret)> {
        let head: Head = self.memory.read(offset(slot));
        let (slots, len) = (head.slots as usize, usize::try_from(head.len).ok()?);
        let fits = len <= LONGEST && slots == slots_of(len) && slot + slots <= self.used;
        if head.state != LIVE || !fits {
            return None;
        }
        let mut bytes = Secret::zeroed(len).ok()?;
        self.memory.read_bytes(offset(slot) + size_of::<Head>(), &mut bytes);
        (head.sum(self.salt, &bytes) == head.check).then_some((head, bytes))
    }

    fn list(&mut self, slot: usize, head: &Head) {
        self.records.insert((head.device, head.id), (slot, head.slots as usize));
        if head.id == DEVICE {
            return;
        }
        if head.origin != Origin::NONE.0 {
            self.origins.insert((head.device, Origin(head.origin)), head.id);
        }
        if head.origin & CONTROL != 0 {
            self.unsettled.entry(head.device).or_default().push(head.id);
        }
    }

    fn put(&mut self, name: Name, origin: Origin, bytes: &[u8]) -> Result<(), VaultFull> {
        self.remove(name);
        self.outdate((name.0, origin));
        let slots = slots_of(bytes.len());
        if bytes.len() > LONGEST {
            return Err(VaultFull);
        }
        let slot = match self.holes.take(slots) {
            Some(slot) => slot,
            None => self.append(slots)?,
        };
        let (device, id) = name;
        let (slots, len) = (slots as u32, bytes.len() as u64);
        let mut head = Head { state: 0, slots, device, id, origin: origin.0, len, check: 0 };
        head.check = head.sum(self.salt, bytes);
        self.memory.write(offset(slot), &head);
        self.memory.write_bytes(offset(slot) + size_of::<Head>(), bytes);
        self.memory.commit(offset(slot), LIVE);
        self.list(slot, &head);
        Ok(())
    }

    /// So many slots behind those in use.
    fn append(&mut self, slots: usize) -> Result<usize, VaultFull> {
        let slot = self.used;
        if slots > self.slots - slot {
            return Err(VaultFull);
        }
        if let Err(error) = self.memory.lock(offset(slot), slots * SLOT) {
            tracing::warn!(%error, "no more memory can be locked for the keys of sessions (LimitMEMLOCK=, ulimit -l)");
            return Err(VaultFull);
        }
        // Before anything is there: what the next process does not look at is not wiped either.
        self.set_used(slot + slots);
        Ok(slot)
    }

    fn set_used(&mut self, used: usize) {
        self.used = used;
        self.memory.write(USED, &(used as u64));
    }

    /// What is free at the end is not in use.
    fn trim(&mut self) {
        if let Some(start) = self.holes.take_before(self.used) {
            self.set_used(start);
        }
    }

    fn remove(&mut self, name: Name) {
        let Some((slot, slots)) = self.records.remove(&name) else { return };
        let origin = (name.0, Origin(self.memory.read(offset(slot) + ORIGIN)));
        if self.origins.get(&origin) == Some(&name.1) {
            self.origins.remove(&origin);
        }
        self.memory.commit(offset(slot), 0);
        self.memory.wipe(offset(slot), slots * SLOT);
        self.holes.give(slot, slots);
        self.trim();
    }

    fn generation(&self, device: u64) -> Option<u32> {
        let (slot, _) = self.records.get(&(device, DEVICE))?;
        let noted: u64 = self.memory.read(offset(*slot) + ORIGIN);
        u32::try_from(noted).ok().filter(|generation| *generation > 0)
    }

    fn note_generation(&mut self, device: u64, generation: u32) -> Result<(), VaultFull> {
        let name = (device, DEVICE);
        if !self.records.contains_key(&name) {
            self.put(name, Origin::NONE, &[])?;
        }
        let (slot, _) = self.records.get(&name).ok_or(VaultFull)?;
        self.memory.write(offset(*slot) + ORIGIN, &u64::from(generation));
        Ok(())
    }

    fn settle(&mut self, device: u64) {
        for id in self.unsettled.remove(&device).unwrap_or_default() {
            let Some((slot, _)) = self.records.get(&(device, id)) else { continue };
            let at = offset(*slot) + ORIGIN;
            self.origins.remove(&(device, Origin(self.memory.read(at))));
            self.memory.write(at, &Origin::NONE.0);
        }
    }

    /// Another request comes from where one has made a session: the older one was published after all, and does not come again.
    fn outdate(&mut self, origin: (u64, Origin)) {
        if let Some(id) = self.origins.remove(&origin)
            && let Some((slot, _)) = self.records.get(&(origin.0, id))
        {
            self.memory.write(offset(*slot) + ORIGIN, &Origin::NONE.0);
        }
    }

    /// The ids of a device's sessions.
    fn of(&self, device: u64) -> impl Iterator<Item = u64> + '_ {
        self.records.range((device, 0)..(device, DEVICE)).map(|((_, id), _)| *id)
    }

    fn entry(&self, name: Name) -> Option<Entry> {
        let (slot, _) = self.records.get(&name)?;
        let (_, bytes) = self.read_record(*slot)?;
        Some(Entry { id: name.1, bytes })
    }
}

fn offset(slot: usize) -> usize {
    FIRST + slot * SLOT
}

fn slots_of(len: usize) -> usize {
    (size_of::<Head>() + len).div_ceil(SLOT)
}

#[cfg(test)]
mod tests;
