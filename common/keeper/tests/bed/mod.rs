//! A disk under a keeper, and a driver for it that never speaks of inflight regions.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use memory::{GuestAddr, OwnMemory};
use tempfile::TempDir;
use vhost_user::frontend::driver::{DriverQueue, Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::{features, protocol};
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{RingAddresses, RingFeatures, ring_sizes};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// For everything that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the disk.
pub const DISK: u64 = 8 << 20;
/// Bytes of a request.
pub const BLOCK: usize = 4096;
const SECTOR: u64 = 512;

/// A keeper with its disk.
pub struct Keeper {
    child: Child,
    pub dir: TempDir,
}

impl Keeper {
    pub fn start(options: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "", options, environment)
    }

    /// The same in a directory that is there, with a word before the socket.
    pub fn start_in(dir: TempDir, role: &str, options: &[&str], environment: &[(&str, &str)]) -> Self {
        File::create(dir.path().join("disk")).unwrap().set_len(DISK).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(example("kept_blk"))
            .arg(format!("{role}{}", dir.path().join("socket").display()))
            .arg(dir.path().join("disk"))
            .args(options)
            .env_remove("NOTIFY_SOCKET")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let keeper = Self { child, dir };
        // Which happens once it listens.
        wait_for("the first worker", || keeper.log().contains("worker started"));
        keeper
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        File::open(self.dir.path().join("log")).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// The worker of the moment.
    pub fn worker(&self) -> Option<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        std::fs::read_to_string(path).unwrap_or_default().split_whitespace().next()?.parse().ok()
    }

    /// Kills the worker once it serves, and waits for the next one.
    pub fn kill_worker(&self) -> u32 {
        wait_for("a worker that serves", || {
            let log = self.log();
            self.worker().is_some()
                && log.matches("is ready").count() == log.matches("worker started").count()
        });
        let old = self.worker().unwrap();
        send(old, "KILL");
        wait_for("another worker", || self.worker().is_some_and(|new| new != old));
        self.worker().unwrap()
    }

    pub fn signal(&self, name: &str) {
        send(self.pid(), name);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of the keeper", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log\n{}", self.log());
        }
    }
}

/// Examples are built beside the tests.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build -p keeper --examples", path.display());
    path
}

pub fn send(pid: u32, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a request was to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Write { block: u64, seed: u64 },
    Read { block: u64, expect: u64 },
}

/// A guest with one ring, many requests in flight, and a memory of what it has written.
pub struct Driver {
    pub session: Session,
    pub memory: OwnMemory,
    pub queue: DriverQueue,
    pub addresses: RingAddresses,
    /// Guest addresses of header, data and status, by cookie.
    slots: Vec<(GuestAddr, GuestAddr, GuestAddr)>,
    in_flight: BTreeMap<u32, Op>,
    /// What each block holds, and whether something is in flight for it.
    blocks: BTreeMap<u64, u64>,
    busy: BTreeMap<u64, ()>,
    next: u64,
    pub answered: u64,
}

/// The ring of a driver.
pub struct Attach {
    pub packed: bool,
    pub size: u16,
    pub depth: u32,
}

impl Driver {
    /// Connects once, like QEMU's cryptodev: without inflight region, and without any idea of a reconnection.
    pub fn attach(socket: &Path, attach: &Attach) -> Self {
        Self::attach_to(UnixStream::connect(socket).unwrap(), attach)
    }

    /// The same over a connection.
    pub fn attach_to(stream: UnixStream, attach: &Attach) -> Self {
        let bits = features::VERSION_1 | RingFeatures::EVENT_IDX | RingFeatures::INDIRECT_DESC;
        let wanted = bits | if attach.packed { features::RING_PACKED } else { 0 };
        let protocol = USEFUL_PROTOCOL_FEATURES & !protocol::INFLIGHT_SHMFD;
        let mut session = Session::negotiate(stream, wanted, protocol).unwrap();
        assert_eq!(session.features() & wanted, wanted);
        let memory = OwnMemory::new(4 << 20, GuestAddr(1 << 20)).unwrap();
        session.share_memory(&memory.config(), memory.fd()).unwrap();
        let ring_features = session.ring_features();
        let (desc, driver, device) = ring_sizes(ring_features.format(), attach.size);
        let area = |len| memory.alloc(len, 64).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let table = memory.table();
        let ring =
            DriverRing::in_table(table, &addresses, ring_features.format(), attach.size, ring_features)
                .unwrap();
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let queue = DriverQueue { ring, kick: event(), call: event(), addresses, size: attach.size };
        let base = if attach.packed { 0x8000_8000 } else { 0 };
        session.start_queue(0, attach.size, base, &addresses, &queue.kick, &queue.call).unwrap();
        let slot = |_| (area(16), area(BLOCK), area(1));
        let slots = (0..attach.depth).map(slot).collect();
        let (in_flight, blocks, busy) = Default::default();
        Self { session, memory, queue, addresses, slots, in_flight, blocks, busy, next: 1, answered: 0 }
    }

