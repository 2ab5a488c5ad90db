//! A real worker in every mode, and a driver that sleeps until its interrupt: no request is slept through.

mod frontend;

use crypto_offload::flush::Mode;
use frontend::{Server, Setup, Whole, wire};
use std::time::Duration;
use vhost_user::message::features::VERSION_1;

/// VERSION_1, INDIRECT_DESC, EVENT_IDX.
const DRIVER: u64 = VERSION_1 | 1 << 28 | 1 << 29;

/// Bursts of one to sixteen requests, at once and after pauses of many lengths.
fn bursts_and_pauses(mode: Mode) {
    let server = Server::with(Setup { mode, ..Setup::default() });
    let mut vmm = Whole::running(&server, DRIVER);
    let session = vmm.session(&wire::create_cbc());
    let request = wire::cipher(wire::ENCRYPT, session, 16, 32, 32);
    for burst in 0..120usize {
        let (guest, queue) = vmm.on(0);
        let mut tickets = Vec::new();
        for n in 0..1 + burst % 16 {
            tickets.push(guest.add_indirect(queue, &[&request, &wire::IV, &wire::PLAIN], &[32, 1]));
            // Now and then the device sees a part of the burst first.
            if n % 5 == burst % 5 {
                queue.publish().unwrap();
            }
        }
        queue.publish().unwrap();
        for _ in &tickets {
            guest.sleep_for(queue);
        }
        for ticket in &tickets {
            let outcome = guest.outcome(ticket);
            assert_eq!((&outcome[..32], outcome[32]), (&wire::SECRET[..], wire::OK), "{mode}");
        }
        if burst % 7 == 0 {
            std::thread::sleep(Duration::from_micros(30 << (burst % 8)));
        }
    }
}

#[test]
fn interrupt_mode_sleeps_through_no_request() {
    bursts_and_pauses(Mode::Interrupt);
}

#[test]
fn timer_mode_sleeps_through_no_request() {
    for us in [20, 100, 1_000] {
        bursts_and_pauses(Mode::Timer(Duration::from_micros(us)));
    }
}

#[test]
fn heuristic_mode_sleeps_through_no_request() {
    bursts_and_pauses(Mode::Heuristic);
}

#[test]
fn busy_mode_answers_every_request() {
    bursts_and_pauses(Mode::Busy);
}
