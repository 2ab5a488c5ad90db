//! The same results without a device: the daemon's engines in this process.

use compress_offload::algorithm::{Op, Params};
use compress_offload::engine::{Choice, Engines, Outcome, Verify};
use compress_protocol::{Checksum, Format, Status};

use super::request::{Answer, Operation, Request};

/// Engines, made when they are first needed.
#[derive(Default)]
pub(super) struct Software(Option<Engines>);

impl Software {
    /// Runs a request to its end.
    pub fn run(&mut self, request: &Request<'_>, output: &mut Vec<u8>) -> Answer {
        let (op, format, level) = match request.operation {
            Operation::Compress { format, level } => (Op::Compress, format, level),
            Operation::Decompress { format } => (Op::Decompress, format, 0),
            Operation::Checksum => {
                output.clear();
                let checksum = compress_offload::checksum::of(request.checksum, request.source);
                return Answer { status: Status::Ok, consumed: request.source.len(), checksum };
            }
        };
        let params = params(format, level, request.checksum);
        // Only what an earlier result did not fill is cleared.
        output.resize(request.room, 0);
        let engines = self.0.get_or_insert_with(|| Engines::new(Choice::Auto, Verify::Off));
        let dst = output.as_mut_slice().into();
        let answer = engines.run(op, &params, request.verify, request.source, dst);
        if let Outcome::Done { consumed, produced } = answer.outcome {
            output.truncate(produced);
            return Answer { status: Status::Ok, consumed, checksum: answer.checksum };
        }
        output.clear();
        Answer::failed(status(answer.outcome))
    }
}

/// What a daemon's response would say.
pub(super) fn status(outcome: Outcome) -> Status {
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

/// What the engines are told.
pub(super) fn params(format: Format, level: i32, checksum: Checksum) -> Params {
    Params::new(format).with_level(level).with_checksum(checksum)
}
