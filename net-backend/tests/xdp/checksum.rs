//! What the kernel leaves undone in frames of its own sockets, and what it finishes for us.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use net_backend::frame::{Body, Frame, Gso, Head, NetHeader, Offloads, Scratch, emit, flag};
use net_backend::switch::Drop as Reason;
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::xdp::{ModeChoice, Queue};

use crate::bed;
use crate::support::*;

/// The Internet checksum, as RFC 1071 has it.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether the UDP datagram of an Ethernet frame has the right checksum.
fn is_finished(frame: &[u8]) -> bool {
    let (addresses, datagram) = match frame[12..14] {
        [8, 0] => (&frame[26..34], &frame[34..]),
        _ => (&frame[22..54], &frame[54..]),
    };
    let len = (datagram.len() as u32).to_be_bytes();
    let covered = [addresses, &len, &[0, 17], datagram].concat();
    checksum(&covered) == 0
}

/// Addresses for both stacks, and an answer to whoever asks for the uplink's.
fn addresses(far: &Far) {
    far.run(|| std::fs::write("/proc/sys/net/ipv6/conf/v1/disable_ipv6", "0")).expect("IPv6");
    far.ip("addr add 10.0.0.2/24 dev v1");
    far.ip("addr add fd00::2/64 dev v1 nodad");
    far.ip("neigh add 10.0.0.1 lladdr 52:54:00:00:00:01 dev v1");
    far.ip("neigh add fd00::1 lladdr 52:54:00:00:00:01 dev v1");
}

/// The first frame of UDP to port 7.
fn datagram(queue: &mut Queue) -> (NetHeader, Vec<u8>) {
    loop {
        let (header, bytes) = receive_one(queue);
        let port = if bytes[12..14] == [8, 0] { 36 } else { 56 };
        if bytes.get(port..port + 2) == Some(&[0, 7]) {
            return (header, bytes);
        }
    }
}

#[test]
fn a_datagram_of_the_kernel_comes_unfinished_and_says_so() {
    let far = bed!();
    addresses(&far);
    for mode in MODES {
        let mut queue = open_one(&spec(mode));
        for (to, start) in [("10.0.0.1:7", 34), ("[fd00::1]:7", 54)] {
            for len in [0, 1, 2, 100, 1400] {
                far.run(move || {
                    let any = if start == 34 { "0.0.0.0:0" } else { "[::]:0" };
                    let payload: Vec<u8> = (0..len).map(|at: u32| at as u8 ^ 0x5a).collect();
                    UdpSocket::bind(any).and_then(|socket| socket.send_to(&payload, to)).expect("sent");
                });
                let (header, mut bytes) = datagram(&mut queue);
                assert_eq!(header.flags, flag::NEEDS_CSUM, "{mode:?} {to} {len}");
                assert_eq!((header.csum_start, header.csum_offset), (start, 6), "{mode:?} {to} {len}");
                assert!(!is_finished(&bytes), "{mode:?} {to} {len}");
                let start = usize::from(start);
                let sum = checksum(&bytes[start..]);
                bytes[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
                assert!(is_finished(&bytes), "{mode:?} {to} {len}");
            }
        }
    }
}

#[test]
fn finished_datagrams_are_left_as_they_are() {
    let far = bed!();
    addresses(&far);
    far.run(|| std::process::Command::new("ethtool").args(["-K", "v1", "tx", "off"]).output())
        .expect("ethtool");
    let mut queue = open_one(&spec(ModeChoice::Copy));
    for len in 0..100 {
        far.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(&vec![len as u8; len], "10.0.0.1:7").expect("sent");
        });
        let (header, bytes) = datagram(&mut queue);
        assert_eq!(header, NetHeader::PLAIN);
        assert!(is_finished(&bytes));
    }
}

