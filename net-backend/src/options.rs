//! What an operator says about ports, uplink and switch, checked once. Rates are a second's worth; sizes are bytes.

use crate::frame::MacAddr;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most queue pairs of one port.
pub const MAX_PAIRS: u16 = 16;
/// Least MTU: what IPv4 demands of every link (virtio 1.3 §5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// Highest VLAN number; 0 and 4095 are reserved (IEEE 802.1Q).
pub const MAX_VLAN: u16 = 4094;
/// Longest name of an interface, as the kernel has it (`IFNAMSIZ` less the final NUL).
pub const MAX_INTERFACE_NAME: usize = 15;
/// Ports of a process: those of a switch less one for the uplink.
pub const MAX_PORTS: usize = 255;

/// A rate with an optional burst: 0 is no limit. Units are powers of 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// A second's worth.
    pub rate: u64,
    /// What may come at once after a pause; 0: a tenth of a second's worth.
    pub burst: u64,
}

impl Rate {
    /// Whether it limits anything.
    pub fn is_set(self) -> bool {
        self.rate != 0
    }
}

/// A number with an optional decimal unit: `1500`, `10k`, `2.5G`.
fn decimal(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() {
        return None;
    }
    let places = 10u64.checked_pow(fraction.len().try_into().ok()?)?;
    let parts = fraction.parse::<u64>().ok()?.checked_mul(scale)? / places;
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(parts)
}

impl FromStr for Rate {
    type Err = InvalidOption;

    /// `RATE` or `RATE:BURST`.
    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let (rate, burst) = text.split_once(':').unwrap_or((text, "0"));
        let number = |part| decimal(part).ok_or_else(|| InvalidOption::Rate(text.into()));
        Ok(Self { rate: number(rate)?, burst: number(burst)? })
    }
}

impl<'de> Deserialize<'de> for Rate {
    /// A number, a string as on the command line, or a table with `rate` and `burst`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a rate: a number, a string such as \"10M:1M\", or rate and burst")]
        enum Form {
            Number(u64),
            Text(String),
            Table(Table),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            rate: u64,
            #[serde(default)]
            burst: u64,
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Number(rate) => Self { rate, burst: 0 },
            Form::Text(text) => text.parse().map_err(de::Error::custom)?,
            Form::Table(Table { rate, burst }) => Self { rate, burst },
        })
    }
}

/// VLANs, written `10+20+100-199` or `all`; in a file also a list of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans(Vec<(u16, u16)>);

impl Vlans {
    /// Every VLAN there can be.
    pub fn all() -> Self {
        Self(vec![(1, MAX_VLAN)])
    }

    /// All of them, as first and last numbers of ranges.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, text: &str) -> Result<(), InvalidOption> {
        let refused = || InvalidOption::Vlans(text.into());
        let number =
            |text: &str| text.parse().ok().filter(|vlan| (1..=MAX_VLAN).contains(vlan)).ok_or_else(refused);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = (number(first)?, number(last)?);
        if range.0 > range.1 {
            return Err(refused());
        }
        self.0.push(range);
        Ok(())
    }
}

impl FromStr for Vlans {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        if text == "all" {
            return Ok(Self::all());
        }
        let mut vlans = Self::default();
        text.split('+').try_for_each(|part| vlans.add(part))?;
        Ok(vlans)
    }
}

impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |(first, last): &(u16, u16)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        f.write_str(&self.0.iter().map(range).collect::<Vec<_>>().join("+"))
    }
}

impl Serialize for Vlans {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Vlans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "VLANs: \"10+20+100-199\", \"all\", or a list of numbers and ranges")]
        enum Form {
            Number(u16),
            Text(String),
            List(Vec<Part>),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Part {
            Number(u16),
            Text(String),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Number(number) => number.to_string(),
            Form::Text(text) => text,
            Form::List(parts) => {
                let text = |part: Part| match part {
                    Part::Number(number) => number.to_string(),
                    Part::Text(text) => text,
                };
                parts.into_iter().map(text).collect::<Vec<_>>().join("+")
            }
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// How a port takes part in VLANs (IEEE 802.1Q).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VlanOptions {
    /// Tags mean nothing to the switch: one network, frames pass as they are.
    #[default]
    Transparent,
    /// Untagged frames, all in one VLAN.
    Access(u16),
    /// Tagged frames of these VLANs; untagged ones belong to `native`, or are dropped.
    Trunk {
        /// VLANs that pass.
        allowed: Vlans,
        /// VLAN of untagged frames.
        native: Option<u16>,
    },
}

/// Rates of a port, as its guest sees the directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rates {
    /// Bits sent by the guest.
    pub tx_bps: Rate,
    /// Frames sent by the guest.
    pub tx_pps: Rate,
    /// Bits received by the guest.
    pub rx_bps: Rate,
    /// Frames received by the guest.
    pub rx_pps: Rate,
}

