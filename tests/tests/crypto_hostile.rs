//! A hostile driver on one device: others of the same process, and the next frontend, do not notice.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::attack::{self, INDIRECT, NEXT, WRITE, avail, desc};
use e2e::bare::{AVAIL, BASE, Bare, DATA, HEADER, LEN, STATUS};
use e2e::crypto::driver::{self, CryptoDriver, ENCRYPT, HEADER_LEN, INVALID_SESSION, IV_LEN, request};
use e2e::daemon::Daemon;
use e2e::garbage::{garbage, message};
use e2e::process::wait_until;
use e2e::rounds;
use guest_tools::random::Random;
use tempfile::TempDir;
use vhost_user::frontend::Frontend;
use vhost_user::message::{Request, protocol};

/// A process with two devices: one for the attacker, one for a neighbour that must go on working.
struct Victim {
    daemon: Daemon,
    attacked: PathBuf,
    neighbour: CryptoDriver,
    // Last: the others have files in it.
    _dir: TempDir,
}

impl Victim {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let daemon = Daemon::crypto(dir.path(), 2, &["--log-level", "error"])?;
        let [attacked, other] = [0, 1].map(|index| Daemon::crypto_of(dir.path(), index));
        let neighbour = CryptoDriver::attach(&other)?;
        Ok(Self { daemon, attacked, neighbour, _dir: dir })
    }

    /// The neighbour's requests are right, and so are those of the next frontend on the attacked device.
    fn is_unharmed(&mut self, after: &str) -> Result<()> {
        self.daemon.process().must_run().with_context(|| format!("After {after}"))?;
        self.neighbour.works().with_context(|| format!("The neighbour, after {after}"))?;
        let next = CryptoDriver::attach(&self.attacked).and_then(|mut next| next.works());
        next.with_context(|| format!("The next frontend, after {after}"))
    }
}

/// The rings of the attacked device: a data queue of each kind of frontend, and the control queue.
const RINGS: [(&str, u16); 2] = [("data", 0), ("control", 2)];

#[test]
fn a_violation_of_the_ring_breaks_that_ring_alone() -> Result<()> {
    let mut victim = Victim::new()?;
    for (ring, index) in RINGS {
        for (name, attack) in attack::SPLIT {
            let attacker = driver::whole(&victim.attacked, index, false)?;
            attack::chain(&attacker)?;
            attack(&attacker)?;
            ensure!(attacker.reports_broken_ring()?, "{ring}: {name}: the ring is not reported as broken");
        }
        for (name, attack) in attack::PACKED {
            let attacker = driver::whole(&victim.attacked, index, true)?;
            attack(&attacker)?;
            attacker.kick.write(1)?;
            ensure!(attacker.reports_broken_ring()?, "{ring}: {name}: the ring is not reported as broken");
        }
        victim.is_unharmed(ring)?;
    }
    for (name, attack) in attack::SPLIT {
        // Nothing of the ring's features was told to the device.
        let attacker = driver::cryptodev(&victim.attacked)?;
        attack::chain(&attacker)?;
        attack(&attacker)?;
        victim.neighbour.works().with_context(|| format!("During {name}"))?;
    }
    victim.is_unharmed("violations behind cryptodev")
}

/// A request for the session with these lengths in its header, in descriptors of these lengths.
fn odd_request(ring: &Bare, session: u64, header: (u32, u32), readable: u32, writable: u32) -> Result<()> {
    ring.put(HEADER, &request(ENCRYPT, session, header.0, header.1))?;
    descriptors(ring, readable, writable)?;
    avail(ring, 0, 1)
}

fn descriptors(ring: &Bare, readable: u32, writable: u32) -> Result<()> {
    desc(ring, 0, BASE + HEADER, readable, NEXT, 1)?;
    desc(ring, 1, BASE + DATA, writable, NEXT | WRITE, 2)?;
    desc(ring, 2, BASE + STATUS, 1, WRITE, 0)
}

/// Requests that are no requests, on a ring that keeps its rules. Each gets the number of a session that is there.
type Attack = fn(&Bare, u64) -> Result<()>;

const WHOLE: u32 = (HEADER_LEN + IV_LEN) as u32 + 16;

