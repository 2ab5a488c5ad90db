//! `load`: as many requests as the driver takes, each checked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::af_alg::{BLOCK, Cipher, Direction};
use crate::check::in_parallel;
use crate::options::{Drivers, Options};
use guest_tools::random::Random;

/// Different requests that a job repeats; all are made with the oracle before the clock starts.
const SAMPLES: usize = 8;

enum End {
    After(Duration),
    When(PathBuf),
}

impl End {
    fn reached(&self, started: Instant) -> bool {
        match self {
            End::After(time) => started.elapsed() >= *time,
            End::When(path) => path.exists(),
        }
    }
}

pub fn run(options: &mut Options) -> Result<()> {
    let drivers = options.drivers();
    let size: usize = options.number("size", 4096)?;
    let key: usize = options.number("key", 16)?;
    let jobs: u64 = options.number("jobs", 1)?;
    let seed: u64 = options.number("seed", 1)?;
    let end = match options.text("stop") {
        Some(path) => End::When(Path::new(&path).to_owned()),
        None => End::After(Duration::from_secs_f64(options.number("seconds", 5.0)?)),
    };
    options.finish()?;
    let started = Instant::now();
    let latencies = in_parallel(jobs, |index| {
        let mut random = Random::new(seed + index * 1000);
        let mut job = Job::new(&drivers, key, size, &mut random)?;
        job.run(&end).with_context(|| format!("Job {index}"))
    })?;
    report(started.elapsed(), size, latencies.concat());
    Ok(())
}

struct Job {
    cipher: Cipher,
    samples: Vec<Sample>,
    result: Vec<u8>,
}

struct Sample {
    iv: [u8; BLOCK],
    plain: Vec<u8>,
    secret: Vec<u8>,
}

impl Job {
    fn new(drivers: &Drivers, key: usize, size: usize, random: &mut Random) -> Result<Self> {
        let key = random.bytes(key);
        let mut oracle = Cipher::new(&drivers.oracle, &key)?;
        let sample = |_| {
            let mut sample = Sample { iv: random.iv(), plain: random.bytes(size), secret: vec![0; size] };
            oracle.run(Direction::Encrypt, &sample.iv, &sample.plain, &mut sample.secret)?;
            Ok(sample)
        };
        let samples = (0..SAMPLES).map(sample).collect::<Result<_>>()?;
        Ok(Self { cipher: Cipher::new(&drivers.tested, &key)?, samples, result: vec![0; size] })
    }

    /// Returns the latency of each request in microseconds.
    fn run(&mut self, end: &End) -> Result<Vec<u32>> {
        let mut latencies = Vec::new();
        let started = Instant::now();
        for number in 0usize.. {
            if number.is_multiple_of(16) && end.reached(started) {
                break;
            }
            let sample = &self.samples[number / 2 % SAMPLES];
            let (direction, data, expected) = if number.is_multiple_of(2) {
                (Direction::Encrypt, &sample.plain, &sample.secret)
            } else {
                (Direction::Decrypt, &sample.secret, &sample.plain)
            };
            let sent = Instant::now();
            self.cipher
                .run(direction, &sample.iv, data, &mut self.result)
                .with_context(|| format!("Request {number}"))?;
            latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
            ensure!(self.result == *expected, "request {number} has a wrong result");
        }
        Ok(latencies)
    }
}

/// One line of `name=value`.
fn report(took: Duration, size: usize, mut latencies: Vec<u32>) {
    latencies.sort_unstable();
    let part = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    let requests = latencies.len();
    println!(
        "requests={requests} bytes={} seconds={:.3} rate={:.1} p50_us={} p99_us={} longest_us={}",
        requests * size,
        took.as_secs_f64(),
        requests as f64 / took.as_secs_f64(),
        part(0.5),
        part(0.99),
        part(1.0)
    );
}