/// Frames a second a port may send to many at once; more are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Storm {
    /// To addresses that no port has.
    pub unknown: Rate,
    /// To everybody.
    pub broadcast: Rate,
    /// To groups.
    pub multicast: Rate,
}

/// What holds for guests' ports and the uplink alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwitchPortOptions {
    /// Name for logs, metrics and the control socket.
    pub id: String,
    /// VLANs.
    pub vlan: VlanOptions,
    /// Rate limits.
    pub rates: Rates,
    /// Limits on frames to many.
    pub storm: Storm,
    /// Frames never pass to another isolated port.
    pub isolated: bool,
    /// Most addresses learnt from this port; `None`: the default.
    pub learn_limit: Option<u32>,
    /// Where copies of all its frames go: the name of a port, or `pcapng:PATH`.
    pub mirror: Option<String>,
    /// Rules that frames from and to this port must pass; see `docs/net.md`.
    pub filter: Vec<String>,
}

/// One virtio-net port, as the command line, the configuration file or `port.add` describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOptions {
    /// Its place in the switch.
    pub switch: SwitchPortOptions,
    /// The guest's address: static in the switch, and in the configuration space.
    pub mac: Option<MacAddr>,
    /// More addresses that belong to this port.
    pub more_macs: Vec<MacAddr>,
    /// Only frames from its own addresses are let in.
    pub anti_spoof: bool,
    /// Queue pairs offered.
    pub queues: u16,
    /// Largest queue size.
    pub queue_size: u16,
    /// MTU the guest is told.
    pub mtu: Option<u16>,
    /// Speed the guest is told, in Mbit/s.
    pub speed: Option<u32>,
    /// Starts with its link down.
    pub link_down: bool,
    /// Frames go back to the guest itself: for measuring.
    pub loopback: bool,
}

/// How an AF_XDP socket is bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// The first of the other three that works.
    #[default]
    Auto,
    /// The driver puts frames straight into our memory.
    ZeroCopy,
    /// The driver runs the program, the kernel copies.
    Copy,
    /// The network stack runs the program: any interface.
    Generic,
}

/// A TAP uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapOptions {
    /// Name of the interface; made if it does not exist. Empty with `fds`.
    pub name: String,
    /// Queues; `None`: one a worker.
    pub queues: Option<u16>,
    /// Bridge to attach it to.
    pub bridge: Option<String>,
    /// The interface stays when the process ends.
    pub persist: bool,
    /// MTU to set.
    pub mtu: Option<u16>,
    /// Open queues, inherited, instead of a name.
    pub fds: Vec<i32>,
}

/// An AF_XDP uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpOptions {
    /// Name of the interface.
    pub interface: String,
    /// How the sockets are bound.
    pub mode: XdpMode,
    /// Queues; `None`: one a worker, at most those of the interface.
    pub queues: Option<u16>,
    /// Only frames to these addresses (and groups) come here, the host keeps the others; empty: all do.
    pub macs: Vec<MacAddr>,
    /// Only frames of these VLANs come here; empty: all do.
    pub vlans: Vlans,
    /// Microseconds the kernel polls the driver on our behalf; 0: it does not.
    pub busy_poll_us: u32,
}

/// What the switch is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkDevice {
    /// A TAP interface.
    Tap(TapOptions),
    /// An interface through AF_XDP.
    Xdp(XdpOptions),
}

/// The uplink and its place in the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkOptions {
    /// The device.
    pub device: UplinkDevice,
    /// Its place in the switch.
    pub switch: SwitchPortOptions,
}

/// The switch itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchOptions {
    /// Seconds after which an address that was not heard of is forgotten; 0: never.
    pub aging_s: u32,
    /// Addresses the table holds.
    pub table_size: u32,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self { aging_s: 300, table_size: 16_384 }
    }
}

