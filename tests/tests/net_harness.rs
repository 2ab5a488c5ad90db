//! The network harness itself, against a backend nobody here wrote: if these fail, look here before you look at
//! vhostd-net.

use anyhow::{Result, ensure};
use e2e::guest::Guest;
use e2e::net::host::Host;
use e2e::net::namespace::Namespace;
use e2e::net::nic::Nic;
use e2e::net::testpmd::Testpmd;
use e2e::net::traffic::{self, Running, Stream};
use std::time::Duration;

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
    let mut guests = Vec::new();
    for (socket, host) in sockets.iter().zip(1..) {
        let mut guest = Guest::builder().memory_mib(384).vcpus(1).nic(Nic::new(socket, host)).boot()?;
        guest.sh(&format!("ip addr add 10.0.0.{host}/24 dev eth0 && ip link set eth0 up"))?;
        guests.push(guest);
    }
    let [a, b] = &mut guests[..] else { unreachable!("two guests were booted") };
    traffic::reaches(a, "10.0.0.2")?;
    traffic::ping(a, "10.0.0.2", &[0, 56, 1472])?;
    traffic::send_file(a, b, "10.0.0.2", 2)?;
    traffic::serve(b)?;
    let flow = traffic::iperf(a, "10.0.0.2", "-t 1")?;
    println!("{:?} {} Mbit/s", flow, flow.rate() / 1e6);
    ensure!(flow.bytes > 0, "{flow:?}");
    Ok(())
}

#[test]
fn namespaces_are_hosts_that_leave_nothing_behind() -> Result<()> {
    let (mut here, mut there) = (Namespace::new()?, Namespace::new()?);
    here.veth("veth0", &there, "veth1")?;
    here.run("ip addr add 10.0.0.1/24 dev veth0 && ip link set veth0 up")?;
    there.run("ip addr add 10.0.0.2/24 dev veth1 && ip link set veth1 up")?;
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
    ensure!(here.run("ip -o link")?.lines().count() == 1, "the veth pair outlives one of its ends");
    ensure!(!std::path::Path::new(&format!("/proc/{holder}")).exists(), "the namespace is left behind");
    Ok(())
}
