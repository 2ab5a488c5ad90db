//! RSA.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use super::{Failed, check, start};
use crate::algorithm::Hash;
use aws_lc_sys as ffi;
use std::ffi::c_int;
use std::ptr::{self, NonNull};

/// The numbers of a key, big-endian. What a public key lacks is empty; a private key may lack the last five.
#[derive(Clone, Copy, Default)]
pub struct Numbers<'a> {
    pub modulus: &'a [u8],
    pub public: &'a [u8],
    pub private: &'a [u8],
    pub primes: [&'a [u8]; 2],
    /// The private exponent for each prime.
    pub exponents: [&'a [u8]; 2],
    /// The inverse of the second prime for the first.
    pub coefficient: &'a [u8],
}

/// A key. Does not change: any number of threads may use one.
pub struct RsaKey(NonNull<ffi::RSA>);

// SAFETY: the library says that a key may be used by several threads at once as long as nobody changes it; what it
// caches in the key it guards with a lock.
unsafe impl Send for RsaKey {}
// SAFETY: as above.
unsafe impl Sync for RsaKey {}

/// A number of the library, in locked memory like all that it allocates.
struct Number(NonNull<ffi::BIGNUM>);

impl Number {
    fn new(bytes: &[u8]) -> Result<Self, Failed> {
        // SAFETY: reads the slice, and allocates a number.
        NonNull::new(unsafe { ffi::BN_bin2bn(bytes.as_ptr(), bytes.len(), ptr::null_mut()) })
            .map(Self)
            .ok_or(Failed)
    }

    fn get(&self) -> *const ffi::BIGNUM {
        self.0.as_ptr()
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        // SAFETY: this is the only owner; the memory is wiped.
        unsafe { ffi::BN_clear_free(self.0.as_ptr()) }
    }
}

impl RsaKey {
    /// A key of these numbers; fails when they are none, which takes about as long as using it once.
    pub fn new(numbers: &Numbers<'_>) -> Result<Self, Failed> {
        start().map_err(|_| Failed)?;
        let [modulus, public] = [Number::new(numbers.modulus)?, Number::new(numbers.public)?];
        // SAFETY: all the numbers live through the calls, which copy them.
        let key = unsafe {
            if numbers.private.is_empty() {
                ffi::RSA_new_public_key(modulus.get(), public.get())
            } else if numbers.coefficient.is_empty() {
                let private = Number::new(numbers.private)?;
                ffi::RSA_new_private_key_no_crt(modulus.get(), public.get(), private.get())
            } else {
                let private = Number::new(numbers.private)?;
                let [p, q] = [Number::new(numbers.primes[0])?, Number::new(numbers.primes[1])?];
                let [dp, dq] = [Number::new(numbers.exponents[0])?, Number::new(numbers.exponents[1])?];
                let coefficient = Number::new(numbers.coefficient)?;
                ffi::RSA_new_private_key(
                    modulus.get(),
                    public.get(),
                    private.get(),
                    p.get(),
                    q.get(),
                    dp.get(),
                    dq.get(),
                    coefficient.get(),
                )
            }
        };
        match NonNull::new(key) {
            Some(key) => Ok(Self(key)),
            None => Err(check(0).expect_err("zero is failure")),
        }
    }

    /// Bytes of the modulus, and of every result at most.
    pub fn len(&self) -> usize {
        // SAFETY: the key is alive.
        unsafe { ffi::RSA_size(self.0.as_ptr()) as usize }
    }

    /// `input` to the power of the public exponent. As long as the modulus, both.
    pub fn public_raw(&self, input: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        self.transform(ffi::RSA_encrypt, ffi::RSA_NO_PADDING, input, output)
    }

    /// `input` to the power of the private exponent. As long as the modulus, both.
    pub fn private_raw(&self, input: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        self.transform(ffi::RSA_decrypt, ffi::RSA_NO_PADDING, input, output)
    }

    /// Encrypts with the padding of PKCS#1 v1.5.
    pub fn encrypt(&self, input: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        self.transform(ffi::RSA_encrypt, ffi::RSA_PKCS1_PADDING, input, output)
    }

    /// Decrypts; fails when the padding is wrong.
    pub fn decrypt(&self, input: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        self.transform(ffi::RSA_decrypt, ffi::RSA_PKCS1_PADDING, input, output)
    }

    /// Signs `input` as it is, with the padding of PKCS#1 v1.5.
    pub fn sign_raw(&self, input: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        self.transform(ffi::RSA_sign_raw, ffi::RSA_PKCS1_PADDING, input, output)
    }

    /// What was signed by [`sign_raw`](Self::sign_raw).
    pub fn recover(&self, signature: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        self.transform(ffi::RSA_verify_raw, ffi::RSA_PKCS1_PADDING, signature, output)
    }

    /// Signs a digest.
    pub fn sign(&self, hash: Hash, digest: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        if output.len() < self.len() {
            return Err(Failed);
        }
        let mut len = 0;
        // SAFETY: the key is alive, the digest is a slice, and the output has room for a signature.
        check(unsafe {
            let key = self.0.as_ptr();
            ffi::RSA_sign(nid(hash), digest.as_ptr(), digest.len(), output.as_mut_ptr(), &raw mut len, key)
        })?;
        Ok(len as usize)
    }

    /// Checks the signature of a digest.
    pub fn verify(&self, hash: Hash, digest: &[u8], signature: &[u8]) -> Result<(), Failed> {
        // SAFETY: the key is alive, and the others are slices.
        check(unsafe {
            let (key, len) = (self.0.as_ptr(), signature.len());
            ffi::RSA_verify(nid(hash), digest.as_ptr(), digest.len(), signature.as_ptr(), len, key)
        })
    }

    fn transform(
        &self,
        operation: Transform,
        padding: c_int,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<usize, Failed> {
        let mut len = 0;
        let (room, from) = (output.len(), input.as_ptr());
        // SAFETY: the key is alive; the operation reads all of `input` and writes to `output` no more than there is
        // room.
        check(unsafe {
            operation(self.0.as_ptr(), &raw mut len, output.as_mut_ptr(), room, from, input.len(), padding)
        })?;
        Ok(len)
    }
}

type Transform =
    unsafe extern "C" fn(*mut ffi::RSA, *mut usize, *mut u8, usize, *const u8, usize, c_int) -> c_int;

fn nid(hash: Hash) -> c_int {
    match hash {
        Hash::Sha1 => ffi::NID_sha1,
        Hash::Sha224 => ffi::NID_sha224,
        Hash::Sha256 => ffi::NID_sha256,
        Hash::Sha384 => ffi::NID_sha384,
        Hash::Sha512 => ffi::NID_sha512,
    }
}

impl Drop for RsaKey {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { ffi::RSA_free(self.0.as_ptr()) }
    }
}
