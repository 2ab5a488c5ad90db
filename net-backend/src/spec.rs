//! Ports, uplink and switch as the user writes them: options on the command line, tables `[[port]]`, `[uplink]` and
//! `[switch]` in the configuration file, `--port` and `--uplink` lists, or the parameters of control methods. All have the
//! same keys.

use crate::frame::MacAddr;
use crate::options::{
    InvalidOption, MAX_PAIRS, MirrorOptions, PortOptions, TableOptions, TapOptions, UplinkDevice,
    UplinkOptions,
};
use crate::switch::{Direction, Limits, PortPolicy, Prefix, Rate, RatePair, Rule, StormLimits, VlanMode};
use crate::uplink::xdp;
use crate::values::{RateText, VlanText};
use daemon::cli::{ByteSize, ListError, parse_list_after};
use daemon::device::check_range;
use daemon::device_spec;
use serde::Deserialize;
use std::str::FromStr;

/// Name of the command line's own port, when `--id` gives none.
pub const DEFAULT_ID: &str = "port0";
/// Name of the uplink, when it has none of its own.
pub const UPLINK_ID: &str = "uplink";

device_spec! {
    /// One port. Every key is optional but a socket, where the port is not the command line's own.
    #[command(next_help_heading = "Port")]
    pub struct PortSpec("port") {
        /// Name of the port for logs, metrics and vhostctl
        #[arg(long, value_name = "NAME")]
        pub id: Option<String>,

        /// MAC address of the guest
        ///
        /// The switch then knows where it is before it sends, and nobody else can take it over. Give QEMU's device the same.
        #[arg(long, value_name = "ADDRESS")]
        pub mac: Option<MacAddr>,

        /// One more address that belongs to the port; repeatable
        ///
        /// In a --port list, several are joined with +.
        #[arg(long = "more-macs", value_name = "ADDRESS")]
        pub more_macs: Vec<MacAddr>,

        /// Drop frames that the guest sends from any other address than its own
        #[arg(long)]
        pub anti_spoof: bool,

        /// IP address or network the guest may claim in ARP, IPv4 and IPv6; repeatable [default: any]
        #[arg(long, value_name = "ADDRESS[/LENGTH]")]
        pub addresses: Vec<Prefix>,

        /// Untagged frames of the guest belong to this VLAN, and only frames of this VLAN reach it
        #[arg(long, value_name = "VLAN")]
        pub vlan: Option<u16>,

        /// The guest sees tagged frames of these VLANs: 10+20+100-199, or all
        #[arg(long, value_name = "VLANS")]
        pub trunk: Option<VlanText>,

        /// VLAN of untagged frames on a trunk [default: none, they are dropped]
        #[arg(long, value_name = "VLAN")]
        pub native: Option<u16>,

        /// Most queue pairs the guest may use, 1 to 16 [default: 16]
        ///
        /// QEMU asks for as many as its -netdev says with queues=N, and refuses a port that has fewer. One pair is active
        /// until the guest asks for more.
        #[arg(long, value_name = "N")]
        pub queues: Option<u16>,

        /// Largest size of a queue, a power of two [default: 1024]
        #[arg(long, value_name = "N")]
        pub queue_size: Option<u16>,

        /// MTU the guest is told, 68 to 65535 [default: none, the guest takes 1500]
        #[arg(long, value_name = "BYTES")]
        pub mtu: Option<u16>,

        /// Speed the guest is told, in Mbit/s [default: unknown]
        #[arg(long, value_name = "MBITS")]
        pub speed: Option<u32>,

        /// Most bits a second the guest may send, with an optional burst: RATE or RATE:BURST
        ///
        /// A guest that sends faster waits; nothing is lost. Units are powers of 1000: `--tx-bps 1G:10M`. Can be changed
        /// while running: `vhostctl call port.set`.
        #[arg(long, value_name = "RATE")]
        pub tx_bps: Option<RateText>,

        /// Most frames a second the guest may send
        #[arg(long, value_name = "RATE")]
        pub tx_pps: Option<RateText>,

        /// Most bits a second the guest receives; more are dropped and counted
        #[arg(long, value_name = "RATE")]
        pub rx_bps: Option<RateText>,

        /// Most frames a second the guest receives
        #[arg(long, value_name = "RATE")]
        pub rx_pps: Option<RateText>,

        /// Most frames a second from the guest to addresses that no port is known to have
        #[arg(long, value_name = "RATE")]
        pub storm_unknown: Option<RateText>,

        /// Most broadcast frames a second from the guest
        #[arg(long, value_name = "RATE")]
        pub storm_broadcast: Option<RateText>,

        /// Most multicast frames a second from the guest
        #[arg(long, value_name = "RATE")]
        pub storm_multicast: Option<RateText>,

        /// Keep frames from other isolated ports; the uplink and other ports are reached
        #[arg(long)]
        pub isolated: bool,

        /// Most addresses learned from the guest [default: 256]
        #[arg(long, value_name = "N")]
        pub learn_limit: Option<u32>,

        /// Do not learn addresses from the guest: its own are those of --mac and --more-macs
        #[arg(long)]
        pub no_learning: bool,

        /// Keep frames to addresses that no port is known to have from the guest
        #[arg(long)]
        pub no_flood: bool,

        /// Copy all frames of the guest to another port, or to a file: pcapng:PATH
        #[arg(long, value_name = "TARGET")]
        pub mirror: Option<String>,

        /// Copy one direction only: out of the guest, or in to it [default: both]
        #[arg(long, value_name = "DIRECTION", value_parser = direction)]
        pub mirror_direction: Option<Direction>,

        /// Bytes of a frame that go to a mirror file [default: all]
        #[arg(long, value_name = "BYTES")]
        pub mirror_snaplen: Option<u32>,

        /// Most bytes of a mirror file [default: as the disk takes]
        #[arg(long, value_name = "BYTES")]
        pub mirror_max_bytes: Option<ByteSize>,

        /// Mirror files to keep, the older ones as PATH.1, PATH.2 and so on; with 1, a full file ends the mirror [default: 1]
        #[arg(long, value_name = "N")]
        pub mirror_files: Option<u32>,

        /// A rule for frames from or to the guest; repeatable, the first that matches decides
        #[arg(long, value_name = "RULE")]
        pub filter: Vec<Rule>,

        /// Start with the link down
        #[arg(long)]
        pub link_down: bool,

        /// Send every frame back to the guest it came from, past the switch: for measuring
        #[arg(long)]
        pub loopback: bool,
    }
}

