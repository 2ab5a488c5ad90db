//! What requests work on, and what must come out.

use super::algorithm::{Algorithm, Direction, RSA_DIGEST, Sizes};
use super::library::{Keys, Library, LibraryError};
use crate::blk::access::Random;

/// One request's input and what the device must make of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Initialisation vector.
    pub iv: Vec<u8>,
    /// What the device reads.
    pub src: Vec<u8>,
    /// Destination and digest; `None` when only the library can tell, because it is different each time.
    pub expected: Option<Vec<u8>>,
}

/// Makes samples for one session.
pub struct Samples {
    algorithm: Algorithm,
    direction: Direction,
    sizes: Sizes,
    /// Does what the device is to do.
    forward: Library,
    /// Makes the input of a decryption or verification, and checks signatures.
    backward: Library,
    random: Random,
}

impl Samples {
    /// Samples over `size` bytes, different for each `seed`.
    pub fn new(
        algorithm: Algorithm,
        direction: Direction,
        size: usize,
        keys: &Keys,
        seed: u64,
    ) -> Result<Self, LibraryError> {
        Ok(Self {
            algorithm,
            direction,
            sizes: algorithm.sizes(direction, size),
            forward: Library::new(algorithm, direction, keys)?,
            backward: Library::new(algorithm, direction.inverse(), keys)?,
            random: Random::new(seed),
        })
    }

    /// The next one.
    pub fn make(&mut self) -> Result<Sample, LibraryError> {
        let mut iv = vec![0; self.sizes.iv];
        fill(&mut self.random, &mut iv);
        let src = self.source(&iv)?;
        let repeatable = !matches!((self.algorithm, self.direction), (Algorithm::Ecdsa(_), Direction::Sign));
        let expected = if repeatable { Some(self.compute(&iv, &src)?) } else { None };
        Ok(Sample { iv, src, expected })
    }

    /// Whether `result` is what the device had to make of `sample`. Of a signature, `written` bytes are meant.
    pub fn is_right(&mut self, sample: &Sample, result: &[u8], written: usize) -> bool {
        match &sample.expected {
            Some(expected) => expected == result,
            None => {
                let signature = &result[..written.min(result.len())];
                let signed = [signature, &sample.src].concat();
                self.backward.run(&sample.iv, &signed, &mut []).is_ok()
            }
        }
    }

    fn compute(&mut self, iv: &[u8], src: &[u8]) -> Result<Vec<u8>, LibraryError> {
        let mut out = vec![0; self.sizes.dst + self.sizes.digest];
        let len = self.forward.run(iv, src, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    /// Random bytes; where the input must mean something, what the other direction makes of them.
    fn source(&mut self, iv: &[u8]) -> Result<Vec<u8>, LibraryError> {
        match self.direction {
            Direction::Decrypt => {
                let mut text = vec![0; self.sizes.dst];
                fill(&mut self.random, &mut text);
                below_modulus(self.algorithm, &mut text);
                let mut sealed = vec![0; self.sizes.src + self.sizes.digest];
                self.backward.run(iv, &text, &mut sealed)?;
                sealed.truncate(self.sizes.src);
                Ok(sealed)
            }
            Direction::Verify => self.signed(),
            _ => {
                let mut text = vec![0; self.sizes.src];
                fill(&mut self.random, &mut text);
                if self.direction == Direction::Encrypt {
                    below_modulus(self.algorithm, &mut text);
                }
                Ok(text)
            }
        }
    }

    /// A signature of the length that requests have, and what it signs.
    fn signed(&mut self) -> Result<Vec<u8>, LibraryError> {
        let mut digest = vec![0; self.algorithm.digest_len()];
        let wanted = self.sizes.src - digest.len();
        loop {
            fill(&mut self.random, &mut digest);
            let mut signature = vec![0; self.algorithm.signature_len()];
            let len = self.backward.run(&[], &digest, &mut signature)?;
            // Signatures of ECDSA are shorter now and then.
            if len == wanted {
                return Ok([&signature[..len], &digest].concat());
            }
        }
    }
}

/// Raw RSA takes numbers below the modulus, whose first bit is set.
fn below_modulus(algorithm: Algorithm, text: &mut [u8]) {
    if let (Algorithm::Rsa(_), Some(first)) = (algorithm, text.first_mut()) {
        *first &= 0x7f;
    }
}

/// Keys from the generator of a session, public ones made by the library.
pub fn keys(algorithm: Algorithm, seed: u64) -> Result<Keys, LibraryError> {
    let mut random = Random::new(seed ^ RSA_DIGEST as u64);
    Keys::new(algorithm, |bytes| fill(&mut random, bytes))
}

fn fill(random: &mut Random, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(name: &str, direction: Direction, seed: u64) -> Samples {
        let algorithm: Algorithm = name.parse().unwrap();
        let keys = keys(algorithm, seed).unwrap();
        Samples::new(algorithm, direction, 256, &keys, seed).unwrap()
    }

    #[test]
    fn every_algorithm_has_samples_for_all_it_does() {
        for name in [
            "aes-128-cbc",
            "aes-128-cbc-hmac-sha256",
            "sha512",
            "hmac-sha1",
            "aes-256-gcm",
            "aes-128-ccm",
            "rsa-1024",
            "ecdsa-p256",
        ] {
            let algorithm: Algorithm = name.parse().unwrap();
            for direction in [
                Direction::Encrypt,
                Direction::Decrypt,
                Direction::Sign,
                Direction::Verify,
                Direction::Digest,
            ] {
                if !algorithm.does(direction) {
                    continue;
                }
                let mut samples = samples(name, direction, 3);
                let (one, two) = (samples.make().unwrap(), samples.make().unwrap());
                assert_ne!(one.src, two.src, "{name} {direction:?}");
                assert_eq!(one.src.len(), samples.sizes.src, "{name} {direction:?}");
                let Some(expected) = one.expected.clone() else { continue };
                assert!(samples.is_right(&one, &expected, expected.len()));
                if !expected.is_empty() {
                    assert!(!samples.is_right(&two, &expected, expected.len()), "{name} {direction:?}");
                }
            }
        }
    }

    #[test]
    fn a_signature_that_differs_each_time_is_checked_by_the_library() {
        let mut samples = samples("ecdsa-p256", Direction::Sign, 5);
        let sample = samples.make().unwrap();
        let mut signature = samples.compute(&[], &sample.src).unwrap();
        let written = signature.len();
        signature.resize(72, 0xa5);
        assert!(samples.is_right(&sample, &signature, written));
        signature[10] ^= 1;
        assert!(!samples.is_right(&sample, &signature, written));
    }

    #[test]
    fn the_same_seed_gives_the_same_keys() {
        let algorithm: Algorithm = "aes-256-xts".parse().unwrap();
        assert_eq!(keys(algorithm, 1).unwrap(), keys(algorithm, 1).unwrap());
        assert_ne!(keys(algorithm, 1).unwrap(), keys(algorithm, 2).unwrap());
    }
}
