//! The control queue: one request after the other.

use std::time::{Duration, Instant};

use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use virtqueue::driver::Segment;

use crate::guest::Ring;
use crate::guest::memory::{area, footprint};

/// Longest request: header, fixed part, the DER of a private RSA key of 8192 bits.
const REQUEST: usize = 8192;
/// Where the answer goes.
const ANSWER: usize = 64;
/// Longest time that a request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A ring for control requests.
pub(super) struct Control {
    ring: Ring,
    request: Area,
    answer: Area,
}

impl Control {
    /// Bytes of guest memory.
    pub fn footprint() -> usize {
        footprint([REQUEST, ANSWER])
    }

    pub fn new(memory: &OwnMemory, ring: Ring) -> Result<Self, OutOfRange> {
        Ok(Self { ring, request: area(memory, REQUEST)?, answer: area(memory, ANSWER)? })
    }

    /// Sends `request` and waits for an answer of `N` bytes; `None` when none comes, or when it has another length.
    pub fn call<const N: usize>(&mut self, request: &[u8]) -> Option<[u8; N]> {
        if request.len() > REQUEST {
            return None;
        }
        self.request.write_bytes(0, request);
        self.answer.write_bytes(0, &[0xee; N]);
        let segment = |area: &Area, len| Segment { addr: GuestAddr(area.guest_addr().0), len: len as u32 };
        let (readable, writable) = ([segment(&self.request, request.len())], [segment(&self.answer, N)]);
        self.ring.add(&readable, &writable, 0);
        self.ring.publish();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(used) = self.ring.pop() {
                let mut answer = [0; N];
                self.answer.read_bytes(0, &mut answer);
                return (used.len as usize == N).then_some(answer);
            }
            self.ring.sleep_at_most(Duration::from_millis(20));
        }
        None
    }
}
