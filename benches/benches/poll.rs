//! Cost of one decision of the adaptive poll window, by preset: it is made once per wait and must not show.
//!
//! `cargo bench -p benches --bench poll`

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use runtime::poll::Window;

fn window(criterion: &mut Criterion) {
    let presets = [
        ("kvm", Window::kvm()),
        ("haltpoll", Window::haltpoll()),
        ("qemu_aio", Window::qemu_aio()),
        ("fixed", Window::fixed(50)),
    ];
    let mut group = criterion.benchmark_group("poll/observe");
    for (name, mut window) in presets {
        // Waits from half a microsecond to a millisecond: the window grows and shrinks.
        let mut waits = [500u64, 3_000, 20_000, 8_000, 1_000_000, 40_000].into_iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                window.observe(black_box(waits.next().unwrap_or(0)));
                black_box(window.limit())
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = window
}
criterion_main!(benches);