const REQUEST_ATTACKS: &[(&str, Attack)] = &[
    ("a source beyond the request", |ring, id| odd_request(ring, id, (1 << 20, 16), WHOLE, 16)),
    ("a source of 4 GiB", |ring, id| odd_request(ring, id, (u32::MAX - 15, 16), WHOLE, 16)),
    ("a destination beyond the request", |ring, id| odd_request(ring, id, (16, 1 << 20), WHOLE, 16)),
    ("a destination shorter than the source", |ring, id| odd_request(ring, id, (16, 15), WHOLE, 16)),
    ("half a block", |ring, id| odd_request(ring, id, (8, 8), WHOLE, 16)),
    ("no data", |ring, id| odd_request(ring, id, (0, 0), WHOLE - 16, 16)),
    ("half a header", |ring, id| odd_request(ring, id, (16, 16), 11, 16)),
    ("a header and no more", |ring, id| odd_request(ring, id, (16, 16), 24, 16)),
    ("a request of one byte", |ring, id| odd_request(ring, id, (16, 16), 1, 16)),
    ("nobody's session", |ring, id| odd_request(ring, id ^ (1 << 40), (16, 16), WHOLE, 16)),
    ("a negative session", |ring, _| odd_request(ring, u64::MAX, (16, 16), WHOLE, 16)),
    ("a status inside the ring", |ring, id| {
        odd_request(ring, id, (16, 16), WHOLE, 16)?;
        desc(ring, 2, BASE + AVAIL, 1, WRITE, 0)?;
        avail(ring, 0, 2)
    }),
    ("a destination that overwrites the ring", |ring, id| {
        ring.put(HEADER, &request(ENCRYPT, id, 4096, 4096))?;
        desc(ring, 0, BASE + HEADER, WHOLE - 16 + 4096, NEXT, 1)?;
        desc(ring, 1, BASE, 4096, NEXT | WRITE, 2)?;
        desc(ring, 2, BASE + STATUS, 1, WRITE, 0)?;
        avail(ring, 0, 1)
    }),
    ("a destination that overwrites its own header", |ring, id| {
        ring.put(HEADER, &request(ENCRYPT, id, 256, 256))?;
        desc(ring, 0, BASE + HEADER, WHOLE - 16 + 256, NEXT, 1)?;
        desc(ring, 1, BASE + HEADER, 256, NEXT | WRITE, 2)?;
        desc(ring, 2, BASE + STATUS, 1, WRITE, 0)?;
        avail(ring, 0, 1)
    }),
    ("no status", |ring, id| {
        ring.put(HEADER, &request(ENCRYPT, id, 16, 16))?;
        desc(ring, 0, BASE + HEADER, WHOLE, 0, 0)?;
        avail(ring, 0, 1)
    }),
    ("a status and nothing else", |ring, _| {
        desc(ring, 0, BASE + STATUS, 1, WRITE, 0)?;
        avail(ring, 0, 1)
    }),
    ("a thousand descriptors of one byte", |ring, id| {
        ring.put(HEADER, &request(ENCRYPT, id, 16, 16))?;
        for index in 0..1000 {
            let table = DATA + index * 16;
            let next = index as u16 + 1;
            let (addr, flags) = if index < 999 { (HEADER + index % 104, NEXT) } else { (STATUS, WRITE) };
            attack::desc_at(ring, table, BASE + addr, 1, flags, next)?;
        }
        desc(ring, 0, BASE + DATA, 16_000, INDIRECT, 0)?;
        avail(ring, 0, 1)
    }),
];

