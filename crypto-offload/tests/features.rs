//! One test for each feature bit the device offers, at least: `FEATURES` names them. Over a real socket, with the whole device.

mod frontend;

use crypto_offload::features::*;
use frontend::services::{Key, Service};
use frontend::wire::{self, NOTSUPP, OK};
use frontend::{SIZE, Server, Setup, Whole, eventually};

/// All the device offers, on split rings.
const SPLIT: u64 = !VIRTIO_F_RING_PACKED;
/// The same without stateless modes.
const SESSIONS: u64 = SPLIT & !STATELESS_MODES;
/// What Linux takes: ring features, and nothing of the device's own.
const LINUX: u64 = SESSIONS & !VIRTIO_CRYPTO_F_REVISION_1;

#[test]
fn every_offered_bit_has_a_named_test() {
    let source = include_str!("features.rs");
    for feature in FEATURES {
        let definition = format!("#[test]\nfn {}()", feature.test);
        assert!(source.contains(&definition), "{} has no test {}", feature.name, feature.test);
    }
    let server = Server::new();
    let known = FEATURES.iter().fold(0, |bits, feature| bits | feature.bit);
    let of_vhost_user = 1 << 26 | 1 << 30;
    assert_eq!(server.raw().get_features().unwrap() & !of_vhost_user, known);
}

#[test]
fn revision_1_shortens_the_fixed_fields() {
    for (wanted, shortened) in [(SESSIONS, true), (LINUX, false)] {
        let server = Server::new();
        let mut vmm = Whole::running(&server, wanted);
        assert_eq!(vmm.session.features() & VIRTIO_CRYPTO_F_REVISION_1 != 0, shortened);
        Service::ALL.iter().for_each(|service| service.check_session(&mut vmm));
        // The other layout is not understood.
        match vmm.create(&Service::Mac.create(!shortened)) {
            (id, 0) => {
                let answer = Service::Mac.known(&mut vmm, Key::Session(id));
                assert_ne!(answer, Ok(Service::Mac.expected()), "the key begins elsewhere");
            }
            (_, status) => assert_eq!(status, u32::from(wire::ERR), "the request is too short"),
        }
    }
}

/// With its stateless mode negotiated a service takes requests of both kinds; without it, those with a session only. Other
/// services are as they were.
fn check_stateless(service: Service) {
    for others in [0, STATELESS_MODES & !service.stateless()] {
        let server = Server::new();
        let mut vmm = Whole::running(&server, SESSIONS | others | service.stateless());
        assert_eq!(service.known(&mut vmm, Key::Request), Ok(service.expected()), "{service:?}");
        assert_eq!(server.sessions(), 0);
        Service::ALL.iter().for_each(|service| service.check_session(&mut vmm));
        assert_eq!(service.known(&mut vmm, Key::Request), Ok(service.expected()), "{service:?}");
    }
    let server = Server::new();
    let mut vmm = Whole::running(&server, SPLIT & !service.stateless());
    assert_eq!(service.known(&mut vmm, Key::Request), Err(NOTSUPP), "{service:?} is not negotiated");
    service.check_session(&mut vmm);
}

#[test]
fn cipher_stateless_requests_need_no_session() {
    check_stateless(Service::Cipher);
}

#[test]
fn hash_stateless_requests_need_no_session() {
    check_stateless(Service::Hash);
}

#[test]
fn mac_stateless_requests_need_no_session() {
    check_stateless(Service::Mac);
}

#[test]
fn aead_stateless_requests_need_no_session() {
    check_stateless(Service::Aead);
}

#[test]
fn akcipher_stateless_requests_need_no_session() {
    check_stateless(Service::Akcipher);
}

