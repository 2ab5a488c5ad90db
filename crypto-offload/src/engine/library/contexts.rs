//! Cipher contexts that the workers share with one another without a lock.

#![expect(unsafe_code, reason = "owns contexts through atomic pointers")]

use super::aws::{Context, Failed, Kind};
use crate::algorithm::Direction;
use crate::keys::{self, NoMemory};
use aws_lc_sys::EVP_CIPHER_CTX;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The contexts of a key. A worker takes one for a request and puts it back: an exchange of a pointer each. One that
/// finds none makes another, so that a key has as many as workers ever used it at the same time, and at most
/// [`PLACES`].
pub struct Contexts {
    places: [AtomicPtr<EVP_CIPHER_CTX>; PLACES],
    kind: Kind,
    direction: Direction,
}

/// Places for contexts; each worker looks at its own first.
const PLACES: usize = 4;

impl Contexts {
    /// With one context, so that a first request needs no memory.
    pub(super) fn new(kind: Kind, direction: Direction, key: &[u8]) -> Result<Self, NoMemory> {
        let contexts = Self { places: Default::default(), kind, direction };
        contexts.put(0, Context::new(kind, direction, key)?);
        Ok(contexts)
    }

    /// With none: the first request makes it.
    pub(super) fn none(kind: Kind, direction: Direction) -> Self {
        Self { places: Default::default(), kind, direction }
    }

    /// Does something with a context of this key, which is the same each time. `worker` says where to look first. A
    /// context that failed is not used again.
    pub(super) fn with<R>(
        &self,
        worker: usize,
        key: &[u8],
        job: impl FnOnce(&mut Context) -> Result<R, Failed>,
    ) -> Result<R, Failed> {
        let Some(mut context) = self.take(worker).or_else(|| self.another(key)) else {
            // There is no memory for keys, but some for operations.
            return job(&mut Context::new(self.kind, self.direction, key).map_err(|_| Failed)?);
        };
        let result = job(&mut context)?;
        self.put(worker, context);
        Ok(result)
    }

    /// Another context to keep, while there is memory for keys.
    fn another(&self, key: &[u8]) -> Option<Context> {
        let _building = keys::Building::beside(key);
        Context::new(self.kind, self.direction, key).ok()
    }

    fn take(&self, worker: usize) -> Option<Context> {
        self.from(worker).find_map(|place| {
            // Acquire pairs with the Release of whoever put it there: all of its changes are seen.
            let raw = place.swap(ptr::null_mut(), Ordering::Acquire);
            // SAFETY: what lies in a place came from `into_raw`, and the exchange made this thread its only owner.
            unsafe { Context::from_raw(raw) }
        })
    }

    fn put(&self, worker: usize, context: Context) {
        let raw = context.into_raw();
        let placed = self.from(worker).any(|place| {
            place.compare_exchange(ptr::null_mut(), raw, Ordering::Release, Ordering::Relaxed).is_ok()
        });
        if !placed {
            // SAFETY: nobody took it, so that it is still this thread's.
            drop(unsafe { Context::from_raw(raw) });
        }
    }

    /// The places, the worker's own first.
    fn from(&self, worker: usize) -> impl Iterator<Item = &AtomicPtr<EVP_CIPHER_CTX>> {
        (0..PLACES).map(move |i| &self.places[(worker + i) % PLACES])
    }
}

impl Drop for Contexts {
    fn drop(&mut self) {
        while let Some(context) = self.take(0) {
            drop(context);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(contexts: &Contexts) -> usize {
        contexts.places.iter().filter(|place| !place.load(Ordering::Relaxed).is_null()).count()
    }

    #[test]
    fn one_worker_uses_one_context_over_and_over() {
        let contexts = Contexts::new(Kind::Ecb, Direction::Encrypt, &[1; 16]).expect("memory");
        for _ in 0..10 {
            contexts.with(3, &[1; 16], |_| Ok(())).expect("memory");
            assert_eq!(used(&contexts), 1);
        }
    }

    #[test]
    fn a_context_that_failed_is_not_used_again() {
        let contexts = Contexts::new(Kind::Ecb, Direction::Encrypt, &[1; 16]).expect("memory");
        assert_eq!(contexts.with(0, &[1; 16], |_| Err::<(), _>(Failed)), Err(Failed));
        assert_eq!(used(&contexts), 0);
        contexts.with(0, &[1; 16], |_| Ok(())).expect("another one");
    }

    #[test]
    fn workers_at_the_same_time_have_contexts_of_their_own() {
        let contexts = Contexts::none(Kind::Ecb, Direction::Encrypt);
        fn nest(contexts: &Contexts, depth: usize) -> Result<(), Failed> {
            match depth {
                0 => Ok(()),
                _ => contexts.with(depth, &[1; 16], |_| nest(contexts, depth - 1)),
            }
        }
        nest(&contexts, PLACES + 2).expect("memory");
        assert_eq!(used(&contexts), PLACES, "the rest is freed");
    }
}
