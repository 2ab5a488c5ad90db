//! The requests of one queue, and whether what came back is right.

use std::sync::Arc;

use compress_protocol::{Header, Opcode, Response, Status};
use virtqueue::driver::Segment;

use super::algorithm::Operation;
use super::client::{Completion, Queue, UNTOUCHED};
use super::foreign;
use super::material::{Material, Outputs, Sizes, cut};
use super::options::Load;
use crate::guest::{Finished, Ring, RingError, Verified, Workload};

/// Codes of answers that are wrong in a way that has no status; those of the device are smaller.
mod wrong {
    /// Neither a status nor a length makes sense.
    pub const NONSENSE: u8 = 0xfd;
    /// It belongs to another request.
    pub const ANOTHER: u8 = 0xfe;
    /// It was not written.
    pub const NOT_WRITTEN: u8 = 0xff;
}

/// Name of a code in [`Finished::error`].
pub(super) fn code_name(code: u8) -> &'static str {
    match code {
        wrong::NONSENSE => "an answer that makes no sense",
        wrong::ANOTHER => "the answer to another request",
        wrong::NOT_WRITTEN => "the backend wrote no answer",
        code => Status::from_wire(code.into()).map_or("unknown", Status::name),
    }
}

/// What the queues of a load have in common.
pub struct Shared {
    /// The load.
    pub load: Load,
    /// Its blocks.
    pub material: Material,
    /// Where the input of each of them lies in guest memory.
    pub inputs: Vec<Segment>,
}

/// What a queue has found out.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Bytes of each block when compressed.
    pub sizes: Sizes,
    /// Requests that came back as incompressible, over the whole run.
    pub incompressible: u64,
    /// Answers of a second engine, over the whole run.
    pub second_engine: u64,
    /// Results that were checked.
    pub verified: Verified,
}

/// One queue's part of a load.
pub struct Requests {
    queue: Queue,
    outputs: Outputs,
    shared: Arc<Shared>,
    header: Header,
    /// Block of the next request.
    next: usize,
    /// By slot: block of the request in flight.
    blocks: Vec<usize>,
    /// Makes tags that occur once.
    serial: u64,
    /// By slot: tag of the request in flight.
    tags: Vec<u64>,
    src: Vec<Segment>,
    dst: Vec<Segment>,
    result: Vec<u8>,
    findings: Findings,
}

impl Requests {
    /// Queue `index` of a load. Each queue begins with another block.
    pub fn new(index: u16, queue: Queue, outputs: Outputs, shared: &Arc<Shared>) -> Self {
        let (load, blocks) = (&shared.load, shared.material.len());
        let depth = usize::from(queue.depth());
        Self {
            outputs,
            header: header(load),
            next: blocks * usize::from(index) / usize::from(load.queues),
            blocks: vec![0; depth],
            serial: 0,
            tags: vec![0; depth],
            src: Vec::new(),
            dst: Vec::new(),
            result: Vec::new(),
            findings: Findings {
                sizes: Sizes::new(blocks, shared.material.size()),
                incompressible: 0,
                second_engine: 0,
                verified: Verified::default(),
            },
            shared: Arc::clone(shared),
            queue,
        }
    }

    /// The queue, for an orderly detach, and what was found out.
    pub fn into_parts(self) -> (Queue, Findings) {
        (self.queue, self.findings)
    }

    /// The code of a wrong answer; `None` for one that will do.
    #[inline]
    fn judge(&mut self, completion: &Completion) -> Option<u8> {
        let Completion { slot, response, .. } = completion;
        let block = self.blocks[usize::from(*slot)];
        if response.status == UNTOUCHED {
            return Some(wrong::NOT_WRITTEN);
        }
        if response.user_tag != self.tags[usize::from(*slot)] {
            return Some(wrong::ANOTHER);
        }
        let plain = self.shared.material.size() as u32;
        match response.status() {
            Some(Status::Ok) => {
                let input = self.shared.inputs[block].len;
                let (consumed, most) = (response.consumed, self.header.dst_len);
                if consumed != input || response.produced > most {
                    return Some(wrong::NONSENSE);
                }
                match self.shared.load.op {
                    Operation::Compress => self.findings.sizes.note(block, response.produced),
                    Operation::Decompress => self.findings.sizes.note(block, input),
                    Operation::Checksum => {}
                }
                let second = response.flags & compress_protocol::response_flag::SECOND_ENGINE != 0;
                self.findings.second_engine += u64::from(second);
                None
            }
            // What cannot be compressed is kept as it is.
            Some(Status::Incompressible) if self.shared.load.op == Operation::Compress => {
                self.findings.sizes.note(block, plain);
                self.findings.incompressible += 1;
                None
            }
            _ => Some(response.status.min(u32::from(wrong::NONSENSE)) as u8),
        }
    }

