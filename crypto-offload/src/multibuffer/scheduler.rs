//! Keeps the lanes of a kernel full.
//!
//! A kernel encrypts the same number of blocks in each of its lanes, so it is asked for as many as the shortest run
//! has; then that lane gets the next run of its request, or the next request. No lane is idle while a request waits.
//! At the end, when none waits any more, lanes fall idle one after the other: longest requests first makes that end
//! short, and the last one left goes on alone.
#![expect(unsafe_code, reason = "hands runs of guest memory to the kernels")]

use std::marker::PhantomData;

use super::cursor::{Piece, Run};
use super::kernel::{Kernel, Keys, serial};
use super::machine::Ticket;
use super::request::Request;
use super::table::{SCRATCH_BLOCKS, Table};
use super::{BLOCK, CbcKey, KeySize};

/// A run in the middle of a request that is shorter is encrypted on the spot: it would make every lane stop after
/// as many blocks. A cache line.
const SHORTEST_RUN: usize = 4;

/// The requests of one key size, and the lanes that work on them.
pub(super) struct Scheduler<'r, K, const N: usize> {
    table: &'r mut Table<N>,
    size: KeySize,
    requests: &'r mut [Request],
    /// Which of `requests`, in the order in which they get a lane.
    waiting: std::slice::Iter<'r, Ticket>,
    /// Is told of each request as soon as it is encrypted.
    done: &'r mut dyn FnMut(usize),
    lanes: [Lane; N],
    live: usize,
    kernel: PhantomData<K>,
}

/// What a lane does.
#[derive(Clone, Copy)]
struct Lane {
    /// Index of its request; meaningless while idle.
    request: u32,
    /// Blocks left of its run; 0 in an idle lane.
    blocks: usize,
}

impl<'r, K: Kernel<N>, const N: usize> Scheduler<'r, K, N> {
    /// For the requests in `order`, whose keys all have the given size and round keys. `done` gets the index of each one.
    pub(super) fn new(
        table: &'r mut Table<N>,
        size: KeySize,
        requests: &'r mut [Request],
        order: &'r [Ticket],
        done: &'r mut dyn FnMut(usize),
    ) -> Self {
        // Nothing to do, unless a call before this one panicked.
        table.wipe();
        let lanes = [Lane { request: 0, blocks: 0 }; N];
        Self { table, size, requests, waiting: order.iter(), done, lanes, live: 0, kernel: PhantomData }
    }

    /// Encrypts all of them.
    ///
    /// # Safety
    /// The requests' ranges can be read and written, and the CPU has the kernel's instructions.
    pub(super) unsafe fn run(mut self) {
        // SAFETY: the caller's promises, handed on.
        unsafe {
            for lane in 0..N {
                self.refill(lane);
            }
            while self.live > 1 {
                self.step();
            }
            self.finish_alone();
        }
        self.table.wipe();
    }

    /// One call of the kernel, and new work for the lanes that it emptied.
    ///
    /// # Safety
    /// As for [`Scheduler::run`]; a lane is live.
    unsafe fn step(&mut self) {
        let blocks = self.common_blocks();
        let keys = keys_of(self.table, &self.lanes, self.requests);
        // SAFETY: a live lane has at least as many blocks left of its run, an idle one has the scratch buffer.
        unsafe { K::run(self.table, keys, self.size, blocks) };
        for lane in 0..N {
            if self.lanes[lane].blocks == 0 {
                continue;
            }
            self.lanes[lane].blocks -= blocks;
            if self.lanes[lane].blocks > 0 {
                self.table.advance(lane, blocks);
            } else {
                self.live -= 1;
                // SAFETY: the caller's promise.
                unsafe { self.go_on(lane) };
            }
        }
    }

    /// Blocks that every lane can do.
    fn common_blocks(&self) -> usize {
        let limit = if self.live < N { SCRATCH_BLOCKS } else { usize::MAX };
        let left = self.lanes.iter().map(|lane| lane.blocks).filter(|&blocks| blocks > 0);
        left.fold(limit, usize::min)
    }

