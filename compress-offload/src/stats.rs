//! What happened on the queues of a device and with the tasks of a worker: written by the worker that owns them, read by
//! anybody.

use compress_protocol::{Direction, Format, Opcode, Status};
use crossbeam_utils::CachePadded;
use offload::stats::{BatchCounters, BatchSnapshot};
use runtime::stats::{Counter, HistogramSnapshot, Log2Histogram};

/// Number of formats.
const FORMATS: usize = Format::ALL.len();
/// Number of [`Kind`]s.
pub const KINDS: usize = 2 * FORMATS + 5;
/// Number of statuses.
pub const STATUSES: usize = Status::ALL.len();
/// What latencies are told apart by: compressing, decompressing, anything else.
pub const LATENCIES: usize = 3;

/// What a request asks for, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Data, to or from a format.
    Data(Direction, Format),
    /// A checksum and nothing else.
    Checksum,
    /// The configuration.
    GetConfig,
    /// A stream begins.
    Open,
    /// A stream ends.
    Close,
    /// Whatever was refused before that was known, and requests of streams that are none.
    Other,
}

/// Compressing and decompressing, each in the order of the formats, then the rest.
const fn kinds() -> [Kind; KINDS] {
    let mut all = [Kind::Other; KINDS];
    let mut place = 0;
    while place < FORMATS {
        all[place] = Kind::Data(Direction::Compress, Format::ALL[place]);
        all[FORMATS + place] = Kind::Data(Direction::Decompress, Format::ALL[place]);
        place += 1;
    }
    all[2 * FORMATS] = Kind::Checksum;
    all[2 * FORMATS + 1] = Kind::GetConfig;
    all[2 * FORMATS + 2] = Kind::Open;
    all[2 * FORMATS + 3] = Kind::Close;
    all
}

impl Kind {
    /// All, in the order of the counters.
    pub const ALL: [Self; KINDS] = kinds();

    /// Its place among the counters.
    #[inline]
    pub const fn index(self) -> usize {
        match self {
            Self::Data(Direction::Compress, format) => format.index(),
            Self::Data(Direction::Decompress, format) => FORMATS + format.index(),
            Self::Checksum => 2 * FORMATS,
            Self::GetConfig => 2 * FORMATS + 1,
            Self::Open => 2 * FORMATS + 2,
            Self::Close => 2 * FORMATS + 3,
            Self::Other => 2 * FORMATS + 4,
        }
    }

    /// Label of the operation in metrics.
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Data(Direction::Compress, _) => Opcode::Compress.name(),
            Self::Data(Direction::Decompress, _) => Opcode::Decompress.name(),
            Self::Checksum => Opcode::Checksum.name(),
            Self::GetConfig => Opcode::GetConfig.name(),
            Self::Open => Opcode::StreamOpen.name(),
            Self::Close => Opcode::StreamClose.name(),
            Self::Other => "other",
        }
    }

    /// Label of the format in metrics; `none` for what has none.
    pub const fn format(self) -> &'static str {
        match self {
            Self::Data(_, format) => format.name(),
            _ => "none",
        }
    }

    /// The latency histogram it belongs to.
    #[inline]
    pub const fn latency(self) -> usize {
        match self {
            Self::Data(Direction::Compress, _) => 0,
            Self::Data(Direction::Decompress, _) => 1,
            _ => 2,
        }
    }
}

/// Labels of the latency histograms.
pub const LATENCY_NAMES: [&str; LATENCIES] = ["compress", "decompress", "other"];

/// How a request ended, as far as it is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Bytes of source that were used.
    pub consumed: u64,
    /// Bytes of result.
    pub produced: u64,
    /// Another engine than the first gave the result.
    pub second_engine: bool,
    /// The result was decompressed again and compared.
    pub verified: bool,
}

