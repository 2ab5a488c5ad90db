//! Two workers of one team with two compression devices, all on this thread: one device of a guest that writes anything
//! anywhere, one of a guest that checks every byte of what it gets. Tasks change hands as the workers' turns have it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use compress_offload::algorithm::{Checksum, Format, Op, Params, bound};
use compress_offload::checksum;
use compress_offload::engine::{Choice, Engines, Outcome, Verify};
use compress_offload::options::{self, DeviceOptions, Limits};
use compress_offload::service::{CompressService, Message, ServiceConfig, Unit};
use compress_protocol::{
    Header, Opcode, RESPONSE_LEN, Request, Response, Status, feature, flag, response_flag,
};
use memory::{GuestAddr, RegionConfig, UserAddr};
use offload::flush::{Mode, Policy, Thresholds};
use runtime::rings::{Reply, RingCommand};
use runtime::worker::{Context, Service};
use virtqueue::RingFeatures;
use virtqueue::driver::{DriverRing, Segment};

use crate::guest::{Guest, cut, place};
use crate::input::Input;

const SIZE: u16 = 32;
const BASE: u64 = 0x10_0000;
/// Two regions that touch, so that buffers cross the seam.
const REGION: u64 = 0x1_0000;
/// The ring is in front.
const RING: u64 = 0x1000;
const BUFFERS: Range<u64> = BASE + RING..BASE + 2 * REGION;
/// What writable buffers hold before.
const UNTOUCHED: u8 = 0xee;
const MAX_SIZE: u32 = 0x4000;
/// Segments are up to so long, or up to eight times as long.
const SEGMENT: usize = 256;
/// Levels above take long.
const HIGHEST: i32 = 6;

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
    workers: [(CompressService, Context); 2],
    oracle: Engines,
}

impl Bench {
    fn new() -> Self {
        let configs = ServiceConfig::all(2, Policy::default(), Choice::Auto).expect("eventfds");
        let mut workers = configs.into_iter().map(|config| {
            let mut cx = Context::detached().expect("an I/O engine");
            (config.start(&mut cx), cx)
        });
        let workers = std::array::from_fn(|_| workers.next().expect("two workers"));
        Self { workers, oracle: Engines::new(Choice::Auto, Verify::Off) }
    }

    /// Tells the worker with the rings something.
    fn tell<R>(&mut self, message: impl FnOnce(Reply<R>) -> Message) -> R {
        let (reply, answer) = Reply::new();
        let (service, cx) = &mut self.workers[0];
        service.message(message(reply), cx);
        self.settle();
        answer.recv().expect("an answer")
    }

    fn poll(&mut self, worker: usize) -> usize {
        let (service, cx) = &mut self.workers[worker];
        service.poll_once(cx)
    }

    /// Rounds until nothing is in flight and nothing is found.
    fn settle(&mut self) {
        while self.poll(0) + self.poll(1) > 0 || self.workers[0].0.outstanding() > 0 {}
    }
}

/// A guest and its device.
struct Side {
    device: u32,
    guest: Guest,
    unit: Arc<Unit>,
    ring: DriverRing,
    sent: Vec<Sent>,
    next: u64,
}

/// A request on its way.
struct Sent {
    /// Its writable part, response and all.
    writable: Vec<Segment>,
    header: Header,
    /// What it has to give.
    expected: Expected,
}

enum Expected {
    /// Something that a decoder makes this of.
    Packed(Format, Vec<u8>),
    /// This, and this checksum.
    Plain(Vec<u8>, u64),
    /// A stream of this format.
    Stream(Format),
    /// The next part of the stream.
    Part(Vec<u8>),
    /// This status.
    Refused(Status),
    /// Whatever it is, it is an answer.
    Anything,
}