/// The uplink: what it is, its own keys, and those it has in common with ports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UplinkSpec {
    /// `tap:NAME`, `tap:` with `fd`, `af_xdp:INTERFACE` or `none`.
    pub device: Option<String>,
    /// TAP: queues; one a worker unless given.
    pub queues: Option<u16>,
    /// TAP: the bridge to attach it to.
    pub bridge: Option<String>,
    /// TAP: it stays when the daemon ends.
    pub persist: bool,
    /// TAP: MTU to set.
    pub mtu: Option<u16>,
    /// TAP: open queues, inherited.
    pub fd: Vec<i32>,
    /// TAP: it must exist already.
    pub attach: bool,
    /// TAP: frames go through NAPI and GRO.
    pub napi: bool,
    /// TAP: frames the kernel keeps for us.
    pub txqueuelen: Option<u32>,
    /// TAP: bytes the host may leave unprocessed.
    pub sndbuf: Option<u32>,
    /// AF_XDP: how it is bound.
    pub mode: Option<xdp::ModeChoice>,
    /// AF_XDP: only frames to these addresses come here.
    pub macs: Option<Vec<MacAddr>>,
    /// AF_XDP: only frames of these VLANs come here; 0 stands for untagged ones.
    pub vlans: Option<Vec<u16>>,
    /// AF_XDP: who gets broadcasts and multicasts when `macs` is given.
    pub groups: Option<xdp::Groups>,
    /// AF_XDP: entries of each ring.
    pub ring: Option<u32>,
    /// AF_XDP: microseconds of busy polling a call.
    pub busy_poll: Option<u32>,
    /// AF_XDP: whether the kernel says when it needs a call.
    pub need_wakeup: Option<bool>,
    /// As a port's.
    pub id: Option<String>,
    /// As a port's.
    pub vlan: Option<u16>,
    /// As a port's.
    pub trunk: Option<VlanText>,
    /// As a port's.
    pub native: Option<u16>,
    /// As a port's; what the switch sends to the wire.
    pub rx_bps: Option<RateText>,
    /// As a port's; what the switch sends to the wire.
    pub rx_pps: Option<RateText>,
    /// As a port's; what comes from the wire.
    pub tx_bps: Option<RateText>,
    /// As a port's; what comes from the wire.
    pub tx_pps: Option<RateText>,
    /// As a port's.
    pub storm_unknown: Option<RateText>,
    /// As a port's.
    pub storm_broadcast: Option<RateText>,
    /// As a port's.
    pub storm_multicast: Option<RateText>,
    /// As a port's.
    pub learn_limit: Option<u32>,
    /// As a port's.
    pub mirror: Option<String>,
    /// As a port's.
    pub mirror_direction: Option<Direction>,
    /// As a port's.
    pub mirror_snaplen: Option<u32>,
    /// As a port's.
    pub mirror_max_bytes: Option<ByteSize>,
    /// As a port's.
    pub mirror_files: Option<u32>,
    /// As a port's.
    pub filter: Vec<Rule>,
}

