//! `check`: right results, for many lengths, keys and positions in memory.

use anyhow::{Context, Result, ensure};

use crate::af_alg::{Cipher, Direction};
use crate::options::{Drivers, Options};
use guest_tools::random::Random;

/// Every short length, those around pages, and what TLS and IPsec would ask for. The driver describes a buffer of many pages by
/// a number of descriptors that grows with the square, and QEMU's own device takes no more than 1024.
const SIZES: &str = "16-1024/16,1280,1408,2048,3200,4080,4096,4112,8192,12288,16384,32752,32768,65520,65536";

/// Requests start and end up to this far into their buffers, so that they lie across pages in many ways.
const MAX_OFFSET: usize = 4096;

pub fn run(options: &mut Options) -> Result<()> {
    let drivers = options.drivers();
    let sizes = options.sizes(SIZES)?;
    let rounds: u32 = options.number("rounds", 1)?;
    let jobs: u64 = options.number("jobs", 1)?;
    let seed: u64 = options.number("seed", 1)?;
    let keys = match options.number("key", 0)? {
        0 => vec![16, 24, 32],
        length => vec![length],
    };
    options.finish()?;
    let job = |index: u64| {
        let mut random = Random::new(seed + index * 1000);
        for round in 0..rounds {
            for key in &keys {
                one_key(&drivers, &random.bytes(*key), &sizes, &mut random)
                    .with_context(|| format!("Job {index}, round {round}, {key} bytes of key"))?;
            }
        }
        Ok(())
    };
    in_parallel(jobs, job)?;
    println!("requests={}", jobs * u64::from(rounds) * (keys.len() * sizes.len() * 2) as u64);
    Ok(())
}

fn one_key(drivers: &Drivers, key: &[u8], sizes: &[usize], random: &mut Random) -> Result<()> {
    let mut tested = Cipher::new(&drivers.tested, key)?;
    let mut oracle = Cipher::new(&drivers.oracle, key)?;
    for &size in sizes {
        let iv = random.iv();
        let plain = Placed::new(random.bytes(size), random);
        let mut expected = vec![0; size];
        oracle.run(Direction::Encrypt, &iv, plain.bytes(), &mut expected)?;

        let mut result = Placed::new(vec![0xa5; size], random);
        tested.run(Direction::Encrypt, &iv, plain.bytes(), result.bytes_mut())?;
        ensure!(result.bytes() == expected, "{size} bytes are encrypted differently");

        let mut back = Placed::new(vec![0xa5; size], random);
        tested.run(Direction::Decrypt, &iv, result.bytes(), back.bytes_mut())?;
        ensure!(back.bytes() == plain.bytes(), "{size} bytes are decrypted differently");
        ensure!(result.untouched() && back.untouched(), "something beside {size} bytes of result is changed");
    }
    Ok(())
}

/// Bytes somewhere in a buffer whose other bytes must not change.
struct Placed {
    buffer: Vec<u8>,
    offset: usize,
    len: usize,
}

const AROUND: u8 = 0x5a;

impl Placed {
    fn new(bytes: Vec<u8>, random: &mut Random) -> Self {
        let (offset, len) = (random.below(MAX_OFFSET), bytes.len());
        let mut buffer = vec![AROUND; offset + len + random.below(MAX_OFFSET)];
        buffer[offset..][..len].copy_from_slice(&bytes);
        Self { buffer, offset, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.offset..][..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.offset..][..self.len]
    }

    fn untouched(&self) -> bool {
        let (before, rest) = self.buffer.split_at(self.offset);
        before.iter().chain(&rest[self.len..]).all(|byte| *byte == AROUND)
    }
}

/// Runs `job` on that many threads; the first error counts.
pub fn in_parallel<T: Send>(jobs: u64, job: impl Fn(u64) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = (0..jobs).map(|index| scope.spawn(move || job(index))).collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}
