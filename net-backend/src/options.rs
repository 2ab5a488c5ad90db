//! What an operator says about ports, uplink and switch, checked once. Rates are a second's worth; sizes are bytes.

use crate::frame::MacAddr;
pub use crate::port::MAX_PAIRS;
use crate::switch::{DEFAULT_AGING, DEFAULT_TABLE_SIZE, Direction, MAX_VLAN, PortPolicy, VlanMode};
use crate::uplink::{self, xdp};
use daemon::device::{BadValue, check_name, check_queue_size, check_range};

/// Least MTU: what IPv4 demands of every link (virtio 1.3 §5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// One virtio-net port, as the command line, the configuration file or `port.add` describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct PortOptions {
    /// Name for logs, metrics and the control socket.
    pub id: String,
    /// Its place in the switch; `mirror` follows from the field below.
    pub policy: PortPolicy,
    /// Where copies of its frames go, before names are looked up.
    pub mirror: Option<MirrorOptions>,
    /// The guest's address: static in the switch, and in the configuration space.
    pub mac: Option<MacAddr>,
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
}

/// A mirror, its target by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorOptions {
    /// `pcapng:PATH` or the name of a port.
    pub target: String,
    /// One direction only.
    pub direction: Option<Direction>,
    /// Of a file: most bytes of a frame.
    pub snaplen: Option<u32>,
    /// Of a file: most bytes of it.
    pub max_bytes: Option<u64>,
    /// Of a file: how many are kept.
    pub files: Option<u32>,
}

impl MirrorOptions {
    /// A mirror with every option at its default.
    pub fn new(target: impl Into<String>) -> Self {
        Self { target: target.into(), direction: None, snaplen: None, max_bytes: None, files: None }
    }
}

/// What a mirror's target is called when it is a file.
pub const CAPTURE_PREFIX: &str = "pcapng:";

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
    /// The interface must exist: it is never made.
    pub attach: bool,
    /// Frames from us go through NAPI and GRO (IFF_NAPI).
    pub napi: bool,
    /// Frames the kernel keeps for us before it drops.
    pub txqueuelen: Option<u32>,
    /// Bytes of frames from us that the host may leave unprocessed before it refuses more.
    pub sndbuf: Option<u32>,
}

/// What the switch is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkDevice {
    /// A TAP interface.
    Tap(TapOptions),
    /// An interface through AF_XDP.
    Xdp(xdp::Spec),
}

/// The uplink and its place in the switch.
#[derive(Clone, Debug, PartialEq)]
pub struct UplinkOptions {
    /// Its name.
    pub id: String,
    /// The device.
    pub device: UplinkDevice,
    /// Its place in the switch; `mirror` follows from the field below.
    pub policy: PortPolicy,
    /// Where copies of its frames go.
    pub mirror: Option<MirrorOptions>,
}

/// The switch itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Seconds after which an address that was not heard of is forgotten.
    pub aging: u32,
    /// Addresses the table holds.
    pub size: u32,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self { aging: DEFAULT_AGING, size: DEFAULT_TABLE_SIZE as u32 }
    }
}

/// What ports and uplink have to keep to.
fn check_policy(id: &str, policy: &PortPolicy) -> Result<(), InvalidOption> {
    check_name("port", id)?;
    let vlan = match &policy.vlan {
        VlanMode::Open => None,
        VlanMode::Access(vlan) => Some(*vlan),
        VlanMode::Trunk { native, .. } => *native,
    };
    if let Some(vlan) = vlan {
        check_range("vlan", vlan.into(), 1, MAX_VLAN.into())?;
    }
    if let Some(mac) = policy.macs.iter().find(|mac| mac.is_multicast() || mac.is_zero()) {
        return Err(InvalidOption::GroupAddress { id: id.into(), mac: *mac });
    }
    if policy.anti_spoof && policy.macs.is_empty() {
        return Err(InvalidOption::AntiSpoofWithoutMac(id.into()));
    }
    Ok(())
}

impl PortOptions {
    /// A port with every option at its default.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            policy: PortPolicy::default(),
            mirror: None,
            mac: None,
            queues: MAX_PAIRS,
            queue_size: 1024,
            mtu: None,
            speed: None,
            link_down: false,
        }
    }

    /// Refuses values that could not be served.
    pub fn check(&self) -> Result<(), InvalidOption> {
        check_policy(&self.id, &self.policy)?;
        check_range("queues", self.queues.into(), 1, MAX_PAIRS.into())?;
        check_queue_size(self.queue_size)?;
        if let Some(mtu) = self.mtu {
            check_range("mtu", mtu.into(), MIN_MTU.into(), u16::MAX.into())?;
        }
        self.speed.map_or(Ok(()), |speed| check_range("speed", speed, 1, i32::MAX as u32))?;
        Ok(())
    }
}

impl UplinkOptions {
    /// Refuses values that no uplink can have.
    pub fn check(&self) -> Result<(), InvalidOption> {
        check_policy(&self.id, &self.policy)?;
        match &self.device {
            UplinkDevice::Tap(tap) if tap.name.is_empty() && !tap.fds.is_empty() => {}
            UplinkDevice::Tap(tap) => check_interface(&tap.name)?,
            UplinkDevice::Xdp(xdp) => check_interface(&xdp.interface)?,
        }
        match &self.device {
            UplinkDevice::Tap(TapOptions { queues: Some(queues), .. }) => {
                Ok(check_range("queues", (*queues).into(), 1, 256)?)
            }
            _ => Ok(()),
        }
    }
}

/// A name the kernel would take for an interface.
pub fn check_interface(name: &str) -> Result<(), InvalidOption> {
    match name {
        long if long.len() > uplink::MAX_NAME => Err(InvalidOption::LongInterface(name.into())),
        name if uplink::is_name(name) => Ok(()),
        _ => Err(InvalidOption::Interface(name.into())),
    }
}

/// Why the description of a port, the uplink or the switch is refused; one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// A name that no device can have, or a number out of range.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// Access port and trunk at once.
    #[error(
        "The port '{0}' has both vlan and trunk: an access port has one VLAN, a trunk carries tagged ones"
    )]
    AccessAndTrunk(String),
    /// A native VLAN of no trunk.
    #[error("The port '{0}' has a native VLAN, but is no trunk: add trunk=all, or use vlan=N")]
    NativeWithoutTrunk(String),
    /// An option of no mirror.
    #[error("{0} is given without mirror")]
    KeyWithoutMirror(&'static str),
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
        assert!(with(|o| o.queue_size = 3).is_err());
        assert_eq!(with(|o| o.queue_size = 32768), Ok(()));
        assert!(with(|o| o.mtu = Some(67)).is_err());
        assert_eq!(with(|o| o.mtu = Some(65535)), Ok(()));
        assert!(with(|o| o.policy.macs = vec!["01:00:5e:00:00:01".parse().unwrap()]).is_err());
        assert!(with(|o| o.policy.macs = vec![MacAddr::ZERO]).is_err());
        assert!(with(|o| o.policy.anti_spoof = true).is_err());
        assert!(with(|o| o.policy.vlan = VlanMode::Access(4095)).is_err());
        assert!(with(|o| o.id = "a b".into()).is_err());
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
