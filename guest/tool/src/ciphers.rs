//! `info --crypto`: the ciphers of a virtio-crypto device, held against published examples.

use guest_driver::crypto::{Cipher, Client, CryptoError, Direction, Options};

use crate::cli::{Device, Info};
use crate::failure::Trouble;

/// An example from NIST SP 800-38A, or IEEE 1619 for XTS.
struct Example {
    cipher: Cipher,
    key: &'static str,
    iv: &'static str,
    plain: &'static str,
    secret: &'static str,
}

const NIST_KEY: &str = "2b7e151628aed2a6abf7158809cf4f3c";
const NIST_PLAIN: &str = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51";

const EXAMPLES: [Example; 4] = [
    Example {
        cipher: Cipher::AesEcb,
        key: NIST_KEY,
        iv: "",
        plain: NIST_PLAIN,
        secret: "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf",
    },
    Example {
        cipher: Cipher::AesCbc,
        key: NIST_KEY,
        iv: "000102030405060708090a0b0c0d0e0f",
        plain: NIST_PLAIN,
        secret: "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2",
    },
    Example {
        cipher: Cipher::AesCtr,
        key: NIST_KEY,
        iv: "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
        plain: NIST_PLAIN,
        secret: "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff",
    },
    Example {
        cipher: Cipher::AesXts,
        key: "1111111111111111111111111111111122222222222222222222222222222222",
        iv: "33333333330000000000000000000000",
        plain: "4444444444444444444444444444444444444444444444444444444444444444",
        secret: "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
    },
];

/// Shows what works.
pub fn run(command: &Info, device: &Device) -> Result<(), Trouble> {
    let options = Options {
        place: device.device.clone(),
        take_from_kernel: command.take,
        deadline: std::time::Duration::from_millis(device.deadline_ms),
        ..Options::default()
    };
    let failed = |error: CryptoError| {
        let text = match error {
            CryptoError::Open(error) => error.in_full(),
            error => error.to_string(),
        };
        Trouble::Error(text)
    };
    let mut client = Client::open(&options).map_err(failed)?;
    println!("device          {}", client.describe());
    let mut wrong = Vec::new();
    for example in &EXAMPLES {
        let named = if client.names(example.cipher) { "" } else { ", although the device does not name it" };
        let name = example.cipher.name();
        match example.holds(&mut client) {
            Ok(true) => println!("{name:<16}works{named}"),
            Ok(false) => {
                println!("{name:<16}gives wrong results");
                wrong.push(name);
            }
            // What a device does not name it need not do.
            Err(error) if !named.is_empty() => println!("{name:<16}no ({error})"),
            Err(error) => {
                println!("{name:<16}fails: {error}");
                wrong.push(name);
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Trouble::Error(format!("the device fails at {}", wrong.join(", "))))
    }
}

impl Example {
    /// Whether the device gets it right, both ways, and many at a time.
    fn holds(&self, client: &mut Client) -> Result<bool, CryptoError> {
        let [key, iv, plain, secret] = [self.key, self.iv, self.plain, self.secret].map(bytes);
        let mut right = true;
        for (direction, from, to) in
            [(Direction::Encrypt, &plain, &secret), (Direction::Decrypt, &secret, &plain)]
        {
            let session = client.session(self.cipher, direction, &key)?;
            right &= client.run(&session, &iv, from)? == *to;
            let mut tickets = Vec::new();
            let requests = [(&iv[..], &from[..]); 8];
            let taken = client.submit_batch(&session, &requests, &mut tickets)?;
            for _ in 0..taken {
                right &= client.wait().is_some_and(|done| done.output == *to);
            }
            client.close(session)?;
        }
        Ok(right)
    }
}

/// What two digits each stand for.
fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_have_the_lengths_of_their_ciphers() {
        for example in &EXAMPLES {
            let [key, iv, plain, secret] =
                [example.key, example.iv, example.plain, example.secret].map(|digits| bytes(digits).len());
            assert_eq!((iv, plain, secret), (example.cipher.iv_len(), 32, 32));
            assert_eq!(key, if example.cipher == Cipher::AesXts { 32 } else { 16 });
        }
    }
}
