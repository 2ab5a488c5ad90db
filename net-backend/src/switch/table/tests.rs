use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::thread;

const AGING: u32 = 100;
const A: PortId = PortId(1);
const B: PortId = PortId(255);

fn at(tick: u32) -> Moment {
    Moment { tick, aging: AGING }
}

fn mac(n: u64) -> MacAddr {
    MacAddr::from_u64(0x5254_0000_0000 + n)
}

fn table() -> MacTable {
    MacTable::with_mix(1, Mix::new([1, 2, 3]))
}

fn learned(table: &MacTable, port: PortId) -> u32 {
    table.census(port).learned
}

/// Entries that are in the table whatever their age, by port, counted one by one.
fn counted(table: &MacTable, port: PortId) -> u32 {
    let learned = table.all(table.everything()).filter(|found| found.word & STATIC == 0);
    learned.filter(|found| port_of(found.word) == port).count() as u32
}

#[test]
fn a_bucket_is_one_cache_line() {
    assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (64, 64));
}

#[test]
fn the_table_has_room_for_what_was_asked() {
    for (asked, slots) in [(0, 5120), (3072, 5120), (3073, 10_240), (65_536, 163_840)] {
        assert_eq!(MacTable::new(asked).slots(), slots, "{asked}");
    }
}

#[test]
fn an_address_is_found_in_its_vlan_only() {
    let table = table();
    assert_eq!(table.lookup(7, mac(1), at(0)), None);
    assert_eq!(table.learn(7, mac(1), B, 10, at(0)), Learned::New);
    assert_eq!(table.learn(7, mac(1), B, 10, at(0)), Learned::Known);
    assert_eq!(table.lookup(7, mac(1), at(0)), Some(B));
    assert_eq!(table.lookup(8, mac(1), at(0)), None);
    assert_eq!(table.lookup(7, mac(2), at(0)), None);
}

#[test]
fn an_address_that_is_silent_is_forgotten_and_one_that_talks_is_not() {
    let table = table();
    table.learn(0, mac(1), A, 10, at(0));
    table.learn(0, mac(2), A, 10, at(0));
    table.learn(0, mac(2), A, 10, at(60));
    assert_eq!(table.lookup(0, mac(1), at(AGING)), Some(A));
    assert_eq!(table.lookup(0, mac(1), at(AGING + 1)), None);
    assert_eq!(table.lookup(0, mac(2), at(AGING + 1)), Some(A));
    assert_eq!(learned(&table, A), 2, "not swept yet");
    assert_eq!(table.age(at(AGING + 1)), 1);
    assert_eq!(learned(&table, A), 1);
    assert_eq!(table.entries(at(AGING + 1)).len(), 1);
}

#[test]
fn without_aging_nothing_is_forgotten() {
    let table = table();
    let never = |tick| Moment { tick, aging: 0 };
    table.learn(0, mac(1), A, 10, never(0));
    assert_eq!(table.age(never(u32::MAX)), 0);
    assert_eq!(table.lookup(0, mac(1), never(u32::MAX)), Some(A));
}

#[test]
fn a_clock_that_lags_behind_another_workers_ages_nothing() {
    let table = table();
    table.learn(0, mac(1), A, 10, at(50));
    assert_eq!(table.lookup(0, mac(1), at(49)), Some(A));
    table.learn(0, mac(1), A, 10, at(49));
    assert_eq!(table.lookup(0, mac(1), at(50 + AGING)), Some(A), "its time does not run backwards");
}

#[test]
fn a_flow_that_goes_on_writes_once_a_tick() {
    let table = table();
    table.learn(0, mac(1), A, 10, at(5));
    let found = table.find(&table.places(0, mac(1))).unwrap();
    // A write would put 5 here.
    table.seen(&found).store(6, Relaxed);
    assert_eq!(table.learn(0, mac(1), A, 10, at(5)), Learned::Known);
    assert_eq!(table.seen(&found).load(Relaxed), 6);
    table.learn(0, mac(1), A, 10, at(7));
    assert_eq!(table.seen(&found).load(Relaxed), 7);
}

