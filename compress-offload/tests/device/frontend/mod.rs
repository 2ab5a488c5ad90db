//! A frontend and a guest behind it, against the whole device: a real vhost-user session, real rings, workers.
//!
//! Whatever a test asks for, every answer is held to the promises that the specification makes about all of them
//! ([`Vmm::take`]): nothing outside the destination and the response is written, lengths fit each other, failures say nothing.

pub mod memory;
pub mod server;

pub use memory::Cut;
pub use server::{Server, Setup};

use ::memory::{Area, GuestAddr, OwnMemory};
use compress_protocol::{Header, RESPONSE_LEN, Response, Status};
use memory::{Arena, Place};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost_user::frontend::Frontend;
use vhost_user::frontend::driver::{DriverQueue, Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::{features, protocol};
use virtqueue::driver::{DriverRing, IndirectTables, Segment};
use virtqueue::{Format, RingAddresses, ring_sizes};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of every ring.
pub const SIZE: u16 = 256;
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Descriptors an indirect table holds.
const TABLE: u16 = 1100;
/// Bytes of buffers a guest has.
const BUFFERS: usize = 96 << 20;
/// All features on split rings.
pub const SPLIT: u64 = !features::RING_PACKED;
/// All features.
pub const PACKED: u64 = u64::MAX;

/// Waits until something is true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// What a driver asks for, and how it lays it out.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub header: Header,
    /// Readable bytes behind the header: the source, or more, or less.
    pub src: Vec<u8>,
    /// Writable bytes in front of the response; `None`: as many as the header says.
    pub room: Option<usize>,
    pub cut: Cut,
    pub indirect: bool,
    /// Only so many readable bytes are there.
    pub readable: Option<usize>,
    /// Only so many writable bytes are there.
    pub writable: Option<usize>,
}

impl Request {
    pub fn new(header: Header, src: &[u8]) -> Self {
        Self { header, src: src.to_vec(), ..Self::default() }
    }

    pub fn cut(self, cut: Cut) -> Self {
        Self { cut, ..self }
    }

    pub fn indirect(self) -> Self {
        Self { indirect: true, ..self }
    }

    /// With so many writable bytes in front of the response.
    pub fn room(self, room: usize) -> Self {
        Self { room: Some(room), ..self }
    }
}

impl From<Header> for Request {
    /// Without a source.
    fn from(header: Header) -> Self {
        Self::new(header, &[])
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The used length.
    pub used: u32,
    pub response: Response,
    /// The destination, all of it.
    pub dst: Vec<u8>,
}

impl Answer {
    /// The status, which has to be one that is known.
    pub fn status(&self) -> Status {
        self.response.status().unwrap_or_else(|| panic!("status {}", self.response.status))
    }

    /// The result of a request that has to be OK.
    pub fn result(&self) -> &[u8] {
        assert_eq!(self.status(), Status::Ok, "{:?}", self.response);
        &self.dst[..self.response.produced as usize]
    }
}

/// A request on its way.
struct Sent {
    request: Request,
    queue: usize,
    readable: Place,
    writable: Place,
}

/// A VMM that shows the device to a guest, and the guest's driver.
pub struct Vmm {
    pub session: Session,
    pub memory: OwnMemory,
    arena: Arena,
    /// Memory for the indirect tables of each queue.
    tables: Vec<Area>,
    cookies: u32,
    sent: HashMap<u32, Sent>,
    answers: HashMap<u32, Answer>,
}

/// How a [`Vmm`] is connected.
#[derive(Clone, Copy)]
pub struct Link {
    pub wanted: u64,
    pub protocol: u64,
    pub inflight: bool,
}

impl Link {
    /// As QEMU's file system, which passes on neither a configuration nor features of ours.
    pub fn carrier() -> Self {
        let own = compress_protocol::feature::ALL;
        Self { wanted: SPLIT & !own, protocol: USEFUL_PROTOCOL_FEATURES & !protocol::CONFIG, inflight: false }
    }
}

impl From<u64> for Link {
    /// With everything the session knows, and these features of those offered.
    fn from(wanted: u64) -> Self {
        Self { wanted, protocol: USEFUL_PROTOCOL_FEATURES, inflight: false }
    }
}

impl Vmm {
    /// With all queues running.
    pub fn running(server: &Server, link: impl Into<Link>) -> Self {
        Self::dial(server.stream(), server.unit.queues(), link)
    }

