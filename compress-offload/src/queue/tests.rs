//! Workers of one team on the thread of the test, which decides whose turn it is: what a guest puts into its ring goes through
//! the whole data path, however its tasks change hands.

use crate::engine::{Choice, Engines, Outcome};
use crate::options::{DeviceOptions, Limits};
use crate::service::{CompressService, Message, ServiceConfig, Unit};
use crate::steal::Member;
use crate::task::Task;
use compress_protocol::{Format, Header, Opcode, RESPONSE_LEN, Response, Status, flag};
use memory::{GuestAddr, MemoryMap, OwnMemory};
use offload::flush::{Policy, Thresholds};
use proptest::prelude::*;
use runtime::rings::{Reply, RingCommand};
use runtime::worker::{Context, Service};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::{Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};

const SIZE: u16 = 64;
const FEATURES: RingFeatures =
    RingFeatures { event_idx: true, indirect: false, in_order: false, packed: false };
/// More than a slice, so that a worker computes one request a turn.
const LARGE: usize = 70_000;

/// A guest with one ring, on the first of several workers.
struct Rig {
    services: Vec<(CompressService, Context)>,
    unit: Arc<Unit>,
    memory: OwnMemory,
    addresses: RingAddresses,
    driver: DriverRing,
    sent: HashMap<u32, Sent>,
    next: u32,
}

/// Where a request has its writable part.
struct Sent {
    dst: GuestAddr,
    len: usize,
}

/// What came back.
struct Answer {
    response: Response,
    result: Vec<u8>,
}

impl Answer {
    fn status(&self) -> Status {
        self.response.status().unwrap()
    }
}

impl Rig {
    fn new(workers: usize) -> Self {
        let policy = Policy {
            thresholds: Thresholds { inline_bytes: 64, ..Thresholds::default() },
            ..Policy::default()
        };
        Self::with(ServiceConfig::all(workers, policy, Choice::Auto).unwrap())
    }

    /// A worker, and the place of another one in its team, to be played by the test.
    fn beside_a_thief() -> (Self, Member<Box<Task>>) {
        let mut configs = ServiceConfig::all(2, Policy::default(), Choice::Auto).unwrap();
        let thief = configs.pop().unwrap().into_member();
        (Self::with(configs), thief)
    }

    fn with(configs: Vec<ServiceConfig>) -> Self {
        let start = |config: ServiceConfig| {
            let mut cx = Context::detached().unwrap();
            (config.start(&mut cx), cx)
        };
        let memory = OwnMemory::new(64 << 20, GuestAddr(0x10_0000)).unwrap();
        let (desc, driver, device) = ring_sizes(FEATURES.format(), SIZE);
        let area = |len| memory.alloc(len, 4096).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let driver =
            DriverRing::in_table(memory.table(), &addresses, FEATURES.format(), SIZE, FEATURES).unwrap();
        let limits = Limits { max_in_flight: 1 << 30, ..Limits::default() };
        let unit = Arc::new(Unit::new(&DeviceOptions { limits, ..DeviceOptions::new("test") }));
        unit.negotiate(compress_protocol::feature::ALL);
        let services = configs.into_iter().map(start).collect();
        let mut rig = Self { services, unit, memory, addresses, driver, sent: HashMap::new(), next: 0 };
        let unit = rig.unit.clone();
        rig.tell(|reply| Message::Add { device: 0, unit, reply });
        let table = rig.memory.table().clone();
        rig.tell(|reply| RingCommand::Memory { device: 0, table, reply }.into());
        rig.start(0);
        rig
    }

    fn start(&mut self, base: u32) {
        let table = self.memory.table();
        let setup = RingSetup {
            size: SIZE,
            features: FEATURES,
            table,
            addresses: self.addresses,
            base,
            inflight: None,
            log: None,
            used_log_addr: None,
        };
        let (queue, stats) = (Box::new(Queue::new(setup).unwrap()), Arc::default());
        self.tell(|reply| RingCommand::Start { device: 0, index: 0, queue, stats, reply }.into());
        self.tell(|reply| RingCommand::Enable { device: 0, index: 0, enable: true, reply }.into());
    }

    /// Tells the first worker something.
    fn tell<R>(&mut self, message: impl FnOnce(Reply<R>) -> Message) -> Receiver<R> {
        let (reply, answer) = Reply::new();
        let (service, cx) = &mut self.services[0];
        service.message(message(reply), cx);
        answer
    }

    fn stop(&mut self) -> Receiver<Option<Box<Queue>>> {
        self.tell(|reply| RingCommand::Stop { device: 0, index: 0, reply }.into())
    }

