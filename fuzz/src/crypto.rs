//! A worker with two crypto devices on this thread: one of a guest that writes anything anywhere, one of a guest that checks
//! every byte of what it gets.

#![expect(unsafe_code, reason = "asks the library what a request has to give")]

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crypto_offload::algorithm::{Aead, Akcipher, ChainOrder, Cipher, Curve, Direction, Hash, KeyKind};
use crypto_offload::asym::Pool;
use crypto_offload::engine::{Bytes, Choice, Engines, Iv, Job, KeyRef, KeySpec, Outcome, Prepared, Ranges};
use crypto_offload::engine::{Span, Tag, Work};
use crypto_offload::flush::{Mode, Policy, Thresholds};
use crypto_offload::service::{CryptoService, Message, ServiceConfig, Unit, UnitOptions};
use crypto_offload::session::SessionId;
use crypto_offload::vault::Origin;
use memory::{GuestAddr, HostRange, RegionConfig, UserAddr};
use runtime::rings::{Reply, RingCommand};
use runtime::worker::{Context, Service};
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{Queue, RingFeatures};

use crate::guest::{Guest, cut, place};
use crate::input::Input;

const SIZE: u16 = 32;
const BASE: u64 = 0x1_0000;
/// Two regions that touch, so that buffers cross the seam.
const REGION: u64 = 0x4000;
/// The rings are in front: the data ring, then the control ring.
const RING: u64 = 0x800;
const BUFFERS: Range<u64> = BASE + 2 * RING..BASE + 2 * REGION;
/// What writable buffers hold before.
const UNTOUCHED: u8 = 0xee;
const MAX_SIZE: u64 = 0x2000;

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

/// Runs one input to its end.
pub fn run(bytes: &[u8]) {
    BENCH.with_borrow_mut(|bench| {
        let mut input = Input::new(bytes);
        let mut world = World::new(bench, &mut input);
        while !input.is_empty() {
            world.step(&mut input);
        }
        world.end();
    });
}

/// What is made once.
struct Bench {
    service: CryptoService,
    cx: Context,
    oracle: Engines,
    _pool: Pool,
}

impl Bench {
    fn new() -> Self {
        let pool = Pool::start(1).expect("a thread");
        let mut cx = Context::detached().expect("an I/O engine");
        let config = ServiceConfig::new(Policy::default(), Choice::Auto, &pool).expect("an eventfd");
        let service = CryptoService::new(config, &mut cx);
        Self { service, cx, oracle: Engines::new(Choice::Library), _pool: pool }
    }

    fn tell<R>(&mut self, message: impl FnOnce(Reply<R>) -> Message) -> R {
        let (reply, answer) = Reply::new();
        self.service.message(message(reply), &mut self.cx);
        self.settle();
        answer.recv().expect("an answer")
    }

    /// Rounds until nothing is in flight and nothing is found.
    fn settle(&mut self) {
        while self.service.poll_once(&mut self.cx) > 0 || self.service.outstanding() > 0 {
            std::thread::sleep(Duration::from_micros(if self.service.outstanding() > 0 { 20 } else { 0 }));
        }
    }
}

/// A guest and its device.
struct Side {
    guest: Guest,
    unit: Arc<Unit>,
    rings: Vec<DriverRing>,
    sessions: Vec<Session>,
    sent: Vec<Sent>,
    next: u64,
}

/// A session, and what it was made of.
struct Session {
    id: SessionId,
    kind: Kind,
    key: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Cipher(Cipher, Direction),
    Hash(Hash),
    Mac(Hash),
    Aead(Aead, usize),
    Chain(Cipher, ChainOrder, Hash),
    Akcipher(Curve),
}

impl Kind {
    fn spec<'k>(&self, key: &'k [u8]) -> KeySpec<'k> {
        match *self {
            Self::Cipher(cipher, direction) => KeySpec::Cipher { cipher, direction, key },
            Self::Hash(hash) => KeySpec::Hash { hash, result_len: hash.digest_len() },
            Self::Mac(hash) => KeySpec::Mac { hash, key, result_len: hash.digest_len() },
            Self::Aead(aead, tag_len) => KeySpec::Aead { aead, direction: Direction::Encrypt, key, tag_len },
            Self::Chain(cipher, order, hash) => KeySpec::Chain {
                cipher,
                direction: Direction::Encrypt,
                order,
                hash,
                cipher_key: key,
                mac_key: Some(b"mac"),
                result_len: hash.digest_len(),
            },
            Self::Akcipher(curve) => {
                KeySpec::Akcipher { algorithm: Akcipher::Ecdsa { curve }, kind: KeyKind::Public, der: key }
            }
        }
    }
}

