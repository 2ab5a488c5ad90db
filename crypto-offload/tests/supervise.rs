//! The process that does the work is killed, and neither door shows it (`--supervise`): sessions survive, requests in flight are
//! answered once and with the right bytes, also those in place, and no request makes two sessions.

mod frontend;

use crypto_offload::features::STATELESS_MODES;
use daemon::testing::Daemon;
use frontend::wire::{self, INVSESS, OK, cbc_description, description};
use frontend::{Cryptodev, Guest, Served, Whole, eventually};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost_user::frontend::driver::DriverQueue;
use vhost_user::message::features;
use virtqueue::RingFeatures;
use virtqueue::driver::Segment;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-crypto");
/// Kills of each test.
const KILLS: u64 = 20;
/// Sessions a device may have: few, so that one too many shows.
const SESSIONS: usize = 12;
/// Linux behind QEMU's cryptodev.
const LINUX: RingFeatures = RingFeatures { event_idx: true, indirect: true, in_order: false, packed: false };
const PACKED: u64 = !STATELESS_MODES;
const SPLIT: u64 = PACKED & !features::RING_PACKED;

/// A daemon with a keeper, and what kills its worker.
struct Supervised {
    daemon: Daemon,
    _dir: tempfile::TempDir,
}

impl Supervised {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = format!("id=a,socket=a,queues=2,sessions={SESSIONS}");
        let daemon =
            Daemon::start(PROGRAM, dir.path(), &["--supervise", "--device", &device, "--workers", "2"]);
        Self { daemon, _dir: dir }
    }

    /// The process that does the work.
    fn worker(&self) -> Option<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.daemon.child.id());
        std::fs::read_to_string(path).unwrap_or_default().split_whitespace().next()?.parse().ok()
    }

    /// Kills the worker once it serves, and waits for the next one.
    fn kill(&self) {
        self.kill_after(Duration::ZERO);
    }

    /// The same when it has served for a while.
    fn kill_after(&self, while_it_serves: Duration) {
        let mut old = None;
        eventually("there is a worker that serves", || {
            let version = self.daemon.try_call("version", serde_json::Value::Null);
            old = version.and_then(|version| version["pid"].as_u64());
            old.is_some() && old == self.worker().map(u64::from)
        });
        std::thread::sleep(while_it_serves);
        let killed = std::process::Command::new("kill").args(["-KILL", &old.unwrap().to_string()]).status();
        assert!(killed.unwrap().success());
        eventually("there is another worker", || {
            self.worker().is_some_and(|new| Some(u64::from(new)) != old)
        });
    }
}

impl Served for Supervised {
    fn dial(&self) -> UnixStream {
        self.daemon.connect("a")
    }

    fn data_queues(&self) -> u16 {
        2
    }
}

/// A key of 128 bits for a number.
fn key(number: u64) -> [u8; 16] {
    std::array::from_fn(|at| (number as u8).wrapping_mul(17) ^ at as u8)
}

/// AES-CBC as somebody else does it.
fn encrypt(key: &[u8; 16], iv: &[u8; 16], text: &[u8]) -> Vec<u8> {
    use cbc::cipher::{Array, BlockModeEncrypt, KeyIvInit};
    let mut blocks: Vec<Array<u8, _>> =
        text.chunks(16).map(|block| Array::try_from(block).unwrap()).collect();
    cbc::Encryptor::<aes::Aes128>::new(key.into(), iv.into()).encrypt_blocks(&mut blocks);
    blocks.iter().flat_map(|block| block.iter().copied()).collect()
}

/// Room for one request at a time.
struct Slot {
    header: Segment,
    iv: Segment,
    text: Segment,
    elsewhere: Segment,
    status: Segment,
}

/// The requests of a guest that always has many in flight.
struct Load {
    slots: Vec<Slot>,
    /// What each one in flight must come to: where, what.
    in_flight: BTreeMap<u32, (Segment, Vec<u8>)>,
    /// Keys of the sessions, by id.
    sessions: Vec<(u64, u64)>,
    seed: u64,
    answered: u64,
}

const LONGEST: usize = 16 << 10;

