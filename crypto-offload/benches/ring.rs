//! The device against its engine alone, in one thread: what rings, headers, sessions and counters cost a request.
//!
//! `cargo bench -p crypto-offload --bench ring` prints, for each load, CPU time a request of the worker's rounds alone (the
//! driver's part is not counted) and of the engine that is given the same jobs, turn by turn. There is no second core, so that
//! neither cache lines that move between cores nor a driver that is waited for are in it: `vhostd-bench compare` measures those.
//! `-- LOAD ROUNDS` runs one load without its engine, for a profiler that counts instructions.
#![expect(unsafe_code, reason = "jobs name buffers of the bench as raw ranges")]

#[path = "../tests/rings/mod.rs"]
mod rings;

use std::hint::black_box;
use std::sync::Arc;

use crypto_offload::algorithm::{Aead, Cipher, Direction, Service};
use crypto_offload::engine::{Bytes, Choice, Engines, Iv, Job, KeySpec, Prepared, Ranges, Tag, Work};
use crypto_offload::flush::{Mode, Policy};
use crypto_offload::wire::request::{Op, opcode};
use memory::{GuestAddr, HostRange};
use rings::{Rig, Shape};
use virtqueue::driver::Segment;

/// Requests in flight.
const DEPTH: usize = 32;
/// Memory of a request: its head, IV and status, then source and destination.
const HEAD_AT: usize = 0;
const IV_AT: usize = 128;
const STATUS_AT: usize = 256;
const DATA_AT: usize = 4096;
const TAG: usize = 16;
const KEY: [u8; 16] = [0x42; 16];

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    aead: bool,
    len: usize,
}

const LOADS: [Load; 5] = [
    Load { name: "aes-128-cbc-256", aead: false, len: 256 },
    Load { name: "aes-128-cbc-4k", aead: false, len: 4096 },
    Load { name: "aes-128-cbc-16k", aead: false, len: 16384 },
    Load { name: "aes-128-gcm-4k", aead: true, len: 4096 },
    Load { name: "aes-128-gcm-16k", aead: true, len: 16384 },
];

impl Load {
    fn spec(self) -> KeySpec<'static> {
        let direction = Direction::Encrypt;
        match self.aead {
            true => KeySpec::Aead { aead: Aead::AesGcm, direction, key: &KEY, tag_len: TAG },
            false => KeySpec::Cipher { cipher: Cipher::AesCbc, direction, key: &KEY },
        }
    }

    fn iv_len(self) -> usize {
        if self.aead { 12 } else { 16 }
    }

    /// Bytes of a result.
    fn room(self) -> usize {
        self.len + if self.aead { TAG } else { 0 }
    }

    fn stride(self) -> usize {
        DATA_AT + self.len.next_multiple_of(4096) + self.room().next_multiple_of(4096)
    }

    /// General header and fixed part, as without REVISION_1.
    fn head(self, session: u64) -> [u8; 72] {
        let service = if self.aead { Service::Aead } else { Service::Cipher };
        let (iv, len, room) = (self.iv_len() as u32, self.len as u32, self.room() as u32);
        let (low, high) = (session as u32, (session >> 32) as u32);
        let mut words = [0; 18];
        words[..6].copy_from_slice(&[opcode(service, Op::Encrypt), 0, low, high, 1, 0]);
        match self.aead {
            true => words[6..11].copy_from_slice(&[iv, 0, len, room, TAG as u32]),
            false => {
                words[6..9].copy_from_slice(&[iv, len, len]);
                words[16] = 1;
            }
        }
        let mut head = [0; 72];
        head.chunks_exact_mut(4)
            .zip(words)
            .for_each(|(at, word)| at.copy_from_slice(&u32::to_le_bytes(word)));
        head
    }

    fn work(self, src: &HostRange, dst: &HostRange) -> Work {
        let iv = Iv::new(&[7; 16][..self.iv_len()]).expect("short");
        let part = |range, skip, len| Ranges::new(std::slice::from_ref(range), skip, len).expect("room");
        let (from, to) = (part(src, 0, self.len), part(dst, 0, self.len));
        match self.aead {
            true => {
                let tag = Tag::Write(part(dst, self.len, TAG));
                Work::Aead { iv, aad: Bytes::EMPTY, src: from, dst: to, tag }
            }
            false => Work::Cipher { iv, src: from, dst: to },
        }
    }
}

/// A device with its requests.
struct Device {
    rig: Rig,
    chains: Vec<([Segment; 3], [Segment; 2])>,
}