/// A request on its way.
struct Sent {
    writable: Vec<Segment>,
    /// The result, for a request that is good; `None` for one that may be anything.
    expected: Option<Vec<u8>>,
}

impl Side {
    fn new(bench: &mut Bench, device: u32, input: &mut Input<'_>) -> Self {
        let region =
            |guest| RegionConfig { guest: GuestAddr(guest), len: REGION, user: UserAddr(0), mmap_offset: 0 };
        let guest = Guest::with(vec![region(BASE), region(BASE + REGION)]);
        let vault = None;
        let options = UnitOptions {
            id: format!("fuzz{device}"),
            data_queues: 1,
            queue_size: SIZE,
            max_size: MAX_SIZE,
            sessions: 8,
            vault,
        };
        let unit = Arc::new(Unit::new(options));
        let bits = input.u8();
        // The honest guest speaks the layout of Linux.
        unit.negotiate(if device == 0 { u64::from(input.u8()) } else { 0 });
        let features = RingFeatures {
            event_idx: bits & 1 != 0,
            in_order: bits & 2 != 0,
            packed: bits & 4 != 0,
            indirect: bits & 8 != 0,
        };
        bench.tell(|reply| Message::Add { device, unit: unit.clone(), reply });
        let table = guest.table().clone();
        bench.tell(|reply| RingCommand::Memory { device, table, reply }.into());
        let mut side =
            Self { guest, unit, rings: Vec::new(), sessions: Vec::new(), sent: Vec::new(), next: 0 };
        side.next = BUFFERS.start;
        for index in 0..2 {
            let queue = side.ring(index, features);
            let stats = Arc::default();
            bench.tell(|reply| RingCommand::Start { device, index, queue, stats, reply }.into());
            bench.tell(|reply| RingCommand::Enable { device, index, enable: true, reply }.into());
        }
        side
    }

    fn ring(&mut self, index: u16, features: RingFeatures) -> Box<Queue> {
        let start = BASE + u64::from(index) * RING;
        let (driver, queue) = self.guest.ring(start..start + RING, SIZE, features);
        self.rings.push(driver);
        queue
    }

    /// Puts a request into a ring. False: there is no room.
    fn send(&mut self, ring: usize, readable: &[u8], room: usize, input: &mut Input<'_>) -> Option<u32> {
        let out = cut(&mut self.next, BUFFERS.end, readable.len(), 256, input)?;
        let within = cut(&mut self.next, BUFFERS.end, room, 256, input)?;
        self.guest.fill(&out, readable);
        self.guest.fill(&within, &vec![UNTOUCHED; room]);
        let cookie = self.sent.len() as u32;
        self.rings[ring].add(&out, &within, cookie).ok()?;
        self.sent.push(Sent { writable: within, expected: None });
        Some(cookie)
    }

    /// Makes a session of one of many kinds, with a key of the input.
    fn make(&mut self, input: &mut Input<'_>) {
        let hash = input.choose(Hash::ALL);
        let kind = match input.below(8) {
            0..3 => Kind::Cipher(
                input.choose(Cipher::ALL),
                input.choose(&[Direction::Encrypt, Direction::Decrypt]),
            ),
            3 => Kind::Hash(hash),
            4 => Kind::Mac(hash),
            5 => Kind::Aead(input.choose(Aead::ALL), 16),
            6 => Kind::Chain(Cipher::AesCbc, input.choose(ChainOrder::ALL), hash),
            _ => Kind::Akcipher(input.choose(Curve::ALL)),
        };
        let len = input.choose(&[16, 24, 32, 64, 65, 7]);
        let key: Vec<u8> = (0..len).map(|index| input.u8() ^ index as u8).collect();
        if let Ok(id) = self.unit.sessions().create(&kind.spec(&key), Origin::NONE) {
            self.sessions.push(Session { id, kind, key });
        }
    }
}

struct World<'b> {
    bench: &'b mut Bench,
    sides: [Side; 2],
}