/// The switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(next_help_heading = "Switch")]
pub struct SwitchSpec {
    /// Seconds until a learned address that sends nothing is forgotten, 0 for never [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub aging: Option<u32>,

    /// Most addresses the switch knows at a time [default: 32768]
    #[arg(long, value_name = "N")]
    pub mac_table_size: Option<u32>,
}

impl FromStr for UplinkSpec {
    type Err = ListError;

    /// `tap:tap0,queues=2,bridge=br0`.
    fn from_str(text: &str) -> Result<Self, ListError> {
        parse_list_after("device", text)
    }
}

fn direction(text: &str) -> Result<Direction, &'static str> {
    match text {
        "in" => Ok(Direction::In),
        "out" => Ok(Direction::Out),
        _ => Err("the direction is in or out, as the guest sees it"),
    }
}

/// Sent by the guest goes into the switch.
fn limits(tx: [Option<RateText>; 2], rx: [Option<RateText>; 2]) -> Limits {
    let pair = |[packets, bits]: [Option<RateText>; 2]| RatePair { packets: rate(packets), bits: rate(bits) };
    Limits { ingress: pair(tx), egress: pair(rx) }
}

fn storm(given: [Option<RateText>; 3]) -> StormLimits {
    let [unknown, broadcast, multicast] = given.map(rate);
    StormLimits { unknown, broadcast, multicast }
}

fn rate(given: Option<RateText>) -> Rate {
    given.unwrap_or_default().0
}

/// The mirror keys of a port or the uplink; those behind the target are none without it.
struct MirrorKeys<'a> {
    target: Option<&'a String>,
    direction: Option<Direction>,
    snaplen: Option<u32>,
    max_bytes: Option<ByteSize>,
    files: Option<u32>,
}

impl MirrorKeys<'_> {
    fn options(self) -> Result<Option<MirrorOptions>, InvalidOption> {
        let lone = [
            ("mirror-direction", self.direction.is_some()),
            ("mirror-snaplen", self.snaplen.is_some()),
            ("mirror-max-bytes", self.max_bytes.is_some()),
            ("mirror-files", self.files.is_some()),
        ];
        let Some(target) = self.target else {
            let lone = lone.into_iter().find(|(_, given)| *given);
            return lone.map_or(Ok(None), |(key, _)| Err(InvalidOption::KeyWithoutMirror(key)));
        };
        Ok(Some(MirrorOptions {
            target: target.clone(),
            direction: self.direction,
            snaplen: self.snaplen,
            max_bytes: self.max_bytes.map(ByteSize::bytes),
            files: self.files,
        }))
    }
}

