//! Many ports on one switch, each with a driver that checks every byte: who hears what, in which VLAN, and what it costs.

use std::collections::HashSet;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::net::driver::{NetDriver, Options, assortment, flows};
use e2e::net::frame::{self, BROADCAST, mac, mac_text, plain, tagged};
use e2e::rounds;
use serde_json::json;

/// A driver for each port, split and packed in turns.
fn attach(dir: &Path, count: usize) -> Result<Vec<NetDriver>> {
    let attach = |index: usize| {
        let socket = Daemon::port_of(dir, index);
        NetDriver::attach_with(&socket, Options::packed(index % 2 == 1))
            .with_context(|| format!("Port {index}"))
    };
    (0..count).map(attach).collect()
}

/// Two different ones of them.
fn pair(drivers: &mut [NetDriver], one: usize, other: usize) -> (&mut NetDriver, &mut NetDriver) {
    match drivers.get_disjoint_mut([one, other]) {
        Ok([one, other]) => (one, other),
        Err(error) => unreachable!("ports {one} and {other}: {error}"),
    }
}

/// Everyone in `hear` gets what `from` sends, nobody else does.
fn is_heard_by(
    drivers: &mut [NetDriver],
    from: usize,
    frame: &[u8],
    hear: &[(usize, Vec<u8>)],
) -> Result<()> {
    drivers[from].send(frame)?;
    for (index, wanted) in hear {
        let context = || format!("Port {index}");
        drivers[*index].expect_all(std::slice::from_ref(wanted)).with_context(context)?;
    }
    for (index, driver) in drivers.iter_mut().enumerate() {
        let early = driver.poll(Duration::from_millis(if index == 0 { 50 } else { 0 }))?;
        ensure!(early.is_none(), "Port {index} hears what it should not");
    }
    Ok(())
}

#[test]
fn thirty_ports_learn_each_other_and_hear_only_what_is_theirs() -> Result<()> {
    const PORTS: usize = 30;
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &[""; PORTS], &["--workers", "2"])?;
    let mut drivers = attach(dir.path(), PORTS)?;
    for from in 0..PORTS {
        // Nobody knows this one yet, so everyone hears it.
        let hello = plain(mac(200), mac(from as u8), 100, from as u32);
        let hear: Vec<_> = (0..PORTS).filter(|to| *to != from).map(|to| (to, hello.clone())).collect();
        is_heard_by(&mut drivers, from, &hello, &hear)?;
    }
    for from in 0..PORTS {
        let to = (from + 7) % PORTS;
        let frame = plain(mac(to as u8), mac(from as u8), 900, from as u32);
        is_heard_by(&mut drivers, from, &frame, &[(to, frame.clone())])?;
    }
    for step in 1..PORTS {
        let (from, to) = pair(&mut drivers, 0, step);
        flows(from, to, &assortment(mac(step as u8), mac(0), step as u32))?;
    }

    // One moves to another port, and is found there.
    let moved = plain(BROADCAST, mac(3), 64, 1);
    let hear: Vec<_> = (0..PORTS).filter(|to| *to != 9).map(|to| (to, moved.clone())).collect();
    is_heard_by(&mut drivers, 9, &moved, &hear)?;
    let frame = plain(mac(3), mac(0), 64, 2);
    is_heard_by(&mut drivers, 0, &frame, &[(9, frame.clone())])?;
    daemon.process().must_run()
}