impl Side {
    fn new(bench: &mut Bench, device: u32, input: &mut Input<'_>) -> Self {
        let region =
            |guest| RegionConfig { guest: GuestAddr(guest), len: REGION, user: UserAddr(0), mmap_offset: 0 };
        let guest = Guest::with(vec![region(BASE), region(BASE + REGION)]);
        let honest = device == 1;
        let limits = Limits {
            max_size: MAX_SIZE,
            max_in_flight: if honest { 1 << 30 } else { u64::from(input.u16()) },
            streams: 4,
            verify: input.choose(&[options::Verify::Off, options::Verify::All]),
        };
        // Nobody changes a source that belongs to the honest guest.
        let zero_copy = honest && input.flag();
        let options =
            DeviceOptions { queues: 1, zero_copy, limits, ..DeviceOptions::new(format!("fuzz{device}")) };
        let unit = Arc::new(Unit::new(&options));
        unit.negotiate(if honest { feature::ALL } else { u64::from(input.u8()) & feature::ALL });
        let bits = input.u8();
        let features = RingFeatures {
            event_idx: bits & 1 != 0,
            in_order: bits & 2 != 0,
            packed: bits & 4 != 0,
            indirect: bits & 8 != 0,
        };
        bench.tell(|reply| Message::Add { device, unit: unit.clone(), reply });
        let table = guest.table().clone();
        bench.tell(|reply| RingCommand::Memory { device, table, reply }.into());
        let (ring, queue) = guest.ring(BASE..BASE + RING, SIZE, features);
        let stats = Arc::default();
        bench.tell(|reply| RingCommand::Start { device, index: 0, queue, stats, reply }.into());
        bench.tell(|reply| RingCommand::Enable { device, index: 0, enable: true, reply }.into());
        Self { device, guest, unit, ring, sent: Vec::new(), next: BUFFERS.start }
    }

    /// Puts a request into the ring, with `extra` bytes of room that nobody asked for. False: there is no room.
    fn send(
        &mut self,
        header: Header,
        source: &[u8],
        extra: usize,
        expected: Expected,
        input: &mut Input<'_>,
    ) -> bool {
        let room = header.dst_len as usize + extra + RESPONSE_LEN;
        self.put(&[&header.encode()[..], source].concat(), room, header, expected, input).is_some()
    }

    fn put(
        &mut self,
        readable: &[u8],
        room: usize,
        header: Header,
        expected: Expected,
        input: &mut Input<'_>,
    ) -> Option<()> {
        let longest = SEGMENT * if input.flag() { 8 } else { 1 };
        let out = cut(&mut self.next, BUFFERS.end, readable.len(), longest, input)?;
        let writable = cut(&mut self.next, BUFFERS.end, room, longest, input)?;
        self.guest.fill(&out, readable);
        self.guest.fill(&writable, &vec![UNTOUCHED; room]);
        self.ring.add(&out, &writable, self.sent.len() as u32).ok()?;
        self.sent.push(Sent { writable, header, expected });
        Some(())
    }
}

struct World<'b> {
    bench: &'b mut Bench,
    sides: [Side; 2],
    /// A stream of the honest guest that compresses.
    stream: Option<Whole>,
}

/// What a stream was given, and what it gave.
struct Whole {
    id: u64,
    format: Format,
    plain: Vec<u8>,
    packed: Vec<u8>,
    ended: bool,
}