#[test]
fn a_malformed_request_harms_nobody_else() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, attack) in REQUEST_ATTACKS {
        let attacker = CryptoDriver::attach(&victim.attacked)?;
        attack(&attacker, attacker.id())?;
        victim.neighbour.works().with_context(|| format!("During {name}"))?;
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

#[test]
fn a_session_is_nobody_elses_and_ends_when_it_is_closed() -> Result<()> {
    let mut victim = Victim::new()?;
    let mut driver = CryptoDriver::attach(&victim.attacked)?;
    driver.works()?;
    driver.close()?;
    // Closing has no answer; what is asked for afterwards is done afterwards.
    driver.session.frontend.get_features()?;
    ensure!(driver.encrypt()? == INVALID_SESSION, "a closed session goes on");
    drop(driver);
    victim.is_unharmed("a closed session")
}

/// Lengths that are right, nearly right, and far from it.
const LENGTHS: [u32; 16] =
    [0, 1, 15, 16, 17, 32, 71, 72, 88, 104, 105, 240, 4096, 1 << 20, i32::MAX as u32, u32::MAX];

fn any_length(random: &mut Random) -> u32 {
    LENGTHS[random.below(LENGTHS.len())]
}

/// Bytes that look like a request in some places. `session` is a number that may be one of a session.
fn random_request(random: &mut Random, session: u64) -> Vec<u8> {
    let mut bytes = random.bytes(256);
    // Data queues have operations 0 to 3; control queues make sessions with 2 and 4 and close them with 3 and 5.
    let opcode = (random.below(6) << 8 | random.below(6)) as u32;
    bytes[..4].copy_from_slice(&opcode.to_le_bytes());
    bytes[4..8].copy_from_slice(&(random.below(16) as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&(session ^ random.below(2) as u64).to_le_bytes());
    for word in 4..20 {
        let value = if random.below(3) == 0 { any_length(random) } else { random.below(64) as u32 };
        bytes[4 * word..4 * word + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// One request after the other in the same three descriptors, each with another length wrong.
fn nearly_right(ring: &Bare, random: &mut Random, session: u64) -> Result<()> {
    for turn in 1..20 {
        let mut length = |right| if random.below(3) == 0 { any_length(random) } else { right };
        let (source, destination, readable, writable) = (length(16), length(16), length(WHOLE), length(16));
        let operation = random.below(2) as u32;
        ring.put(HEADER, &request(operation, session, source, destination))?;
        descriptors(ring, readable, writable)?;
        avail(ring, 0, turn)?;
    }
    Ok(())
}

/// Fills the ring with chains of random shapes over random requests, all in place of one another.
fn scramble(ring: &Bare, random: &mut Random, session: u64) -> Result<()> {
    for index in 0..64 {
        ring.put(HEADER + index * 1024, &random_request(random, session))?;
        let place = match random.below(8) {
            0 => BASE + LEN - random.below(300) as u64,
            1 => random.number(),
            _ => BASE + HEADER + random.below(64) as u64 * 1024,
        };
        let length = if random.below(4) == 0 { any_length(random) } else { random.below(300) as u32 };
        let flags = random.below(8) as u16 & if random.below(4) == 0 { 7 } else { NEXT | WRITE };
        desc(ring, index, place, length, flags, random.below(64) as u16)?;
        ring.put(AVAIL + 4 + 2 * index, &(random.below(64) as u16).to_le_bytes())?;
    }
    ring.put(AVAIL + 2, &(random.below(64) as u16).to_le_bytes())?;
    Ok(ring.kick.write(1)?)
}

#[test]
fn random_rings_and_requests_harm_nobody_else() -> Result<()> {
    let mut victim = Victim::new()?;
    for round in 0..rounds(200, 20_000) {
        let mut random = Random::new(u64::from(round));
        let (_, index) = RINGS[random.below(RINGS.len())];
        if random.below(2) == 0 {
            let attacker = CryptoDriver::attach(&victim.attacked)?;
            let session = attacker.id();
            nearly_right(&attacker, &mut random, session)?;
            scramble(&attacker, &mut random, session)?;
        } else {
            let attacker = driver::whole(&victim.attacked, index, false)?;
            (0..3).try_for_each(|_| scramble(&attacker, &mut random, 0))?;
        }
        victim.neighbour.works().with_context(|| format!("During round {round}"))?;
    }
    victim.is_unharmed("random rings")
}

/// Session messages no frontend should send.
fn bad_descriptions() -> Vec<(&'static str, Vec<u8>)> {
    let good = driver::description(&[7; 16]);
    let with = |at: usize, word: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        bytes
    };
    // HMAC-SHA-1 over the ciphertext.
    let chained = |at: usize, word: u32| {
        let mut bytes = with(at, word);
        bytes[16..20].copy_from_slice(&2u32.to_ne_bytes());
        bytes[32..36].copy_from_slice(&[2, 1, 2, 2]);
        bytes
    };
    vec![
        ("nothing", vec![]),
        ("half of it", good[..316].to_vec()),
        ("a byte too many", [&good[..], &[0]].concat()),
        ("all ones", vec![0xff; 632]),
        ("all ones, of the longer kind", vec![0xff; 1072]),
        ("a key of 4 GiB", with(12, u32::MAX)),
        ("a key longer than its place", with(12, 65)),
        ("a key no AES has", with(12, 17)),
        ("an unknown cipher", with(8, 77)),
        ("a MAC key longer than its place", chained(24, 513)),
        ("a digest of 4 GiB", chained(20, u32::MAX)),
        ("an unknown operation", with(32, 0x0909_0909)),
    ]
}

#[test]
fn a_bad_session_is_refused_and_costs_the_connection_at_most() -> Result<()> {
    let mut victim = Victim::new()?;
    for (name, bytes) in bad_descriptions() {
        let mut attacker = CryptoDriver::attach(&victim.attacked)?;
        let refused = attacker.session.frontend.create_crypto_session(&bytes).is_err();
        ensure!(refused, "{name}: a session is made of it");
        drop(attacker);
        victim.is_unharmed(name)?;
    }
    Ok(())
}

#[test]
fn sessions_without_number_are_refused_and_given_back() -> Result<()> {
    let mut victim = Victim::new()?;
    let good = driver::description(&[7; 16]);
    let mut attacker = CryptoDriver::attach(&victim.attacked)?;
    let made =
        (0..10_000).take_while(|_| attacker.session.frontend.create_crypto_session(&good).is_ok()).count();
    ensure!((1000..10_000).contains(&made), "{made} sessions are made");
    victim.neighbour.works()?;
    attacker.works().context("The session from before the limit")?;
    drop(attacker);
    // The next frontend finds all places free.
    for _ in 0..3 {
        victim.is_unharmed("too many sessions")?;
    }
    Ok(())
}

#[test]
fn garbage_on_the_socket_costs_its_sender_the_connection_at_most() -> Result<()> {
    let mut victim = Victim::new()?;
    let mut streams = garbage();
    let [create, close] = [Request::CreateCryptoSession, Request::CloseCryptoSession].map(u32::from);
    streams.push(("a session that nobody negotiated", message(create, 1, 632, &[0; 632])));
    streams.push(("half a session", message(create, 1, 632, &[0; 300])));
    streams.push(("the end of a session that never was", message(close, 1, 8, &[0xff; 8])));
    for (name, bytes) in streams {
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
    let before = victim.daemon.process().open_fds()?;
    for round in 0..rounds(100, 5000) {
        let mut random = Random::new(u64::from(round));
        let mut frontend = Frontend::connect(&victim.attacked)?;
        // Sessions are taken from whoever has negotiated them.
        let negotiated = protocol::CRYPTO_SESSION | protocol::MQ | protocol::REPLY_ACK;
        let _ = frontend.set_protocol_features(negotiated);
        let code = if random.below(2) == 0 { 26 } else { random.below(45) as u32 };
        let size = [632, 1072, random.below(1100)][random.below(3)];
        let _ = frontend.send_bytes(&message(code, 1, size as u32, &random.bytes(size)), &[]);
    }
    victim.is_unharmed("random bytes")?;
    // The session of the attacked device reads what was sent at its own pace.
    let settled = wait_until(Duration::from_secs(10), || Ok(victim.daemon.process().open_fds()? <= before))?;
    ensure!(settled, "{before} descriptors before, {} after", victim.daemon.process().open_fds()?);
    Ok(())
}

#[test]
fn a_truncated_memory_file_fails_its_own_device_only() -> Result<()> {
    let mut victim = Victim::new()?;
    for round in 0..5 {
        let mut attacker = CryptoDriver::attach(&victim.attacked)?;
        attacker.works()?;
        // Half of the rounds with a request on its way, half with the ring alone.
        if round < 3 {
            attacker.start(&[(HEADER, WHOLE)], &[(DATA, 16), (STATUS, 1)])?;
        }
        attacker.truncate_memory()?;
        attacker.kick.write(1)?;
        for _ in 0..20 {
            victim.neighbour.works()?;
        }
        // Touching the memory would kill this process; unmapping does not.
        drop(attacker);
        victim.is_unharmed("a truncated memory file")?;
    }
    Ok(())
}
