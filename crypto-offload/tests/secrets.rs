//! No key outlives its session: the memory of a running daemon is searched for the keys it was given.

mod frontend;

use daemon::testing::Daemon;
use frontend::{Cryptodev, Served, Whole, wire};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use virtqueue::RingFeatures;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhostd-crypto");

struct Device<'a>(&'a Daemon);

impl Served for Device<'_> {
    fn dial(&self) -> UnixStream {
        self.0.connect("c")
    }

    fn data_queues(&self) -> u16 {
        1
    }
}

/// What a driver of Linux has.
const LINUX: RingFeatures = RingFeatures { event_idx: true, indirect: true, in_order: false, packed: false };

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// Where the process has these bytes in memory of its own. What it shares is the guest's, or a vault.
fn places(daemon: &Daemon, wanted: &[u8]) -> Vec<String> {
    let open = |name| File::open(format!("/proc/{}/{name}", daemon.child.id())).expect("the test is root");
    let (memory, present) = (open("mem"), open("pagemap"));
    let mut maps = String::new();
    open("maps").read_to_string(&mut maps).unwrap();
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") || rights.ends_with('s') {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap() / PAGE);
        for run in populated(&present, start, end) {
            let mut bytes = vec![0; ((run.end - run.start) * PAGE) as usize];
            // The mapping may have gone meanwhile.
            if memory.read_exact_at(&mut bytes, run.start * PAGE).is_ok()
                && let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted)
            {
                found.push(format!("{line} + {:#x}", (run.start - start) * PAGE + at as u64));
            }
        }
    }
    found
}

const PAGE: u64 = 4096;

/// The pages among these that there are: much memory is reserved only.
fn populated(pagemap: &File, start: u64, end: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut entries = vec![0; 8 * 8192];
    for first in (start..end).step_by(8192) {
        let n = pagemap.read_at(&mut entries[..8 * (end - first).min(8192) as usize], 8 * first).unwrap_or(0);
        for (page, entry) in (first..).zip(entries[..n].as_chunks::<8>().0) {
            // Bits 62 and 63: swapped, present.
            match runs.last_mut() {
                _ if u64::from_ne_bytes(*entry) >> 62 == 0 => {}
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
    }
    runs
}

/// Workers let go of a key when they next look; that is soon.
fn is_gone(daemon: &Daemon, what: &str, key: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut found = places(daemon, key);
    while !found.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        found = places(daemon, key);
    }
    assert_eq!(found, Vec::<String>::new(), "{what}");
}

#[test]
fn keys_of_closed_sessions_are_nowhere_in_the_memory_of_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(PROGRAM, dir.path(), &["--socket-path", "c"]);
    let mut qemu = Cryptodev::running(&Device(&daemon), LINUX);
    // A session that stays, so that workers have something to do afterwards.
    let steady = qemu.create(&wire::cbc_description(632)) as u64;
    for (len, cipher, direction) in [(632, 3, 1), (1072, 3, 2), (632, 4, 1), (1072, 2, 1), (632, 13, 1)] {
        let key: [u8; 32] = random();
        let id = qemu.create(&wire::description(len, cipher, direction, &key)) as u64;
        let iv = if cipher == 2 { &[][..] } else { &wire::IV };
        let opcode = u32::from(direction == 2);
        for _ in 0..20 {
            assert_eq!(qemu.cipher(opcode, id, iv, &wire::PLAIN).1, wire::OK);
        }
        assert_ne!(places(&daemon, &key[..16]), Vec::<String>::new(), "the search finds nothing at all");
        qemu.close(id);
        qemu.sync();
        qemu.check_vector(steady);
        is_gone(&daemon, &format!("the first half of the key of cipher {cipher}"), &key[..16]);
        is_gone(&daemon, &format!("the second half of the key of cipher {cipher}"), &key[16..]);
    }
}

