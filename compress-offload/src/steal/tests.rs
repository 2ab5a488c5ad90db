//! Members on threads of their own.

use super::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

fn team<T>(size: usize) -> (Vec<Member<T>>, Vec<Arc<Bell>>) {
    let bells: Vec<_> = (0..size).map(|_| Arc::new(Bell::new().unwrap())).collect();
    (Team::gather(bells.clone()), bells)
}

#[test]
fn a_task_that_is_stolen_comes_home_with_what_the_thief_made_of_it() {
    let (mut members, bells) = team::<u32>(3);
    members[0].offer(1);
    members[0].offer(2);
    let mut loan = members[2].steal().unwrap();
    assert_eq!(*loan.task(), 1, "the oldest");
    *loan.task() += 100;
    assert!(!bells[0].is_rung());
    drop(loan);
    assert!(bells[0].is_rung() && !bells[1].is_rung() && !bells[2].is_rung());
    let mut home = Vec::new();
    members[0].collect(&mut home);
    assert_eq!((home, members[0].take(), members[0].take()), (vec![101], Some(2), None));
}

#[test]
fn a_thief_that_panics_brings_its_task_back() {
    let (mut members, bells) = team::<&str>(2);
    members[0].offer("task");
    let mut thief = members.pop().unwrap();
    let panicked = thread::spawn(move || {
        let _loan = thief.steal().unwrap();
        panic!("an engine fails");
    });
    assert!(panicked.join().is_err());
    let mut home = Vec::new();
    members[0].collect(&mut home);
    assert_eq!(home, ["task"]);
    assert!(bells[0].take());
}

#[test]
fn a_worker_alone_shares_nothing() {
    let (mut members, _) = team::<u32>(1);
    assert_eq!((members[0].wants(), members[0].take()), (0, None));
    assert!(members[0].steal().is_none() && !members[0].lie_down());
}

#[test]
fn a_shelf_holds_what_the_others_can_take_soon() {
    let (mut members, _) = team::<u32>(4);
    assert_eq!(members[0].wants(), 3);
    members[1].set_idle(true);
    members[2].set_idle(true);
    assert_eq!((members[0].wants(), members[1].wants()), (5, 4));
    members[0].offer(1);
    assert_eq!(members[0].wants(), 4);
    let (crowd, _) = team::<u32>(60);
    assert_eq!(crowd[0].wants(), SHELF);
}

#[test]
fn sleepers_are_woken_for_what_is_on_the_shelf_and_thieves_wake_others_for_the_rest() {
    let (mut members, bells) = team::<u32>(4);
    (1..4).for_each(|seat| assert!(!members[seat].lie_down()));
    members[0].offer(1);
    assert_eq!(members[0].call(), 1);
    assert_eq!(bells.iter().filter(|bell| bell.is_rung()).count(), 1);
    members[0].offer(2);
    members[1].get_up();
    drop(members[1].steal());
    assert_eq!(bells[1..].iter().filter(|bell| bell.is_rung()).count(), 2);
    assert!(members[3].lie_down(), "there is something to steal");
}

/// Owners make tasks and steal when they have none; all sleep when there is nothing. Each task is done once, and comes home.
#[test]
fn nothing_is_lost_and_nothing_is_done_twice_under_contention() {
    const WORKERS: usize = 4;
    const TASKS: usize = if cfg!(miri) { 50 } else { 5_000 };
    let (members, bells) = team::<(usize, u32)>(WORKERS);
    let left = Arc::new(AtomicUsize::new(WORKERS * TASKS));
    let work = |(seat, mut member): (usize, Member<(usize, u32)>)| {
        let (left, bells) = (left.clone(), bells.clone());
        thread::spawn(move || {
            let (mut made, mut done, mut stolen) = (0, HashMap::<usize, u32>::new(), 0);
            let mut home = Vec::new();
            while left.load(Ordering::Acquire) > 0 {
                bells[seat].take();
                while made < TASKS && member.wants() > 0 {
                    member.offer((seat * TASKS + made, 0));
                    made += 1;
                }
                member.call();
                member.collect(&mut home);
                let own = member.take().map(|(tag, times)| (tag, times + 1));
                let ended = home.len() + usize::from(own.is_some());
                for (tag, times) in home.drain(..).chain(own) {
                    assert_eq!((tag / TASKS, times), (seat, 1));
                    *done.entry(tag).or_default() += 1;
                }
                left.fetch_sub(ended, Ordering::Release);
                member.set_idle(ended == 0);
                if ended == 0 {
                    match member.steal() {
                        Some(mut loan) => {
                            loan.task().1 += 1;
                            stolen += 1;
                        }
                        None if !member.lie_down() && !bells[seat].is_rung() => {
                            thread::sleep(Duration::from_micros(20));
                            member.get_up();
                        }
                        None => member.get_up(),
                    }
                }
            }
            (done, stolen)
        })
    };
    let threads: Vec<_> = members.into_iter().enumerate().map(work).collect();
    let mut stolen = 0;
    for thread in threads {
        let (done, by_it) = thread.join().unwrap();
        assert_eq!(done.len(), TASKS);
        assert!(done.values().all(|&times| times == 1));
        stolen += by_it;
    }
    println!("{stolen} of {} were stolen", WORKERS * TASKS);
}