/// A datagram from the uplink to port 9 of the host there, whose checksum field is `field` of the sum of its pseudo-header.
fn to_host(payload: &[u8], field: impl Fn(u16) -> u16) -> Vec<u8> {
    let len = (payload.len() as u16 + 8).to_be_bytes();
    let total = (payload.len() as u16 + 28).to_be_bytes();
    let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = !checksum(&[&ip[12..20], &[0, 17], &len[..]].concat());
    let field = field(pseudo).to_be_bytes();
    let ethernet = [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 0, 1], &[8, 0]].concat();
    [&ethernet[..], &ip, &[0, 7, 0, 9], &len, &field, payload].concat()
}

#[test]
fn the_kernel_takes_a_datagram_whose_checksum_is_left_to_it() {
    let far = bed!();
    ip("neigh flush dev v0");
    far.ip("addr add 10.0.0.2/24 dev v1");
    for mode in MODES {
        let mut opened = open(&spec(mode));
        assert!(opened.report.transmit_checksum);
        let queue = &mut opened.queues[0];
        assert_eq!(queue.offloads(), Offloads { csum: true, ..Offloads::NONE });
        // A unicast address is needed: the stack takes no datagrams to an address of its own from a broadcast.
        let mac = mac_of_far(&far);
        let receiver = far.run(|| {
            let socket = UdpSocket::bind("10.0.0.2:9").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            socket
        });
        let header =
            NetHeader { flags: flag::NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..NetHeader::PLAIN };
        for (len, head) in [(1, 43), (100, 64), (1400, 128)] {
            let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
            // Neither finished nor marked: thrown away there. It goes first, so it cannot be just late.
            let mut unmarked = to_host(&payload, |pseudo| pseudo);
            unmarked[..6].copy_from_slice(&mac);
            unmarked[42] ^= 0xff;
            send(queue, NetHeader::PLAIN, &unmarked, head).expect("sent");
            let mut marked = to_host(&payload, |pseudo| pseudo);
            marked[..6].copy_from_slice(&mac);
            send(queue, header, &marked, head).expect("sent");
            queue.flush();
            let mut bytes = [0; 2000];
            let (got, from) = receiver.recv_from(&mut bytes).expect("a datagram");
            assert_eq!((&bytes[..got], from.to_string().as_str()), (&payload[..], "10.0.0.1:7"), "{mode:?}");
        }
    }
}

/// The address of `v1`.
fn mac_of_far(far: &Far) -> [u8; 6] {
    let output = far.run(|| std::process::Command::new("ip").args(["-br", "link", "show", "v1"]).output());
    let text = String::from_utf8(output.expect("iproute2").stdout).expect("text");
    let mac = text.split_whitespace().find(|word| word.matches(':').count() == 5).expect("an address");
    mac.parse::<net_backend::frame::MacAddr>().expect("an address").0
}

#[test]
fn a_checksum_that_is_not_in_the_frame_is_refused() {
    let _far = bed!();
    let mut queue = open_one(&spec(ModeChoice::Copy));
    for (csum_start, csum_offset) in [(0, 6), (13, 0), (99, 0), (34, 65), (34, u16::MAX), (u16::MAX, 0)] {
        let header = NetHeader { flags: flag::NEEDS_CSUM, csum_start, csum_offset, ..NetHeader::PLAIN };
        let result = send(&mut queue, header, &frame(100, 1), 64);
        assert_eq!(result, Err(Reason::BadOffload), "{csum_start} {csum_offset}");
    }
    assert_eq!(queue.buffers().sending, 0);
}

/// What passed through a relay.
#[derive(Default, Debug)]
struct Passed {
    unfinished: u64,
    unsegmented: u64,
    refused: u64,
}

