//! Which VLAN a frame belongs to when it enters, and what becomes of its tag when it leaves (IEEE 802.1Q §6.9, §8.6.2, §8.8.2).
//!
//! Only the outermost tag counts: what it covers is payload. A tag with VLAN 0 carries a priority only and belongs to
//! the port's untagged VLAN.
//!
//! An open port is a member of every VLAN: it suits uplinks, and switches without VLANs. Next to ports with VLANs, a guest that
//! must stay out of them needs an access port.
//!
//! | port | takes | untagged frames are in | leaves with |
//! |---|---|---|---|
//! | open (default) | everything | VLAN 0 | its tag as it is; VLAN 0 without a tag |
//! | access V | untagged, priority-tagged | V | no tag |
//! | trunk, native N | tags on the list, untagged if N is set | N | a tag; N without a tag |

use crate::frame::Tag;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The VLAN of untagged frames on open ports. It cannot be written in a tag, so it never meets a configured VLAN.
pub const UNTAGGED: u16 = 0;
/// Highest VLAN a tag can name; 4095 is reserved.
pub const MAX_VLAN: u16 = 4094;

/// TPID of a customer tag.
pub const TPID_CTAG: u16 = 0x8100;

const VID: u16 = 0x0fff;

/// A set of VLANs, 1 to [`MAX_VLAN`]; as text `1-99,200`, with commas or `+` between the parts, or `all`.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

/// A text that is no list of VLANs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VLANs are written 1-99,200 or all, with numbers from 1 to {MAX_VLAN}, not '{0}'")]
pub struct InvalidVlans(pub String);

impl VlanSet {
    /// No VLAN.
    pub fn none() -> Self {
        Self(Box::new([0; 64]))
    }

    /// Every VLAN a tag can name.
    pub fn all() -> Self {
        (1..=MAX_VLAN).collect()
    }

    /// Adds a VLAN; numbers outside 1 to [`MAX_VLAN`] are ignored.
    pub fn insert(&mut self, vlan: u16) {
        if (1..=MAX_VLAN).contains(&vlan) {
            self.0[usize::from(vlan / 64)] |= 1 << (vlan % 64);
        }
    }

    /// Takes a VLAN out.
    pub fn remove(&mut self, vlan: u16) {
        if vlan <= MAX_VLAN {
            self.0[usize::from(vlan / 64)] &= !(1 << (vlan % 64));
        }
    }

    /// Whether `vlan` is in the set.
    #[inline]
    pub fn contains(&self, vlan: u16) -> bool {
        self.0.get(usize::from(vlan / 64)).is_some_and(|word| word >> (vlan % 64) & 1 == 1)
    }

    /// The VLANs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (1..=MAX_VLAN).filter(|vlan| self.contains(*vlan))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl FromIterator<u16> for VlanSet {
    fn from_iter<I: IntoIterator<Item = u16>>(vlans: I) -> Self {
        let mut set = Self::none();
        vlans.into_iter().for_each(|vlan| set.insert(vlan));
        set
    }
}

impl Default for VlanSet {
    fn default() -> Self {
        Self::none()
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = 1;
        let mut separator = "";
        while let Some(first) = (next..=MAX_VLAN).find(|vlan| self.contains(*vlan)) {
            let last = (first..=MAX_VLAN).take_while(|vlan| self.contains(*vlan)).last().unwrap_or(first);
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            (next, separator) = (last + 1, ",");
        }
        Ok(())
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VlanSet({self})")
    }
}

impl FromStr for VlanSet {
    type Err = InvalidVlans;

    fn from_str(text: &str) -> Result<Self, InvalidVlans> {
        let wrong = || InvalidVlans(text.to_owned());
        let number = |text: &str| match text.trim().parse::<u16>() {
            Ok(vlan) if (1..=MAX_VLAN).contains(&vlan) => Ok(vlan),
            _ => Err(wrong()),
        };
        if text.trim() == "all" {
            return Ok(Self::all());
        }
        let mut set = Self::none();
        for part in text.split([',', '+']) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            (first..=last).for_each(|vlan| set.insert(vlan));
        }
        Ok(set)
    }
}

