//! The daemon as a process of its own, and a frontend for it.

use blk_backend::request::Header;
use memory::{GuestAddr, OwnMemory};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vhost_user::frontend::driver::{Session, SessionConfig};
use virtqueue::driver::{Segment, Used};
use zerocopy::IntoBytes;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-blk");

/// A running daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub socket: PathBuf,
}

impl Daemon {
    /// Starts it with these arguments after `--socket-path`, and waits until it listens.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_command(Command::new(PROGRAM), dir, args)
    }

    pub fn start_command(mut command: Command, dir: &Path, args: &[&str]) -> Self {
        let socket = dir.join("s");
        let command = command.arg("--socket-path").arg(&socket).args(args);
        let child = command.stderr(Stdio::inherit()).spawn().expect("the daemon starts");
        let mut daemon = Self { child, socket };
        daemon.wait_for(&daemon.socket.clone());
        daemon
    }

    /// Waits until this socket accepts.
    pub fn wait_for(&mut self, socket: &Path) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !listening(socket) {
            assert!(Instant::now() < deadline, "{} does not listen", socket.display());
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns the exit code and how long it took.
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
        let code = self.child.wait().unwrap().code();
        (code, start.elapsed())
    }

    /// One call on a control socket.
    pub fn call(&self, control: &Path, method: &str, params: serde_json::Value) -> serde_json::Value {
        let mut client = daemon::control::client::Client::connect(control, Duration::from_secs(10)).unwrap();
        client.call(method, params).unwrap()
    }

    /// CPU time in clock ticks.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without connecting, which a daemon with one session would take for a frontend.
fn listening(socket: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON.
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.last() == socket.to_str().as_ref() && fields.get(3) == Some(&"00010000")
    };
    std::fs::read_to_string("/proc/net/unix").unwrap().lines().any(listens)
}

/// Runs the daemon to its end, which must come soon.
pub fn run(args: &[&str]) -> Output {
    let mut child =
        Command::new(PROGRAM).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{args:?} is served");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
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
