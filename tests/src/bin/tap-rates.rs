//! What a guest in QEMU gets through a TAP: by vhostd-net, and by QEMU's own `-netdev tap`. One guest has a device of each
//! kind; rounds alternate between them, and medians are compared. Nothing is judged here: the guest is emulated, and its own
//! network stack takes most of the time on both ways.

use anyhow::{Context, Result};
use e2e::daemon::Daemon;
use e2e::guest::Guest;
use e2e::net::host::Host;
use e2e::net::namespace::Namespace;
use e2e::net::nic::Nic;
use e2e::net::traffic;

const ROUNDS: usize = 5;
/// vhostd-net's network and QEMU's.
const NETWORKS: [&str; 2] = ["10.0.0", "10.0.1"];
const LOADS: [(&str, &str); 4] = [
    ("TCP from the guest", "-t 2"),
    ("TCP to the guest", "-t 2 -R"),
    ("UDP from the guest, 1400 bytes", "-t 2 -u -b 0 -l 1400"),
    ("UDP to the guest, 1400 bytes", "-t 2 -u -b 0 -l 1400 -R"),
];

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut outside = Namespace::new()?;
    let _daemon = Daemon::net_in(&outside, dir.path(), &[""], &["--uplink", "tap:tap0"])?;
    outside.run("ip tuntap add tap1 mode tap vnet_hdr")?;
    let ours = Nic::new(&Daemon::port_of(dir.path(), 0), 2);
    let netdev = "tap,id=own,ifname=tap1,script=no,downscript=no,vhost=off";
    let device = "virtio-net-pci,netdev=own,mac=52:54:00:00:01:02,romfile=";
    let mut guest = Guest::builder()
        .vcpus(1)
        .nic(ours)
        .options(&["-netdev", netdev, "-device", device])
        .inside(&outside)
        .boot()?;
    for (index, network) in NETWORKS.iter().enumerate() {
        traffic::up(&mut outside, &format!("tap{index}"), &format!("{network}.1"))?;
        traffic::up(&mut guest, &format!("eth{index}"), &format!("{network}.2"))?;
        traffic::reaches(&mut guest, &format!("{network}.1"))?;
    }
    traffic::serve(&mut outside)?;
    println!("{:<34} {:>12} {:>12} {:>7}", "Mbit/s, median of 5", "vhostd-net", "QEMU's own", "ratio");
    for (name, options) in LOADS {
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (network, rates) in NETWORKS.iter().zip(&mut rates) {
                rates.push(traffic::iperf(&mut guest, &format!("{network}.1"), options)?.rate() / 1e6);
            }
        }
        let [ours, theirs] = rates.map(median);
        let (ours, theirs) = (ours.context("No rounds")?, theirs.context("No rounds")?);
        println!("{name:<34} {ours:>12.1} {theirs:>12.1} {:>7.2}", ours / theirs);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