impl Serialize for VlanSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VlanSet {
    /// Text, one number, or a list of numbers.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "VLANs are written \"1-99,200\", 7 or [1, 2, 200]")]
        enum Written {
            Text(String),
            One(u16),
            Many(Vec<u16>),
        }
        let checked = |vlans: &[u16]| match vlans.iter().find(|vlan| !(1..=MAX_VLAN).contains(*vlan)) {
            Some(wrong) => Err(InvalidVlans(wrong.to_string())),
            None => Ok(vlans.iter().copied().collect()),
        };
        match Written::deserialize(deserializer)? {
            Written::Text(text) => text.parse(),
            Written::One(vlan) => checked(&[vlan]),
            Written::Many(vlans) => checked(&vlans),
        }
        .map_err(serde::de::Error::custom)
    }
}

/// How a port treats VLANs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VlanMode {
    /// Takes and gives every frame with the tag it has. Untagged frames are among themselves in VLAN 0.
    #[default]
    Open,
    /// The guest knows nothing of VLANs: it is in this one.
    Access(u16),
    /// Tagged frames of the listed VLANs.
    Trunk {
        /// VLANs the port is a member of.
        #[serde(default = "VlanSet::all")]
        allowed: VlanSet,
        /// VLAN of untagged frames, also a member; without it they are dropped.
        #[serde(default)]
        native: Option<u16>,
    },
}

/// What to do with a frame's tag where it leaves. The frame's own first tag is the one that `Meta` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagEdit {
    /// Leave it as it is.
    None,
    /// Put a tag (TPID 0x8100) with this control information in front.
    Push(u16),
    /// Take the outermost tag away.
    Pop,
    /// Replace the control information of the outermost tag.
    Set(u16),
}

impl TagEdit {
    /// Change of the frame's length in bytes.
    #[inline]
    pub fn growth(self) -> isize {
        match self {
            Self::Push(_) => 4,
            Self::Pop => -4,
            Self::None | Self::Set(_) => 0,
        }
    }
}

impl VlanMode {
    /// VLAN of a frame that comes in with this tag; `None`: it may not.
    #[inline]
    pub fn classify(&self, tag: Option<Tag>) -> Option<u16> {
        let vid = tag.map_or(0, Tag::vid);
        match self {
            Self::Open => (vid <= MAX_VLAN).then_some(vid),
            Self::Access(vlan) => (vid == 0).then_some(*vlan),
            Self::Trunk { native, .. } if vid == 0 => *native,
            Self::Trunk { .. } => self.is_member(vid).then_some(vid),
        }
    }

    /// Whether frames of `vlan` leave here.
    #[inline]
    pub fn is_member(&self, vlan: u16) -> bool {
        match self {
            Self::Open => vlan <= MAX_VLAN,
            Self::Access(own) => *own == vlan,
            Self::Trunk { allowed, native } => allowed.contains(vlan) || *native == Some(vlan),
        }
    }

    /// VLAN of untagged frames.
    pub fn untagged(&self) -> Option<u16> {
        match self {
            Self::Open => Some(UNTAGGED),
            Self::Access(vlan) => Some(*vlan),
            Self::Trunk { native, .. } => *native,
        }
    }