    /// A round of one worker.
    fn poll(&mut self, worker: usize) -> usize {
        let (service, cx) = &mut self.services[worker];
        service.poll_once(cx)
    }

    /// Rounds of all workers until nothing is in flight.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            (0..self.services.len()).for_each(|worker| _ = self.poll(worker));
            if self.services[0].0.outstanding() == 0 {
                return;
            }
        }
        panic!("requests are stuck");
    }

    fn send(&mut self, header: Header, source: &[u8]) -> u32 {
        let header = Header { src_len: source.len() as u32, user_tag: self.next.into(), ..header };
        let len = header.dst_len as usize;
        let src = self.memory.alloc(64 + source.len(), 1).unwrap();
        let dst = self.memory.alloc(len + RESPONSE_LEN, 1).unwrap();
        let readable = [&header.encode()[..], source].concat();
        self.memory.slice(src, readable.len()).unwrap().write(0, &readable);
        let cookie = self.next;
        let segment = |addr, len: usize| Segment { addr, len: len as u32 };
        let (out, within) = (segment(src, readable.len()), segment(dst, len + RESPONSE_LEN));
        self.driver.add(&[out], &[within], cookie).unwrap();
        self.sent.insert(cookie, Sent { dst, len });
        self.next += 1;
        let _ = self.driver.publish();
        cookie
    }

    /// A request for `len` bytes to be compressed, which differ from request to request.
    fn compress(&mut self, len: usize) -> u32 {
        let header = Header::compress(Format::Zlib, 0, len as u32 + 1000).with_level(1);
        self.send(header, &data(self.next, len))
    }

    /// The answers that came, each of which was waited for.
    fn answers(&mut self) -> Vec<(u32, Answer)> {
        let mut answers = Vec::new();
        while let Some(used) = self.driver.pop() {
            let Sent { dst, len } = self.sent.remove(&used.cookie).expect("an answer to a request, once");
            let slice = self.memory.slice(dst, len + RESPONSE_LEN).unwrap();
            let (mut result, mut response) = (vec![0; len], [0; RESPONSE_LEN]);
            slice.read(0, &mut result);
            slice.read(len, &mut response);
            let response = Response::decode(&response);
            assert_eq!(response.user_tag, u64::from(used.cookie));
            result.truncate(response.produced as usize);
            answers.push((used.cookie, Answer { response, result }));
        }
        answers
    }

    /// All answers, each of which is right.
    fn check_compressed(&mut self, len: usize) {
        for (cookie, answer) in self.answers() {
            assert_eq!(answer.status(), Status::Ok);
            assert!(inflate(&answer.result, len) == data(cookie, len), "request {cookie}");
        }
        assert!(self.sent.is_empty(), "no answer to {:?}", self.sent.keys());
    }

    fn open(&mut self) -> u64 {
        self.send(Header::open_compressor(Format::Zlib, 1), &[]);
        self.settle();
        let (_, answer) = self.answers().pop().unwrap();
        assert_eq!(answer.status(), Status::Ok);
        answer.response.stream_id()
    }

    fn more(&mut self, id: u64, flags: u32, source: &[u8]) -> u32 {
        // Enough for what the stream has held back.
        let room = source.len() as u32 + 64_000;
        self.send(Header::stream(Opcode::Compress, id, flags, 0, room), source)
    }
}

fn data(seed: u32, len: usize) -> Vec<u8> {
    let words = (0u64..).map(|word| (word * word * (u64::from(seed) + 3)) % 1009);
    words.flat_map(|word| format!("{word},").into_bytes()).take(len).collect()
}

fn inflate(packed: &[u8], len: usize) -> Vec<u8> {
    let mut plain = vec![0; len];
    let mut engines = Engines::new(Choice::Auto, crate::engine::Verify::Off);
    let params = crate::algorithm::Params::new(Format::Zlib);
    let op = crate::algorithm::Op::Decompress;
    let answer = engines.run(op, &params, false, packed, plain.as_mut_slice().into());
    assert_eq!(answer.outcome, Outcome::Done { consumed: packed.len(), produced: len });
    plain
}

#[test]
fn what_others_compute_is_answered_by_the_owner() {
    let mut rig = Rig::new(3);
    (0..20).for_each(|_| _ = rig.compress(LARGE));
    rig.settle();
    rig.check_compressed(LARGE);
    let totals = rig.unit.totals();
    assert!(totals.stolen > 0 && totals.stolen < 20, "{} were stolen", totals.stolen);
    assert_eq!((totals.total(), totals.status(Status::Ok)), (20, 20));
    assert_eq!((totals.direct + totals.stolen, rig.unit.in_flight_bytes()), (20, 0));
}