impl<'b> World<'b> {
    fn new(bench: &'b mut Bench, input: &mut Input<'_>) -> Self {
        let batch = 1 + u16::from(input.u8()) % 32;
        let inline_bytes = input.choose(&[0, 64, 1024]);
        let thresholds = Thresholds { batch, inline_bytes, ..Thresholds::default() };
        let mode = input.choose(&[Mode::Heuristic, Mode::Interrupt, Mode::Busy]);
        for (service, cx) in &mut bench.workers {
            service.message(Message::Policy(Policy { mode, thresholds }), cx);
        }
        let sides = [Side::new(bench, 0, input), Side::new(bench, 1, input)];
        Self { bench, sides, stream: None }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => self.poke(input),
            1 | 2 => self.anything(input),
            3 => self.restart(input),
            4 => self.part(input),
            _ => self.honest(input),
        }
    }

    /// The hostile guest writes anything into its memory, mostly into its ring, between two turns.
    fn poke(&mut self, input: &mut Input<'_>) {
        let span = if input.flag() { RING } else { 2 * REGION };
        let at = BASE + u64::from(input.u32()) % span;
        let len = 1 + input.below(16);
        self.sides[0].guest.poke(at, input.take(len));
        self.bench.poll(input.below(2));
    }

    /// The hostile guest sends anything: mostly headers that are nearly right.
    fn anything(&mut self, input: &mut Input<'_>) {
        let side = &mut self.sides[0];
        side.next = BUFFERS.start + u64::from(input.u8()) * 64;
        let header = Header {
            opcode: u16::from(input.u8() % 7),
            format: input.u8() % 8,
            checksum: input.choose(&[0, 0, 1, 2, 3, 4, 5]),
            flags: u32::from(input.u8() % 33),
            level: i32::from(input.u8() as i8).min(HIGHEST),
            src_len: u32::from(input.u16() % 0x2000),
            dst_len: u32::from(input.u16() % 0x4100),
            stream_id: if input.flag() { 0 } else { input.u64() },
            user_tag: 1,
            ..Header::default()
        };
        let cut_short = if input.below(16) == 0 { input.below(64) } else { 0 };
        let source = input.take(header.src_len.min(0x400) as usize);
        let mut readable = [&header.encode()[..], source].concat();
        readable.truncate(readable.len() - cut_short);
        readable.resize(readable.len() + 8 * input.below(256), 7);
        let room = match input.below(8) {
            0 => input.below(64),
            _ => header.dst_len as usize + RESPONSE_LEN + input.below(4),
        };
        if side.put(&readable, room, header, Expected::Anything, input).is_some() {
            let _ = side.ring.publish();
            self.bench.poll(input.below(2));
        }
    }

    /// A ring of the hostile guest is stopped in the midst of its requests, and starts again where it stood.
    fn restart(&mut self, input: &mut Input<'_>) {
        let device = self.sides[0].device;
        if input.flag() {
            self.sides[0].unit.close_streams();
        }
        let queue = self.bench.tell(|reply| RingCommand::Stop { device, index: 0, reply }.into());
        let queue = queue.expect("the ring ran until now");
        let stats = Arc::default();
        self.bench.tell(|reply| RingCommand::Start { device, index: 0, queue, stats, reply }.into());
        self.bench.tell(|reply| RingCommand::Enable { device, index: 0, enable: true, reply }.into());
    }

    /// The honest guest sends one to four requests, and gets what they have to give.
    fn honest(&mut self, input: &mut Input<'_>) {
        self.begin();
        for _ in 0..=input.below(4) {
            self.request(input);
        }
        self.settle(input);
    }

    /// More of a stream of the honest guest, in one to three requests at once.
    fn part(&mut self, input: &mut Input<'_>) {
        self.begin();
        if self.stream.is_none() {
            let format =
                input.choose(&[Format::Deflate, Format::Zlib, Format::Gzip, Format::Zstd, Format::Lz4Frame]);
            let header = Header::open_compressor(format, 1);
            self.sides[1].send(header, &[], 0, Expected::Stream(format), input);
            return self.settle(input);
        }
        let Some(Whole { id, .. }) = self.stream else { return };
        for turn in 0..=input.below(3) {
            let source = plain(input, 1000);
            let room = bound(source.len()) as u32 + 4000;
            let flags = if turn == 1 { flag::FLUSH } else { 0 };
            let len = source.len() as u32;
            if input.below(8) == 0 {
                // The name that comes after this one, or that came before.
                let id = id.wrapping_add(input.choose(&[1_u64 << 32, (1_u64 << 32).wrapping_neg(), 1]));
                let header = Header::stream(Opcode::Compress, id, flags, len, room);
                self.sides[1].send(header, &source, 0, Expected::Refused(Status::BadStream), input);
                continue;
            }
            let header = Header::stream(Opcode::Compress, id, flags, len, room);
            self.sides[1].send(header, &source.clone(), 0, Expected::Part(source), input);
        }
        self.settle(input);
    }

    fn begin(&mut self) {
        self.sides[1].next = BUFFERS.start;
        self.sides[1].sent.clear();
    }

    /// All requests of the honest guest to their end, and a look at what they gave.
    fn settle(&mut self, input: &mut Input<'_>) {
        let side = &mut self.sides[1];
        side.guest.remember();
        let _ = side.ring.publish();
        for _ in 0..input.below(4) {
            self.bench.poll(input.below(2));
        }
        self.bench.settle();
        let side = &mut self.sides[1];
        let mut allowed = vec![BASE..BUFFERS.start];
        allowed.extend(side.sent.iter().flat_map(|sent| &sent.writable).map(place));
        side.guest.assert_only(&allowed, "serving requests");
        let mut answers: Vec<_> = side.sent.iter().map(|_| None).collect();
        while let Some(used) = side.ring.pop() {
            assert!(answers[used.cookie as usize].replace(used.len).is_none(), "one answer a request");
        }
        for (index, used) in answers.into_iter().enumerate() {
            let used = used.expect("every request is answered");
            self.check(index, used as usize);
        }
    }

    /// A request of the honest guest; one in four has a byte of its header changed.
    fn request(&mut self, input: &mut Input<'_>) {
        let format = input.choose(&Format::ALL);
        let sum = input.choose(&Checksum::ALL);
        let source = plain(input, 6000);
        let extra = input.choose(&[0, 0, 1, 40]);
        let params = Params::new(format).with_level(1 + i32::from(input.u8()) % HIGHEST);
        let (mut header, readable, expected) = match input.below(4) {
            0 => {
                let mut packed = vec![0; bound(source.len())];
                let answer = self.bench.oracle.run(
                    Op::Compress,
                    &params,
                    false,
                    &source,
                    packed.as_mut_slice().into(),
                );
                let Outcome::Done { produced, .. } = answer.outcome else { panic!("{answer:?}") };
                packed.truncate(produced);
                let header =
                    Header::decompress(format, produced as u32, source.len() as u32).with_checksum(sum);
                let checksum = checksum::of(sum, &source);
                (header, packed, Expected::Plain(source, checksum))
            }
            1 if sum != Checksum::None => {
                let header = Header::checksum(sum, source.len() as u32);
                let checksum = checksum::of(sum, &source);
                (header, source, Expected::Plain(Vec::new(), checksum))
            }
            _ => {
                let room = bound(source.len()) as u32;
                let header = Header::compress(format, source.len() as u32, room).with_level(params.level);
                let header = if input.flag() { header.with_flags(flag::VERIFY) } else { header };
                (header, source.clone(), Expected::Packed(format, source))
            }
        };
        let bad = input.below(4) == 0;
        if bad {
            let mut wire = header.encode();
            wire[input.below(32)] ^= input.u8().max(1);
            header = Header::decode(&wire);
            header.level = header.level.min(HIGHEST);
            if header.dst_len > MAX_SIZE {
                // What is refused needs no room.
                header.dst_len = MAX_SIZE + 1;
            }
        }
        let expected = if bad { Expected::Anything } else { expected };
        self.sides[1].send(header, &readable, extra, expected, input);
    }

    /// An answer of the honest guest: result, what is between it and the response, response.
    fn check(&mut self, index: usize, used: usize) {
        let side = &self.sides[1];
        let Sent { writable, header, expected } = &side.sent[index];
        let bytes = side.guest.gather(writable);
        let (data, response) = bytes.split_last_chunk::<RESPONSE_LEN>().expect("room for a response");
        let response = Response::decode(response);
        let status = response.status().expect("a status with a name");
        let produced = response.produced as usize;
        assert_eq!(response.user_tag, header.user_tag);
        let all = if produced >= data.len() { bytes.len() } else { produced };
        assert_eq!(used, all, "{produced} of {} bytes", data.len());
        assert!(produced <= header.dst_len as usize);
        let between = data.get(header.dst_len as usize..).unwrap_or_default();
        assert!(between.iter().all(|byte| *byte == UNTOUCHED), "beyond the destination");
        let parsed = Request::parse(header, &side.unit.config(), feature::ALL);
        if let Err(refused) = parsed {
            assert!(matches!(expected, Expected::Anything) && status == refused, "{status:?}, {refused:?}");
            assert!(data.iter().all(|byte| *byte == UNTOUCHED), "a refused request writes nothing");
            return;
        }
        match expected {
            Expected::Anything => {}
            Expected::Refused(refused) => assert_eq!(status, *refused),
            _ => assert_eq!(status, Status::Ok, "a good request failed: {header:?}"),
        }
        match expected {
            Expected::Packed(format, plain) => {
                let mut again = vec![0; plain.len()];
                let params = Params::new(*format);
                let source = &data[..produced];
                let answer = self.bench.oracle.run(
                    Op::Decompress,
                    &params,
                    false,
                    source,
                    again.as_mut_slice().into(),
                );
                assert_eq!(answer.outcome, Outcome::Done { consumed: produced, produced: plain.len() });
                assert!(again == *plain, "{format}");
            }
            Expected::Plain(plain, checksum) => {
                assert!(data[..produced] == **plain && response.checksum == *checksum);
            }
            Expected::Stream(format) => {
                let (id, format) = (response.stream_id(), *format);
                assert_ne!(id, 0, "0 is no stream");
                self.stream = Some(Whole { id, format, plain: Vec::new(), packed: Vec::new(), ended: false });
            }
            Expected::Part(part) => {
                let stream = self.stream.as_mut().expect("a stream was opened");
                stream.plain.extend_from_slice(&part[..response.consumed as usize]);
                stream.packed.extend_from_slice(&data[..produced]);
                stream.ended = response.flags & response_flag::STREAM_END != 0;
            }
            Expected::Refused(_) | Expected::Anything => {}
        }
    }

    /// Ends the stream of the honest guest: what came out is what went in.
    fn end(mut self) {
        while let Some(Whole { id, ended: false, .. }) = self.stream {
            self.begin();
            let header = Header::stream(Opcode::Compress, id, flag::FINISH, 0, MAX_SIZE);
            self.sides[1].send(header, &[], 0, Expected::Part(Vec::new()), &mut Input::new(&[]));
            self.settle(&mut Input::new(&[]));
        }
        if let Some(Whole { format, plain, packed, .. }) = &self.stream {
            let mut again = vec![0; plain.len()];
            let params = Params::new(*format);
            let answer =
                self.bench.oracle.run(Op::Decompress, &params, false, packed, again.as_mut_slice().into());
            assert_eq!(answer.outcome, Outcome::Done { consumed: packed.len(), produced: plain.len() });
            assert!(again == *plain, "{format:?}");
        }
        let Self { bench, sides, .. } = self;
        bench.settle();
        for side in &sides {
            let device = side.device;
            let queue = bench.tell(|reply| RingCommand::Stop { device, index: 0, reply }.into());
            assert!(queue.is_some(), "the ring ran until now");
            bench.tell(|reply| Message::Remove { device, reply });
            assert_eq!(side.unit.in_flight_bytes(), 0, "nothing is in flight");
        }
    }
}

/// Bytes that can be compressed, more or less.
fn plain(input: &mut Input<'_>, most: usize) -> Vec<u8> {
    let len = usize::from(input.u16()) % most;
    let (seed, stride) = (input.u8(), 1 + input.below(61));
    (0..len).map(|at| seed.wrapping_add((at / stride * at % 251) as u8)).collect()
}
