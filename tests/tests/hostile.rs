//! Hostile drivers and clumsy frontends: a violation costs its author a ring or a connection. The process, its other
//! disks, and the next frontend do not notice.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::attack::{self, NEXT, WRITE, avail, desc};
use e2e::bare::{AVAIL, BASE, DATA, DESC, HEADER, STATUS};
use e2e::daemon::Daemon;
use e2e::driver::Driver;
use e2e::garbage::{garbage, message, words};
use e2e::process::wait_until;
use tempfile::TempDir;
use vhost_user::frontend::Frontend;
use vhost_user::message::Request;

/// A process with two disks: one for the attacker, one for a neighbour that must go on working.
struct Victim {
    daemon: Daemon,
    attacked: PathBuf,
    neighbour: Driver,
    rounds: u64,
    // Last: the others have files in it.
    _dir: TempDir,
}

impl Victim {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let daemon = Daemon::blk_disks(dir.path(), 2, 1, &["--log-level", "error"])?;
        let [attacked, other] = [0, 1].map(|index| Daemon::socket_of(dir.path(), index));
        let neighbour = Driver::attach(&other, false, 64)?;
        Ok(Self { daemon, attacked, neighbour, rounds: 0, _dir: dir })
    }

    fn attach(&self, packed: bool) -> Result<Driver> {
        Driver::attach(&self.attacked, packed, 64)
    }

    /// The neighbour's I/O works, and so does that of the next frontend on the attacked disk.
    fn is_unharmed(&mut self, after: &str) -> Result<()> {
        self.rounds += 1;
        let (sector, byte) = (self.rounds % 64, self.rounds as u8);
        self.daemon.process().must_run().with_context(|| format!("After {after}"))?;
        self.neighbour.works(sector, byte).with_context(|| format!("The neighbour, after {after}"))?;
        let next = self.attach(self.rounds.is_multiple_of(2)).and_then(|mut next| next.works(sector, byte));
        next.with_context(|| format!("The next frontend, after {after}"))
    }
}

/// A well-formed read of one sector.
fn good_chain(driver: &Driver) -> Result<()> {
    driver.put_header(0, 0)?;
    attack::chain(driver)
}

