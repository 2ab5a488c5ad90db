//! Buffers that overlap themselves: what is right where it can be, and elsewhere at least inside of the buffers.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

use super::*;

/// What encryption does block by block: read one whole, encrypt it, write it, then the next.
fn model(key: &[u8; 16], mut chain: [u8; BLOCK], memory: &mut [u8], src: usize, dst: usize, len: usize) {
    let cipher = Aes128::new(&Array(*key));
    for at in (0..len).step_by(BLOCK) {
        for (chain, byte) in chain.iter_mut().zip(&memory[src + at..]) {
            *chain ^= byte;
        }
        cipher.encrypt_block(<&mut Array<u8, _>>::from(&mut chain));
        memory[dst + at..][..BLOCK].copy_from_slice(&chain);
    }
}

/// How far kernels read ahead of what they write.
const READ_AHEAD: usize = 128;

#[test]
fn overlapping_buffers_are_written_to_and_nothing_else() {
    const LEN: usize = 400;
    for kind in kinds() {
        let mut machine = Machine::with(kind).unwrap();
        // Pairs of requests, so that the lanes are used: both of the same shape, in buffers of their own.
        for dst in 0..600 {
            let src = 300;
            let start: Vec<u8> = (0..1000).map(|i| (i * 13 + dst) as u8).collect();
            let mut buffers = [start.clone(), start.clone()];
            let keys = [CbcKey::new(&[1; 16]).unwrap(), CbcKey::new(&[2; 16]).unwrap()];
            let ranges = buffers.each_mut().map(|buffer| {
                let at = |offset: usize, base: *mut u8| HostRange {
                    base: base.wrapping_add(offset).cast(),
                    len: LEN,
                };
                let base = buffer.as_mut_ptr();
                ([at(src, base)], [at(dst, base)])
            });
            let mut requests: Vec<_> =
                (0..2).map(|i| request(&keys[i], [i as u8; 16], &ranges[i].0, &ranges[i].1)).collect();
            // SAFETY: the ranges are in the buffers above.
            unsafe { machine.encrypt(&mut requests, &mut |_| ()) };
            for (i, buffer) in buffers.iter().enumerate() {
                let mut expected = start.clone();
                model(&[i as u8 + 1; 16], [i as u8; 16], &mut expected, src, dst, LEN);
                if (src + 1..src + READ_AHEAD).contains(&dst) {
                    // Anything, but there.
                    expected[dst..dst + LEN].copy_from_slice(&buffer[dst..dst + LEN]);
                }
                assert!(
                    *buffer == expected,
                    "{kind}: request {i}, destination {} after the source",
                    dst as i64 - 300
                );
            }
        }
    }
}
