use super::*;
use crate::algorithm::{Aead, Akcipher, ChainOrder, Cipher, Curve, Direction, Hash, KeyKind, RsaPadding};
use crate::vault::Vault;
use memory::{Area, GuestAddr, OwnMemory};
use proptest::prelude::*;
use std::sync::Arc;
use virtqueue::driver::{DriverRing, Segment};
use virtqueue::inflight::{QueueRegion, region_size};
use virtqueue::{DeviceRing, Format, Queue, RingAddresses, RingFeatures, RingSetup, ring_sizes};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A request: opcode, fixed fields (padded unless `revision_1`), keys.
fn request(opcode: u32, fields: &[u32], keys: &[&[u8]], revision_1: bool) -> Vec<u8> {
    let mut fields = words(fields);
    if !revision_1 {
        fields.resize(LEGACY_FIELDS, 0xa5);
    }
    // The algorithm of the header, its flag and its queue mean nothing here.
    [words(&[opcode, 99, 77, 55]), fields, keys.concat()].concat()
}

/// The 56 bytes of a symmetric session.
fn symmetric(op_type: u32, fields: &[u32]) -> Vec<u32> {
    let mut all = fields.to_vec();
    all.resize(12, 0);
    all.extend([op_type, 0]);
    all
}

fn cbc(direction: u32, key: &[u8], revision_1: bool) -> Vec<u8> {
    let fields = symmetric(1, &[3, key.len() as u32, direction, 0]);
    request(0x002, &fields, &[key], revision_1)
}

fn chain(hash_mode: u32, cipher_key: &[u8], auth_key: &[u8]) -> Vec<u8> {
    let (first, second) = (cipher_key.len() as u32, auth_key.len() as u32);
    let fields = symmetric(2, &[2, hash_mode, 4, first, 2, 0, 2, 20, second, 0, 8, 0]);
    request(0x002, &fields, &[cipher_key, auth_key], false)
}

fn rsa(bits_of_key: &[u8], revision_1: bool) -> Vec<u8> {
    let mut fields = vec![1, 2, bits_of_key.len() as u32, 1, 6];
    fields.resize(14, 0);
    request(0x404, &fields, &[bits_of_key], revision_1)
}