#[test]
fn an_address_moves_with_its_guest_and_counts_where_it_is() {
    let table = table();
    table.learn(3, mac(1), A, 10, at(0));
    assert_eq!(table.learn(3, mac(1), B, 10, at(0)), Learned::Moved);
    assert_eq!(table.lookup(3, mac(1), at(0)), Some(B));
    assert_eq!((learned(&table, A), learned(&table, B)), (0, 1));
    assert_eq!(table.census(B).moved, 1);
}

#[test]
fn a_static_address_does_not_move() {
    let table = table();
    table.learn(0, mac(1), B, 10, at(0));
    table.add_static(0, mac(1), A, at(0)).unwrap();
    assert_eq!(learned(&table, B), 0, "the learned entry gave way");
    assert_eq!(table.learn(0, mac(1), B, 10, at(0)), Learned::Refused);
    assert_eq!(table.lookup(0, mac(1), at(u32::MAX)), Some(A), "nor does it age");
    assert_eq!(table.flush(None), 0);
    assert_eq!(table.add_static(0, mac(1), A, at(0)), Ok(()));
    let taken = TableError::Taken { vlan: 0, mac: mac(1), port: A };
    assert_eq!(table.add_static(0, mac(1), B, at(0)), Err(taken));
    assert!(table.remove(0, mac(1)) && !table.remove(0, mac(1)));
    assert_eq!(table.lookup(0, mac(1), at(0)), None);
    assert_eq!((learned(&table, A), learned(&table, B)), (0, 0));
}

#[test]
fn only_stations_get_static_entries() {
    for wrong in [MacAddr::ZERO, MacAddr::BROADCAST, MacAddr([1, 0, 0, 0, 0, 1])] {
        assert_eq!(table().add_static(0, wrong, A, at(0)), Err(TableError::NotUnicast(wrong)));
    }
}

#[test]
fn a_static_entry_has_a_vlan_and_a_port_that_can_be() {
    assert_eq!(table().add_static(4095, mac(1), A, at(0)), Err(TableError::Vlan(4095)));
    assert_eq!(table().add_static(1, mac(1), PortId(256), at(0)), Err(TableError::Port(PortId(256))));
}

#[test]
fn every_ageing_time_but_zero_ages() {
    assert_eq!((ticks(0), ticks(1), ticks(300)), (0, 1, 280));
    assert_eq!(u64::from(ticks(u32::MAX)) << TICK_SHIFT >> 30, u64::from(ticks(u32::MAX)));
}

#[test]
fn a_flood_of_addresses_stops_at_the_ports_limit_and_evicts_nobody() {
    let table = table();
    (0..500).for_each(|n| assert_eq!(table.learn(0, mac(n), B, 1000, at(0)), Learned::New));
    let hostile = |n: &u64| table.learn(0, mac(1_000_000 + *n), A, 64, at(0));
    assert_eq!((0..100_000).filter(|n| hostile(n) == Learned::New).count(), 64);
    assert_eq!(table.census(A), Census { learned: 64, moved: 0, refused: 100_000 - 64 });
    assert!((0..500).all(|n| table.lookup(0, mac(n), at(0)) == Some(B)));
}

#[test]
fn stealing_addresses_counts_towards_the_thiefs_limit() {
    let table = table();
    (0..100).for_each(|n| assert_eq!(table.learn(0, mac(n), B, 1000, at(0)), Learned::New));
    let stolen = (0..100).filter(|n| table.learn(0, mac(*n), A, 10, at(0)) == Learned::Moved).count();
    assert_eq!(stolen, 10);
    assert_eq!((learned(&table, A), learned(&table, B)), (10, 90));
}

