//! What all workers share: the address table, the token buckets, the guests' receive filters.

use super::policy::Policy;
use super::ports::PortId;
use super::receive::ReceiveFilter;
use crate::frame::MacAddr;

/// One entry of the address table, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// VLAN; 0 is the untagged one of open ports.
    pub vlan: u16,
    /// Address.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
    /// Configured, not learned.
    #[serde(rename = "static")]
    pub fixed: bool,
    /// Seconds since it was last seen, roughly; 0 for static ones.
    pub age: u32,
}

/// Why an address was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Both of its buckets are full.
    #[error("The address table has no room for {mac} in VLAN {vlan}: make it larger (table-size)")]
    Full {
        /// VLAN.
        vlan: u16,
        /// Address.
        mac: MacAddr,
    },
    /// It is a static address of another port.
    #[error("{mac} is already a static address of port {port} in VLAN {vlan}")]
    Taken {
        /// VLAN.
        vlan: u16,
        /// Address.
        mac: MacAddr,
        /// Whose it is.
        port: PortId,
    },
    /// A group address or zero.
    #[error("{0} is not the address of a station")]
    NotUnicast(MacAddr),
}

/// One a process.
#[derive(Debug, Default)]
pub struct Fabric {}

impl Fabric {
    /// Room for at least `capacity` addresses, rounded up.
    pub fn new(_capacity: usize) -> Self {
        Self {}
    }

    /// Makes the static addresses those of `policy`, and forgets all about ports that it does not have. Called by
    /// the application for every new policy, before the workers get it.
    pub fn adopt(&self, _policy: &Policy) -> Result<(), TableError> {
        Ok(())
    }

    /// Sets what the guest of a port wants to receive; every worker obeys from its next frame on.
    pub fn set_receive_filter(&self, _port: PortId, _filter: ReceiveFilter) {}

    /// Forgets the learned addresses of a port, or of all; returns how many.
    pub fn flush(&self, _port: Option<PortId>) -> usize {
        0
    }

    /// All addresses, by VLAN and address.
    pub fn entries(&self, _now_ns: u64) -> Vec<Entry> {
        Vec::new()
    }

    /// Adds a static address, in place of a learned one.
    pub fn add_static(&self, _vlan: u16, _mac: MacAddr, _port: PortId) -> Result<(), TableError> {
        Ok(())
    }

    /// Removes an address, static or learned; false: there was none.
    pub fn remove(&self, _vlan: u16, _mac: MacAddr) -> bool {
        false
    }

    /// Where an address is, if it is known and not too old.
    pub fn locate(&self, _vlan: u16, _mac: MacAddr) -> Option<PortId> {
        None
    }
}