    /// Holds what came back against another implementation.
    #[cold]
    fn check(&mut self, slot: u16, response: &Response) {
        let block = self.blocks[usize::from(slot)];
        self.result.resize(response.produced as usize, 0);
        self.outputs.read(slot, &mut self.result);
        let wrong = match mismatch(&self.shared, block, response, &self.result) {
            None if !self.outputs.is_intact(slot) => {
                Some("something was written behind the destination".to_owned())
            }
            wrong => wrong,
        };
        let load = &self.shared.load;
        self.findings.verified.note(wrong.is_none(), || {
            let (op, format) = (load.op.name(), load.format.name());
            format!("{op} {format}, block {block}: {}", wrong.unwrap_or_default())
        });
    }
}

/// The header of all requests but for the length of the source and the tag.
fn header(load: &Load) -> Header {
    let header = match load.op {
        Operation::Compress => Header::compress(load.format, 0, load.room() as u32),
        Operation::Decompress => Header::decompress(load.format, 0, load.room() as u32),
        Operation::Checksum => Header { opcode: Opcode::Checksum.wire(), ..Header::default() },
    };
    let level = if load.op == Operation::Compress { load.level } else { 0 };
    header.with_level(level).with_checksum(load.checksum).with_flags(load.flags())
}

/// What is wrong with an answer whose status is OK.
fn mismatch(shared: &Shared, block: usize, response: &Response, result: &[u8]) -> Option<String> {
    let (load, plain) = (&shared.load, shared.material.plain(block));
    let restored = match load.op {
        Operation::Compress => match foreign::decode(load.format, result, plain.len()) {
            Ok(restored) => Some(restored),
            Err(error) => return Some(format!("another decoder refuses the result: {error:#}")),
        },
        Operation::Decompress => Some(result.to_vec()),
        Operation::Checksum => None,
    };
    if let Some(restored) = restored
        && restored != plain
    {
        let at = restored.iter().zip(plain).position(|(left, right)| left != right);
        let at = at.unwrap_or(restored.len().min(plain.len()));
        return Some(format!(
            "{} bytes instead of {}, which differ at byte {at}",
            restored.len(),
            plain.len()
        ));
    }
    let expected = foreign::sum(load.checksum, plain);
    (response.checksum != expected)
        .then(|| format!("{} is {:#x} instead of {expected:#x}", load.checksum.name(), response.checksum))
}

impl Workload for Requests {
    fn ring(&mut self) -> &mut Ring {
        &mut self.queue.requests.ring
    }

    fn depth(&self) -> u16 {
        self.queue.depth()
    }

    #[inline]
    fn submit(&mut self, slot: u16) -> bool {
        let block = self.next;
        self.next = if block + 1 < self.shared.inputs.len() { block + 1 } else { 0 };
        self.serial += 1;
        let tag = self.serial << 16 | u64::from(slot);
        (self.blocks[usize::from(slot)], self.tags[usize::from(slot)]) = (block, tag);
        let input = self.shared.inputs[block];
        let header = Header { src_len: input.len, ..self.header }.with_tag(tag);
        self.src.clear();
        self.dst.clear();
        cut(input, self.shared.load.segments, &mut self.src);
        cut(self.outputs.segment(slot), self.shared.load.segments, &mut self.dst);
        self.queue.submit(slot, &header, &self.src, &self.dst);
        true
    }

    #[inline]
    fn harvest(&mut self) -> Result<Option<Finished>, RingError> {
        let Some(completion) = self.queue.harvest()? else { return Ok(None) };
        let error = self.judge(&completion);
        if self.shared.load.verify && error.is_none() && completion.response.is_ok() {
            self.check(completion.slot, &completion.response);
        }
        Ok(Some(Finished { slot: completion.slot, bytes: self.shared.material.size() as u64, error }))
    }
}
