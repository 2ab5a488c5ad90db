//! Engines alone, without a device: the library, and the lanes of the multi-buffer engine.
//!
//! `cargo bench -p crypto-offload --bench engines` compares the two on AES-CBC encryption, turn by turn, for all sizes and
//! depths, and prints the ratios; then criterion measures each by itself, and the library's other algorithms.
//! `-- --compare` stops after the comparison, `-- --gate` also fails where the lanes are not [`GATE`] times as fast as the
//! library, or a lone request is slower than [`ALONE`] of it.
#![expect(unsafe_code, reason = "jobs name buffers of the bench as raw ranges")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use crypto_offload::algorithm::{Aead, ChainOrder, Cipher, Direction, Hash};
use crypto_offload::engine::library::Library;
use crypto_offload::engine::{Bytes, Choice, Engine, Iv, Job, KeySpec, Prepared, Ranges, Span, Tag, Work};
use crypto_offload::multibuffer::{Kind, MultiBuffer};
use memory::HostRange;

/// Times the library that the lanes must reach, at [`GATE_LEN`] and from [`GATE_DEPTH`] on, where there are sixteen.
const GATE: f64 = 4.0;
const GATE_LEN: usize = 4096;
const GATE_DEPTH: usize = 16;
/// What a lone request must reach of the library's speed, from [`ALONE_LEN`] on: below, the ten nanoseconds that it takes to
/// collect a request and to deliver it later count.
const ALONE: f64 = 0.95;
const ALONE_LEN: usize = 1024;

const LENGTHS: [usize; 7] = [64, 128, 256, 1024, 4096, 16384, 65536];
const DEPTHS: [usize; 6] = [1, 4, 8, 16, 32, 64];
const KEY: [u8; 32] = [0x42; 32];

/// Requests for one engine, with their memory: each has a buffer that begins at a page boundary, as a guest's mostly do.
struct Load {
    _memory: Vec<u8>,
    lists: Vec<[HostRange; 1]>,
    digests: Vec<[HostRange; 1]>,
    keys: Vec<Arc<Prepared>>,
    jobs: Vec<Job>,
}

impl Load {
    /// A job for each length, in place, with keys in turn.
    fn new(lens: &[usize], specs: &[KeySpec<'_>]) -> Self {
        const PAGE: usize = 4096;
        let room: usize = lens.iter().map(|len| len.next_multiple_of(PAGE) + PAGE).sum();
        let mut memory = vec![0x5au8; room + PAGE];
        let start = memory.as_mut_ptr();
        let mut offset = start.align_offset(PAGE);
        let mut next = |len: usize| {
            let range = [HostRange { base: start.wrapping_add(offset).cast(), len }];
            offset += len.next_multiple_of(PAGE);
            range
        };
        let lists: Vec<_> = lens.iter().map(|&len| next(len)).collect();
        let keys: Vec<_> = specs.iter().map(|spec| Prepared::new(spec).expect("a key")).collect();
        let digests: Vec<_> =
            lens.iter().enumerate().map(|(i, _)| next(keys[i % keys.len()].result_len())).collect();
        let mut load = Self { _memory: memory, lists, digests, keys, jobs: Vec::new() };
        load.jobs = (0..lens.len()).map(|i| load.job(i, &specs[i % specs.len()])).collect();
        load
    }

    fn job(&self, index: usize, spec: &KeySpec<'_>) -> Job {
        let data = Ranges::whole(&self.lists[index]);
        let digest = Ranges::whole(&self.digests[index]);
        let iv = |len| Iv::new(&[7; 16][..len]).expect("short");
        let work = match *spec {
            KeySpec::Cipher { cipher, .. } => Work::Cipher { iv: iv(cipher.iv_len()), src: data, dst: data },
            KeySpec::Chain { cipher, .. } => {
                let all = Span { start: 0, len: data.len() };
                let iv = iv(cipher.iv_len());
                Work::Chain { iv, src: data, cipher: all, hash: all, dst: data, digest }
            }
            KeySpec::Aead { tag_len, .. } => {
                let (src, tag) = (data.sub(tag_len, data.len() - tag_len), data.sub(0, tag_len));
                let src = src.expect("longer than a tag");
                Work::Aead {
                    iv: iv(12),
                    aad: Bytes::EMPTY,
                    src,
                    dst: src,
                    tag: Tag::Write(tag.expect("as above")),
                }
            }
            KeySpec::Hash { .. } | KeySpec::Mac { .. } => Work::Digest { src: data, digest },
            KeySpec::Akcipher { .. } => unreachable!("not measured here"),
        };
        let key = &self.keys[index % self.keys.len()];
        key.check(&work).expect("a sensible job");
        Job { tag: index as u64, key: (&**key).into(), work }
    }

    fn bytes(&self) -> u64 {
        self.jobs.iter().map(|job| job.work.len() as u64).sum()
    }

    /// All jobs once, from submission to delivery.
    fn run(&self, engine: &mut dyn Engine) {
        // SAFETY: keys, lists and memory are the load's own, and all jobs are delivered below.
        assert_eq!(unsafe { engine.submit(&self.jobs) }, self.jobs.len());
        engine.flush();
        let done = engine.poll(&mut |finished| {
            black_box(finished);
        });
        assert_eq!(done, self.jobs.len());
    }

    /// As often as it takes some 200 microseconds: the seconds of one run.
    fn time(&self, engine: &mut dyn Engine) -> f64 {
        let runs = (400_000 / self.bytes()).clamp(1, 1000);
        let start = cpu_seconds();
        (0..runs).for_each(|_| self.run(engine));
        (cpu_seconds() - start) / runs as f64
    }
}

fn cbc(key_len: usize) -> KeySpec<'static> {
    KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key: &KEY[..key_len] }
}

