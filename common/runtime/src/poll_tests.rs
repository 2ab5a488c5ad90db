//! The presets against independent transcriptions of the published algorithms.

use proptest::prelude::*;

use super::*;

/// One row: the limit before, the observed wait, the limit the published code arrives at. All in nanoseconds.
type Row = (u64, u64, u64);

fn at(window: Window, limit: u64) -> Window {
    Window { limit, ..window }
}

fn check(window: Window, rows: &[Row]) {
    for &(before, block, after) in rows {
        let mut subject = at(window, before);
        subject.observe(block);
        assert_eq!(subject.limit(), after, "{:?}: limit {before}, wait {block}", window.rule());
    }
}

#[test]
fn kvm_rows_match_the_kernel() {
    check(
        Window::kvm(),
        &[
            (0, 0, 0),                    // halt_ns <= halt_poll_ns: nothing
            (0, 1, 10_000),               // grows to grow_start
            (0, 199_999, 10_000),         //
            (0, 200_000, 0),              // neither > max nor < max
            (0, 1_000_000, 0),            // shrink needs a limit
            (10_000, 10_000, 10_000),     // the sweet spot
            (10_000, 10_001, 20_000),     // doubles
            (80_000, 100_000, 160_000),   //
            (160_000, 170_000, 200_000),  // clamped to max at the next halt
            (200_000, 199_999, 200_000),  //
            (200_000, 200_000, 200_000),  //
            (200_000, 200_001, 100_000),  // too long: halves
            (100_000, 5_000_000, 50_000), //
            (25_000, 5_000_000, 12_500),  //
            (12_500, 5_000_000, 0),       // 6_250 < grow_start: 0
            (10_000, u64::MAX, 0),        //
            (100_000, 200_000, 100_000),  // exactly max: nothing
        ],
    );
}

#[test]
fn haltpoll_rows_match_the_governor() {
    check(
        Window::haltpoll(),
        &[
            (0, 0, 0),
            (0, 1, 50_000),              // grow_start
            (0, 200_000, 50_000),        // block_ns <= guest_halt_poll_ns still grows
            (0, 200_001, 0),             // 0 / 2
            (50_000, 50_000, 50_000),    // not longer than the limit
            (50_000, 50_001, 100_000),   //
            (100_000, 150_000, 200_000), //
            (150_000, 200_000, 200_000), // min(300_000, max)
            (200_000, 200_001, 100_000), // halves
            (100_000, 900_000, 50_000),  // 50_000 is not below grow_start
            (50_000, 900_000, 0),        // 25_000 is
            (200_000, 10, 200_000),      // short blocks never shrink
        ],
    );
}

#[test]
fn qemu_rows_match_adjust_polling_time() {
    check(
        Window::qemu_aio(),
        &[
            (0, 0, 0),                // block_ns <= poll_ns
            (0, 1, 4_000),            // starts at 4 us
            (0, 32_767, 4_000),       //
            (0, 32_768, 0),           // not < poll_max_ns
            (0, 32_769, 0),           // poll_shrink 0: reset
            (4_000, 4_000, 4_000),    // sweet spot
            (4_000, 4_001, 8_000),    //
            (16_000, 20_000, 32_000), //
            (32_000, 32_500, 32_768), // clamp
            (32_768, 32_769, 0),      // reset
            (8_000, 1_000_000, 0),    //
        ],
    );
}

#[test]
fn fixed_never_moves() {
    for block in [0, 1, 50_000, 50_001, u64::MAX] {
        check(Window::fixed(50), &[(50_000, block, 50_000)]);
    }
}

/// A whole trace through the published KVM code, written as its C reads, against the window.
fn naive_kvm(limit: &mut u64, max: u64, halt_ns: u64) {
    if *limit > max {
        *limit = max;
    }
    if max != 0 {
        if halt_ns <= *limit {
        } else if *limit != 0 && halt_ns > max {
            let val = *limit / 2;
            *limit = if val < 10_000 { 0 } else { val };
        } else if *limit < max && halt_ns < max {
            let val = *limit * 2;
            *limit = if val < 10_000 { 10_000 } else { val };
        }
    }
}

