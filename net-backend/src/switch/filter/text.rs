//! Rules as people write them: one line of text, or a table with the same keys.

use super::{Action, Direction, MacMask, Prefix, Range, Rule};
use crate::frame::MacAddr;
use crate::frame::parse::{ethertype, protocol};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// The first two words.
    #[error(
        "A rule begins with 'in' or 'out' and 'allow' or 'deny', as in 'in deny udp dport 53', not '{0}'"
    )]
    Beginning(String),
    /// A word that no rule has.
    #[error("'{0}' is no part of a rule")]
    UnknownWord(String),
    /// A word that needs another behind it.
    #[error("'{0}' needs a value behind it")]
    NoValue(String),
    /// Said twice.
    #[error("'{0}' says again what the rule said before")]
    Twice(String),
    /// A value of the wrong kind.
    #[error("{key}: '{value}' is not {expected}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What can be.
        expected: &'static str,
    },
    /// No frame can match.
    #[error("The rule matches no frame: {0}")]
    Contradiction(&'static str),
}

const MAC: &str = "a MAC address with an optional mask, as in 52:54:00:00:00:00/ff:ff:ff:00:00:00";
const PREFIX: &str = "an IPv4 or IPv6 address with an optional prefix length, as in 10.0.0.0/8";
const RANGE: &str = "a number or a range, as in 53 or 1024-2047";
const ETHERTYPE: &str = "an EtherType from 0x600 on, as in 0x88cc, or ip4, ip6, arp";
const PROTOCOL: &str = "an IP protocol number, or tcp, udp, icmp, icmp6, sctp";

const SCTP: u8 = 132;

const ETHERTYPES: [(&str, u16); 3] =
    [("ip4", ethertype::IPV4), ("ip6", ethertype::IPV6), ("arp", ethertype::ARP)];
const PROTOCOLS: [(&str, u8); 5] = [
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("icmp", protocol::ICMP),
    ("icmp6", protocol::ICMPV6),
    ("sctp", SCTP),
];

fn named<T: Copy>(names: &[(&str, T)], word: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> Option<&'static str> {
    names.iter().find(|(_, other)| other == value).map(|(name, _)| *name)
}

fn number(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_ethertype(text: &str) -> Option<u16> {
    named(&ETHERTYPES, text).or_else(|| number(text).filter(|n| *n >= 0x600))
}

fn parse_protocol(text: &str) -> Option<u8> {
    named(&PROTOCOLS, text).or_else(|| number(text).and_then(|n| u8::try_from(n).ok()))
}

macro_rules! as_text {
    ($type:ty, $key:literal, $expected:expr) => {
        impl FromStr for $type {
            type Err = InvalidRule;

            fn from_str(text: &str) -> Result<Self, InvalidRule> {
                let value = || text.to_owned();
                Self::parse(text).ok_or_else(|| InvalidRule::Value {
                    key: $key,
                    value: value(),
                    expected: $expected,
                })
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Written($expected, std::marker::PhantomData::<$type>))
            }
        }
    };
}

as_text!(MacMask, "MAC", MAC);
as_text!(Prefix, "prefix", PREFIX);
as_text!(Range, "range", RANGE);

/// Takes a text, or a number as if it were written as one.
struct Written<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = InvalidRule>> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }
}

impl MacMask {
    /// All bits of `mac`.
    pub const fn exact(mac: MacAddr) -> Self {
        Self { mac, mask: MacAddr::BROADCAST }
    }

    fn parse(text: &str) -> Option<Self> {
        let (mac, mask) = match text.split_once('/') {
            Some((mac, mask)) => (mac.parse::<MacAddr>().ok()?, mask.parse().ok()?),
            None => (text.parse().ok()?, MacAddr::BROADCAST),
        };
        (mac.as_u64() & !MacAddr::as_u64(mask) == 0).then_some(Self { mac, mask })
    }
}

