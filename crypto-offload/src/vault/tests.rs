//! The vault across processes, which are played by one opening after another of the same memory.

use super::*;
use crate::algorithm::{Cipher, Direction};
use std::os::unix::fs::FileExt;

fn memory(len: usize) -> OwnedFd {
    ::memory::Area::shared(len, "vault").expect("memory").1
}

fn again(fd: &OwnedFd) -> Vault {
    Vault::from_fd(fd.try_clone().expect("a descriptor")).expect("a vault")
}

fn cipher(key: &[u8]) -> KeySpec<'_> {
    KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key }
}

/// All of the memory, as a thief would read it.
fn contents(fd: &OwnedFd) -> Vec<u8> {
    let file = std::fs::File::from(fd.try_clone().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn holds(fd: &OwnedFd, key: &[u8]) -> bool {
    contents(fd).windows(key.len()).any(|window| window == key)
}

fn ids(device: &DeviceVault) -> Vec<u64> {
    device.entries().iter().map(Entry::id).collect()
}

#[test]
fn sessions_of_every_kind_are_there_for_the_next_process() {
    let fd = memory(1 << 20);
    let device = again(&fd).device("a");
    for (id, spec) in spec::every_kind().iter().enumerate() {
        device.put(id as u64 + 100, Origin::NONE, spec).unwrap();
    }
    let entries = again(&fd).device("a").entries();
    assert_eq!(entries.len(), spec::every_kind().len());
    for entry in entries {
        let expected = &spec::every_kind()[entry.id() as usize - 100];
        let found = entry.spec().expect("a session");
        assert_eq!(*spec::encode(&found).unwrap(), *spec::encode(expected).unwrap());
    }
}

#[test]
fn a_device_finds_its_own_sessions_only() {
    let fd = memory(1 << 16);
    let (a, b) = (again(&fd).device("a"), again(&fd).device("b"));
    a.put(1, Origin::NONE, &cipher(&[1; 16])).unwrap();
    let vault = again(&fd);
    assert_eq!((ids(&vault.device("a")), ids(&vault.device("b"))), (vec![1], vec![]));
    assert!(b.find(Origin::message(1)).is_none());
}

#[test]
fn a_closed_session_leaves_nothing_of_its_key() {
    let fd = memory(1 << 16);
    let device = again(&fd).device("a");
    let (first, second) = ([0xc5; 32], [0x3a; 32]);
    device.put(1, Origin::NONE, &cipher(&first)).unwrap();
    device.put(2, Origin::NONE, &cipher(&second)).unwrap();
    assert!(holds(&fd, &first) && holds(&fd, &second));
    device.remove(1);
    assert!(!holds(&fd, &first) && holds(&fd, &second));
    assert_eq!(ids(&again(&fd).device("a")), [2]);
    device.clear();
    assert!(!holds(&fd, &second));
    assert!(ids(&again(&fd).device("a")).is_empty());
}

#[test]
fn a_message_that_comes_again_finds_the_session_it_has_made() {
    let fd = memory(1 << 16);
    let device = again(&fd).device("a");
    device.put(7, Origin::message(3), &cipher(&[1; 16])).unwrap();
    let next = again(&fd).device("a");
    assert_eq!(next.find(Origin::message(3)), Some(7));
    assert_eq!((next.find(Origin::message(4)), next.find(Origin::NONE)), (None, None));
    next.settle();
    assert_eq!(next.find(Origin::message(3)), Some(7), "only the control queue is settled");
    next.remove(7);
    assert_eq!(next.find(Origin::message(3)), None);
}

#[test]
fn a_control_request_that_was_published_does_not_answer_for_a_later_one() {
    let fd = memory(1 << 16);
    let device = again(&fd).device("a");
    device.put(7, Origin::control(5), &cipher(&[1; 16])).unwrap();
    let next = again(&fd).device("a");
    assert_eq!(next.find(Origin::control(5)), Some(7));
    next.settle();
    assert_eq!(next.find(Origin::control(5)), None);
    assert_eq!(again(&fd).device("a").find(Origin::control(5)), None);
    assert_eq!(ids(&next), [7]);
}

/// It was published, and its process killed before it knew that.
#[test]
fn a_control_request_that_was_not_settled_does_not_answer_for_a_later_one() {
    let fd = memory(1 << 16);
    let device = again(&fd).device("a");
    device.put(1, Origin::NONE, &cipher(&[1; 16])).unwrap();
    device.put(7, Origin::control(5), &cipher(&[7; 16])).unwrap();
    device.remove(1);
    // In front of the other one.
    again(&fd).device("a").put(8, Origin::control(5), &cipher(&[8; 16])).unwrap();
    let next = again(&fd).device("a");
    assert_eq!((ids(&next), next.find(Origin::control(5))), (vec![7, 8], Some(8)));
}

#[test]
fn bytes_of_a_key_that_look_like_a_session_are_none() {
    let fd = memory(1 << 16);
    let bytes = spec::encode(&cipher(&[1; 16])).unwrap();
    let (slots, len) = (slots_of(bytes.len()) as u32, bytes.len() as u64);
    let mut head = Head { state: LIVE, slots, device: device_key("victim"), id: 7, origin: 0, len, check: 0 };
    head.check = head.sum(0, &bytes);
    // At the start of the second slot: before the key are its own head and eight numbers.
    let mut der = vec![0; SLOT - size_of::<Head>() - 32];
    der.extend_from_slice(head.as_bytes());
    der.extend_from_slice(&bytes);
    der.resize(600, 0);
    let algorithm = crate::algorithm::Akcipher::Rsa { padding: crate::algorithm::RsaPadding::Raw };
    let kind = crate::algorithm::KeyKind::Private;
    let attacker = again(&fd).device("attacker");
    attacker.put(1, Origin::NONE, &KeySpec::Akcipher { algorithm, kind, der: &der }).unwrap();
    // As if the process had died just before the last store.
    let file = std::fs::File::from(fd.try_clone().unwrap());
    file.write_all_at(&0u32.to_ne_bytes(), offset(0) as u64).unwrap();
    assert!(ids(&again(&fd).device("victim")).is_empty());
    assert!(!holds(&fd, &der[..200]) && !holds(&fd, &bytes));
}

#[test]
fn a_session_cut_off_by_a_kill_is_none_and_is_wiped() {
    let fd = memory(1 << 16);
    let device = again(&fd).device("a");
    let key = [0xc5; 32];
    device.put(1, Origin::NONE, &cipher(&[1; 16])).unwrap();
    device.put(2, Origin::NONE, &cipher(&key)).unwrap();
    // As if the process had died just before the last store.
    let file = std::fs::File::from(fd.try_clone().unwrap());
    file.write_all_at(&0u32.to_ne_bytes(), offset(1) as u64).unwrap();
    assert_eq!(ids(&again(&fd).device("a")), [1]);
    assert!(!holds(&fd, &key));
}

#[test]
fn what_a_stray_store_has_hit_is_no_session() {
    let fd = memory(1 << 16);
    let device = again(&fd).device("a");
    device.put(1, Origin::NONE, &cipher(&[1; 16])).unwrap();
    device.put(2, Origin::NONE, &cipher(&[2; 16])).unwrap();
    let file = std::fs::File::from(fd.try_clone().unwrap());
    file.write_all_at(&[0xff; 4], offset(0) as u64 + 80).unwrap();
    assert_eq!(ids(&again(&fd).device("a")), [2]);
    file.write_all_at(&[0xff; 4096], offset(0) as u64).unwrap();
    assert!(ids(&again(&fd).device("a")).is_empty());
}

#[test]
fn a_full_vault_says_so_and_has_room_again_when_sessions_close() {
    let fd = memory(FIRST + 8 * SLOT);
    let device = again(&fd).device("a");
    let long = [5; 4 * SLOT];
    let spec = |key| KeySpec::Mac { hash: crate::algorithm::Hash::Sha1, key, result_len: 20 };
    for id in 0..8 {
        device.put(id, Origin::NONE, &cipher(&[id as u8; 16])).unwrap();
    }
    assert_eq!(device.put(8, Origin::NONE, &cipher(&[8; 16])), Err(VaultFull));
    (1..7).for_each(|id| device.remove(id));
    assert_eq!(device.put(9, Origin::NONE, &spec(&long)), Ok(()));
    assert_eq!(ids(&again(&fd).device("a")), [0, 7, 9]);
    assert_eq!(device.put(10, Origin::NONE, &spec(&long)), Err(VaultFull));
}

#[test]
fn room_is_used_again_before_more_of_it_is_locked() {
    let fd = memory(1 << 20);
    let vault = again(&fd);
    let device = vault.device("a");
    for id in 0..10_000 {
        device.put(id, Origin::NONE, &cipher(&[1; 16])).unwrap();
        device.remove(id);
    }
    assert!(vault.lock().used <= 2, "{} slots", vault.lock().used);
}

#[test]
fn random_sessions_are_the_same_in_the_next_process() {
    use proptest::prelude::*;
    let operation = (0u64..12, 0usize..12, any::<bool>(), 0u8..30);
    proptest!(ProptestConfig::with_cases(64), |(operations in prop::collection::vec(operation, 1..80))| {
        let fd = memory(1 << 18);
        let mut vault = again(&fd);
        let mut model = BTreeMap::new();
        for (id, kind, keep, die) in operations {
            if keep {
                let spec = spec::every_kind()[kind];
                vault.device("a").put(id, Origin::NONE, &spec).unwrap();
                model.insert(id, spec::encode(&spec).unwrap().to_vec());
            } else {
                vault.device("a").remove(id);
                model.remove(&id);
            }
            if die == 0 {
                vault = again(&fd);
            }
            let found: BTreeMap<_, _> = vault.device("a").entries().into_iter()
                .map(|entry| (entry.id(), spec::encode(&entry.spec().unwrap()).unwrap().to_vec())).collect();
            prop_assert_eq!(&found, &model);
        }
    });
}
