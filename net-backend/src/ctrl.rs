//! Commands of the control queue (virtio 1.3 §5.1.6.5): bytes of a hostile guest become a [`Command`], or are refused.
//!
//! Pure. A command stands in the readable part of a chain, private copy by now: class, command, data. What its execution
//! needs of the negotiated features is checked here, too, so that a [`Command`] is always one that the device offered.

use crate::config::MAX_RSS_TABLE;
use crate::features::*;
use crate::frame::{MacAddr, hash};
use crate::port::Coalescing;

/// The command was executed (VIRTIO_NET_OK).
pub const OK: u8 = 0;
/// It was not (VIRTIO_NET_ERR).
pub const ERR: u8 = 1;
/// Longest command taken. The longest with a meaning is a table of addresses.
pub const MAX_COMMAND: usize = 32 * 1024;
/// Addresses of one kind that are filtered one by one; for more, all of the kind are received.
pub const MAX_TABLE: usize = 64;

/// Classes of commands: VIRTIO_NET_CTRL_*.
mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
    pub const GUEST_OFFLOADS: u8 = 5;
    pub const NOTF_COAL: u8 = 6;
}

/// What a driver may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// VIRTIO_NET_CTRL_RX.
    Receive(ReceiveMode, bool),
    /// VIRTIO_NET_CTRL_MAC_TABLE_SET.
    MacTable {
        /// Unicast addresses.
        unicast: Table,
        /// Multicast addresses.
        multicast: Table,
    },
    /// VIRTIO_NET_CTRL_MAC_ADDR_SET.
    MacAddress(MacAddr),
    /// VIRTIO_NET_CTRL_VLAN_ADD and _DEL.
    Vlan {
        /// The VLAN.
        id: u16,
        /// Receive it from now on.
        add: bool,
    },
    /// VIRTIO_NET_CTRL_ANNOUNCE_ACK.
    Announced,
    /// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
    Pairs(u16),
    /// VIRTIO_NET_CTRL_MQ_RSS_CONFIG.
    Rss {
        /// What is hashed, and with which key.
        hash: HashConfig,
        /// Pair for each low part of the hash; its length is a power of two.
        table: Box<[u16]>,
        /// Pair for frames without a hash.
        unclassified: u16,
        /// Pairs that the driver sends on.
        pairs: u16,
    },
    /// VIRTIO_NET_CTRL_MQ_HASH_CONFIG.
    Hash(HashConfig),
    /// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: VIRTIO_NET_F_GUEST_* bits.
    Offloads(u64),
    /// VIRTIO_NET_CTRL_NOTF_COAL_RX_SET.
    CoalesceReceive(Coalescing),
    /// VIRTIO_NET_CTRL_NOTF_COAL_TX_SET.
    CoalesceTransmit(Coalescing),
}

/// Kinds of receive modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// Everything.
    Promisc,
    /// All multicast.
    AllMulti,
    /// All unicast.
    AllUni,
    /// No multicast.
    NoMulti,
    /// No unicast.
    NoUni,
    /// No broadcast.
    NoBroadcast,
}

/// Addresses of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// These, at most [`MAX_TABLE`].
    Listed(Vec<MacAddr>),
    /// More than that: all of the kind.
    All,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashConfig {
    /// VIRTIO_NET_HASH_TYPE bits.
    pub types: u32,
    /// The key, padded with zeros.
    pub key: [u8; hash::KEY_LEN],
}

/// Why a command is refused; the driver only learns that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Class and command are unknown, or belong to a feature that was not negotiated.
    #[error("Control command {class}:{command} is not offered")]
    Unknown {
        /// `class`.
        class: u8,
        /// `command`.
        command: u8,
    },
    /// The data end too soon or are longer than any command's.
    #[error("Control command {class}:{command} has data of a wrong length")]
    Length {
        /// `class`.
        class: u8,
        /// `command`.
        command: u8,
    },
    /// A value out of its range.
    #[error("Control command {class}:{command} has a value out of range")]
    Value {
        /// `class`.
        class: u8,
        /// `command`.
        command: u8,
    },
}

