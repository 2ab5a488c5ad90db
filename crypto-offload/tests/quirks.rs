//! What QEMU's cryptodev frontend does and leaves out (found by running QEMU 7.2 and in the sources of 10.0), each as a test
//! named after its row in the table of quirks (n was found later), and what else befalls sessions and rings. Rows h, i, j and m
//! are about QEMU's command line and its own faults: no backend can see them.

mod frontend;

use crypto_offload::features::STATELESS_MODES;
use crypto_offload::vault::Vault;
use frontend::wire::{self, DESCRIPTIONS, INVSESS, OK, cbc_description};
use frontend::{Cryptodev, Guest, SIZE, Server, Setup, Whole, driver_queue, eventually};
use memory::Area;
use std::time::{Duration, Instant};
use vhost_user::message::{features, protocol};
use virtqueue::RingFeatures;
use virtqueue::driver::Segment;

/// What Linux negotiates with QEMU 7.2, and QEMU keeps to itself.
const LINUX: RingFeatures = RingFeatures { event_idx: true, indirect: true, in_order: false, packed: false };
/// A driver that negotiates nothing but VERSION_1.
const PLAIN: RingFeatures =
    RingFeatures { event_idx: false, indirect: false, in_order: false, packed: false };

/// Everything the device offers but stateless modes, which have requests of another shape.
const PACKED: u64 = !STATELESS_MODES;
/// The same on split rings.
const SPLIT: u64 = PACKED & !features::RING_PACKED;

#[test]
fn a_requests_in_indirect_tables_are_served_although_nobody_negotiated_them() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
    for round in 0..600 {
        // The shape of Linux: 72 bytes, IV, source; destination, status. Sometimes a direct one between them.
        let readable: [&[u8]; 3] = [&header, &wire::IV, &wire::PLAIN];
        let ticket = match round % 3 {
            0 => qemu.guest.add(&mut qemu.queue, &readable, &[32, 1]),
            _ => qemu.guest.add_indirect(&mut qemu.queue, &readable, &[32, 1]),
        };
        qemu.queue.publish().unwrap();
        let used = qemu.guest.wait(&mut qemu.queue);
        assert_eq!((used.cookie, used.len), (ticket.cookie, 33));
        assert_eq!(qemu.guest.outcome(&ticket), [&wire::SECRET[..], &[OK]].concat());
    }
    assert_eq!(server.notifier.status().features, features::PROTOCOL_FEATURES, "bit 30 and no other");
}

/// One request after another, each side asleep in between: whoever forgets the other shows as a stall.
#[test]
fn b_neither_a_driver_with_event_idx_nor_one_without_is_left_waiting() {
    for driver in [LINUX, PLAIN] {
        let server = Server::new();
        let mut qemu = Cryptodev::running(&server, driver);
        let id = qemu.create(&cbc_description(632)) as u64;
        let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
        let begin = Instant::now();
        for _ in 0..500 {
            let ticket = qemu.guest.add(&mut qemu.queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
            qemu.queue.publish().unwrap();
            assert_eq!(qemu.guest.sleep_for(&mut qemu.queue).cookie, ticket.cookie);
        }
        // A fallback that polls would make up for a lost kick, and take its time.
        assert!(begin.elapsed() < Duration::from_secs(10), "{driver:?}: {:?}", begin.elapsed());
        let counted = server.queue(0);
        assert!(counted.kicks > 0 && counted.interrupts > 0, "{counted:?}");
    }
}

/// `avail_event` is an index of 16 bits: across its end a stale one would come round.
#[test]
fn b_kicks_go_on_after_the_index_of_the_ring_wraps() {
    let server = Server::new();
    let mut qemu = Cryptodev::connect(&server, LINUX);
    qemu.queue.ring.start_at(65_500).unwrap();
    qemu.start_at(65_500);
    let id = qemu.create(&cbc_description(632)) as u64;
    let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
    for _ in 0..100 {
        let ticket = qemu.guest.add(&mut qemu.queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
        qemu.queue.publish().unwrap();
        assert_eq!(qemu.guest.sleep_for(&mut qemu.queue).cookie, ticket.cookie);
    }
}

#[test]
fn c_a_ring_runs_although_vring_enable_is_never_sent() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632));
    qemu.check_vector(id as u64);
    let status = server.notifier.status();
    assert!(status.protocol_features & protocol::CRYPTO_SESSION != 0);
    assert!(status.rings.iter().any(|ring| ring.index == 0 && ring.started && ring.enabled));
}

