//! How many steps the lanes need, whatever their kernel does in a step. Only where the CPU has AES instructions: keys have
//! otherwise the library's form, which gets no lanes.

use std::cell::Cell;

use proptest::prelude::*;

use super::super::kernel::{Kernel, Keys, serial};
use super::super::machine::Ticket;
use super::super::scheduler::Scheduler;
use super::super::table::Table;
use super::super::{Block, KeySize, cursor};
use super::*;

const LANES: usize = 16;

thread_local! {
    static STEPS: Cell<usize> = const { Cell::new(0) };
    static SHARED: Cell<usize> = const { Cell::new(0) };
}

/// One lane after the other, and counts.
struct Counting;

impl Kernel<LANES> for Counting {
    unsafe fn run(table: &mut Table<LANES>, keys: Keys<'_>, size: KeySize, blocks: usize) {
        STEPS.set(STEPS.get() + blocks);
        SHARED.set(SHARED.get() + usize::from(matches!(keys, Keys::Shared(_))));
        for lane in 0..LANES {
            let round_keys = match keys {
                Keys::Shared(keys) => *keys,
                Keys::PerLane => std::array::from_fn(|round| table.keys[round][lane]),
            };
            let run = cursor::Run { src: table.src[lane], dst: table.dst[lane], blocks };
            let key = CbcKey::from_round_keys(size, round_keys);
            let mut chain: Block = table.chain[lane];
            // SAFETY: the scheduler's promise for its lanes.
            unsafe { serial::encrypt(&key, &mut chain, run) };
            table.chain[lane] = chain;
        }
    }
}

/// Steps that requests of these lengths in blocks take, each with a buffer of its own; the results are checked.
fn steps(blocks: &[usize], key_of: impl Fn(usize) -> u8) -> usize {
    STEPS.set(0);
    let keys: Vec<_> = (0..=u8::MAX).map(|byte| CbcKey::new(&[byte; 16]).unwrap()).collect();
    let mut buffers: Vec<_> = blocks.iter().map(|blocks| vec![0u8; blocks * BLOCK]).collect();
    let ranges: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| [HostRange { base: buffer.as_mut_ptr().cast(), len: buffer.len() }])
        .collect();
    let mut requests: Vec<_> = ranges
        .iter()
        .enumerate()
        .map(|(i, range)| request(&keys[usize::from(key_of(i))], [0; 16], range, range))
        .collect();
    let order: Vec<_> = requests.iter().enumerate().map(|(i, request)| Ticket::new(i, request)).collect();
    let mut table = Table::new().unwrap();
    let mut done = vec![false; blocks.len()];
    let mut tell =
        |index: usize| assert!(!std::mem::replace(&mut done[index], true), "request {index} again");
    let scheduler =
        Scheduler::<Counting, LANES>::new(&mut table, KeySize::Aes128, &mut requests, &order, &mut tell);
    // SAFETY: the ranges are those of the buffers above.
    unsafe { scheduler.run() };
    assert!(done.iter().all(|done| *done), "nobody was told of some");
    assert!(table.keys.iter().flatten().all(|block| *block == Block::default()), "a key was left behind");
    for (i, buffer) in buffers.iter().enumerate() {
        assert!(*buffer == oracle(&[key_of(i); 16], [0; 16], &vec![0; buffer.len()]), "request {i}");
    }
    STEPS.get()
}

#[test]
fn a_long_request_does_not_hold_up_the_short_ones_beside_it() {
    if !Kind::AesNi.is_available() {
        return;
    }
    // The fifteen other lanes do them one after the other.
    let blocks: Vec<_> = (0..1001).map(|i| if i == 0 { 1000 } else { 15 }).collect();
    let steps = steps(&blocks, |_| 1);
    assert!(steps <= 1015, "{steps} steps");
}

#[test]
fn the_last_request_goes_on_without_the_lanes() {
    if !Kind::AesNi.is_available() {
        return;
    }
    assert_eq!(steps(&[100, 20], |_| 1), 20);
    assert_eq!(steps(&[100], |_| 1), 0);
}

#[test]
fn requests_with_one_key_need_no_columns() {
    if !Kind::AesNi.is_available() {
        return;
    }
    SHARED.set(0);
    steps(&[8; 32], |_| 1);
    assert_eq!(SHARED.get(), 2);
    steps(&[8; 32], |i| i as u8);
    assert_eq!(SHARED.get(), 2);
}

proptest! {
    #![proptest_config(cases(64))]

    /// Graham's bound for lists of jobs: it holds for every order, but only if no lane is idle while a job waits.
    #[test]
    fn no_lane_is_idle_while_a_request_waits(
        blocks in proptest::collection::vec(prop_oneof![4 => 1usize..30, 1 => 1usize..600], 1..80),
        keys in 1usize..20,
    ) {
        prop_assume!(Kind::AesNi.is_available());
        let total: usize = blocks.iter().sum();
        let longest = blocks.iter().max().copied().unwrap_or(0);
        let steps = steps(&blocks, |i| (i % keys) as u8);
        prop_assert!(steps <= total / LANES + longest, "{} steps for {:?}", steps, blocks);
    }
}