/// Reads integers and arrays off the front of the data.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes(8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
    }

    fn mac(&mut self) -> Option<MacAddr> {
        self.bytes(6).and_then(|bytes| bytes.try_into().ok()).map(MacAddr)
    }

    /// `struct virtio_net_ctrl_mac`: a count, then addresses.
    fn table(&mut self) -> Option<Table> {
        let entries = usize::try_from(self.u32()?).ok()?;
        let bytes = self.bytes(entries.checked_mul(6)?)?;
        if entries > MAX_TABLE {
            return Some(Table::All);
        }
        Some(Table::Listed(bytes.as_chunks::<6>().0.iter().copied().map(MacAddr).collect()))
    }

    /// Length and bytes of a key.
    fn key(&mut self) -> Option<Option<[u8; hash::KEY_LEN]>> {
        let given = self.u8().map(usize::from).and_then(|len| self.bytes(len))?;
        let mut key = [0; hash::KEY_LEN];
        let Some(front) = key.get_mut(..given.len()) else { return Some(None) };
        front.copy_from_slice(given);
        Some(Some(key))
    }
}

/// What a command is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The features negotiated.
    pub features: u64,
    /// Pairs the port has.
    pub pairs: u16,
}

enum Wrong {
    Length,
    Value,
}

type Parsed = Result<Command, Wrong>;

impl Command {
    /// The command that stands in `bytes`: class, command, data.
    pub fn parse(bytes: &[u8], offered: Offered) -> Result<Self, Refused> {
        let &[class, command, ref data @ ..] = bytes else {
            return Err(Refused::Length { class: bytes.first().copied().unwrap_or_default(), command: 0 });
        };
        if !Self::is_offered(class, command, offered.features) {
            return Err(Refused::Unknown { class, command });
        }
        let mut data = Reader(data);
        let parsed = match (class, command) {
            (class::RX, mode) => receive(mode, &mut data),
            (class::MAC, 0) => mac_table(&mut data),
            (class::MAC, _) => mac_address(&mut data),
            (class::VLAN, command) => vlan(&mut data, command == 0),
            (class::ANNOUNCE, _) => Ok(Self::Announced),
            (class::MQ, 0) => pairs(&mut data, offered.pairs),
            (class::MQ, 1) => rss(&mut data, offered.pairs),
            (class::MQ, _) => hash_config(&mut data),
            (class::GUEST_OFFLOADS, _) => offloads(&mut data, offered.features),
            (_, 0) => coalescing(&mut data).map(Self::CoalesceTransmit),
            _ => coalescing(&mut data).map(Self::CoalesceReceive),
        };
        parsed.map_err(|wrong| match wrong {
            Wrong::Length => Refused::Length { class, command },
            Wrong::Value => Refused::Value { class, command },
        })
    }

    /// Whether the feature behind a command was negotiated.
    fn is_offered(class: u8, command: u8, features: u64) -> bool {
        let needs = match (class, command) {
            (class::RX, 0 | 1) => VIRTIO_NET_F_CTRL_RX,
            (class::RX, 2..=5) => VIRTIO_NET_F_CTRL_RX_EXTRA,
            (class::MAC, 0) => VIRTIO_NET_F_CTRL_RX,
            (class::MAC, 1) => VIRTIO_NET_F_CTRL_MAC_ADDR,
            (class::VLAN, 0 | 1) => VIRTIO_NET_F_CTRL_VLAN,
            (class::ANNOUNCE, 0) => VIRTIO_NET_F_GUEST_ANNOUNCE,
            (class::MQ, 0) => VIRTIO_NET_F_MQ,
            (class::MQ, 1) => VIRTIO_NET_F_RSS,
            (class::MQ, 2) => VIRTIO_NET_F_HASH_REPORT,
            (class::GUEST_OFFLOADS, 0) => VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            (class::NOTF_COAL, 0 | 1) => VIRTIO_NET_F_NOTF_COAL,
            _ => return false,
        };
        features & needs != 0
    }
}