#[test]
fn c_vring_enable_is_obeyed_where_it_is_sent() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.frontend.set_vring_enable(0, false).unwrap();
    qemu.sync();
    let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
    let ticket = qemu.guest.add(&mut qemu.queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
    qemu.queue.publish().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert!(qemu.queue.ring.pop().is_none(), "a disabled ring is left alone");
    qemu.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(qemu.guest.wait(&mut qemu.queue).cookie, ticket.cookie);
    drop(qemu);
    // Door B: rings wait for it, see `doors_are_told_apart_on_every_connection`, and run when it comes.
    let mut vmm = Whole::running(&server, SPLIT);
    let id = vmm.session(&wire::create_cbc());
    vmm.check_vector(id);
}

#[test]
fn d_only_the_first_of_several_queues_is_ever_started() {
    let server = Server::with(Setup { data_queues: 4, ..Setup::default() });
    let mut qemu = Cryptodev::connect(&server, LINUX);
    for _ in 1..4 {
        qemu.handshake();
    }
    qemu.start();
    let id = qemu.create(&cbc_description(1072)) as u64;
    for _ in 0..100 {
        qemu.check_vector(id);
    }
    let started: Vec<u16> =
        server.notifier.status().rings.iter().filter(|ring| ring.started).map(|ring| ring.index).collect();
    assert_eq!(started, [0]);
}

#[test]
fn e_handshakes_are_repeated_for_every_queue_on_one_socket() {
    let server = Server::new();
    let mut qemu = Cryptodev::connect(&server, LINUX);
    qemu.handshake();
    qemu.start();
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
    // Even while the ring runs: sessions and ring stay.
    for _ in 0..3 {
        qemu.handshake();
        qemu.frontend.set_features(features::PROTOCOL_FEATURES).unwrap();
        qemu.check_vector(id);
    }
    assert_eq!(server.notifier.status().refused, 0);
}

#[test]
fn f_config_is_offered_and_may_be_left_out() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let offered = qemu.frontend.get_protocol_features().unwrap();
    let needed = protocol::CONFIG | protocol::CRYPTO_SESSION | protocol::MQ | protocol::REPLY_ACK;
    assert_eq!(offered & needed, needed);
    assert_eq!(server.notifier.status().protocol_features & protocol::CONFIG, 0);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
}

/// QEMU knows more protocol features with every release, and chooses all it knows.
#[test]
fn f_everything_but_config_may_be_chosen() {
    let server = Server::new();
    for not_yet in [0, protocol::CONFIGURE_MEM_SLOTS, protocol::STATUS] {
        let mut qemu = Cryptodev::choosing(&server, LINUX, !(protocol::CONFIG | not_yet));
        qemu.start();
        let id = qemu.create(&cbc_description(1072)) as u64;
        qemu.check_vector(id);
        assert_eq!(server.notifier.status().refused, 0);
    }
}

/// QEMU repeats the handshake after a reconnect, and sends neither memory nor rings again: its guest hangs, which only a keeper
/// of the connection can prevent. The device at least must not mind, nor keep keys.
#[test]
fn g_a_reconnect_brings_a_handshake_and_nothing_else() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
    drop(qemu);
    eventually("the keys are gone", || server.sessions() == 0);
    let again = Cryptodev::connect(&server, LINUX);
    std::thread::sleep(Duration::from_millis(20));
    assert!(server.notifier.status().rings.iter().all(|ring| !ring.started));
    drop(again);
    // A new QEMU is served from the beginning, and the old identifier means nothing to it.
    let mut next = Cryptodev::running(&server, LINUX);
    assert_eq!(next.cipher(wire::ENCRYPT, id, &wire::IV, &wire::PLAIN).1, INVSESS);
    let id = next.create(&cbc_description(632)) as u64;
    next.check_vector(id);
}

