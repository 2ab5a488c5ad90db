//! What the process shows of its ports: for `status`, `port.list`, `stats` and the metrics endpoint.

use crate::app::{App, Served};
use crate::port::Port;
use crate::stats::{PortSnapshot, Traffic};
use crate::switch::{Capture, Drop, PortPolicy};
use crate::uplink_port::UplinkPort;
use daemon::device::described;
use daemon::metrics::Exposition;
use daemon::stats::{Device, Operation, Snapshot};
use serde_json::{Value, json};

/// Kind of the devices in [`Snapshot`].
const KIND: &str = "net";

/// The device part of `status`.
pub fn status(app: &App) -> Value {
    let now = runtime::cpu::monotonic_ns();
    json!({
        "ports": app.served().iter().map(|served| port(app, served)).collect::<Value>(),
        "uplink": uplink(app),
        "switch": {
            "aging": app.board(|board| board.policy().options().aging),
            "addresses": app.fabric().entries(now).len(),
            "capacity": app.fabric().capacity(),
        },
        "mirrors": app.fabric().captures().iter().map(mirror).collect::<Value>(),
        "workers": app.workers().status(),
    })
}

/// A mirror file, and how much of what was to be recorded is in it.
fn mirror(capture: &Capture) -> Value {
    let counters = capture.counters();
    json!({
        "path": capture.options().path,
        "frames": counters.written,
        "dropped": counters.dropped,
        "stopped": counters.stopped,
    })
}

/// One port, for people and programs.
pub fn port(app: &App, served: &Served) -> Value {
    let guest = &served.guest;
    let port = guest.port();
    let policy = app.board(|board| board.port(served.id()).cloned()).unwrap_or_default();
    let (commands, refused) = guest.commands();
    let own = json!({
        "id": served.id(),
        "number": port.id(),
        "mac": policy.macs.first(),
        "link": if port.link_up() { "up" } else { "down" },
        "mtu": port.mtu(),
        "queues": port.pairs(),
        "active_pairs": port.active_pairs(),
        "pairs": pairs(port),
        "receives_unfinished": port.offloads().names(),
        "policy": shown(app, &policy),
        "guest": {"filter": guest.described(), "commands": commands, "refused_commands": refused},
    });
    described(own, &served.notifier.status())
}

/// What has passed on each pair, up to the last one that was used.
fn pairs(port: &Port) -> Value {
    let traffic = |index| port.stats.queue(index).map(Traffic::get).unwrap_or_default();
    let of = |pair| [traffic(2 * pair), traffic(2 * pair + 1)];
    let used = (0..port.pairs()).rev().find(|pair| of(*pair) != [(0, 0); 2]).map_or(0, |pair| pair + 1);
    let shown = |(frames, bytes)| json!({"frames": frames, "bytes": bytes});
    (0..used).map(of).map(|[rx, tx]| json!({"rx": shown(rx), "tx": shown(tx)})).collect()
}

/// A policy with names in place of numbers, and without what is at its default: most of it would hide the rest.
fn shown(app: &App, policy: &PortPolicy) -> Value {
    let mut value = serde_json::to_value(policy).unwrap_or_default();
    let usual = serde_json::to_value(PortPolicy::default()).unwrap_or_default();
    if let Some(value) = value.as_object_mut() {
        value.retain(|key, held| key != "name" && usual.get(key) != Some(held));
    }
    set_rates(&mut value);
    let target = value.pointer_mut("/mirror/to/port");
    if let Some(target) = target {
        let number = target.as_u64().and_then(|number| u16::try_from(number).ok()).map(crate::switch::PortId);
        let name = number.and_then(|number| app.board(|board| board.name(number).map(str::to_owned)));
        *target = name.into();
    }
    value
}

/// Leaves only those rates that limit something: a dozen times nothing would hide them.
pub fn set_rates(value: &mut Value) {
    let Some(members) = value.as_object_mut() else { return };
    members.values_mut().for_each(set_rates);
    members.retain(|_, held| held["rate"] != 0 && held.as_object().is_none_or(|held| !held.is_empty()));
}

/// The uplink; null without one.
pub fn uplink(app: &App) -> Value {
    let Some(uplink) = app.uplink() else { return Value::Null };
    let mut value = uplink.report();
    let policy = app.board(|board| board.port(uplink.id()).cloned()).unwrap_or_default();
    value["policy"] = shown(app, &policy);
    let counters = uplink.port().stats.snapshot();
    value["counters"] = json!({
        "from_wire": {"frames": counters.received_frames, "bytes": counters.received_bytes, "dropped": counters.dropped_in()},
        "to_wire": {"frames": counters.sent_frames, "bytes": counters.sent_bytes, "dropped": counters.dropped_out()},
        "lost": counters.wire_lost,
        "system_calls": counters.wire_calls,
    });
    value
}

