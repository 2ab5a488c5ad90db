//! The pool with keys that are looked at only: what it computes, the engine's tests say.

use super::*;
use crate::algorithm::{Akcipher, Curve, KeyKind};
use crate::engine::KeySpec;
use std::time::{Duration, Instant};

/// A key that no operation succeeds with.
fn key() -> Arc<Prepared> {
    let algorithm = Akcipher::Ecdsa { curve: Curve::P256 };
    Prepared::new(&KeySpec::Akcipher { algorithm, kind: KeyKind::Public, der: &[4; 65] }).unwrap()
}

fn task(tag: u64, device: u32, key: &Arc<Prepared>) -> Task {
    let (op, input, digest) = (AkcipherOp::Verify, Zeroizing::new(vec![0; 70]), vec![0; 32]);
    Task { tag, device, key: key.clone(), op, input, digest, slow: false }
}

fn collect(client: &mut Client, bell: &Bell, count: usize) -> Vec<u64> {
    let (mut answers, until) = (Vec::new(), Instant::now() + Duration::from_secs(20));
    while answers.len() < count {
        assert!(Instant::now() < until, "{} of {count} answers", answers.len());
        if bell.take() {
            client.collect(&mut answers);
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    answers.iter().map(|answer| answer.tag).collect()
}

#[test]
fn every_task_is_answered_once_and_the_bell_is_rung_for_it() {
    let pool = Pool::start(3).unwrap();
    let bell = Arc::new(Bell::new().unwrap());
    let mut client = pool.client(bell.clone());
    let key = key();
    for round in 0..50 {
        let count = 1 + round % 7;
        (0..count).for_each(|tag| client.submit(task(tag, 0, &key)));
        let mut tags = collect(&mut client, &bell, count as usize);
        tags.sort_unstable();
        assert_eq!(tags, (0..count).collect::<Vec<_>>());
        assert_eq!(client.in_flight(), 0);
    }
    assert_eq!(pool.figures().waiting, 0);
    assert_eq!(pool.figures().done, (0..50).map(|round| 1 + round % 7).sum::<u64>());
}

fn desk() -> Arc<Desk> {
    let bell = Arc::new(Bell::new().unwrap());
    Arc::new(Desk { bell, answers: Mutex::default(), left: AtomicUsize::new(0) })
}

/// The devices of all tasks, in the order in which threads take them.
fn order(mut line: Line) -> Vec<u32> {
    std::iter::from_fn(|| line.next()).map(|(task, _)| task.device).collect()
}

#[test]
fn devices_take_turns_however_many_tasks_one_has() {
    let (mut line, desk, key) = (Line::default(), desk(), key());
    for (device, count) in [(1, 5), (2, 2), (3, 1)] {
        (0..count).for_each(|tag| line.push(task(tag, device, &key), desk.clone()));
    }
    assert_eq!(order(line), [1, 2, 3, 1, 2, 1, 1, 1]);
}

#[test]
fn devices_take_turns_however_many_workers_one_has() {
    let (mut line, desks, key) = (Line::default(), [desk(), desk(), desk()], key());
    for tag in 0..6 {
        line.push(task(tag, 1, &key), desks[tag as usize % 3].clone());
    }
    (0..2).for_each(|tag| line.push(task(tag, 2, &key), desks[0].clone()));
    assert_eq!(order(line), [1, 2, 1, 2, 1, 1, 1, 1]);
}

#[test]
fn a_worker_hears_nothing_of_another_ones_answers() {
    let pool = Pool::start(1).unwrap();
    let bells = [Arc::new(Bell::new().unwrap()), Arc::new(Bell::new().unwrap())];
    let mut one = pool.client(bells[0].clone());
    let mut two = pool.client(bells[1].clone());
    let key = key();
    one.submit(task(1, 0, &key));
    assert_eq!(collect(&mut one, &bells[0], 1), [1]);
    assert!(!bells[1].is_rung());
    two.submit(task(2, 0, &key));
    assert_eq!(collect(&mut two, &bells[1], 1), [2]);
}

#[test]
fn a_pool_that_goes_finishes_what_it_has() {
    let pool = Pool::start(2).unwrap();
    let bell = Arc::new(Bell::new().unwrap());
    let mut client = pool.client(bell);
    let key = key();
    (0..100).for_each(|tag| client.submit(task(tag, tag as u32 % 3, &key)));
    drop(pool);
    let mut answers = Vec::new();
    client.collect(&mut answers);
    assert_eq!((answers.len(), client.in_flight()), (100, 0));
}