fn receive(mode: u8, data: &mut Reader<'_>) -> Parsed {
    let mode = match mode {
        0 => ReceiveMode::Promisc,
        1 => ReceiveMode::AllMulti,
        2 => ReceiveMode::AllUni,
        3 => ReceiveMode::NoMulti,
        4 => ReceiveMode::NoUni,
        _ => ReceiveMode::NoBroadcast,
    };
    Ok(Command::Receive(mode, data.u8().ok_or(Wrong::Length)? != 0))
}

fn mac_table(data: &mut Reader<'_>) -> Parsed {
    let unicast = data.table().ok_or(Wrong::Length)?;
    let multicast = data.table().ok_or(Wrong::Length)?;
    Ok(Command::MacTable { unicast, multicast })
}

fn mac_address(data: &mut Reader<'_>) -> Parsed {
    let mac = data.mac().ok_or(Wrong::Length)?;
    if mac.is_multicast() || mac.is_zero() { Err(Wrong::Value) } else { Ok(Command::MacAddress(mac)) }
}

fn vlan(data: &mut Reader<'_>, add: bool) -> Parsed {
    match data.u16().ok_or(Wrong::Length)? {
        id @ 0..4095 => Ok(Command::Vlan { id, add }),
        _ => Err(Wrong::Value),
    }
}

/// virtio 1.3 §5.1.6.5.6.1: at least one pair, and no more than there are.
fn pairs(data: &mut Reader<'_>, most: u16) -> Parsed {
    let pairs = data.u16().ok_or(Wrong::Length)?;
    if (1..=most).contains(&pairs) { Ok(Command::Pairs(pairs)) } else { Err(Wrong::Value) }
}

/// `struct virtio_net_rss_config` (virtio 1.3 §5.1.6.5.7.1).
fn rss(data: &mut Reader<'_>, most: u16) -> Parsed {
    let types = data.u32().ok_or(Wrong::Length)?;
    let len = usize::from(data.u16().ok_or(Wrong::Length)?) + 1;
    let unclassified = data.u16().ok_or(Wrong::Length)?;
    if !len.is_power_of_two() || len > usize::from(MAX_RSS_TABLE) {
        return Err(Wrong::Value);
    }
    let table: Option<Box<[u16]>> = (0..len).map(|_| data.u16()).collect();
    let table = table.ok_or(Wrong::Length)?;
    let pairs = data.u16().ok_or(Wrong::Length)?;
    let hash = hashing(types, data)?;
    let known = |pair: &u16| *pair < most;
    let valid = table.iter().all(known) && known(&unclassified) && (1..=most).contains(&pairs);
    if valid { Ok(Command::Rss { hash, table, unclassified, pairs }) } else { Err(Wrong::Value) }
}

/// `struct virtio_net_hash_config` (virtio 1.3 §5.1.6.5.6.4).
fn hash_config(data: &mut Reader<'_>) -> Parsed {
    let types = data.u32().ok_or(Wrong::Length)?;
    data.bytes(8).ok_or(Wrong::Length)?;
    hashing(types, data).map(Command::Hash)
}

fn hashing(types: u32, data: &mut Reader<'_>) -> Result<HashConfig, Wrong> {
    let key = data.key().ok_or(Wrong::Length)?.ok_or(Wrong::Value)?;
    if types & !hash::types::ALL != 0 { Err(Wrong::Value) } else { Ok(HashConfig { types, key }) }
}

/// Offloads a driver may switch.
const GUEST_OFFLOADS: u64 = VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_GUEST_TSO6
    | VIRTIO_NET_F_GUEST_ECN
    | VIRTIO_NET_F_GUEST_UFO
    | VIRTIO_NET_F_GUEST_USO4
    | VIRTIO_NET_F_GUEST_USO6;