impl SwitchPortOptions {
    fn check(&self) -> Result<(), InvalidOption> {
        check_id(&self.id)?;
        let vlan = |vlan: u16| {
            let inside = (1..=MAX_VLAN).contains(&vlan);
            inside.then_some(()).ok_or(InvalidOption::Range {
                name: "vlan",
                value: vlan.into(),
                least: 1,
                most: MAX_VLAN.into(),
            })
        };
        match &self.vlan {
            VlanOptions::Transparent => Ok(()),
            VlanOptions::Access(access) => vlan(*access),
            VlanOptions::Trunk { native, .. } => native.map_or(Ok(()), vlan),
        }
    }
}

impl PortOptions {
    /// A port with every option at its default.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            switch: SwitchPortOptions { id: id.into(), ..SwitchPortOptions::default() },
            mac: None,
            more_macs: Vec::new(),
            anti_spoof: false,
            queues: MAX_PAIRS,
            queue_size: 1024,
            mtu: None,
            speed: None,
            link_down: false,
            loopback: false,
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.switch.id
    }

    /// All addresses that are its own.
    pub fn macs(&self) -> impl Iterator<Item = MacAddr> + '_ {
        self.mac.into_iter().chain(self.more_macs.iter().copied())
    }

    /// Refuses values that could not be served.
    pub fn check(&self) -> Result<(), InvalidOption> {
        self.switch.check()?;
        range("queues", self.queues.into(), 1, MAX_PAIRS.into())?;
        range("queue-size", self.queue_size.into(), 2, 32768)?;
        if let Some(mtu) = self.mtu {
            range("mtu", mtu.into(), MIN_MTU.into(), u16::MAX.into())?;
        }
        if let Some(speed) = self.speed {
            range("speed", speed, 1, i32::MAX as u32)?;
        }
        if let Some(mac) = self.macs().find(|mac| mac.is_multicast() || mac.is_zero()) {
            return Err(InvalidOption::GroupAddress { id: self.id().into(), mac });
        }
        if self.anti_spoof && self.mac.is_none() {
            return Err(InvalidOption::AntiSpoofWithoutMac(self.id().into()));
        }
        Ok(())
    }
}

impl UplinkOptions {
    /// Refuses values that no uplink can have.
    pub fn check(&self) -> Result<(), InvalidOption> {
        self.switch.check()?;
        let name = match &self.device {
            UplinkDevice::Tap(tap) if tap.name.is_empty() && !tap.fds.is_empty() => "fd",
            UplinkDevice::Tap(tap) => &tap.name,
            UplinkDevice::Xdp(xdp) => &xdp.interface,
        };
        check_interface(name)?;
        let queues = match &self.device {
            UplinkDevice::Tap(tap) => tap.queues,
            UplinkDevice::Xdp(xdp) => xdp.queues,
        };
        queues.map_or(Ok(()), |queues| range("queues", queues.into(), 1, 256))
    }
}

fn range(name: &'static str, value: u32, least: u32, most: u32) -> Result<(), InvalidOption> {
    let inside = (least..=most).contains(&value);
    inside.then_some(()).ok_or(InvalidOption::Range { name, value, least, most })
}

/// A name the kernel would take for an interface.
pub fn check_interface(name: &str) -> Result<(), InvalidOption> {
    let good = |c: char| c.is_ascii_graphic() && !"/:".contains(c);
    if name.len() > MAX_INTERFACE_NAME {
        return Err(InvalidOption::LongInterface(name.into()));
    }
    let valid = !name.is_empty() && name != "." && name != ".." && name.chars().all(good);
    if valid { Ok(()) } else { Err(InvalidOption::Interface(name.into())) }
}

fn check_id(id: &str) -> Result<(), InvalidOption> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let valid = !id.is_empty() && id.len() <= 64 && id.chars().all(good);
    if valid { Ok(()) } else { Err(InvalidOption::Id(id.into())) }
}

