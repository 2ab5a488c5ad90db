//! Names of ports and sets of them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Most ports of one switch, the uplink included.
pub const MAX_PORTS: usize = 256;

const WORDS: usize = MAX_PORTS / 64;

/// One port of the switch: a small number below [`MAX_PORTS`], given out by the application and reused only
/// after the port was removed from every worker's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortId(pub u16);

impl PortId {
    /// Place in an array of [`MAX_PORTS`].
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of ports, by value: four words.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PortSet([u64; WORDS]);

impl PortSet {
    /// No port.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every port there can be.
    pub const ALL: Self = Self([u64::MAX; WORDS]);

    /// Adds `port`; numbers from [`MAX_PORTS`] on are ignored.
    #[inline]
    pub fn insert(&mut self, port: PortId) {
        if let Some(word) = self.0.get_mut(port.index() / 64) {
            *word |= 1 << (port.0 % 64);
        }
    }

    /// Takes `port` out.
    #[inline]
    pub fn remove(&mut self, port: PortId) {
        if let Some(word) = self.0.get_mut(port.index() / 64) {
            *word &= !(1 << (port.0 % 64));
        }
    }

    /// Whether `port` is in the set.
    #[inline]
    pub fn contains(&self, port: PortId) -> bool {
        self.0.get(port.index() / 64).is_some_and(|word| word >> (port.0 % 64) & 1 == 1)
    }

    /// Whether no port is in the set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// How many ports are in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Ports in both sets.
    #[inline]
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Ports of this set that are not in `other`.
    #[inline]
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// The ports, lowest number first.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = PortId> + use<> {
        let words = self.0;
        (0..WORDS).flat_map(move |i| {
            let mut left = words[i];
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as u16)?;
                left &= left - 1;
                Some(PortId(i as u16 * 64 + bit))
            })
        })
    }
}

impl FromIterator<PortId> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortId>>(ports: I) -> Self {
        let mut set = Self::EMPTY;
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|port| port.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_number_that_is_no_port_never_gets_into_a_set() {
        let mut set = PortSet::EMPTY;
        set.insert(PortId(MAX_PORTS as u16));
        set.insert(PortId(u16::MAX));
        set.remove(PortId(u16::MAX));
        assert!(set.is_empty() && !PortSet::ALL.contains(PortId(u16::MAX)));
    }

    proptest! {
        #[test]
        fn a_set_holds_what_a_btree_set_holds(
            a in prop::collection::btree_set(0u16..MAX_PORTS as u16, 0..40),
            b in prop::collection::btree_set(0u16..MAX_PORTS as u16, 0..40),
        ) {
            let set = |ports: &BTreeSet<u16>| ports.iter().map(|p| PortId(*p)).collect::<PortSet>();
            let numbers = |set: PortSet| set.iter().map(|p| p.0).collect::<Vec<_>>();
            prop_assert_eq!(numbers(set(&a)), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set(&a).len(), a.len());
            prop_assert_eq!(numbers(set(&a).intersection(&set(&b))), a.intersection(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(numbers(set(&a).difference(&set(&b))), a.difference(&b).copied().collect::<Vec<_>>());
            let mut rest = set(&a);
            a.iter().for_each(|p| rest.remove(PortId(*p)));
            prop_assert!(rest.is_empty());
        }
    }
}