fn spec(request: &[u8], revision_1: bool) -> KeySpec<'_> {
    match Command::parse(request, revision_1) {
        Ok(Command::Create(spec)) => spec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sessions_of_every_service_are_understood_with_and_without_revision_1() {
    for rev in [false, true] {
        let of = |request: Vec<u8>, check: fn(KeySpec<'_>) -> bool| {
            let spec = spec(&request, rev);
            assert!(check(spec), "{spec:?}");
        };
        of(cbc(1, &[1; 16], rev), |spec| {
            let expected = (Cipher::AesCbc, Direction::Encrypt, &[1; 16][..]);
            matches!(spec, KeySpec::Cipher { cipher, direction, key } if (cipher, direction, key) == expected)
        });
        of(request(0x102, &[4, 20], &[], rev), |spec| {
            matches!(spec, KeySpec::Hash { hash: Hash::Sha256, result_len: 20 })
        });
        of(
            request(0x202, &[5, 48, 40, 0], &[&[7; 40]], rev),
            |spec| matches!(spec, KeySpec::Mac { hash: Hash::Sha384, key, result_len: 48 } if key == [7; 40]),
        );
        of(request(0x302, &[1, 32, 16, 12, 2, 0], &[&[8; 32]], rev), |spec| {
            let (aead, direction) = (Aead::AesGcm, Direction::Decrypt);
            matches!(spec, KeySpec::Aead { aead: a, direction: d, key, tag_len: 16 }
                if (a, d, key) == (aead, direction, &[8; 32]))
        });
        of(rsa(&[9; 1191], rev), |spec| {
            let algorithm = Akcipher::Rsa { padding: RsaPadding::Pkcs1(Some(Hash::Sha256)) };
            matches!(spec, KeySpec::Akcipher { algorithm: a, kind: KeyKind::Private, der }
                if a == algorithm && der == [9; 1191])
        });
    }
    let ecdsa = [2, 1, 65, 3].into_iter().chain([0; 10]).collect::<Vec<u32>>();
    let request = request(0x404, &ecdsa, &[&[4; 65]], true);
    let expected = Akcipher::Ecdsa { curve: Curve::P256 };
    assert!(matches!(spec(&request, true), KeySpec::Akcipher { algorithm, .. } if algorithm == expected));
}

#[test]
fn chains_of_both_hash_modes_are_understood() {
    let with_mac = chain(2, &[1; 32], &[2; 20]);
    let KeySpec::Chain { cipher, direction, order, hash, cipher_key, mac_key, result_len } =
        spec(&with_mac, false)
    else {
        panic!("no chain")
    };
    assert_eq!((cipher, direction), (Cipher::AesCtr, Direction::Decrypt));
    assert_eq!((order, hash, result_len), (ChainOrder::CipherThenHash, Hash::Sha1, 20));
    assert_eq!((cipher_key, mac_key), (&[1; 32][..], Some(&[2; 20][..])));
    // With a plain hash the third field of the hash is none, whatever it holds.
    let plain = chain(1, &[1; 32], &[]);
    assert!(matches!(spec(&plain, false), KeySpec::Chain { mac_key: None, .. }));
    assert_eq!(Command::parse(&chain(3, &[1; 32], &[]), false).err(), Some(Status::NotSupp));
}

#[test]
fn every_service_destroys_by_identifier() {
    for rev in [false, true] {
        for opcode in [0x003, 0x103, 0x203, 0x303, 0x405] {
            let request = request(opcode, &[0x1234_5678, 1], &[], rev);
            let command = Command::parse(&request, rev);
            assert!(matches!(command, Ok(Command::Destroy(0x1_1234_5678))), "{opcode:#x} {command:?}");
        }
    }
}

#[test]
fn unknown_opcodes_are_not_supported() {
    for opcode in [0x000, 0x001, 0x004, 0x104, 0x402, 0x403, 0x406, 0x502, 0x10002, u32::MAX] {
        let request = request(opcode, &[0; 14], &[], false);
        assert_eq!(Command::parse(&request, false).err(), Some(Status::NotSupp), "{opcode:#x}");
    }
}

#[test]
fn a_request_that_ends_too_soon_is_an_error_at_every_length() {
    for (request, rev) in [
        (cbc(1, &[1; 32], false), false),
        (cbc(1, &[1; 32], true), true),
        (chain(2, &[1; 16], &[2; 64]), false),
        (request(0x202, &[5, 48, 40, 0], &[&[7; 40]], true), true),
        (request(0x302, &[1, 32, 16, 12, 2, 0], &[&[8; 32]], true), true),
        (rsa(&[9; 100], true), true),
        (request(0x003, &[1, 0], &[], true), true),
    ] {
        assert!(Command::parse(&request, rev).is_ok());
        for len in 0..request.len() {
            assert_eq!(Command::parse(&request[..len], rev).err(), Some(Status::Err), "{len} bytes");
        }
        // What a driver appends is none of our business.
        assert!(Command::parse(&[&request[..], &[0xff; 99]].concat(), rev).is_ok());
    }
}

#[test]
fn key_lengths_that_overflow_are_errors() {
    for len in [33, 0x7fff_ffff, u32::MAX - 71, u32::MAX] {
        let fields = symmetric(1, &[3, len, 1, 0]);
        assert_eq!(Command::parse(&request(2, &fields, &[&[1; 32]], false), false).err(), Some(Status::Err));
    }
}

proptest! {
    #[test]
    fn no_request_is_too_strange(
        opcode in prop_oneof![Just(0x002u32), Just(0x102), Just(0x202), Just(0x302), Just(0x404), any::<u32>()],
        rest in proptest::collection::vec(prop_oneof![4 => 0u8..6, 1 => any::<u8>()], 0..200),
        revision_1 in any::<bool>(),
    ) {
        let request = [&opcode.to_le_bytes()[..], &rest].concat();
        let _ = Command::parse(&request, revision_1);
    }
}

const TABLE: u16 = 256;

/// A control queue without a worker.
struct Rig {
    memory: OwnMemory,
    addresses: RingAddresses,
    driver: DriverRing,
    queue: Queue,
    sessions: Sessions,
    vault: Option<DeviceVault>,
    /// What the frontend keeps for a process that takes over.
    inflight: Area,
    revision_1: bool,
}

impl Rig {
    fn new(limit: u32, revision_1: bool) -> Self {
        let memory = OwnMemory::new(4 << 20, GuestAddr(0x1000)).unwrap();
        let features = RingFeatures::default();
        let (desc, driver, device) = ring_sizes(features.format(), TABLE);
        let area = |len| memory.alloc(len, 64).unwrap();
        let addresses = RingAddresses { desc: area(desc), driver: area(driver), device: area(device) };
        let driver =
            DriverRing::in_table(memory.table(), &addresses, features.format(), TABLE, features).unwrap();
        let inflight = Area::anonymous(region_size(Format::Split, TABLE));
        let queue = start(&memory, addresses, &inflight);
        let sessions = Sessions::new(limit, None);
        Self { memory, addresses, driver, queue, sessions, vault: None, inflight, revision_1 }
    }

    /// With a vault for the sessions.
    fn kept() -> Self {
        let (_, fd) = Area::shared(1 << 20, "vault").unwrap();
        let vault = Some(Vault::from_fd(fd).unwrap().device("test"));
        Self { sessions: Sessions::new(10, vault.clone()), vault, ..Self::new(10, true) }
    }

    /// The process dies, and another one takes over with what vault and inflight region have.
    fn die(&mut self) {
        self.queue = start(&self.memory, self.addresses, &self.inflight);
        self.sessions = Sessions::new(10, self.vault.clone());
        for entry in self.vault.iter().flat_map(DeviceVault::entries) {
            let id = SessionId::from_wire(entry.id()).unwrap();
            self.sessions.restore(id, &entry.spec().unwrap()).unwrap();
        }
    }

    /// Takes the next request and executes it; it is not shown to the driver.
    fn execute(&mut self) -> (Chain, u32) {
        let mem = MemoryView::new(Arc::clone(self.memory.table()));
        let mut chain = Chain::new();
        assert_eq!(self.queue.ring.fetch(1), 1);
        self.queue.ring.next(&mem, &mut chain).unwrap();
        let vault = self.vault.as_ref();
        let executor = Executor { sessions: &self.sessions, vault, revision_1: self.revision_1 };
        let written = executor.serve(&chain, &mem);
        (chain, written)
    }

    fn show(&mut self, chain: &Chain, written: u32) {
        let mem = MemoryView::new(Arc::clone(self.memory.table()));
        self.queue.ring.complete(&mem, chain, written);
        self.queue.publish();
    }

    /// Executes a request whose readable bytes come in pieces of at most `piece` bytes, with `room` bytes for its outcome in
    /// pieces as long. Returns what was written.
    fn ask(&mut self, request: &[u8], piece: usize, room: usize) -> Vec<u8> {
        let put = |bytes: &[u8]| {
            let addr = self.memory.alloc(bytes.len().max(1), 1).unwrap();
            self.memory.slice(addr, bytes.len()).unwrap().write(0, bytes);
            Segment { addr, len: bytes.len() as u32 }
        };
        let readable: Vec<_> = request.chunks(piece).map(put).collect();
        let writable: Vec<_> = vec![0xee; room].chunks(piece).map(put).collect();
        self.driver.add(&readable, &writable, 0).unwrap();
        let _ = self.driver.publish();
        let (chain, written) = self.execute();
        self.show(&chain, written);
        assert_eq!(self.driver.pop().unwrap().len, written);
        let mut outcome = vec![0; room];
        for (segment, bytes) in writable.iter().zip(outcome.chunks_mut(piece)) {
            self.memory.slice(segment.addr, bytes.len()).unwrap().read(0, bytes);
        }
        assert!(outcome[written as usize..].iter().all(|byte| *byte == 0xee), "wrote more than it said");
        outcome.truncate(written as usize);
        outcome
    }

    /// Makes a request available, and says where its outcome will be.
    fn offer(&mut self, request: &[u8], room: u32) -> Segment {
        let place = |len: usize| Segment { addr: self.memory.alloc(len, 1).unwrap(), len: len as u32 };
        let (readable, writable) = (place(request.len()), place(room as usize));
        self.memory.slice(readable.addr, request.len()).unwrap().write(0, request);
        self.driver.add(&[readable], &[writable], 0).unwrap();
        let _ = self.driver.publish();
        writable
    }

    fn bytes(&self, segment: &Segment) -> Vec<u8> {
        let mut bytes = vec![0; segment.len as usize];
        self.memory.slice(segment.addr, bytes.len()).unwrap().read(0, &mut bytes);
        bytes
    }

    fn create(&mut self, request: &[u8]) -> (u64, u32) {
        let outcome = self.ask(request, usize::MAX, 16);
        assert_eq!(outcome.len(), 16);
        let word = |at: usize| u32::from_le_bytes(outcome[at..at + 4].try_into().unwrap());
        assert_eq!(word(12), 0, "padding");
        (u64::from_le_bytes(outcome[..8].try_into().unwrap()), word(8))
    }

    fn destroy(&mut self, opcode: u32, id: u64) -> u8 {
        let request = request(opcode, &[id as u32, (id >> 32) as u32], &[], self.revision_1);
        self.ask(&request, usize::MAX, 1)[0]
    }
}

fn start(memory: &OwnMemory, addresses: RingAddresses, inflight: &Area) -> Queue {
    let setup = RingSetup {
        size: TABLE,
        features: RingFeatures::default(),
        table: memory.table(),
        addresses,
        base: 0,
        inflight: Some(QueueRegion::new(inflight.clone(), Format::Split, TABLE).unwrap()),
        log: None,
        used_log_addr: None,
    };
    Queue::new(setup).unwrap()
}

#[test]
fn a_request_that_comes_again_after_a_crash_makes_no_second_session() {
    let mut rig = Rig::kept();
    let outcome = rig.offer(&cbc(1, &[1; 16], true), 16);
    rig.execute();
    let first = rig.bytes(&outcome);
    rig.die();
    assert_eq!(rig.sessions.open(), 1);
    let (chain, written) = rig.execute();
    assert!(chain.token().resubmitted());
    rig.show(&chain, written);
    assert_eq!((rig.sessions.open(), rig.bytes(&outcome)), (1, first));
    assert_eq!(rig.driver.pop().unwrap().len, 16);
    // The next request in the same place of the ring is another one.
    rig.vault.as_ref().unwrap().settle();
    assert_eq!(rig.create(&cbc(1, &[1; 16], true)).1, 0);
    assert_eq!(rig.sessions.open(), 2);
}

#[test]
fn a_destruction_that_comes_again_after_a_crash_has_succeeded() {
    let mut rig = Rig::kept();
    let (id, _) = rig.create(&cbc(1, &[1; 16], true));
    rig.vault.as_ref().unwrap().settle();
    let outcome = rig.offer(&request(0x003, &[id as u32, 0], &[], true), 1);
    rig.execute();
    rig.die();
    let (chain, written) = rig.execute();
    rig.show(&chain, written);
    assert_eq!((rig.sessions.open(), rig.bytes(&outcome)), (0, vec![0]));
    // Any other one that is not there is still an error.
    assert_eq!(rig.destroy(0x003, id), 1);
}

#[test]
fn a_session_is_created_and_destroyed_once() {
    for rev in [false, true] {
        let mut rig = Rig::new(10, rev);
        let (id, status) = rig.create(&cbc(1, &[1; 16], rev));
        assert_eq!((status, rig.sessions.open()), (0, 1));
        assert_eq!(rig.destroy(0x003, id), 0);
        assert_eq!((rig.destroy(0x003, id), rig.sessions.open()), (1, 0));
        for unknown in [0, id + 1, u64::from(u32::MAX), 1 << 40 | id, u64::MAX] {
            assert_eq!(rig.destroy(0x003, unknown), 1);
        }
    }
}

#[test]
fn requests_and_outcomes_may_be_cut_anywhere() {
    let request = chain(2, &[1; 32], &[2; 20]);
    for piece in [1, 2, 3, 7, 16, 17, 71, 72, 73, 100] {
        let mut rig = Rig::new(10, false);
        let outcome = rig.ask(&request, piece, 16);
        assert_eq!((outcome.len(), outcome[8]), (16, 0), "pieces of {piece}");
    }
}

#[test]
fn an_outcome_without_room_is_not_begun() {
    let mut rig = Rig::new(10, false);
    for room in 0..16 {
        assert_eq!(rig.ask(&cbc(1, &[1; 16], false), usize::MAX, room), b"");
    }
    assert_eq!(rig.sessions.open(), 0, "nobody would know the identifier");
    assert_eq!(rig.ask(&request(0x003, &[1, 0], &[], false), usize::MAX, 0), b"");
    // An opcode that nobody knows is refused in whatever room there is.
    assert_eq!(rig.ask(&request(0x077, &[0; 14], &[], false), usize::MAX, 1), [Status::NotSupp as u8]);
    let refused = rig.ask(&request(0x077, &[0; 14], &[], false), usize::MAX, 20);
    assert_eq!((refused.len(), refused[8]), (16, Status::NotSupp as u8));
}

#[test]
fn the_limit_is_no_space_with_revision_1_and_an_error_without() {
    for (rev, expected) in [(true, Status::NoSpc), (false, Status::Err)] {
        let mut rig = Rig::new(3, rev);
        let ids: Vec<u64> = (0..3).map(|_| rig.create(&cbc(1, &[1; 16], rev)).0).collect();
        assert_eq!(rig.create(&cbc(1, &[1; 16], rev)), (0, expected as u32));
        assert_eq!(rig.destroy(0x003, ids[1]), 0);
        assert_eq!(rig.create(&cbc(1, &[1; 16], rev)).1, 0);
    }
}

#[test]
fn statuses_of_a_creation_are_those_the_standard_has_for_it() {
    let mut rig = Rig::new(10, true);
    let mut status = |request: Vec<u8>| rig.create(&request).1;
    // ARC4, DES, MD5: not here.
    assert_eq!(status(request(2, &symmetric(1, &[1, 16, 1, 0]), &[&[1; 16]], true)), 3);
    assert_eq!(status(request(0x102, &[1, 16], &[], true)), 3);
    // A key that no AES has, a digest longer than the hash's, a tag that GCM does not have, a direction that does not exist.
    assert_eq!(status(cbc(1, &[1; 17], true)), 1);
    assert_eq!(status(cbc(1, &[], true)), 1);
    assert_eq!(status(request(0x102, &[2, 21], &[], true)), 1);
    assert_eq!(status(request(0x302, &[1, 16, 3, 0, 1, 0], &[&[1; 16]], true)), 1);
    assert_eq!(status(cbc(3, &[1; 16], true)), 1);
    // The longest keys there are.
    assert_eq!(status(request(2, &symmetric(1, &[13, 64, 1, 0]), &[&[1; 32], &[2; 32]], true)), 0);
    assert_eq!(status(request(0x202, &[2, 20, 512, 0], &[&[1; 512]], true)), 0);
    assert_eq!(status(request(0x202, &[2, 20, 513, 0], &[&[1; 513]], true)), 1);
    // A private key of ECDSA is understood at its first use.
    let ecdsa = |key: &[u8]| {
        let fields: Vec<u32> = [2, 2, key.len() as u32, 3].into_iter().chain([0; 10]).collect();
        request(0x404, &fields, &[key], true)
    };
    assert_eq!(status(ecdsa(&[3; MAX_ASYMMETRIC_KEY])), 0);
    assert_eq!(status(ecdsa(&[3; MAX_ASYMMETRIC_KEY + 1])), 1);
    assert_eq!(status(rsa(b"no DER at all", true)), 1);
    assert_eq!(rig.sessions.open(), 3);
}
