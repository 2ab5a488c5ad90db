//! Guests with rings, and the service of a worker, all on the thread of the test: what a guest puts into a ring goes through
//! the whole data path, and the test sees what comes back. Only the asymmetric pool has threads.
#![allow(dead_code, reason = "each test binary uses a part")]

use crypto_offload::asym::Pool;
use crypto_offload::engine::{Choice, Engines, KeySpec};
use crypto_offload::flush::Policy;
use crypto_offload::journal::Journal;
use crypto_offload::service::{CryptoService, Message, ServiceConfig, Unit, UnitOptions};
use crypto_offload::session::SessionId;
use crypto_offload::stats::ServiceStats;
use crypto_offload::vault::Origin;
use memory::{Area, GuestAddr, OwnMemory};
use runtime::rings::{Reply, RingCommand};
use runtime::worker::{Context, Service};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtqueue::driver::{DriverRing, IndirectTables, Segment};
use virtqueue::inflight::{QueueRegion, region_size};
use virtqueue::{Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};

/// First byte of every guest.
const GUEST: GuestAddr = GuestAddr(0x10_0000);
/// Entries of a ring.
pub const SIZE: u16 = 1024;
/// Descriptors of an indirect table.
const TABLE: u16 = 64;
/// What writable buffers hold before.
pub const UNTOUCHED: u8 = 0xee;
/// How long the asymmetric pool may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A worker's service.
pub struct Rig {
    pub service: CryptoService,
    pub cx: Context,
    pub stats: Arc<ServiceStats>,
    pub guests: Vec<Guest>,
    // Last: the service's tasks end before it.
    pool: Pool,
}

/// What a guest's device is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub features: u64,
    pub data_queues: u16,
    pub sessions: u32,
    pub max_size: u64,
    pub memory: usize,
    pub ring: RingFeatures,
    /// The frontend keeps an inflight region.
    pub tracked: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            features: 0,
            data_queues: 1,
            sessions: 4096,
            max_size: 1 << 20,
            memory: 16 << 20,
            ring: RingFeatures { event_idx: true, indirect: true, in_order: false, packed: false },
            tracked: false,
        }
    }
}

impl Rig {
    /// A service with the library alone.
    pub fn new(policy: Policy) -> Self {
        Self::build(policy, CryptoService::new, Choice::Library)
    }

    /// A service with these engines in front of the library.
    pub fn with_engines(policy: Policy, engines: Engines) -> Self {
        Self::build(policy, |config, cx| CryptoService::with_engines(config, engines, cx), Choice::Library)
    }

    /// A service that sets sources aside.
    pub fn with_journal(policy: Policy, journal: Journal) -> Self {
        Self::build(
            policy,
            |config, cx| CryptoService::new(config.with_journal(journal), cx),
            Choice::Library,
        )
    }

    pub fn with_choice(policy: Policy, choice: Choice) -> Self {
        Self::build(policy, CryptoService::new, choice)
    }

    fn build(
        policy: Policy,
        make: impl FnOnce(ServiceConfig, &mut Context) -> CryptoService,
        choice: Choice,
    ) -> Self {
        let pool = Pool::start(2).unwrap();
        let mut cx = Context::detached().unwrap();
        let config = ServiceConfig::new(policy, choice, &pool).unwrap();
        let stats = config.stats();
        let service = make(config, &mut cx);
        Self { service, cx, stats, guests: Vec::new(), pool }
    }

    /// One guest with a device of the default shape.
    pub fn single(policy: Policy) -> Self {
        let mut rig = Self::new(policy);
        rig.add(Shape::default());
        rig
    }

    /// Another guest, all of whose rings run.
    pub fn add(&mut self, shape: Shape) -> usize {
        let mut guest = Guest::new(self.guests.len() as u32, shape);
        (0..=shape.data_queues).for_each(|_| guest.lay_out_ring());
        self.guests.push(guest);
        self.attach(self.guests.len() - 1);
        self.guests.len() - 1
    }

