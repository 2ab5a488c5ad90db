//! The methods that vhostd-net adds to the control socket.

use crate::app::App;
use crate::board::Board;
use crate::frame::MacAddr;
use crate::options::MirrorOptions;
use crate::report;
use crate::spec::PortSpec;
use crate::switch::{Direction, PortPolicy, Prefix, Rule, SwitchOptions, VlanMode};
use crate::uplink::xdp;
use crate::values::{List, RateText, VlanText};
use daemon::Failure;
use daemon::cli::ByteSize;
use daemon::control::{Method, Nothing, RpcError, params, result};
use daemon::workers::POLL_SET;
use serde::Deserialize;
use serde_json::{Value, json};

/// All of them. Those of ports come first: they are what `vhostctl`'s verbs mean.
pub const METHODS: &[Method] = &[
    Method {
        name: "port.list",
        params: "{}",
        help: "Lists the ports with address, VLANs, link, limits, connection and what the guest has set",
    },
    Method {
        name: "port.add",
        params: "{id: string, socket: string, mac?: string, vlan?: integer, ...}",
        help: "Serves one more port; the keys are those of a [[port]] in the configuration file",
    },
    Method {
        name: "port.remove",
        params: "{port: string}",
        help: "Ends a port's connection and lets go of it",
    },
    Method {
        name: "port.set",
        params: "{port: string, link?: up|down, vlan?: integer, trunk?: string, native?: integer, mac?: string, \
            more-macs?: [string], addresses?: [string], anti-spoof?: bool, isolated?: bool, no-learning?: bool, \
            no-flood?: bool, learn-limit?: integer, tx-bps?: rate, tx-pps?: rate, rx-bps?: rate, rx-pps?: rate, \
            storm-unknown?: rate, storm-broadcast?: rate, storm-multicast?: rate, loopback?: bool}",
        help: "Changes a port while it runs; what is not given stays. A rate is a number, \"RATE:BURST\" or {rate, burst}, \
            0 for none; vlan 0 takes the port out of all VLANs. The uplink can be changed like a port",
    },
    Method {
        name: "port.limit",
        params: "{port: string, tx-bps?: rate, tx-pps?: rate, rx-bps?: rate, rx-pps?: rate, storm-unknown?: rate, \
            storm-broadcast?: rate, storm-multicast?: rate}",
        help: "Changes a port's rates, as port.set does, and shows those that hold now",
    },
    Method {
        name: "port.announce",
        params: "{port: string}",
        help: "Asks the guest to announce its addresses to the network, as after a migration",
    },
    Method {
        name: "mac.list",
        params: "{port?: string}",
        help: "Lists the addresses that the switch knows, with VLAN, port and age in seconds",
    },
    Method {
        name: "mac.add",
        params: "{mac: string, port: string, vlan?: integer}",
        help: "Puts an address behind a port for good; vlan 0, the default, is the one of untagged frames",
    },
    Method {
        name: "mac.remove",
        params: "{mac: string, vlan?: integer}",
        help: "Forgets one address, learned or static",
    },
    Method {
        name: "mac.flush",
        params: "{port?: string}",
        help: "Forgets all learned addresses of a port, or of all ports",
    },
    Method {
        name: "filter.list",
        params: "{port: string}",
        help: "Lists a port's rules in their order, with how many frames each has matched",
    },
    Method {
        name: "filter.add",
        params: "{port: string, rule: string, at?: integer}",
        help: "Adds a rule to a port, at this place or behind the others; the first rule that matches decides",
    },
    Method {
        name: "filter.remove",
        params: "{port: string, at: integer}",
        help: "Removes the rule at this place, counted from 0",
    },
    Method {
        name: "mirror.set",
        params: "{port: string, to: string, direction?: in|out, snaplen?: integer, max-bytes?: integer|string, \
            files?: integer}",
        help: "Copies a port's frames to another port, or to a file: pcapng:PATH. Directions are as the guest sees them",
    },
    Method { name: "mirror.remove", params: "{port: string}", help: "Ends the copying of a port's frames" },
    Method { name: "uplink.get", params: "{}", help: "Shows the uplink: interface, mode, queues, counters" },
    Method {
        name: "uplink.filter",
        params: "{macs?: [string], vlans?: [integer], groups?: uplink|broadcast-only|host}",
        help: "Changes which frames an AF_XDP uplink takes from the host; all, when neither list is given",
    },
    Method {
        name: "switch.set",
        params: "{aging?: integer}",
        help: "Reads or changes after how many seconds a silent address is forgotten",
    },
    POLL_SET,
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    port: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Perhaps {
    port: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Link {
    Up,
    Down,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Change {
    port: String,
    link: Option<Link>,
    vlan: Option<u16>,
    trunk: Option<VlanText>,
    native: Option<u16>,
    mac: Option<MacAddr>,
    more_macs: Option<List<MacAddr>>,
    addresses: Option<List<Prefix>>,
    anti_spoof: Option<bool>,
    isolated: Option<bool>,
    no_learning: Option<bool>,
    no_flood: Option<bool>,
    learn_limit: Option<u32>,
    tx_bps: Option<RateText>,
    tx_pps: Option<RateText>,
    rx_bps: Option<RateText>,
    rx_pps: Option<RateText>,
    storm_unknown: Option<RateText>,
    storm_broadcast: Option<RateText>,
    storm_multicast: Option<RateText>,
    loopback: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Limit {
    port: String,
    tx_bps: Option<RateText>,
    tx_pps: Option<RateText>,
    rx_bps: Option<RateText>,
    rx_pps: Option<RateText>,
    storm_unknown: Option<RateText>,
    storm_broadcast: Option<RateText>,
    storm_multicast: Option<RateText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    mac: MacAddr,
    port: Option<String>,
    #[serde(default)]
    vlan: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddRule {
    port: String,
    rule: Rule,
    at: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveRule {
    port: String,
    at: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetMirror {
    port: String,
    to: String,
    direction: Option<Direction>,
    snaplen: Option<u32>,
    #[serde(rename = "max-bytes")]
    max_bytes: Option<ByteSize>,
    files: Option<u32>,
}

/// Answers one of [`METHODS`].
pub fn call(app: &App, method: &str, value: Value) -> Result<Value, RpcError> {
    match method {
        "port.list" => {
            params::<Nothing>(value)?;
            Ok(app.served().iter().map(|served| report::port(app, served)).collect())
        }
        "port.add" => {
            let spec: PortSpec = params(value)?;
            if spec.id.is_none() {
                return Err(RpcError::invalid_params("missing field `id`"));
            }
            app.add(&spec)?;
            Ok(json!({}))
        }
        "port.remove" => {
            let Which { port } = params(value)?;
            app.remove(&port).map(|()| json!({}))
        }
        "port.set" => port_set(app, params(value)?),
        "port.limit" => port_limit(app, params(value)?),
        "port.announce" => {
            let Which { port } = params(value)?;
            Ok(json!({"asked": app.find(&port)?.guest.announce()}))
        }
        "mac.list" => mac_list(app, params(value)?),
        "mac.add" => mac_add(app, params(value)?),
        "mac.remove" => {
            let address: Address = params(value)?;
            Ok(json!({"removed": app.fabric().remove(address.vlan, address.mac)}))
        }
        "mac.flush" => {
            let Perhaps { port } = params(value)?;
            let number = port.map(|port| app.board(|board| board.number(&port))).transpose()?;
            Ok(json!({"forgotten": app.fabric().flush(number)}))
        }
        "filter.list" => filter_list(app, params(value)?),
        "filter.add" => filter_add(app, params(value)?),
        "filter.remove" => filter_remove(app, params(value)?),
        "mirror.set" => mirror_set(app, params(value)?),
        "mirror.remove" => {
            let Which { port } = params(value)?;
            app.set(|board| board.set_mirror(&port, None)).map(|()| json!({}))
        }
        "uplink.get" => {
            params::<Nothing>(value)?;
            Ok(report::uplink(app))
        }
        "uplink.filter" => {
            let filter: xdp::Filter = params(value)?;
            let uplink = app.uplink().ok_or_else(|| RpcError::refused("There is no uplink"))?;
            uplink.set_filter(&filter)?;
            Ok(json!({}))
        }
        "switch.set" => switch_set(app, params(value)?),
        "poll.set" => app.workers().poll_set(value),
        other => Err(RpcError::method_not_found(other)),
    }
}

fn port_set(app: &App, change: Change) -> Result<Value, RpcError> {
    let id = change.port.clone();
    let served = app.find(&id).ok();
    if served.is_none() && change.link.is_some() {
        return Err(RpcError::refused(format!("There is no port '{id}' whose link could be changed")));
    }
    let policy = app.set(|board| {
        board.change(&id, |policy| apply(&change, policy))?;
        board.port(&id).cloned().ok_or_else(|| Failure::usage(format!("There is no port '{id}'")))
    })?;
    if let Some(served) = served {
        if let Some(link) = change.link {
            served.guest.set_link(link == Link::Up);
        }
        if change.mac.is_some() || change.more_macs.is_some() || change.anti_spoof.is_some() {
            served.guest.set_addresses(change.mac, &policy);
        }
        return Ok(report::port(app, &served));
    }
    Ok(report::uplink(app))
}

fn port_limit(app: &App, limit: Limit) -> Result<Value, RpcError> {
    let port = limit.port.clone();
    let change = Change {
        port: limit.port,
        tx_bps: limit.tx_bps,
        tx_pps: limit.tx_pps,
        rx_bps: limit.rx_bps,
        rx_pps: limit.rx_pps,
        storm_unknown: limit.storm_unknown,
        storm_broadcast: limit.storm_broadcast,
        storm_multicast: limit.storm_multicast,
        ..Change::default()
    };
    app.set(|board| board.change(&port, |policy| apply(&change, policy)))?;
    let held = app.board(|board| board.port(&port).map(|policy| (policy.limits, policy.storm)));
    let (limits, storm) = held.unwrap_or_default();
    let mut answer = json!({"limits": limits, "storm": storm});
    report::set_rates(&mut answer);
    Ok(answer)
}

fn apply(change: &Change, policy: &mut PortPolicy) -> Result<(), Failure> {
    policy.vlan = vlan(change, &policy.vlan)?;
    policy.macs = macs(change, &policy.macs);
    let set = |held: &mut bool, wanted: Option<bool>| *held = wanted.unwrap_or(*held);
    set(&mut policy.anti_spoof, change.anti_spoof);
    set(&mut policy.isolated, change.isolated);
    set(&mut policy.loopback, change.loopback);
    set(&mut policy.learning, change.no_learning.map(|no| !no));
    set(&mut policy.flood_unknown, change.no_flood.map(|no| !no));
    policy.learn_limit = change.learn_limit.or(policy.learn_limit);
    if let Some(addresses) = &change.addresses {
        policy.addresses.clone_from(&addresses.0);
    }
    let (limits, storm) = (&mut policy.limits, &mut policy.storm);
    let rates = [
        (&mut limits.ingress.bits, change.tx_bps),
        (&mut limits.ingress.packets, change.tx_pps),
        (&mut limits.egress.bits, change.rx_bps),
        (&mut limits.egress.packets, change.rx_pps),
        (&mut storm.unknown, change.storm_unknown),
        (&mut storm.broadcast, change.storm_broadcast),
        (&mut storm.multicast, change.storm_multicast),
    ];
    for (held, wanted) in rates {
        *held = wanted.map_or(*held, |rate| rate.0);
    }
    Ok(())
}

/// The port's own address comes first.
fn macs(change: &Change, held: &[MacAddr]) -> Vec<MacAddr> {
    let own = change.mac.or(held.first().copied());
    let more = change.more_macs.as_ref().map_or(held.get(1..).unwrap_or_default(), |more| &more.0);
    own.into_iter().chain(more.iter().copied().filter(|mac| Some(*mac) != own)).collect()
}

fn vlan(change: &Change, held: &VlanMode) -> Result<VlanMode, Failure> {
    match (change.vlan, &change.trunk, change.native) {
        (None, None, None) => Ok(held.clone()),
        (Some(0), None, None) => Ok(VlanMode::Open),
        (Some(vlan), None, None) => Ok(VlanMode::Access(vlan)),
        (None, Some(allowed), native) => Ok(VlanMode::Trunk { allowed: allowed.0.clone(), native }),
        (None, None, Some(native)) => {
            match held {
                VlanMode::Trunk { allowed, .. } => {
                    let native = (native != 0).then_some(native);
                    Ok(VlanMode::Trunk { allowed: allowed.clone(), native })
                }
                _ => Err(Failure::usage("The port has no native VLAN, because it is no trunk")
                    .hint("give trunk, too")),
            }
        }
        (Some(_), ..) => Err(Failure::usage("An access port has one VLAN: give vlan, or trunk and native")),
    }
}

fn mac_list(app: &App, Perhaps { port }: Perhaps) -> Result<Value, RpcError> {
    let wanted = port.map(|port| app.board(|board| board.number(&port))).transpose()?;
    let entries = app.fabric().entries(runtime::cpu::monotonic_ns());
    let named = |board: &Board| {
        let of = |entry: &crate::switch::Entry| {
            let mut value = serde_json::to_value(entry).unwrap_or_default();
            value["port"] = board.name(entry.port).map_or(Value::Null, Value::from);
            value
        };
        entries.iter().filter(|entry| wanted.is_none_or(|port| entry.port == port)).map(of).collect()
    };
    Ok(app.board(named))
}

fn mac_add(app: &App, address: Address) -> Result<Value, RpcError> {
    let port = address.port.ok_or_else(|| RpcError::invalid_params("missing field `port`"))?;
    let number = app.board(|board| board.number(&port))?;
    let added = app.fabric().add_static(address.vlan, address.mac, number, runtime::cpu::monotonic_ns());
    added.map(|()| json!({})).map_err(|error| RpcError::refused(error.to_string()))
}

fn filter_list(app: &App, Which { port }: Which) -> Result<Value, RpcError> {
    let number = app.board(|board| board.number(&port))?;
    let hits = app.board(|board| board.policy().rule_hits(number));
    Ok(hits.into_iter().map(|(rule, frames)| json!({"rule": rule, "frames": frames})).collect())
}

fn filter_add(app: &App, AddRule { port, rule, at }: AddRule) -> Result<Value, RpcError> {
    let added = app.set(|board| {
        board.change(&port, |policy| {
            let place = at.unwrap_or(policy.filter.len());
            if place > policy.filter.len() {
                return Err(no_rule(&port, place));
            }
            policy.filter.insert(place, rule);
            Ok(())
        })
    });
    added.and_then(|()| filter_list(app, Which { port }))
}

fn filter_remove(app: &App, RemoveRule { port, at }: RemoveRule) -> Result<Value, RpcError> {
    let removed = app.set(|board| {
        board.change(&port, |policy| {
            if at >= policy.filter.len() {
                return Err(no_rule(&port, at));
            }
            policy.filter.remove(at);
            Ok(())
        })
    });
    removed.and_then(|()| filter_list(app, Which { port }))
}

fn no_rule(port: &str, at: usize) -> Failure {
    Failure::usage(format!("The port '{port}' has no rule {at}")).hint("filter.list counts them from 0")
}

fn mirror_set(app: &App, set: SetMirror) -> Result<Value, RpcError> {
    let SetMirror { port, to: target, direction, snaplen, max_bytes, files } = set;
    let max_bytes = max_bytes.map(ByteSize::bytes);
    let mirror = MirrorOptions { target, direction, snaplen, max_bytes, files };
    app.set(|board| board.set_mirror(&port, Some(&mirror))).map(|()| json!({}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetSwitch {
    aging: Option<u32>,
}

fn switch_set(app: &App, SetSwitch { aging }: SetSwitch) -> Result<Value, RpcError> {
    let options = match aging {
        Some(aging) => app.set(|board| board.set_options(SwitchOptions { aging }))?,
        None => app.board(|board| board.policy().options()),
    };
    result(options)
}
