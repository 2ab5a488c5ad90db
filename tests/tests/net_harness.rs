//! The network harness itself, against a backend nobody here wrote: if these fail, look here before you look at
//! vhostd-net.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::guest::Guest;
use e2e::net::driver::{self, NetDriver, Options};
use e2e::net::frame::{self, mac};
use e2e::net::host::Host;
use e2e::net::namespace::Namespace;
use e2e::net::nic::Nic;
use e2e::net::testpmd::Testpmd;
use e2e::net::traffic::{self, Running, Stream};
use e2e::process::wait_until;

#[test]
fn two_guests_on_dpdk_reach_each_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sockets = ["a", "b"].map(|name| dir.path().join(name));
    let _backend = Testpmd::builder(dir.path())
        .device(&format!("net_vhost0,iface={}", sockets[0].display()))
        .device(&format!("net_vhost1,iface={}", sockets[1].display()))
        .option("--forward-mode=io")
        .option("--port-topology=paired")
        .start()?;
    let machine = |index: u8| {
        let nic = Nic::new(&sockets[usize::from(index) - 1], index);
        Guest::builder().memory_mib(448).vcpus(1).nic(nic)
    };
    let (mut a, mut b) = machine(1).boot_with(machine(2))?;
    traffic::up(&mut a, "eth0", "10.0.0.1")?;
    traffic::up(&mut b, "eth0", "10.0.0.2")?;
    traffic::reaches(&mut a, "10.0.0.2")?;
    traffic::ping(&mut a, "10.0.0.2", &[0, 56, 1472])?;
    traffic::send_file(&mut a, &mut b, "10.0.0.2", 2)?;
    traffic::serve(&mut b)?;
    let flow = traffic::iperf(&mut a, "10.0.0.2", "-t 1")?;
    ensure!(flow.bytes > 0, "{flow:?}");
    Ok(())
}

#[test]
fn namespaces_are_hosts_that_leave_nothing_behind() -> Result<()> {
    let (mut here, mut there) = (Namespace::new()?, Namespace::new()?);
    here.veth("veth0", &there, "veth1")?;
    traffic::up(&mut here, "veth0", "10.0.0.1")?;
    traffic::up(&mut there, "veth1", "10.0.0.2")?;
    traffic::reaches(&mut here, "10.0.0.2")?;
    traffic::does_not_reach(&mut here, "10.0.0.3")?;
    traffic::ping(&mut here, "10.0.0.2", &[0, 1472])?;
    traffic::send_file(&mut here, &mut there, "10.0.0.2", 4)?;
    traffic::serve(&mut there)?;
    let running = Running::start(&mut here, "10.0.0.2", "-t 1")?;
    let tcp = running.finish(&mut here, Duration::from_secs(20))?;
    ensure!(tcp.bytes > 1 << 20, "{tcp:?}");
    let udp = traffic::iperf(&mut here, "10.0.0.2", "-u -b 10M -t 1")?;
    ensure!(udp.datagrams > 100 && udp.lost < udp.datagrams, "{udp:?}");
    let stream = Stream::start(&mut here, &mut there, "10.0.0.2")?;
    ensure!(stream.stop(&mut here, &mut there)? > 0, "the stream makes no progress");

    let holder = there.pid();
    drop(there);
    // The kernel takes a namespace down in its own time.
    let gone = wait_until(Duration::from_secs(10), || Ok(here.run("ip -o link")?.lines().count() == 1))?;
    ensure!(gone, "the veth pair outlives one of its ends");
    ensure!(!std::path::Path::new(&format!("/proc/{holder}")).exists(), "the namespace is left behind");
    Ok(())
}

#[test]
fn frames_of_the_driver_cross_dpdk_unchanged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sockets = ["a", "b"].map(|name| dir.path().join(name));
    let _backend = Testpmd::builder(dir.path())
        .device(&format!("net_vhost0,iface={}", sockets[0].display()))
        .device(&format!("net_vhost1,iface={}", sockets[1].display()))
        .option("--forward-mode=io")
        .option("--port-topology=paired")
        .start()?;
    for packed in [false, true] {
        let mut here = NetDriver::attach_with(&sockets[0], Options::packed(packed))?;
        let mut there = NetDriver::attach_with(&sockets[1], Options::packed(!packed))?;
        // The backend takes note of a frontend in its own time.
        let first = frame::plain(mac(2), mac(1), 64, 0);
        let connected = wait_until(Duration::from_secs(10), || {
            here.send(&first)?;
            Ok(there.poll(Duration::from_millis(20))?.is_some())
        })?;
        ensure!(connected, "no frame arrives");
        there.clear()?;
        for round in 0..20 {
            driver::flows(&mut here, &mut there, &driver::assortment(mac(2), mac(1), round))?;
            driver::flows(&mut there, &mut here, &driver::assortment(mac(1), mac(2), round))?;
        }
    }
    Ok(())
}
