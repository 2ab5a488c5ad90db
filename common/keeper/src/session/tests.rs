//! A real frontend on one side, on the other workers that live and die as the test wants.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost_user::frontend::{Frontend, FrontendError, InflightFd};
use vhost_user::message::{BackendRequest, Header, VringAddr, VringState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::link::Handover;
use crate::shared::Shared;

const FEATURES: u64 = features::VERSION_1 | features::PROTOCOL_FEATURES | features::RING_PACKED;
/// What workers offer: more than the keeper passes on.
const OFFERED: u64 = PASSED | protocol::PAGEFAULT | protocol::HOST_NOTIFIER;
/// What the frontends of these tests negotiate.
const USED: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::CRYPTO_SESSION | protocol::CONFIG | protocol::BACKEND_REQ;

/// A keeper's device without a process.
struct Rig {
    context: Arc<LineContext>,
    channel: UnixDatagram,
    death: Arc<EventFd>,
}

impl Rig {
    fn new() -> Self {
        let (ours, theirs) = sys::message_sockets().unwrap();
        let shared = Arc::new(Shared::new(1).unwrap());
        let death = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let handover = Handover::new(ours, Arc::clone(&death), Arc::clone(&shared));
        let context = LineContext { name: "test".into(), queue_size: 256, handover, shared };
        Self { context: Arc::new(context), channel: UnixDatagram::from(theirs), death }
    }

    /// A frontend, and the thread of its session.
    fn connect(&self) -> (Frontend, JoinHandle<String>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let context = Arc::clone(&self.context);
        let session = std::thread::spawn(move || Session::new(&context, theirs).run().to_string());
        (Frontend::from_stream(ours), session)
    }

    /// The next worker takes its connection.
    fn worker(&self) -> Worker {
        let (_, file) = self.channel.recv_with_fd(&mut [0]).unwrap();
        let connection = Connection::new(UnixStream::from(OwnedFd::from(file.expect("a connection"))));
        Worker { connection, offers: OFFERED, config: 1, seen: Vec::new() }
    }

    fn kill(&self, worker: Worker) {
        drop(worker);
        self.context.shared.died();
        self.death.write(1).unwrap();
    }
}

/// A worker that accepts everything.
struct Worker {
    connection: Connection,
    offers: u64,
    config: u8,
    /// What it was told.
    seen: Vec<(Request, Message)>,
}

impl Worker {
    /// Answers everything until this message comes, which is left to the caller.
    fn until(&mut self, last: Request) -> Message {
        loop {
            let message = self.receive();
            let request = Request::from_code(message.header.request.get()).unwrap();
            if request == last {
                return message;
            }
            self.answer(request, &message);
            self.seen.push((request, message));
        }
    }

    /// The same, and answers that one, too.
    fn through(&mut self, last: Request) {
        let message = self.until(last);
        self.answer(last, &message);
        self.seen.push((last, message));
    }

    fn receive(&self) -> Message {
        self.connection.receive(Some(Instant::now() + Duration::from_secs(20))).unwrap()
    }

    fn answer(&mut self, request: Request, message: &Message) {
        match request {
            Request::GetFeatures => self.word(message, FEATURES),
            Request::GetProtocolFeatures => self.word(message, self.offers),
            Request::GetQueueNum => self.word(message, 2),
            Request::GetConfig => {
                let mut body = message.body.clone();
                *body.last_mut().unwrap() = self.config;
                self.reply(message, &body, &[]);
            }
            Request::GetVringBase => {
                let index = message.payload::<VringState>().unwrap().index;
                self.reply(message, VringState { index, num: 77.into() }.as_bytes(), &[]);
            }
            Request::GetInflightFd => {
                let mut inflight: Inflight = message.payload().unwrap();
                inflight.mmap_size = (1 << 16).into();
                let file = sys::memfd("inflight", 1 << 16).unwrap();
                self.reply(message, inflight.as_bytes(), &[file.as_fd()]);
            }
            _ => self.word(message, 0),
        }
    }

    fn word(&mut self, message: &Message, value: u64) {
        self.reply(message, &value.to_ne_bytes(), &[]);
    }

    fn reply(&mut self, message: &Message, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.connection.send(message.header.reply(body.len()), body, fds).unwrap();
    }

    /// What it was told, but for questions.
    fn told(&self) -> Vec<Request> {
        self.seen.iter().map(|(request, _)| *request).filter(|request| !has_reply(Some(*request))).collect()
    }

    fn last(&self, request: Request) -> &Message {
        let found = self.seen.iter().rev().find(|(seen, _)| *seen == request);
        found.map(|(_, message)| message).unwrap_or_else(|| panic!("{request} did not come"))
    }

    fn number(&self, request: Request) -> u32 {
        self.last(request).payload::<VringState>().unwrap().num.get()
    }
}

/// A worker in a thread, which answers everything through this message and then is given back.
fn serve(mut worker: Worker, last: Request) -> JoinHandle<Worker> {
    std::thread::spawn(move || {
        worker.through(last);
        worker
    })
}

fn handshake(front: &mut Frontend) {
    front.get_features().unwrap();
    front.get_protocol_features().unwrap();
    front.set_protocol_features(USED).unwrap();
    front.set_owner().unwrap();
    front.set_features(features::VERSION_1 | features::PROTOCOL_FEATURES).unwrap();
}

/// A frontend that has come so far, and its worker.
fn connected(rig: &Rig) -> (Frontend, JoinHandle<String>, Worker) {
    let (mut front, session) = rig.connect();
    let worker = serve(rig.worker(), Request::SetFeatures);
    handshake(&mut front);
    (front, session, worker.join().unwrap())
}

fn region() -> (memory::RegionConfig, File) {
    use memory::{GuestAddr, RegionConfig, UserAddr};
    let region =
        RegionConfig { guest: GuestAddr(0), len: 1 << 16, user: UserAddr(0x10_0000), mmap_offset: 4096 };
    (region, sys::memfd("guest", 1 << 20).unwrap())
}

/// Sets a ring up, all but its start.
fn set_up(front: &mut Frontend, index: u16) {
    front.set_vring_num(index, 128).unwrap();
    front.set_vring_base(index, 5).unwrap();
    let addr = VringAddr {
        index: u32::from(index).into(),
        flags: 0.into(),
        descriptor: 0x10_0000.into(),
        used: 0x10_2000.into(),
        available: 0x10_1000.into(),
        log: 0.into(),
    };
    front.set_vring_addr(&addr).unwrap();
}

fn kick(front: &mut Frontend, index: u16) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    front.set_vring_kick(index, Some(sys::event(&event))).unwrap();
}