/// Counters of one queue.
#[derive(Debug)]
pub struct QueueCounters {
    /// Requests completed, by [`Kind`], whatever their status.
    pub ops: [Counter; KINDS],
    /// Requests completed with a status other than OK, by [`Kind`].
    pub errors: [Counter; KINDS],
    /// Bytes of source used, by [`Kind`].
    pub bytes_in: [Counter; KINDS],
    /// Bytes of result, by [`Kind`].
    pub bytes_out: [Counter; KINDS],
    /// Requests completed, by status.
    pub statuses: [Counter; STATUSES],
    /// Requests without room for a response.
    pub malformed: Counter,
    /// Requests that were computed at once, without a batch.
    pub inline: Counter,
    /// Requests that another worker has computed.
    pub stolen: Counter,
    /// Results that were written straight to the guest.
    pub direct: Counter,
    /// Results that were decompressed again and compared.
    pub verified: Counter,
    /// Results that another engine than the first gave.
    pub second_engine: Counter,
    /// Requests of streams.
    pub streamed: Counter,
    /// Requests taken over from a process that died.
    pub resubmitted: Counter,
    /// Requests given back to the ring when it stopped before they were begun.
    pub given_back: Counter,
    /// Rounds in which the ring had to leave the rest to others.
    pub throttled: Counter,
    /// Requests in flight on the queue when a burst was taken, the burst included.
    pub depth: Log2Histogram,
    /// Fetch to completion in nanoseconds, by [`Kind::latency`].
    pub latency_ns: [Log2Histogram; LATENCIES],
}

impl Default for QueueCounters {
    fn default() -> Self {
        let counters = || std::array::from_fn(|_| Counter::default());
        Self {
            ops: counters(),
            errors: counters(),
            bytes_in: counters(),
            bytes_out: counters(),
            statuses: std::array::from_fn(|_| Counter::default()),
            malformed: Counter::default(),
            inline: Counter::default(),
            stolen: Counter::default(),
            direct: Counter::default(),
            verified: Counter::default(),
            second_engine: Counter::default(),
            streamed: Counter::default(),
            resubmitted: Counter::default(),
            given_back: Counter::default(),
            throttled: Counter::default(),
            depth: Log2Histogram::default(),
            latency_ns: Default::default(),
        }
    }
}

/// [`QueueCounters`] where no other queue's counters share a cache line.
pub type QueueStats = CachePadded<QueueCounters>;

impl QueueCounters {
    /// Counts a completed request.
    #[inline]
    pub fn completed(&self, kind: Kind, status: Status, ending: Ending) {
        let place = kind.index();
        self.ops[place].add(1);
        self.bytes_in[place].add(ending.consumed);
        self.bytes_out[place].add(ending.produced);
        self.statuses[status as usize].add(1);
        if status != Status::Ok {
            self.errors[place].add(1);
        }
        if ending.verified {
            self.verified.add(1);
        }
        if ending.second_engine {
            self.second_engine.add(1);
        }
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> QueueSnapshot {
        QueueSnapshot {
            ops: self.ops.each_ref().map(Counter::get),
            errors: self.errors.each_ref().map(Counter::get),
            bytes_in: self.bytes_in.each_ref().map(Counter::get),
            bytes_out: self.bytes_out.each_ref().map(Counter::get),
            statuses: self.statuses.each_ref().map(Counter::get),
            malformed: self.malformed.get(),
            inline: self.inline.get(),
            stolen: self.stolen.get(),
            direct: self.direct.get(),
            verified: self.verified.get(),
            second_engine: self.second_engine.get(),
            streamed: self.streamed.get(),
            resubmitted: self.resubmitted.get(),
            given_back: self.given_back.get(),
            throttled: self.throttled.get(),
            depth: self.depth.snapshot(),
            latency_ns: self.latency_ns.each_ref().map(Log2Histogram::snapshot),
        }
    }
}

/// [`QueueCounters`] at one moment; fields as there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the counters")]
pub struct QueueSnapshot {
    pub ops: [u64; KINDS],
    pub errors: [u64; KINDS],
    pub bytes_in: [u64; KINDS],
    pub bytes_out: [u64; KINDS],
    pub statuses: [u64; STATUSES],
    pub malformed: u64,
    pub inline: u64,
    pub stolen: u64,
    pub direct: u64,
    pub verified: u64,
    pub second_engine: u64,
    pub streamed: u64,
    pub resubmitted: u64,
    pub given_back: u64,
    pub throttled: u64,
    pub depth: HistogramSnapshot,
    pub latency_ns: [HistogramSnapshot; LATENCIES],
}

impl QueueSnapshot {
    /// Requests of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.ops[kind.index()]
    }

    /// Requests that ended with one status.
    pub fn status(&self, status: Status) -> u64 {
        self.statuses[status as usize]
    }

    /// Requests in all.
    pub fn total(&self) -> u64 {
        self.ops.iter().sum()
    }

    /// Uncompressed bytes for each compressed one, over all that was compressed to a format; `None`: nothing was.
    pub fn ratio(&self, format: Format) -> Option<f64> {
        let place = Kind::Data(Direction::Compress, format).index();
        let (plain, packed) = (self.bytes_in[place], self.bytes_out[place]);
        (packed > 0).then(|| plain as f64 / packed as f64)
    }