    /// The lane's request goes on with its next run, or is done, and the lane takes another.
    ///
    /// # Safety
    /// As for [`Scheduler::run`].
    unsafe fn go_on(&mut self, lane: usize) {
        let request = self.lanes[lane].request;
        let (_, chain, _) = self.requests[request as usize].parts();
        *chain = self.table.chain[lane];
        // SAFETY: the caller's promise.
        unsafe {
            match next_run(&mut self.requests[request as usize]) {
                Some(run) => self.start(lane, request, run),
                None => {
                    (self.done)(request as usize);
                    self.refill(lane);
                }
            }
        }
    }

    /// Gives an empty lane the next request, if there is one.
    ///
    /// # Safety
    /// As for [`Scheduler::run`].
    unsafe fn refill(&mut self, lane: usize) {
        for &Ticket { request, .. } in self.waiting.by_ref() {
            // SAFETY: the caller's promise.
            if let Some(run) = unsafe { next_run(&mut self.requests[request as usize]) } {
                return self.start(lane, request, run);
            }
            (self.done)(request as usize);
        }
        self.table.idle(lane);
    }

    fn start(&mut self, lane: usize, request: u32, run: Run) {
        self.table.chain[lane].0 = self.requests[request as usize].chain();
        self.table.point(lane, run);
        self.lanes[lane] = Lane { request, blocks: run.blocks };
        self.live += 1;
    }

    /// The last live lane needs no others beside it.
    ///
    /// # Safety
    /// As for [`Scheduler::run`]; at most one lane is live, and no request waits.
    unsafe fn finish_alone(&mut self) {
        let Some(lane) = (0..N).find(|&lane| self.lanes[lane].blocks > 0) else { return };
        let rest =
            Run { src: self.table.src[lane], dst: self.table.dst[lane], blocks: self.lanes[lane].blocks };
        let index = self.lanes[lane].request as usize;
        let request = &mut self.requests[index];
        let (key, chain, _) = request.parts();
        *chain = self.table.chain[lane];
        // SAFETY: the rest of the lane's run, then the rest of its request: the caller's promise.
        unsafe {
            serial::encrypt(key, chain, rest);
            encrypt_alone(request);
        }
        (self.done)(index);
    }
}

/// The key that all live lanes have, or each lane's own in its column.
fn keys_of<'r, const N: usize>(table: &mut Table<N>, lanes: &[Lane; N], requests: &'r [Request]) -> Keys<'r> {
    let live = || (0..N).filter(|&lane| lanes[lane].blocks > 0);
    let key_of = |lane: usize| requests[lanes[lane].request as usize].key();
    let round_keys = |key: &'r CbcKey| key.round_keys().expect("only such requests get lanes");
    let first = key_of(live().next().expect("a live lane"));
    if live().all(|lane| std::ptr::eq(key_of(lane), first)) {
        return Keys::Shared(round_keys(first));
    }
    for lane in live() {
        let key = key_of(lane);
        table.set_key(lane, key, round_keys(key));
    }
    Keys::PerLane
}

/// Encrypts one request, or what is left of it, by itself.
///
/// # Safety
/// The request's ranges can be read and written.
pub(super) unsafe fn encrypt_alone(request: &mut Request) {
    let (key, chain, cursor) = request.parts();
    while let Some(piece) = cursor.next_piece() {
        // SAFETY: the caller's promise; the cursor gives runs that a kernel may read ahead in.
        unsafe {
            match piece {
                Piece::Run(run) => serial::encrypt(key, chain, run),
                Piece::Copy => cursor.through_copy(|block| serial::encrypt_block(key, chain, block)),
            }
        }
    }
}

/// The request's next run that is worth a lane; what comes before it is encrypted here.
///
/// # Safety
/// The request's ranges can be read and written.
unsafe fn next_run(request: &mut Request) -> Option<Run> {
    let (key, chain, cursor) = request.parts();
    let whole = cursor.remaining();
    while let Some(piece) = cursor.next_piece() {
        // SAFETY: the caller's promise; the cursor gives runs that a kernel may read ahead in.
        unsafe {
            match piece {
                Piece::Run(run) if run.blocks >= SHORTEST_RUN || run.blocks * BLOCK == whole => {
                    return Some(run);
                }
                Piece::Run(run) => serial::encrypt(key, chain, run),
                Piece::Copy => cursor.through_copy(|block| serial::encrypt_block(key, chain, block)),
            }
        }
    }
    None
}
