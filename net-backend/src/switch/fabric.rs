//! What all workers share: the address table, the token buckets, the guests' receive filters, the mirror files.

use super::limit::PortBuckets;
use super::mirror::Capture;
use super::policy::{MirrorTarget, Policy, PortName};
use super::ports::{MAX_PORTS, PortId};
use super::receive::ReceiveFilter;
use super::table::{Census, Entry, MacTable, Moment, TableError};
use crate::frame::MacAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Addresses the table has room for, unless told otherwise.
pub const DEFAULT_TABLE_SIZE: usize = 32_768;

/// How long a mirror file may take to end before another one with its name begins.
const FINISH: Duration = Duration::from_secs(1);

/// The receive filter of one port. The number tells workers that it changed; 0: it takes everything.
#[derive(Debug, Default)]
struct Receive {
    changed: AtomicU32,
    filter: Mutex<(u32, Arc<ReceiveFilter>)>,
}

/// What the policy in force put into the fabric.
#[derive(Debug, Default)]
struct Adopted {
    statics: BTreeMap<PortId, BTreeSet<(u16, MacAddr)>>,
    captures: BTreeMap<PathBuf, Capture>,
    aging: u32,
}

/// One a process.
#[derive(Debug)]
pub struct Fabric {
    pub(super) table: MacTable,
    buckets: Box<[PortBuckets]>,
    receive: Box<[Receive]>,
    adopted: Mutex<Adopted>,
}