#[test]
fn a_port_at_its_limit_gets_room_again_when_its_addresses_age() {
    let table = table();
    (0..64).for_each(|n| assert_eq!(table.learn(0, mac(n), A, 64, at(0)), Learned::New));
    // Nobody sweeps but the port itself, a part of the table a tick.
    let new = (0..32).filter(|n| table.learn(0, mac(100), A, 64, at(AGING + 1 + n)) != Learned::Refused);
    assert!(new.count() > 0);
    assert!(learned(&table, A) <= 64);
}

#[test]
fn a_full_table_keeps_what_it_has_and_still_takes_static_entries() {
    let table = table();
    let all = 4 * table.slots() as u64;
    (0..all).for_each(|n| _ = table.learn(0, mac(n), A, u32::MAX, at(0)));
    let kept = (0..all).filter(|n| table.lookup(0, mac(*n), at(0)) == Some(A)).count();
    assert_eq!(kept as u32, learned(&table, A));
    assert!(kept * 100 >= table.slots() * 99, "{kept} of {}", table.slots());
    let before: Vec<u64> = (0..all).filter(|n| table.lookup(0, mac(*n), at(0)).is_some()).collect();
    assert_eq!((0..1000).filter(|n| table.learn(0, mac(all + n), B, 1000, at(0)) == Learned::New).count(), 0);
    assert!(before.iter().all(|n| table.lookup(0, mac(*n), at(0)) == Some(A)), "in use, not evicted");
    table.add_static(0, mac(all), B, at(0)).unwrap();
    assert_eq!(table.lookup(0, mac(all), at(0)), Some(B));
    assert_eq!(learned(&table, A) as usize, kept - 1);
}

#[test]
fn a_table_takes_what_it_was_made_for() {
    for mix in [Mix::new([1, 2, 3]), Mix::new([4, 5, 6]), Mix::new([7, 8, 9])] {
        let table = MacTable::with_mix(3 << 12, mix);
        let refused =
            (0..3 << 12).filter(|n| table.learn(0, mac(*n), A, u32::MAX, at(0)) != Learned::New).count();
        assert_eq!(refused, 0);
        let nearby = table.all(table.everything()).filter(|found| found.word & SECOND == 0).count();
        assert!(nearby * 5 > 3 * (3 << 12), "most are where they are looked for first: {nearby}");
    }
}

#[test]
fn a_table_of_static_entries_says_that_it_is_full() {
    let table = table();
    let full =
        (0..u64::MAX).find_map(|n| table.add_static(1, mac(n), A, at(0)).err().map(|error| (n, error)));
    let (n, error) = full.unwrap();
    assert_eq!(error, TableError::Full { vlan: 1, mac: mac(n) });
    assert!(error.to_string().contains("table-size"));
}

#[test]
fn a_port_that_leaves_takes_all_its_entries_along() {
    let table = table();
    table.learn(0, mac(1), A, 10, at(0));
    table.learn(0, mac(2), B, 10, at(0));
    table.learn(0, mac(2), A, 0, at(0));
    table.add_static(0, mac(3), A, at(0)).unwrap();
    table.forget(A);
    assert_eq!(table.census(A), Census::default());
    assert_eq!(table.entries(at(0)).iter().map(|entry| entry.port).collect::<Vec<_>>(), [B]);
}

