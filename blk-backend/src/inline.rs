//! Bursts of disks that finish each request at once: memory and null.

use crate::accept::{Refusal, accept, read_ranges, write_id};
use crate::backend::Inline;
use crate::queue::{Env, Lane, Turn};
use crate::request::{Extent, RangeOp, Request, Rules, Status};
use crate::stats::{Fault, OPS, Op};
use memory::{HostRange, MemoryView};
use runtime::cpu::monotonic_ns;
use virtqueue::{Chain, DeviceRing};

/// One burst in so many is timed: reading the clock after each one would cost as much as a request to nothing.
const TIMED: u32 = 16;

/// What a queue keeps from burst to burst.
#[derive(Debug, Default)]
pub struct Scratch {
    chain: Chain,
    bursts: u32,
}

impl Scratch {
    /// Whether this burst is one of those that are timed; the first one is.
    fn timed(&mut self) -> bool {
        let timed = self.bursts.is_multiple_of(TIMED);
        self.bursts = self.bursts.wrapping_add(1);
        timed
    }
}

/// Counters of one burst, added up at its end.
#[derive(Default)]
struct Tally {
    ops: [u32; OPS],
    bytes: [u64; OPS],
}

impl Tally {
    /// Adds the burst to the counters; `took` is its length in nanoseconds where it was timed.
    fn flush(&self, lane: &Lane<'_>, took: Option<u64>) {
        for op in Op::ALL {
            let n = self.ops[op as usize];
            if n > 0 {
                lane.completed(op, n.into(), self.bytes[op as usize]);
                took.into_iter().for_each(|ns| lane.took(op, n.into(), ns));
            }
        }
    }
}

/// Fetches, executes and completes up to a burst of requests; nothing is published. Returns how many.
pub fn burst<R: DeviceRing, B: Inline>(
    lane: &Lane<'_>,
    turn: &mut Turn,
    scratch: &mut Scratch,
    ring: &mut R,
    env: &mut Env<'_>,
    backend: &B,
) -> usize {
    let available = ring.fetch(turn.size(lane.disk));
    if available == 0 {
        return 0;
    }
    let mem = env.epochs.view();
    let rules = lane.disk.rules();
    let timed = scratch.timed();
    let chain = &mut scratch.chain;
    let mut tally = Tally::default();
    let mut done = 0;
    for _ in 0..available {
        if ring.next(mem, chain).is_err() {
            break;
        }
        let request = accept(chain, mem, &rules);
        if turn.held_back(lane, &request, (ring, chain), env.now) {
            break;
        }
        let written = execute(lane, chain, mem, &rules, request, backend, &mut tally);
        ring.complete(mem, chain, written);
        done += 1;
    }
    tally.flush(lane, timed.then(|| monotonic_ns().saturating_sub(env.now)));
    done
}

/// Executes one request and writes its status. Returns the number of bytes written to the guest.
#[inline]
fn execute<B: Inline>(
    lane: &Lane<'_>,
    chain: &mut Chain,
    mem: &MemoryView,
    rules: &Rules<'_>,
    request: Result<Request, Refusal>,
    backend: &B,
    tally: &mut Tally,
) -> u32 {
    let op = request.as_ref().map_or(Op::Other, Request::op);
    let outcome = match request {
        Ok(Request::In(extent)) => {
            tally.bytes[op as usize] += extent.len;
            transfer::<B>(mem, chain.writable(), extent, |at, piece| backend.read(at, piece))
                .map(|()| extent.len as u32)
        }
        Ok(Request::Out(extent)) => {
            tally.bytes[op as usize] += extent.len;
            transfer::<B>(mem, chain.readable(), extent, |at, piece| backend.write(at, piece)).map(|()| 0)
        }
        Ok(Request::Flush) => {
            lane.disk.flush_seen();
            Ok(0)
        }
        Ok(Request::GetId) => write_id(chain, mem, lane.disk),
        Ok(Request::Ranges { op, count }) => ranges(chain, mem, rules, (op, count), backend, tally),
        Err(refusal) => Err(refusal),
    };
    tally.ops[op as usize] += 1;
    lane.answer(op, chain, mem, outcome)
}

#[inline]
fn transfer<B: Inline>(
    mem: &MemoryView,
    segments: &[HostRange],
    extent: Extent,
    mut each: impl FnMut(u64, memory::GuestSlice<'_>) -> Status,
) -> Result<(), Refusal> {
    if B::IGNORES_DATA {
        return Ok(());
    }
    let host = Refusal { status: Some(Status::IoErr), fault: Fault::Host };
    let mut at = extent.offset;
    for segment in segments {
        let piece = mem.reenter(*segment).ok_or(host)?;
        if each(at, piece) != Status::Ok {
            return Err(host);
        }
        at += segment.len as u64;
    }
    Ok(())
}

#[cold]
fn ranges<B: Inline>(
    chain: &mut Chain,
    mem: &MemoryView,
    rules: &Rules<'_>,
    (op, count): (RangeOp, usize),
    backend: &B,
    tally: &mut Tally,
) -> Result<u32, Refusal> {
    let (mut bytes, mut failed) = (0, false);
    read_ranges(chain, mem, rules, (op, count), |range| {
        bytes += range.extent.len;
        failed |= backend.range(op, range.extent) != Status::Ok;
    })?;
    tally.bytes[Op::from(op) as usize] += bytes;
    if failed { Err(Refusal { status: Some(Status::IoErr), fault: Fault::Host }) } else { Ok(0) }
}
