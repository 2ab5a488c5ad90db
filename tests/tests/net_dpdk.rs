//! DPDK's virtio-user as the frontend: every receive and transmit path it has, a kernel behind it, and the socket in both
//! directions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::net::driver::{NetDriver, assortment};
use e2e::net::frame::{mac, mac_text, plain, swapped};
use e2e::net::namespace::Namespace;
use e2e::net::testpmd::Testpmd;
use e2e::net::traffic;
use e2e::process::wait_until;

/// Our driver's address.
const OURS: u8 = 0x80;

/// A path: options of the device, and what testpmd calls the functions it then uses.
struct Path {
    options: &'static str,
    receives: &'static str,
    sends: &'static str,
}

const fn path(options: &'static str, receives: &'static str, sends: &'static str) -> Path {
    Path { options, receives, sends }
}

/// All combinations of the table in DPDK's guide of virtio (22.11), and a packed ring of a size that is no power of two.
const PATHS: [Path; 11] = [
    path("packed_vq=0,mrg_rxbuf=1,in_order=0", "mergeable buffer Rx", "standard Tx"),
    path("packed_vq=0,mrg_rxbuf=1,in_order=1", "inorder Rx", "inorder Tx"),
    path("packed_vq=0,mrg_rxbuf=0,in_order=1", "inorder Rx", "inorder Tx"),
    path("packed_vq=0,mrg_rxbuf=0,in_order=0", "standard Rx", "standard Tx"),
    path("packed_vq=0,mrg_rxbuf=0,in_order=0,vectorized=1", "vectorized Rx", "standard Tx"),
    path("packed_vq=1,mrg_rxbuf=1,in_order=0", PACKED_MERGEABLE, PACKED_TX),
    path("packed_vq=1,mrg_rxbuf=0,in_order=0", "packed ring standard Rx", PACKED_TX),
    path("packed_vq=1,mrg_rxbuf=1,in_order=1", PACKED_MERGEABLE, PACKED_TX),
    path("packed_vq=1,mrg_rxbuf=0,in_order=1", "packed ring standard Rx", PACKED_TX),
    path(
        "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
        "packed ring vectorized Rx",
        "packed ring vectorized Tx",
    ),
    path("packed_vq=1,mrg_rxbuf=1,in_order=1,queue_size=255", PACKED_MERGEABLE, PACKED_TX),
];
const PACKED_MERGEABLE: &str = "packed ring mergeable buffer Rx";
const PACKED_TX: &str = "packed ring standard Tx";

#[test]
fn every_path_of_virtio_user_returns_every_frame_unchanged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // A mirror returns what is not for it too, so the switch must know where everyone is.
    let addresses: Vec<String> =
        (0..PATHS.len()).map(|index| format!("mac={}", mac_text(mac(index as u8)))).collect();
    let ports: Vec<&str> = addresses.iter().map(String::as_str).chain([""]).collect();
    let mut daemon = Daemon::net(dir.path(), &ports, &[])?;
    let mut testpmd = Testpmd::builder(dir.path())
        .eal("--force-max-simd-bitwidth=512")
        .option("--forward-mode=macswap")
        .option("--port-topology=loop");
    for (index, path) in PATHS.iter().enumerate() {
        let (socket, mac) = (Daemon::port_of(dir.path(), index), mac_text(mac(index as u8)));
        let options = path.options;
        testpmd =
            testpmd.device(&format!("net_virtio_user{index},path={},mac={mac},{options}", socket.display()));
    }
    let mut testpmd = testpmd.start()?;
    let mut driver = NetDriver::attach(&Daemon::port_of(dir.path(), PATHS.len()))?;
    for (index, path) in PATHS.iter().enumerate() {
        let context = || format!("Path {index}, {}", path.options);
        echoes(&mut driver, index as u8).with_context(context)?;
        let used = testpmd.paths(index)?;
        ensure!(used == [path.sends, path.receives], "{}: testpmd uses {used:?}", context());
        testpmd.process().must_run()?;
    }
    daemon.process().must_run()
}

/// Frames of many lengths to the mirror at `host` come back as they were.
fn echoes(driver: &mut NetDriver, host: u8) -> Result<()> {
    // More than a ring holds, so that indices wrap.
    for round in 0..20 {
        let frames = assortment(mac(host), mac(OURS), round * 100);
        driver.send_all(&frames)?;
        let echoes: Vec<_> = frames.iter().map(|frame| swapped(frame)).collect();
        driver.expect_all(&echoes).with_context(|| format!("Round {round}"))?;
    }
    driver.drained()
}

#[test]
fn a_kernel_behind_virtio_user_talks_to_the_uplink() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // The switch and its uplink are in one namespace, the kernel that plays the guest in the other.
    let (mut outside, mut inside) = (Namespace::new()?, Namespace::new()?);
    let _daemon = Daemon::net_in(&outside, dir.path(), &[""], &["--uplink", "tap:tap0"])?;
    let _testpmd = Testpmd::builder(dir.path())
        .device(&format!("net_virtio_user0,path={}", Daemon::port_of(dir.path(), 0).display()))
        .device("net_tap0,iface=eth0")
        .option("--forward-mode=io")
        .option("--port-topology=paired")
        .start_in(&inside)?;
    traffic::up(&mut outside, "tap0", "10.0.0.1")?;
    traffic::up(&mut inside, "eth0", "10.0.0.2")?;
    traffic::reaches(&mut inside, "10.0.0.1")?;
    traffic::ping(&mut inside, "10.0.0.1", &[0, 56, 1472])?;
    traffic::send_file(&mut inside, &mut outside, "10.0.0.1", 8)?;
    traffic::send_file(&mut outside, &mut inside, "10.0.0.2", 8)?;
    traffic::serve(&mut outside)?;
    for options in ["-t 1", "-t 1 -R", "-t 1 -u -b 20M", "-t 1 -u -b 20M -R"] {
        let flow = traffic::iperf(&mut inside, "10.0.0.1", options)?;
        ensure!(flow.bytes > 100_000 && flow.lost * 2 <= flow.datagrams, "iperf3 {options}: {flow:?}");
    }
    Ok(())
}

#[test]
fn a_virtio_user_that_listens_is_found_again_after_each_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &["connect", ""], &[])?;
    let listener = Daemon::port_of(dir.path(), 0);
    let device = format!(
        "net_virtio_user0,path={},server=1,mac={},packed_vq=1,in_order=1",
        listener.display(),
        mac_text(mac(0))
    );
    let start = || {
        let builder = Testpmd::builder(dir.path()).device(&device);
        builder.option("--forward-mode=macswap").option("--port-topology=loop").start()
    };
    let socket = Daemon::port_of(dir.path(), 1);
    for _ in 0..2 {
        let mut testpmd = start()?;
        let mut driver = NetDriver::attach(&socket)?;
        answers_again(&mut driver)?;
        echoes(&mut driver, 0)?;
        for _ in 0..3 {
            daemon.kill_and_restart()?;
            driver.reconnect(&socket)?;
            answers_again(&mut driver)?;
            echoes(&mut driver, 0)?;
        }
        // The daemon tries until the next one listens.
        testpmd.process().kill()?;
        std::fs::remove_file(&listener).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(())
}

/// Waits until both ends are attached.
fn answers_again(driver: &mut NetDriver) -> Result<()> {
    let frame = plain(mac(0), mac(OURS), 64, 1);
    let answered = wait_until(Duration::from_secs(20), || {
        driver.send(&frame)?;
        Ok(driver.poll(Duration::from_millis(50))?.is_some())
    })?;
    ensure!(answered, "testpmd does not answer");
    driver.clear()
}
