//! Sessions under every order of events.

use super::*;
use crate::algorithm::{Cipher, Direction};
use proptest::prelude::*;
use std::collections::HashMap;

const KEY: [u8; 32] = [9; 32];

fn spec(len: usize) -> KeySpec<'static> {
    KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key: &KEY[..len] }
}

fn sessions(limit: u32) -> Arc<Sessions> {
    Arc::new(Sessions::new(limit, None))
}

fn cache(sessions: &Arc<Sessions>) -> (Cache, Arc<Bell>) {
    let bell = Arc::new(Bell::new().unwrap());
    (Cache::new(sessions.clone(), bell.clone()), bell)
}

fn create(sessions: &Sessions) -> SessionId {
    sessions.create(&spec(16), Origin::NONE).unwrap()
}

#[test]
fn a_session_is_found_until_it_is_closed() {
    let sessions = sessions(8);
    let (mut cache, bell) = cache(&sessions);
    let id = create(&sessions);
    assert!(cache.acquire(id).is_some());
    cache.release(id);
    assert!(sessions.close(id));
    assert!(cache.acquire(id).is_none(), "before the worker has heard of it");
    assert!(bell.take());
    cache.sweep();
    assert_eq!(cache.held(), 0, "the keys are gone");
    assert!(!sessions.close(id), "it is closed once");
}

#[test]
fn keys_live_as_long_as_a_request_uses_them_and_no_longer() {
    let sessions = sessions(8);
    let (mut cache, bell) = cache(&sessions);
    let id = create(&sessions);
    let key = Arc::downgrade(cache.acquire(id).unwrap());
    assert!(cache.acquire(id).is_some(), "two requests");
    assert!(sessions.close(id));
    assert!(bell.take());
    cache.sweep();
    cache.release(id);
    assert!(key.upgrade().is_some(), "one is still in flight");
    assert!(cache.get(id).is_some());
    cache.release(id);
    assert!(key.upgrade().is_none());
    let mut gone = 0;
    cache.forgotten(|_| gone += 1);
    assert_eq!(gone, 1, "engines are told once");
}

#[test]
fn a_place_given_away_again_does_not_mix_its_sessions_up() {
    let sessions = sessions(1);
    let (mut cache, bell) = cache(&sessions);
    let first = create(&sessions);
    let key = Arc::downgrade(cache.acquire(first).unwrap());
    assert!(sessions.close(first));
    let second = loop {
        let id = create(&sessions);
        if id.index() == first.index() {
            break id;
        }
        assert!(sessions.close(id));
    };
    assert_ne!(first, second, "another generation");
    assert!(cache.acquire(first).is_none());
    assert!(cache.acquire(second).is_some());
    assert!(bell.take());
    cache.sweep();
    assert!(key.upgrade().is_some());
    cache.release(first);
    assert!(key.upgrade().is_none(), "the retired one goes with its request");
    cache.release(second);
    assert_eq!(cache.held(), 1);
}

#[test]
fn a_lower_limit_keeps_what_is_open_and_refuses_more() {
    let sessions = sessions(4);
    let ids: Vec<_> = (0..4).map(|_| create(&sessions)).collect();
    sessions.set_limit(2);
    assert!(sessions.close(ids[0]) && sessions.close(ids[1]));
    assert_eq!(sessions.create(&spec(16), Origin::NONE), Err(SessionError::Limit(2)));
    sessions.set_limit(3);
    create(&sessions);
}

#[test]
fn more_sessions_than_the_limit_are_refused_until_one_is_closed() {
    let sessions = sessions(3);
    let ids: Vec<_> = (0..3).map(|_| create(&sessions)).collect();
    assert_eq!(sessions.create(&spec(16), Origin::NONE), Err(SessionError::Limit(3)));
    assert!(sessions.close(ids[1]));
    let again = create(&sessions);
    assert!(!ids.contains(&again));
    let figures = sessions.figures();
    assert_eq!((figures.open, figures.created, figures.closed, figures.refused), (3, 4, 1, 1));
}

#[test]
fn a_bad_key_makes_no_session() {
    let sessions = sessions(3);
    let refused = sessions.create(&spec(5), Origin::NONE);
    assert!(matches!(refused, Err(SessionError::Key(_))), "{refused:?}");
    assert_eq!(sessions.open(), 0);
}

#[test]
fn ids_fit_an_int_and_come_again_as_late_as_possible() {
    let sessions = sessions(1 << 16);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..10_000 {
        let id = create(&sessions);
        assert!(id.wire() > 0 && i32::try_from(id.wire()).is_ok());
        assert!(seen.insert(id), "{id:?} was used before");
        assert!(sessions.close(id));
    }
}