    fn attach(&mut self, place: usize) {
        let (device, unit) = (place as u32, self.guests[place].unit.clone());
        self.tell(|reply| Message::Add { device, unit, reply });
        let table = self.guests[place].memory.table().clone();
        self.tell(|reply| Message::Rings(RingCommand::Memory { device, table, reply }));
        for index in 0..self.guests[place].rings.len() as u16 {
            let queue = self.guests[place].start_ring(index);
            let stats = Arc::default();
            self.tell(|reply| RingCommand::Start { device, index, queue, stats, reply }.into());
            self.tell(|reply| RingCommand::Enable { device, index, enable: true, reply }.into());
        }
    }

    /// The service dies with whatever it has in flight, and another one takes over.
    pub fn crash(&mut self) {
        self.cx = Context::detached().unwrap();
        let config = ServiceConfig::new(Policy::default(), Choice::Library, &self.pool).unwrap();
        self.stats = config.stats();
        self.service = CryptoService::new(config, &mut self.cx);
        (0..self.guests.len()).for_each(|place| self.attach(place));
    }

    /// Sends a message and takes the answer.
    pub fn tell<R>(&mut self, message: impl FnOnce(Reply<R>) -> Message) -> R {
        let (reply, answer) = Reply::new();
        self.service.message(message(reply), &mut self.cx);
        answer.recv().expect("the service answers")
    }

    /// Sends a message whose answer takes a round.
    pub fn tell_and_run<R>(&mut self, message: impl FnOnce(Reply<R>) -> Message) -> R {
        let (reply, answer) = Reply::new();
        self.service.message(message(reply), &mut self.cx);
        self.round();
        answer.recv().expect("the service answers")
    }

    /// One round.
    pub fn round(&mut self) -> usize {
        self.service.poll_once(&mut self.cx)
    }

    /// Rounds until every request of every guest is answered.
    pub fn run(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let worked = self.round();
            self.guests.iter_mut().for_each(Guest::harvest);
            if self.guests.iter().all(|guest| guest.sent.is_empty()) {
                return;
            }
            assert!(Instant::now() < until, "requests are not answered");
            if worked == 0 {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// Sends one request of the first guest and waits for its answer.
    pub fn ask(&mut self, request: &Request) -> Answer {
        let cookie = self.guests[0].send(0, request);
        self.run();
        let answer = self.guests[0].answer(cookie);
        self.guests[0].rewind();
        answer
    }

    pub fn session(&self, spec: &KeySpec<'_>) -> u64 {
        self.guests[0].session(spec)
    }
}

/// How a request is cut into descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// As the Linux driver does: the header with its fixed part, the rest, the result, the status.
    #[default]
    Linux,
    /// One descriptor to read, one to write.
    Whole,
    /// So many bytes a descriptor.
    Every(usize),
    /// One to so many bytes a descriptor, by this seed.
    Random(u64, usize),
}

/// What a guest sends.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Header, fixed part and everything behind it.
    pub readable: Vec<u8>,
    /// Bytes of result it has room for, without the status.
    pub room: usize,
    /// Length of header and fixed part.
    pub front: usize,
    pub cut: Cut,
    /// The result goes where the readable bytes from here on are.
    pub in_place: Option<usize>,
    pub indirect: bool,
    /// No room for a status.
    pub mute: bool,
}

/// What a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    /// The used length.
    pub used: u32,
    /// All of the result's room.
    pub data: Vec<u8>,
    /// The order in which it was answered.
    pub order: usize,
}

impl Answer {
    /// The result, as its used length has it.
    pub fn result(&self) -> &[u8] {
        assert_eq!(self.status, 0, "the request failed");
        &self.data[..self.used as usize - 1]
    }
}

struct Sent {
    ring: usize,
    writable: Vec<Segment>,
}

