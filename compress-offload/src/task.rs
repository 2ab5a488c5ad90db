//! A request as a unit of work that needs nothing of its guest, and how it is computed.
//!
//! A [`Job`] says what there is to do. The owner of a request computes it where the data are; for others it makes a [`Task`],
//! which has private memory for source and result and, for a request of a stream, the stream itself.

use crate::algorithm::{Op, Params};
use crate::buffers::Buffer;
use crate::checksum;
use crate::engine::{Answer, Engines, Outcome, Output};
use crate::stream::Stream;
use compress_protocol::{Checksum, Direction, Flush, Response, Status, response_flag};

/// What there is to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// All of it at once.
    Whole {
        /// Which way.
        op: Op,
        /// Of what format, and how.
        params: Params,
        /// The result is decompressed again and compared.
        verify: bool,
    },
    /// A checksum of the source.
    Checksum(Checksum),
    /// More of a stream.
    Stream {
        /// Its name on the queue.
        id: u64,
        /// Which way the request goes.
        direction: Direction,
        /// How this part ends.
        flush: Flush,
        /// Of the uncompressed side of this part.
        checksum: Checksum,
    },
}

/// What there is to compute, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What.
    pub work: Work,
    /// Bytes of source.
    pub src_len: usize,
    /// Bytes of room for the result.
    pub dst_len: usize,
}

impl Default for Job {
    fn default() -> Self {
        Self::NOTHING
    }
}

impl Job {
    /// Nothing to compute.
    pub const NOTHING: Self = Self { work: Work::Checksum(Checksum::None), src_len: 0, dst_len: 0 };

    /// What it takes, in bytes: those of the side that is not compressed, as far as they are known.
    #[inline]
    pub fn weight(&self) -> u64 {
        let bytes = match self.work {
            Work::Whole { op: Op::Decompress, .. }
            | Work::Stream { direction: Direction::Decompress, .. } => self.src_len.max(self.dst_len),
            _ => self.src_len,
        };
        bytes as u64
    }

    /// The stream it belongs to.
    #[inline]
    pub fn stream(&self) -> Option<u64> {
        match self.work {
            Work::Stream { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Does it: from `src`, which has [`src_len`](Self::src_len) bytes, to `dst`, which has [`dst_len`](Self::dst_len).
    pub fn compute(
        &self,
        engines: &mut Engines,
        stream: Option<&mut Stream>,
        src: &[u8],
        dst: Output<'_>,
    ) -> Response {
        match (self.work, stream) {
            (Work::Whole { op, params, verify }, _) => whole(engines, op, &params, verify, src, dst),
            (Work::Checksum(kind), _) => {
                let (checksum, consumed) = (checksum::of(kind, src), src.len() as u32);
                Response { checksum, consumed, ..Response::bare(Status::Ok, 0) }
            }
            (Work::Stream { direction, flush, checksum, .. }, Some(stream)) => {
                part(stream, direction, flush, checksum, src, dst)
            }
            (Work::Stream { .. }, None) => Response::bare(Status::BadStream, 0),
        }
    }
}

/// What became of a request, as it is told to the driver.
pub const fn status_of(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Done { .. } => Status::Ok,
        Outcome::Incompressible => Status::Incompressible,
        Outcome::Overflow => Status::Overflow,
        Outcome::BadData => Status::BadData,
        Outcome::Truncated => Status::Truncated,
        Outcome::NotSupported => Status::NotSupported,
        Outcome::Failed => Status::Error,
    }
}

/// The whole of a request at once.
fn whole(
    engines: &mut Engines,
    op: Op,
    params: &Params,
    verify: bool,
    src: &[u8],
    dst: Output<'_>,
) -> Response {
    response_of(engines.run(op, params, verify, src, dst))
}

/// More of a stream.
fn part(
    stream: &mut Stream,
    direction: Direction,
    flush: Flush,
    checksum: Checksum,
    src: &[u8],
    dst: Output<'_>,
) -> Response {
    if stream.direction() != direction {
        return Response::bare(Status::BadStream, 0);
    }
    response_of(stream.run(src, dst, flush, checksum))
}

fn response_of(answer: Answer) -> Response {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(answer.second_engine, response_flag::SECOND_ENGINE)
        | flag(answer.verified, response_flag::VERIFIED)
        | flag(answer.stream_end, response_flag::STREAM_END);
    let (consumed, produced) = match answer.outcome {
        Outcome::Done { consumed, produced } => (consumed as u32, produced as u32),
        _ => (0, 0),
    };
    let status = status_of(answer.outcome).wire();
    Response { status, flags, consumed, produced, checksum: answer.checksum, user_tag: 0 }
}

/// A job with everything that it needs, for whoever computes it.
#[derive(Default)]
pub struct Task {
    /// The request, by its owner's index.
    pub request: u32,
    /// What to do.
    pub job: Job,
    /// Its source.
    pub source: Buffer,
    /// Room for its result.
    pub output: Buffer,
    /// The stream that it is of.
    pub stream: Option<Box<Stream>>,
    /// What became of it; `None`: whoever had it has not come to an end.
    pub response: Option<Response>,
}

impl Task {
    /// Does the job.
    pub fn compute(&mut self, engines: &mut Engines) {
        let Self { job, source, output, stream, response, .. } = self;
        let (src, dst) = (source.front(job.src_len), output.front_mut(job.dst_len));
        *response = Some(job.compute(engines, stream.as_deref_mut(), src, dst.into()));
    }

    /// The result.
    pub fn result(&self) -> &[u8] {
        let produced = self.response.map_or(0, |response| response.produced as usize);
        self.output.front(produced.min(self.job.dst_len))
    }
}