impl Device {
    fn new(load: Load) -> Self {
        let mut rig = Rig::with_choice(Policy { mode: Mode::Busy, ..Policy::default() }, Choice::Auto);
        rig.add(Shape { memory: (load.stride() * DEPTH).max(1 << 20), ..Shape::default() });
        let head = load.head(rig.session(&load.spec()));
        let guest = &rig.guests[0];
        let chains = (0..DEPTH).map(|slot| {
            let base = guest.buffers_start() + (slot * load.stride()) as u64;
            let at = |offset: usize, len: usize| Segment {
                addr: GuestAddr(base + offset as u64),
                len: len as u32,
            };
            let (head_at, iv_at) = (at(HEAD_AT, head.len()), at(IV_AT, load.iv_len()));
            let dst_at = DATA_AT + load.len.next_multiple_of(4096);
            guest.memory.slice(head_at.addr, head.len()).expect("in memory").write(0, &head);
            guest.memory.slice(iv_at.addr, load.iv_len()).expect("in memory").fill(7);
            ([head_at, iv_at, at(DATA_AT, load.len)], [at(dst_at, load.room()), at(STATUS_AT, 1)])
        });
        let chains = chains.collect();
        Self { rig, chains }
    }

    /// All requests once. Returns the CPU time of the worker's rounds.
    fn run(&mut self) -> f64 {
        let ring = &mut self.rig.guests[0].rings[0];
        for (slot, (readable, writable)) in self.chains.iter().enumerate() {
            ring.add_indirect(readable, writable, slot as u32).expect("room");
        }
        let _ = ring.publish();
        let (mut spent, mut left) = (0.0, self.chains.len());
        while left > 0 {
            let start = cpu_seconds();
            black_box(self.rig.round());
            spent += cpu_seconds() - start;
            let ring = &mut self.rig.guests[0].rings[0];
            left -= std::iter::from_fn(|| ring.pop()).count();
        }
        spent
    }

    fn check(&self) {
        let ok = self.chains.iter().all(|(_, [_, status])| {
            self.rig.guests[0].memory.slice(status.addr, 1).ok().and_then(|byte| byte.read_obj::<u8>(0))
                == Some(0)
        });
        assert!(ok, "a request has failed");
    }
}

/// The engines of a worker with the same jobs.
struct Alone {
    engines: Engines,
    jobs: Vec<Job>,
    _memory: Vec<u8>,
    _ranges: Vec<[HostRange; 2]>,
    _key: Arc<Prepared>,
}

impl Alone {
    fn new(load: Load) -> Self {
        let mut memory = vec![0; load.stride() * DEPTH + 4096];
        let start = memory.as_mut_ptr();
        let first = start.align_offset(4096) + DATA_AT;
        let range = |offset: usize, len| HostRange { base: start.wrapping_add(first + offset).cast(), len };
        let dst_at = load.len.next_multiple_of(4096);
        let ranges: Vec<_> = (0..DEPTH)
            .map(|slot| {
                [range(slot * load.stride(), load.len), range(slot * load.stride() + dst_at, load.room())]
            })
            .collect();
        let key = Prepared::new(&load.spec()).expect("a key");
        let job = |(tag, [src, dst]): (usize, &[HostRange; 2])| Job {
            tag: tag as u64,
            key: (&*key).into(),
            work: load.work(src, dst),
        };
        let jobs = ranges.iter().enumerate().map(job).collect();
        Self { engines: Engines::new(Choice::Auto), jobs, _memory: memory, _ranges: ranges, _key: key }
    }

    fn run(&mut self) -> f64 {
        let start = cpu_seconds();
        // SAFETY: key, lists and memory are our own, and all jobs are delivered below.
        unsafe { self.engines.submit(&self.jobs) };
        self.engines.flush();
        self.engines.poll(&mut |tag, outcome| {
            black_box((tag, outcome));
        });
        assert_eq!(self.engines.in_flight(), 0);
        cpu_seconds() - start
    }
}

/// Time that this thread had the CPU.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is ours to write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2] / DEPTH as f64 * 1e9
}

fn compare(load: Load) {
    const TURNS: usize = 3000;
    let (mut device, mut alone) = (Device::new(load), Alone::new(load));
    let (device_ns, alone_ns) = (0..TURNS).map(|_| (device.run(), alone.run())).unzip();
    device.check();
    let (device_ns, alone_ns) = (median(device_ns), median(alone_ns));
    let share = alone_ns / device_ns;
    println!("{:16} {device_ns:8.1} {alone_ns:8.1} {:8.1} {share:7.3}", load.name, device_ns - alone_ns);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [name, rounds] = &arguments[..] {
        let load = LOADS.into_iter().find(|load| load.name == name).expect("the name of a load");
        let mut device = Device::new(load);
        (0..rounds.parse().expect("a number")).for_each(|_| {
            black_box(device.run());
        });
        return device.check();
    }
    println!("ns a request     device    alone  between   share");
    LOADS.into_iter().for_each(compare);
}