#[test]
fn a_message_under_way_reaches_the_next_worker_behind_everything_that_came_before() {
    let rig = Rig::new();
    let (mut front, _session, mut first) = connected(&rig);
    let front = std::thread::spawn(move || {
        front.net_set_mtu(1500).unwrap();
        front.set_status(3).unwrap();
        front
    });
    first.through(Request::NetSetMtu);
    first.until(Request::SetStatus);
    rig.kill(first);
    let mut next = rig.worker();
    next.through(Request::SetStatus);
    front.join().unwrap();
    use Request::*;
    assert_eq!(next.told(), [SetProtocolFeatures, SetOwner, SetFeatures, NetSetMtu, SetStatus]);
    assert_eq!(next.last(SetStatus).payload::<Word>().unwrap().value.get(), 3);
}

#[test]
fn an_answer_that_was_sent_before_the_death_counts() {
    let rig = Rig::new();
    let (mut front, _session, mut first) = connected(&rig);
    let front = std::thread::spawn(move || {
        front.net_set_mtu(1500).unwrap();
        front.get_status().unwrap()
    });
    first.through(Request::NetSetMtu);
    rig.kill(first);
    let mut next = rig.worker();
    next.through(Request::GetStatus);
    assert_eq!(front.join().unwrap(), 0);
    assert_eq!(next.told().iter().filter(|request| **request == Request::NetSetMtu).count(), 1);
}

#[test]
fn a_session_is_created_under_one_number_however_many_workers_it_takes() {
    let rig = Rig::new();
    let (mut front, _session, mut worker) = connected(&rig);
    for len in [632, 1072] {
        let at = crypto_session_id_offset(len).unwrap();
        let number = |message: &Message| message.body[at..at + 8].to_vec();
        let creator = std::thread::spawn(move || {
            let mut description = vec![0x5a; len];
            // A frontend that leaves something there.
            description[at..at + 8].fill(1);
            let ids = [(); 2].map(|()| front.create_crypto_session(&description).unwrap());
            (front, ids)
        });
        let lost = number(&worker.until(Request::CreateCryptoSession));
        rig.kill(worker);
        worker = rig.worker();
        let mut answers = Vec::new();
        for id in [4u64, 9] {
            let message = worker.until(Request::CreateCryptoSession);
            let mut body = message.body.clone();
            assert!(body.iter().filter(|byte| **byte == 0x5a).count() >= len - 8);
            body[at..at + 8].copy_from_slice(&id.to_ne_bytes());
            worker.reply(&message, &body, &[]);
            answers.push(number(&message));
        }
        assert_eq!(answers[0], lost);
        assert!(answers[1] != lost && lost != [0; 8]);
        let ids;
        (front, ids) = creator.join().unwrap();
        assert_eq!(ids, [4, 9]);
    }
}

