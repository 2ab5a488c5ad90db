//! Which frames of the interface are the uplink's; the others stay with the host.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bpf::{Map, MapKind};
use super::program::{self, Maps};
use crate::frame::MacAddr;

/// Most addresses, and most VLANs, that can be chosen.
pub const MAX_CHOSEN: u32 = 4096;

/// Who gets frames to a group when only some addresses are the uplink's: a frame cannot go to both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Groups {
    /// The uplink: guests can be found by ARP and neighbour discovery. The host then needs static entries.
    #[default]
    Uplink,
    /// Broadcasts to the uplink, multicasts to the host.
    BroadcastOnly,
    /// The host.
    Host,
}

/// Which frames are the uplink's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Filter {
    /// Only frames to these addresses (and to groups, see `groups`); all when there is no list.
    pub macs: Option<BTreeSet<MacAddr>>,
    /// Only frames of these VLANs; 0 stands for untagged frames. All when there is no list.
    pub vlans: Option<BTreeSet<u16>>,
    /// Who gets broadcasts and multicasts when `macs` is a list. Groups in the list are the uplink's in any case.
    pub groups: Groups,
}

impl Filter {
    fn flags(&self) -> u32 {
        let mut flags = match self.groups {
            Groups::Uplink => program::BROADCAST | program::MULTICAST,
            Groups::BroadcastOnly => program::BROADCAST,
            Groups::Host => 0,
        };
        if self.vlans.is_some() {
            flags |= program::FILTER_VLANS;
        }
        if self.macs.is_some() {
            flags |= program::FILTER_MACS;
        }
        // The program looks no further when it is zero.
        if flags & (program::FILTER_MACS | program::FILTER_VLANS) == 0 { 0 } else { flags }
    }
}

/// A key of the map of addresses: the address and two zeros.
type MacKey = [u8; 8];

/// The maps that the program looks at.
pub(super) struct FilterMaps {
    sockets: Map<u32, u32>,
    flags: Map<u32, u32>,
    macs: Map<MacKey, u32>,
    vlans: Map<u32, u32>,
}

impl FilterMaps {
    /// Maps that redirect everything, with room for `queues` sockets.
    pub(super) fn create(queues: u32) -> io::Result<Self> {
        Ok(Self {
            sockets: Map::create(MapKind::Sockets, "vhostd_sockets", queues)?,
            flags: Map::create(MapKind::Array, "vhostd_flags", 1)?,
            macs: Map::create(MapKind::Hash, "vhostd_macs", MAX_CHOSEN)?,
            vlans: Map::create(MapKind::Hash, "vhostd_vlans", MAX_CHOSEN)?,
        })
    }

    pub(super) fn for_program(&self) -> Maps {
        Maps {
            sockets: self.sockets.fd(),
            flags: self.flags.fd(),
            macs: self.macs.fd(),
            vlans: self.vlans.fd(),
        }
    }

    /// Frames of a queue go to this socket from now on.
    pub(super) fn insert_socket(&self, queue: u32, socket: i32) -> io::Result<()> {
        self.sockets.insert(&queue, &(socket as u32))
    }

    /// Makes the maps say what `filter` says. Frames that pass meanwhile are judged by the old or the new filter, or by
    /// both lists together: what is new is added before what is old is removed.
    pub(super) fn apply(&self, filter: &Filter) -> io::Result<()> {
        let macs = filter.macs.iter().flatten().map(|mac| mac_key(*mac)).collect();
        let vlans = filter.vlans.iter().flatten().map(|vlan| u32::from(*vlan)).collect();
        let old_macs = add(&self.macs, &macs)?;
        let old_vlans = add(&self.vlans, &vlans)?;
        self.flags.insert(&0, &filter.flags())?;
        remove(&self.macs, &old_macs)?;
        remove(&self.vlans, &old_vlans)
    }

    /// What the maps say now.
    pub(super) fn read(&self) -> io::Result<Filter> {
        let flags = self.flags.get(&0)?;
        let has = |flag: u32| flags & flag != 0;
        let macs = has(program::FILTER_MACS).then(|| self.macs.keys()).transpose()?;
        let vlans = has(program::FILTER_VLANS).then(|| self.vlans.keys()).transpose()?;
        Ok(Filter {
            macs: macs.map(|keys| keys.into_iter().map(mac_of).collect()),
            vlans: vlans.map(|keys| keys.into_iter().map(|vlan| vlan as u16).collect()),
            groups: match (flags == 0 || has(program::BROADCAST), flags == 0 || has(program::MULTICAST)) {
                (true, true) => Groups::Uplink,
                (true, false) => Groups::BroadcastOnly,
                (false, _) => Groups::Host,
            },
        })
    }
}

fn mac_key(mac: MacAddr) -> MacKey {
    let mut key = [0; 8];
    key[..6].copy_from_slice(&mac.0);
    key
}

fn mac_of(key: MacKey) -> MacAddr {
    let [a, b, c, d, e, f, ..] = key;
    MacAddr([a, b, c, d, e, f])
}

/// Adds what is missing; returns what is there and not wanted.
fn add<K>(map: &Map<K, u32>, wanted: &BTreeSet<K>) -> io::Result<Vec<K>>
where
    K: Ord + FromBytes + IntoBytes + Immutable + KnownLayout,
{
    for key in wanted {
        map.insert(key, &1)?;
    }
    Ok(map.keys()?.into_iter().filter(|key| !wanted.contains(key)).collect())
}

fn remove<K: FromBytes + IntoBytes + Immutable>(map: &Map<K, u32>, unwanted: &[K]) -> io::Result<()> {
    unwanted.iter().try_for_each(|key| map.remove(key))
}
