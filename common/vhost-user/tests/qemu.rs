//! One disk of a machine in QEMU, from its firmware to its migration, as each version from 7.2 to 11.1 tells its back-end of it.
//! Sequences and flags of 7.2, 10.0 and 11.1 are recorded ones.

mod support;

use memory::{Area, GuestAddr, OwnMemory};
use support::qemu::{OF_FIRMWARE, OF_LINUX, Qemu};
use support::script::Script;
use support::{Buffers, Server, drain, eventually, memory};
use vhost_user::frontend::driver::DriverQueue;
use vhost_user::message::{Request, VERSION, flags, protocol};
use virtqueue::Format;
use zerocopy::IntoBytes;

fn exercise(buffers: &Buffers, memory: &OwnMemory, queues: &mut [DriverQueue; 2], rounds: [u8; 2]) {
    for (queue, rounds) in queues.iter_mut().zip(rounds) {
        buffers.exercise(queue, memory, rounds);
    }
}

/// The disk of a whole machine, and of the one it migrates to.
fn lives(qemu: Qemu) {
    let memory = memory();
    let buffers = Buffers::new(&memory);
    let mut server = Server::new();
    let mut script = Script::new(&server, &memory);
    let region = script.single_region();
    let mut inflight = None;

    // The machine is put together, and resets what it is made of.
    let _held_back = qemu.connects(&mut script);
    qemu.reads_configuration(&mut script);
    qemu.resets(&mut script, 2);

    // The firmware loads the kernel, with one ring and no features.
    let mut firmware = script.ring(Format::Split, OF_FIRMWARE);
    qemu.negotiates(&mut script, OF_FIRMWARE, &[&firmware.call], &mut inflight);
    script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
    qemu.starts(&mut script, &[&firmware], &[0]);
    buffers.exercise(&mut firmware, &memory, 20);
    assert_eq!(qemu.stops(&mut script, 1), [20]);
    qemu.resets(&mut script, 1);

    // The kernel's driver has both rings, other features, and an inflight region of its own.
    inflight = None;
    let mut queues = [(); 2].map(|()| script.ring(Format::Split, OF_LINUX));
    let start = |script: &mut Script<'_>, queues: &[DriverQueue; 2], inflight: &mut _, bases: &[u32]| {
        qemu.negotiates(script, OF_LINUX, &queues.each_ref().map(|queue| &queue.call), inflight);
        qemu.starts(script, &queues.each_ref(), bases);
    };
    start(&mut script, &queues, &mut inflight, &[0, 0]);
    exercise(&buffers, &memory, &mut queues, [40, 7]);

    // The machine is paused and goes on: the same region, no memory messages.
    let bases = qemu.stops(&mut script, 2);
    assert_eq!(bases, [40, 7]);
    start(&mut script, &queues, &mut inflight, &bases);
    exercise(&buffers, &memory, &mut queues, [5, 0]);

    // The daemon dies and comes back: the same inflight region, the bases of the last completions.
    drop(std::mem::replace(&mut server, Server::new()));
    script = Script::new(&server, &memory);
    let _held_back = qemu.connects(&mut script);
    qemu.negotiates(&mut script, OF_LINUX, &queues.each_ref().map(|queue| &queue.call), &mut inflight);
    script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
    for queue in &queues {
        drain(&queue.call);
    }
    let bases = queues.each_ref().map(|queue| queue.ring.base_for_restart());
    qemu.starts(&mut script, &queues.each_ref(), &bases);
    eventually("an interrupt makes up for one that was lost with the predecessor", || {
        drain(&queues[0].call) > 0
    });
    exercise(&buffers, &memory, &mut queues, [40, 40]);

    // Memory is plugged in while the rings run.
    let plugged = OwnMemory::new(1 << 20, GuestAddr(1 << 32)).unwrap();
    let more = support::script::single_region(&plugged.config());
    script.demand(Request::AddMemReg, more.as_bytes(), &[plugged.fd()]);
    Buffers::new(&plugged).exercise(&mut queues[0], &plugged, 5);

    // A migration, which is given up: the machine goes on here.
    let (log_area, log) = Area::shared(1 << 18, "log").unwrap();
    server.take_calls();
    qemu.logs(&mut script, OF_LINUX, &queues.each_ref(), &log, 1 << 18);
    assert_eq!(server.take_calls(), ["log true"]);
    exercise(&buffers, &memory, &mut queues, [5, 5]);
    assert!(is_logged(&log_area, buffers.reply_addr()));
    let bases = qemu.stops(&mut script, 2);
    assert_eq!(bases, [95, 52]);
    start(&mut script, &queues, &mut inflight, &bases);
    exercise(&buffers, &memory, &mut queues, [5, 5]);

    // The machine is reset: a new inflight region, and a driver that begins anew.
    assert_eq!(qemu.stops(&mut script, 2), [100, 57]);
    qemu.resets(&mut script, 3);
    inflight = None;
    let mut queues = [(); 2].map(|()| script.ring(Format::Split, OF_LINUX));
    start(&mut script, &queues, &mut inflight, &[0, 0]);
    exercise(&buffers, &memory, &mut queues, [40, 40]);

    // A migration that succeeds. The other machine's QEMU has been connected, and has reset its device, before.
    let there = Server::new();
    let mut target = Script::new(&there, &memory);
    let _held_back = qemu.connects(&mut target);
    qemu.reads_configuration(&mut target);
    qemu.resets(&mut target, 1);
    qemu.logs(&mut script, OF_LINUX, &queues.each_ref(), &log, 1 << 18);
    exercise(&buffers, &memory, &mut queues, [2, 3]);
    let bases = qemu.stops(&mut script, 2);
    assert_eq!(server.notifier.status().refused, 0);
    drop(script);
    qemu.negotiates(&mut target, OF_LINUX, &queues.each_ref().map(|queue| &queue.call), &mut None);
    target.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
    qemu.starts(&mut target, &queues.each_ref(), &bases);
    exercise(&buffers, &memory, &mut queues, [40, 40]);
    assert_eq!(qemu.stops(&mut target, 2), [82, 83]);
    assert_eq!(there.notifier.status().refused, 0);
}

