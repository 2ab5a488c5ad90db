//! From a chain to what it asks for.
//!
//! The header is copied once; everything is decided on the copy. What makes a header good is said by
//! [`compress_protocol::Request::parse`] alone; here it is held against its chain, and against what the device may take.

use crate::algorithm::{Op, Params};
use crate::options::Verify;
use crate::queue::request::Request;
use crate::stats::Kind;
use crate::task::{Job, Work};
use crate::unit::{Rules, Unit};
use compress_protocol::{Direction, HEADER_LEN, Header, Operation, RESPONSE_LEN, Status};
use memory::MemoryView;

/// What a request asks for that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Something to compute: the request's job.
    Job,
    /// Something that takes no time.
    Now(Now),
}

/// What needs no computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// The configuration.
    GetConfig,
    /// A stream.
    Open(Direction, Params),
    /// The end of a stream.
    Close(u64),
}

/// Why a request is not even tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It gets this.
    Status(Status),
    /// There is no room to say so.
    NoResponse,
}

/// What says whether a request makes sense.
pub struct Intake<'a> {
    /// Its device.
    pub unit: &'a Unit,
    /// As they were when the burst began.
    pub rules: &'a Rules,
    /// The features in force.
    pub features: u64,
    /// Counts the requests that may be verified although they did not ask for it.
    pub verifiable: &'a mut u32,
    /// The guest's memory.
    pub mem: &'a MemoryView,
}

impl Intake<'_> {
    /// Reads and checks a request that was taken.
    #[inline]
    pub fn accept(&mut self, request: &mut Request) -> Result<Accepted, Refusal> {
        let room = request.chain.writable_len().checked_sub(RESPONSE_LEN as u64);
        let room = room.ok_or(Refusal::NoResponse)?;
        let mut header = [0; HEADER_LEN];
        let read = request.chain.read_prefix(self.mem, &mut header);
        read.map_err(|_| Refusal::Status(Status::BadRequest))?;
        let header = Header::decode(&header);
        request.user_tag = header.user_tag;
        let asked = compress_protocol::Request::parse(&header, &self.rules.config, self.features);
        let asked = asked.map_err(Refusal::Status)?;
        request.kind = kind_of(asked.operation);
        if !asked.fits(request.chain.readable_len(), room) {
            return Err(Refusal::Status(Status::BadRequest));
        }
        let accepted = match asked.operation {
            Operation::GetConfig => return Ok(Accepted::Now(Now::GetConfig)),
            Operation::Close { id } => return Ok(Accepted::Now(Now::Close(id))),
            Operation::Open { direction, format, level } => {
                let params = Params::new(format).with_level(level);
                return Ok(Accepted::Now(Now::Open(direction, params)));
            }
            Operation::Compress { format, level, verify } => {
                let verify = self.verifies(verify);
                self.whole(Op::Compress, Params::new(format).with_level(level), verify, &asked)
            }
            Operation::Decompress { format } => {
                self.whole(Op::Decompress, Params::new(format), false, &asked)
            }
            Operation::Checksum => Work::Checksum(asked.checksum),
            Operation::Stream { id, direction, flush } => {
                Work::Stream { id, direction, flush, checksum: asked.checksum }
            }
        };
        let (src_len, dst_len) = (asked.src_len as usize, asked.dst_len as usize);
        request.job = Job { work: accepted, src_len, dst_len };
        self.enter(request)?;
        Ok(Accepted::Job)
    }

    fn whole(&self, op: Op, params: Params, verify: bool, asked: &compress_protocol::Request) -> Work {
        Work::Whole { op, params: params.with_checksum(asked.checksum), verify }
    }

    /// Whether this result is decompressed again and compared.
    fn verifies(&mut self, asked: bool) -> bool {
        match self.rules.limits.verify {
            Verify::Off => asked,
            Verify::All => true,
            Verify::OneIn(requests) => {
                *self.verifiable += 1;
                let its_turn = *self.verifiable >= requests.get();
                if its_turn {
                    *self.verifiable = 0;
                }
                asked || its_turn
            }
        }
    }

    /// Takes the request into account for the memory of its device.
    fn enter(&self, request: &mut Request) -> Result<(), Refusal> {
        let bytes = (request.job.src_len + request.job.dst_len) as u64;
        if !self.unit.enter(bytes, self.rules.limits.max_in_flight) {
            return Err(Refusal::Status(Status::Busy));
        }
        request.held = bytes;
        Ok(())
    }
}

/// What a request is counted as. That of a stream has no format of its own: its direction is what is known.
const fn kind_of(operation: Operation) -> Kind {
    match operation {
        Operation::GetConfig => Kind::GetConfig,
        Operation::Compress { format, .. } => Kind::Data(Direction::Compress, format),
        Operation::Decompress { format } => Kind::Data(Direction::Decompress, format),
        Operation::Checksum => Kind::Checksum,
        Operation::Open { .. } => Kind::Open,
        Operation::Stream { .. } => Kind::Other,
        Operation::Close { .. } => Kind::Close,
    }
}
