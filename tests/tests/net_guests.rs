//! Two stock Linux guests in stock QEMU on one vhostd-net: everything a network is used for.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Builder, Guest};
use e2e::net::host::Host;
use e2e::net::nic::Nic;
use e2e::net::traffic;
use serde_json::json;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

/// A guest on port `index` with two pairs of queues and jumbo frames.
fn machine(dir: &Path, index: u8, packed: bool) -> Builder {
    let socket = Daemon::port_of(dir, index.into());
    let nic = Nic::new(&socket, index + 1).queues(2).packed(packed).mtu(9000);
    Guest::builder().memory_mib(448).nic(nic)
}

fn talk(packed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Daemon::net(dir.path(), &["queues=2,mtu=9000"; 2], &["--workers", "2"])?;
    let (mut a, mut b) = machine(dir.path(), 0, packed).boot_with(machine(dir.path(), 1, packed))?;
    traffic::up(&mut a, "eth0", A)?;
    traffic::up(&mut b, "eth0", B)?;
    ensure!(a.sh("cat /sys/class/net/eth0/mtu")?.trim() == "9000", "the guest is not told the MTU");
    traffic::reaches(&mut a, B)?;
    traffic::ping(&mut a, B, &[0, 1, 56, 1472, 4000, 8972])?;
    traffic::send_file(&mut a, &mut b, B, 4)?;
    traffic::send_file(&mut b, &mut a, A, 4)?;
    traffic::serve(&mut b)?;
    // `-R` is the other way.
    for options in ["-P 4", "-P 4 -R", "-u -b 10M -l 1400", "-u -b 10M -l 8900 -R"] {
        let flow = traffic::iperf(&mut a, B, &format!("-t 1 {options}"))?;
        ensure!(flow.bytes > 100_000 && flow.lost * 2 <= flow.datagrams, "iperf3 {options}: {flow:?}");
    }
    for guest in [&mut a, &mut b] {
        uses_both_pairs(guest)?;
    }
    // Without what makes frames large, and with frames of the usual size.
    a.sh("ethtool -K eth0 tx off tso off gso off gro off && ip link set eth0 mtu 1500")?;
    traffic::send_file(&mut a, &mut b, B, 2)?;
    traffic::send_file(&mut b, &mut a, A, 2)?;
    link_goes_down_and_up(&daemon, &mut a)
}

/// The flows of iperf3 come and go on both.
fn uses_both_pairs(guest: &mut Guest) -> Result<()> {
    let counters = guest.sh("ethtool -S eth0")?;
    for name in ["rx_queue_0", "rx_queue_1", "tx_queue_0", "tx_queue_1"] {
        let counter = format!("{name}_packets: ");
        let line = counters.lines().find_map(|line| line.trim().strip_prefix(&counter));
        let packets: u64 = line.with_context(|| format!("No {name} in {counters}"))?.parse()?;
        ensure!(packets > 0, "Nothing went by {name}:\n{counters}");
    }
    Ok(())
}

/// By the switch, and by QEMU.
fn link_goes_down_and_up(daemon: &Daemon, a: &mut Guest) -> Result<()> {
    let mut control = daemon.control()?;
    for _ in 0..2 {
        control.call("port.set", json!({"port": "p0", "link": "down"}))?;
        traffic::does_not_reach(a, B)?;
        control.call("port.set", json!({"port": "p0", "link": "up"}))?;
        traffic::reaches(a, B)?;
        a.qmp().execute("set_link", json!({"name": "nic0", "up": false}))?;
        traffic::does_not_reach(a, B)?;
        a.qmp().execute("set_link", json!({"name": "nic0", "up": true}))?;
        traffic::reaches(a, B)?;
    }
    Ok(())
}

#[test]
fn two_guests_on_split_rings_talk_in_every_way() -> Result<()> {
    talk(false)
}

#[test]
fn two_guests_on_packed_rings_talk_in_every_way() -> Result<()> {
    talk(true)
}

#[test]
fn guests_are_in_the_vlans_of_their_ports_and_plugged_devices_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // The one guest has a trunk, the other a device in each VLAN; the last port is for a device that is plugged.
    let ports = ["trunk=10+20", "vlan=10", "vlan=20", "vlan=10"];
    let daemon = Daemon::net(dir.path(), &ports, &[])?;
    let nic = |index: u8| Nic::new(&Daemon::port_of(dir.path(), index.into()), index + 1);
    let trunk = Guest::builder().memory_mib(448).vcpus(1).nic(nic(0).packed(true)).hot_plug_slot();
    let access = Guest::builder().memory_mib(448).vcpus(1).nic(nic(1)).nic(nic(2).packed(true));
    let (mut trunk, mut access) = trunk.boot_with(access)?;
    trunk.sh(
        "ip link set eth0 up && for vlan in 10 20 30; do \
         ip link add link eth0 name vlan$vlan type vlan id $vlan && ip addr add 10.0.$vlan.1/24 dev vlan$vlan && \
         ip link set vlan$vlan up; done",
    )?;
    traffic::up(&mut access, "eth0", "10.0.10.2")?;
    traffic::up(&mut access, "eth1", "10.0.20.2")?;
    traffic::reaches(&mut trunk, "10.0.10.2")?;
    traffic::reaches(&mut trunk, "10.0.20.2")?;
    traffic::ping(&mut trunk, "10.0.10.2", &[0, 56, 1472])?;
    traffic::send_file(&mut trunk, &mut access, "10.0.20.2", 1)?;
    traffic::send_file(&mut access, &mut trunk, "10.0.10.1", 1)?;
    // VLAN 30 goes nowhere, and nothing goes from one VLAN to another.
    access.sh("ip addr add 10.0.30.2/24 dev eth0 && ip addr add 10.0.10.3/24 dev eth1")?;
    traffic::does_not_reach(&mut trunk, "10.0.30.2")?;

    // A port moves while it is used.
    let mut control = daemon.control()?;
    control.call("port.set", json!({"port": "p1", "vlan": 20}))?;
    traffic::does_not_reach(&mut trunk, "10.0.10.2")?;
    control.call("port.set", json!({"port": "p1", "vlan": 10}))?;
    traffic::reaches(&mut trunk, "10.0.10.2")?;

    for _ in 0..2 {
        trunk.plug_nic(&nic(3), "plugged")?;
        trunk.sh("for try in $(seq 100); do [ -e /sys/class/net/eth1 ] && break; sleep 0.1; done")?;
        trunk.sh("ip addr flush dev vlan10")?;
        traffic::up(&mut trunk, "eth1", "10.0.10.4")?;
        traffic::reaches(&mut trunk, "10.0.10.2")?;
        traffic::send_file(&mut access, &mut trunk, "10.0.10.4", 1)?;
        trunk.unplug_nic("plugged")?;
        trunk.run("ip addr add 10.0.10.1/24 dev vlan10")?;
        traffic::reaches(&mut trunk, "10.0.10.2")?;
    }
    Ok(())
}