#[test]
fn a_session_that_the_dead_worker_had_closed_is_closed() {
    let rig = Rig::new();
    let (mut front, _session, mut first) = connected(&rig);
    let front = std::thread::spawn(move || {
        front.close_crypto_session(4).unwrap();
        front.close_crypto_session(5)
    });
    first.until(Request::CloseCryptoSession);
    rig.kill(first);
    let mut next = rig.worker();
    for _ in 0..2 {
        let message = next.until(Request::CloseCryptoSession);
        next.word(&message, 1);
    }
    // The second one was not sent twice: refused is refused.
    assert!(matches!(front.join().unwrap(), Err(FrontendError::Refused { .. })));
}

#[test]
fn a_frontend_is_not_offered_what_cannot_be_recorded() {
    let rig = Rig::new();
    let (mut front, _session) = rig.connect();
    let worker = serve(rig.worker(), Request::SetOwner);
    assert_eq!(front.get_features().unwrap(), FEATURES);
    assert_eq!(front.get_protocol_features().unwrap(), PASSED);
    front.set_owner().unwrap();
    worker.join().unwrap();
}

#[test]
fn packed_rings_need_a_worker_that_tracks_what_is_in_flight() {
    let rig = Rig::new();
    let (mut front, _session) = rig.connect();
    let mut worker = rig.worker();
    worker.offers &= !protocol::INFLIGHT_SHMFD;
    let worker = serve(worker, Request::GetFeatures);
    let mut worker = worker.join().unwrap();
    let asked = std::thread::spawn(move || front.get_features().unwrap());
    worker.through(Request::GetFeatures);
    assert_eq!(asked.join().unwrap(), FEATURES & !features::RING_PACKED);
}

#[test]
fn rings_go_on_where_they_stand_with_the_region_that_the_frontend_never_asked_for() {
    let rig = Rig::new();
    let (mut front, _session, first) = connected(&rig);
    let first = serve(first, Request::ResetOwner);
    let (config, guest) = region();
    front.set_mem_table(&[(config, guest.as_fd())]).unwrap();
    for index in 0..2 {
        set_up(&mut front, index);
        kick(&mut front, index);
    }
    front.get_vring_base(1).unwrap();
    // Only tells the worker's thread that this is all.
    front.reset_owner().unwrap();
    let first = first.join().unwrap();
    let count = |request| first.seen.iter().filter(|(seen, _)| *seen == request).count();
    assert_eq!((count(Request::GetInflightFd), count(Request::SetInflightFd)), (1, 1));
    let wanted: Inflight = first.last(Request::GetInflightFd).payload().unwrap();
    assert_eq!((wanted.num_queues.get(), wanted.queue_size.get()), (2, 256));
    let inode = |worker: &Worker| {
        let fd = worker.last(Request::SetInflightFd).fds[0].try_clone().unwrap();
        File::from(fd).metadata().unwrap().ino()
    };
    let before = inode(&first);

    // The guest's used index, at the offset of the region in its file.
    guest.write_all_at(&300u16.to_le_bytes(), 4096 + 0x2000 + 2).unwrap();
    rig.kill(first);
    let mut next = rig.worker();
    next.through(Request::SetVringKick);
    assert_eq!(next.number(Request::SetVringBase), 300);
    assert_eq!(inode(&next), before);
    next.seen.clear();
    next.through(Request::SetVringAddr);
    assert_eq!(next.number(Request::SetVringBase), 77, "what the stopped one answered");
    assert!(!next.told().contains(&Request::SetVringKick));
}

#[test]
fn a_frontend_that_keeps_a_region_by_itself_keeps_it() {
    let rig = Rig::new();
    let (mut front, _session, first) = connected(&rig);
    let first = serve(first, Request::SetVringKick);
    let file = sys::memfd("theirs", 1 << 16).unwrap();
    let inode = file.metadata().unwrap().ino();
    let region = InflightFd { fd: file.into(), size: 1 << 16, offset: 0, queues: 1, queue_size: 128 };
    front.set_inflight_fd(&region).unwrap();
    set_up(&mut front, 0);
    kick(&mut front, 0);
    let first = first.join().unwrap();
    assert!(first.seen.iter().all(|(request, _)| *request != Request::GetInflightFd));
    rig.kill(first);
    let mut next = rig.worker();
    next.through(Request::SetInflightFd);
    let fd = next.last(Request::SetInflightFd).fds[0].try_clone().unwrap();
    assert_eq!(File::from(fd).metadata().unwrap().ino(), inode);
}