/// A guest and its device.
pub struct Guest {
    pub unit: Arc<Unit>,
    pub memory: OwnMemory,
    pub rings: Vec<DriverRing>,
    /// Where the rings are, and their inflight regions.
    places: Vec<(RingAddresses, Area)>,
    shape: Shape,
    buffers: GuestAddr,
    room: usize,
    next: usize,
    cookies: u32,
    sent: HashMap<u32, Sent>,
    answers: HashMap<u32, Answer>,
    answered: usize,
}

impl Guest {
    fn new(device: u32, shape: Shape) -> Self {
        let unit = Unit::new(UnitOptions {
            id: format!("guest{device}"),
            data_queues: shape.data_queues,
            queue_size: SIZE,
            max_size: shape.max_size,
            sessions: shape.sessions,
            vault: None,
        });
        unit.negotiate(shape.features);
        let rings = usize::from(shape.data_queues) + 1;
        let overhead = rings * (3 << 16) + rings * 16 * usize::from(TABLE) * usize::from(SIZE);
        let memory = OwnMemory::new((shape.memory + overhead).next_multiple_of(4096), GUEST).unwrap();
        let buffers = memory.alloc(shape.memory, 4096).unwrap();
        Self {
            unit: Arc::new(unit),
            memory,
            rings: Vec::new(),
            places: Vec::new(),
            shape,
            buffers,
            room: shape.memory,
            next: 0,
            cookies: 0,
            sent: HashMap::new(),
            answers: HashMap::new(),
            answered: 0,
        }
    }

    fn lay_out_ring(&mut self) {
        let (features, format) = (self.shape.ring, self.shape.ring.format());
        let (desc, driver, device) = ring_sizes(format, SIZE);
        let addresses = RingAddresses {
            desc: self.memory.alloc(desc, 16).unwrap(),
            driver: self.memory.alloc(driver, 4).unwrap(),
            device: self.memory.alloc(device, 4096).unwrap(),
        };
        let table = self.memory.table();
        let mut ring = DriverRing::in_table(table, &addresses, format, SIZE, features).unwrap();
        let bytes = 16 * usize::from(TABLE) * usize::from(SIZE);
        let area = self.memory.area(self.memory.alloc(bytes, 16).unwrap(), bytes).unwrap();
        ring.set_indirect(IndirectTables { area, entries: TABLE }).unwrap();
        self.rings.push(ring);
        self.places.push((addresses, Area::anonymous(region_size(format, SIZE))));
    }

    fn start_ring(&self, index: u16) -> Box<Queue> {
        let features = self.shape.ring;
        let (addresses, region) = &self.places[usize::from(index)];
        let region = || QueueRegion::new(region.clone(), features.format(), SIZE).unwrap();
        let setup = RingSetup {
            size: SIZE,
            features,
            table: self.memory.table(),
            addresses: *addresses,
            base: if features.packed { 0x8000_8000 } else { 0 },
            inflight: self.shape.tracked.then(region),
            log: None,
            used_log_addr: None,
        };
        Box::new(Queue::new(setup).unwrap())
    }

    /// The device area of a ring.
    pub fn used_ring(&self, ring: usize) -> Area {
        let (addresses, _) = &self.places[ring];
        let (_, _, len) = ring_sizes(self.shape.ring.format(), SIZE);
        self.memory.area(addresses.device, len).expect("in memory")
    }

    /// Where its buffers are.
    pub fn buffers_start(&self) -> u64 {
        self.buffers.0
    }

    pub fn session(&self, spec: &KeySpec<'_>) -> u64 {
        self.unit.sessions().create(spec, Origin::NONE).expect("a session").wire()
    }

    pub fn close(&self, id: u64) {
        assert!(self.unit.sessions().close(SessionId::from_wire(id).expect("an id")), "no such session");
    }

    /// Puts a request into a ring, not yet visible.
    pub fn put(&mut self, ring: usize, request: &Request) -> u32 {
        let cookie = self.cookies;
        self.cookies += 1;
        let (readable, writable) = self.place(request);
        let added = match request.indirect {
            true => self.rings[ring].add_indirect(&readable, &writable, cookie),
            false => self.rings[ring].add(&readable, &writable, cookie),
        };
        added.expect("room in the ring");
        self.sent.insert(cookie, Sent { ring, writable });
        cookie
    }