/// Why the description of a port, the uplink or the switch is refused; one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// A name that could not be used in a metric or a path.
    #[error("The port id '{0}' is not 1 to 64 letters, digits or any of -_.:")]
    Id(String),
    /// A number out of range.
    #[error("The value {value} for {name} is not between {least} and {most}")]
    Range {
        /// Key.
        name: &'static str,
        /// What was given.
        value: u32,
        /// Smallest.
        least: u32,
        /// Largest.
        most: u32,
    },
    /// Not a rate.
    #[error("'{0}' is not a rate such as 500, 10M or 1G:50M")]
    Rate(String),
    /// Not VLANs.
    #[error("'{0}' is not a VLAN from 1 to 4094 or a range such as 100-199")]
    Vlans(String),
    /// Access port and trunk at once.
    #[error(
        "The port '{0}' has both vlan and trunk: an access port has one VLAN, a trunk carries tagged ones"
    )]
    AccessAndTrunk(String),
    /// A native VLAN of no trunk.
    #[error("The port '{0}' has a native VLAN, but is no trunk: add trunk=all, or use vlan=N")]
    NativeWithoutTrunk(String),
    /// An address that no station can have.
    #[error("The address {mac} of port '{id}' is not one a station can have: it is zero or a group's")]
    GroupAddress {
        /// The port.
        id: String,
        /// The address.
        mac: MacAddr,
    },
    /// Nothing to compare senders with.
    #[error("The port '{0}' has anti-spoof, but no mac to compare senders with")]
    AntiSpoofWithoutMac(String),
    /// Neither `tap:NAME`, `af_xdp:IFACE` nor `none`.
    #[error("The uplink '{0}' is not tap:NAME, af_xdp:INTERFACE or none")]
    Uplink(String),
    /// A key that the kind of uplink does not have.
    #[error("The key {key} is not one of a {kind} uplink")]
    UplinkKey {
        /// The key.
        key: &'static str,
        /// `tap` or `af_xdp`.
        kind: &'static str,
    },
    /// Not a name of an interface.
    #[error("'{0}' cannot be the name of an interface")]
    Interface(String),
    /// Longer than the kernel's names.
    #[error("The interface name '{0}' is longer than 15 characters")]
    LongInterface(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_decimal_units_and_a_burst() {
        let rate = |text: &str| text.parse::<Rate>();
        assert_eq!(rate("10M"), Ok(Rate { rate: 10_000_000, burst: 0 }));
        assert_eq!(rate("2.5G:1M"), Ok(Rate { rate: 2_500_000_000, burst: 1_000_000 }));
        assert_eq!(rate("1.5"), Ok(Rate { rate: 1, burst: 0 }));
        assert_eq!(rate("64"), Ok(Rate { rate: 64, burst: 0 }));
        for wrong in ["", "fast", "1Q", "-1", ".", "1.", "99999999999T", "1:2:3"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn vlans_are_numbers_and_ranges() {
        let vlans: Vlans = "10+20+100-102".parse().unwrap();
        assert_eq!(vlans.iter().collect::<Vec<_>>(), [10, 20, 100, 101, 102]);
        assert_eq!(vlans.to_string(), "10+20+100-102");
        assert_eq!("all".parse::<Vlans>().unwrap().iter().count(), 4094);
        for wrong in ["", "0", "4095", "5-3", "1-", "a", "1,2"] {
            assert!(wrong.parse::<Vlans>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_that_could_not_be_served_are_refused() {
        let with = |change: fn(&mut PortOptions)| {
            let mut options = PortOptions::new("p");
            change(&mut options);
            options.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert!(with(|o| o.queues = 0).is_err());
        assert!(with(|o| o.queues = 17).is_err());
        assert!(with(|o| o.queue_size = 1).is_err());
        assert!(with(|o| o.mtu = Some(67)).is_err());
        assert_eq!(with(|o| o.mtu = Some(65535)), Ok(()));
        assert!(with(|o| o.mac = Some("01:00:5e:00:00:01".parse().unwrap())).is_err());
        assert!(with(|o| o.more_macs = vec!["00:00:00:00:00:00".parse().unwrap()]).is_err());
        assert!(with(|o| o.anti_spoof = true).is_err());
        assert!(with(|o| o.switch.vlan = VlanOptions::Access(4095)).is_err());
        assert!(with(|o| o.switch.id = "a b".into()).is_err());
    }

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        assert_eq!(check_interface("eth0.100"), Ok(()));
        assert_eq!(
            check_interface("a-very-long-name"),
            Err(InvalidOption::LongInterface("a-very-long-name".into()))
        );
        for wrong in ["", ".", "..", "a/b", "a b", "a:b"] {
            assert!(check_interface(wrong).is_err(), "{wrong}");
        }
    }
}
