//! A test engine, which fails when it is told to. The model for an engine of one's own.

use super::{Engine, Outcome, Output};
use crate::algorithm::{Op, Params};

/// How an [`Unreliable`] engine fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It says so, and has written nothing.
    Refuses,
    /// It says so, and has filled the destination with something.
    Spoils,
    /// It says that all is well, and one bit of the result is wrong. Only [`Verify`](super::Verify) finds out.
    Lies,
}

/// An engine in front of another one, which fails at every so many-th request.
pub struct Unreliable {
    inner: Box<dyn Engine>,
    fault: Fault,
    every: u64,
    requests: u64,
}

impl Unreliable {
    /// Fails at every `every`-th request that `inner` would do; 0: never.
    pub fn new(inner: Box<dyn Engine>, fault: Fault, every: u64) -> Self {
        Self { inner, fault, every, requests: 0 }
    }

    /// Fails now, if this is a request to fail at.
    fn run_or_fail(&mut self, op: Op, params: &Params, src: &[u8], mut dst: Output<'_>) -> Outcome {
        self.requests += 1;
        if self.every == 0 || !self.requests.is_multiple_of(self.every) {
            return self.inner.run(op, params, src, dst);
        }
        match self.fault {
            Fault::Refuses => Outcome::Failed,
            Fault::Spoils => {
                dst.write(&vec![0xee; dst.len()]);
                Outcome::Failed
            }
            Fault::Lies => self.lie(op, params, src, dst),
        }
    }

    fn lie(&mut self, op: Op, params: &Params, src: &[u8], mut dst: Output<'_>) -> Outcome {
        let mut result = vec![0; dst.len()];
        let outcome = self.inner.run(op, params, src, Output::from(&mut result[..]));
        if let Outcome::Done { produced: produced @ 1.., .. } = outcome {
            result[produced / 2] ^= 0x10;
            dst.write(&result[..produced]);
        }
        outcome
    }
}

impl Engine for Unreliable {
    fn name(&self) -> &'static str {
        "unreliable"
    }

    fn takes(&self, op: Op, params: &Params, len: usize) -> bool {
        self.inner.takes(op, params, len)
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        self.run_or_fail(Op::Compress, params, src, dst)
    }

    fn decompress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        self.run_or_fail(Op::Decompress, params, src, dst)
    }

    fn may_write_to_guest(&self, op: Op) -> bool {
        self.inner.may_write_to_guest(op)
    }
}