impl PortSpec {
    /// The options of the port, checked.
    pub fn options(&self) -> Result<PortOptions, InvalidOption> {
        let id = self.id.clone().unwrap_or_else(|| DEFAULT_ID.to_owned());
        let defaults = PortOptions::new(id);
        let options = PortOptions {
            policy: self.policy(&defaults.id)?,
            mirror: self.mirror_keys().options()?,
            mac: self.mac,
            queues: self.queues.unwrap_or(MAX_PAIRS),
            queue_size: self.queue_size.unwrap_or(defaults.queue_size),
            mtu: self.mtu,
            speed: self.speed,
            link_down: self.link_down,
            ..defaults
        };
        options.check()?;
        Ok(options)
    }

    fn policy(&self, id: &str) -> Result<PortPolicy, InvalidOption> {
        Ok(PortPolicy {
            macs: self.mac.iter().chain(&self.more_macs).copied().collect(),
            anti_spoof: self.anti_spoof,
            addresses: self.addresses.clone(),
            vlan: vlan(id, self.vlan, self.trunk.as_ref(), self.native)?,
            isolated: self.isolated,
            loopback: self.loopback,
            learning: !self.no_learning,
            learn_limit: self.learn_limit,
            flood_unknown: !self.no_flood,
            limits: limits([self.tx_pps, self.tx_bps], [self.rx_pps, self.rx_bps]),
            storm: storm([self.storm_unknown, self.storm_broadcast, self.storm_multicast]),
            filter: self.filter.clone(),
            ..PortPolicy::default()
        })
    }

    fn mirror_keys(&self) -> MirrorKeys<'_> {
        MirrorKeys {
            target: self.mirror.as_ref(),
            direction: self.mirror_direction,
            snaplen: self.mirror_snaplen,
            max_bytes: self.mirror_max_bytes,
            files: self.mirror_files,
        }
    }
}

fn vlan(
    id: &str,
    access: Option<u16>,
    trunk: Option<&VlanText>,
    native: Option<u16>,
) -> Result<VlanMode, InvalidOption> {
    match (access, trunk, native) {
        (None, None, None) => Ok(VlanMode::Open),
        (Some(vlan), None, None) => Ok(VlanMode::Access(vlan)),
        (None, Some(allowed), native) => Ok(VlanMode::Trunk { allowed: allowed.0.clone(), native }),
        (Some(_), Some(_), _) => Err(InvalidOption::AccessAndTrunk(id.into())),
        (_, None, Some(_)) => Err(InvalidOption::NativeWithoutTrunk(id.into())),
    }
}

impl UplinkSpec {
    /// The options of the uplink, checked; `None` without one.
    pub fn options(&self) -> Result<Option<UplinkOptions>, InvalidOption> {
        let text = self.device.as_deref().unwrap_or("none");
        let device = match text.split_once(':') {
            Some(("tap", name)) => UplinkDevice::Tap(self.tap(name)?),
            Some(("af_xdp" | "af-xdp", interface)) => UplinkDevice::Xdp(self.xdp(interface)?),
            None if text == "none" => return Ok(None),
            _ => return Err(InvalidOption::Uplink(text.into())),
        };
        let id = self.id.clone().unwrap_or_else(|| UPLINK_ID.to_owned());
        let policy = PortPolicy {
            uplink: true,
            vlan: vlan(&id, self.vlan, self.trunk.as_ref(), self.native)?,
            limits: limits([self.tx_pps, self.tx_bps], [self.rx_pps, self.rx_bps]),
            storm: storm([self.storm_unknown, self.storm_broadcast, self.storm_multicast]),
            learn_limit: self.learn_limit,
            filter: self.filter.clone(),
            ..PortPolicy::default()
        };
        let mirror = self.mirror_keys().options()?;
        let options = UplinkOptions { id, device, policy, mirror };
        options.check()?;
        Ok(Some(options))
    }

