//! DPDK's virtio-user as the frontend: every receive and transmit path it has, a kernel behind it, and the socket in both
//! directions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::net::driver::{NetDriver, assortment};
use e2e::net::frame::{mac, mac_text, swapped};
use e2e::net::host::Host;
use e2e::net::namespace::Namespace;
use e2e::net::testpmd::Testpmd;
use e2e::net::traffic;

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
    path("packed_vq=0,mrg_rxbuf=0,in_order=0,vectorized=1", "vectorized split ring Rx", "standard Tx"),
    path("packed_vq=1,mrg_rxbuf=1,in_order=0", "packed ring mergeable buffer Rx", "packed ring standard Tx"),
    path("packed_vq=1,mrg_rxbuf=0,in_order=0", "packed ring standard Rx", "packed ring standard Tx"),
    path("packed_vq=1,mrg_rxbuf=1,in_order=1", "packed ring mergeable buffer Rx", "packed ring inorder Tx"),
    path("packed_vq=1,mrg_rxbuf=0,in_order=1", "packed ring standard Rx", "packed ring inorder Tx"),
    path(
        "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
        "packed ring vectorized Rx",
        "packed ring vectorized Tx",
    ),
    path(
        "packed_vq=1,mrg_rxbuf=1,in_order=1,queue_size=255",
        "packed ring mergeable buffer Rx",
        "packed ring inorder Tx",
    ),
];

#[test]
fn every_path_of_virtio_user_returns_every_frame_unchanged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &[""; PATHS.len() + 1], &[])?;
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
        let has = |name: &str| used.iter().any(|path| path.contains(name));
        ensure!(has(path.receives) && has(path.sends), "{}: testpmd uses {used:?}", context());
        testpmd.process().must_run()?;
    }
    daemon.process().must_run()
}

/// Frames of many lengths to the mirror at `host` come back as they were.
fn echoes(driver: &mut NetDriver, host: u8) -> Result<()> {
    const OURS: u8 = 0x80;
    // More than a ring holds, so that indices wrap.
    for round in 0..20 {
        let frames = assortment(mac(host), mac(OURS), round * 100);
        driver.send_all(&frames)?;
        let echoes: Vec<_> = frames.iter().map(|frame| swapped(frame)).collect();
        driver.expect_all(&echoes).with_context(|| format!("Round {round}"))?;
    }
    driver.drained()
}