impl fmt::Display for MacMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mask {
            MacAddr::BROADCAST => self.mac.fmt(f),
            mask => write!(f, "{}/{mask}", self.mac),
        }
    }
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address.parse().ok()?, Some(len.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let bits = if IpAddr::is_ipv4(&address) { 32 } else { 128 };
        let prefix = Self { address, len: len.unwrap_or(bits) };
        (prefix.len <= bits && prefix.contains(address) && prefix.is_network()).then_some(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first <= range.last).then_some(range)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last - self.first {
            0 => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

fn set<T>(slot: &mut Option<T>, word: &str, value: T) -> Result<(), InvalidRule> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(InvalidRule::Twice(word.to_owned())),
    }
}

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let mut words = text.split_whitespace();
        let wrong = || InvalidRule::Beginning(text.to_owned());
        let direction = words.next().and_then(|word| named(&DIRECTIONS, word)).ok_or_else(wrong)?;
        let action = words.next().and_then(|word| named(&ACTIONS, word)).ok_or_else(wrong)?;
        let mut rule = Self::every(direction, action);
        while let Some(word) = words.next() {
            rule.word(word, &mut words)?;
        }
        rule.checked()
    }
}

const DIRECTIONS: [(&str, Direction); 2] = [("in", Direction::In), ("out", Direction::Out)];
const ACTIONS: [(&str, Action); 2] = [("allow", Action::Allow), ("deny", Action::Deny)];

impl Rule {
    fn word<'a>(
        &mut self,
        word: &'a str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), InvalidRule> {
        if let Some(value) = named(&ETHERTYPES, word) {
            return set(&mut self.ethertype, word, value);
        }
        if let Some(value) = named(&PROTOCOLS, word) {
            return set(&mut self.protocol, word, value);
        }
        const KEYS: [&str; 9] =
            ["ethertype", "vlan", "src-mac", "dst-mac", "src", "dst", "proto", "sport", "dport"];
        let key = KEYS.into_iter().find(|key| *key == word);
        let key = key.ok_or_else(|| InvalidRule::UnknownWord(word.to_owned()))?;
        let value = rest.next().ok_or_else(|| InvalidRule::NoValue(word.to_owned()))?;
        let wrong = |expected| InvalidRule::Value { key, value: value.to_owned(), expected };
        match key {
            "ethertype" => {
                set(&mut self.ethertype, word, parse_ethertype(value).ok_or_else(|| wrong(ETHERTYPE))?)
            }
            "proto" => set(&mut self.protocol, word, parse_protocol(value).ok_or_else(|| wrong(PROTOCOL))?),
            "vlan" => set(&mut self.vlan, word, Range::parse(value).ok_or_else(|| wrong(RANGE))?),
            "src-mac" => set(&mut self.src_mac, word, MacMask::parse(value).ok_or_else(|| wrong(MAC))?),
            "dst-mac" => set(&mut self.dst_mac, word, MacMask::parse(value).ok_or_else(|| wrong(MAC))?),
            "src" => set(&mut self.src, word, Prefix::parse(value).ok_or_else(|| wrong(PREFIX))?),
            "dst" => set(&mut self.dst, word, Prefix::parse(value).ok_or_else(|| wrong(PREFIX))?),
            "sport" => set(&mut self.sport, word, Range::parse(value).ok_or_else(|| wrong(RANGE))?),
            _ => set(&mut self.dport, word, Range::parse(value).ok_or_else(|| wrong(RANGE))?),
        }
    }

    /// Refuses a rule that no frame can match: it is a mistake, and one that leaves a hole.
    fn checked(self) -> Result<Self, InvalidRule> {
        let family = |prefix: Option<Prefix>| prefix.map(|p| p.address.is_ipv4());
        let families = [
            family(self.src),
            family(self.dst),
            self.ethertype.map(|ethertype| ethertype == ethertype::IPV4),
        ];
        let ip = |ethertype| matches!(ethertype, ethertype::IPV4 | ethertype::IPV6);
        let deep = self.src.is_some() || self.dst.is_some() || self.protocol.is_some() || self.has_ports();
        if deep && self.ethertype.is_some_and(|ethertype| !ip(ethertype)) {
            return Err(InvalidRule::Contradiction(
                "addresses, protocols and ports are those of IPv4 and IPv6",
            ));
        }
        let known: Vec<bool> = families.into_iter().flatten().collect();
        if deep && known.contains(&true) && known.contains(&false) {
            return Err(InvalidRule::Contradiction("it names both IPv4 and IPv6"));
        }
        if self.has_ports() && self.protocol.is_some_and(|p| !matches!(p, protocol::TCP | protocol::UDP)) {
            return Err(InvalidRule::Contradiction("only TCP and UDP have ports here"));
        }
        Ok(self)
    }

    fn has_ports(&self) -> bool {
        self.sport.is_some() || self.dport.is_some()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = name_of(&DIRECTIONS, &self.direction).unwrap_or_default();
        write!(f, "{direction} {}", name_of(&ACTIONS, &self.action).unwrap_or_default())?;
        match self.ethertype.map(|value| (name_of(&ETHERTYPES, &value), value)) {
            None => {}
            Some((Some(name), _)) => write!(f, " {name}")?,
            Some((None, value)) => write!(f, " ethertype {value:#06x}")?,
        }
        let mut part = |key: &str, value: Option<&dyn fmt::Display>| match value {
            None => Ok(()),
            Some(value) => write!(f, " {key} {value}"),
        };
        part("vlan", self.vlan.as_ref().map(|v| v as _))?;
        part("src-mac", self.src_mac.as_ref().map(|v| v as _))?;
        part("dst-mac", self.dst_mac.as_ref().map(|v| v as _))?;
        part("src", self.src.as_ref().map(|v| v as _))?;
        part("dst", self.dst.as_ref().map(|v| v as _))?;
        match self.protocol.map(|value| (name_of(&PROTOCOLS, &value), value)) {
            None => {}
            Some((Some(name), _)) => write!(f, " {name}")?,
            Some((None, value)) => write!(f, " proto {value}")?,
        }
        let mut part = |key: &str, value: Option<Range>| match value {
            None => Ok(()),
            Some(value) => write!(f, " {key} {value}"),
        };
        part("sport", self.sport)?;
        part("dport", self.dport)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = Rule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rule such as \"in deny udp dport 53\", or a table with its parts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rule, E> {
        text.parse().map_err(|why| E::custom(format_args!("rule '{text}': {why}")))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rule, A::Error> {
        Table::deserialize(MapAccessDeserializer::new(map))?.rule().map_err(de::Error::custom)
    }
}