/// Time that this thread had the CPU: others on the machine lengthen it by what they do to the caches only.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is ours to write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The same load for both, in turns, so that whatever else the machine does hits both: medians, in seconds of CPU time.
fn in_turns(load: &Load, a: &mut dyn Engine, b: &mut dyn Engine) -> (f64, f64) {
    let (times_a, times_b) = (0..41).map(|_| (load.time(a), load.time(b))).unzip();
    (median(times_a), median(times_b))
}

/// Prints a line of the comparison and gives the ratio.
fn compare(name: &str, load: &Load) -> f64 {
    let mut lanes = MultiBuffer::new(Choice::MultiBuffer).expect("memory");
    let (library, lanes) = in_turns(load, &mut Library::new(), &mut lanes);
    let speed = |seconds: f64| load.bytes() as f64 / seconds / 1e9;
    let ratio = library / lanes;
    println!("{name:42} {:7.2} {:7.2} GB/s {ratio:7.2}x", speed(library), speed(lanes));
    ratio
}

/// The library against the lanes; `false` if the gate is not passed.
fn comparison() -> bool {
    println!("AES-CBC encryption, {}{:>22} {:>7}", Kind::detect(), "library", "lanes");
    let mut passed = true;
    for key_len in [16, 32] {
        for len in LENGTHS {
            for depth in DEPTHS {
                let name = format!("aes-{}, {len} bytes, depth {depth}", key_len * 8);
                let ratio = compare(&name, &Load::new(&vec![len; depth], &[cbc(key_len)]));
                let wanted = match depth {
                    1 if len >= ALONE_LEN => ALONE,
                    _ if Kind::detect() == Kind::Vaes512 && len >= GATE_LEN && depth >= GATE_DEPTH => GATE,
                    _ => 0.0,
                };
                if ratio < wanted {
                    println!("  below {wanted}");
                    passed = false;
                }
            }
        }
    }
    let mixed: Vec<usize> =
        (0..64).map(|i| [64, 4096, 512, 16384, 1500, 256, 8192, 65536][i % 8] & !15).collect();
    compare("aes-128, 64 bytes to 64 KiB, depth 64", &Load::new(&mixed, &[cbc(16)]));
    let keys: Vec<[u8; 32]> = (0..64).map(|i| [i; 32]).collect();
    let encrypt = |key| KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key };
    let own: Vec<_> = keys.iter().map(|key| encrypt(&key[..16])).collect();
    compare("aes-128, 4096 bytes, depth 64, 64 keys", &Load::new(&[4096; 64], &own));
    let sizes: Vec<_> = keys.iter().enumerate().map(|(i, key)| encrypt(&key[..16 + 8 * (i % 3)])).collect();
    compare("all key sizes, 4096 bytes, depth 64", &Load::new(&[4096; 64], &sizes));
    for (name, hash) in [("sha1", Hash::Sha1), ("sha256", Hash::Sha256)] {
        compare(
            &format!("aes-128 then hmac({name}), 4096, depth 32"),
            &Load::new(&[4096; 32], &[chain(hash)]),
        );
    }
    clock();
    passed
}