impl Load {
    fn new(guest: &Guest, depth: usize, sessions: &[(u64, u64)]) -> Self {
        let put = |len| guest.put(&vec![0; len]);
        let slot = |_| Slot {
            header: put(72),
            iv: put(16),
            text: put(LONGEST),
            elsewhere: put(LONGEST),
            status: put(1),
        };
        let slots = (0..depth).map(slot).collect();
        Self { slots, in_flight: BTreeMap::new(), sessions: sessions.to_vec(), seed: 1, answered: 0 }
    }

    fn random(&mut self) -> u64 {
        // Xorshift: any mixing will do.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// Fills the ring. Half of the requests are in place.
    fn submit(&mut self, guest: &Guest, queue: &mut DriverQueue) {
        for cookie in 0..self.slots.len() as u32 {
            if self.in_flight.contains_key(&cookie) {
                continue;
            }
            let (a, b) = (self.random(), self.random());
            let (id, number) = self.sessions[a as usize % self.sessions.len()];
            let len = 16 * (1 + b as usize % (LONGEST / 16));
            let iv: [u8; 16] = std::array::from_fn(|at| (a >> (at % 8)) as u8);
            let text: Vec<u8> = (0..len).map(|at| (b >> (at % 56)) as u8 ^ at as u8).collect();
            let slot = &self.slots[cookie as usize];
            let write = |segment: &Segment, bytes: &[u8]| {
                guest.memory.slice(segment.addr, bytes.len()).unwrap().write(0, bytes);
            };
            write(&slot.header, &wire::cipher(wire::ENCRYPT, id, 16, len, len));
            write(&slot.iv, &iv);
            write(&slot.text, &text);
            write(&slot.status, &[0xee]);
            let cut = |segment: &Segment| Segment { len: len as u32, ..*segment };
            let source = cut(&slot.text);
            let target = if (a ^ b) & 1 == 0 { source } else { cut(&slot.elsewhere) };
            queue.ring.add_indirect(&[slot.header, slot.iv, source], &[target, slot.status], cookie).unwrap();
            self.in_flight.insert(cookie, (target, encrypt(&key(number), &iv, &text)));
        }
        queue.publish().unwrap();
    }

    /// Checks what has come back.
    fn reap(&mut self, guest: &Guest, queue: &mut DriverQueue) {
        while let Some(used) = queue.ring.pop() {
            let (target, expected) = self.in_flight.remove(&used.cookie).expect("answered once");
            assert_eq!(guest.get(&self.slots[used.cookie as usize].status), [OK]);
            assert!(guest.get(&target) == expected, "request {} has another result", self.answered);
            self.answered += 1;
        }
        assert!(!queue.ring.broken());
    }

    fn run(&mut self, guest: &Guest, queue: &mut DriverQueue, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.submit(guest, queue);
            self.reap(guest, queue);
            std::thread::yield_now();
        }
    }

    /// Goes on until more was answered than can have been in flight.
    fn recover(&mut self, guest: &Guest, queue: &mut DriverQueue) {
        let goal = self.answered + 2 * self.slots.len() as u64;
        eventually("requests are answered again", || {
            self.submit(guest, queue);
            self.reap(guest, queue);
            self.answered >= goal
        });
    }

    fn drain(&mut self, guest: &Guest, queue: &mut DriverQueue) {
        eventually("the last requests are answered", || {
            self.reap(guest, queue);
            self.in_flight.is_empty()
        });
    }
}

#[test]
fn door_a_loses_nothing_in_twenty_kills_under_load() {
    let server = Supervised::start();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let create = |qemu: &mut Cryptodev, number| {
        let len = wire::DESCRIPTIONS[number as usize % 2];
        (qemu.create(&description(len, 3, 1, &key(number))) as u64, number)
    };
    let sessions: Vec<_> = (0..8).map(|number| create(&mut qemu, number)).collect();
    let mut load = Load::new(&qemu.guest, 48, &sessions);
    for round in 0..KILLS {
        load.run(&qemu.guest, &mut qemu.queue, Duration::from_millis(50 + round * 37 % 11));
        server.kill();
        // Sessions come and go all the while.
        let (id, number) = create(&mut qemu, 100 + round);
        let mut late = Load::new(&qemu.guest, 1, &[(id, number)]);
        load.recover(&qemu.guest, &mut qemu.queue);
        load.drain(&qemu.guest, &mut qemu.queue);
        late.recover(&qemu.guest, &mut qemu.queue);
        late.drain(&qemu.guest, &mut qemu.queue);
        qemu.close(id);
    }
    assert!(load.answered >= KILLS * 96);
}