/// Every `setkey` makes two sessions, every new key closes two, a self-test does 90 of each; 1,024 were the limit of other
/// backends.
#[test]
fn k_two_hundred_thousand_sessions_come_and_go() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    for len in DESCRIPTIONS {
        let [encrypt, decrypt] = [1, 2].map(|direction| wire::description(len, 3, direction, &wire::KEY));
        for _ in 0..50_000 {
            let pair = [qemu.create(&encrypt), qemu.create(&decrypt)];
            assert!(pair[0] >= 0 && pair[1] >= 0 && pair[0] != pair[1]);
            pair.iter().for_each(|id| qemu.close(*id as u64));
        }
    }
    qemu.sync();
    let figures = server.unit.sessions().figures();
    assert_eq!((figures.open, figures.created, figures.closed), (0, 200_000, 200_000));
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
}

#[test]
fn k_more_sessions_are_open_at_once_than_other_backends_have_room_for() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let mut ids: Vec<i64> = (0..3000).map(|at| qemu.create(&cbc_description(DESCRIPTIONS[at % 2]))).collect();
    qemu.check_vector(ids[0] as u64);
    qemu.check_vector(ids[2999] as u64);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), server.sessions()), (3000, 3000));
}

/// The description holds addresses of QEMU's own, and numbers of the guest that QEMU does not check.
#[test]
fn l_nothing_in_a_description_is_believed() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    for len in DESCRIPTIONS {
        let mut pointers = cbc_description(len);
        pointers[40..56].fill(0xff);
        let id = qemu.create(&pointers);
        assert!(id >= 0);
        qemu.check_vector(id as u64);
        let wrong = |change: fn(&mut [u8])| {
            let mut description = cbc_description(len);
            change(&mut description);
            description
        };
        for description in [
            wrong(|d| d[8] = 1),                                 // ARC4
            wrong(|d| d[8..12].fill(0xff)),                      // no cipher at all
            wrong(|d| d[12] = 17),                               // a key that no AES has
            wrong(|d| d[12] = 65),                               // longer than the room for it
            wrong(|d| d[12..16].fill(0xff)),                     // longer than anything
            wrong(|d| d[32] = 0),                                // no operation
            wrong(|d| d[33] = 3),                                // no direction
            wrong(|d| d[32..36].copy_from_slice(&[2, 1, 3, 1])), // a nested hash
        ] {
            assert_eq!(qemu.create(&description), -1);
        }
    }
    assert_eq!(server.sessions(), 2);
}

/// Linux up to 6.1 at least gives each page of a request as a list of its own, and every list goes on to its end: n pages become
/// n(n+1)/2 descriptors, of which the first n count. The status is the last byte of all.
#[test]
fn n_linux_repeats_the_rest_of_every_list_of_pages() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let [encrypt, decrypt] =
        [1, 2].map(|direction| qemu.create(&wire::description(632, 3, direction, &wire::KEY)) as u64);
    for pages in [1, 2, 3, 17] {
        let text: Vec<u8> = (0..pages * 4096 - 16).map(|at| (at * 7 % 251) as u8).collect();
        let source: Vec<_> = text.chunks(4096).map(|page| qemu.guest.put(page)).collect();
        let target: Vec<_> = source.iter().map(|page| qemu.guest.put(&vec![0; page.len as usize])).collect();
        let repeated =
            |list: &[Segment]| (0..list.len()).flat_map(|at| list[at..].to_vec()).collect::<Vec<_>>();
        // Encrypted out of place, then decrypted in place.
        for (opcode, id, from, to) in
            [(wire::ENCRYPT, encrypt, &source, &target), (wire::DECRYPT, decrypt, &target, &target)]
        {
            let header = qemu.guest.put(&wire::cipher(opcode, id, 16, text.len(), text.len()));
            let (iv, status) = (qemu.guest.put(&wire::IV), qemu.guest.put(&[0xee]));
            let readable = [vec![header, iv], repeated(from)].concat();
            let writable = [repeated(to), vec![status]].concat();
            let ticket = qemu.guest.submit(&mut qemu.queue, &readable, &writable);
            let used = qemu.guest.wait(&mut qemu.queue);
            assert_eq!((used.cookie, qemu.guest.get(&status)), (ticket.cookie, vec![OK]), "{pages} pages");
        }
        let back: Vec<u8> = target.iter().flat_map(|page| qemu.guest.get(page)).collect();
        assert!(back == text, "{pages} pages");
        assert!(source.iter().flat_map(|page| qemu.guest.get(page)).eq(text.iter().copied()));
    }
}