#[test]
fn a_worker_alone_shares_nothing_and_writes_straight_to_the_guest() {
    let mut rig = Rig::new(1);
    (0..20).for_each(|_| _ = rig.compress(LARGE));
    rig.settle();
    rig.check_compressed(LARGE);
    let totals = rig.unit.totals();
    assert_eq!((totals.stolen, totals.direct, totals.inline), (0, 20, 0));
}

#[test]
fn a_worker_that_never_gets_help_does_it_all() {
    let mut rig = Rig::new(3);
    (0..20).for_each(|_| _ = rig.compress(LARGE));
    while rig.poll(0) > 0 {}
    rig.check_compressed(LARGE);
    assert_eq!(rig.unit.totals().stolen, 0);
}

#[test]
fn small_requests_are_answered_in_the_round_that_finds_them() {
    let mut rig = Rig::new(2);
    (0..4).for_each(|_| _ = rig.compress(LARGE));
    (0..4).for_each(|_| _ = rig.compress(50));
    rig.poll(0);
    let small = rig.answers().into_iter().filter(|(cookie, _)| *cookie >= 4).count();
    assert_eq!((small, rig.unit.totals().inline), (4, 4));
}

#[test]
fn a_task_whose_thief_fails_is_answered_with_an_error() {
    let (mut rig, mut thief) = Rig::beside_a_thief();
    (0..4).for_each(|_| _ = rig.compress(LARGE));
    rig.poll(0);
    drop(thief.steal().expect("something is on the shelf"));
    while rig.poll(0) > 0 {}
    let answers = rig.answers();
    let failed = answers.iter().filter(|(_, answer)| answer.status() == Status::Error);
    assert_eq!((answers.len(), failed.count(), rig.unit.in_flight_bytes()), (4, 1, 0));
}

#[test]
fn a_stream_that_is_lost_with_its_thief_is_a_bad_stream() {
    let (mut rig, mut thief) = Rig::beside_a_thief();
    let id = rig.open();
    rig.compress(LARGE);
    let first = rig.more(id, 0, &data(1, LARGE));
    let second = rig.more(id, flag::FINISH, &data(2, LARGE));
    rig.poll(0);
    drop(thief.steal().expect("the stream's first request is on the shelf"));
    while rig.poll(0) > 0 {}
    let answers: HashMap<_, _> = rig.answers().into_iter().collect();
    assert_eq!((answers[&first].status(), answers[&second].status()), (Status::Error, Status::BadStream));
    rig.send(Header::close(id), &[]);
    while rig.poll(0) > 0 {}
    assert_eq!((rig.answers()[0].1.status(), rig.unit.open_streams()), (Status::Ok, 0));
}

#[test]
fn a_request_for_a_stream_that_is_not_there_has_no_effect_on_any() {
    let (mut rig, mut thief) = Rig::beside_a_thief();
    let id = rig.open();
    rig.compress(LARGE);
    rig.more(id, 0, &data(1, LARGE));
    rig.poll(0);
    drop(thief.steal().expect("the stream's request is on the shelf, and fails"));
    while rig.poll(0) > 0 {}
    rig.answers();
    // Behind a backlog, of which others are to take some.
    let ask_for = |rig: &mut Rig, id| {
        rig.compress(LARGE);
        let asked = rig.more(id, 0, &data(1, LARGE));
        while rig.poll(0) > 0 {}
        let answers: HashMap<_, _> = rig.answers().into_iter().collect();
        assert_eq!(answers[&asked].status(), Status::BadStream);
    };
    ask_for(&mut rig, id);
    rig.send(Header::close(id), &[]);
    while rig.poll(0) > 0 {}
    assert_eq!((rig.answers()[0].1.status(), rig.unit.open_streams()), (Status::Ok, 0));
    // The name that the next one will have.
    ask_for(&mut rig, id + (1 << 32));
    let (first, second) = (rig.open(), rig.open());
    assert!(first != second && rig.unit.open_streams() == 2);
}