#[test]
fn tags_are_put_on_and_taken_off_by_the_vlan_of_each_port() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ports = ["vlan=10", "vlan=10", "vlan=20", "trunk=10+20", "trunk=20+30,native=10"];
    let _daemon = Daemon::net(dir.path(), &ports, &[])?;
    let mut drivers = attach(dir.path(), ports.len())?;
    let untagged = |from: u8, seed| plain(BROADCAST, mac(from), 200, seed);
    let with_tag = |from: u8, vlan, seed| tagged(BROADCAST, mac(from), vlan, 200, seed);

    let hear = vec![(1, untagged(0, 1)), (3, with_tag(0, 10, 1)), (4, untagged(0, 1))];
    is_heard_by(&mut drivers, 0, &untagged(0, 1), &hear)?;
    let hear = vec![(3, with_tag(2, 20, 2)), (4, with_tag(2, 20, 2))];
    is_heard_by(&mut drivers, 2, &untagged(2, 2), &hear)?;
    let hear = vec![(0, untagged(3, 3)), (1, untagged(3, 3)), (4, untagged(3, 3))];
    is_heard_by(&mut drivers, 3, &with_tag(3, 10, 3), &hear)?;
    let hear = vec![(2, untagged(4, 4)), (3, with_tag(4, 20, 4))];
    is_heard_by(&mut drivers, 4, &with_tag(4, 20, 4), &hear)?;
    let hear = vec![(0, untagged(4, 5)), (1, untagged(4, 5)), (3, with_tag(4, 10, 5))];
    is_heard_by(&mut drivers, 4, &untagged(4, 5), &hear)?;
    // Not a member: a tag on an access port, an untagged frame on a trunk without a native VLAN, a VLAN that is not theirs.
    is_heard_by(&mut drivers, 0, &with_tag(0, 20, 6), &[])?;
    is_heard_by(&mut drivers, 3, &untagged(3, 7), &[])?;
    is_heard_by(&mut drivers, 3, &with_tag(3, 30, 8), &[])?;
    is_heard_by(&mut drivers, 4, &with_tag(4, 30, 9), &[])
}

#[test]
fn isolated_and_guarded_ports_keep_to_themselves() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let guarded = format!("mac={},anti-spoof", mac_text(mac(2)));
    let ports = ["isolated", "isolated", &guarded, ""];
    let _daemon = Daemon::net(dir.path(), &ports, &[])?;
    let mut drivers = attach(dir.path(), ports.len())?;
    let frame = |from: u8| plain(BROADCAST, mac(from), 64, from.into());
    is_heard_by(&mut drivers, 0, &frame(0), &[(2, frame(0)), (3, frame(0))])?;
    is_heard_by(&mut drivers, 3, &frame(3), &[(0, frame(3)), (1, frame(3)), (2, frame(3))])?;
    is_heard_by(&mut drivers, 2, &frame(2), &[(0, frame(2)), (1, frame(2)), (3, frame(2))])?;
    // Under another's name it is not heard, and nobody can take its name away.
    is_heard_by(&mut drivers, 2, &frame(3), &[])?;
    drivers[3].send(&frame(2))?;
    drivers.iter_mut().try_for_each(NetDriver::clear)?;
    let to_guarded = plain(mac(2), mac(3), 64, 9);
    is_heard_by(&mut drivers, 3, &to_guarded, &[(2, to_guarded.clone())])
}

#[test]
fn ports_come_and_go_while_others_talk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().context("The path is not UTF-8")?;
    let mut daemon = Daemon::net(dir.path(), &["", ""], &["--allow-path", path])?;
    let mut drivers = attach(dir.path(), 2)?;
    let mut control = daemon.control()?;
    let socket = dir.path().join("later.sock");
    let mut open = 0;
    for round in 0..10 {
        control.call("port.add", json!({"id": "later", "socket": socket, "vlan": 5}))?;
        let mut later = NetDriver::attach(&socket)?;
        later.send(&plain(BROADCAST, mac(9), 64, round))?;
        control.call("port.set", json!({"port": "later", "vlan": 0}))?;
        // Ports of no VLAN hear all of them.
        let (one, other) = pair(&mut drivers, 0, 1);
        one.clear()?;
        other.clear()?;
        flows(one, other, &assortment(mac(1), mac(0), round))?;
        flows(&mut later, one, &assortment(mac(0), mac(9), round))?;
        other.clear()?;
        control.call("port.remove", json!({"port": "later"}))?;
        ensure!(!socket.exists(), "the socket of a port that was removed is left behind");
        drop(later);
        flows(other, one, &assortment(mac(0), mac(1), round))?;
        let now = daemon.process().open_fds()?;
        ensure!(round == 0 || now <= open, "{now} descriptors are open, {open} were before");
        open = now;
    }
    Ok(())
}