#[test]
fn descriptions_of_any_other_size_end_the_connection_and_nothing_else() {
    let server = Server::new();
    for len in [0, 8, 631, 633, 640, 1071, 1073, 4000] {
        let mut qemu = Cryptodev::running(&server, LINUX);
        let code = vhost_user::message::Request::CreateCryptoSession;
        assert!(qemu.frontend.query(code, &vec![0; len], &[]).is_err(), "{len} bytes");
    }
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(1072)) as u64;
    qemu.check_vector(id);
}

#[test]
fn an_rsa_session_comes_in_the_new_size_only() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    // RSAPublicKey of 64 bits: too small to be of use, but a session is only looked at when it is used.
    let der = [0x30, 0x0e, 2, 9, 0, 0xc5, 1, 2, 3, 4, 5, 6, 7, 2, 1, 3];
    assert!(qemu.create(&wire::rsa_description(1, 1, 5, &der)) >= 0);
    assert_eq!(qemu.create(&wire::rsa_description(1, 2, 5, &der)), -1, "no such padding");
    assert_eq!(qemu.create(&wire::rsa_description(3, 0, 0, &der)), -1, "neither public nor private");
}

#[test]
fn closing_what_is_not_open_harms_nobody() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    for unknown in [0, id + 1, id ^ 1 << 30, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        qemu.close(unknown);
    }
    qemu.check_vector(id);
    qemu.close(id);
    qemu.close(id);
    qemu.sync();
    assert_eq!(qemu.cipher(wire::ENCRYPT, id, &wire::IV, &wire::PLAIN).1, INVSESS);
    assert_eq!(server.sessions(), 0);
}