/// Whether the page of `addr` is marked.
fn is_logged(log: &Area, addr: GuestAddr) -> bool {
    let page = addr.0 / 4096;
    let mut byte = [0];
    log.read_bytes((page / 8) as usize, &mut byte);
    byte[0] & (1 << (page % 8)) != 0
}

#[test]
fn qemu_7_2_boots_reconnects_hot_plugs_migrates_and_resets() {
    lives(Qemu::V7_2);
}

#[test]
fn qemu_8_1_asks_for_the_bases_before_it_writes_status_zero() {
    lives(Qemu::V8_1);
}

#[test]
fn qemu_8_2_waits_for_each_ring_to_be_enabled_and_takes_device_state() {
    lives(Qemu::V8_2);
}

#[test]
fn qemu_9_1_to_10_0_reset_the_device_whether_its_rings_have_run_or_not() {
    lives(Qemu::V9_1);
}

#[test]
fn qemu_11_1_waits_for_each_descriptor_to_be_taken() {
    lives(Qemu::V11_1);
}

#[test]
fn qemu_8_2_to_11_1_are_offered_no_feature_that_changes_what_their_other_messages_mean() {
    let (server, memory) = (Server::new(), memory());
    let mut script = Script::new(&server, &memory);
    let offered = script.ask_word(Request::GetProtocolFeatures);
    // 8.2: shared objects. 11: GET_VRING_BASE that leaves requests in flight (20), rings at guest addresses (21), shared memory
    // regions (22), GET_VRING_BASE_SKIP_DRAIN (23 and up).
    assert_eq!(offered & (protocol::SHARED_OBJECT | protocol::PAGEFAULT | protocol::HOST_NOTIFIER), 0);
    assert_eq!(offered >> 20, 0, "{offered:#x}");
    let _held_back = Qemu::V11_1.connects(&mut script);
    // A front-end that sends these all the same gets an answer, and keeps its connection.
    assert!(script.ask(Request::GetSharedObject, 0, &[0; 16]).is_empty());
    const SKIP_DRAIN: u32 = 45;
    script.frontend.send_raw(SKIP_DRAIN, VERSION | flags::NEED_REPLY, &[0; 8], &[]).unwrap();
    assert_eq!(script.frontend.receive_raw().unwrap().body, 1u64.to_ne_bytes());
    script.ask_word(Request::GetFeatures);
}

/// 10.1 and later with `skip-get-vring-base-on-force-shutdown=on`.
#[test]
fn qemu_10_1_that_is_made_to_quit_leaves_without_stopping_its_rings() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    for qemu in [Qemu::V9_1, Qemu::V11_1] {
        let mut script = Script::new(&server, &memory);
        let region = script.single_region();
        let _held_back = qemu.connects(&mut script);
        let mut queue = script.ring(Format::Split, OF_LINUX);
        qemu.negotiates(&mut script, OF_LINUX, &[&queue.call], &mut None);
        script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
        qemu.starts(&mut script, &[&queue], &[0]);
        buffers.exercise(&mut queue, &memory, 3);
        buffers.submit_on(&mut queue, &memory, 9);
        drop(script);
        eventually("the rings are gone", || server.state().queues.is_empty());
    }
    assert_eq!(server.notifier.status().connections, 2);
}

/// Older versions did not ask, and ran on with a ring that did not.
#[test]
fn qemu_11_1_gives_up_a_connection_on_which_a_kick_is_refused_and_comes_back() {
    let (server, memory) = (Server::new(), memory());
    let buffers = Buffers::new(&memory);
    let qemu = Qemu::V11_1;
    let mut inflight = None;
    let mut connect = |kick: bool| {
        let mut script = Script::new(&server, &memory);
        let region = script.single_region();
        let _held_back = qemu.connects(&mut script);
        let mut queue = script.ring(Format::Split, OF_LINUX);
        qemu.negotiates(&mut script, OF_LINUX, &[&queue.call], &mut inflight);
        script.demand(Request::AddMemReg, region.as_bytes(), &[memory.fd()]);
        if kick {
            qemu.starts(&mut script, &[&queue], &[0]);
            buffers.exercise(&mut queue, &memory, 20);
            return;
        }
        // The descriptor was lost on the way.
        let sent = VERSION | flags::NEED_REPLY;
        script.frontend.send_raw(Request::SetVringKick.into(), sent, &0u64.to_ne_bytes(), &[]).unwrap();
        assert_eq!(script.frontend.receive_raw().unwrap().body, 1u64.to_ne_bytes());
    };
    connect(false);
    connect(false);
    connect(true);
}