fn door_b_loses_nothing(wanted: u64) {
    let server = Supervised::start();
    let mut vmm = Whole::running(&server, wanted);
    let sessions: Vec<_> =
        (0..8).map(|number| (vmm.session(&wire::create_cipher(3, 1, &key(number))), number)).collect();
    let mut loads: Vec<_> = (0..2).map(|_| Load::new(&vmm.guest, 24, &sessions)).collect();
    for round in 0..KILLS {
        let end = Instant::now() + Duration::from_millis(50 + round * 37 % 11);
        while Instant::now() < end {
            for (index, load) in loads.iter_mut().enumerate() {
                let (guest, queue) = vmm.on(index);
                load.run(guest, queue, Duration::from_millis(1));
            }
        }
        server.kill();
        let late = vmm.session(&wire::create_cipher(3, 1, &key(100 + round)));
        for (index, load) in loads.iter_mut().enumerate() {
            let (guest, queue) = vmm.on(index);
            load.recover(guest, queue);
        }
        let gone = vmm.control(&wire::destroy(0x003, late, false), 1);
        assert_eq!(gone, [OK]);
    }
    for (index, load) in loads.iter_mut().enumerate() {
        let (guest, queue) = vmm.on(index);
        load.drain(guest, queue);
    }
}

#[test]
fn door_b_loses_nothing_on_split_rings_in_twenty_kills_under_load() {
    door_b_loses_nothing(SPLIT);
}

#[test]
fn door_b_loses_nothing_on_packed_rings_in_twenty_kills_under_load() {
    door_b_loses_nothing(PACKED);
}

/// Kills the worker at any moment while `body` goes on: some serve long enough to be replaced at once, and all together long
/// enough to get something done.
fn under_kills(server: &Supervised, body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let body = scope.spawn(body);
        let mut wait = 0;
        while !body.is_finished() {
            wait = (wait + 37) % 151;
            server.kill_after(Duration::from_millis(wait));
        }
    });
}

#[test]
fn door_a_makes_one_session_for_one_message_and_closes_it_once() {
    let server = Supervised::start();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let end = Instant::now() + Duration::from_secs(4);
    under_kills(&server, || {
        let mut rounds = 0;
        while Instant::now() < end {
            // As many as there may be: one too many of any would be refused, and so would one that was not closed.
            let ids: Vec<_> = (0..SESSIONS).map(|_| qemu.create(&cbc_description(632))).collect();
            assert!(ids.iter().all(|id| *id >= 0), "{ids:?} in round {rounds}");
            assert!(qemu.create(&cbc_description(1072)) < 0);
            qemu.check_vector(ids[rounds % SESSIONS] as u64);
            ids.iter().for_each(|id| qemu.close(*id as u64));
            qemu.sync();
            let (_, status) = qemu.cipher(wire::ENCRYPT, ids[0] as u64, &wire::IV, &wire::PLAIN);
            assert_eq!(status, INVSESS);
            rounds += 1;
        }
    });
}

#[test]
fn door_b_makes_one_session_for_one_request_and_destroys_it_once() {
    for wanted in [SPLIT, PACKED] {
        let server = Supervised::start();
        let mut vmm = Whole::running(&server, wanted);
        let end = Instant::now() + Duration::from_secs(4);
        under_kills(&server, || {
            while Instant::now() < end {
                let ids: Vec<_> = (0..SESSIONS).map(|_| vmm.session(&wire::create_cbc())).collect();
                assert_ne!(vmm.create(&wire::create_cbc()).1, 0);
                vmm.check_vector(ids[3]);
                for id in ids {
                    assert_eq!(vmm.control(&wire::destroy(0x003, id, false), 1), [OK]);
                }
            }
        });
    }
}

#[test]
fn sessions_of_a_frontend_that_is_gone_are_not_there_for_the_next_one() {
    let server = Supervised::start();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
    server.kill();
    drop(qemu);
    let mut next = Cryptodev::running(&server, LINUX);
    let (_, status) = next.cipher(wire::ENCRYPT, id, &wire::IV, &wire::PLAIN);
    assert_eq!(status, INVSESS);
}

#[test]
fn a_supervised_daemon_ends_with_zero_in_under_a_second() {
    let mut server = Supervised::start();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
    let (code, took) = server.daemon.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
}
