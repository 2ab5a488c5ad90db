#![expect(unsafe_code, reason = "AWS-LC's C interface")]
//! The library alone: one request after the other through AWS-LC, as a program in the guest or a serial device would do it.
//!
//! It is what results are checked against, and the serial baseline of every figure.

use std::ptr::{NonNull, null, null_mut};

use aws_lc_sys as lc;

use super::algorithm::{Aead, Algorithm, Curve, Direction, Hash, Mode, TAG};

/// Why the library did not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// A call failed that cannot fail for good input.
    #[error("AWS-LC refused {0}")]
    Refused(&'static str),
    /// Data, tag or signature are not authentic.
    #[error("The data are not authentic")]
    Forged,
}

type Result<T> = std::result::Result<T, LibraryError>;

/// Turns the library's 1 and 0 into a result.
fn done(code: std::os::raw::c_int, what: &'static str) -> Result<()> {
    if code == 1 { Ok(()) } else { Err(LibraryError::Refused(what)) }
}

/// An object of the library, freed when dropped.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

// SAFETY: the objects have no thread affinity; each is used through `&mut` of its only owner, or not at all.
unsafe impl<T> Send for Owned<T> {}

impl<T> Owned<T> {
    fn new(object: *mut T, free: unsafe extern "C" fn(*mut T), what: &'static str) -> Result<Self> {
        let object = NonNull::new(object).ok_or(LibraryError::Refused(what))?;
        Ok(Self { object, free })
    }

    fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by the constructor that belongs to `free`, and freed once.
        unsafe { (self.free)(self.get()) };
    }
}

/// The keys of one session. Public-key algorithms have both halves.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Of the cipher; of a public-key algorithm the DER of the private key.
    pub key: Vec<u8>,
    /// Of the MAC; of a public-key algorithm the encoding of the public key.
    pub other: Vec<u8>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({} and {} bytes)", self.key.len(), self.other.len())
    }
}

impl Keys {
    /// Keys for `algorithm`; symmetric ones come from `random`, others are made by the library.
    pub fn new(algorithm: Algorithm, mut random: impl FnMut(&mut [u8])) -> Result<Self> {
        match algorithm {
            Algorithm::Rsa(bits) => rsa_keys(bits),
            Algorithm::Ecdsa(curve) => ec_keys(curve),
            _ => {
                let (mut key, mut other) = (vec![0; algorithm.key_len()], vec![0; algorithm.auth_key_len()]);
                random(&mut key);
                random(&mut other);
                Ok(Self { key, other })
            }
        }
    }

    /// The half that `direction` works with, as a session is given it.
    pub fn half(&self, direction: Direction) -> &[u8] {
        if direction.is_private() { &self.key } else { &self.other }
    }
}

fn rsa_keys(bits: u16) -> Result<Keys> {
    // SAFETY: constructors without arguments.
    let (rsa, exponent) = unsafe { (lc::RSA_new(), lc::BN_new()) };
    let rsa = Owned::new(rsa, lc::RSA_free, "an RSA key")?;
    let exponent = Owned::new(exponent, lc::BN_free, "a number")?;
    // SAFETY: both objects are valid; there is no callback.
    unsafe {
        done(lc::BN_set_word(exponent.get(), lc::RSA_F4 as lc::BN_ULONG), "65537")?;
        done(
            lc::RSA_generate_key_ex(rsa.get(), bits.into(), exponent.get(), null_mut()),
            "making an RSA key",
        )?;
        Ok(Keys {
            key: encoded(|out| lc::i2d_RSAPrivateKey(rsa.get(), out))?,
            other: encoded(|out| lc::i2d_RSAPublicKey(rsa.get(), out))?,
        })
    }
}

fn ec_keys(curve: Curve) -> Result<Keys> {
    let key = ec_key(curve)?;
    // SAFETY: a valid key of a named curve.
    unsafe {
        done(lc::EC_KEY_generate_key(key.get()), "making an EC key")?;
        Ok(Keys {
            key: encoded(|out| lc::i2d_ECPrivateKey(key.get(), out))?,
            other: encoded(|out| lc::i2o_ECPublicKey(key.get(), out))?,
        })
    }
}