#[test]
fn a_message_that_kills_workers_costs_its_frontend_the_connection_and_nobody_else() {
    let rig = Rig::new();
    let (mut front, session, mut worker) = connected(&rig);
    let front = std::thread::spawn(move || front.net_set_mtu(9).is_err());
    for _ in 0..ATTEMPTS {
        worker.until(Request::NetSetMtu);
        rig.kill(worker);
        worker = rig.worker();
    }
    assert!(front.join().unwrap());
    assert!(session.join().unwrap().contains("4 workers have died of NET_SET_MTU"));
    // The last one is told that the frontend is gone, by a connection that has ended.
    assert!(matches!(worker.connection.receive(None), Err(ConnectionError::Closed)));
}

#[test]
fn a_worker_that_ends_the_connection_and_lives_means_it() {
    let rig = Rig::new();
    let (mut front, session, worker) = connected(&rig);
    drop(worker);
    assert!(session.join().unwrap().contains("the worker has ended the connection"));
    assert!(front.get_status().is_err());
}

#[test]
fn a_frontend_that_goes_while_there_is_no_worker_is_made_known_to_the_next() {
    let rig = Rig::new();
    let (front, session, worker) = connected(&rig);
    rig.kill(worker);
    drop(front);
    let mut next = rig.worker();
    while let Ok(message) = next.connection.receive(None) {
        let request = Request::from_code(message.header.request.get()).unwrap();
        next.answer(request, &message);
    }
    session.join().unwrap();
}

#[test]
fn a_refusal_that_cannot_be_told_ends_the_connection() {
    let rig = Rig::new();
    let (mut front, session) = rig.connect();
    let mut worker = rig.worker();
    let body = u64::MAX.to_ne_bytes();
    front.send_raw(Request::SetFeatures.into(), 1, &body, &[]).unwrap();
    let message = worker.until(Request::SetFeatures);
    worker.word(&message, 1);
    assert!(session.join().unwrap().contains("SET_FEATURES was refused"));
}

#[test]
fn the_back_channel_outlives_workers_and_answers_to_dead_ones_are_dropped() {
    let rig = Rig::new();
    let (mut front, _session, first) = connected(&rig);
    let first = serve(first, Request::SetBackendReqFd);
    let mut back = front.open_back_channel().unwrap();
    let mut first = first.join().unwrap();
    let channel = |worker: &mut Worker| {
        let at = worker.seen.iter().position(|(request, _)| *request == Request::SetBackendReqFd).unwrap();
        Connection::new(UnixStream::from(worker.seen[at].1.fds.remove(0)))
    };
    let ask = |channel: &mut Connection| {
        let header = Header::request(BackendRequest::ConfigChangeMsg.into(), flags::NEED_REPLY, 0);
        channel.send(header, &[], &[]).unwrap();
    };
    let mut receive = || back.receive(Duration::from_secs(20)).unwrap().expect("a message");
    ask(&mut channel(&mut first));
    let unanswered = receive();
    rig.kill(first);
    let mut next = rig.worker();
    next.through(Request::SetBackendReqFd);
    let mut channel = channel(&mut next);
    ask(&mut channel);
    let second = receive();
    back.acknowledge(unanswered.message.header, 5).unwrap();
    back.acknowledge(second.message.header, 6).unwrap();
    let answer = channel.receive(Some(Instant::now() + Duration::from_secs(20))).unwrap();
    assert_eq!(answer.payload::<Word>().unwrap().value.get(), 6);
}

#[test]
fn a_configuration_that_has_changed_meanwhile_is_announced() {
    for config in [1, 2] {
        let rig = Rig::new();
        let (mut front, _session, first) = connected(&rig);
        let first = serve(first, Request::GetConfig);
        let mut seen = [0; 8];
        front.get_config(0, &mut seen).unwrap();
        let first = serve(first.join().unwrap(), Request::SetBackendReqFd);
        let mut back = front.open_back_channel().unwrap();
        rig.kill(first.join().unwrap());
        let mut next = rig.worker();
        next.config = config;
        next.through(Request::GetConfig);
        let heard = back.receive(Duration::from_millis(if config == 1 { 50 } else { 20_000 })).unwrap();
        assert_eq!(heard.is_some(), config == 2);
    }
}