    /// Fills the ring with requests: writes of new data and reads of what was written.
    pub fn submit(&mut self) {
        let free: Vec<u32> =
            (0..self.slots.len() as u32).filter(|slot| !self.in_flight.contains_key(slot)).collect();
        for slot in free {
            let op = self.choose();
            self.put(slot, op);
        }
        self.queue.publish().unwrap();
    }

    fn choose(&mut self) -> Op {
        loop {
            let seed = self.next;
            self.next += 1;
            // Any mixing will do.
            let block = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let block = block % (DISK / BLOCK as u64);
            if self.busy.contains_key(&block) {
                continue;
            }
            return match self.blocks.get(&block) {
                Some(expect) if seed.is_multiple_of(2) => Op::Read { block, expect: *expect },
                _ => Op::Write { block, seed },
            };
        }
    }

    fn put(&mut self, slot: u32, op: Op) {
        let (header, data, status) = self.slots[slot as usize];
        let table = self.memory.table();
        let (kind, block) = match op {
            Op::Read { block, .. } => (0u32, block),
            Op::Write { block, .. } => (1, block),
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&(block * (BLOCK as u64 / SECTOR)).to_le_bytes());
        table.slice(header, 16).unwrap().write(0, &bytes);
        table.slice(status, 1).unwrap().fill(0xff);
        let segment = |addr, len: usize| Segment { addr, len: len as u32 };
        let (header, data_at, status) = (segment(header, 16), segment(data, BLOCK), segment(status, 1));
        let data = table.slice(data, BLOCK).unwrap();
        match op {
            Op::Write { seed, .. } => {
                data.write(0, &pattern(seed));
                self.queue.ring.add(&[header, data_at], &[status], slot).unwrap();
            }
            Op::Read { .. } => {
                data.fill(0xa5);
                self.queue.ring.add(&[header], &[data_at, status], slot).unwrap();
            }
        }
        self.busy.insert(block, ());
        assert!(self.in_flight.insert(slot, op).is_none());
    }

    /// Takes what was answered, each of it once, and checks it. True if there was anything.
    pub fn reap(&mut self) -> bool {
        let before = self.answered;
        while let Some(used) = self.queue.ring.pop() {
            let op = self.in_flight.remove(&used.cookie).expect("answered once");
            let (_, data, status) = self.slots[used.cookie as usize];
            let table = self.memory.table();
            assert_eq!(table.slice(status, 1).unwrap().read_obj::<u8>(0), Some(0), "{op:?}");
            match op {
                Op::Read { block, expect } => {
                    let mut bytes = vec![0; BLOCK];
                    table.slice(data, BLOCK).unwrap().read(0, &mut bytes);
                    assert!(bytes == pattern(expect), "block {block} reads back differently");
                    self.busy.remove(&block);
                }
                Op::Write { block, seed } => {
                    self.blocks.insert(block, seed);
                    self.busy.remove(&block);
                }
            }
            self.answered += 1;
        }
        assert!(!self.queue.ring.broken(), "the device used a buffer twice");
        self.answered > before
    }

    /// Keeps the ring full for a while.
    pub fn load(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.submit();
            if !self.reap() {
                std::thread::yield_now();
            }
        }
    }

    /// Keeps the ring full until so many more were answered.
    pub fn progress(&mut self, count: u64) {
        let goal = self.answered + count;
        wait_for("answers", || {
            self.submit();
            self.reap();
            self.answered >= goal
        });
    }

    /// Waits for everything in flight.
    pub fn drain(&mut self) {
        wait_for("the last answers", || {
            self.reap();
            self.in_flight.is_empty()
        });
    }

    /// Compares the whole disk with what was written.
    pub fn check_disk(&self, image: &Path) {
        let file = File::open(image).unwrap();
        for (block, seed) in &self.blocks {
            let mut bytes = vec![0; BLOCK];
            file.read_exact_at(&mut bytes, block * BLOCK as u64).unwrap();
            assert!(bytes == pattern(*seed), "block {block} holds something else");
        }
    }
}

fn pattern(seed: u64) -> Vec<u8> {
    let word = |at: usize| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(at as u64).to_le_bytes();
    (0..BLOCK / 8).flat_map(word).collect()
}