fn ec_key(curve: Curve) -> Result<Owned<lc::EC_KEY>> {
    let nid = match curve {
        Curve::P256 => lc::NID_X9_62_prime256v1,
        Curve::P384 => lc::NID_secp384r1,
    };
    // SAFETY: a constructor; it gives null for an unknown curve.
    Owned::new(unsafe { lc::EC_KEY_new_by_curve_name(nid) }, lc::EC_KEY_free, "a curve")
}

/// Runs one of the library's encoders: once for the length, once for the bytes.
fn encoded(mut encode: impl FnMut(*mut *mut u8) -> std::os::raw::c_int) -> Result<Vec<u8>> {
    let len = usize::try_from(encode(null_mut())).map_err(|_| LibraryError::Refused("encoding a key"))?;
    let mut bytes = vec![0; len];
    let mut out = bytes.as_mut_ptr();
    let written = encode(&mut out);
    if written as usize == len { Ok(bytes) } else { Err(LibraryError::Refused("encoding a key")) }
}

/// One algorithm with its keys, ready for request after request.
pub struct Library(Kind);

enum Kind {
    Cipher(Cipher),
    Chain { cipher: Cipher, mac: Mac, decrypts: bool },
    Hash(&'static lc::EVP_MD),
    Mac(Mac),
    Aead { context: Owned<lc::EVP_AEAD_CTX>, decrypts: bool },
    Ccm { context: Owned<lc::EVP_CIPHER_CTX>, cipher: &'static lc::EVP_CIPHER, key: Vec<u8>, decrypts: bool },
    Rsa { key: Owned<lc::RSA>, direction: Direction },
    Ecdsa { key: Owned<lc::EC_KEY>, signs: bool, digest: usize },
}

impl Library {
    /// Expands the keys.
    pub fn new(algorithm: Algorithm, direction: Direction, keys: &Keys) -> Result<Self> {
        let decrypts = direction == Direction::Decrypt;
        Ok(Self(match algorithm {
            Algorithm::Cipher(mode, bits) => Kind::Cipher(Cipher::new(mode, bits, &keys.key, decrypts)?),
            Algorithm::Chain(bits, hash) => {
                let cipher = Cipher::new(Mode::Cbc, bits, &keys.key, decrypts)?;
                Kind::Chain { cipher, mac: Mac::new(hash, &keys.other)?, decrypts }
            }
            Algorithm::Hash(hash) => Kind::Hash(digest(hash)),
            Algorithm::Mac(hash) => Kind::Mac(Mac::new(hash, &keys.other)?),
            Algorithm::Aead(Aead::Ccm, bits) => {
                Kind::Ccm { context: cipher_context()?, cipher: ccm(bits)?, key: keys.key.clone(), decrypts }
            }
            Algorithm::Aead(aead, bits) => {
                Kind::Aead { context: aead_context(aead, bits, &keys.key)?, decrypts }
            }
            Algorithm::Rsa(_) => {
                Kind::Rsa { key: rsa(keys.half(direction), direction.is_private())?, direction }
            }
            Algorithm::Ecdsa(curve) => {
                let signs = direction == Direction::Sign;
                let key = ec(curve, keys.half(direction), signs)?;
                Kind::Ecdsa { key, signs, digest: algorithm.digest_len() }
            }
        }))
    }

    /// One request: what is written to `out`, destination and digest in one, and its length.
    pub fn run(&mut self, iv: &[u8], src: &[u8], out: &mut [u8]) -> Result<usize> {
        match &mut self.0 {
            Kind::Cipher(cipher) => cipher.run(iv, src, out),
            Kind::Chain { cipher, mac, decrypts } => {
                let (text, digest) = out.split_at_mut(src.len());
                let len = cipher.run(iv, src, text)?;
                Ok(len + mac.run(if *decrypts { src } else { text }, digest)?)
            }
            Kind::Hash(hash) => run_hash(hash, src, out),
            Kind::Mac(mac) => mac.run(src, out),
            Kind::Aead { context, decrypts } => run_aead(context, *decrypts, iv, src, out),
            Kind::Ccm { context, cipher, key, decrypts } => {
                run_ccm(context, cipher, key, *decrypts, (iv, src, out))
            }
            Kind::Rsa { key, direction } => run_rsa(key, *direction, src, out),
            Kind::Ecdsa { key, signs, digest } => run_ecdsa(key, *signs, *digest, src, out),
        }
    }
}

/// A cipher context with its key set.
struct Cipher {
    context: Owned<lc::EVP_CIPHER_CTX>,
}

fn cipher_context() -> Result<Owned<lc::EVP_CIPHER_CTX>> {
    // SAFETY: a constructor.
    Owned::new(unsafe { lc::EVP_CIPHER_CTX_new() }, lc::EVP_CIPHER_CTX_free, "a cipher context")
}

impl Cipher {
    fn new(mode: Mode, bits: u16, key: &[u8], decrypts: bool) -> Result<Self> {
        let context = cipher_context()?;
        // SAFETY: the library's tables; a valid context; the key has the length that the cipher takes.
        unsafe {
            let cipher = match (mode, bits) {
                (Mode::Ecb, 128) => lc::EVP_aes_128_ecb(),
                (Mode::Ecb, 192) => lc::EVP_aes_192_ecb(),
                (Mode::Ecb, _) => lc::EVP_aes_256_ecb(),
                (Mode::Cbc, 128) => lc::EVP_aes_128_cbc(),
                (Mode::Cbc, 192) => lc::EVP_aes_192_cbc(),
                (Mode::Cbc, _) => lc::EVP_aes_256_cbc(),
                (Mode::Ctr, 128) => lc::EVP_aes_128_ctr(),
                (Mode::Ctr, 192) => lc::EVP_aes_192_ctr(),
                (Mode::Ctr, _) => lc::EVP_aes_256_ctr(),
                // AWS-LC has no AES-128-XTS.
                (Mode::Xts, 256) => lc::EVP_aes_256_xts(),
                (Mode::Xts, _) => return Err(LibraryError::Refused("AES-128-XTS, which it does not have")),
            };
            let enc = i32::from(!decrypts);
            done(
                lc::EVP_CipherInit_ex(context.get(), cipher, null_mut(), key.as_ptr(), null(), enc),
                "a cipher key",
            )?;
            done(lc::EVP_CIPHER_CTX_set_padding(context.get(), 0), "no padding")?;
        }
        Ok(Self { context })
    }

    fn run(&mut self, iv: &[u8], src: &[u8], out: &mut [u8]) -> Result<usize> {
        assert!(out.len() >= src.len() && iv.len() <= 16, "a destination as long as its source");
        let mut padded = [0; 16];
        padded[..iv.len()].copy_from_slice(iv);
        let mut len = 0;
        // SAFETY: a context with a key; -1 keeps its direction; `out` has room for `src.len()` bytes, and no mode without
        // padding writes more.
        unsafe {
            let context = self.context.get();
            done(lc::EVP_CipherInit_ex(context, null(), null_mut(), null(), padded.as_ptr(), -1), "an IV")?;
            let (out, src_len) = (out.as_mut_ptr(), src.len() as i32);
            done(
                lc::EVP_CipherUpdate(context, out, &mut len, src.as_ptr(), src_len),
                "the length of the data",
            )?;
        }
        Ok(len as usize)
    }
}

fn digest(hash: Hash) -> &'static lc::EVP_MD {
    // SAFETY: these give the addresses of static tables.
    unsafe {
        &*match hash {
            Hash::Sha1 => lc::EVP_sha1(),
            Hash::Sha224 => lc::EVP_sha224(),
            Hash::Sha256 => lc::EVP_sha256(),
            Hash::Sha384 => lc::EVP_sha384(),
            Hash::Sha512 => lc::EVP_sha512(),
        }
    }
}

fn run_hash(hash: &lc::EVP_MD, src: &[u8], out: &mut [u8]) -> Result<usize> {
    let mut bytes = [0; lc::EVP_MAX_MD_SIZE as usize];
    let mut len = 0;
    // SAFETY: `bytes` has room for the longest digest.
    unsafe {
        done(
            lc::EVP_Digest(src.as_ptr().cast(), src.len(), bytes.as_mut_ptr(), &mut len, hash, null_mut()),
            "a digest",
        )?;
    }
    out[..len as usize].copy_from_slice(&bytes[..len as usize]);
    Ok(len as usize)
}

/// HMAC with its key set.
struct Mac(Owned<lc::HMAC_CTX>);

impl Mac {
    fn new(hash: Hash, key: &[u8]) -> Result<Self> {
        // SAFETY: a constructor.
        let context = Owned::new(unsafe { lc::HMAC_CTX_new() }, lc::HMAC_CTX_free, "an HMAC context")?;
        // SAFETY: a valid context and a key of the length given.
        unsafe {
            done(
                lc::HMAC_Init_ex(context.get(), key.as_ptr().cast(), key.len(), digest(hash), null_mut()),
                "a MAC key",
            )?;
        }
        Ok(Self(context))
    }