#[test]
fn ids_that_no_session_can_have_are_refused() {
    let sessions = sessions(4);
    let (mut cache, _) = cache(&sessions);
    let id = create(&sessions);
    for wire in [0, u64::MAX, 1 << 31, 1 << 32 | id.wire(), i64::MAX as u64] {
        assert_eq!(SessionId::from_wire(wire), None, "{wire:#x}");
    }
    for wire in [1, 2, 3, id.wire() ^ 1, id.wire() + 4, 0x7fff_ffff] {
        let other = SessionId::from_wire(wire).unwrap();
        assert!(cache.acquire(other).is_none(), "{wire:#x}");
        assert!(!sessions.close(other), "{wire:#x}");
    }
}

#[test]
fn a_disconnect_closes_all_of_them_everywhere() {
    let sessions = sessions(100);
    let (mut one, bell_one) = cache(&sessions);
    let (mut two, bell_two) = cache(&sessions);
    let ids: Vec<_> = (0..100).map(|_| create(&sessions)).collect();
    for id in &ids[..50] {
        assert!(one.acquire(*id).is_some());
        one.release(*id);
    }
    assert!(two.acquire(ids[7]).is_some());
    sessions.close_all();
    assert_eq!(sessions.open(), 0);
    assert!(bell_one.take() && bell_two.take());
    one.sweep();
    two.sweep();
    assert_eq!((one.held(), two.held()), (0, 1));
    two.release(ids[7]);
    assert_eq!(two.held(), 0);
}

#[test]
fn a_cache_that_goes_tells_which_keys_it_had() {
    let sessions = sessions(4);
    let (mut cache, _) = cache(&sessions);
    for _ in 0..3 {
        let id = create(&sessions);
        assert!(cache.acquire(id).is_some());
        cache.release(id);
    }
    cache.clear();
    let mut gone = 0;
    cache.forgotten(|_| gone += 1);
    assert_eq!((gone, cache.held()), (3, 0));
}

#[test]
fn only_workers_that_know_a_session_are_woken_for_it() {
    let sessions = sessions(4);
    let (mut one, bell_one) = cache(&sessions);
    let (_two, bell_two) = cache(&sessions);
    let id = create(&sessions);
    assert!(one.acquire(id).is_some());
    assert!(sessions.close(id));
    assert!(bell_one.is_rung() && !bell_two.is_rung());
    one.release(id);
}

#[test]
fn a_session_is_restored_under_its_id_and_never_over_another() {
    let before = sessions(8);
    let ids: Vec<_> = (0..8).map(|_| create(&before)).collect();
    let after = sessions(8);
    let (mut cache, _) = cache(&after);
    after.restore(ids[5], &spec(16)).unwrap();
    after.restore(ids[2], &spec(32)).unwrap();
    assert_eq!(after.restore(ids[5], &spec(16)), Err(SessionError::Restore(ids[5].wire())));
    assert!(cache.acquire(ids[5]).is_some() && cache.acquire(ids[2]).is_some());
    assert!(cache.acquire(ids[0]).is_none());
    let mut all: Vec<_> = (0..6).map(|_| create(&after)).collect();
    assert_eq!(after.create(&spec(16), Origin::NONE), Err(SessionError::Limit(8)));
    all.extend([ids[5], ids[2]]);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 8, "no id twice");
    let never = SessionId::from_wire(5).unwrap();
    assert!(after.restore(never, &spec(16)).is_err(), "no session has generation 0");
}

#[test]
fn the_id_of_a_closed_session_is_nobodys_in_the_next_process_either() {
    let (_, fd) = memory::Area::shared(1 << 20, "vault").unwrap();
    let process = || {
        let vault = crate::vault::Vault::from_fd(fd.try_clone().unwrap()).unwrap().device("a");
        let sessions = Sessions::new(8, Some(vault.clone()));
        for entry in vault.entries() {
            let id = SessionId::from_wire(entry.id()).unwrap();
            sessions.restore(id, &entry.spec().unwrap()).unwrap();
        }
        sessions
    };
    let mut known = std::collections::HashSet::new();
    let kept = create(&process());
    known.insert(kept);
    for _ in 0..4 {
        let sessions = process();
        assert_eq!(sessions.open(), 1, "the first one is still there");
        for _ in 0..600 {
            let id = create(&sessions);
            assert!(known.insert(id), "{id:?} was another session's");
            assert!(sessions.close(id));
        }
    }
}

#[test]
fn generations_go_around() {
    assert!(is_newer(2, 1) && !is_newer(1, 2) && !is_newer(7, 7));
    assert!(is_newer(1, LAST_GENERATION) && !is_newer(LAST_GENERATION, 1));
    assert_eq!(next_generation(LAST_GENERATION), 1);
}

