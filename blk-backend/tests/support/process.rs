//! The daemon as a process of its own, and a frontend for it.

use blk_backend::request::Header;
use daemon::testing;
use memory::{GuestAddr, OwnMemory};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vhost_user::frontend::driver::{Session, SessionConfig};
use virtqueue::driver::{Segment, Used};
use zerocopy::IntoBytes;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-blk");

/// A running daemon with a disk at the socket `s`; killed when dropped.
pub struct Daemon(testing::Daemon);

impl Daemon {
    /// Starts it with these arguments after `--socket-path`, and waits until it is ready.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_command(Command::new(PROGRAM), dir, args)
    }

    pub fn start_command(command: Command, dir: &Path, args: &[&str]) -> Self {
        let socket = dir.join("s");
        let own = ["--socket-path", socket.to_str().unwrap()];
        Self(testing::Daemon::start_command(command, dir, &[&own, args].concat()))
    }

    pub fn connect(&self) -> UnixStream {
        self.0.connect("s")
    }
}

impl Deref for Daemon {
    type Target = testing::Daemon;

    fn deref(&self) -> &testing::Daemon {
        &self.0
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut testing::Daemon {
        &mut self.0
    }
}

/// A guest of one queue.
pub struct Guest {
    pub memory: OwnMemory,
    pub session: Session,
    next: u32,
}

impl Guest {
    pub fn start(socket: UnixStream, packed: bool) -> Self {
        let memory = OwnMemory::new(512 << 20, GuestAddr(0)).unwrap();
        // Leave address 0 alone.
        memory.alloc(4096, 4096).unwrap();
        let config = SessionConfig {
            queues: 1,
            size: 64,
            features_wanted: u64::MAX,
            packed,
            inflight: true,
            memory: &memory,
        };
        let session = Session::start(socket, &config).unwrap();
        Self { memory, session, next: 0 }
    }

    pub fn alloc(&self, len: usize) -> GuestAddr {
        self.memory.alloc(len.max(1), 512).unwrap()
    }

    pub fn bytes(&self, addr: GuestAddr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.slice(addr, len).unwrap().read(0, &mut bytes);
        bytes
    }

    /// Adds a request with `data` for a write, or room for `len` bytes for a read, and returns its cookie.
    pub fn add(&mut self, kind: u32, sector: u64, data: GuestAddr, len: u32, status: GuestAddr) -> u32 {
        let header = Header { kind: kind.into(), ioprio: 0.into(), sector: sector.into() };
        let addr = self.alloc(16);
        self.memory.slice(addr, 16).unwrap().write(0, header.as_bytes());
        let (head, data) = (Segment { addr, len: 16 }, Segment { addr: data, len });
        let status = Segment { addr: status, len: 1 };
        let ring = &mut self.session.rings[0].ring;
        self.next += 1;
        match (kind, len) {
            (_, 0) => ring.add(&[head], &[status], self.next),
            (0 | 8, _) => ring.add(&[head], &[data, status], self.next),
            _ => ring.add(&[head, data], &[status], self.next),
        }
        .unwrap();
        self.next
    }

    pub fn publish(&mut self) {
        self.session.rings[0].publish().unwrap();
    }

    pub fn pop(&mut self) -> Option<Used> {
        self.session.rings[0].ring.pop()
    }

    pub fn wait(&mut self) -> Used {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(used) = self.pop() {
                return used;
            }
            assert!(Instant::now() < deadline, "a request hangs");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn request(&mut self, kind: u32, sector: u64, data: &[u8], len: usize) -> (u8, Vec<u8>) {
        let size = data.len().max(len);
        let (buffer, status) = (self.alloc(size), self.alloc(1));
        self.memory.slice(buffer, data.len()).unwrap().write(0, data);
        self.add(kind, sector, buffer, size as u32, status);
        self.publish();
        self.wait();
        (self.bytes(status, 1)[0], self.bytes(buffer, size))
    }
}