    /// Adds another one, value by value.
    pub fn merge(&mut self, other: &Self) {
        let add = |mine: &mut [u64], theirs: &[u64]| mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        add(&mut self.ops, &other.ops);
        add(&mut self.errors, &other.errors);
        add(&mut self.bytes_in, &other.bytes_in);
        add(&mut self.bytes_out, &other.bytes_out);
        add(&mut self.statuses, &other.statuses);
        self.malformed += other.malformed;
        self.inline += other.inline;
        self.stolen += other.stolen;
        self.direct += other.direct;
        self.verified += other.verified;
        self.second_engine += other.second_engine;
        self.streamed += other.streamed;
        self.resubmitted += other.resubmitted;
        self.given_back += other.given_back;
        self.throttled += other.throttled;
        self.depth.merge(&other.depth);
        self.latency_ns.iter_mut().zip(&other.latency_ns).for_each(|(mine, theirs)| mine.merge(theirs));
    }
}

/// What one worker did with tasks.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// What its batches did.
    pub batches: BatchCounters,
    /// Tasks computed here, its own and others'.
    pub computed: Counter,
    /// Tasks of others that it took.
    pub stolen: Counter,
    /// Tasks of its own that others computed.
    pub lent: Counter,
    /// Workers that it woke to help.
    pub called: Counter,
    /// Requests that wait to be computed now.
    pub waiting: Counter,
    /// Tasks that lie on its shelf or are with others now.
    pub shared: Counter,
    /// Bytes of private memory that wait for their next use.
    pub kept_bytes: Counter,
    /// Time spent computing, in nanoseconds.
    pub compute_ns: Counter,
}

/// [`ServiceCounters`] of one worker, on cache lines of their own.
pub type ServiceStats = CachePadded<ServiceCounters>;

impl ServiceCounters {
    /// A copy of everything.
    pub fn snapshot(&self) -> ServiceSnapshot {
        ServiceSnapshot {
            batches: self.batches.snapshot(),
            computed: self.computed.get(),
            stolen: self.stolen.get(),
            lent: self.lent.get(),
            called: self.called.get(),
            waiting: self.waiting.get(),
            shared: self.shared.get(),
            kept_bytes: self.kept_bytes.get(),
            compute_ns: self.compute_ns.get(),
        }
    }
}

/// [`ServiceCounters`] at one moment; fields as there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the counters")]
pub struct ServiceSnapshot {
    pub batches: BatchSnapshot,
    pub computed: u64,
    pub stolen: u64,
    pub lent: u64,
    pub called: u64,
    pub waiting: u64,
    pub shared: u64,
    pub kept_bytes: u64,
    pub compute_ns: u64,
}

impl ServiceSnapshot {
    /// Adds another one, value by value.
    pub fn merge(&mut self, other: &Self) {
        self.batches.merge(&other.batches);
        self.computed += other.computed;
        self.stolen += other.stolen;
        self.lent += other.lent;
        self.called += other.called;
        self.waiting += other.waiting;
        self.shared += other.shared;
        self.kept_bytes += other.kept_bytes;
        self.compute_ns += other.compute_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_names_are_in_the_same_order() {
        assert!(Kind::ALL.iter().enumerate().all(|(place, kind)| kind.index() == place));
        let mut labels: Vec<_> = Kind::ALL.iter().map(|kind| (kind.operation(), kind.format())).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), KINDS);
        assert!(Status::ALL.iter().enumerate().all(|(place, status)| *status as usize == place));
        assert!(Kind::ALL.iter().all(|kind| kind.latency() < LATENCIES));
    }

    #[test]
    fn a_request_is_counted_by_kind_and_status() {
        let stats = QueueStats::default();
        let gzip = Kind::Data(Direction::Compress, Format::Gzip);
        let ending = Ending { consumed: 3000, produced: 1000, second_engine: true, verified: true };
        stats.completed(gzip, Status::Ok, ending);
        stats.completed(Kind::Other, Status::BadRequest, Ending::default());
        let mut sum = stats.snapshot();
        assert_eq!((sum.of(gzip), sum.bytes_in[gzip.index()], sum.bytes_out[gzip.index()]), (1, 3000, 1000));
        assert_eq!((sum.status(Status::Ok), sum.status(Status::BadRequest)), (1, 1));
        assert_eq!((sum.verified, sum.second_engine), (1, 1));
        sum.merge(&stats.snapshot());
        assert_eq!((sum.total(), sum.ratio(Format::Gzip), sum.ratio(Format::Zstd)), (4, Some(3.0), None));
    }
}