impl<'b> World<'b> {
    fn new(bench: &'b mut Bench, input: &mut Input<'_>) -> Self {
        let modes = [Mode::Heuristic, Mode::Interrupt, Mode::Busy];
        let batch = 1 + u16::from(input.u8()) % 32;
        let inline_bytes = input.choose(&[0, 64, 1024]);
        let thresholds = Thresholds { batch, inline_bytes, ..Thresholds::default() };
        let policy = Policy { mode: input.choose(&modes), thresholds };
        bench.service.message(Message::Policy(policy), &mut bench.cx);
        let sides = [Side::new(bench, 0, input), Side::new(bench, 1, input)];
        Self { bench, sides }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => self.sides[0].make(input),
            1 => self.sides[1].make(input),
            2 => self.poke(input),
            3 | 4 => self.anything(input),
            5 => self.close(input),
            _ => self.honest(input),
        }
    }

    /// The hostile guest writes anything into its memory, mostly into its rings.
    fn poke(&mut self, input: &mut Input<'_>) {
        let span = if input.flag() { 2 * RING } else { 2 * REGION };
        let at = BASE + u64::from(input.u16()) % span;
        let len = 1 + input.below(16);
        self.sides[0].guest.poke(at, input.take(len));
        let _ = self.bench.service.poll_once(&mut self.bench.cx);
    }

    /// The hostile guest sends anything, on either of its rings: mostly headers that are nearly right.
    fn anything(&mut self, input: &mut Input<'_>) {
        let side = &mut self.sides[0];
        side.next = BUFFERS.start + u64::from(input.u8()) * 16;
        let ring = usize::from(input.below(4) == 0);
        let mut readable = Vec::new();
        let opcode = u32::from(input.u8() % 6) << 8 | u32::from(input.u8() % 6);
        readable.extend(opcode.to_le_bytes());
        readable.extend(u32::from(input.u8()).to_le_bytes());
        let session = side.sessions.get(input.below(8)).map_or(input.u64(), |session| session.id.wire());
        readable.extend(session.to_le_bytes());
        readable.extend(u32::from(input.u8()).to_le_bytes());
        readable.extend(0u32.to_le_bytes());
        // Lengths are mostly small.
        for _ in 0..input.below(20) {
            let word = if input.below(16) == 0 { input.u32() } else { u32::from(input.u8()) };
            readable.extend(word.to_le_bytes());
        }
        let rest = input.below(256);
        readable.extend_from_slice(input.take(rest));
        readable.resize(readable.len() + input.below(64), 7);
        let room = usize::from(input.u8());
        if side.send(ring, &readable, room, input).is_some() {
            let _ = side.rings[ring].publish();
            let _ = self.bench.service.poll_once(&mut self.bench.cx);
        }
    }

    fn close(&mut self, input: &mut Input<'_>) {
        let side = &mut self.sides[usize::from(input.flag())];
        if !side.sessions.is_empty() {
            let session = side.sessions.swap_remove(input.below(side.sessions.len()));
            assert!(side.unit.sessions().close(session.id), "it was open");
        }
    }

    /// The honest guest sends one to four requests, and gets what the library gives.
    fn honest(&mut self, input: &mut Input<'_>) {
        self.sides[1].next = BUFFERS.start;
        self.sides[1].sent.clear();
        for _ in 0..=input.below(4) {
            self.request(input);
        }
        let side = &mut self.sides[1];
        side.guest.remember();
        let _ = side.rings[0].publish();
        self.bench.settle();
        let side = &mut self.sides[1];
        let mut allowed = vec![BASE..BUFFERS.start];
        allowed.extend(side.sent.iter().flat_map(|sent| &sent.writable).map(place));
        side.guest.assert_only(&allowed, "serving requests");
        let mut left = side.sent.len();
        while let Some(used) = side.rings[0].pop() {
            left -= 1;
            let sent = &side.sent[used.cookie as usize];
            check(&side.guest.gather(&sent.writable), used.len as usize, sent.expected.as_deref());
        }
        assert_eq!(left, 0, "every request is answered once");
    }

    /// A request of one of the honest guest's sessions; one in four has a byte of its header changed.
    fn request(&mut self, input: &mut Input<'_>) {
        let side = &mut self.sides[1];
        let choice = input.u8();
        let Some(session) = side.sessions.get(usize::from(choice) % 8) else { return };
        let (id, kind) = (session.id.wire(), session.kind);
        let Ok(key) = Prepared::new(&kind.spec(&session.key)) else { return };
        let len = match kind {
            Kind::Cipher(Cipher::AesXts, _) => 16 + usize::from(input.u16()) % 1000,
            Kind::Cipher(Cipher::AesCtr, _) => usize::from(input.u16()) % 1000,
            Kind::Cipher(..) | Kind::Chain(..) => 16 * (usize::from(input.u16()) % 64),
            _ => usize::from(input.u16()) % 1000,
        };
        let src: Vec<u8> = (0..len).map(|index| index as u8 ^ choice).collect();
        let Some((mut readable, expected)) = good(&mut self.bench.oracle, id, kind, &key, &src) else {
            return;
        };
        let room = expected.len() + 1;
        let bad = input.below(4) == 0;
        if bad {
            let at = input.below(72);
            readable[at] ^= input.u8().max(1);
        }
        if let Some(cookie) = side.send(0, &readable, room, input)
            && !bad
        {
            side.sent[cookie as usize].expected = Some(expected);
        }
    }

    fn end(self) {
        let Self { bench, .. } = self;
        bench.settle();
        for device in 0..2 {
            for index in 0..2 {
                let queue = bench.tell(|reply| RingCommand::Stop { device, index, reply }.into());
                assert!(queue.is_some(), "the ring ran until now");
            }
            bench.tell(|reply| Message::Remove { device, reply });
        }
    }
}