    /// Makes visible what was put into a ring.
    pub fn publish(&mut self, ring: usize) {
        let _ = self.rings[ring].publish();
    }

    pub fn send(&mut self, ring: usize, request: &Request) -> u32 {
        let cookie = self.put(ring, request);
        self.publish(ring);
        cookie
    }

    /// Buffers are free again: nothing is in flight.
    pub fn rewind(&mut self) {
        assert!(self.sent.is_empty());
        self.next = 0;
    }

    /// Takes what was answered.
    pub fn harvest(&mut self) {
        for index in 0..self.rings.len() {
            while let Some(used) = self.rings[index].pop() {
                let sent = self.sent.remove(&used.cookie).expect("each request is answered once");
                assert_eq!(sent.ring, index, "on its own ring");
                let mut data = self.read(&sent.writable);
                assert!(used.len as usize <= data.len(), "more was written than there is room");
                let status = data.pop().unwrap_or(0xff);
                let answer = Answer { status, used: used.len, data, order: self.answered };
                self.answered += 1;
                self.answers.insert(used.cookie, answer);
            }
        }
    }

    pub fn answer(&mut self, cookie: u32) -> Answer {
        self.answers.remove(&cookie).expect("an answer")
    }

    pub fn has_answer(&self, cookie: u32) -> bool {
        self.answers.contains_key(&cookie)
    }

    pub fn unanswered(&self) -> usize {
        self.sent.len()
    }

    /// Where readable and writable bytes are, the readable ones filled in.
    fn place(&mut self, request: &Request) -> (Vec<Segment>, Vec<Segment>) {
        let writable_len = request.room + usize::from(!request.mute);
        let front = request.front.min(request.readable.len());
        let (readable, mut writable) = match request.cut {
            Cut::Linux => {
                (self.cut_at(request.readable.len(), &[front]), self.cut_at(writable_len, &[request.room]))
            }
            Cut::Whole => (self.cut_at(request.readable.len(), &[]), self.cut_at(writable_len, &[])),
            Cut::Every(len) => {
                let cuts =
                    |total: usize| (1..).map(|n| n * len).take_while(|at| *at < total).collect::<Vec<_>>();
                let (r, w) = (cuts(request.readable.len()), cuts(writable_len));
                (self.cut_at(request.readable.len(), &r), self.cut_at(writable_len, &w))
            }
            Cut::Random(seed, most) => {
                let mut seed = seed | 1;
                let mut cuts = |total: usize| {
                    let (mut at, mut cuts) = (0, Vec::new());
                    loop {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        at += 1 + (seed >> 33) as usize % most;
                        if at >= total {
                            return cuts;
                        }
                        cuts.push(at);
                    }
                };
                let (r, w) = (cuts(request.readable.len()), cuts(writable_len));
                (self.cut_at(request.readable.len(), &r), self.cut_at(writable_len, &w))
            }
        };
        self.fill(&writable, &vec![UNTOUCHED; writable_len]);
        self.fill(&readable, &request.readable);
        if let Some(from) = request.in_place {
            writable = overlay(&readable, from, request.room);
            writable.extend(self.cut_at(1, &[]));
        }
        (readable, writable)
    }

