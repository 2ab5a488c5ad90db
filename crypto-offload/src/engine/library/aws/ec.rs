//! ECDSA.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use super::{Failed, check, start};
use crate::algorithm::Curve;
use aws_lc_sys as ffi;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// A key. Does not change: any number of threads may use one.
pub struct EcKey(NonNull<ffi::EC_KEY>);

// SAFETY: the library says that a key may be used by several threads at once as long as nobody changes it.
unsafe impl Send for EcKey {}
// SAFETY: as above.
unsafe impl Sync for EcKey {}

struct Point(NonNull<ffi::EC_POINT>);

impl Drop for Point {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { ffi::EC_POINT_free(self.0.as_ptr()) }
    }
}

impl EcKey {
    /// A key of an `ECPrivateKey` (RFC 5915).
    pub fn private(curve: Curve, der: &[u8]) -> Result<Self, Failed> {
        start().map_err(|_| Failed)?;
        let mut input = MaybeUninit::<ffi::CBS>::uninit();
        // SAFETY: the first call fills in the structure, which then refers to `der`; parsing reads no more than that,
        // and gives a key of its own.
        let (key, left) = unsafe {
            ffi::CBS_init(input.as_mut_ptr(), der.as_ptr(), der.len());
            let mut input = input.assume_init();
            (ffi::EC_KEY_parse_private_key(&raw mut input, group(curve)), input.len)
        };
        let key = Self::own(key)?;
        if left == 0 { Ok(key) } else { Err(Failed) }
    }

    /// A key of a point, compressed or not; fails when it is not on the curve.
    pub fn public(curve: Curve, point: &[u8]) -> Result<Self, Failed> {
        start().map_err(|_| Failed)?;
        // SAFETY: the group is a constant; what is allocated gets an owner at once; the point's bytes are a slice.
        unsafe {
            let place = Point(NonNull::new(ffi::EC_POINT_new(group(curve))).ok_or(Failed)?);
            let (raw, from, len) = (place.0.as_ptr(), point.as_ptr(), point.len());
            check(ffi::EC_POINT_oct2point(group(curve), raw, from, len, ptr::null_mut()))?;
            let key = Self::own(ffi::EC_KEY_new_by_curve_name(match curve {
                Curve::P256 => ffi::NID_X9_62_prime256v1,
                Curve::P384 => ffi::NID_secp384r1,
            }))?;
            check(ffi::EC_KEY_set_public_key(key.0.as_ptr(), raw))?;
            Ok(key)
        }
    }

    fn own(key: *mut ffi::EC_KEY) -> Result<Self, Failed> {
        match NonNull::new(key) {
            Some(key) => Ok(Self(key)),
            None => Err(check(0).expect_err("zero is failure")),
        }
    }

    /// Signs a digest; the signature is DER.
    pub fn sign(&self, digest: &[u8], output: &mut [u8]) -> Result<usize, Failed> {
        // SAFETY: the key is alive.
        let most = unsafe { ffi::ECDSA_size(self.0.as_ptr()) };
        if output.len() < most {
            return Err(Failed);
        }
        let mut len = 0;
        // SAFETY: the key is alive, the digest is a slice, and the output has room for any signature.
        check(unsafe {
            let (to, key) = (output.as_mut_ptr(), self.0.as_ptr());
            ffi::ECDSA_sign(0, digest.as_ptr(), digest.len(), to, &raw mut len, key)
        })?;
        Ok(len as usize)
    }

    /// Checks the signature of a digest.
    pub fn verify(&self, digest: &[u8], signature: &[u8]) -> Result<(), Failed> {
        // SAFETY: the key is alive, and the others are slices.
        check(unsafe {
            let (from, key) = (signature.as_ptr(), self.0.as_ptr());
            ffi::ECDSA_verify(0, digest.as_ptr(), digest.len(), from, signature.len(), key)
        })
    }
}

fn group(curve: Curve) -> *const ffi::EC_GROUP {
    // SAFETY: returns the address of a constant.
    unsafe {
        match curve {
            Curve::P256 => ffi::EC_group_p256(),
            Curve::P384 => ffi::EC_group_p384(),
        }
    }
}

impl Drop for EcKey {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { ffi::EC_KEY_free(self.0.as_ptr()) }
    }
}
