//! What happened on one queue of one disk: written by the worker that owns the queue, read by anybody.

use crossbeam_utils::CachePadded;
use runtime::stats::{Counter, HistogramSnapshot, Log2Histogram};

/// Operations counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Op {
    /// VIRTIO_BLK_T_IN
    Read,
    /// VIRTIO_BLK_T_OUT
    Write,
    /// VIRTIO_BLK_T_FLUSH
    Flush,
    /// VIRTIO_BLK_T_DISCARD
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES
    WriteZeroes,
    /// VIRTIO_BLK_T_SECURE_ERASE
    SecureErase,
    /// VIRTIO_BLK_T_GET_ID
    GetId,
    /// Whatever was refused before it had a type.
    Other,
}

/// Number of [`Op`]s.
pub const OPS: usize = 8;

impl Op {
    /// All, in the order of the counters.
    pub const ALL: [Self; OPS] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::SecureErase,
        Self::GetId,
        Self::Other,
    ];

    /// Label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
            Self::SecureErase => "secure_erase",
            Self::GetId => "get_id",
            Self::Other => "other",
        }
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Fault {
    /// The host's I/O failed: EIO and all that has no line of its own.
    Host,
    /// ENOSPC, EDQUOT or EFBIG.
    NoSpace,
    /// The file is shorter than the disk.
    EndOfFile,
    /// The guest asked for sectors, lengths or alignments there are not, or to write a read-only disk.
    Invalid,
    /// A request type, flag or operation the device does not do.
    Unsupported,
    /// No room for a header or a status.
    Malformed,
}

/// Number of [`Fault`]s.
pub const FAULTS: usize = 6;

impl Fault {
    /// All, in the order of the counters.
    pub const ALL: [Self; FAULTS] =
        [Self::Host, Self::NoSpace, Self::EndOfFile, Self::Invalid, Self::Unsupported, Self::Malformed];

    /// Name in statistics and metrics.
    pub fn metric(self) -> &'static str {
        match self {
            Self::Host => "host_errors",
            Self::NoSpace => "no_space_errors",
            Self::EndOfFile => "end_of_file_errors",
            Self::Invalid => "invalid_requests",
            Self::Unsupported => "unsupported_requests",
            Self::Malformed => "malformed_requests",
        }
    }

    /// The kind of a host error.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            _ => Self::Host,
        }
    }
}

/// Counters of one queue, on cache lines of their own.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Requests completed, by [`Op`].
    pub ops: [Counter; OPS],
    /// Bytes of data, by [`Op`]; for discard and its like the length of the ranges.
    pub bytes: [Counter; OPS],
    /// Requests failed, by [`Fault`].
    pub faults: [Counter; FAULTS],
    /// Requests whose data went through a bounce buffer.
    pub bounced: Counter,
    /// Requests that had to wait for a bounce buffer.
    pub bounce_waits: Counter,
    /// Operations submitted again after EINTR or EAGAIN.
    pub retries: Counter,
    /// Operations continued after a short transfer.
    pub partial: Counter,
    /// Times the queue was held back by a rate limit.
    pub limited: Counter,
    /// Discards the host file does not support; the guest was told it is done, as it is only a hint.
    pub discards_ignored: Counter,
    /// Requests taken over from a process that died.
    pub resubmitted: Counter,
    /// Requests in flight on the queue when a burst was taken, the burst included.
    pub depth: Log2Histogram,
    /// Requests completed with an error status, by [`Op`].
    pub errors: [Counter; OPS],
    /// Fetch to completion in nanoseconds, by [`Op`]: of each request to a file, by the clock read once a round;
    /// of those to memory a sample (`crate::inline`).
    pub latency_ns: [Log2Histogram; OPS],
}

/// [`QueueCounters`] where no other queue's counters share a cache line.
pub type QueueStats = CachePadded<QueueCounters>;

impl QueueCounters {
    /// Counts `n` completed requests of one kind.
    #[inline]
    pub fn completed(&self, op: Op, n: u64, bytes: u64) {
        self.ops[op as usize].add(n);
        self.bytes[op as usize].add(bytes);
    }

    /// Counts a failed request.
    #[cold]
    pub fn failed(&self, fault: Fault) {
        self.faults[fault as usize].add(1);
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> QueueSnapshot {
        QueueSnapshot {
            ops: self.ops.each_ref().map(Counter::get),
            bytes: self.bytes.each_ref().map(Counter::get),
            faults: self.faults.each_ref().map(Counter::get),
            bounced: self.bounced.get(),
            bounce_waits: self.bounce_waits.get(),
            retries: self.retries.get(),
            partial: self.partial.get(),
            limited: self.limited.get(),
            discards_ignored: self.discards_ignored.get(),
            resubmitted: self.resubmitted.get(),
            depth: self.depth.snapshot(),
            errors: self.errors.each_ref().map(Counter::get),
            latency_ns: self.latency_ns.each_ref().map(Log2Histogram::snapshot),
        }
    }
}

/// [`QueueCounters`] at one moment; fields as there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the counters")]
pub struct QueueSnapshot {
    pub ops: [u64; OPS],
    pub bytes: [u64; OPS],
    pub faults: [u64; FAULTS],
    pub bounced: u64,
    pub bounce_waits: u64,
    pub retries: u64,
    pub partial: u64,
    pub limited: u64,
    pub discards_ignored: u64,
    pub resubmitted: u64,
    pub depth: HistogramSnapshot,
    pub errors: [u64; OPS],
    pub latency_ns: [HistogramSnapshot; OPS],
}

impl QueueSnapshot {
    /// Operations of one kind.
    pub fn op(&self, op: Op) -> u64 {
        self.ops[op as usize]
    }

    /// Failures of one kind.
    pub fn fault(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_names_are_in_the_same_order() {
        assert!(Op::ALL.iter().enumerate().all(|(i, op)| *op as usize == i));
        assert!(Fault::ALL.iter().enumerate().all(|(i, fault)| *fault as usize == i));
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        assert_eq!(Fault::of_errno(libc::ENOSPC), Fault::NoSpace);
        assert_eq!(Fault::of_errno(libc::EIO), Fault::Host);
    }
}
