//! Requests of all shapes, many in one call, against the `aes` and `cbc` crates.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[test]
fn every_number_of_requests_up_to_forty_is_encrypted_right() {
    for kind in kinds() {
        for count in 1..=40 {
            for key_len in [16, 24, 32] {
                let case = |i: usize| Case::simple(i * count, key_len, 16 * (1 + (i * 7 + count) % 23));
                check(kind, &mut (0..count).map(case).collect::<Vec<_>>());
            }
            let mixed = |i: usize| Case::simple(i, 16 + 8 * (i % 3), 16 * (1 + (i * 5 + count) % 37));
            check(kind, &mut (0..count).map(mixed).collect::<Vec<_>>());
        }
    }
}

#[test]
fn requests_with_one_key_and_with_their_own_are_encrypted_right() {
    for kind in kinds() {
        for key_len in [16, 24, 32] {
            for shared in [true, false] {
                let case = |i: usize| {
                    let mut case = Case::simple(i, key_len, 16 * (40 - i % 33));
                    if shared {
                        case.key = vec![0x3c; key_len];
                    }
                    case
                };
                check(kind, &mut (0..48).map(case).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn every_length_up_to_some_tiles_is_encrypted_right_in_every_lane() {
    for kind in kinds() {
        for blocks in 0..=40 {
            let case = |i: usize| Case::simple(i, 16, 16 * ((blocks + i) % 41));
            check(kind, &mut (0..kind.lanes() + 3).map(case).collect::<Vec<_>>());
        }
    }
}

#[test]
fn one_machine_serves_call_after_call_with_keys_that_come_and_go() {
    for kind in kinds() {
        let mut machine = Machine::with(kind).unwrap();
        for round in 0..50 {
            // New keys each time, most likely at the addresses of old ones.
            let case = |i: usize| Case::simple(round * 100 + i, 16 + 8 * (i % 2), 16 * (1 + (i + round) % 9));
            let mut cases: Vec<_> = (0..20).map(case).collect();
            check_with(&mut machine, &mut cases, |key| CbcKey::new(key).unwrap());
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let key = CbcKey::new(&[1; 16]).unwrap();
    let mut buffer = [0u8; 64];
    let list = [HostRange { base: buffer.as_mut_ptr().cast(), len: 64 }];
    let takes = |src: usize, dst: usize| {
        let part = |len| Ranges::new(&list, 0, len).unwrap();
        // SAFETY: the list outlives the request.
        unsafe { Request::new(&key, [0; 16], &part(src), &part(dst)) }.is_some()
    };
    assert!(takes(0, 0) && takes(16, 16) && takes(64, 64));
    assert!(!takes(63, 63) && !takes(1, 1) && !takes(48, 64) && !takes(64, 48) && !takes(0, 16));
}

/// Lengths that add up to `total`, from a list of wishes.
fn cut(total: usize, wishes: &[usize]) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut left = total;
    for &wish in wishes {
        let len = wish.min(left);
        lens.push(len);
        left -= len;
    }
    lens.push(left);
    lens
}

/// Mostly short, some up to 64 KiB.
fn blocks() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..20, 3 => 0usize..300, 1 => 0usize..=4096]
}

/// Some whole, some torn to bits, some in pieces that are multiples of a block or of a tile.
fn wishes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![]),
        vec(0usize..40, 0..12),
        vec((0usize..20).prop_map(|n| n * 16), 0..6),
        vec(0usize..3000, 0..6),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let key = prop_oneof![Just(16usize), Just(24), Just(32)].prop_flat_map(|len| vec(any::<u8>(), len));
    // One of few: requests that share a key are the common case.
    let key = prop_oneof![key, Just(vec![7; 16]), Just(vec![9; 32])];
    let gaps = || vec(0usize..70, 1..4);
    (key, any::<[u8; BLOCK]>(), blocks(), wishes(), proptest::option::of(wishes()), gaps(), any::<u8>())
        .prop_map(|(key, iv, blocks, src, dst, gaps, seed)| {
            let len = blocks * BLOCK;
            let plain = (0..len).map(|i| (i as u8).wrapping_mul(29) ^ (i >> 8) as u8 ^ seed).collect();
            let src = Scattered::new(&cut(len, &src), &gaps);
            let dst = dst.map(|dst| Scattered::new(&cut(len, &dst), &gaps));
            Case::new(&key, iv, plain, src, dst)
        })
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn any_mix_of_requests_is_encrypted_as_the_oracle_does(mut cases in vec(case(), 1..41)) {
        for kind in kinds() {
            check(kind, &mut cases);
        }
    }

    #[test]
    fn a_part_of_the_ranges_is_encrypted_where_it_is_to_go(
        before in 0usize..90,
        after in 0usize..90,
        blocks in 0usize..40,
        src_cuts in wishes(),
        dst_cuts in wishes(),
        dst_before in 0usize..90,
    ) {
        let len = blocks * BLOCK;
        let plain: Vec<u8> = (0..before + len + after).map(|i| i as u8).collect();
        let mut src = Scattered::new(&cut(plain.len(), &src_cuts), &[3, 5]);
        src.fill(&plain);
        for kind in kinds() {
            let mut dst = Scattered::new(&cut(dst_before + len + after, &dst_cuts), &[7]);
            dst.fill(&vec![0x55; dst_before + len + after]);
            let key = CbcKey::new(&[9; 16]).unwrap();
            let (src_ranges, dst_ranges) = (src.ranges(), dst.ranges());
            let from = Ranges::new(&src_ranges, before, len).unwrap();
            let to = Ranges::new(&dst_ranges, dst_before, len).unwrap();
            // SAFETY: the ranges are those of the buffers above, and the lists live as long.
            unsafe {
                let mut request = [Request::new(&key, [1; 16], &from, &to).unwrap()];
                Machine::with(kind).unwrap().encrypt(&mut request, &mut |_| ());
            }
            let mut expected = vec![0x55; dst_before];
            expected.extend(oracle(&[9; 16], [1; 16], &plain[before..before + len]));
            expected.resize(dst_before + len + after, 0x55);
            prop_assert_eq!(dst.collect(), expected);
        }
    }
}