/// Requests are in flight all the time, while other sessions come and go and their own is closed under them.
#[test]
fn sessions_are_made_and_closed_while_data_is_in_flight() {
    let server = Server::new();
    let Cryptodev { mut frontend, mut queue, mut guest, .. } = Cryptodev::running(&server, LINUX);
    let create = |frontend: &mut vhost_user::frontend::Frontend| {
        frontend.create_crypto_session(&cbc_description(632)).unwrap()
    };
    let steady = create(&mut frontend);
    for _ in 0..60 {
        let doomed = create(&mut frontend);
        let mut tickets = Vec::new();
        for at in 0..40 {
            let id = if at % 2 == 0 { steady } else { doomed };
            let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
            let ticket = guest.add_indirect(&mut queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
            tickets.push((id, ticket));
            queue.publish().unwrap();
        }
        frontend.close_crypto_session(doomed).unwrap();
        let other = create(&mut frontend);
        frontend.close_crypto_session(other).unwrap();
        for _ in 0..tickets.len() {
            guest.wait(&mut queue);
        }
        for (id, ticket) in &tickets {
            let outcome = guest.outcome(ticket);
            let (result, status) = outcome.split_at(32);
            match status[0] {
                OK => assert_eq!(result, wire::SECRET),
                status => assert_eq!((*id, status), (doomed, INVSESS), "only the closed one may be gone"),
            }
        }
    }
    assert_eq!(server.sessions(), 1);
}

#[test]
fn a_full_device_refuses_a_session_and_takes_one_again_when_another_is_closed() {
    let server = Server::with(Setup { sessions: 5, ..Setup::default() });
    let mut qemu = Cryptodev::running(&server, LINUX);
    let ids: Vec<i64> = (0..5).map(|_| qemu.create(&cbc_description(632))).collect();
    assert!(ids.iter().all(|id| *id >= 0));
    assert_eq!(qemu.create(&cbc_description(632)), -1);
    assert_eq!(qemu.create(&cbc_description(1072)), -1);
    qemu.close(ids[2] as u64);
    let id = qemu.create(&cbc_description(1072));
    assert!(id >= 0 && !ids.contains(&id), "an identifier is not given away again at once");
    qemu.check_vector(id as u64);
}

#[test]
fn a_full_device_says_no_space_on_the_control_queue() {
    let server = Server::with(Setup { sessions: 5, ..Setup::default() });
    let mut vmm = Whole::running(&server, SPLIT);
    let ids: Vec<u64> = (0..5).map(|_| vmm.session(&wire::create_cbc())).collect();
    assert_eq!(vmm.create(&wire::create_cbc()), (0, wire::NOSPC.into()));
    assert_eq!(vmm.control(&wire::destroy(0x003, ids[0], true), 1), [OK]);
    let id = vmm.session(&wire::create_cbc());
    vmm.check_vector(id);
}

/// A keeper numbers its creations, and repeats the one that a process had not answered when it died.
#[test]
fn a_creation_that_is_repeated_after_a_crash_gives_the_same_session() {
    let (_, fd) = Area::shared(1 << 20, "vault").unwrap();
    let vault = Vault::from_fd(fd.try_clone().unwrap()).unwrap().device("test");
    let server = Server::keeping(Setup::default(), Some(vault));
    let mut keeper = Cryptodev::running(&server, LINUX);
    let numbered = |len: usize, number: u64| {
        let mut description = cbc_description(len);
        let at = if len == 632 { 0 } else { 1064 };
        description[at..at + 8].copy_from_slice(&number.to_ne_bytes());
        description
    };
    let ids = [(632, 7), (1072, 8)].map(|(len, number)| keeper.create(&numbered(len, number)));
    // The next process finds what is recorded.
    let next = Vault::from_fd(fd).unwrap().device("test");
    let second = Server::keeping(Setup::default(), Some(next));
    let mut again = Cryptodev::running(&second, LINUX);
    assert_eq!(second.sessions(), 2);
    assert_eq!([(632, 7), (1072, 8)].map(|(len, number)| again.create(&numbered(len, number))), ids);
    assert_eq!(second.sessions(), 2);
    ids.iter().for_each(|id| again.check_vector(*id as u64));
    let other = again.create(&numbered(632, 9));
    assert!(!ids.contains(&other) && other >= 0);
    // Without a number each message is a session of its own.
    assert_ne!(again.create(&cbc_description(632)), again.create(&cbc_description(632)));
    assert_eq!(second.sessions(), 5);
}

/// `stop` and `cont` of QEMU: the guest notices nothing.
#[test]
fn a_pause_keeps_the_sessions() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    for _ in 0..3 {
        qemu.check_vector(id);
        let base = qemu.stop();
        qemu.handshake();
        qemu.start_at(base);
    }
    qemu.check_vector(id);
    drop(qemu);
    let mut vmm = Whole::running(&server, SPLIT);
    let id = vmm.session(&wire::create_cbc());
    for _ in 0..3 {
        vmm.check_vector(id);
        let bases = vmm.stop();
        vmm.session.frontend.set_status(0).unwrap();
        vmm.session.frontend.set_status(15).unwrap();
        vmm.start(&bases);
    }
    vmm.check_vector(id);
}

/// A reboot of the guest: its old sessions are nobody's, and would fill the device in the end.
#[test]
fn a_reset_of_the_driver_closes_its_sessions() {
    let server = Server::new();
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
    qemu.stop();
    qemu.renew(LINUX);
    qemu.start();
    assert_eq!(qemu.cipher(wire::ENCRYPT, id, &wire::IV, &wire::PLAIN).1, INVSESS);
    assert_eq!(server.sessions(), 0);
    drop(qemu);
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Whole::running(&server, wanted);
        let id = vmm.session(&wire::create_cbc());
        vmm.check_vector(id);
        vmm.stop();
        vmm.renew();
        vmm.start(&[vmm.first(); 2]);
        assert_eq!(vmm.cipher(wire::ENCRYPT, id, &wire::IV, &wire::PLAIN).1, INVSESS);
        let id = vmm.session(&wire::create_cbc());
        vmm.check_vector(id);
        drop(vmm);
        eventually("the sessions are gone", || server.sessions() == 0);
    }
}

