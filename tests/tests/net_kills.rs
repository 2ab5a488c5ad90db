//! `kill -9` of the switch under traffic: connections survive, nothing arrives twice.

use std::collections::HashSet;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Builder, Guest};
use e2e::net::driver::{NetDriver, Options};
use e2e::net::frame::{self, mac};
use e2e::net::nic::Nic;
use e2e::net::traffic::{self, Stream};
use e2e::rounds;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

/// The one guest connects to the daemon, the other is connected to by it.
fn machine(dir: &Path, index: u8, packed: bool) -> Builder {
    let nic = Nic::new(&Daemon::port_of(dir, index.into()), index + 1).packed(packed);
    let nic = if index == 0 { nic } else { nic.listens() };
    Guest::builder().memory_mib(448).vcpus(1).nic(nic)
}

fn survives_kills(packed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &["", "connect"], &[])?;
    let (mut a, mut b) = machine(dir.path(), 0, packed).boot_with(machine(dir.path(), 1, !packed))?;
    traffic::up(&mut a, "eth0", A)?;
    traffic::up(&mut b, "eth0", B)?;
    traffic::reaches(&mut a, B)?;
    // One TCP connection from beginning to end, each byte compared.
    let stream = Stream::start(&mut a, &mut b, B)?;
    for round in 0..rounds(20, 300) {
        // QEMU takes up to a second to reconnect; spread the kills over that and the busy time after it.
        sleep(Duration::from_millis(600 + u64::from(round * 37 % 9) * 100));
        daemon.kill_and_restart()?;
        if round % 5 == 4 {
            stream.goes_on(&mut b)?;
        }
    }
    stream.goes_on(&mut b)?;
    stream.stop(&mut a, &mut b)?;
    traffic::ping(&mut b, A, &[56, 1472])?;
    traffic::serve(&mut b)?;
    let flow = traffic::iperf(&mut a, B, "-t 1 -R")?;
    ensure!(flow.bytes > 100_000, "{flow:?}");
    Ok(())
}

#[test]
fn a_connection_survives_twenty_kills_of_the_daemon() -> Result<()> {
    survives_kills(false)
}

#[test]
fn a_connection_the_other_way_survives_twenty_kills_of_the_daemon() -> Result<()> {
    survives_kills(true)
}

/// Numbered frames flow while the daemon is killed: none may arrive twice or damaged, and fewer than a
/// ring may get lost each time.
fn loses_little(packed: bool) -> Result<()> {
    const RING: u32 = 128;
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &["", ""], &[])?;
    let sockets = [0, 1].map(|index| Daemon::port_of(dir.path(), index));
    let options = Options { size: RING as u16, ..Options::packed(packed) };
    let mut from = NetDriver::attach_with(&sockets[0], options)?;
    let mut to = NetDriver::attach_with(&sockets[1], options)?;
    let (mut sent, mut seen) = (0, HashSet::new());
    for round in 0..rounds(40, 2000) {
        let before = sent - seen.len() as u32;
        for _ in 0..3 {
            send(&mut from, &mut sent, 16)?;
            note(&mut to, &mut seen, Duration::from_millis(1))?;
        }
        // What is under way when the daemon dies.
        send(&mut from, &mut sent, 48)?;
        sleep(Duration::from_micros(u64::from(round % 8) * 20));
        daemon.kill_and_restart()?;
        // The receiver first, so that there is somebody to receive what the sender still has.
        to.reconnect(&sockets[1])?;
        from.reconnect(&sockets[0])?;
        from.drained().with_context(|| format!("Round {round}"))?;
        note(&mut to, &mut seen, Duration::from_millis(20))?;
        let lost = sent - seen.len() as u32 - before;
        ensure!(lost < RING, "round {round}: {lost} frames are lost");
    }
    ensure!(seen.len() as u32 > sent / 2, "of {sent} frames only {} arrived", seen.len());
    Ok(())
}

fn send(from: &mut NetDriver, sent: &mut u32, count: u32) -> Result<()> {
    let frames: Vec<_> = (*sent..*sent + count).map(numbered).collect();
    *sent += count;
    from.send_all(&frames)
}

/// To everyone, so that no table has to be learned again.
fn numbered(number: u32) -> Vec<u8> {
    let payload = [&number.to_be_bytes()[..], &frame::pattern(number, 200)].concat();
    frame::with_payload(frame::BROADCAST, mac(1), frame::EXPERIMENTAL, &payload)
}

/// Takes all that comes until nothing has come for a while.
fn note(to: &mut NetDriver, seen: &mut HashSet<u32>, quiet: Duration) -> Result<()> {
    while let Some(received) = to.poll(quiet)? {
        let number = received
            .bytes
            .get(frame::HEADER..frame::HEADER + 4)
            .map_or(u32::MAX, |bytes| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)));
        ensure!(received.bytes == numbered(number), "Frame {number} arrives damaged");
        ensure!(seen.insert(number), "Frame {number} arrives twice");
    }
    Ok(())
}

#[test]
fn kills_lose_less_than_a_ring_and_repeat_nothing_on_split_rings() -> Result<()> {
    loses_little(false)
}

#[test]
fn kills_lose_less_than_a_ring_and_repeat_nothing_on_packed_rings() -> Result<()> {
    loses_little(true)
}