/// An answer: result, room that was not needed, status.
fn check(buffer: &[u8], used: usize, expected: Option<&[u8]>) {
    let Some((status, data)) = buffer.split_last() else {
        assert_eq!(used, 0, "nothing could be written");
        return;
    };
    assert!((1..=buffer.len()).contains(&used), "the used length is {used} of {}", buffer.len());
    match expected {
        Some(expected) => {
            assert_eq!(*status, 0, "a good request failed");
            assert_eq!((data, used), (expected, expected.len() + 1));
        }
        None => {
            assert!(*status <= 6, "no such status: {status}");
            let untouched = data.iter().skip(used - 1).all(|byte| *byte == UNTOUCHED);
            assert!(untouched, "more was written than was said");
        }
    }
}

/// A good request, and what it has to give.
fn good(oracle: &mut Engines, id: u64, kind: Kind, key: &Prepared, src: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut source, mut out) = (src.to_vec(), vec![0; src.len() + 64]);
    let (from, to) = ([range(&mut source)], [range(&mut out)]);
    let all = Ranges::whole(&from);
    let target = |start, len| Ranges::new(&to, start, len);
    let iv_bytes = [5; 16];
    let len = src.len() as u32;
    let (opcode, words, iv, work, result) = match kind {
        Kind::Cipher(cipher, direction) => {
            let iv = &iv_bytes[..cipher.iv_len()];
            let work = Work::Cipher { iv: Iv::new(iv)?, src: all, dst: target(0, src.len())? };
            let opcode = u32::from(direction == Direction::Decrypt);
            (opcode, vec![iv.len() as u32, len, len, 0, 0, 0, 0, 0, 0, 0, 1], iv, work, src.len())
        }
        Kind::Hash(hash) | Kind::Mac(hash) => {
            let digest = hash.digest_len();
            let work = Work::Digest { src: all, digest: target(0, digest)? };
            let opcode = if matches!(kind, Kind::Hash(_)) { 0x100 } else { 0x200 };
            (opcode, vec![len, digest as u32], &[][..], work, digest)
        }
        Kind::Aead(_, tag_len) => {
            let iv = &iv_bytes[..12];
            let (dst, tag) = (target(0, src.len())?, Tag::Write(target(src.len(), tag_len)?));
            let work = Work::Aead { iv: Iv::new(iv)?, aad: Bytes::EMPTY, src: all, dst, tag };
            (0x300, vec![12, 0, len, len + tag_len as u32], iv, work, src.len() + tag_len)
        }
        Kind::Chain(_, _, hash) => {
            let (iv, digest) = (&iv_bytes[..], hash.digest_len());
            let part = Span { start: 0, len: src.len() };
            let (dst, digest_at) = (target(0, src.len())?, target(src.len(), digest)?);
            let iv16 = Iv::new(iv)?;
            let work = Work::Chain { iv: iv16, src: all, cipher: part, hash: part, dst, digest: digest_at };
            let words = vec![16, len, len, 0, len, 0, len, 0, digest as u32, 0, 2];
            (0x000, words, iv, work, src.len() + digest)
        }
        Kind::Akcipher(_) => return None,
    };
    let job = Job { tag: 0, key: KeyRef::from(key), work };
    // SAFETY: key, lists and buffers live until the end of this function, and nobody else has them.
    let outcome = unsafe { oracle.run(&job) };
    oracle.forget(key.id());
    let Outcome::Done { .. } = outcome else { return None };
    let mut readable = Vec::new();
    readable.extend(opcode.to_le_bytes());
    readable.extend(0u32.to_le_bytes());
    readable.extend(id.to_le_bytes());
    readable.extend([0; 8]);
    readable.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    readable.resize(72, 0);
    readable.extend_from_slice(iv);
    readable.extend_from_slice(src);
    out.truncate(result);
    Some((readable, out))
}

fn range(bytes: &mut [u8]) -> HostRange {
    HostRange { base: bytes.as_mut_ptr().cast(), len: bytes.len() }
}
