//! Live migration of a guest from one port of the switch to another while a verified stream flows to it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Builder, Guest};
use e2e::net::nic::Nic;
use e2e::net::traffic::{self, Stream};
use e2e::process::wait_until;
use serde_json::json;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

/// The guest that moves, at this port: the same machine wherever it is.
fn machine(dir: &Path, port: usize, packed: bool) -> Builder {
    let nic = Nic::new(&Daemon::port_of(dir, port), 2).queues(2).packed(packed);
    Guest::builder().memory_mib(448).nic(nic)
}

fn there_and_back(packed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Daemon::net(dir.path(), &["", "", ""], &[])?;
    let sender = Guest::builder().memory_mib(448).vcpus(1).nic(Nic::new(&Daemon::port_of(dir.path(), 0), 1));
    let (mut a, mut b) = sender.boot_with(machine(dir.path(), 1, packed))?;
    traffic::up(&mut a, "eth0", A)?;
    traffic::up(&mut b, "eth0", B)?;
    traffic::reaches(&mut a, B)?;
    // Received data are what the device writes; a page that the dirty log missed arrives changed or not at all.
    let stream = Stream::start(&mut a, &mut b, B)?;
    for port in [2, 1] {
        let target = machine(dir.path(), port, packed).await_migration()?;
        b = b.migrate_to(target)?;
        is_learned_at(&daemon, "52:54:00:00:00:02", &format!("p{port}"))?;
        stream.goes_on(&mut b)?;
    }
    stream.stop(&mut a, &mut b)?;

    // When the guest has nothing to say, the switch is told where it is all the same.
    daemon.control()?.call("mac.flush", json!({}))?;
    b = b.migrate_to(machine(dir.path(), 2, packed).await_migration()?)?;
    is_learned_at(&daemon, "52:54:00:00:00:02", "p2")?;
    traffic::ping(&mut b, A, &[0, 56, 1472])?;
    traffic::send_file(&mut b, &mut a, A, 2)
}

/// The switch knows that the address has moved.
fn is_learned_at(daemon: &Daemon, mac: &str, port: &str) -> Result<()> {
    let mut control = daemon.control()?;
    let mut list = json!(null);
    let learned = wait_until(Duration::from_secs(10), || {
        list = control.call("mac.list", json!({}))?;
        let entries = list.as_array().or_else(|| list["entries"].as_array()).context("No entries")?;
        Ok(entries.iter().any(|entry| entry["mac"] == mac && entry["port"] == port))
    })?;
    ensure!(learned, "{mac} is not learned at {port}: {list}");
    Ok(())
}

#[test]
fn a_guest_on_split_rings_moves_there_and_back_while_a_stream_flows() -> Result<()> {
    there_and_back(false)
}

#[test]
fn a_guest_on_packed_rings_moves_there_and_back_while_a_stream_flows() -> Result<()> {
    there_and_back(true)
}
