//! Making a ring: the modes older kernels lack, the restrictions, and a ring that stays taken apart.
#![expect(unsafe_code, reason = "the parts of a ring borrow from it for as long as they live")]

use std::io;

use io_uring::register::Restriction;
use io_uring::{Builder, CompletionQueue, IoUring, SubmissionQueue, Submitter, opcode};

/// Submission queue entries: the longest batch of one system call.
const ENTRIES: u32 = 256;
/// A way to set a ring up, and the first kernel that has it.
pub(in crate::io) type Mode = (&'static str, fn(&mut Builder));

/// How rings are set up, best first.
pub(in crate::io) const MODES: [Mode; 3] = [
    ("Linux 6.6", |b| {
        b.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_no_sqarray();
    }),
    ("Linux 6.1", |b| {
        b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    }),
    ("Linux 5.19", |b| {
        b.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    }),
];

/// The only operations this engine submits; the ring refuses all others, whoever got hold of it.
const OPCODES: [u8; 11] = [
    opcode::Nop::CODE,
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::ReadFixed::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
];

/// The only `io_uring_register` operations used after start: FILES_UPDATE, BUFFERS_UPDATE, RING_FDS and
/// UNREGISTER_RING_FDS of `linux/io_uring.h`.
const REGISTER_OPS: [u8; 4] = [6, 16, 20, 21];

/// IOSQE_FIXED_FILE: the only entry flag used.
const FIXED_FILE: u8 = 1;
/// A ring taken apart for good, so that the registered ring descriptor, which the crate keeps in the `Submitter`, is
/// used by every call.
pub(super) struct Parts {
    pub submitter: Submitter<'static>,
    pub sq: SubmissionQueue<'static>,
    pub cq: CompletionQueue<'static>,
    /// Dropped last: fields are dropped in order.
    ring: OwnedRing,
}

struct OwnedRing(*mut IoUring);

impl Drop for OwnedRing {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw`, and the parts that borrow from it were dropped before.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl Parts {
    fn new(ring: IoUring) -> Self {
        let ring = OwnedRing(Box::into_raw(Box::new(ring)));
        // SAFETY: the box lives until `OwnedRing` drops, which is after the parts; nothing else refers to it.
        let (submitter, sq, cq) = unsafe { (*ring.0).split() };
        Self { submitter, sq, cq, ring }
    }

    pub fn params(&self) -> &io_uring::Parameters {
        // SAFETY: the box is alive; the parts do not hold a unique borrow of its parameters.
        unsafe { (*self.ring.0).params() }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // A thread has 16 places for ring descriptors; without one this fails, which is fine.
        let _ = self.submitter.unregister_ring_fd();
    }
}

/// The best ring this kernel gives, still disabled.
pub(super) fn build(depth: u32, modes: &[Mode]) -> io::Result<Parts> {
    let mut refused = io::Error::from(io::ErrorKind::Unsupported);
    for (kernel, mode) in modes {
        let mut builder = IoUring::builder();
        mode(&mut builder);
        builder.dontfork().setup_r_disabled().setup_clamp();
        builder.setup_cqsize(depth.saturating_mul(2).max(2 * ENTRIES));
        match builder.build(ENTRIES) {
            Ok(ring) => {
                tracing::debug!(features_of = kernel, "io_uring is set up");
                return Ok(Parts::new(ring));
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Takes from the ring whatever the engine does not use: operations on a ring are not seen by seccomp.
pub(super) fn restrict(submitter: &Submitter<'_>) {
    let mut allowed: Vec<Restriction> = OPCODES.iter().map(|&op| Restriction::sqe_op(op)).collect();
    allowed.extend(REGISTER_OPS.iter().map(|&op| Restriction::register_op(op)));
    allowed.push(Restriction::sqe_flags_allowed(FIXED_FILE));
    if let Err(error) = submitter.register_restrictions(&mut allowed) {
        tracing::debug!(%error, "The ring cannot be restricted");
    }
}

#[cfg(test)]
mod tests {
    use io_uring::types;

    use super::*;

    #[test]
    fn the_ring_refuses_what_the_engine_never_does() {
        let mut parts = build(8, &MODES).unwrap();
        restrict(&parts.submitter);
        parts.submitter.register_enable_rings().unwrap();
        let allowed = opcode::Nop::new().build().user_data(1);
        let forbidden = opcode::Close::new(types::Fd(-1)).build().user_data(2);
        for entry in [allowed, forbidden] {
            // SAFETY: neither operation has buffers.
            unsafe { parts.sq.push(&entry) }.unwrap();
            parts.sq.sync();
            parts.submitter.submit_and_wait(1).unwrap();
        }
        parts.cq.sync();
        let results: Vec<_> = parts.cq.by_ref().map(|done| (done.user_data(), done.result())).collect();
        assert_eq!(results, [(1, 0), (2, -libc::EACCES)]);
        assert!(parts.submitter.register_eventfd(0).is_err(), "registrations are restricted, too");
        parts.submitter.register_ring_fd().unwrap();
    }
}