    fn run(&mut self, src: &[u8], out: &mut [u8]) -> Result<usize> {
        let mut bytes = [0; lc::EVP_MAX_MD_SIZE as usize];
        let mut len = 0;
        let context = self.0.get();
        // SAFETY: a context with a key, which no key and no hash begin anew with; room for the longest digest.
        unsafe {
            done(lc::HMAC_Init_ex(context, null(), 0, null(), null_mut()), "the same key")?;
            done(lc::HMAC_Update(context, src.as_ptr(), src.len()), "data")?;
            done(lc::HMAC_Final(context, bytes.as_mut_ptr(), &mut len), "a MAC")?;
        }
        out[..len as usize].copy_from_slice(&bytes[..len as usize]);
        Ok(len as usize)
    }
}

fn aead_context(aead: Aead, bits: u16, key: &[u8]) -> Result<Owned<lc::EVP_AEAD_CTX>> {
    // SAFETY: the library's tables; the key has the length that the cipher takes.
    unsafe {
        let aead = match (aead, bits) {
            (Aead::ChaCha20Poly1305, _) => lc::EVP_aead_chacha20_poly1305(),
            (_, 128) => lc::EVP_aead_aes_128_gcm(),
            (_, 192) => lc::EVP_aead_aes_192_gcm(),
            (_, _) => lc::EVP_aead_aes_256_gcm(),
        };
        let context = lc::EVP_AEAD_CTX_new(aead, key.as_ptr(), key.len(), TAG);
        Owned::new(context, lc::EVP_AEAD_CTX_free, "an AEAD key")
    }
}

fn run_aead(
    context: &Owned<lc::EVP_AEAD_CTX>,
    decrypts: bool,
    iv: &[u8],
    src: &[u8],
    out: &mut [u8],
) -> Result<usize> {
    let mut len = 0;
    let run = if decrypts { lc::EVP_AEAD_CTX_open } else { lc::EVP_AEAD_CTX_seal };
    let (room, at) = (out.len(), out.as_mut_ptr());
    // SAFETY: a context with a key; nonce, source and room as long as said; no associated data.
    let code = unsafe {
        run(context.get(), at, &mut len, room, iv.as_ptr(), iv.len(), src.as_ptr(), src.len(), null(), 0)
    };
    if code == 1 { Ok(len) } else { Err(LibraryError::Forged) }
}

fn ccm(bits: u16) -> Result<&'static lc::EVP_CIPHER> {
    // SAFETY: these give the addresses of static tables, or null.
    unsafe {
        let cipher = match bits {
            128 => lc::EVP_aes_128_ccm(),
            192 => lc::EVP_aes_192_ccm(),
            _ => lc::EVP_aes_256_ccm(),
        };
        cipher.as_ref().ok_or(LibraryError::Refused("CCM"))
    }
}

