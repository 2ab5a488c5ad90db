//! A guest's range as the destination.

#![expect(unsafe_code, reason = "memory that somebody else writes to")]

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use memory::HostRange;

use super::*;
use crate::algorithm::Checksum;
use crate::engine::{Choice, Engines, Verify};

/// Memory of a guest, with fences around what is used.
struct Guest(Vec<AtomicU8>);

impl Guest {
    fn new(len: usize) -> Self {
        Self((0..len + 2 * FENCE).map(|_| AtomicU8::new(CANARY)).collect())
    }

    fn range(&self) -> HostRange {
        HostRange { base: self.0[FENCE..].as_ptr().cast_mut().cast(), len: self.0.len() - 2 * FENCE }
    }

    fn read(&self, len: usize) -> Vec<u8> {
        let (before, after) = (&self.0[..FENCE], &self.0[self.0.len() - FENCE..]);
        assert!(
            before.iter().chain(after).all(|byte| byte.load(Ordering::Relaxed) == CANARY),
            "a fence was broken"
        );
        self.0[FENCE..FENCE + len].iter().map(|byte| byte.load(Ordering::Relaxed)).collect()
    }
}

#[test]
fn a_guest_gets_what_private_memory_would_get() {
    let data = text(30_000);
    let mut engines = Engines::new(Choice::Auto, Verify::Off);
    for format in Format::ALL {
        for checksum in [Checksum::None, Checksum::Crc32, Checksum::Xxh64] {
            for verify in [false, true] {
                let params = Params::new(format).with_checksum(checksum);
                let mut memory = vec![0; 40_000];
                let private =
                    engines.run(Op::Compress, &params, verify, &data, Output::from(&mut memory[..]));
                let Outcome::Done { produced, .. } = private.outcome else { panic!("{private:?}") };
                let compressed = &memory[..produced];
                let guest = Guest::new(40_000);
                // SAFETY: the range is there until the end of the test, and is made of atomics.
                let shared = engines
                    .run(Op::Compress, &params, verify, &data, unsafe { Output::guest(guest.range()) });
                assert_eq!(shared, private, "{params:?}");
                assert!(guest.read(produced) == compressed, "{params:?}");
                let guest = Guest::new(data.len());
                // SAFETY: as above.
                let back = engines.run(Op::Decompress, &params, verify, compressed, unsafe {
                    Output::guest(guest.range())
                });
                assert_eq!(back.outcome, Outcome::Done { consumed: produced, produced: data.len() });
                assert_eq!(back.checksum, private.checksum);
                assert!(guest.read(data.len()) == data, "{params:?}");
            }
        }
    }
}

#[test]
fn engines_of_safe_code_never_see_a_guests_range() {
    for name in ["zlib-rs", "lz4_flex"] {
        assert!(
            [Op::Compress, Op::Decompress].into_iter().all(|op| !engine(name).may_write_to_guest(op)),
            "{name}"
        );
    }
    let engines = Engines::new(Choice::ZlibRs, Verify::Off);
    assert!(!engines.may_write_to_guest(Op::Decompress, &Params::new(Format::Gzip), false));
    let engines = Engines::new(Choice::Libdeflate, Verify::Off);
    let gzip = Params::new(Format::Gzip);
    assert!(engines.may_write_to_guest(Op::Decompress, &gzip, false));
    assert!(!engines.may_write_to_guest(Op::Compress, &gzip, true), "verification reads the result");
    assert!(!engines.may_write_to_guest(Op::Decompress, &gzip.with_checksum(Checksum::Xxh64), false));
}

#[test]
fn a_guest_that_writes_to_its_destination_spoils_nothing_but_its_data() {
    let data = [text(60_000), records(30_000)].concat();
    let guest = Guest::new(data.len());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let noise = noise(4_096);
            while !stop.load(Ordering::Relaxed) {
                for (i, byte) in guest.0[FENCE..guest.0.len() - FENCE].iter().enumerate().step_by(7) {
                    byte.store(noise[i % noise.len()], Ordering::Relaxed);
                }
            }
        });
        for format in Format::ALL {
            let compressed = stream(format, &data);
            let mut engines = Engines::new(Choice::Auto, Verify::Off);
            let params = Params::new(format).with_checksum(Checksum::Crc32);
            for _ in 0..30 {
                // SAFETY: the range is there until the end of the test, and is made of atomics.
                let output = unsafe { Output::guest(guest.range()) };
                let answer = engines.run(Op::Decompress, &params, false, &compressed, output);
                let done = Outcome::Done { consumed: compressed.len(), produced: data.len() };
                assert!([done, Outcome::BadData].contains(&answer.outcome), "{format}: {answer:?}");
                // SAFETY: as above.
                let output = unsafe { Output::guest(guest.range()) };
                let answer = engines.run(Op::Compress, &params, false, &data, output);
                assert!(matches!(answer.outcome, Outcome::Done { .. }), "{format}: {answer:?}");
                assert_eq!(answer.checksum, crate::checksum::of(Checksum::Crc32, &data));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    guest.read(0);
}
