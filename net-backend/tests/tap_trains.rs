//! Frames of a flow that go to the kernel as one, and reach a socket of the host as they were.

mod tap_support;

use std::net::UdpSocket;
use std::time::Duration;

use memory::HostRange;
use net_backend::frame::{Body, HEAD, NetHeader, Packet, flag};
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::tap::Queue;
use tap_support::*;

const PORT: u16 = 4789;

/// A datagram to the host, from a port of its own flow.
struct Datagram {
    header: NetHeader,
    frame: Vec<u8>,
}

fn host_mac() -> Vec<u8> {
    let text = std::process::Command::new("ip").args(["-o", "link", "show", "t0"]).output().expect("ip");
    let text = String::from_utf8(text.stdout).expect("text");
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a MAC");
    mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect()
}

impl Datagram {
    /// Whose checksum is left undone, or done.
    fn new(mac: &[u8], from: u16, payload: &[u8], undone: bool) -> Self {
        let mut frame = mac.to_vec();
        frame.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 8, 0]);
        let udp = 8 + payload.len() as u16;
        let mut ip = [0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        ip[2..4].copy_from_slice(&(20 + udp).to_be_bytes());
        let check = !fold(&ip);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        let mut pseudo = ip[12..20].to_vec();
        pseudo.extend_from_slice(&[0, 17]);
        pseudo.extend_from_slice(&udp.to_be_bytes());
        let mut segment = [from.to_be_bytes(), PORT.to_be_bytes(), udp.to_be_bytes(), [0, 0]].concat();
        segment.extend_from_slice(payload);
        let sum = if undone { fold(&pseudo) } else { !fold(&[&pseudo[..], &segment].concat()) };
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(&ip);
        frame.extend_from_slice(&segment);
        let header = match undone {
            true => NetHeader { flags: flag::NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..NetHeader::PLAIN },
            false => NetHeader::PLAIN,
        };
        Self { header, frame }
    }
}

/// Sends them as one burst.
fn send_all(queue: &mut Queue, datagrams: &[Datagram]) {
    let guest = Guest::new();
    for Datagram { header, frame } in datagrams {
        let head = HEAD.min(frame.len());
        let ranges: Vec<HostRange> = guest.put(&frame[head..], 700);
        let body = Body::new(&guest.view, &ranges, 0, frame.len() - head);
        queue.send(&Packet { header: *header, head: &frame[..head], body }).expect("sent");
    }
    assert_eq!(queue.flush(), 0);
}

/// A socket of the host behind the uplink, and what it hears.
fn host() -> (Queue, UdpSocket, Vec<u8>) {
    let queue = open_one(&spec("t0"));
    ip("address add 10.0.0.1/24 dev t0");
    let socket = UdpSocket::bind(("10.0.0.1", PORT)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
    let mac = host_mac();
    (queue, socket, mac)
}

fn hear(socket: &UdpSocket) -> (u16, Vec<u8>) {
    let mut bytes = vec![0; 2000];
    let (len, from) = socket.recv_from(&mut bytes).expect("a datagram");
    bytes.truncate(len);
    (from.port(), bytes)
}

fn payload(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(13) ^ number as u8).collect()
}

#[test]
fn datagrams_of_a_flow_are_one_system_call_and_arrive_one_by_one() {
    in_namespace!();
    let (mut queue, socket, mac) = host();
    for (len, undone) in [(18, false), (18, true), (1400, false), (1400, true)] {
        let burst: Vec<_> = (0..40)
            .map(|number| {
                Datagram::new(&mac, 7, &payload(number, if number == 39 { 11 } else { len }), undone)
            })
            .collect();
        let before = queue.counters();
        send_all(&mut queue, &burst);
        let after = queue.counters();
        assert_eq!((after.sent - before.sent, after.calls - before.calls), (40, 1), "{len} {undone}");
        for number in 0..40 {
            assert_eq!(hear(&socket), (7, payload(number, if number == 39 { 11 } else { len })));
        }
    }
}

#[test]
fn flows_that_alternate_are_joined_each_by_itself() {
    in_namespace!();
    let (mut queue, socket, mac) = host();
    let burst: Vec<_> = (0..60)
        .map(|number| Datagram::new(&mac, 7 + number as u16 % 3, &payload(number, 50), true))
        .collect();
    let before = queue.counters().calls;
    send_all(&mut queue, &burst);
    assert_eq!(queue.counters().calls - before, 3);
    let mut heard: Vec<_> = (0..60).map(|_| hear(&socket)).collect();
    // In order within each flow.
    heard.sort_by_key(|(port, _)| *port);
    let expected =
        (0..3).flat_map(|flow| (flow..60).step_by(3).map(move |at| (7 + flow as u16, payload(at, 50))));
    assert!(heard.into_iter().eq(expected));
}

#[test]
fn a_damaged_datagram_among_good_ones_is_still_damaged() {
    in_namespace!();
    let (mut queue, socket, mac) = host();
    let mut burst: Vec<_> =
        (0..9).map(|number| Datagram::new(&mac, 7, &payload(number, 100), false)).collect();
    burst[4].frame[80] ^= 1;
    send_all(&mut queue, &burst);
    for number in (0..9).filter(|number| *number != 4) {
        assert_eq!(hear(&socket), (7, payload(number, 100)));
    }
}

#[test]
fn joined_frames_that_the_interface_refuses_are_all_counted() {
    in_namespace!();
    let (mut queue, _socket, mac) = host();
    ip("link set t0 down");
    let guest = Guest::new();
    for number in 0..5 {
        let Datagram { header, frame } = Datagram::new(&mac, 7, &payload(number, 20), true);
        let body = Body::empty(&guest.view);
        queue.send(&Packet { header, head: &frame, body }).expect("taken");
    }
    assert_eq!(queue.flush(), 5);
    assert_eq!((queue.counters().dropped, queue.counters().sent), (5, 0));
}