/// CCM wants tag, lengths and data in its own order, and anew for each request.
fn run_ccm(
    context: &Owned<lc::EVP_CIPHER_CTX>,
    cipher: &lc::EVP_CIPHER,
    key: &[u8],
    decrypts: bool,
    (iv, src, out): (&[u8], &[u8], &mut [u8]),
) -> Result<usize> {
    let (text, tag) = if decrypts { src.split_at(src.len() - TAG) } else { (src, &[][..]) };
    assert!(out.len() >= text.len() + if decrypts { 0 } else { TAG }, "room for text and tag");
    let (context, enc, mut len) = (context.get(), i32::from(!decrypts), 0);
    let tag_at = if decrypts { tag.as_ptr().cast_mut().cast() } else { null_mut() };
    // SAFETY: a valid context; key, nonce and tag as long as said; room for text and tag, checked above.
    unsafe {
        done(lc::EVP_CipherInit_ex(context, cipher, null_mut(), null(), null(), enc), "CCM")?;
        let control = |what, len, at| lc::EVP_CIPHER_CTX_ctrl(context, what, len, at);
        done(control(lc::EVP_CTRL_AEAD_SET_IVLEN, iv.len() as i32, null_mut()), "a nonce")?;
        done(control(lc::EVP_CTRL_AEAD_SET_TAG, TAG as i32, tag_at), "a tag")?;
        done(lc::EVP_CipherInit_ex(context, null(), null_mut(), key.as_ptr(), iv.as_ptr(), enc), "a key")?;
        done(lc::EVP_CipherUpdate(context, null_mut(), &mut len, null(), text.len() as i32), "a length")?;
        let code =
            lc::EVP_CipherUpdate(context, out.as_mut_ptr(), &mut len, text.as_ptr(), text.len() as i32);
        if code != 1 {
            return Err(LibraryError::Forged);
        }
        if decrypts {
            return Ok(len as usize);
        }
        let tag = out[text.len()..].as_mut_ptr().cast();
        done(control(lc::EVP_CTRL_AEAD_GET_TAG, TAG as i32, tag), "the tag")?;
    }
    Ok(text.len() + TAG)
}