fn chain(hash: Hash) -> KeySpec<'static> {
    KeySpec::Chain {
        cipher: Cipher::AesCbc,
        direction: Direction::Encrypt,
        order: ChainOrder::CipherThenHash,
        hash,
        cipher_key: &KEY[..16],
        mac_key: Some(&KEY),
        result_len: hash.digest_len(),
    }
}

/// Whether the clock drops under wide vectors, as it did on some CPUs: how long ordinary code takes right after the
/// lanes, against right after the library.
fn clock() {
    fn ordinary() -> f64 {
        let start = cpu_seconds();
        let mut x = 1u64;
        for i in 0..100_000u64 {
            x = black_box(x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(i));
        }
        cpu_seconds() - start
    }
    let load = Load::new(&[4096; 64], &[cbc(16)]);
    let (mut library, mut lanes) = (Library::new(), MultiBuffer::new(Choice::MultiBuffer).expect("memory"));
    let after = |engine: &mut dyn Engine| {
        (0..10).for_each(|_| load.run(engine));
        ordinary()
    };
    let (with_library, with_lanes) = (0..101).map(|_| (after(&mut library), after(&mut lanes))).unzip();
    let ratio = median(with_lanes) / median(with_library);
    println!(
        "Ordinary code right after the lanes takes {ratio:.3} of the time that it takes right after the library."
    );
}

fn measure(criterion: &mut Criterion, group: &str, engine: &mut dyn Engine, name: String, load: &Load) {
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Bytes(load.bytes()));
    group.bench_function(BenchmarkId::new(engine.name(), name), |bencher| bencher.iter(|| load.run(engine)));
    group.finish();
}

fn encryption(criterion: &mut Criterion) {
    let (mut library, mut lanes) = (Library::new(), MultiBuffer::new(Choice::MultiBuffer).expect("memory"));
    for len in LENGTHS {
        for depth in DEPTHS {
            let load = Load::new(&vec![len; depth], &[cbc(16)]);
            measure(criterion, "aes-128-cbc/encrypt", &mut library, format!("{len}x{depth}"), &load);
            measure(criterion, "aes-128-cbc/encrypt", &mut lanes, format!("{len}x{depth}"), &load);
        }
    }
}

/// What the lanes cannot make faster: here a core of the guest is as good as one of ours.
fn others(criterion: &mut Criterion) {
    let (encrypt, decrypt) = (Direction::Encrypt, Direction::Decrypt);
    let cipher = |cipher, direction, key| KeySpec::Cipher { cipher, direction, key };
    let aead = |aead, key| KeySpec::Aead { aead, direction: encrypt, key, tag_len: 16 };
    let mac = |hash: Hash| KeySpec::Mac { hash, key: &KEY, result_len: hash.digest_len() };
    let xts: [u8; 64] = std::array::from_fn(|i| i as u8);
    let specs = [
        ("aes-128-cbc/decrypt", cipher(Cipher::AesCbc, decrypt, &KEY[..16])),
        ("aes-128-ctr", cipher(Cipher::AesCtr, encrypt, &KEY[..16])),
        ("aes-128-ecb", cipher(Cipher::AesEcb, encrypt, &KEY[..16])),
        ("aes-128-xts", cipher(Cipher::AesXts, encrypt, &xts[..32])),
        ("aes-256-xts", cipher(Cipher::AesXts, encrypt, &xts)),
        ("aes-128-gcm", aead(Aead::AesGcm, &KEY[..16])),
        ("aes-128-ccm", aead(Aead::AesCcm, &KEY[..16])),
        ("chacha20-poly1305", aead(Aead::ChaCha20Poly1305, &KEY)),
        ("hmac-sha1", mac(Hash::Sha1)),
        ("hmac-sha256", mac(Hash::Sha256)),
        ("hmac-sha512", mac(Hash::Sha512)),
    ];
    let mut library = Library::new();
    for (name, spec) in specs {
        for len in [4096, 16384] {
            let load = Load::new(&[len; 32], &[spec]);
            measure(criterion, name, &mut library, format!("{len}x32"), &load);
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500)).sample_size(20);
    targets = encryption, others
}

fn main() {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let (gate, only_compare) = (asked("--gate"), asked("--compare"));
    // Other arguments are criterion's: a filter means that somebody wants a certain measurement.
    let filtered = std::env::args().skip(1).any(|argument| !argument.starts_with("--"));
    if gate || only_compare || !filtered {
        let passed = comparison();
        if gate && !passed {
            std::process::exit(1);
        }
    }
    if !gate && !only_compare {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
