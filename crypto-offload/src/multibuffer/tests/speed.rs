//! The gate: what the lanes are for.

use std::time::{Duration, Instant};

use super::super::Block;
use super::super::schedule::Schedule;
use super::*;

const REQUESTS: usize = 32;
const LEN: usize = 4096;

/// The shortest of several times: other work on the machine makes them only longer.
fn fastest(mut work: impl FnMut()) -> Duration {
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..30).map(|_| time(&mut work)).min().expect("some")
}

#[test]
fn sixteen_lanes_are_four_times_as_fast_as_the_library() {
    if !Kind::Vaes512.is_available() {
        return;
    }
    let mut buffers = vec![[0u8; LEN]; REQUESTS];
    let ranges: Vec<_> =
        buffers.iter_mut().map(|buffer| [HostRange { base: buffer.as_mut_ptr().cast(), len: LEN }]).collect();
    let mut library = Schedule::ZERO;
    library.expand_with_library(&[1; 16]);
    let serial = fastest(|| {
        for [range] in &ranges {
            // SAFETY: the range is a buffer of our own.
            unsafe { library.encrypt(&mut Block::default(), range.base.cast(), range.base.cast(), LEN) };
        }
    });
    let mut machine = Machine::with(Kind::Vaes512).unwrap();
    let keys: Vec<_> = (0..REQUESTS).map(|i| CbcKey::new(&[i as u8; 16]).unwrap()).collect();
    let lanes = fastest(|| {
        let mut requests: Vec<_> =
            ranges.iter().zip(&keys).map(|(range, key)| request(key, [0; 16], range, range)).collect();
        // SAFETY: the ranges are buffers of our own.
        unsafe { machine.encrypt(&mut requests, &mut |_| ()) };
    });
    assert!(lanes * 4 <= serial, "lanes {lanes:?}, library {serial:?}");
}