fn rsa(encoded: &[u8], private: bool) -> Result<Owned<lc::RSA>> {
    // SAFETY: the bytes are as long as said.
    let key = unsafe {
        let (at, len) = (encoded.as_ptr(), encoded.len());
        if private { lc::RSA_private_key_from_bytes(at, len) } else { lc::RSA_public_key_from_bytes(at, len) }
    };
    Owned::new(key, lc::RSA_free, "an RSA key")
}

fn run_rsa(key: &Owned<lc::RSA>, direction: Direction, src: &[u8], out: &mut [u8]) -> Result<usize> {
    let (key, room, mut len) = (key.get(), out.len(), 0);
    // SAFETY: a valid key; `out` has room for a modulus, which the calls are told or, for signing, asserted.
    unsafe {
        assert!(direction != Direction::Sign || room >= lc::RSA_size(key) as usize, "room for a signature");
        let (at, from) = (out.as_mut_ptr(), src.as_ptr());
        match direction {
            Direction::Sign => {
                let mut len = 0;
                done(lc::RSA_sign(lc::NID_sha256, from, src.len(), at, &mut len, key), "a digest")?;
                Ok(len as usize)
            }
            Direction::Verify => {
                let (signature, digest) = src.split_at(lc::RSA_size(key) as usize);
                let (signature_len, digest_len) = (signature.len(), digest.len());
                let code = lc::RSA_verify(
                    lc::NID_sha256,
                    digest.as_ptr(),
                    digest_len,
                    signature.as_ptr(),
                    signature_len,
                    key,
                );
                if code == 1 { Ok(0) } else { Err(LibraryError::Forged) }
            }
            Direction::Decrypt => {
                let code = lc::RSA_decrypt(key, &mut len, at, room, from, src.len(), lc::RSA_NO_PADDING);
                done(code, "a ciphertext").map(|()| len)
            }
            _ => {
                let code = lc::RSA_encrypt(key, &mut len, at, room, from, src.len(), lc::RSA_NO_PADDING);
                done(code, "a number").map(|()| len)
            }
        }
    }
}

fn ec(curve: Curve, encoded: &[u8], private: bool) -> Result<Owned<lc::EC_KEY>> {
    let key = ec_key(curve)?;
    let mut at = encoded.as_ptr();
    let len = encoded.len() as std::os::raw::c_long;
    if !private {
        let mut raw = key.get();
        // SAFETY: a key of a named curve, which takes the point in place; the bytes are as long as said.
        let read = unsafe { lc::o2i_ECPublicKey(&mut raw, &mut at, len) };
        return if read.is_null() { Err(LibraryError::Refused("an EC point")) } else { Ok(key) };
    }
    // SAFETY: the bytes are as long as said; null asks for a new key.
    let key = unsafe { lc::d2i_ECPrivateKey(null_mut(), &mut at, len) };
    Owned::new(key, lc::EC_KEY_free, "an EC key")
}