#[test]
fn two_hundred_thousand_sessions_come_and_go() {
    let sessions = sessions(1024);
    let (mut cache, _) = cache(&sessions);
    let mut open = VecDeque::new();
    for round in 0..200_000 {
        let id = create(&sessions);
        if round % 16 == 0 {
            assert!(cache.acquire(id).is_some());
            cache.release(id);
        }
        open.push_back(id);
        if open.len() == 1000 {
            assert!(sessions.close(open.pop_front().unwrap()));
            cache.sweep();
        }
    }
    assert_eq!(sessions.open(), 999);
}

#[test]
fn sessions_made_by_one_thread_are_found_by_another_at_once() {
    let sessions = sessions(256);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<(SessionId, bool)>(1);
    let shared = sessions.clone();
    let user = std::thread::spawn(move || {
        let (mut cache, bell) = cache(&shared);
        let mut held = 0;
        while let Ok((id, live)) = receiver.recv() {
            if bell.take() {
                cache.sweep();
            }
            assert_eq!(cache.acquire(id).is_some(), live);
            if live {
                cache.release(id);
                held += 1;
            }
        }
        held
    });
    for _ in 0..2_000 {
        let id = create(&sessions);
        sender.send((id, true)).unwrap();
        // The channel has one place: the second send returns after the first was taken.
        sender.send((id, true)).unwrap();
        sender.send((id, true)).unwrap();
        sender.send((SessionId::from_wire(0x7fff_ffff).unwrap(), false)).unwrap();
        sender.send((SessionId::from_wire(0x7fff_ffff).unwrap(), false)).unwrap();
        assert!(sessions.close(id));
        sender.send((id, false)).unwrap();
    }
    drop(sender);
    assert_eq!(user.join().unwrap(), 6_000);
}

/// What may happen to sessions.
#[derive(Clone, Copy, Debug)]
enum Event {
    Create,
    Close(usize),
    Acquire(usize, usize),
    Release(usize, usize),
    Sweep(usize),
    CloseAll,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Create),
        3 => any::<usize>().prop_map(Event::Close),
        6 => (0usize..2, any::<usize>()).prop_map(|(user, id)| Event::Acquire(user, id)),
        6 => (0usize..2, any::<usize>()).prop_map(|(user, id)| Event::Release(user, id)),
        2 => (0usize..2).prop_map(Event::Sweep),
        1 => Just(Event::CloseAll),
    ]
}

proptest! {
    /// Whatever the order: a session is found exactly while it is open, its keys live while it is open or in flight, and
    /// once everything has ended nobody holds any.
    #[test]
    fn lookups_agree_with_a_model(events in proptest::collection::vec(event(), 1..200), limit in 1u32..6) {
        let sessions = sessions(limit);
        let mut caches = [cache(&sessions).0, cache(&sessions).0];
        let mut ids: Vec<SessionId> = Vec::new();
        let mut open: Vec<SessionId> = Vec::new();
        let mut in_flight: [HashMap<SessionId, u32>; 2] = Default::default();
        for event in events {
            let pick = |index: usize| (!ids.is_empty()).then(|| ids[index % ids.len()]);
            match event {
                Event::Create => match sessions.create(&spec(16), Origin::NONE) {
                    Ok(id) => {
                        prop_assert!(!open.contains(&id) && open.len() < limit as usize);
                        open.push(id);
                        ids.push(id);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, SessionError::Limit(limit));
                        prop_assert_eq!(open.len(), limit as usize);
                    }
                },
                Event::Close(index) => if let Some(id) = pick(index) {
                    prop_assert_eq!(sessions.close(id), open.contains(&id));
                    open.retain(|other| *other != id);
                },
                Event::Acquire(user, index) => if let Some(id) = pick(index) {
                    prop_assert_eq!(caches[user].acquire(id).is_some(), open.contains(&id));
                    if open.contains(&id) {
                        *in_flight[user].entry(id).or_default() += 1;
                    }
                },
                Event::Release(user, index) => if let Some(id) = pick(index) {
                    let left = in_flight[user].entry(id).or_default();
                    if *left > 0 {
                        caches[user].release(id);
                        *left -= 1;
                        prop_assert!(*left == 0 || caches[user].get(id).is_some() || !open.contains(&id));
                    }
                },
                Event::Sweep(user) => caches[user].sweep(),
                Event::CloseAll => {
                    sessions.close_all();
                    open.clear();
                }
            }
            prop_assert_eq!(sessions.open() as usize, open.len());
        }
        sessions.close_all();
        for (cache, in_flight) in caches.iter_mut().zip(&in_flight) {
            for (id, left) in in_flight {
                (0..*left).for_each(|_| cache.release(*id));
            }
            cache.sweep();
            prop_assert_eq!(cache.held(), 0);
        }
    }
}
