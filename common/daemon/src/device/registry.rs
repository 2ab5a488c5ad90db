//! The devices of a process that are being served, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::control::RpcError;
use crate::{Failure, Supervisor};

/// How long removing a device waits for what it has in flight.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// The devices that are served; `T` is one of them, as the device crate knows it.
pub struct Devices<T> {
    noun: &'static str,
    served: Mutex<BTreeMap<String, Arc<T>>>,
    supervisor: OnceLock<Arc<Supervisor>>,
    change: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Devices<T> {
    /// None yet. `noun` is what one is called in sentences: `disk`, `port`.
    pub fn new(noun: &'static str) -> Self {
        Self { noun, served: Mutex::default(), supervisor: OnceLock::new(), change: Mutex::default() }
    }

    /// The process has started: from now on there is somebody who serves.
    pub fn started(&self, supervisor: &Arc<Supervisor>) {
        // Set once: a process starts once.
        let _ = self.supervisor.set(supervisor.clone());
    }

    /// Who starts and ends sessions.
    pub fn supervisor(&self) -> Result<&Arc<Supervisor>, Failure> {
        self.supervisor.get().ok_or_else(|| Failure::runtime("Not started"))
    }

    /// To be held while devices are added or changed, so that two clients do not interfere. [`remove`](Self::remove) takes it
    /// itself.
    pub fn changing(&self) -> MutexGuard<'_, ()> {
        lock(&self.change)
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.served).values().cloned().collect()
    }

    /// One of them.
    pub fn find(&self, id: &str) -> Result<Arc<T>, RpcError> {
        let found = lock(&self.served).get(id).cloned();
        found.ok_or_else(|| RpcError::refused(format!("There is no {} '{id}'", self.noun)))
    }

    /// Refuses a name that is taken.
    pub fn check_new(&self, id: &str) -> Result<(), Failure> {
        match self.find(id) {
            Ok(_) => Err(Failure::usage(format!("There is a {} '{id}' already", self.noun))),
            Err(_) => Ok(()),
        }
    }

    /// One more is being served.
    pub fn insert(&self, id: String, device: T) {
        lock(&self.served).insert(id, Arc::new(device));
    }

    /// Ends the session of one, which finishes what is in flight, and forgets it. `check` may refuse; `after` does what else
    /// there is to do before somebody may add another.
    pub fn remove(
        &self,
        id: &str,
        check: impl FnOnce() -> Result<(), RpcError>,
        after: impl FnOnce() -> Result<(), RpcError>,
    ) -> Result<(), RpcError> {
        let _change = self.changing();
        self.find(id)?;
        check()?;
        let supervisor = self.supervisor().map_err(|failure| RpcError::internal(failure.to_string()))?;
        let stopped = supervisor.sessions().stop(id, Instant::now() + REMOVE_LIMIT);
        stopped.map_err(|error| RpcError::refused(error.to_string()))?;
        lock(&self.served).remove(id);
        after()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_name_and_its_name_is_taken() {
        let devices = Devices::new("lamp");
        devices.insert("b".into(), 2);
        devices.insert("a".into(), 1);
        assert_eq!(devices.all(), [Arc::new(1), Arc::new(2)]);
        assert_eq!(*devices.find("a").unwrap(), 1);
        assert_eq!(devices.find("c").unwrap_err().to_string(), "There is no lamp 'c'");
        assert!(devices.check_new("a").is_err() && devices.check_new("c").is_ok());
    }

    #[test]
    fn nothing_is_removed_that_is_not_there_or_not_allowed() {
        let devices = Devices::new("lamp");
        devices.insert("a".into(), 1);
        let refuse = || Err(RpcError::refused("It is needed"));
        assert_eq!(devices.remove("a", refuse, || Ok(())).unwrap_err().to_string(), "It is needed");
        assert!(devices.remove("b", || Ok(()), || Ok(())).is_err());
        assert_eq!(devices.all().len(), 1);
    }
}