fn naive_haltpoll(limit: &mut u64, max: u64, block_ns: u64) {
    if block_ns > *limit && block_ns <= max {
        *limit = (*limit * 2).max(50_000).min(max);
    } else if block_ns > max {
        *limit /= 2;
        if *limit < 50_000 {
            *limit = 0;
        }
    }
}

fn naive_qemu(ns: &mut u64, max: u64, block_ns: u64) {
    if block_ns <= *ns {
    } else if block_ns > max {
        *ns = 0;
    } else if *ns < max && block_ns < max {
        *ns = if *ns != 0 { *ns * 2 } else { 4_000 };
        *ns = (*ns).min(max);
    }
}

fn presets() -> impl Strategy<Value = Window> {
    (
        prop_oneof![
            Just(Window::kvm()),
            Just(Window::haltpoll()),
            Just(Window::qemu_aio()),
            Just(Window::fixed(1))
        ],
        0u64..2_000_000,
    )
        .prop_map(|(window, max)| window.with_max(max))
}

proptest! {
    #[test]
    fn traces_equal_the_transcribed_code(waits in prop::collection::vec(0u64..600_000, 0..200)) {
        let (mut kvm, mut halt, mut qemu) = (0, 0, 0);
        let (mut w_kvm, mut w_halt, mut w_qemu) = (Window::kvm(), Window::haltpoll(), Window::qemu_aio());
        for wait in waits {
            naive_kvm(&mut kvm, 200_000, wait);
            naive_haltpoll(&mut halt, 200_000, wait);
            naive_qemu(&mut qemu, 32_768, wait);
            w_kvm.observe(wait);
            w_halt.observe(wait);
            w_qemu.observe(wait);
            // The kernel clamps when it next reads the value; the window clamps at once.
            prop_assert_eq!(w_kvm.limit(), kvm.min(200_000));
            prop_assert_eq!(w_halt.limit(), halt);
            prop_assert_eq!(w_qemu.limit(), qemu);
        }
    }

    #[test]
    fn limit_stays_between_zero_and_max(window in presets(), waits in prop::collection::vec(any::<u64>(), 0..100)) {
        let mut window = window;
        for wait in waits {
            window.observe(wait);
            prop_assert!(window.limit() <= window.max());
        }
    }

    #[test]
    fn long_waits_end_in_zero(window in presets(), waits in prop::collection::vec(0u64..100_000, 0..50)) {
        prop_assume!(window.rule() != Rule::Fixed);
        let mut window = window;
        for wait in waits {
            window.observe(wait);
        }
        for _ in 0..64 {
            window.observe(window.max() + 1);
        }
        prop_assert_eq!(window.limit(), 0);
    }

    #[test]
    fn a_steady_period_below_max_is_caught(window in presets(), period in 1u64..2_000_000) {
        prop_assume!(window.rule() != Rule::Fixed && period < window.max());
        let mut window = window;
        for _ in 0..64 {
            window.observe(period);
        }
        prop_assert!(window.limit() >= period);
    }
}

#[test]
fn whole_waits_count_for_kvm_and_only_sleep_for_haltpoll() {
    let mut kvm = at(Window::kvm(), 100_000);
    kvm.observe_wait(100_000, 150_000);
    assert_eq!(kvm.limit(), 50_000, "250 us in all are above the maximum");
    let mut halt = at(Window::haltpoll(), 100_000);
    halt.observe_wait(100_000, 150_000);
    assert_eq!(halt.limit(), 200_000, "150 us asleep are below the maximum");
}

#[test]
fn a_smaller_max_cuts_the_limit() {
    assert_eq!(at(Window::kvm(), 160_000).with_max(50_000).limit(), 50_000);
    assert_eq!(Window::fixed(10).with_max(50_000).limit(), 50_000);
    let mut tiny = Window::haltpoll().with_max(20_000);
    tiny.observe(10_000);
    assert_eq!(tiny.limit(), 20_000, "the start value is clamped as well");
}
