//! `sessions`: each key is a pair of sessions of the device. Many are made and closed while others stay in use.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};

use crate::af_alg::{BLOCK, Cipher, Direction};
use crate::check::in_parallel;
use crate::options::{Drivers, Options};
use guest_tools::random::Random;

pub fn run(options: &mut Options) -> Result<()> {
    let drivers = options.drivers();
    let count: u64 = options.number("count", 1000)?;
    let kept: usize = options.number("kept", 64)?;
    let jobs: u64 = options.number("jobs", 1)?;
    let seed: u64 = options.number("seed", 1)?;
    let length: usize = options.number("key", 16)?;
    options.finish()?;
    in_parallel(jobs, |index| {
        let mut random = Random::new(seed + index * 1000);
        let mut in_use = VecDeque::new();
        for number in 0..count / jobs {
            in_use.push_back(Keyed::new(&drivers, &random.bytes(length), &mut random)?);
            if in_use.len() > kept.max(1) {
                in_use.pop_front();
            }
            // The oldest one as well as the newest: its session is still its own.
            for session in [0, in_use.len() - 1] {
                in_use[session].works().with_context(|| format!("Job {index}, key {number}"))?;
            }
        }
        Ok(())
    })?;
    println!("keys={count}");
    Ok(())
}

/// A key, and a block with what it makes of it.
struct Keyed {
    cipher: Cipher,
    iv: [u8; BLOCK],
    plain: Vec<u8>,
    expected: [u8; BLOCK],
}

impl Keyed {
    fn new(drivers: &Drivers, key: &[u8], random: &mut Random) -> Result<Self> {
        let cipher = Cipher::new(&drivers.tested, key)?;
        let (iv, plain) = (random.iv(), random.bytes(BLOCK));
        let mut expected = [0; BLOCK];
        Cipher::new(&drivers.oracle, key)?.run(Direction::Encrypt, &iv, &plain, &mut expected)?;
        Ok(Self { cipher, iv, plain, expected })
    }

    fn works(&mut self) -> Result<()> {
        let mut result = [0; BLOCK];
        self.cipher.run(Direction::Encrypt, &self.iv, &self.plain, &mut result)?;
        ensure!(result == self.expected, "the block is encrypted with another key");
        self.cipher.run(Direction::Decrypt, &self.iv, &self.expected, &mut result)?;
        ensure!(result[..] == self.plain, "the block is decrypted with another key");
        Ok(())
    }
}