/// A word or a number, as it was written.
struct Word(String);

impl FromStr for Word {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written("a name or a number", std::marker::PhantomData))
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    direction: Direction,
    action: Action,
    ethertype: Option<Word>,
    vlan: Option<Range>,
    src_mac: Option<MacMask>,
    dst_mac: Option<MacMask>,
    src: Option<Prefix>,
    dst: Option<Prefix>,
    proto: Option<Word>,
    sport: Option<Range>,
    dport: Option<Range>,
}

impl Table {
    fn rule(self) -> Result<Rule, InvalidRule> {
        fn parsed<T>(
            key: &'static str,
            word: Option<Word>,
            parse: impl Fn(&str) -> Option<T>,
            expected: &'static str,
        ) -> Result<Option<T>, InvalidRule> {
            let Some(Word(value)) = word else { return Ok(None) };
            parse(&value).map(Some).ok_or(InvalidRule::Value { key, value, expected })
        }
        let rule = Rule {
            direction: self.direction,
            action: self.action,
            ethertype: parsed("ethertype", self.ethertype, parse_ethertype, ETHERTYPE)?,
            vlan: self.vlan,
            src_mac: self.src_mac,
            dst_mac: self.dst_mac,
            src: self.src,
            dst: self.dst,
            protocol: parsed("proto", self.proto, parse_protocol, PROTOCOL)?,
            sport: self.sport,
            dport: self.dport,
        };
        rule.checked()
    }
}
