//! A guest and the world outside: a network namespace behind a TAP, and one behind a veth pair by AF_XDP. Nobody turns any
//! offload off.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::Guest;
use e2e::net::driver::{NetDriver, assortment, flows};
use e2e::net::frame::mac;
use e2e::net::host::Host;
use e2e::net::namespace::Namespace;
use e2e::net::nic::Nic;
use e2e::net::traffic;
use e2e::process::wait_until;

const GUEST: &str = "10.0.0.2";
const OUTSIDE: &str = "10.0.0.1";

/// Pings, files and iperf3 both ways.
fn talk(guest: &mut Guest, outside: &mut Namespace) -> Result<()> {
    traffic::reaches(guest, OUTSIDE)?;
    traffic::ping(guest, OUTSIDE, &[0, 1, 56, 1472])?;
    traffic::send_file(guest, outside, OUTSIDE, 4)?;
    traffic::send_file(outside, guest, GUEST, 4)?;
    traffic::serve(outside)?;
    for options in ["", "-R", "-u -b 10M -l 1400", "-u -b 10M -l 1400 -R"] {
        let flow = traffic::iperf(guest, OUTSIDE, &format!("-t 1 {options}"))?;
        ensure!(flow.bytes > 100_000 && flow.lost * 2 <= flow.datagrams, "iperf3 {options}: {flow:?}");
    }
    Ok(())
}

#[test]
fn a_guest_talks_to_the_host_over_a_tap() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut outside = Namespace::new()?;
    let options = ["--workers", "2", "--uplink", "tap:tap0,queues=2"];
    let mut daemon = Daemon::net_in(&outside, dir.path(), &["", ""], &options)?;
    traffic::up(&mut outside, "tap0", OUTSIDE)?;
    let nic = Nic::new(&Daemon::port_of(dir.path(), 0), 2).queues(2).packed(true);
    let mut guest = Guest::builder().memory_mib(448).nic(nic).boot()?;
    traffic::up(&mut guest, "eth0", GUEST)?;
    talk(&mut guest, &mut outside)?;

    // The interface goes with the daemon, and comes back with it.
    daemon.process().kill()?;
    let gone = wait_until(Duration::from_secs(5), || Ok(!outside.run("ip -o link")?.contains("tap0")))?;
    ensure!(gone, "the TAP is left behind");
    daemon.restart()?;
    traffic::up(&mut outside, "tap0", OUTSIDE)?;
    traffic::reaches(&mut guest, OUTSIDE)?;
    traffic::send_file(&mut outside, &mut guest, GUEST, 1)
}

#[test]
fn a_guest_talks_over_a_tap_that_is_there_already_with_jumbo_frames() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut outside = Namespace::new()?;
    outside
        .run("ip tuntap add tap0 mode tap && ip link add br0 type bridge && ip link set br0 mtu 9000 up")?;
    let uplink = ["--uplink", "tap:tap0,bridge=br0,mtu=9000"];
    let _daemon = Daemon::net_in(&outside, dir.path(), &["mtu=9000"], &uplink)?;
    outside.run("ip link set tap0 up")?;
    traffic::up(&mut outside, "br0", OUTSIDE)?;
    let nic = Nic::new(&Daemon::port_of(dir.path(), 0), 2).mtu(9000);
    let mut guest = Guest::builder().memory_mib(448).vcpus(1).nic(nic).boot()?;
    traffic::up(&mut guest, "eth0", GUEST)?;
    traffic::reaches(&mut guest, OUTSIDE)?;
    traffic::ping(&mut guest, OUTSIDE, &[0, 1472, 8972])?;
    traffic::send_file(&mut guest, &mut outside, OUTSIDE, 4)?;
    traffic::send_file(&mut outside, &mut guest, GUEST, 4)
}

/// A veth pair: one end for the daemon, the other for whom it talks to.
struct Veth {
    inside: Namespace,
    outside: Namespace,
}

impl Veth {
    fn new() -> Result<Self> {
        let (mut inside, mut outside) = (Namespace::new()?, Namespace::new()?);
        inside.veth("veth0", &outside, "veth1")?;
        inside.run("ip link set veth0 up")?;
        traffic::up(&mut outside, "veth1", OUTSIDE)?;
        Ok(Self { inside, outside })
    }

    /// Whether an XDP program is attached to the daemon's end.
    fn is_redirected(&mut self) -> Result<bool> {
        Ok(self.inside.run("ip -d link show veth0")?.contains("xdp"))
    }
}

fn talk_over_veth(mode: &str, mtu: u16) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut veth = Veth::new()?;
    veth.inside.run(&format!("ip link set veth0 mtu {mtu}"))?;
    veth.outside.run(&format!("ip link set veth1 mtu {mtu}"))?;
    let uplink = ["--uplink", &format!("af_xdp:veth0,mode={mode}")];
    let port = format!("mtu={mtu}");
    let _daemon = Daemon::net_in(&veth.inside, dir.path(), &[&port, ""], &uplink)?;
    let nic = Nic::new(&Daemon::port_of(dir.path(), 0), 2).mtu(mtu);
    let mut guest = Guest::builder().memory_mib(448).vcpus(1).nic(nic).boot()?;
    traffic::up(&mut guest, "eth0", GUEST)?;
    talk(&mut guest, &mut veth.outside)?;
    traffic::ping(&mut guest, OUTSIDE, &[usize::from(mtu) - 28])
}

#[test]
fn a_guest_talks_over_af_xdp_on_veth() -> Result<()> {
    talk_over_veth("auto", 1500)
}

#[test]
fn a_guest_talks_over_af_xdp_in_jumbo_frames() -> Result<()> {
    talk_over_veth("auto", 9000)
}

#[test]
fn a_guest_talks_over_af_xdp_in_generic_mode() -> Result<()> {
    talk_over_veth("generic", 1500)
}

#[test]
fn the_xdp_program_goes_with_the_daemon_or_is_replaced_by_the_next() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut veth = Veth::new()?;
    let uplink = ["--uplink", "af_xdp:veth0"];
    // What the outside has to say by itself is not for this VLAN.
    let mut daemon = Daemon::net_in(&veth.inside, dir.path(), &["vlan=7", "vlan=7"], &uplink)?;
    for _ in 0..2 {
        ensure!(veth.is_redirected()?, "no program is attached");
        ports_talk(&dir)?;
        let (status, _) = daemon.process().terminate(Duration::from_secs(5))?;
        ensure!(status.success(), "SIGTERM: {status}");
        ensure!(!veth.is_redirected()?, "the program is left behind");
        daemon.restart()?;
        daemon.kill_and_restart()?;
        ports_talk(&dir)?;
    }
    daemon.process().terminate(Duration::from_secs(5))?;
    ensure!(!veth.is_redirected()?, "the program of a killed daemon is left behind");
    Ok(())
}

/// Two ports exchange frames beside the uplink.
fn ports_talk(dir: &tempfile::TempDir) -> Result<()> {
    let [mut a, mut b] = [0, 1].map(|index| NetDriver::attach(&Daemon::port_of(dir.path(), index)));
    let (a, b) = (a.as_mut().ok().context("The first port")?, b.as_mut().ok().context("The second port")?);
    flows(a, b, &assortment(mac(2), mac(1), 1))?;
    flows(b, a, &assortment(mac(1), mac(2), 2))
}