/// virtio 1.3 §5.1.6.5.8.1: only what was negotiated.
fn offloads(data: &mut Reader<'_>, features: u64) -> Parsed {
    let wanted = data.u64().ok_or(Wrong::Length)?;
    if wanted & !(features & GUEST_OFFLOADS) != 0 { Err(Wrong::Value) } else { Ok(Command::Offloads(wanted)) }
}

/// `struct virtio_net_ctrl_coal` (virtio 1.3 §5.1.6.5.9).
fn coalescing(data: &mut Reader<'_>) -> Result<Coalescing, Wrong> {
    let (frames, usecs) = (data.u32().ok_or(Wrong::Length)?, data.u32().ok_or(Wrong::Length)?);
    Ok(Coalescing { frames, usecs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Offered = Offered { features: u64::MAX, pairs: 4 };

    fn parse(class: u8, command: u8, data: &[u8]) -> Result<Command, Refused> {
        Command::parse(&[&[class, command], data].concat(), ALL)
    }

    fn rss_data(types: u32, table: &[u16], unclassified: u16, pairs: u16, key: &[u8]) -> Vec<u8> {
        let mut data = types.to_le_bytes().to_vec();
        data.extend((table.len() as u16).wrapping_sub(1).to_le_bytes());
        data.extend(unclassified.to_le_bytes());
        table.iter().for_each(|entry| data.extend(entry.to_le_bytes()));
        data.extend(pairs.to_le_bytes());
        data.push(key.len() as u8);
        data.extend(key);
        data
    }

    #[test]
    fn every_command_is_understood() {
        assert_eq!(parse(0, 0, &[1]), Ok(Command::Receive(ReceiveMode::Promisc, true)));
        assert_eq!(parse(0, 5, &[0]), Ok(Command::Receive(ReceiveMode::NoBroadcast, false)));
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(parse(1, 1, &mac.0), Ok(Command::MacAddress(mac)));
        let table = [&1u32.to_le_bytes()[..], &mac.0, &0u32.to_le_bytes()].concat();
        let (unicast, multicast) = (Table::Listed(vec![mac]), Table::Listed(vec![]));
        assert_eq!(parse(1, 0, &table), Ok(Command::MacTable { unicast, multicast }));
        assert_eq!(parse(2, 0, &[10, 0]), Ok(Command::Vlan { id: 10, add: true }));
        assert_eq!(parse(2, 1, &[10, 0]), Ok(Command::Vlan { id: 10, add: false }));
        assert_eq!(parse(3, 0, &[]), Ok(Command::Announced));
        assert_eq!(parse(4, 0, &[4, 0]), Ok(Command::Pairs(4)));
        let hash = HashConfig { types: 3, key: [7; 40] };
        let rss = Command::Rss { hash: hash.clone(), table: [0, 1, 2, 3].into(), unclassified: 1, pairs: 4 };
        assert_eq!(parse(4, 1, &rss_data(3, &[0, 1, 2, 3], 1, 4, &[7; 40])), Ok(rss));
        let config = [&3u32.to_le_bytes()[..], &[0; 8], &[40], &[7; 40]].concat();
        assert_eq!(parse(4, 2, &config), Ok(Command::Hash(hash)));
        assert_eq!(parse(5, 0, &2u64.to_le_bytes()), Ok(Command::Offloads(2)));
        let (both, coalescing) = ([3, 0, 0, 0, 4, 0, 0, 0], Coalescing { frames: 3, usecs: 4 });
        assert_eq!(parse(6, 0, &both), Ok(Command::CoalesceTransmit(coalescing)));
        assert_eq!(parse(6, 1, &both), Ok(Command::CoalesceReceive(coalescing)));
    }

    #[test]
    fn what_was_not_negotiated_is_not_there() {
        for (class, command, bit) in [
            (0, 1, VIRTIO_NET_F_CTRL_RX),
            (0, 2, VIRTIO_NET_F_CTRL_RX_EXTRA),
            (1, 0, VIRTIO_NET_F_CTRL_RX),
            (1, 1, VIRTIO_NET_F_CTRL_MAC_ADDR),
            (2, 0, VIRTIO_NET_F_CTRL_VLAN),
            (3, 0, VIRTIO_NET_F_GUEST_ANNOUNCE),
            (4, 0, VIRTIO_NET_F_MQ),
            (4, 1, VIRTIO_NET_F_RSS),
            (4, 2, VIRTIO_NET_F_HASH_REPORT),
            (5, 0, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS),
            (6, 1, VIRTIO_NET_F_NOTF_COAL),
        ] {
            let without = Offered { features: !bit, pairs: 4 };
            let refused = Command::parse(&[class, command, 1, 0, 0, 0, 0, 0, 0, 0], without);
            assert_eq!(refused, Err(Refused::Unknown { class, command }));
        }
        assert_eq!(parse(9, 0, &[]), Err(Refused::Unknown { class: 9, command: 0 }));
        assert_eq!(parse(0, 6, &[1]), Err(Refused::Unknown { class: 0, command: 6 }));
    }

    #[test]
    fn data_that_end_too_soon_are_refused() {
        let short = |class, command, data: &[u8]| {
            assert_eq!(parse(class, command, data), Err(Refused::Length { class, command }));
        };
        short(0, 0, &[]);
        short(1, 0, &[1, 0, 0, 0, 0x52]);
        short(1, 0, &[0xff; 4]);
        short(1, 0, &[0, 0, 0, 0]);
        short(1, 1, &[0; 5]);
        short(2, 0, &[1]);
        short(4, 0, &[]);
        short(4, 1, &rss_data(0, &[0; 128], 0, 1, &[])[..100]);
        short(4, 1, &[&rss_data(0, &[0], 0, 1, &[])[..12], &[40, 1, 2]].concat());
        short(5, 0, &[0; 7]);
        short(6, 0, &[0; 7]);
        assert!(matches!(Command::parse(&[0], ALL), Err(Refused::Length { .. })));
        assert!(matches!(Command::parse(&[], ALL), Err(Refused::Length { .. })));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let bad = |class, command, data: &[u8]| {
            assert_eq!(parse(class, command, data), Err(Refused::Value { class, command }));
        };
        bad(1, 1, &[1, 0, 0, 0, 0, 0]);
        bad(1, 1, &[0; 6]);
        bad(2, 0, &4095u16.to_le_bytes());
        bad(4, 0, &[0, 0]);
        bad(4, 0, &[5, 0]);
        bad(4, 1, &rss_data(0, &[0; 3], 0, 1, &[]));
        bad(4, 1, &rss_data(0, &[0; 256], 0, 1, &[]));
        bad(4, 1, &rss_data(0, &[4], 0, 1, &[]));
        bad(4, 1, &rss_data(0, &[0], 4, 1, &[]));
        bad(4, 1, &rss_data(0, &[0], 0, 0, &[]));
        bad(4, 1, &rss_data(0, &[0], 0, 5, &[]));
        bad(4, 1, &rss_data(1 << 9, &[0], 0, 1, &[]));
        bad(4, 1, &rss_data(0, &[0], 0, 1, &[0; 41]));
        bad(5, 0, &1u64.to_le_bytes());
    }

    #[test]
    fn a_long_table_stands_for_all_addresses() {
        let long = [&65u32.to_le_bytes()[..], &[0x52; 65 * 6], &0u32.to_le_bytes()].concat();
        assert!(matches!(parse(1, 0, &long), Ok(Command::MacTable { unicast: Table::All, .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail(bytes in proptest::collection::vec(any::<u8>(), 0..700), features: u64, class in 0u8..7) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = class;
            }
            let _ = Command::parse(&bytes, Offered { features, pairs: 16 });
        }
    }
}