    pub fn dial(socket: UnixStream, queues: u16, link: impl Into<Link>) -> Self {
        let link = link.into();
        let wanted = link.wanted | features::VERSION_1;
        let overhead = usize::from(queues) * (usize::from(TABLE) * 16 * usize::from(SIZE) + (64 << 10));
        let memory = OwnMemory::new((BUFFERS + overhead).next_multiple_of(4096), GuestAddr(1 << 20)).unwrap();
        let arena = Arena::new(&memory, BUFFERS - (1 << 20));
        let mut session = Session::negotiate(socket, wanted, link.protocol).unwrap();
        session.frontend.set_reply_timeout(PATIENCE);
        session.share_memory(&memory.config(), memory.fd()).unwrap();
        if link.inflight {
            session.setup_inflight(queues, SIZE).unwrap().expect("an inflight region");
        }
        let (sent, answers, tables) = (HashMap::new(), HashMap::new(), Vec::new());
        let mut vmm = Self { session, memory, arena, tables, cookies: 0, sent, answers };
        (0..queues).for_each(|index| vmm.add_queue(index));
        vmm
    }

    fn add_queue(&mut self, index: u16) {
        let (desc, driver, device) = ring_sizes(self.session.ring_features().format(), SIZE);
        let area = |len| self.memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let len = 16 * usize::from(TABLE) * usize::from(SIZE);
        self.tables.push(self.memory.area(area(len), len).unwrap());
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = self.new_ring(&addresses, index);
        self.session.rings.push(DriverQueue { ring, kick: event(), call: event(), addresses, size: SIZE });
        self.start_queue(index, self.first());
    }

    fn new_ring(&self, addresses: &RingAddresses, index: u16) -> DriverRing {
        let (table, features) = (self.memory.table(), self.session.ring_features());
        let mut ring = DriverRing::in_table(table, addresses, features.format(), SIZE, features).unwrap();
        if features.indirect {
            let area = self.tables[usize::from(index)].clone();
            ring.set_indirect(IndirectTables { area, entries: TABLE }).unwrap();
        }
        ring
    }

    /// SET_VRING_BASE of a ring that never ran.
    pub fn first(&self) -> u32 {
        match self.session.ring_features().format() {
            Format::Packed => 0x8000_8000,
            Format::Split => 0,
        }
    }

    pub fn start_queue(&mut self, index: u16, base: u32) {
        let ring = &self.session.rings[usize::from(index)];
        let (addresses, size) = (ring.addresses, ring.size);
        let (kick, call) = (ring.kick.try_clone().unwrap(), ring.call.try_clone().unwrap());
        self.session.start_queue(index, size, base, &addresses, &kick, &call).unwrap();
    }

    /// A new driver for a queue that is stopped, with a ring at its beginning.
    pub fn renew_queue(&mut self, index: u16) {
        assert!(self.sent.values().all(|sent| sent.queue != usize::from(index)));
        let addresses = self.session.rings[usize::from(index)].addresses;
        self.session.rings[usize::from(index)].ring = self.new_ring(&addresses, index);
        self.start_queue(index, self.first());
    }

    /// Puts a request into a queue, not yet shown to the device.
    pub fn put(&mut self, queue: usize, request: impl Into<Request>) -> u32 {
        let request = request.into();
        if self.sent.is_empty() {
            self.arena.rewind();
        }
        let (readable, writable) = self.lay_out(&request);
        let ring = &mut self.session.rings[queue].ring;
        let cookie = self.cookies;
        let added = match request.indirect {
            true => ring.add_indirect(readable.segments(), writable.segments(), cookie),
            false => ring.add(readable.segments(), writable.segments(), cookie),
        };
        added.expect("room in the ring");
        self.cookies += 1;
        self.sent.insert(cookie, Sent { request, queue, readable, writable });
        cookie
    }

    fn lay_out(&mut self, request: &Request) -> (Place, Place) {
        let mut bytes = [&request.header.encode()[..], &request.src].concat();
        bytes.truncate(request.readable.unwrap_or(usize::MAX));
        let front = bytes.len().min(64);
        let readable = [front, bytes.len() - front, 0];
        let readable = self.arena.place(&self.memory, request.cut, readable, Some(&bytes));
        let room = request.room.unwrap_or(request.header.dst_len as usize);
        let parts = match request.writable {
            Some(len) => [0, len, 0],
            None => [0, room, RESPONSE_LEN],
        };
        (readable, self.arena.place(&self.memory, request.cut, parts, None))
    }

    /// Shows a queue's new requests to the device.
    pub fn publish(&mut self, queue: usize) {
        self.session.rings[queue].publish().unwrap();
    }

    pub fn send(&mut self, queue: usize, request: impl Into<Request>) -> u32 {
        let cookie = self.put(queue, request);
        self.publish(queue);
        cookie
    }

    /// Takes what has come back.
    pub fn harvest(&mut self) {
        (0..self.session.rings.len()).for_each(|queue| self.harvest_queue(queue));
    }

    /// Takes what has come back on one queue, as it is now: looking at answers takes as long as giving them.
    pub fn harvest_queue(&mut self, queue: usize) {
        let ring = &mut self.session.rings[queue].ring;
        let all: Vec<_> = std::iter::from_fn(|| ring.pop()).collect();
        for used in all {
            let sent = self.sent.remove(&used.cookie).expect("each request comes back once");
            assert_eq!(sent.queue, queue, "to its own queue");
            let answer = self.take(&sent, used.len);
            self.answers.insert(used.cookie, answer);
        }
    }

