//! Hostile drivers and clumsy frontends: a violation costs its author a ring or a connection. The process, its other
//! disks, and the next frontend do not notice.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::driver::{AVAIL, BASE, DATA, DESC, Driver, HEADER, LEN, STATUS};
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

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Writes a split descriptor (virtio 1.3 §2.7.5).
fn desc(driver: &Driver, index: u64, addr: u64, len: u32, flags: u16, next: u16) -> Result<()> {
    desc_at(driver, DESC + index * 16, addr, len, flags, next)
}

fn desc_at(driver: &Driver, offset: u64, addr: u64, len: u32, flags: u16, next: u16) -> Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    driver.put(offset, &bytes)
}

/// Makes `head` available in the first slot and moves the avail index to `index` (virtio 1.3 §2.7.6), then kicks.
fn avail(driver: &Driver, head: u16, index: u16) -> Result<()> {
    driver.put(AVAIL + 4, &head.to_le_bytes())?;
    driver.put(AVAIL + 2, &index.to_le_bytes())?;
    Ok(driver.kick.write(1)?)
}

/// A well-formed read of one sector in descriptors 0 to 2; the attacks change one thing about it.
fn good_chain(driver: &Driver) -> Result<()> {
    driver.put_header(0, 0)?;
    desc(driver, 0, BASE + HEADER, 16, NEXT, 1)?;
    desc(driver, 1, BASE + DATA, 512, NEXT | WRITE, 2)?;
    desc(driver, 2, BASE + STATUS, 1, WRITE, 0)
}

type Attack = fn(&Driver) -> Result<()>;

/// Violations of the ring's own rules: each must latch the ring.
const RING_ATTACKS: &[(&str, Attack)] = &[
    ("a head beyond the ring", |driver| avail(driver, 64, 1)),
    ("the largest head", |driver| avail(driver, u16::MAX, 1)),
    ("more available than the ring holds", |driver| avail(driver, 0, 65)),
    ("an avail index that goes back", |driver| avail(driver, 0, u16::MAX)),
    ("a next beyond the ring", |driver| {
        desc(driver, 0, BASE + HEADER, 16, NEXT, 64)?;
        avail(driver, 0, 1)
    }),
    ("a loop of two descriptors", |driver| {
        desc(driver, 0, BASE + HEADER, 16, NEXT, 1)?;
        desc(driver, 1, BASE + HEADER, 16, NEXT, 0)?;
        avail(driver, 0, 1)
    }),
    ("a descriptor that is its own next", |driver| {
        desc(driver, 0, BASE + HEADER, 16, NEXT, 0)?;
        avail(driver, 0, 1)
    }),
    ("an address outside the memory", |driver| {
        desc(driver, 1, BASE + LEN, 512, NEXT | WRITE, 2)?;
        avail(driver, 0, 1)
    }),
    ("a buffer that leaves the memory", |driver| {
        desc(driver, 1, BASE + LEN - 511, 512, NEXT | WRITE, 2)?;
        avail(driver, 0, 1)
    }),
    ("an address that wraps around", |driver| {
        desc(driver, 1, u64::MAX - 15, 512, NEXT | WRITE, 2)?;
        avail(driver, 0, 1)
    }),
    ("address zero", |driver| {
        desc(driver, 0, 0, 16, NEXT, 1)?;
        avail(driver, 0, 1)
    }),
    ("a readable buffer after a writable one", |driver| {
        desc(driver, 0, BASE + DATA, 512, NEXT | WRITE, 1)?;
        desc(driver, 1, BASE + HEADER, 16, NEXT, 2)?;
        avail(driver, 0, 1)
    }),
    ("an indirect table that is no multiple of 16", |driver| {
        desc(driver, 0, BASE + DATA, 40, INDIRECT, 0)?;
        avail(driver, 0, 1)
    }),
    ("an empty indirect table", |driver| {
        desc(driver, 0, BASE + DATA, 0, INDIRECT, 0)?;
        avail(driver, 0, 1)
    }),
    ("an indirect table outside the memory", |driver| {
        desc(driver, 0, BASE + LEN - 16, 32, INDIRECT, 0)?;
        avail(driver, 0, 1)
    }),
    ("an indirect table within another", |driver| {
        desc_at(driver, DATA, BASE + DATA, 16, INDIRECT, 0)?;
        desc(driver, 0, BASE + DATA, 16, INDIRECT, 0)?;
        avail(driver, 0, 1)
    }),
    ("a loop in an indirect table", |driver| {
        desc_at(driver, DATA, BASE + HEADER, 16, NEXT, 0)?;
        desc(driver, 0, BASE + DATA, 16, INDIRECT, 0)?;
        avail(driver, 0, 1)
    }),
];

#[test]
fn a_violation_of_the_split_ring_breaks_that_ring_alone() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, attack) in RING_ATTACKS {
        let attacker = victim.attach(false)?;
        good_chain(&attacker)?;
        attack(&attacker)?;
        ensure!(attacker.reports_broken_ring()?, "{name}: the ring is not reported as broken");
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

const PACKED_AVAIL: u16 = 1 << 7;

/// Writes a packed descriptor (virtio 1.3 §2.8.13) that is available in the first lap.
fn packed_desc(driver: &Driver, index: u64, addr: u64, len: u32, flags: u16) -> Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[14..].copy_from_slice(&(flags | PACKED_AVAIL).to_le_bytes());
    driver.put(DESC + index * 16, &bytes)
}

/// As [`RING_ATTACKS`], for the packed format.
const PACKED_ATTACKS: &[(&str, Attack)] = &[
    ("a packed chain without an end", |driver| {
        // Backwards, so that the device sees the first one last.
        for index in (0..64).rev() {
            packed_desc(driver, index, BASE + HEADER, 16, NEXT)?;
        }
        Ok(())
    }),
    ("a packed address outside the memory", |driver| packed_desc(driver, 0, BASE + LEN, 16, 0)),
    ("a packed address that wraps around", |driver| packed_desc(driver, 0, u64::MAX - 7, 16, 0)),
    ("a packed readable buffer after a writable one", |driver| {
        packed_desc(driver, 1, BASE + HEADER, 16, 0)?;
        packed_desc(driver, 0, BASE + DATA, 16, NEXT | WRITE)
    }),
    ("an odd packed indirect table", |driver| packed_desc(driver, 0, BASE + DATA, 17, INDIRECT)),
];

#[test]
fn a_violation_of_the_packed_ring_breaks_that_ring_alone() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, attack) in PACKED_ATTACKS {
        let attacker = victim.attach(true)?;
        attack(&attacker)?;
        attacker.kick.write(1)?;
        ensure!(attacker.reports_broken_ring()?, "{name}: the ring is not reported as broken");
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

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