    fn mirror_keys(&self) -> MirrorKeys<'_> {
        MirrorKeys {
            target: self.mirror.as_ref(),
            direction: self.mirror_direction,
            snaplen: self.mirror_snaplen,
            max_bytes: self.mirror_max_bytes,
            files: self.mirror_files,
        }
    }

    fn tap(&self, name: &str) -> Result<TapOptions, InvalidOption> {
        let foreign = [
            ("mode", self.mode.is_some()),
            ("macs", self.macs.is_some()),
            ("vlans", self.vlans.is_some()),
            ("groups", self.groups.is_some()),
            ("ring", self.ring.is_some()),
            ("busy-poll", self.busy_poll.is_some()),
            ("need-wakeup", self.need_wakeup.is_some()),
        ];
        own_keys(&foreign, "tap")?;
        Ok(TapOptions {
            name: name.to_owned(),
            queues: self.queues,
            bridge: self.bridge.clone(),
            persist: self.persist,
            mtu: self.mtu,
            fds: self.fd.clone(),
            attach: self.attach,
            napi: self.napi,
            txqueuelen: self.txqueuelen,
            sndbuf: self.sndbuf,
        })
    }

    fn xdp(&self, interface: &str) -> Result<xdp::Spec, InvalidOption> {
        let foreign = [
            ("queues", self.queues.is_some()),
            ("bridge", self.bridge.is_some()),
            ("persist", self.persist),
            ("mtu", self.mtu.is_some()),
            ("fd", !self.fd.is_empty()),
            ("attach", self.attach),
            ("napi", self.napi),
            ("txqueuelen", self.txqueuelen.is_some()),
            ("sndbuf", self.sndbuf.is_some()),
        ];
        own_keys(&foreign, "af_xdp")?;
        Ok(xdp::Spec {
            interface: interface.to_owned(),
            mode: self.mode.unwrap_or_default(),
            macs: self.macs.clone(),
            vlans: self.vlans.clone(),
            groups: self.groups.unwrap_or_default(),
            ring: self.ring,
            busy_poll: self.busy_poll,
            need_wakeup: self.need_wakeup,
        })
    }
}