fn run_ecdsa(
    key: &Owned<lc::EC_KEY>,
    signs: bool,
    digest: usize,
    src: &[u8],
    out: &mut [u8],
) -> Result<usize> {
    let key = key.get();
    // SAFETY: a valid key; `out` has room for the longest signature, asserted; lengths are those of the slices.
    unsafe {
        if signs {
            assert!(out.len() >= lc::ECDSA_size(key), "room for a signature");
            let mut len = 0;
            done(lc::ECDSA_sign(0, src.as_ptr(), src.len(), out.as_mut_ptr(), &mut len, key), "a digest")?;
            return Ok(len as usize);
        }
        let (signature, digest) = src.split_at(src.len() - digest);
        let code =
            lc::ECDSA_verify(0, digest.as_ptr(), digest.len(), signature.as_ptr(), signature.len(), key);
        if code == 1 { Ok(0) } else { Err(LibraryError::Forged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn run(name: &str, keys: &Keys, iv: &[u8], src: &[u8]) -> Vec<u8> {
        let algorithm: Algorithm = name.parse().unwrap();
        let mut library = Library::new(algorithm, algorithm.usual(), keys).unwrap();
        let mut out = vec![0; src.len() + 64];
        let len = library.run(iv, src, &mut out).unwrap();
        out.truncate(len);
        out
    }

    /// NIST SP 800-38A F.2.1 and F.5.1, FIPS 180-4, RFC 4231.
    #[test]
    fn published_vectors_come_out() {
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        let text = hex("6bc1bee22e409f96e93d7e117393172a");
        let keys = Keys { key, other: vec![0x0b; 20] };
        let iv: Vec<u8> = (0..16).collect();
        assert_eq!(run("aes-128-cbc", &keys, &iv, &text), hex("7649abac8119b246cee98e9b12e9197d"));
        let counter: Vec<u8> = (0xf0..=0xff).collect();
        assert_eq!(run("aes-128-ctr", &keys, &counter, &text), hex("874d6191b620e3261bef6864990db6ce"));
        assert_eq!(run("sha1", &keys, &[], b"abc"), hex("a9993e364706816aba3e25717850c26c9cd0d89d"));
        let mac = run("hmac-sha256", &keys, &[], b"Hi There");
        assert_eq!(mac, hex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"));
    }

    #[test]
    fn what_one_direction_does_the_other_undoes() {
        for name in [
            "aes-256-ecb",
            "aes-256-cbc",
            "aes-192-ctr",
            "aes-256-xts",
            "aes-128-gcm",
            "aes-256-ccm",
            "chacha20-poly1305",
            "rsa-2048",
        ] {
            let algorithm: Algorithm = name.parse().unwrap();
            let keys =
                Keys::new(algorithm, |bytes| bytes.iter_mut().zip(7..).for_each(|(byte, n)| *byte = n))
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut there = Library::new(algorithm, Direction::Encrypt, &keys).unwrap();
            let mut back = Library::new(algorithm, Direction::Decrypt, &keys).unwrap();
            let sizes = algorithm.sizes(Direction::Encrypt, 256);
            let mut text: Vec<u8> = (0..sizes.src).map(|n| n as u8).collect();
            text[0] = 0;
            let iv = vec![9; sizes.iv];
            let mut sealed = vec![0; sizes.dst];
            assert_eq!(there.run(&iv, &text, &mut sealed), Ok(sizes.dst), "{name}");
            assert_ne!(sealed[..text.len()], text, "{name}");
            let mut opened = vec![0; text.len()];
            assert_eq!(back.run(&iv, &sealed, &mut opened), Ok(text.len()), "{name}");
            assert_eq!(opened, text, "{name}");
            if matches!(algorithm, Algorithm::Aead(..)) {
                sealed[3] ^= 1;
                assert_eq!(back.run(&iv, &sealed, &mut opened), Err(LibraryError::Forged), "{name}");
            }
        }
    }

    #[test]
    fn signatures_are_valid_for_what_was_signed_and_nothing_else() {
        for name in ["rsa-2048", "ecdsa-p256", "ecdsa-p384"] {
            let algorithm: Algorithm = name.parse().unwrap();
            let keys = Keys::new(algorithm, |_| {}).unwrap();
            let mut signs = Library::new(algorithm, Direction::Sign, &keys).unwrap();
            let mut verifies = Library::new(algorithm, Direction::Verify, &keys).unwrap();
            let digest = vec![0x5a; algorithm.digest_len()];
            let mut signed = vec![0; algorithm.signature_len()];
            let len = signs.run(&[], &digest, &mut signed).unwrap();
            signed.truncate(len);
            signed.extend(&digest);
            assert_eq!(verifies.run(&[], &signed, &mut []), Ok(0), "{name}");
            *signed.last_mut().unwrap() ^= 1;
            assert_eq!(verifies.run(&[], &signed, &mut []), Err(LibraryError::Forged), "{name}");
        }
    }
}
