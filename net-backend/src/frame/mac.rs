//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// An Ethernet (MAC) address. Written and read as `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no MAC address: write six bytes as two hexadecimal digits each, as in 52:54:00:12:34:56")]
pub struct BadMac(String);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether it addresses a group, the broadcast group included.
    #[inline]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it addresses everybody.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Whether it is all zero, which no station has.
    #[inline]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// The address as a number below 2^48, its first byte the most significant.
    #[inline]
    pub fn as_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address of a number; its upper 16 bits are ignored.
    #[inline]
    pub fn from_u64(value: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        parse(text).map(Self).ok_or_else(|| BadMac(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_lead_back_to_the_address() {
        let mac = MacAddr([0x52, 0x54, 0x00, 0xab, 0x00, 0x01]);
        assert_eq!(mac.to_string(), "52:54:00:ab:00:01");
        assert_eq!("52:54:00:AB:00:01".parse(), Ok(mac));
        assert_eq!("52-54-00-ab-00-01".parse(), Ok(mac));
        assert_eq!(mac.as_u64(), 0x5254_00ab_0001);
        assert_eq!(MacAddr::from_u64(0xffff_5254_00ab_0001), mac);
        let json = serde_json::to_string(&mac).expect("serializable");
        assert_eq!(json, "\"52:54:00:ab:00:01\"");
        assert_eq!(serde_json::from_str::<MacAddr>(&json).expect("a MAC"), mac);
    }

    #[test]
    fn anything_but_six_bytes_is_refused() {
        for text in
            ["", "52:54:00:ab:00", "52:54:00:ab:00:01:02", "52:54:00:ab:00:1", "52:54:00:ab:00:+1", "zz"]
        {
            assert_eq!(text.parse::<MacAddr>(), Err(BadMac(text.to_owned())));
        }
    }

    #[test]
    fn groups_are_told_from_stations() {
        assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
        let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
        assert!(group.is_multicast() && !group.is_broadcast());
        assert!(!MacAddr([2, 0, 0, 0, 0, 1]).is_multicast());
        assert!(MacAddr::ZERO.is_zero());
    }
}
