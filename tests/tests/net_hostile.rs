//! Hostile guests and clumsy frontends on one port of the switch: they lose a ring or their connection. The process and the
//! other ports do not notice.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::garbage::{garbage, message};
use e2e::net::driver::{HEADER, NetDriver, Options, assortment, features, flows};
use e2e::net::frame::{self, BROADCAST, EXPERIMENTAL, VLAN, mac};
use memory::GuestAddr;
use tempfile::TempDir;
use vhost_user::frontend::Frontend;

/// A switch with three ports: one for the attacker, two that must go on talking.
struct Victim {
    daemon: Daemon,
    attacked: PathBuf,
    neighbours: [NetDriver; 2],
    rounds: u32,
    // Last: the others have files in it.
    _dir: TempDir,
}

const ATTACKER: u8 = 0;
const NEIGHBOURS: [u8; 2] = [1, 2];
const ALL_OFFLOADS: u64 = features::CSUM | features::GUEST_CSUM | features::GUEST_TSO4 | features::HOST_TSO4;

impl Victim {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let daemon = Daemon::net(dir.path(), &["", "", ""], &["--log-level", "error"])?;
        // Split and packed; with and without offloads, so that frames are finished for the one and not for the other.
        let plain = Options::default();
        let options =
            [Options { features: plain.features | ALL_OFFLOADS, ..plain }, Options { packed: true, ..plain }];
        let neighbour =
            |index: usize| NetDriver::attach_with(&Daemon::port_of(dir.path(), index + 1), options[index]);
        let neighbours = [neighbour(0)?, neighbour(1)?];
        let attacked = Daemon::port_of(dir.path(), 0);
        let mut victim = Self { daemon, attacked, neighbours, rounds: 0, _dir: dir };
        victim.is_unharmed("nothing")?;
        Ok(victim)
    }

    fn attach(&self, packed: bool) -> Result<NetDriver> {
        let options = Options { size: 64, ..Options::packed(packed) };
        NetDriver::attach_with(
            &self.attacked,
            Options { features: options.features | ALL_OFFLOADS, ..options },
        )
    }

    /// The neighbours talk, and the next frontend on the attacked port does.
    fn is_unharmed(&mut self, after: &str) -> Result<()> {
        self.rounds += 1;
        let seed = self.rounds * 1000;
        self.daemon.process().must_run().with_context(|| format!("After {after}"))?;
        let [one, other] = &mut self.neighbours;
        // What the attacker managed to send.
        one.clear()?;
        other.clear()?;
        let [one_mac, other_mac] = NEIGHBOURS.map(mac);
        flows(one, other, &assortment(other_mac, one_mac, seed))
            .and_then(|()| flows(other, one, &assortment(one_mac, other_mac, seed + 500)))
            .with_context(|| format!("The neighbours, after {after}"))?;
        let next = self.attach(self.rounds.is_multiple_of(2));
        next.and_then(|mut next| {
            let [one, _] = &mut self.neighbours;
            flows(&mut next, one, &assortment(one_mac, mac(ATTACKER), seed))?;
            flows(one, &mut next, &assortment(mac(ATTACKER), one_mac, seed))
        })
        .with_context(|| format!("The next frontend, after {after}"))
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The ring an attack is on: 0 receives, 1 transmits.
type Attack = fn(&NetDriver, u16) -> Result<()>;

/// Writes a split descriptor (virtio 1.3 §2.7.5).
fn desc(driver: &NetDriver, ring: u16, index: u64, addr: u64, len: u32, flags: u16, next: u16) -> Result<()> {
    let table = driver.session.rings[usize::from(ring)].addresses.desc;
    driver.put(GuestAddr(table.0 + index * 16), &descriptor(addr, len, flags, next))
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Makes `head` available in the first slot and moves the avail index to `index` (virtio 1.3 §2.7.6), then kicks.
fn avail(driver: &NetDriver, ring: u16, head: u16, index: u16) -> Result<()> {
    let queue = &driver.session.rings[usize::from(ring)];
    driver.put(GuestAddr(queue.addresses.driver.0 + 4), &head.to_le_bytes())?;
    driver.put(GuestAddr(queue.addresses.driver.0 + 2), &index.to_le_bytes())?;
    Ok(queue.kick.write(1)?)
}

/// What is readable on a transmit ring and writable on a receive ring.
fn right(ring: u16) -> u16 {
    if ring == 0 { WRITE } else { 0 }
}

/// Violations of a split ring's rules: each must latch the ring.
const RING_ATTACKS: &[(&str, Attack)] = &[
    ("a head beyond the ring", |driver, ring| avail(driver, ring, 64, 1)),
    ("the largest head", |driver, ring| avail(driver, ring, u16::MAX, 1)),
    ("more available than the ring holds", |driver, ring| avail(driver, ring, 0, 65)),
    ("an avail index that goes back", |driver, ring| avail(driver, ring, 0, u16::MAX)),
    ("a next beyond the ring", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 64, NEXT | right(ring), 64)?;
        avail(driver, ring, 0, 1)
    }),
    ("a loop of two descriptors", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 64, NEXT | right(ring), 1)?;
        desc(driver, ring, 1, driver.scratch().0, 64, NEXT | right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("an address outside the memory", |driver, ring| {
        desc(driver, ring, 0, driver.end().0, 64, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a buffer that leaves the memory", |driver, ring| {
        desc(driver, ring, 0, driver.end().0 - 63, 64, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("an address that wraps around", |driver, ring| {
        desc(driver, ring, 0, u64::MAX - 31, 64, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a readable buffer after a writable one", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 64, NEXT | WRITE, 1)?;
        desc(driver, ring, 1, driver.scratch().0, 64, 0, 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("an indirect table that is no multiple of 16", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 40, INDIRECT, 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("an empty indirect table", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 0, INDIRECT, 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("an indirect table outside the memory", |driver, ring| {
        desc(driver, ring, 0, driver.end().0 - 16, 32, INDIRECT, 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("an indirect table within another", |driver, ring| {
        driver.put(driver.scratch(), &descriptor(driver.scratch().0, 16, INDIRECT, 0))?;
        desc(driver, ring, 0, driver.scratch().0, 16, INDIRECT, 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a loop in an indirect table", |driver, ring| {
        driver.put(driver.scratch(), &descriptor(driver.scratch().0, 16, NEXT | right(ring), 0))?;
        desc(driver, ring, 0, driver.scratch().0, 16, INDIRECT, 0)?;
        avail(driver, ring, 0, 1)
    }),
];

const PACKED_AVAIL: u16 = 1 << 7;

/// Writes a packed descriptor (virtio 1.3 §2.8.13) that is available in the first lap, and kicks.
fn packed(driver: &NetDriver, ring: u16, index: u64, addr: u64, len: u32, flags: u16) -> Result<()> {
    let queue = &driver.session.rings[usize::from(ring)];
    let mut bytes = descriptor(addr, len, 0, flags | PACKED_AVAIL);
    bytes[12..14].copy_from_slice(&0_u16.to_le_bytes());
    driver.put(GuestAddr(queue.addresses.desc.0 + index * 16), &bytes)?;
    if index == 0 {
        queue.kick.write(1)?;
    }
    Ok(())
}

/// As [`RING_ATTACKS`], for the packed format.
const PACKED_ATTACKS: &[(&str, Attack)] = &[
    ("a packed chain without an end", |driver, ring| {
        // Backwards, so that the device sees the first one last.
        for index in (0..64).rev() {
            packed(driver, ring, index, driver.scratch().0, 64, NEXT | right(ring))?;
        }
        Ok(())
    }),
    ("a packed address outside the memory", |driver, ring| {
        packed(driver, ring, 0, driver.end().0, 64, right(ring))
    }),
    ("a packed address that wraps around", |driver, ring| {
        packed(driver, ring, 0, u64::MAX - 7, 64, right(ring))
    }),
    ("a packed readable buffer after a writable one", |driver, ring| {
        packed(driver, ring, 1, driver.scratch().0, 64, 0)?;
        packed(driver, ring, 0, driver.scratch().0, 64, NEXT | WRITE)
    }),
    ("an odd packed indirect table", |driver, ring| {
        packed(driver, ring, 0, driver.scratch().0, 17, INDIRECT)
    }),
];

/// Runs attacks on the transmit ring and on the receive ring; a frame for the attacker makes the device look at the latter.
fn break_rings(attacks: &[(&str, Attack)], packed: bool) -> Result<()> {
    let mut victim = Victim::new()?;
    for ring in [1, 0] {
        for (name, attack) in attacks {
            let options = Options { size: 64, receive: false, ..Options::packed(packed) };
            let mut attacker = NetDriver::attach_with(&victim.attacked, options)?;
            let errors = attacker.watch_errors(ring)?;
            attack(&attacker, ring)?;
            if ring == 0 {
                victim.neighbours[0].send(&frame::plain(mac(ATTACKER), mac(NEIGHBOURS[0]), 500, 1))?;
            }
            ensure!(errors.came()?, "{name}, ring {ring}: it is not reported as broken");
            drop(attacker);
            victim.is_unharmed(name)?;
        }
    }
    Ok(())
}

#[test]
fn a_violation_of_a_split_ring_breaks_that_ring_alone() -> Result<()> {
    break_rings(RING_ATTACKS, false)
}

#[test]
fn a_violation_of_a_packed_ring_breaks_that_ring_alone() -> Result<()> {
    break_rings(PACKED_ATTACKS, true)
}

/// A virtio-net header of these fields (virtio 1.3 §5.1.6).
fn header(
    flags: u8,
    gso: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = flags;
    bytes[1] = gso;
    for (at, value) in [(2, hdr_len), (4, gso_size), (6, csum_start), (8, csum_offset)] {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// A TCP segment over IPv4 of `len` bytes after the Ethernet header, for a neighbour or for everyone.
fn tcp(dst: frame::Mac, len: usize) -> Vec<u8> {
    let mut packet = frame::pattern(len as u32, len.max(40));
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&[0, 0]);
    packet[9] = 6;
    packet[32] = 0x50;
    frame::with_payload(dst, mac(ATTACKER), 0x0800, &packet)
}

/// Frames with headers that promise what is not there.
fn hostile_frames() -> Vec<(&'static str, [u8; HEADER], Vec<u8>)> {
    const NEEDS_CSUM: u8 = 1;
    let (to, plain) = (mac(NEIGHBOURS[1]), header(0, 0, 0, 0, 0, 0));
    let vlans = |count: usize| {
        let tags = [&VLAN.to_be_bytes()[..], &1_u16.to_be_bytes()].concat().repeat(count);
        frame::with_payload(BROADCAST, mac(ATTACKER), VLAN, &tags)
    };
    let short = |len: usize| tcp(to, 100)[..len].to_vec();
    let large = tcp(to, 60_000);
    vec![
        ("an empty frame", plain, vec![]),
        ("a frame of one byte", plain, short(1)),
        ("a frame of 13 bytes", plain, short(13)),
        ("a frame of a header only", plain, short(14)),
        ("half a VLAN tag", plain, vlans(1)[..15].to_vec()),
        ("a stack of 400 VLAN tags", plain, vlans(400)),
        ("a frame of 64 KiB", plain, tcp(to, 65_521)),
        ("a frame of more than 64 KiB", plain, [tcp(to, 65_535), vec![7; 2000]].concat()),
        ("a frame of 64 KiB for everyone", plain, tcp(BROADCAST, 65_521)),
        ("a checksum behind the end", header(NEEDS_CSUM, 0, 0, 0, 2000, 16), tcp(to, 100)),
        ("a checksum at the very end", header(NEEDS_CSUM, 0, 0, 0, 113, 0), tcp(to, 100)),
        ("a checksum far away", header(NEEDS_CSUM, 0, 0, 0, u16::MAX, u16::MAX), tcp(to, 100)),
        ("a checksum in the addresses", header(NEEDS_CSUM, 0, 0, 0, 0, 0), tcp(to, 100)),
        ("segments of no size", header(NEEDS_CSUM, 1, 54, 0, 34, 16), large.clone()),
        ("segments of one byte", header(NEEDS_CSUM, 1, 54, 1, 34, 16), large.clone()),
        ("segments of 64 KiB", header(NEEDS_CSUM, 1, 54, u16::MAX, 34, 16), large.clone()),
        ("headers longer than the frame", header(NEEDS_CSUM, 1, u16::MAX, 1000, 34, 16), large.clone()),
        ("segments without a checksum", header(0, 1, 54, 1000, 34, 16), large.clone()),
        ("TCP over IPv6 that is IPv4", header(NEEDS_CSUM, 4, 54, 1000, 34, 16), large.clone()),
        ("UDP that is TCP", header(NEEDS_CSUM, 3, 54, 1000, 34, 6), large.clone()),
        ("UDP segments that are TCP", header(NEEDS_CSUM, 5, 54, 1000, 34, 6), large.clone()),
        ("an unknown kind of segments", header(NEEDS_CSUM, 0x7f, 54, 1000, 34, 16), large.clone()),
        ("congestion without segments", header(NEEDS_CSUM, 0x80, 54, 1000, 34, 16), large.clone()),
        ("segments that are ARP", header(NEEDS_CSUM, 1, 54, 1000, 34, 16), {
            frame::with_payload(to, mac(ATTACKER), 0x0806, &[1; 3000])
        }),
        ("segments of a short frame", header(NEEDS_CSUM, 1, 54, 1000, 34, 16), short(40)),
        ("all ones", [0xff; HEADER], tcp(to, 1000)),
    ]
}

#[test]
fn hostile_frames_harm_no_other_port() -> Result<()> {
    let mut victim = Victim::new()?;
    for packed in [false, true] {
        for (name, header, frame) in hostile_frames() {
            let mut attacker = victim.attach(packed)?;
            attacker.send_with(0, &header, &frame)?;
            attacker.drained().with_context(|| name.to_owned())?;
            drop(attacker);
            victim.is_unharmed(name)?;
        }
    }
    Ok(())
}

#[test]
fn random_headers_and_frames_harm_no_other_port() -> Result<()> {
    let mut victim = Victim::new()?;
    let mut random = File::open("/dev/urandom")?;
    for round in 0..e2e::rounds(10, 500) {
        let mut attacker = victim.attach(round % 2 == 1)?;
        for _ in 0..200 {
            let mut bytes = [0; HEADER + 300];
            random.read_exact(&mut bytes)?;
            let (mut header, mut frame) = ([0; HEADER], tcp(BROADCAST, 1 + usize::from(bytes[20]) * 20));
            header.copy_from_slice(&bytes[..HEADER]);
            // Mostly plausible, or hardly anything would get past the first look.
            header[0] &= 7;
            header[1] = [0, 1, 3, 4, 5, 0x81, 0x84, bytes[1]][usize::from(bytes[21]) % 8];
            header[7] &= 1;
            header[9] = 0;
            for change in bytes[30..].chunks(8).take(usize::from(bytes[22]) % 8) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % frame.len().min(80);
                frame[at] = change[2];
            }
            attacker.send_with(0, &header, &frame)?;
        }
        attacker.drained()?;
        drop(attacker);
        victim.is_unharmed("random frames")?;
    }
    Ok(())
}

/// Chains that keep the ring's rules and hold no frame.
const ODD_CHAINS: &[(&str, Attack)] = &[
    ("a chain of one byte", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 1, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a chain of no bytes", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 0, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a header without a frame", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, HEADER as u32, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a chain of the wrong direction", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 1000, WRITE - right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a chain of a mebibyte", |driver, ring| {
        desc(driver, ring, 0, driver.scratch().0, 1 << 20, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
    ("a buffer inside the ring", |driver, ring| {
        let table = driver.session.rings[usize::from(ring)].addresses.desc.0;
        desc(driver, ring, 0, table, 1024, right(ring), 0)?;
        avail(driver, ring, 0, 1)
    }),
];

#[test]
fn chains_that_hold_no_frame_harm_no_other_port() -> Result<()> {
    let mut victim = Victim::new()?;
    for ring in [1, 0] {
        for (name, attack) in ODD_CHAINS {
            let options = Options { size: 64, receive: false, ..Options::default() };
            let attacker = NetDriver::attach_with(&victim.attacked, options)?;
            attack(&attacker, ring)?;
            for _ in 0..4 {
                victim.neighbours[0].send(&frame::plain(BROADCAST, mac(NEIGHBOURS[0]), 1000, 1))?;
            }
            sleep(Duration::from_millis(5));
            drop(attacker);
            victim.is_unharmed(name)?;
        }
    }
    Ok(())
}

#[test]
fn a_port_without_receive_buffers_stalls_nobody() -> Result<()> {
    let mut victim = Victim::new()?;
    let options = Options { receive: false, ..Options::default() };
    let _deaf = NetDriver::attach_with(&victim.attacked, options)?;
    let frames = assortment(BROADCAST, mac(NEIGHBOURS[0]), 9);
    let [one, other] = &mut victim.neighbours;
    for _ in 0..20 {
        flows(one, other, &frames)?;
    }
    Ok(())
}

#[test]
fn a_truncated_memory_file_fails_its_own_port_only() -> Result<()> {
    let mut victim = Victim::new()?;
    for round in 0..6 {
        let mut attacker = victim.attach(round % 2 == 1)?;
        // As the source of a frame, as its destination, or with the ring alone.
        match round % 3 {
            0 => attacker.send_all(&vec![tcp(BROADCAST, 60_000); 20])?,
            1 => attacker.send(&frame::plain(BROADCAST, mac(ATTACKER), 64, 1))?,
            _ => {}
        }
        attacker.truncate_memory()?;
        // Touching the rings would end this process; kicking them does not.
        attacker.session.rings.iter().try_for_each(|ring| ring.kick.write(1))?;
        for _ in 0..20 {
            victim.neighbours[0].send(&frame::plain(mac(ATTACKER), mac(NEIGHBOURS[0]), 1000, 1))?;
        }
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
    let mut random = File::open("/dev/urandom")?;
    for _ in 0..e2e::rounds(50, 5000) {
        let mut bytes = [0; 300];
        random.read_exact(&mut bytes)?;
        let (request, size) = (u32::from(bytes[0]) % 45, u32::from(bytes[1]) % 72);
        let sent = message(request, 1, size, &bytes[12..12 + size as usize]);
        let mut frontend = Frontend::connect(&victim.attacked)?;
        let _ = frontend.send_bytes(&sent, &[]);
    }
    victim.is_unharmed("random bytes")
}

#[test]
fn frames_of_a_kind_nobody_knows_arrive_as_they_are() -> Result<()> {
    let mut victim = Victim::new()?;
    let [one, other] = &mut victim.neighbours;
    for ethertype in [0, 45, 0x0600, EXPERIMENTAL, VLAN, 0x88a8, 0x8847, 0xffff] {
        let frame = frame::with_payload(mac(NEIGHBOURS[1]), mac(NEIGHBOURS[0]), ethertype, &[0; 60]);
        flows(one, other, &[frame]).with_context(|| format!("EtherType {ethertype:#06x}"))?;
    }
    Ok(())
}