#[test]
fn stateless_modes_without_revision_1_are_not_in_force() {
    let server = Server::new();
    let mut vmm = Whole::running(&server, SPLIT & !VIRTIO_CRYPTO_F_REVISION_1);
    let id = vmm.session(&wire::create_cbc());
    // The layout of 72 bytes, whose flag means nothing.
    for flag in [0, 1] {
        let mut header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
        header[16] = flag;
        let outcome = vmm.ask(&[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
        assert_eq!(outcome, [&wire::SECRET[..], &[OK]].concat());
    }
}

#[test]
fn indirect_tables_hold_requests() {
    for wanted in [SPLIT, u64::MAX] {
        let server = Server::new();
        let mut vmm = Whole::running(&server, wanted & !STATELESS_MODES);
        assert_ne!(vmm.session.features() & VIRTIO_F_INDIRECT_DESC, 0);
        let id = vmm.session(&wire::create_cbc());
        let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
        let (guest, queue) = vmm.on(0);
        let before = queue.ring.free();
        // A descriptor a byte of the IV, and pieces that no boundary of a block is at.
        let mut readable: Vec<&[u8]> = vec![&header[..7], &header[7..24], &header[24..]];
        readable.extend(wire::IV.chunks(1));
        readable.extend(wire::PLAIN.chunks(9));
        let ticket = guest.add_indirect(queue, &readable, &[5, 11, 16, 1]);
        assert_eq!(before - queue.ring.free(), 1, "one descriptor of the ring");
        queue.publish().unwrap();
        assert_eq!(guest.wait(queue).cookie, ticket.cookie);
        assert_eq!(guest.outcome(&ticket), [&wire::SECRET[..], &[OK]].concat());
    }
}

#[test]
fn event_idx_saves_kicks_and_interrupts() {
    let server = Server::new();
    let mut vmm = Whole::running(&server, SESSIONS);
    assert_ne!(vmm.session.features() & VIRTIO_F_EVENT_IDX, 0);
    let id = vmm.session(&wire::create_cbc());
    // A ring that has just started interrupts once in any case.
    vmm.check_vector(id);
    let header = wire::cipher(wire::ENCRYPT, id, 16, 32, 32);
    let (guest, queue) = vmm.on(0);
    // A driver that has asked for no interrupts puts its event index far away.
    queue.ring.suppress();
    let before = server.queue(0);
    for _ in 0..40 {
        guest.add(queue, &[&header, &wire::IV, &wire::PLAIN], &[32, 1]);
    }
    queue.publish().unwrap();
    for _ in 0..40 {
        guest.wait(queue);
    }
    let after = server.queue(0);
    assert_eq!(after.interrupts, before.interrupts);
    assert!(after.interrupts_suppressed > before.interrupts_suppressed);
    assert!(after.kicks <= before.kicks + 1, "one kick for forty requests");
    // One that waits gets its interrupt.
    assert!(!queue.ring.arm());
    vmm.check_vector(id);
    eventually("the interrupt is counted", || server.queue(0).interrupts > after.interrupts);
}

#[test]
fn version_1_tells_that_features_are_passed_on() {
    // A driver that has not negotiated indirect tables, and says so, may not use them.
    let server = Server::new();
    let mut vmm = Whole::running(&server, SESSIONS & !VIRTIO_F_INDIRECT_DESC);
    let features = vmm.session.features();
    assert_eq!(features & (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC), VIRTIO_F_VERSION_1);
    let id = vmm.session(&wire::create_cbc());
    vmm.check_vector(id);
    let (guest, queue) = vmm.on(0);
    let table = guest.put(&[0; 32]);
    queue.ring.add_prebuilt(table.addr, 2, 1, 77).unwrap();
    queue.publish().unwrap();
    eventually("the ring is broken", || server.queue(0).broken == 1);
    // Where nobody has said anything they are taken for granted: `a_requests_in_indirect_tables...` in quirks.rs.
}

#[test]
fn ring_packed_serves_every_service() {
    for wanted in [u64::MAX, !STATELESS_MODES, LINUX | VIRTIO_F_RING_PACKED] {
        let server = Server::new();
        let mut vmm = Whole::running(&server, wanted);
        assert_ne!(vmm.session.features() & VIRTIO_F_RING_PACKED, 0);
        // More requests than the ring has entries.
        for _ in 0..=SIZE / 4 {
            Service::ALL.iter().for_each(|service| service.check_session(&mut vmm));
        }
    }
}

#[test]
fn ring_reset_starts_a_queue_anew_while_others_run() {
    for wanted in [SESSIONS, SESSIONS | VIRTIO_F_RING_PACKED] {
        let server = Server::with(Setup { data_queues: 2, ..Setup::default() });
        let mut vmm = Whole::running(&server, wanted);
        assert_ne!(vmm.session.features() & VIRTIO_F_RING_RESET, 0);
        let id = vmm.session(&wire::create_cbc());
        vmm.check_vector(id);
        let first = vmm.first();
        // Each queue in turn, the control queue last; no session goes with it.
        for index in 0..3 {
            vmm.session.stop_queue(index).unwrap();
            let (guest, queue) = vmm.on(if index == 0 { 1 } else { 0 });
            guest.check_vector(queue, id);
            vmm.renew_queue(index.into());
            vmm.start_queue(index, first);
            let other = vmm.session(&wire::create_cbc());
            for queue in 0..2 {
                let (guest, queue) = vmm.on(queue);
                guest.check_vector(queue, id);
                guest.check_vector(queue, other);
            }
        }
    }
}

#[test]
fn in_order_is_not_offered_since_rsa_would_hold_up_everything_behind_it() {
    assert_eq!(Server::new().raw().get_features().unwrap() & 1 << 35, 0);
}