    /// What is promised of every answer (docs/compress-device.md §1.6.5.1).
    fn take(&self, sent: &Sent, used: u32) -> Answer {
        let Sent { request, readable, writable, .. } = sent;
        readable.check(&self.memory);
        writable.check_guards(&self.memory);
        let header = &request.header;
        let all = writable.read(&self.memory);
        let Some(end) = all.len().checked_sub(RESPONSE_LEN) else {
            assert_eq!(used, 0, "there is no room for a response");
            assert!(all.iter().all(|byte| *byte == memory::UNTOUCHED));
            return Answer { used, response: Response::default(), dst: all };
        };
        let response = Response::decode(all[end..].try_into().unwrap());
        let Response { consumed, produced, checksum, user_tag, flags, .. } = response;
        let said = format!("{response:?} to {header:?}");
        let status = response.status().unwrap_or_else(|| panic!("{said}"));
        let expected = if end == produced as usize { all.len() } else { produced as usize };
        assert_eq!(used as usize, expected, "the used length: {said}");
        let tag = if readable.len() < 64 { 0 } else { header.user_tag };
        assert_eq!(user_tag, tag, "{said}");
        assert!(consumed <= header.src_len && produced <= header.dst_len && flags < 8, "{said}");
        if status != Status::Ok {
            assert_eq!((consumed, produced, checksum), (0, 0, 0), "{said}");
        }
        let dst_len = (header.dst_len as usize).min(end);
        let idle = [Status::Busy, Status::BadRequest, Status::BadStream, Status::NoSpace].contains(&status);
        let untouched = if idle { 0 } else { dst_len };
        assert!(all[untouched..end].iter().all(|byte| *byte == memory::UNTOUCHED), "{said}");
        Answer { used, response, dst: all[..dst_len].to_vec() }
    }

    /// Waits for the answer to one request.
    pub fn wait(&mut self, cookie: u32) -> Answer {
        eventually("a request comes back", || {
            if let Some(sent) = self.sent.get(&cookie) {
                self.harvest_queue(sent.queue);
            }
            self.answers.contains_key(&cookie)
        });
        self.answers.remove(&cookie).unwrap()
    }

    /// Waits for all answers.
    pub fn wait_all(&mut self, cookies: &[u32]) -> Vec<Answer> {
        cookies.iter().map(|cookie| self.wait(*cookie)).collect()
    }

    /// One request on the first queue.
    pub fn ask(&mut self, request: impl Into<Request>) -> Answer {
        self.ask_on(0, request)
    }

    pub fn ask_on(&mut self, queue: usize, request: impl Into<Request>) -> Answer {
        let cookie = self.send(queue, request);
        self.wait(cookie)
    }

    pub fn unanswered(&self) -> usize {
        self.sent.len()
    }

    /// Where the readable bytes of a request on its way are.
    pub fn readable(&self, cookie: u32) -> &[Segment] {
        self.sent[&cookie].readable.segments()
    }

    /// The request's readable bytes are the test's to change while it is on its way.
    pub fn hand_over(&mut self, cookie: u32) {
        self.sent.get_mut(&cookie).unwrap().readable.forget();
    }

    /// Where the writable bytes of a request on its way are.
    pub fn writable(&self, cookie: u32) -> &[Segment] {
        self.sent[&cookie].writable.segments()
    }

    /// The test has taken the answers to these from the ring by itself: only what is beside their buffers is looked at.
    pub fn forget(&mut self, cookies: &[u32]) {
        for cookie in cookies {
            let sent = self.sent.remove(cookie).unwrap();
            sent.readable.check_guards(&self.memory);
            sent.writable.check_guards(&self.memory);
        }
    }

    /// Segments of nobody, for what a test builds by hand. Valid until nothing is on its way any more.
    pub fn scratch(&mut self, len: usize) -> Segment {
        self.arena.take(&self.memory, len)
    }

    /// The connection is lost; what is on its way stays there.
    pub fn reconnect(&mut self, server: &Server) {
        // The device serves one frontend at a time.
        self.session.frontend = Frontend::from_stream(UnixStream::pair().unwrap().0);
        self.session.reconnect(server.stream()).unwrap();
    }

    /// Adds a chain of these segments, of which nothing is checked; its used length when it comes back.
    pub fn raw(&mut self, queue: usize, readable: &[Segment], writable: &[Segment]) -> u32 {
        assert!(self.sent.is_empty());
        self.session.rings[queue].ring.add_indirect(readable, writable, u32::MAX).unwrap();
        self.publish(queue);
        let mut used = None;
        eventually("a chain comes back", || {
            used = self.session.rings[queue].ring.pop();
            used.is_some()
        });
        used.unwrap().len
    }
}