/// Carries what waits on one queue over to another that takes `can`.
fn relay(from: &mut Queue, to: &mut Queue, can: Offloads, passed: &mut Passed) -> usize {
    let mut scratch = Scratch::new();
    let count = from.receive_with(32, |view, header, pieces| {
        let len: usize = pieces.iter().map(|piece| piece.len).sum();
        let mut front = vec![0; len.min(128)];
        Body::new(view, pieces, 0, front.len()).read(&mut front);
        let head = Head::from_slice(&front);
        let body = Body::new(view, pieces, front.len(), len - front.len());
        passed.unfinished += u64::from(header.needs_csum());
        passed.unsegmented += u64::from(header.gso != Gso::None);
        let frame = Frame { header, head: &head, body };
        let emitted = emit(&frame, can, &mut scratch, |packet| {
            passed.refused += u64::from(to.send(packet).is_err());
            true
        });
        emitted.map(drop).map_err(|_| Reason::BadOffload)
    });
    to.flush();
    from.release();
    count
}

/// TCP both ways between two stacks with all their offloads on, through two uplinks.
fn tcp_through(mode: ModeChoice, finish: bool) -> Option<Passed> {
    const BYTES: usize = 4 << 20;
    let near = bed("tcp")?;
    let other = Far::new();
    other.join("w0", "w1", "", "");
    near.ip("addr add 10.0.0.2/24 dev v1");
    other.ip("addr add 10.0.0.3/24 dev w1");
    let mut one = open_one(&spec(mode));
    let mut two = open_one(&net_backend::uplink::xdp::Spec { interface: "w0".into(), ..spec(mode) });
    let can = if finish { Offloads::NONE } else { one.offloads() };
    let listener = other.run(|| TcpListener::bind("10.0.0.3:80").expect("a listener"));
    let served = other.start(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = vec![0; BYTES];
        stream.read_exact(&mut bytes).expect("all of it");
        stream.write_all(&bytes).expect("all of it");
    });
    let done = near.start(|| {
        let sent: Vec<u8> = (0..BYTES).map(|at| (at * 7 + (at >> 9)) as u8).collect();
        let mut stream =
            TcpStream::connect_timeout(&"10.0.0.3:80".parse().expect("an address"), Duration::from_secs(20))
                .expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        stream.write_all(&sent).expect("all of it");
        let mut back = vec![0; BYTES];
        stream.read_exact(&mut back).expect("all of it");
        back == sent
    });
    let mut passed = Passed::default();
    let end = Instant::now() + Duration::from_secs(90);
    let same = loop {
        let moved = relay(&mut one, &mut two, can, &mut passed) + relay(&mut two, &mut one, can, &mut passed);
        if moved == 0 {
            match done.try_recv() {
                Ok(same) => break same,
                Err(TryRecvError::Empty) => std::thread::yield_now(),
                Err(error) => panic!("the sender failed: {error}"),
            }
        }
        assert!(Instant::now() < end, "{mode:?}: {passed:?} {:?} {:?}", one.counters(), two.counters());
    };
    served.recv().expect("the other side ended well");
    assert!(same, "{mode:?}: the bytes came back as they were sent");
    assert_eq!(one.counters().dropped + two.counters().dropped, 0);
    Some(passed)
}

#[test]
fn tcp_passes_in_native_mode_with_offloads_on() {
    let Some(passed) = tcp_through(ModeChoice::Copy, false) else { return };
    assert!(passed.unfinished > 1000, "{passed:?}");
    assert_eq!(passed.unsegmented, 0, "the kernel segments for a native program: {passed:?}");
}

#[test]
fn tcp_passes_in_native_mode_when_checksums_are_finished_on_the_way() {
    let Some(passed) = tcp_through(ModeChoice::Copy, true) else { return };
    assert!(passed.unfinished > 1000, "{passed:?}");
}

#[test]
fn tcp_passes_in_generic_mode_where_frames_come_unsegmented() {
    let Some(passed) = tcp_through(ModeChoice::Generic, false) else { return };
    assert!(passed.unsegmented > 0, "{passed:?}");
}

#[test]
fn tcp_passes_in_generic_mode_when_checksums_are_finished_on_the_way() {
    let Some(passed) = tcp_through(ModeChoice::Generic, true) else { return };
    assert!(passed.unsegmented > 0, "{passed:?}");
}