    /// What becomes of the tag of a frame in `vlan`, a VLAN of this port; `stacked`: there is another tag behind it. The
    /// priority of a tag that is replaced is kept.
    ///
    /// A tag with VLAN 0 stays where the port's VLAN is untagged, but for access ports, which give no tags at all. On a trunk
    /// a tag that covers another one becomes such a tag instead of being taken away: the inner one must not be what the next
    /// switch goes by (VLAN hopping).
    #[inline]
    pub fn edit(&self, vlan: u16, tag: Option<Tag>, stacked: bool) -> TagEdit {
        let untagged = self.untagged() == Some(vlan);
        match tag {
            None if untagged => TagEdit::None,
            None => TagEdit::Push(vlan),
            Some(_) if matches!(self, Self::Access(_)) => TagEdit::Pop,
            Some(tag) if untagged && tag.vid() == 0 => TagEdit::None,
            Some(tag) if untagged && stacked => TagEdit::Set(tag.tci & !VID),
            Some(_) if untagged => TagEdit::Pop,
            Some(tag) if tag.vid() == vlan => TagEdit::None,
            Some(tag) => TagEdit::Set(tag.tci & !VID | vlan),
        }
    }

    /// The number that is no VLAN, if one is written.
    pub(super) fn invalid(&self) -> Option<u16> {
        let written = match self {
            Self::Open => None,
            Self::Access(vlan) => Some(*vlan),
            Self::Trunk { native, .. } => *native,
        };
        written.filter(|vlan| !(1..=MAX_VLAN).contains(vlan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_list_of_vlans_is_refused_with_what_was_written() {
        for wrong in ["", "0", "4095", "1-", "9-3", "1,,2", "x", "1-4095", "-1", "70000"] {
            let error = wrong.parse::<VlanSet>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{wrong}'")), "{error}");
        }
    }

    #[test]
    fn vlans_are_written_in_many_ways() {
        let set: VlanSet = [1, 2, 3, 200].into_iter().collect();
        for text in ["1-3,200", "200+1-3", "3,2,1, 200"] {
            assert_eq!(text.parse(), Ok(set.clone()));
        }
        assert_eq!("all".parse(), Ok(VlanSet::all()));
        assert_eq!(set.to_string(), "1-3,200");
        assert_eq!(serde_json::from_str::<VlanSet>("[1,2,3,200]").unwrap(), set);
        assert_eq!(serde_json::from_str::<VlanSet>("7").unwrap(), [7].into_iter().collect());
        let error = serde_json::from_str::<VlanSet>("[1,4095]").unwrap_err();
        assert!(error.to_string().contains("'4095'"), "{error}");
    }

    #[test]
    fn modes_are_read_from_a_configuration() {
        #[derive(Deserialize)]
        struct Port {
            vlan: VlanMode,
        }
        let read = |text: &str| toml::from_str::<Port>(text).map(|port| port.vlan);
        assert_eq!(read("vlan = 'open'"), Ok(VlanMode::Open));
        assert_eq!(read("vlan = { access = 7 }"), Ok(VlanMode::Access(7)));
        let trunk = VlanMode::Trunk { allowed: "1-5".parse().unwrap(), native: Some(9) };
        assert_eq!(read("vlan = { trunk = { allowed = '1-5', native = 9 } }"), Ok(trunk));
        let error = read("vlan = { trunk = { alowed = '1-5' } }").unwrap_err();
        assert!(error.to_string().contains("alowed"), "{error}");
    }

    #[test]
    fn numbers_that_are_no_vlans_are_found() {
        let trunk = |native| VlanMode::Trunk { allowed: VlanSet::all(), native };
        assert_eq!(
            [VlanMode::Access(0), trunk(Some(4095))].map(|mode| mode.invalid()),
            [Some(0), Some(4095)]
        );
        assert_eq!([VlanMode::Open, VlanMode::Access(1), trunk(None)].map(|mode| mode.invalid()), [None; 3]);
    }

    proptest! {
        #[test]
        fn a_set_written_down_is_read_again(vlans in prop::collection::btree_set(1u16..=MAX_VLAN, 1..50)) {
            let set: VlanSet = vlans.iter().copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), vlans.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(set.to_string().parse(), Ok(set.clone()));
            let mut rest = set.clone();
            set.iter().for_each(|vlan| rest.remove(vlan));
            prop_assert!(rest.is_empty());
        }
    }
}
