//! RSA in the guest: a key in the kernel's keyring, which works with the best driver the kernel has. The host's OpenSSL is the
//! judge.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::afalg;
use crate::bed;
use crate::guest::Guest;

/// What is encrypted.
const MESSAGE: &[u8] = b"a key for another cipher, as TLS would send it";
/// The key in the guest's keyring, in a script.
const KEY: &str = "$(keyctl search @u asymmetric rsa)";
/// Digests that are signed, and their lengths. Not SHA-256: Debian's kernel uses it at boot, with RSA of its own.
const DIGESTS: [(&str, usize); 2] = [("sha1", 20), ("sha512", 64)];

/// Encrypts, decrypts, signs and verifies with a new key of `bits`, each way between guest and host. Works in `dir`.
///
/// # Errors
/// When they do not agree, or the guest does not use the device for it.
pub fn agrees_with_the_host(guest: &mut Guest, dir: &Path, bits: u32) -> Result<()> {
    let host = Host { dir };
    host.openssl(&format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:{bits} -out key.pem"))?;
    host.openssl("pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.der")?;
    guest.write("/tmp/key", &host.read("key.der")?)?;
    guest.sh("keyctl padd asymmetric rsa @u < /tmp/key")?;
    encryption(guest, &host).context("Encryption")?;
    for (digest, length) in DIGESTS {
        signatures(guest, &host, digest, length).with_context(|| format!("Signatures over {digest}"))?;
        uses_the_device(guest, digest)?;
    }
    Ok(())
}

fn encryption(guest: &mut Guest, host: &Host<'_>) -> Result<()> {
    host.write("message", MESSAGE)?;
    guest.write("/tmp/message", MESSAGE)?;
    host.openssl("pkeyutl -encrypt -inkey key.pem -in message -out secret")?;
    guest.write("/tmp/secret", &host.read("secret")?)?;
    guest.sh(&format!("keyctl pkey_decrypt {KEY} 0 /tmp/secret enc=pkcs1 > /tmp/plain"))?;
    ensure!(guest.read("/tmp/plain")? == MESSAGE, "the guest decrypts something else");

    guest.sh(&format!("keyctl pkey_encrypt {KEY} 0 /tmp/message enc=pkcs1 > /tmp/secret"))?;
    host.write("secret", &guest.read("/tmp/secret")?)?;
    host.openssl("pkeyutl -decrypt -inkey key.pem -in secret -out plain")?;
    ensure!(host.read("plain")? == MESSAGE, "the host decrypts something else");
    Ok(())
}

fn signatures(guest: &mut Guest, host: &Host<'_>, digest: &str, length: usize) -> Result<()> {
    let value: Vec<u8> = (0..length as u8).map(|index| index.wrapping_mul(37)).collect();
    host.write("digest", &value)?;
    guest.write("/tmp/digest", &value)?;
    let options = format!("enc=pkcs1 hash={digest}");
    guest.sh(&format!("keyctl pkey_sign {KEY} 0 /tmp/digest {options} > /tmp/signature"))?;
    host.write("signature", &guest.read("/tmp/signature")?)?;
    let verify = "pkeyutl -verify -inkey key.pem -in digest -sigfile signature -pkeyopt digest:";
    host.openssl(&format!("{verify}{digest}")).context("The host refuses the guest's signature")?;

    host.openssl(&format!(
        "pkeyutl -sign -inkey key.pem -in digest -out signature -pkeyopt digest:{digest}"
    ))?;
    guest.write("/tmp/signature", &host.read("signature")?)?;
    let verify = format!("keyctl pkey_verify {KEY} 0 /tmp/digest /tmp/signature {options}");
    guest.sh(&verify).context("The guest refuses the host's signature")?;

    let mut other = value;
    other[0] ^= 1;
    guest.write("/tmp/digest", &other)?;
    guest
        .sh(&format!("! {verify} 2> /dev/null"))
        .context("The guest accepts a signature of something else")?;
    Ok(())
}

/// The device pads what is encrypted, as the driver lets it; of a signature it does the arithmetic.
fn uses_the_device(guest: &mut Guest, digest: &str) -> Result<()> {
    let ours = format!("pkcs1pad({},{digest})", afalg::RSA);
    let used = afalg::is_registered(guest, &ours)? && !afalg::is_registered(guest, "pkcs1pad(rsa-generic)")?;
    ensure!(used, "the kernel does it by itself: {}", guest.sh("grep pkcs1 /proc/crypto")?);
    Ok(())
}

/// OpenSSL in a directory of the host.
struct Host<'d> {
    dir: &'d Path,
}

impl Host<'_> {
    fn openssl(&self, words: &str) -> Result<()> {
        let mut command = Command::new(bed::program("openssl")?);
        let output = command.args(words.split_whitespace()).current_dir(self.dir).output()?;
        if !output.status.success() {
            bail!("openssl {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        Ok(fs::write(self.dir.join(name), contents)?)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.dir.join(name)).with_context(|| format!("Cannot read {name}"))
    }
}