#[test]
fn reset_device_closes_the_sessions() {
    let server = Server::new();
    let mut vmm = Whole::running(&server, SPLIT);
    vmm.session(&wire::create_cbc());
    vmm.session.frontend.reset_device().unwrap();
    assert_eq!(server.sessions(), 0);
}

/// One frontend after the other, through either door, on the same device.
#[test]
fn doors_are_told_apart_on_every_connection() {
    let server = Server::new();
    for _ in 0..3 {
        let mut qemu = Cryptodev::running(&server, LINUX);
        let id = qemu.create(&cbc_description(1072)) as u64;
        qemu.check_vector(id);
        drop(qemu);
        let mut vmm = Whole::running(&server, SPLIT);
        let id = vmm.session(&wire::create_cbc());
        vmm.check_vector(id);
        // Disabled rings of door B are left alone.
        vmm.session.frontend.set_vring_enable(0, false).unwrap();
        let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
        let (guest, queue) = vmm.on(0);
        guest.add(queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
        queue.publish().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        assert!(queue.ring.pop().is_none());
    }
}

/// A frontend that vanishes with requests in its ring.
#[test]
fn a_hang_up_with_requests_in_flight_leaves_an_idle_device() {
    let server = Server::new();
    for _ in 0..20 {
        let mut qemu = Cryptodev::running(&server, LINUX);
        let id = qemu.create(&cbc_description(632)) as u64;
        let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
        for _ in 0..SIZE / 4 {
            qemu.guest.add_indirect(&mut qemu.queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
        }
        qemu.queue.publish().unwrap();
        drop(qemu);
        eventually("the device is idle", || !server.notifier.status().connected && server.sessions() == 0);
    }
}

/// A hostile driver: every opcode, fields that mean little, any room for an outcome. One bad request never stops the next.
#[test]
fn garbage_on_the_control_queue_stops_nothing() {
    let server = Server::with(Setup { sessions: 100, ..Setup::default() });
    let mut vmm = Whole::running(&server, SPLIT);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..3000 {
        let service = next(7) as u32;
        let opcode = service << 8 | next(7) as u32;
        let fields: Vec<u32> = (0..next(20))
            .map(|_| if next(20) == 0 { next(1 << 32) as u32 } else { next(40) as u32 })
            .collect();
        let key = vec![7; next(80) as usize];
        let request = wire::control(opcode, &fields, &[&key], true);
        let outcome = vmm.control(&request[..next(request.len() as u64 + 1) as usize], 1 + next(24) as usize);
        assert!(!outcome.is_empty());
        if round % 100 == 0 {
            // Whatever was made by chance must not keep others out for ever.
            server.unit.sessions().close_all();
            let id = vmm.session(&wire::create_cbc());
            vmm.check_vector(id);
        }
    }
    assert_eq!(server.queue(1).broken, 0);
}

/// Memory and ring before any feature is negotiated, and a ring that no driver has set up.
#[test]
fn a_ring_without_memory_breaks_nothing() {
    let server = Server::new();
    let guest = Guest::new();
    let queue = driver_queue(&guest.memory, LINUX);
    let mut frontend = server.raw();
    frontend.set_vring_num(0, SIZE.into()).unwrap();
    let _ = frontend.set_vring_addr(&frontend::vring_addr(&guest.memory, 0, &queue.addresses));
    let _ = frontend.set_vring_kick(0, None);
    let _ = frontend.get_features();
    drop(frontend);
    let mut qemu = Cryptodev::running(&server, LINUX);
    let id = qemu.create(&cbc_description(632)) as u64;
    qemu.check_vector(id);
}
