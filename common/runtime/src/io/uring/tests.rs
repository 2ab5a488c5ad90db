//! What the kernel does too rarely to wait for it.

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::doorbell::Bell;
use crate::io::IoKind;

const SECOND: u64 = 1_000_000_000;

fn engine() -> Engine {
    let doorbell = Arc::new(Doorbell::new(EventBell::new().unwrap()));
    Engine::new(&Setup { config: IoKind::Uring.into(), doorbell, helpers: None, name: "t".into() }).unwrap()
}

fn next(engine: &mut Engine) -> Option<Event> {
    let mut events = Vec::new();
    engine.wait(Some(SECOND)).unwrap();
    engine.harvest(&mut events).unwrap();
    events.pop()
}

#[test]
fn a_poll_that_the_kernel_has_ended_is_armed_again() {
    let mut engine = engine();
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    // Watched, but with no poll in the kernel: as after a completion without IORING_CQE_F_MORE.
    let id = engine.watches.insert(kick.as_raw_fd());
    let mut events = Vec::new();
    engine.polled(TAG_WATCH | id.bits(), i32::from(libc::POLLIN), false, &mut events);
    assert!(matches!(events[..], [Event::Ready(ready)] if ready == id), "the event itself counts");
    kick.write(1).unwrap();
    engine.harvest(&mut events).unwrap();
    assert!(matches!(next(&mut engine), Some(Event::Ready(ready)) if ready == id));
}

#[test]
fn a_doorbell_whose_poll_has_ended_rings_again() {
    let mut engine = engine();
    let cancel = opcode::AsyncCancel::new(TAG_BELL).build().user_data(TAG_IGNORED);
    // SAFETY: a cancellation has no buffers.
    unsafe { engine.enqueue(&cancel).unwrap() };
    let mut events = Vec::new();
    engine.flush().unwrap();
    engine.harvest(&mut events).unwrap();
    events.clear();
    engine.polled(TAG_BELL, i32::from(libc::POLLIN), false, &mut events);
    engine.harvest(&mut events).unwrap();
    engine.doorbell.bell().ring();
    assert!(matches!(next(&mut engine), Some(Event::Rung)));
}