#[test]
fn flushing_a_port_leaves_the_others_alone() {
    let table = table();
    (0..10).for_each(|n| _ = table.learn(0, mac(n), if n < 4 { A } else { B }, 10, at(0)));
    assert_eq!(table.flush(Some(A)), 4);
    assert_eq!((learned(&table, A), learned(&table, B)), (0, 6));
    assert_eq!(table.flush(None), 6);
    assert!(table.entries(at(0)).is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Learn { key: u64, port: u16, wait: u32 },
    Static { key: u64, port: u16 },
    Remove { key: u64 },
    Flush { port: Option<u16> },
    Forget { port: u16 },
    Age,
}

fn step() -> impl Strategy<Value = Step> {
    let (key, port) = (0..60u64, 0..5u16);
    prop_oneof![
        20 => (key.clone(), port.clone(), prop_oneof![3 => Just(0u32), 1 => 1..30u32]).prop_map(|(key, port, wait)| Step::Learn { key, port, wait }),
        2 => (key.clone(), port.clone()).prop_map(|(key, port)| Step::Static { key, port }),
        2 => key.prop_map(|key| Step::Remove { key }),
        1 => prop::option::of(port.clone()).prop_map(|port| Step::Flush { port }),
        1 => port.prop_map(|port| Step::Forget { port }),
        1 => Just(Step::Age),
    ]
}

const LIMIT: u32 = 8;
const ROUNDS: u32 = 500;

/// What the table should hold: port, time, static.
type Model = HashMap<u64, (PortId, u32, bool)>;

fn split(key: u64) -> (u16, MacAddr) {
    ((key % 3) as u16, mac(key / 3))
}

fn model_learned(model: &Model, port: PortId) -> u32 {
    model.values().filter(|(owner, _, fixed)| *owner == port && !fixed).count() as u32
}

fn model_learn(model: &mut Model, key: u64, port: PortId, tick: u32) {
    let room = model_learned(model, port) < LIMIT;
    match model.get_mut(&key) {
        Some((owner, seen, _)) if *owner == port => *seen = tick,
        Some((.., true)) => {}
        Some(entry) if room => *entry = (port, tick, false),
        None if room => _ = model.insert(key, (port, tick, false)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a plain map with the same rules. The clock stays within the ageing time between sweeps of both, so that it
    /// does not matter when a slot is taken over.
    #[test]
    fn the_table_holds_what_a_map_holds(seed: [u64; 3], steps in prop::collection::vec(step(), 1..200)) {
        let table = MacTable::with_mix(1, Mix::new(seed));
        let mut model = Model::new();
        let mut tick = 1000;
        for step in steps {
            match step {
                Step::Learn { key, port, wait } => {
                    tick += wait;
                    if wait > 0 {
                        table.age(at(tick));
                        model.retain(|_, (_, seen, fixed)| *fixed || tick - *seen <= AGING);
                    }
                    let (vlan, mac) = split(key);
                    table.learn(vlan, mac, PortId(port), LIMIT, at(tick));
                    model_learn(&mut model, key, PortId(port), tick);
                }
                Step::Static { key, port } => {
                    let (vlan, mac) = split(key);
                    let taken = model.get(&key).is_some_and(|(owner, _, fixed)| *fixed && owner.0 != port);
                    prop_assert_eq!(table.add_static(vlan, mac, PortId(port), at(tick)).is_err(), taken);
                    if !taken {
                        model.insert(key, (PortId(port), tick, true));
                    }
                }
                Step::Remove { key } => {
                    let (vlan, mac) = split(key);
                    prop_assert_eq!(table.remove(vlan, mac), model.remove(&key).is_some());
                }
                Step::Flush { port } => {
                    let before = model.len();
                    model.retain(|_, (owner, _, fixed)| *fixed || port.is_some_and(|port| owner.0 != port));
                    prop_assert_eq!(table.flush(port.map(PortId)), before - model.len());
                }
                Step::Forget { port } => {
                    table.forget(PortId(port));
                    model.retain(|_, (owner, ..)| owner.0 != port);
                }
                Step::Age => _ = table.age(at(tick)),
            }
            for key in 0..60 {
                let (vlan, mac) = split(key);
                prop_assert_eq!(table.lookup(vlan, mac, at(tick)), model.get(&key).map(|entry| entry.0));
            }
            for port in (0..5).map(PortId) {
                prop_assert_eq!(learned(&table, port), model_learned(&model, port));
            }
        }
        let mut expected: Vec<_> = model.iter().map(|(key, (port, _, fixed))| (split(*key), *port, *fixed)).collect();
        expected.sort_unstable_by_key(|entry| entry.0);
        let listed = table.entries(at(tick)).into_iter().map(|e| ((e.vlan, e.mac), e.port, e.fixed));
        prop_assert_eq!(listed.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_listing_shows_the_very_addresses_that_were_learned(
        seed: [u64; 3], size in 1usize..40_000, keys in prop::collection::btree_set((0u16..4095, 0u64..1 << 48), 1..200),
    ) {
        let table = MacTable::with_mix(size, Mix::new(seed));
        for (vlan, mac) in &keys {
            prop_assert_eq!(table.learn(*vlan, MacAddr::from_u64(*mac), A, 1000, at(0)), Learned::New);
        }
        let listed = table.entries(at(0)).into_iter().map(|entry| (entry.vlan, entry.mac.as_u64()));
        prop_assert_eq!(listed.collect::<Vec<_>>(), keys.into_iter().collect::<Vec<_>>());
    }
}

/// A few keys, many threads: learning, moving, ageing, flushing and looking up all at once. Each key is only ever
/// taught by two ports; whoever finds it must find one of them, and in the end the books must balance.
#[test]
fn workers_that_learn_at_once_leave_one_entry_a_key_and_exact_counts() {
    const KEYS: u64 = 12_000;
    const LIMIT: u32 = 1500;
    let table = table();
    let ports = |key: u64| [PortId((key % 7) as u16), PortId((key % 7 + 1) as u16)];
    let worker = |seed: u64| {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for round in 0..60_000u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = random % KEYS;
            // Every tick is long past the ageing time of what was seen before: slots change hands.
            let now = Moment { tick: round / 8_000 * 10, aging: 5 };
            let wanted = ports(key);
            table.learn(9, mac(key), wanted[(random >> 40) as usize % 2], LIMIT, now);
            let asked = (random >> 20) % KEYS;
            if let Some(port) = table.lookup(9, mac(asked), now) {
                assert!(ports(asked).contains(&port), "{asked} behind {port}");
            }
            if round % 8_000 == 19_999 {
                table.flush(Some(PortId(random as u16 % 8)));
            }
        }
    };
    thread::scope(|scope| (1..5).for_each(|seed| _ = scope.spawn(move || worker(seed))));
    for port in (0..9).map(PortId) {
        assert_eq!(learned(&table, port), counted(&table, port), "port {port}");
        assert!(learned(&table, port) <= LIMIT);
    }
    let mut keys: Vec<_> = table.all(table.everything()).map(|f| table.key_of(f.bucket, f.word)).collect();
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), all, "a key is there twice");
}

/// One key, inserted by two workers again and again while its neighbours come and go, so that they choose different slots.
#[test]
fn the_same_address_inserted_twice_at_once_is_there_once() {
    let table = &table();
    let bucket = |key: u64| table.places(0, mac(key)).buckets[0];
    let neighbours: Vec<u64> = (1..u64::MAX).filter(|key| bucket(*key) == bucket(0)).take(4).collect();
    let (begin, end, done) = (&Barrier::new(3), &Barrier::new(3), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                neighbours.iter().for_each(|key| _ = table.learn(0, mac(*key), PortId(9), 100, at(0)));
                neighbours.iter().for_each(|key| _ = table.remove(0, mac(*key)));
            }
        });
        for port in [A, B] {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    begin.wait();
                    table.learn(0, mac(0), port, 10, at(0));
                    end.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            begin.wait();
            end.wait();
            let here =
                table.all(table.everything()).filter(|f| table.key_of(f.bucket, f.word) == (0, mac(0)));
            assert_eq!(here.count(), 1);
            assert_eq!(learned(table, A) + learned(table, B), 1);
            assert!(table.remove(0, mac(0)));
        }
        done.store(true, Relaxed);
    });
}
