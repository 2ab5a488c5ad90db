//! The daemon as a process of its own, and guests for it.

pub use daemon::testing::{Daemon, refuses};
use memory::{GuestAddr, OwnMemory};
use net_backend::frame::MacAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};
use vhost_user::frontend::driver::{Session, SessionConfig};
use virtqueue::driver::Segment;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-net");
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts the daemon in `dir`.
pub fn start(dir: &Path, args: &[&str]) -> Daemon {
    Daemon::start(PROGRAM, dir, args)
}

/// Runs the daemon to its end.
pub fn run(dir: &Path, args: &[&str]) -> Output {
    daemon::testing::run(PROGRAM, dir, args)
}

/// Bytes of a buffer, and of the virtio-net header in front of each frame.
const BUFFER: u32 = 2048;
pub const HEADER: usize = 12;
const RING: u16 = 64;

/// A guest with one pair of queues.
pub struct Guest {
    pub session: Session,
    memory: OwnMemory,
    buffers: GuestAddr,
}

impl Guest {
    pub fn start(socket: UnixStream, packed: bool) -> Self {
        let memory = OwnMemory::new(16 << 20, GuestAddr(0)).unwrap();
        // Leave address 0 alone.
        memory.alloc(4096, 4096).unwrap();
        let config = SessionConfig {
            queues: 2,
            size: RING,
            features_wanted: !(net_backend::features::VIRTIO_NET_F_HASH_REPORT
                | net_backend::features::VIRTIO_NET_F_CTRL_VQ),
            packed,
            inflight: false,
            memory: &memory,
        };
        let session = Session::start(socket, &config).unwrap();
        let buffers = memory.alloc(2 * usize::from(RING) * BUFFER as usize, 4096).unwrap();
        let mut guest = Self { session, memory, buffers };
        (0..u32::from(RING)).for_each(|slot| guest.post(slot));
        guest.session.rings[0].publish().unwrap();
        guest
    }

    fn buffer(&self, slot: u32) -> GuestAddr {
        GuestAddr(self.buffers.0 + u64::from(slot * BUFFER))
    }

    fn post(&mut self, slot: u32) {
        let segment = Segment { addr: self.buffer(slot), len: BUFFER };
        self.session.rings[0].ring.add(&[], &[segment], slot).unwrap();
    }

    /// Sends one frame and waits until the switch has taken it.
    pub fn send(&mut self, frame: &[u8]) {
        let slot = u32::from(RING);
        let bytes = [&[0; HEADER], frame].concat();
        self.memory.slice(self.buffer(slot), bytes.len()).unwrap().write(0, &bytes);
        let segment = Segment { addr: self.buffer(slot), len: bytes.len() as u32 };
        self.session.rings[1].ring.add(&[segment], &[], slot).unwrap();
        self.session.rings[1].publish().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.session.rings[1].ring.pop().is_none() {
            assert!(Instant::now() < deadline, "a frame is not taken");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The next frame, if one comes in time.
    pub fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let used = loop {
            if let Some(used) = self.session.rings[0].ring.pop() {
                break used;
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        };
        let mut bytes = vec![0; used.len as usize];
        self.memory.slice(self.buffer(used.cookie), bytes.len()).unwrap().read(0, &mut bytes);
        self.post(used.cookie);
        self.session.rings[0].publish().unwrap();
        Some(bytes.split_off(HEADER))
    }

    /// The next frame is this one.
    pub fn expect(&mut self, frame: &[u8]) {
        let got = self.receive(PATIENCE).expect("a frame comes");
        assert!(got == frame, "{got:02x?} is not {frame:02x?}");
    }

    /// No frame comes.
    pub fn hears_nothing(&mut self) {
        let got = self.receive(Duration::from_millis(100));
        assert!(got.is_none(), "{got:02x?}");
    }
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

/// A frame of 100 bytes that holds `seed`.
pub fn frame(dst: MacAddr, src: MacAddr, seed: u8) -> Vec<u8> {
    [&dst.0[..], &src.0, &[0x88, 0xb5], &[seed; 86]].concat()
}