/// Why a policy could not be put into force.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A static address of one port that was given to another by hand.
    #[error("Port {port}: mac: {mac} is a static address of port {other} in VLAN {vlan}")]
    Taken {
        /// Whose it should be.
        port: PortName,
        /// Which one.
        mac: MacAddr,
        /// Whose it is.
        other: PortName,
        /// VLAN; 0 is the untagged one of open ports.
        vlan: u16,
    },
    /// Any other trouble with a static address.
    #[error("{0}")]
    Table(TableError),
    /// A mirror file.
    #[error("The mirror file {path} cannot be written: {source}", path = .path.display())]
    Capture {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A static address of a port that the table did not take.
struct Refused {
    port: PortId,
    why: TableError,
}

impl Refused {
    fn in_policy(self, policy: &Policy) -> AdoptError {
        match self.why {
            TableError::Taken { vlan, mac, port } => {
                let [port, other] = [self.port, port].map(|port| policy.port_name(port));
                AdoptError::Taken { port, mac, other, vlan }
            }
            why => AdoptError::Table(why),
        }
    }
}

/// A lock whose holder cannot leave anything half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fabric {
    /// Room for at least `capacity` addresses, rounded up.
    pub fn new(capacity: usize) -> Self {
        Self {
            table: MacTable::new(capacity),
            buckets: (0..MAX_PORTS).map(|_| PortBuckets::default()).collect(),
            receive: (0..MAX_PORTS).map(|_| Receive::default()).collect(),
            adopted: Mutex::default(),
        }
    }

    /// Makes static addresses and mirror files those of `policy`, and forgets all about ports that it does not have. Called by
    /// the application for every new policy, before the workers get it; on an error nothing has changed, but that a mirror file whose
    /// options changed has ended.
    pub fn adopt(&self, policy: &Policy) -> Result<(), AdoptError> {
        let mut adopted = locked(&self.adopted);
        let captures = open_captures(policy, &adopted.captures)?;
        let statics = policy.ports().iter().map(|(port, policy)| (*port, policy.static_entries().collect()));
        let statics: BTreeMap<PortId, BTreeSet<_>> = statics.collect();
        let old = std::mem::take(&mut adopted.statics);
        if let Err(error) = self.replace_statics(&old, &statics) {
            // What was there before fitted.
            let _ = self.replace_statics(&statics, &old);
            adopted.statics = old;
            return Err(error.in_policy(policy));
        }
        for gone in old.keys().filter(|port| !statics.contains_key(port)) {
            self.forget(*gone);
        }
        *adopted = Adopted { statics, captures, aging: policy.compiled.aging };
        Ok(())
    }

    fn replace_statics(
        &self,
        old: &BTreeMap<PortId, BTreeSet<(u16, MacAddr)>>,
        new: &BTreeMap<PortId, BTreeSet<(u16, MacAddr)>>,
    ) -> Result<(), Refused> {
        let none = BTreeSet::new();
        for (port, entries) in old {
            for (vlan, mac) in entries.difference(new.get(port).unwrap_or(&none)) {
                if self.table.static_port(*vlan, *mac) == Some(*port) {
                    self.table.remove(*vlan, *mac);
                }
            }
        }
        for (port, entries) in new {
            for (vlan, mac) in entries {
                let added = self.table.add_static(*vlan, *mac, *port, Moment::new(0, 0));
                added.map_err(|why| Refused { port: *port, why })?;
            }
        }
        Ok(())
    }

    fn forget(&self, port: PortId) {
        self.table.forget(port);
        self.buckets(port).clear();
        self.set_receive_filter(port, ReceiveFilter::default());
    }

    /// Sets what the guest of a port wants to receive; every worker obeys from its next frame on. Any thread.
    pub fn set_receive_filter(&self, port: PortId, filter: ReceiveFilter) {
        let Some(receive) = self.receive.get(port.index()) else { return };
        let open = filter.is_open();
        let mut current = locked(&receive.filter);
        let number = current.0.wrapping_add(1).max(1);
        *current = (number, Arc::new(filter));
        receive.changed.store(if open { 0 } else { number }, Relaxed);
    }

    /// What the guest of a port wants to receive.
    pub fn receive_filter(&self, port: PortId) -> ReceiveFilter {
        let receive = self.receive.get(port.index());
        receive.map(|receive| (*locked(&receive.filter).1).clone()).unwrap_or_default()
    }

    /// The number of the port's receive filter; 0: it takes everything.
    #[inline]
    pub(super) fn receive_number(&self, port: PortId) -> u32 {
        self.receive.get(port.index()).map_or(0, |receive| receive.changed.load(Relaxed))
    }

    pub(super) fn numbered_filter(&self, port: PortId) -> (u32, Arc<ReceiveFilter>) {
        let receive = &self.receive[port.index() % MAX_PORTS];
        locked(&receive.filter).clone()
    }

    pub(super) fn buckets(&self, port: PortId) -> &PortBuckets {
        &self.buckets[port.index() % MAX_PORTS]
    }

    fn moment(&self, now_ns: u64) -> Moment {
        Moment::new(now_ns, locked(&self.adopted).aging)
    }

    /// Forgets the learned addresses of a port, or of all; returns how many.
    pub fn flush(&self, port: Option<PortId>) -> usize {
        self.table.flush(port)
    }

    /// Clears entries that are too old; returns how many. The switch does not need it: they are not used any more, and are replaced.
    /// It keeps the figures of [`census`](Self::census) current.
    pub fn age(&self, now_ns: u64) -> usize {
        self.table.age(self.moment(now_ns))
    }

    /// All addresses, by VLAN and address.
    pub fn entries(&self, now_ns: u64) -> Vec<Entry> {
        self.table.entries(self.moment(now_ns))
    }

    /// Addresses there can be at most.
    pub fn capacity(&self) -> usize {
        self.table.slots()
    }

    /// Adds a static address, in place of a learned one.
    pub fn add_static(&self, vlan: u16, mac: MacAddr, port: PortId, now_ns: u64) -> Result<(), TableError> {
        self.table.add_static(vlan, mac, port, self.moment(now_ns))
    }

    /// Removes an address, static or learned; false: there was none.
    pub fn remove(&self, vlan: u16, mac: MacAddr) -> bool {
        self.table.remove(vlan, mac)
    }

    /// How many addresses a port has learned.
    pub fn census(&self, port: PortId) -> Census {
        self.table.census(port)
    }

    /// The mirror files that are open.
    pub fn captures(&self) -> Vec<Capture> {
        locked(&self.adopted).captures.values().cloned().collect()
    }

    /// Ends all mirror files and waits until what was recorded is in them, this long at most for each: before the process ends.
    pub fn finish_captures(&self, patience: Duration) {
        for capture in self.captures() {
            capture.finish(patience);
        }
    }

    pub(super) fn capture(&self, path: &PathBuf) -> Option<Capture> {
        locked(&self.adopted).captures.get(path).cloned()
    }
}

/// The files the policy names: those that are open already go on.
fn open_captures(
    policy: &Policy,
    open: &BTreeMap<PathBuf, Capture>,
) -> Result<BTreeMap<PathBuf, Capture>, AdoptError> {
    let names = policy.ports().iter().map(|(port, policy)| (*port, policy.name.clone()));
    let names: BTreeMap<PortId, String> = names.collect();
    let mut captures = BTreeMap::new();
    for mirror in policy.ports().values().filter_map(|policy| policy.mirror.as_ref()) {
        let MirrorTarget::File(options) = &mirror.to else { continue };
        if captures.contains_key(&options.path) {
            continue;
        }
        let failed = |source| AdoptError::Capture { path: options.path.clone(), source };
        let capture = match open.get(&options.path) {
            Some(capture) if capture.options() == options => capture.clone(),
            Some(other) => {
                // With other options the file begins anew, and two writers must not have it.
                other.finish(FINISH);
                Capture::open(options).map_err(failed)?
            }
            None => Capture::open(options).map_err(failed)?,
        };
        capture.name_ports(&names);
        captures.insert(options.path.clone(), capture);
    }
    Ok(captures)
}