fn own_keys(foreign: &[(&'static str, bool)], kind: &'static str) -> Result<(), InvalidOption> {
    match foreign.iter().find(|(_, given)| *given) {
        Some(&(key, _)) => Err(InvalidOption::UplinkKey { key, kind }),
        None => Ok(()),
    }
}

impl SwitchSpec {
    /// What is set here, and `other`'s where nothing is.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            aging: self.aging.or(other.aging),
            mac_table_size: self.mac_table_size.or(other.mac_table_size),
        }
    }

    /// The options of the switch, checked.
    pub fn options(&self) -> Result<TableOptions, InvalidOption> {
        let defaults = TableOptions::default();
        let size = self.mac_table_size.unwrap_or(defaults.size);
        check_range("mac-table-size", size, 64, 1 << 20)?;
        Ok(TableOptions { aging: self.aging.unwrap_or(defaults.aging), size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::device::BadValue;

    fn port(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    fn uplink(text: &str) -> Result<Option<UplinkOptions>, InvalidOption> {
        text.parse::<UplinkSpec>().unwrap().options()
    }

    #[test]
    fn a_list_of_keys_is_a_port() {
        let port = port(
            "id=web,socket=/run/w,,1.sock,mac=52:54:00:00:00:01,more-macs=52:54:00:00:00:02+52:54:00:00:00:03,\
             trunk=10+20,native=1,queues=4,mtu=9000,tx-bps=1G:10M,isolated,anti-spoof",
        );
        assert_eq!(port.socket, Some("/run/w,1.sock".into()));
        let options = port.options().unwrap();
        assert_eq!(options.policy.macs.len(), 3);
        assert_eq!((options.queues, options.mtu), (4, Some(9000)));
        assert_eq!(options.policy.limits.ingress.bits, Rate { rate: 1_000_000_000, burst: 10_000_000 });
        assert!(options.policy.anti_spoof && options.policy.isolated);
        let allowed = [10, 20].into_iter().collect();
        assert_eq!(options.policy.vlan, VlanMode::Trunk { allowed, native: Some(1) });
    }

    #[test]
    fn the_configuration_file_takes_the_same_keys() {
        let text = "id = 'web'\nsocket = '/run/w.sock'\nmac = '52:54:00:00:00:01'\ntrunk = [10, '20-29']\n\
            tx-bps = 1000000\nrx-pps = { rate = 5, burst = 7 }\nfilter = []\n";
        let options = toml::from_str::<PortSpec>(text).unwrap().options().unwrap();
        assert_eq!(options.policy.limits.ingress.bits.rate, 1_000_000);
        assert_eq!(options.policy.limits.egress.packets, Rate { rate: 5, burst: 7 });
        assert!(
            matches!(&options.policy.vlan, VlanMode::Trunk { allowed, .. } if allowed.iter().count() == 11)
        );
        assert!(toml::from_str::<PortSpec>("colour = 'red'").is_err());
    }

    #[test]
    fn wrong_lists_name_what_is_wrong() {
        let error = |text: &str| text.parse::<PortSpec>().unwrap_err().to_string();
        assert_eq!(error("sockt=/a"), "There is no key 'sockt'; did you mean 'socket'?");
        assert!(error("mac=52:54").starts_with("Key 'mac': "), "{}", error("mac=52:54"));
        assert_eq!(error("mtu=65536"), "Key 'mtu': '65536' is not a number from 0 to 65535");
        assert!(error("vlan=many").contains("many"));
        assert!(error("tx-bps=fast").contains("'fast' is not a rate"));
    }

    #[test]
    fn vlan_modes_do_not_mix() {
        let error = |text: &str| port(text).options().unwrap_err();
        assert_eq!(error("vlan=1,trunk=all"), InvalidOption::AccessAndTrunk("port0".into()));
        assert_eq!(error("native=1"), InvalidOption::NativeWithoutTrunk("port0".into()));
        assert!(matches!(error("vlan=4095"), InvalidOption::Value(BadValue::Range { name: "vlan", .. })));
    }

    #[test]
    fn an_uplink_is_a_tap_an_interface_or_nothing() {
        let Some(UplinkOptions { device: UplinkDevice::Tap(tap), id, .. }) =
            uplink("tap:tap0,queues=2,bridge=br0,persist,trunk=all").unwrap()
        else {
            panic!("no TAP")
        };
        assert_eq!((tap.name.as_str(), tap.queues, tap.bridge.as_deref()), ("tap0", Some(2), Some("br0")));
        assert!(tap.persist && id == "uplink");
        let Some(UplinkOptions { device: UplinkDevice::Xdp(xdp), .. }) =
            uplink("af_xdp:eth0,mode=zero-copy,macs=52:54:00:00:00:01,vlans=10").unwrap()
        else {
            panic!("no AF_XDP")
        };
        assert_eq!((xdp.interface.as_str(), xdp.mode), ("eth0", xdp::ModeChoice::ZeroCopy));
        assert_eq!((xdp.macs.unwrap().len(), xdp.vlans), (1, Some(vec![10])));
        assert_eq!(uplink("none"), Ok(None));
        assert!(
            matches!(uplink("tap:,fd=3+4").unwrap().unwrap().device, UplinkDevice::Tap(tap) if tap.fds == [3, 4])
        );
    }

    #[test]
    fn wrong_uplinks_are_refused() {
        assert_eq!(uplink("eth0"), Err(InvalidOption::Uplink("eth0".into())));
        assert_eq!(uplink("tap:"), Err(InvalidOption::Interface(String::new())));
        assert!(matches!(uplink("tap:averyverylongname"), Err(InvalidOption::LongInterface(_))));
        assert_eq!(uplink("tap:a,mode=copy"), Err(InvalidOption::UplinkKey { key: "mode", kind: "tap" }));
        assert_eq!(
            uplink("af_xdp:a,bridge=b"),
            Err(InvalidOption::UplinkKey { key: "bridge", kind: "af_xdp" })
        );
        assert!("tap:a,mode=fast".parse::<UplinkSpec>().is_err());
    }
}