#[test]
fn keys_are_gone_when_the_frontend_is() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(PROGRAM, dir.path(), &["--socket-path", "c"]);
    let (cipher_key, mac_key): ([u8; 16], [u8; 32]) = (random(), random());
    let mut vmm = Whole::running(&Device(&daemon), !0x3f);
    let id = vmm.session(&wire::create_cipher(3, 1, &cipher_key));
    assert_eq!(vmm.cipher(wire::ENCRYPT, id, &wire::IV, &wire::PLAIN).1, wire::OK);
    vmm.session(&wire::control(0x202, &[4, 32, 32, 0], &[&mac_key], false));
    // Refused ones leave nothing either: ARC4, and a digest that is too long.
    let refused: [u8; 16] = random();
    assert_ne!(vmm.create(&wire::create_cipher(1, 1, &refused)).1, 0);
    assert_ne!(vmm.create(&wire::control(0x202, &[4, 99, 16, 0], &[&refused], false)).1, 0);
    is_gone(&daemon, "a refused key", &refused);
    drop(vmm);
    is_gone(&daemon, "the cipher's key", &cipher_key);
    is_gone(&daemon, "the MAC's key", &mac_key);
}

/// Descriptions of sessions pass through it, with their keys.
#[test]
fn no_key_stays_in_the_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Daemon::start(PROGRAM, dir.path(), &["--supervise", "--socket-path", "c"]);
    let mut qemu = Cryptodev::running(&Device(&keeper), LINUX);
    for len in [632, 1072] {
        let key: [u8; 32] = random();
        let id = qemu.create(&wire::description(len, 3, 1, &key)) as u64;
        assert_eq!(qemu.cipher(0, id, &wire::IV, &wire::PLAIN).1, wire::OK);
        // Whoever allocates first may overwrite a few bytes of what was freed.
        is_gone(&keeper, "the second half of the key", &key[16..]);
    }
}

/// Keys of every service that has one, used and destroyed over the control queue.
#[test]
fn destroyed_sessions_of_every_service_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(PROGRAM, dir.path(), &["--socket-path", "c"]);
    let mut vmm = Whole::running(&Device(&daemon), !0x3f);
    let key: [u8; 32] = random();
    let aead = |algorithm, tag| wire::control(0x302, &[algorithm, 32, tag, 0, 1, 0], &[&key], false);
    let aead_request = |id, iv: usize| {
        let header = wire::data(0x300, Some(id), &[iv as u32, 0, 16, 32], 48);
        [header, vec![5; iv], vec![6; 16]].concat()
    };
    let mac = wire::control(0x202, &[4, 32, 32, 0], &[&key], false);
    let mac_request = |id| [wire::data(0x200, Some(id), &[3, 32], 48), b"abc".to_vec()].concat();
    let chain = [2, 2, 3, 16, 1, 0, 4, 32, 16, 0, 0, 0, 2, 0];
    let chain = wire::control(0x002, &chain, &[&key[..16], &key[16..]], false);
    let chain_request = |id| {
        let fields = [16, 32, 32, 0, 32, 0, 32, 0, 32, 0, 2, 0];
        [wire::data(0, Some(id), &fields, 48), wire::IV.to_vec(), wire::PLAIN.to_vec()].concat()
    };
    type Request<'a> = &'a dyn Fn(u64) -> Vec<u8>;
    let services: [(&str, &[u8], Request<'_>, usize, u32); 5] = [
        ("GCM", &aead(1, 16), &|id| aead_request(id, 12), 32, 0x303),
        ("CCM", &aead(2, 16), &|id| aead_request(id, 12), 32, 0x303),
        ("ChaCha20-Poly1305", &aead(3, 16), &|id| aead_request(id, 12), 32, 0x303),
        ("HMAC", &mac, &mac_request, 32, 0x203),
        ("CBC with HMAC", &chain, &chain_request, 64, 0x003),
    ];
    let steady = vmm.session(&wire::create_cbc());
    for (name, create, request, room, destroy) in services {
        let id = vmm.session(create);
        for _ in 0..10 {
            assert_eq!(vmm.ask(&[&request(id)], &[room, 1])[room], wire::OK, "{name}");
        }
        assert_eq!(vmm.control(&wire::destroy(destroy, id, false), 1), [wire::OK]);
        vmm.check_vector(steady);
        is_gone(&daemon, &format!("first half of a key of {name}"), &key[..16]);
        is_gone(&daemon, &format!("second half of a key of {name}"), &key[16..]);
    }
}
