//! Engines alone, without a device: every format at some of its levels, on text and on a binary.
//!
//! `cargo bench -p compress-offload --bench engines` measures each by itself; `-- --table` prints one line an engine and level
//! instead, of 64 KiB, with ratios. With `--features isal` ISA-L takes part.
//!
//! The table is in CPU time of the thread: others on the machine lengthen it by what they do to the caches only.
//!
//! The data are this repository's own: sources as text, and the bench itself as a binary.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use compress_offload::algorithm::{Format, Op, Params, bound};
use compress_offload::engine::{Engine, NAMES, Outcome, Output, alone};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};

const LENGTHS: [usize; 2] = [4 << 10, 64 << 10];
/// Requests that follow on each other, so that the data are not in the first cache each time.
const REQUESTS: usize = 32;

fn levels(format: Format) -> &'static [i32] {
    match format {
        Format::Deflate | Format::Zlib | Format::Gzip => &[1, 3, 6, 9],
        Format::Zstd => &[-5, 1, 3, 9],
        Format::Lz4Block | Format::Lz4Frame => &[-5, 1, 9],
    }
}

/// The files of a directory and below it, one behind the other, in a fixed order.
fn text() -> Vec<u8> {
    fn collect(directory: &Path, text: &mut Vec<u8>) {
        let entries = std::fs::read_dir(directory).expect("a directory of this crate");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                collect(&path, text);
            } else {
                text.extend(std::fs::read(&path).expect("a source"));
            }
        }
    }
    let mut text = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    text
}

/// Code and tables, from somewhere behind the beginning.
fn binary() -> Vec<u8> {
    let program = std::env::current_exe().and_then(std::fs::read).expect("the bench itself");
    let skipped = program.len() / 8;
    program[skipped..].to_vec()
}

/// Pieces of one length.
fn pieces(data: &[u8], len: usize) -> Vec<&[u8]> {
    let all: Vec<_> = data.chunks_exact(len).collect();
    all.iter().copied().cycle().take(REQUESTS).collect()
}

/// Requests of one kind for one engine.
struct Load<'a> {
    op: Op,
    params: Params,
    sources: Vec<Vec<u8>>,
    plain: Vec<&'a [u8]>,
    memory: Vec<u8>,
}

impl<'a> Load<'a> {
    fn compress(params: Params, plain: Vec<&'a [u8]>) -> Self {
        let sources = plain.iter().map(|piece| piece.to_vec()).collect();
        Self::new(Op::Compress, params, sources, plain)
    }

    /// What `load` compresses, by whoever takes it.
    fn decompress(params: Params, plain: Vec<&'a [u8]>) -> Self {
        let mut writer =
            NAMES.iter().filter_map(|name| alone(name)).find(|engine| engine.takes(Op::Compress, &params, 0));
        let writer = writer.as_mut().expect("every format has one");
        let sources = plain.iter().map(|piece| result(&mut **writer, &params, piece)).collect();
        Self::new(Op::Decompress, params, sources, plain)
    }

    fn new(op: Op, params: Params, sources: Vec<Vec<u8>>, plain: Vec<&'a [u8]>) -> Self {
        let memory = vec![0; bound(plain[0].len())];
        Self { op, params, sources, plain, memory }
    }

    fn bytes(&self) -> usize {
        self.plain.iter().map(|piece| piece.len()).sum()
    }

    /// All requests once; bytes produced.
    fn run(&mut self, engine: &mut dyn Engine) -> usize {
        let mut total = 0;
        for source in &self.sources {
            match engine.run(self.op, &self.params, black_box(source), Output::from(&mut self.memory[..])) {
                Outcome::Done { produced, .. } => total += produced,
                other => panic!("{}: {other:?}", engine.name()),
            }
        }
        total
    }

    /// GB a second of uncompressed data: the best of some rounds.
    fn speed(&mut self, engine: &mut dyn Engine) -> f64 {
        self.run(engine);
        let round = |load: &mut Self, engine: &mut dyn Engine| {
            let start = cpu_seconds();
            black_box(load.run(engine));
            cpu_seconds() - start
        };
        let best = (0..15).map(|_| round(self, engine)).fold(f64::MAX, f64::min);
        self.bytes() as f64 / best / 1e9
    }
}

/// Time that this thread had the CPU.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "a clock that the standard library does not have")]
    // SAFETY: the place is ours to write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn result(engine: &mut dyn Engine, params: &Params, src: &[u8]) -> Vec<u8> {
    let mut memory = vec![0; bound(src.len())];
    match engine.compress(params, src, Output::from(&mut memory[..])) {
        Outcome::Done { produced, .. } => memory.truncate(produced),
        other => panic!("{}: {other:?}", engine.name()),
    }
    memory
}

/// Every engine with every request that it takes.
fn each(mut visit: impl FnMut(&mut dyn Engine, Params)) {
    for format in Format::ALL {
        for &level in levels(format) {
            for name in NAMES {
                visit(&mut *alone(name).expect("in the list"), Params::new(format).with_level(level));
            }
        }
    }
}

fn table() {
    let (text, binary) = (text(), binary());
    println!("{:>32} | text: GB/s ratio, inflate | binary: GB/s ratio, inflate", "64 KiB");
    each(|engine, params| {
        let mut line = format!("{:>10} {:>10} {:>3} ", engine.name(), params.format, params.level);
        for data in [&text, &binary] {
            let plain = pieces(data, 64 << 10);
            if engine.takes(Op::Compress, &params, 0) {
                let mut load = Load::compress(params, plain.clone());
                let (speed, len) = (load.speed(engine), load.run(engine));
                line += &format!("| {speed:6.3} {:5.2} ", load.bytes() as f64 / len as f64);
            }
            if engine.takes(Op::Decompress, &params, 0) {
                line += &format!("{:6.3} ", Load::decompress(params, plain).speed(engine));
            }
        }
        if line.contains('|') {
            println!("{line}");
        }
    });
}

fn engines(criterion: &mut Criterion) {
    let text = text();
    each(|engine, params| {
        for len in LENGTHS {
            for op in [Op::Compress, Op::Decompress] {
                if !engine.takes(op, &params, len) {
                    continue;
                }
                let plain = pieces(&text, len);
                let (name, mut load) = match op {
                    Op::Compress => ("compress", Load::compress(params, plain)),
                    Op::Decompress => ("decompress", Load::decompress(params, plain)),
                };
                let mut group =
                    criterion.benchmark_group(format!("{}/{name}/{}", params.format, params.level));
                group.throughput(Throughput::Bytes(load.bytes() as u64));
                group.bench_function(BenchmarkId::new(engine.name(), len), |bencher| {
                    bencher.iter(|| load.run(engine))
                });
                group.finish();
            }
        }
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(300)).sample_size(10);
    targets = engines
}

fn main() {
    if std::env::args().any(|argument| argument == "--table") {
        return table();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
