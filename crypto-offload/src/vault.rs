//! Sessions that survive the worker process: in memory that the keeper holds (`--supervise`), the next one finds them.

use crate::engine::KeySpec;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// There is no room for another session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("The vault is full")]
pub struct VaultFull;

/// Which request made a session, so that the same request, made again after a crash, makes no second one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin(u64);

impl Origin {
    /// Nothing that could come again.
    pub const NONE: Self = Self(0);

    /// A `CREATE_CRYPTO_SESSION` message, by what its `session_id` field held on the way in: the keeper numbers them there.
    /// 0 is nothing that could come again.
    pub fn message(number: u64) -> Self {
        Self(number & !CONTROL)
    }

    /// A request on the control queue, by its token's id.
    pub fn control(id: u16) -> Self {
        Self(CONTROL | u64::from(id))
    }
}

/// Marks origins on the control queue.
const CONTROL: u64 = 1 << 63;

/// The memory, shared by all devices.
#[derive(Clone)]
pub struct Vault(Arc<()>);

impl Vault {
    /// Maps the memory and finds what a predecessor left in it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        drop(fd);
        Ok(Self(Arc::new(())))
    }

    /// The sessions of one device.
    pub fn device(&self, name: &str) -> DeviceVault {
        let _ = name;
        DeviceVault(self.clone())
    }
}

/// The sessions of one device.
#[derive(Clone)]
pub struct DeviceVault(Vault);

impl DeviceVault {
    /// Records a session, before anybody hears of its id.
    pub fn put(&self, id: u64, origin: Origin, spec: &KeySpec<'_>) -> Result<(), VaultFull> {
        let _ = (id, origin, spec, &self.0.0);
        Ok(())
    }

    /// Forgets a session and wipes its keys.
    pub fn remove(&self, id: u64) {
        let _ = id;
    }

    /// Forgets all sessions.
    pub fn clear(&self) {}

    /// The session that this request has made already.
    pub fn find(&self, origin: Origin) -> Option<u64> {
        let _ = origin;
        None
    }

    /// The control queue has published what it answered: none of its requests so far can come again.
    pub fn settle(&self) {}

    /// What the predecessor left.
    pub fn entries(&self) -> Vec<Entry> {
        Vec::new()
    }
}

/// A recorded session.
pub struct Entry {
    id: u64,
    bytes: crate::keys::Secret,
}

impl Entry {
    /// Its id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its algorithm and keys.
    pub fn spec(&self) -> Option<KeySpec<'_>> {
        let _ = &self.bytes;
        None
    }
}
