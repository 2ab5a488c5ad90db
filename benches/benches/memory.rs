//! Cost of translating one guest address: ours with its last-hit cache, and vm-memory.
//!
//! `cargo bench -p benches --bench memory`

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use memory::{GuestAddr, MemoryTable, MemoryView, RegionConfig, UserAddr};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};

const REGION: u64 = 16 << 20;
const BUFFER: usize = 4096;

/// Addresses in an order that stays in one region, or leaves it each time.
fn addresses(regions: u64, same_region: bool) -> Vec<u64> {
    let region = |n: u64| if same_region { 0 } else { n % regions };
    (0..256).map(|n| ((region(n) + 1) << 32) + (n * 7919) % (REGION / 2)).collect()
}

fn translation(criterion: &mut Criterion) {
    for (regions, same_region) in [(1, true), (8, true), (8, false)] {
        let order = if same_region { "one" } else { "changing" };
        let mut group = criterion.benchmark_group(format!("translate/{regions}-regions-{order}"));
        let addresses = addresses(regions, same_region);

        let configs: Vec<RegionConfig> = (1..=regions)
            .map(|n| RegionConfig {
                guest: GuestAddr(n << 32),
                len: REGION,
                user: UserAddr(n << 32),
                mmap_offset: 0,
            })
            .collect();
        let view = MemoryView::new(MemoryTable::anonymous(&configs).expect("the regions are valid"));
        let mut next = (0..256).cycle();
        group.bench_function("ours", |bencher| {
            bencher.iter(|| {
                let addr = addresses[next.next().unwrap_or(0)];
                black_box(view.slice(GuestAddr(black_box(addr)), BUFFER).map(|slice| slice.range().base))
            });
        });

        let ranges: Vec<_> = (1..=regions).map(|n| (GuestAddress(n << 32), REGION as usize)).collect();
        let map = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("the regions are valid");
        let atomic = GuestMemoryAtomic::new(map);
        let guard = atomic.memory();
        group.bench_function("vm-memory, guard held", |bencher| {
            bencher.iter(|| {
                let addr = GuestAddress(black_box(addresses[next.next().unwrap_or(0)]));
                black_box(guard.get_slice(addr, BUFFER).map(|slice| slice.ptr_guard().as_ptr()))
            });
        });
        group.bench_function("vm-memory, guard per access", |bencher| {
            bencher.iter(|| {
                let addr = GuestAddress(black_box(addresses[next.next().unwrap_or(0)]));
                black_box(atomic.memory().get_slice(addr, BUFFER).map(|slice| slice.ptr_guard().as_ptr()))
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = translation
}
criterion_main!(benches);
