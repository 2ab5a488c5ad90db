//! Cost of a chain on our rings and on `virtio-queue` under `vhost-user-backend`, shape by shape.
//!
//! `cargo bench -p benches --bench ring`; the ratio as one number: `vhostd-bench ring`.

use std::time::Duration;

use benches::clock::Clock;
use benches::ring::{self, Baseline, Case, Ours, Subject};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

fn chains(criterion: &mut Criterion) {
    let clock = Clock::new();
    for case in Case::all() {
        let mut group = criterion.benchmark_group(format!("ring/{}", case.name()));
        group.throughput(Throughput::Elements(1));
        side(&mut group, "ours", Ours::new(case), case, clock);
        if !case.packed {
            side(&mut group, "virtio-queue", Baseline::new(case), case, clock);
        }
        group.finish();
    }
}

/// One iteration is one chain; only the device side is timed.
fn side(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    mut subject: impl Subject,
    case: Case,
    clock: Clock,
) {
    let lap = u64::from(case.chains());
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|chains| {
            let laps = chains.div_ceil(lap);
            let nanos = clock.nanos(ring::timed_laps(&mut subject, laps, &clock));
            Duration::from_nanos((nanos as f64 * chains as f64 / (laps * lap) as f64) as u64)
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = chains
}
criterion_main!(benches);