#[test]
fn a_violation_of_the_split_ring_breaks_that_ring_alone() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, attack) in attack::SPLIT {
        let attacker = victim.attach(false)?;
        good_chain(&attacker)?;
        attack(&attacker)?;
        ensure!(attacker.reports_broken_ring()?, "{name}: the ring is not reported as broken");
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

#[test]
fn a_violation_of_the_packed_ring_breaks_that_ring_alone() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, attack) in attack::PACKED {
        let attacker = victim.attach(true)?;
        attack(&attacker)?;
        attacker.kick.write(1)?;
        ensure!(attacker.reports_broken_ring()?, "{name}: the ring is not reported as broken");
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

type Attack = fn(&Driver) -> Result<()>;

/// Requests that are no requests, on a ring that keeps its rules.
const REQUEST_ATTACKS: &[(&str, Attack)] = &[
    ("a request of a single readable byte", |driver| {
        desc(driver, 0, BASE + HEADER, 1, 0, 0)?;
        avail(driver, 0, 1)
    }),
    ("a request without a status", |driver| {
        desc(driver, 0, BASE + HEADER, 16, 0, 0)?;
        avail(driver, 0, 1)
    }),
    ("a request without a header", |driver| {
        desc(driver, 0, BASE + DATA, 512, WRITE, 0)?;
        avail(driver, 0, 1)
    }),
    ("buffers of no length", |driver| {
        desc(driver, 1, BASE + DATA, 0, NEXT | WRITE, 2)?;
        desc(driver, 2, BASE + STATUS, 0, WRITE, 0)?;
        avail(driver, 0, 1)
    }),
    ("a length that is no multiple of a sector", |driver| {
        desc(driver, 1, BASE + DATA, 513, NEXT | WRITE, 2)?;
        avail(driver, 0, 1)
    }),
    ("a sector beyond the disk", |driver| {
        driver.put_header(0, 2048)?;
        avail(driver, 0, 1)
    }),
    ("a sector whose byte offset wraps around", |driver| {
        driver.put_header(1, u64::MAX)?;
        desc(driver, 1, BASE + DATA, 512, NEXT, 2)?;
        avail(driver, 0, 1)
    }),
    ("an unknown request type", |driver| {
        driver.put_header(0xdead_beef, 0)?;
        avail(driver, 0, 1)
    }),
    ("a status inside the ring", |driver| {
        desc(driver, 2, BASE + AVAIL, 1, WRITE, 0)?;
        avail(driver, 0, 1)
    }),
    ("data that overwrite the descriptors", |driver| {
        desc(driver, 1, BASE + DESC, 512, NEXT | WRITE, 2)?;
        avail(driver, 0, 1)
    }),
    ("a range of a discard that is cut short", |driver| {
        driver.put_header(11, 0)?;
        desc(driver, 1, BASE + DATA, 9, NEXT, 2)?;
        avail(driver, 0, 1)
    }),
    ("a discard of everything and more", |driver| {
        driver.put_header(11, 0)?;
        driver.put(DATA, &[0xff; 16])?;
        desc(driver, 1, BASE + DATA, 16, NEXT, 2)?;
        avail(driver, 0, 1)
    }),
];

#[test]
fn a_malformed_request_harms_nobody_else() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, attack) in REQUEST_ATTACKS {
        let attacker = victim.attach(false)?;
        good_chain(&attacker)?;
        attack(&attacker)?;
        victim.neighbour.works(1, 1).with_context(|| format!("During {name}"))?;
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

#[test]
fn a_truncated_memory_file_fails_its_own_device_only() -> Result<()> {
    let mut victim = Victim::new()?;
    for round in 0..5 {
        let mut attacker = victim.attach(round % 2 == 1)?;
        attacker.works(0, 1)?;
        // Half of the rounds with a request on its way, half with the ring alone.
        if round < 3 {
            attacker.start(e2e::driver::Kind::Read, 0)?;
        }
        attacker.truncate_memory()?;
        attacker.kick.write(1)?;
        for _ in 0..20 {
            victim.neighbour.works(2, round as u8)?;
        }
        // Touching the memory would kill this process; unmapping does not.
        drop(attacker);
        victim.is_unharmed("a truncated memory file")?;
    }
    Ok(())
}

#[test]
fn garbage_on_the_socket_costs_its_sender_the_connection_at_most() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, bytes) in garbage() {
        let mut frontend = Frontend::connect(&victim.attacked)?;
        // The other end may have hung up already, as it may.
        let _ = frontend.send_bytes(&bytes, &[]);
        drop(frontend);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

#[test]
fn random_bytes_on_the_socket_harm_nobody_else() -> Result<()> {
    let mut victim = Victim::new()?;
    let mut random = File::open("/dev/urandom")?;
    for _ in 0..e2e::rounds(50, 5000) {
        let mut bytes = [0; 300];
        std::io::Read::read_exact(&mut random, &mut bytes)?;
        // A valid version and a known request, or hardly anything would get past the header.
        let request = u32::from(bytes[0]) % 45;
        let size = u32::from(bytes[1]) % 72;
        let sent = message(request, 1, size, &bytes[12..12 + size as usize]);
        let mut frontend = Frontend::connect(&victim.attacked)?;
        let _ = frontend.send_bytes(&sent, &[]);
    }
    victim.is_unharmed("random bytes")
}

#[test]
fn descriptors_nobody_asked_for_are_closed() -> Result<()> {
    let mut victim = Victim::new()?;
    victim.is_unharmed("nothing")?;
    let before = victim.daemon.process().open_fds()?;
    let null = File::open("/dev/null")?;
    for _ in 0..100 {
        let mut frontend = Frontend::connect(&victim.attacked)?;
        let many = [null.as_fd(); 8];
        let _ = frontend.send_raw(Request::GetFeatures.into(), 1, &[], &many);
        let _ = frontend.send_raw(
            Request::SetMemTable.into(),
            1,
            &[&words(&[8, 0])[..], &[0; 256]].concat(),
            &many,
        );
        let _ = frontend.send_raw(Request::SetInflightFd.into(), 1, &[0xff; 24], &many);
        let _ = frontend.send_raw(9999, 1, &[], &many);
    }
    victim.is_unharmed("unwanted descriptors")?;
    // The session of the attacked disk reads what was sent at its own pace.
    let mut after = 0;
    let settled = wait_until(Duration::from_secs(10), || {
        after = victim.daemon.process().open_fds()?;
        Ok(after <= before)
    })?;
    ensure!(settled, "{before} descriptors before, {after} after");
    Ok(())
}