/// All counters of the process.
pub fn snapshot(app: &App) -> Snapshot {
    let mut devices: Vec<_> = app.served().iter().map(|served| device(served)).collect();
    devices.extend(app.uplink().map(|uplink| uplink_device(&uplink)));
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot::new(devices, &app.workers().stats())
}

fn device(served: &Served) -> Device {
    let mut device = Device::new(served.id(), KIND, &served.notifier.status(), &served.queues);
    // Receive buffers wait in the ring by nature.
    device.in_flight = 0;
    add(&mut device, &served.guest.port().stats.snapshot());
    let (commands, refused) = served.guest.commands();
    device.extra.insert("control_commands".into(), commands);
    device.extra.insert("control_commands_refused".into(), refused);
    device
}

fn uplink_device(uplink: &UplinkPort) -> Device {
    let queues = uplink.queues() as u32;
    let mut device = Device {
        name: uplink.id().to_owned(),
        kind: KIND.into(),
        connected: true,
        queues,
        ..Device::default()
    };
    let counters = uplink.port().stats.snapshot();
    add(&mut device, &counters);
    device.extra.insert("wire_calls".into(), counters.wire_calls);
    device.extra.insert("wire_lost".into(), counters.wire_lost);
    device
}

/// Directions are as the guest sees them: it sends `tx` and receives `rx`. For the uplink, the wire takes its place.
fn add(device: &mut Device, port: &PortSnapshot) {
    let operation = |requests, bytes, errors| Operation { requests, bytes, errors, ..Operation::default() };
    let tx = operation(port.received_frames, port.received_bytes, port.dropped_in());
    let rx = operation(port.sent_frames, port.sent_bytes, port.dropped_out());
    device.operations.insert("tx".into(), tx);
    device.operations.insert("rx".into(), rx);
    let counters = [
        ("flooded", port.flooded),
        ("checksummed", port.checksummed),
        ("segmented", port.segmented),
        ("crossed", port.crossed),
    ];
    for (name, value) in counters {
        device.extra.insert(name.into(), value);
    }
    for (direction, drops) in [("tx", &port.in_drops), ("rx", &port.out_drops)] {
        for why in Drop::ALL.into_iter().filter(|why| drops[*why as usize] != 0) {
            device.extra.insert(format!("{direction}_dropped_{}", why.name()), drops[why as usize]);
        }
    }
}

/// Metrics with labels of their own, and those that are not counters.
pub fn metrics(app: &App, out: &mut Exposition) {
    let served = app.served();
    let uplink = app.uplink();
    let guests = served.iter().map(|served| (served.id(), served.guest.port()));
    let ports: Vec<_> = guests.chain(uplink.iter().map(|uplink| (uplink.id(), uplink.port()))).collect();
    for (name, port) in &ports {
        drops(name, port, out);
        queues(name, port, out);
        let learned = app.fabric().census(port.id()).learned as f64;
        let help = "Addresses learned from the port";
        out.gauge("vhostd_net_learned_addresses", help, &[("device", name)], learned);
    }
    for served in &served {
        let up = f64::from(u8::from(served.guest.port().link_up()));
        out.gauge("vhostd_net_link_up", "1 while the link of the port is up", &[("device", served.id())], up);
    }
    app.fabric().captures().iter().for_each(|capture| mirrored(capture, out));
}

fn mirrored(capture: &Capture, out: &mut Exposition) {
    let (path, counters) = (capture.options().path.display().to_string(), capture.counters());
    for (outcome, frames) in [("written", counters.written), ("dropped", counters.dropped)] {
        let labels = [("path", path.as_str()), ("outcome", outcome)];
        out.counter("vhostd_net_mirror_frames_total", "Frames for a mirror file", &labels, frames);
    }
}

fn drops(name: &str, port: &Port, out: &mut Exposition) {
    let snapshot = port.stats.snapshot();
    for (direction, drops) in [("tx", &snapshot.in_drops), ("rx", &snapshot.out_drops)] {
        for why in Drop::ALL {
            let labels = [("device", name), ("direction", direction), ("reason", why.name())];
            let help = "Frames that went nowhere; tx: from the guest, rx: for the guest";
            out.counter("vhostd_net_dropped_frames_total", help, &labels, drops[why as usize]);
        }
    }
}

fn queues(name: &str, port: &Port, out: &mut Exposition) {
    for index in 0..2 * port.pairs() {
        let Some((frames, bytes)) = port.stats.queue(index).map(|traffic| traffic.get()) else { continue };
        if frames == 0 {
            continue;
        }
        let direction = if index % 2 == 0 { "rx" } else { "tx" };
        let pair = (index / 2).to_string();
        let labels = [("device", name), ("direction", direction), ("pair", pair.as_str())];
        out.counter("vhostd_net_queue_frames_total", "Frames of one queue", &labels, frames);
        out.counter("vhostd_net_queue_bytes_total", "Bytes of one queue", &labels, bytes);
    }
}