#[test]
fn every_flow_arrives_whole_whatever_pair_it_takes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::net(dir.path(), &["queues=4"; 2], &["--workers", "2"])?;
    for (packed, pairs) in [(false, [4, 1]), (true, [3, 4]), (false, [1, 2])] {
        let options = pairs.map(|pairs| Options { pairs, ..Options::packed(packed) });
        let attach =
            |index: usize| NetDriver::attach_with(&Daemon::port_of(dir.path(), index), options[index]);
        let (mut from, mut to) = (attach(0)?, attach(1)?);
        for round in 0..20 {
            let mut wanted = HashSet::new();
            for flow in 0..32 {
                let frame = frame::udp(mac(2), mac(1), 1000 + flow, 1000, round * 100 + u32::from(flow));
                from.send_with(flow % pairs[0], &[0; 12], &frame)?;
                wanted.insert(frame);
            }
            while !wanted.is_empty() {
                let received =
                    to.receive().with_context(|| format!("{} frames are missing", wanted.len()))?;
                ensure!(wanted.remove(&received.bytes), "A frame that nobody sent, or sent once");
            }
        }
        from.drained()?;
        to.hears_nothing()?;
    }
    Ok(())
}

#[test]
fn a_limit_holds_a_sender_back_and_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::net(dir.path(), &["tx-pps=200:10", ""], &[])?;
    let mut drivers = attach(dir.path(), 2)?;
    let (from, to) = pair(&mut drivers, 0, 1);
    let frames: Vec<_> = (0..110).map(|seed| plain(BROADCAST, mac(1), 200, seed)).collect();
    let started = Instant::now();
    flows(from, to, &frames)?;
    let took = started.elapsed();
    ensure!(took > Duration::from_millis(450), "100 frames above the burst at 200 a second took {took:?}");
    Ok(())
}

#[test]
fn idle_ports_take_no_cpu_time_in_ten_seconds() -> Result<()> {
    const PORTS: usize = 20;
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &[""; PORTS], &[])?;
    let mut drivers = attach(dir.path(), PORTS)?;
    let talk = |drivers: &mut [NetDriver], seed: u32| {
        for (index, driver) in drivers.iter_mut().enumerate() {
            driver.send(&plain(BROADCAST, mac(index as u8), 64, seed))?;
        }
        drivers.iter_mut().try_for_each(NetDriver::clear)?;
        for index in 1..PORTS {
            let (one, other) = pair(drivers, index - 1, index);
            flows(other, one, &[plain(mac(index as u8 - 1), mac(index as u8), 64, seed)])?;
        }
        Ok::<(), anyhow::Error>(())
    };
    talk(&mut drivers, 1)?;
    // The last frame's polling window closes.
    sleep(Duration::from_millis(500));
    let before = daemon.process().cpu_ticks()?;
    sleep(Duration::from_secs(10));
    let ticks = daemon.process().cpu_ticks()? - before;
    ensure!(ticks == 0, "{ticks} ticks of CPU time in ten idle seconds");
    talk(&mut drivers, 2)
}

#[test]
fn reconnects_leak_no_descriptor_and_no_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &["", ""], &[])?;
    let mut steady = None;
    for round in 0..rounds(100, 5000) {
        let mut drivers = attach(dir.path(), 2)?;
        let (one, other) = pair(&mut drivers, 0, 1);
        flows(one, other, &assortment(mac(1), mac(0), round))?;
        let now = (daemon.process().open_fds()?, daemon.process().own_kib()?);
        if round == 20 {
            steady = Some(now);
        }
        if let Some((open, kib)) = steady {
            ensure!(now.0 <= open, "{} descriptors in round {round}, {open} in round 20", now.0);
            ensure!(now.1 < kib + 512, "{} KiB in round {round}, {kib} KiB in round 20", now.1);
        }
    }
    Ok(())
}

#[test]
fn sigterm_under_traffic_ends_the_process_with_success_within_a_second() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::net(dir.path(), &["", ""], &[])?;
    for round in 0..5 {
        let mut drivers = attach(dir.path(), 2)?;
        let (one, _) = pair(&mut drivers, 0, 1);
        one.send_all(&vec![plain(mac(1), mac(0), 1000, round); 60])?;
        let (status, took) = daemon.process().terminate(Duration::from_secs(10))?;
        ensure!(status.success(), "ended with {status}: {}", daemon.process().output());
        ensure!(took < Duration::from_secs(1), "took {took:?}");
        ensure!(!Daemon::port_of(dir.path(), 0).exists(), "left its socket behind");
        daemon.restart()?;
    }
    Ok(())
}