    /// `len` bytes of guest memory, cut at these offsets; each piece a little away from the one before.
    fn cut_at(&mut self, len: usize, cuts: &[usize]) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut at = 0;
        for end in cuts.iter().copied().filter(|cut| *cut > 0 && *cut < len).chain([len]) {
            if end > at {
                let addr = GuestAddr(self.buffers.0 + self.next as u64);
                segments.push(Segment { addr, len: (end - at) as u32 });
                self.next += end - at + 3;
                assert!(self.next <= self.room, "the guest has too little memory");
                at = end;
            }
        }
        segments
    }

    fn fill(&self, segments: &[Segment], bytes: &[u8]) {
        let mut at = 0;
        for segment in segments {
            let slice = self.memory.slice(segment.addr, segment.len as usize).unwrap();
            slice.write(0, &bytes[at..at + segment.len as usize]);
            at += segment.len as usize;
        }
    }

    pub fn read(&self, segments: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments {
            let at = bytes.len();
            bytes.resize(at + segment.len as usize, 0);
            self.memory.slice(segment.addr, segment.len as usize).unwrap().read(0, &mut bytes[at..]);
        }
        bytes
    }
}

/// `len` bytes of a list, from `from` on.
fn overlay(list: &[Segment], from: usize, len: usize) -> Vec<Segment> {
    let (mut skip, mut left) = (from, len);
    let mut part = Vec::new();
    for segment in list {
        let all = segment.len as usize;
        if skip >= all {
            skip -= all;
            continue;
        }
        let here = (all - skip).min(left);
        if here > 0 {
            part.push(Segment { addr: GuestAddr(segment.addr.0 + skip as u64), len: here as u32 });
        }
        (skip, left) = (0, left - here);
    }
    part
}

/// Requests of the layout without REVISION_1, for a session.
pub mod legacy {
    use super::Request;

    pub const FRONT: usize = 72;

    /// Header and fixed part.
    pub fn front(opcode: u32, session: u64, words: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FRONT);
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(session.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        assert!(bytes.len() <= FRONT);
        bytes.resize(FRONT, 0);
        bytes
    }

    fn request(front: Vec<u8>, rest: &[&[u8]], room: usize) -> Request {
        let readable = [front, rest.concat()].concat();
        Request { readable, room, front: FRONT, ..Request::default() }
    }

    /// Opcode 0 encrypts, 1 decrypts.
    pub fn cipher(op: u32, session: u64, iv: &[u8], src: &[u8]) -> Request {
        let len = src.len() as u32;
        let words = [iv.len() as u32, len, len, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        request(front(op, session, &words), &[iv, src], src.len())
    }

    /// What of the source is ciphered and what is hashed, as start and length.
    pub struct Parts {
        pub cipher: (u32, u32),
        pub hash: (u32, u32),
        pub result: u32,
    }

    pub fn chain(op: u32, session: u64, iv: &[u8], src: &[u8], parts: &Parts) -> Request {
        let len = src.len() as u32;
        let Parts { cipher, hash, result } = *parts;
        let words = [iv.len() as u32, len, len, cipher.0, cipher.1, hash.0, hash.1, 0, result, 0, 2, 0];
        request(front(op, session, &words), &[iv, src], src.len() + result as usize)
    }

    pub fn hash(session: u64, src: &[u8], result: u32) -> Request {
        request(front(0x100, session, &[src.len() as u32, result]), &[src], result as usize)
    }

    pub fn mac(session: u64, src: &[u8], result: u32) -> Request {
        request(front(0x200, session, &[src.len() as u32, result]), &[src], result as usize)
    }

    /// `src` of a decryption has the tag behind it.
    pub fn aead(op: u32, session: u64, iv: &[u8], aad: &[u8], src: &[u8], room: usize) -> Request {
        let words = [iv.len() as u32, aad.len() as u32, src.len() as u32, room as u32];
        request(front(0x300 | op, session, &words), &[iv, src, aad], room)
    }

    /// Opcode 0 encrypts, 1 decrypts, 2 signs.
    pub fn akcipher(op: u32, session: u64, src: &[u8], room: usize) -> Request {
        request(front(0x400 | op, session, &[src.len() as u32, room as u32]), &[src], room)
    }

    pub fn verify(session: u64, signature: &[u8], digest: &[u8]) -> Request {
        let words = [signature.len() as u32, digest.len() as u32];
        request(front(0x403, session, &words), &[signature, digest], 0)
    }
}
