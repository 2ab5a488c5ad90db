//! Cost of what vhostd-net does with one frame besides copying it: looking at its headers, deciding where it goes,
//! completing a checksum, hashing.
//!
//! `cargo bench -p benches --bench net`

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use benches::net::frame::{Flow, Template};
use benches::net::wire::HEADER;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memory::{GuestAddr, OwnMemory};
use net_backend::frame::{Head, Meta, hash, parse};
use net_backend::switch::{DEFAULT_TABLE_SIZE, Fabric, Policy, PortId, PortPolicy, Switch, SwitchOptions};

/// The first bytes of a frame from one guest to another.
fn head(from: usize, to: usize) -> (Head, Meta) {
    let template = Template::new(Flow { from, to, queue: 0 }, 128, false);
    let mut bytes = template.head()[HEADER..].to_vec();
    bytes.resize(128, 0);
    let head = Head::from_slice(&bytes);
    let meta = parse::l2(&head).expect("the frame is well formed");
    (head, meta)
}

fn parsers(criterion: &mut Criterion) {
    let (head, meta) = head(0, 1);
    let mut group = criterion.benchmark_group("net/parse");
    group.bench_function("l2", |bencher| bencher.iter(|| parse::l2(black_box(&head))));
    group.bench_function("deep", |bencher| bencher.iter(|| parse::deep(black_box(&head), &meta)));
    group.bench_function("flow hash", |bencher| bencher.iter(|| hash::flow(black_box(&head), &meta)));
    group.finish();
}

fn switch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("net/switch");
    for ports in [2u16, 200] {
        let policy = (0..ports).map(|port| (PortId(port), PortPolicy::default())).collect::<BTreeMap<_, _>>();
        let policy = Policy::new(SwitchOptions::default(), policy).expect("the policy is valid");
        let fabric = Arc::new(Fabric::new(DEFAULT_TABLE_SIZE));
        fabric.adopt(&policy).expect("no file is needed");
        let mut switch = Switch::new(fabric, Arc::new(policy));
        let guests: Vec<_> =
            (0..usize::from(ports)).map(|from| head(from, (from + 1) % usize::from(ports))).collect();
        // Everybody has spoken once.
        let mut now = 1_000_000_000;
        for (from, (head, meta)) in guests.iter().enumerate() {
            let _ = switch.ingress(PortId(from as u16), meta, head, 64, now);
        }
        let mut next = (0..guests.len()).cycle();
        group.bench_function(format!("ingress, {ports} guests in turn"), |bencher| {
            bencher.iter(|| {
                let from = next.next().unwrap_or(0);
                let (head, meta) = &guests[from];
                now += 100;
                black_box(switch.ingress(PortId(from as u16), meta, head, 64, now)).is_ok()
            });
        });
    }
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("net/checksum");
    for len in [64usize, 1500, 65_536] {
        let memory = OwnMemory::new(1 << 20, GuestAddr(0)).expect("there is memory");
        let slice = memory.slice(GuestAddr(20), len).expect("it is inside");
        slice.fill(0xa5);
        group.throughput(Throughput::Bytes(len as u64));
        group
            .bench_function(format!("{len} B"), |bencher| bencher.iter(|| black_box(slice.checksum(0, len))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = parsers, switch, checksum
}
criterion_main!(benches);