#[test]
fn a_ring_that_stops_waits_for_the_thief_and_gives_the_rest_back() {
    let (mut rig, mut thief) = Rig::beside_a_thief();
    (0..10).for_each(|_| _ = rig.compress(LARGE));
    rig.poll(0);
    let loan = thief.steal().expect("something is on the shelf");
    let stopped = rig.stop();
    (0..20).for_each(|_| _ = rig.poll(0));
    assert!(stopped.try_recv().is_err(), "a request of the ring is with the thief");
    let mut loan = loan;
    loan.task().compute(&mut Engines::new(Choice::Auto, crate::engine::Verify::Off));
    drop(loan);
    rig.poll(0);
    let queue = stopped.try_recv().expect("nothing is in flight").expect("it ran");
    let given_back = rig.unit.totals().given_back;
    assert!(given_back >= 6, "only {given_back} were given back");
    let answered = rig.answers().len();
    assert_eq!(answered as u64 + given_back, 10);
    assert_eq!(rig.unit.in_flight_bytes(), 0);
    // What was given back is answered after the next start.
    let base = queue.base();
    assert_eq!(base, answered as u32);
    rig.start(base);
    while rig.poll(0) > 0 {}
    rig.check_compressed(LARGE);
}

#[test]
fn what_cannot_be_given_back_when_a_ring_stops_is_busy() {
    let mut rig = Rig::new(1);
    (0..5).for_each(|_| _ = rig.compress(LARGE));
    // It ends before the others, and rings have no gaps.
    rig.compress(50);
    rig.poll(0);
    let stopped = rig.stop();
    while rig.poll(0) > 0 {}
    assert!(stopped.try_recv().is_ok());
    let totals = rig.unit.totals();
    assert_eq!((totals.given_back, totals.total()), (0, 6));
    assert_eq!((totals.status(Status::Ok), totals.status(Status::Busy)), (2, 4));
}

#[test]
fn a_task_that_is_away_ends_in_the_memory_it_came_from() {
    let (mut rig, mut thief) = Rig::beside_a_thief();
    (0..3).for_each(|_| _ = rig.compress(LARGE));
    rig.poll(0);
    let mut loan = thief.steal().expect("something is on the shelf");
    // The same memory, elsewhere in this process.
    let fd = rig.memory.fd().try_clone_to_owned().unwrap();
    let table = MemoryMap::new().set_table(vec![(rig.memory.config(), fd)]).unwrap();
    rig.tell(|reply| RingCommand::Memory { device: 0, table, reply }.into());
    loan.task().compute(&mut Engines::new(Choice::Auto, crate::engine::Verify::Off));
    drop(loan);
    while rig.poll(0) > 0 {}
    rig.check_compressed(LARGE);
}

#[test]
fn a_worker_that_is_lost_holds_nothing_against_its_device() {
    let (mut rig, mut thief) = Rig::beside_a_thief();
    (0..6).for_each(|_| _ = rig.compress(LARGE));
    rig.poll(0);
    let loan = thief.steal();
    assert!(rig.unit.in_flight_bytes() > 0 && loan.is_some());
    rig.services.clear();
    assert_eq!(rig.unit.in_flight_bytes(), 0);
    drop(loan);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whoever has the turn when, every request is answered once, with what belongs to it.
    #[test]
    fn nothing_is_lost_and_nothing_comes_twice(turns in proptest::collection::vec((0usize..3, 0usize..4), 1..60)) {
        let mut rig = Rig::new(3);
        for (worker, new) in turns {
            for _ in 0..new.min(usize::from(rig.driver.free()) / 2) {
                rig.compress(5000);
            }
            rig.poll(worker);
        }
        rig.settle();
        rig.check_compressed(5000);
        prop_assert_eq!(rig.unit.totals().total(), u64::from(rig.next));
        prop_assert_eq!(rig.unit.in_flight_bytes(), 0);
    }

    /// The pieces of a stream are compressed one after another, whoever has the turn when, and although all are asked for at
    /// once among other requests.
    #[test]
    fn streams_keep_their_order_whoever_computes(turns in proptest::collection::vec((0usize..3, 0usize..3), 1..60)) {
        let mut rig = Rig::new(3);
        let ids = [rig.open(), rig.open()];
        let (mut asked, mut plain) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
        for (worker, which) in turns {
            if rig.driver.free() > 6 {
                match ids.get(which) {
                    Some(&id) => {
                        let piece = data(rig.next, 20_000 + 7000 * which);
                        plain[which].extend_from_slice(&piece);
                        asked[which].push(rig.more(id, 0, &piece));
                    }
                    None => _ = rig.compress(30_000),
                }
            }
            rig.poll(worker);
        }
        for which in 0..2 {
            asked[which].push(rig.more(ids[which], flag::FINISH, b"end"));
            plain[which].extend_from_slice(b"end");
        }
        rig.settle();
        let answers: HashMap<_, _> = rig.answers().into_iter().collect();
        for (asked, plain) in asked.iter().zip(&plain) {
            let packed: Vec<u8> = asked.iter().flat_map(|cookie| answers[cookie].result.clone()).collect();
            prop_assert!(inflate(&packed, plain.len()) == *plain);
        }
    }
}
