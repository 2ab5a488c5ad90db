//! Frames of a flow, joined: cutting gives them back as they were.

use net_backend::frame::{
    Body, Gso, HeaderSize, NetHeader, Offer, Offloads, Packet, Place as Headers, Train, flag,
};
use proptest::prelude::*;

use crate::frames::{Checksum, Network, Out, Place, Spec, Transport, run, with_body};

const ACK: u8 = 0x10;
const FRONT: usize = 12;

/// What leaves a train: how many frames it had, and its bytes.
struct Left {
    frames: usize,
    out: Out,
}

/// Puts the frames into one train, which leaves when the next does not fit.
fn join(frames: &[Out], place: &Place) -> Vec<Left> {
    let mut train = Train::new(HeaderSize::Modern);
    let mut left = Vec::new();
    let leave = |train: &mut Train, left: &mut Vec<Left>| {
        let frames = train.frames();
        if frames > 0 {
            let bytes = train.finish();
            let header = NetHeader::parse(&bytes[..FRONT]).expect("a header");
            left.push(Left { frames, out: Out { header, frame: bytes[FRONT..].to_vec() } });
            train.clear();
        }
    };
    for Out { header, frame } in frames {
        with_body(frame, place, |head, body: Body<'_>| {
            let packet = Packet { header: *header, head, body };
            let Some(headers) = Headers::of(&packet, Offloads::ALL) else {
                leave(&mut train, &mut left);
                left.push(Left { frames: 1, out: Out { header: *header, frame: frame.clone() } });
                return;
            };
            if train.offer(&packet, headers) != Offer::Joined {
                leave(&mut train, &mut left);
                train.start(&packet, headers);
            }
        });
    }
    leave(&mut train, &mut left);
    left
}

/// Everything done in software.
fn finished(frame: &Out) -> Vec<Vec<u8>> {
    let (result, outs) = run(&frame.frame, frame.header, Offloads::NONE, &Place::WHOLE, usize::MAX);
    result.expect("a good frame");
    outs.into_iter().map(|out| out.frame).collect()
}

/// The segments of one large frame: a flow of frames as a sender without segmentation has them.
fn flow(spec: &Spec, segment: u16) -> Vec<Out> {
    let gso = match (spec.transport, spec.v6()) {
        (Transport::Tcp { .. }, true) => Gso::TcpV6 { ecn: false },
        (Transport::Tcp { .. }, false) => Gso::TcpV4 { ecn: false },
        (Transport::Udp, _) => Gso::UdpL4,
    };
    let whole = Out { header: spec.segmented(gso, segment), frame: spec.build(Checksum::Partial) };
    finished(&whole).into_iter().map(|frame| Out { header: NetHeader::PLAIN, frame }).collect()
}

fn frames_of(left: &[Left]) -> Vec<usize> {
    left.iter().map(|left| left.frames).collect()
}

#[test]
fn a_flow_becomes_one_frame_and_is_what_it_was_when_cut() {
    for spec in [Spec::udp4(2950), Spec::udp6(2950), Spec::tcp4(ACK, 2950), Spec::tcp6(ACK, 2950)] {
        let frames = flow(&spec, 100);
        let left = join(&frames, &Place::WHOLE);
        assert_eq!(frames_of(&left), [30], "{spec:?}");
        let cut = finished(&left[0].out);
        let before: Vec<_> = frames.into_iter().map(|out| out.frame).collect();
        assert_eq!(cut, before, "{spec:?}");
        assert_eq!(left[0].out.header.gso_size, 100);
    }
}

#[test]
fn checksums_left_undone_are_joined_too() {
    let spec = Spec::udp4(20);
    let frame = Out { header: spec.needs_csum(), frame: spec.build(Checksum::Partial) };
    let left = join(&[frame.clone(), frame.clone(), frame.clone()], &Place::WHOLE);
    assert_eq!(frames_of(&left), [3]);
    assert_eq!(left[0].out.header.flags, flag::NEEDS_CSUM);
}

#[test]
fn frames_with_a_wrong_checksum_leave_as_they_came() {
    for spec in [Spec::udp4(500), Spec::tcp6(ACK, 500)] {
        for bad in 0..5 {
            let mut frames = flow(&spec, 100);
            *frames[bad].frame.last_mut().unwrap() ^= 1;
            let left = join(&frames, &Place::WHOLE);
            let alone = left.iter().find(|left| left.out.frame == frames[bad].frame).expect("as it came");
            assert_eq!((alone.frames, alone.out.header), (1, NetHeader::PLAIN));
            let [before, after] = [bad, 4 - bad].map(|frames| (frames > 0).then_some(frames));
            let expected: Vec<_> = [before, Some(1), after].into_iter().flatten().collect();
            assert_eq!(frames_of(&left), expected);
        }
    }
}

/// One byte of the second frame changed, with its checksums made right again.
fn second_changed(spec: &Spec, at: usize, to: u8) -> Vec<usize> {
    let mut frames = flow(spec, 100);
    let frame = &mut frames[1].frame;
    frame[at] = to;
    let (l3, l4, field) = (spec.l3(), spec.l4(), spec.l4() + spec.field());
    if !spec.v6() {
        frame[l3 + 10..l3 + 12].fill(0);
        let sum = !crate::reference::ones_sum(0, &frame[l3..l4]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    frame[field..field + 2].fill(0);
    let pseudo = crate::reference::pseudo_header(&frame[l3..], spec.protocol(), frame.len() - l4);
    let sum = !crate::reference::ones_sum(u32::from(pseudo), &frame[l4..]);
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frames_of(&join(&frames, &Place::WHOLE))
}

#[test]
fn what_cutting_would_not_give_back_is_not_joined() {
    let (udp, tcp) = (Spec::udp4(300), Spec::tcp4(ACK, 300));
    let (l3, l4) = (udp.l3(), udp.l4());
    // Source address of Ethernet; type of service, lifetime, addresses, ports.
    for at in [11, l3 + 1, l3 + 8, l3 + 15, l3 + 19, l4 + 1, l4 + 3] {
        assert_eq!(second_changed(&udp, at, 0x77), [1, 1, 1], "byte {at}");
    }
    // Sequence number, acknowledgement, window, options.
    for at in [l4 + 7, l4 + 11, l4 + 15, l4 + 21] {
        assert_eq!(second_changed(&tcp, at, 0x77), [1, 1, 1], "byte {at}");
    }
    // Identification, without and with "don't fragment".
    assert_eq!(second_changed(&tcp, l3 + 5, 0x77), [3]);
    // SYN, RST, URG, ECE, CWR.
    for flag in [2, 4, 0x20, 0x40, 0x80] {
        assert_eq!(second_changed(&tcp, l4 + 13, ACK | flag), [1, 1, 1], "flag {flag:#x}");
    }
    // FIN and PSH end a train.
    for flag in [1, 8] {
        assert_eq!(second_changed(&tcp, l4 + 13, ACK | flag), [2, 1], "flag {flag:#x}");
    }
}

#[test]
fn packets_that_may_be_fragmented_keep_their_identification() {
    let mut frames = flow(&Spec::udp4(300), 100);
    let renumber = |frame: &mut [u8], id: u16| {
        frame[20] = 0;
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[24..26].fill(0);
        let sum = !crate::reference::ones_sum(0, &frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    };
    for (ids, expected) in [([7, 8, 9], vec![3]), ([0xffff, 0, 1], vec![3]), ([7, 7, 8], vec![1, 2])] {
        for (out, id) in frames.iter_mut().zip(ids) {
            renumber(&mut out.frame, id);
        }
        let left = join(&frames, &Place::WHOLE);
        assert_eq!(frames_of(&left), expected, "{ids:?}");
        let cut: Vec<_> = left.iter().flat_map(|left| finished(&left.out)).collect();
        assert_eq!(cut, frames.iter().map(|out| out.frame.clone()).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_no_plain_data_goes_alone() {
    let alone = |spec: Spec, change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = spec.build(Checksum::Complete);
        change(&mut frame);
        let out = Out { header: NetHeader::PLAIN, frame };
        let left = join(&[out.clone(), out.clone()], &Place::WHOLE);
        assert_eq!(frames_of(&left), [1, 1], "{spec:?}");
        assert!(left.iter().all(|left| left.out == out), "as it came");
    };
    let unchanged = |_: &mut Vec<u8>| {};
    alone(Spec::tcp4(ACK, 0), &unchanged);
    alone(Spec::udp4(0), &unchanged);
    alone(Spec::new(Network::V4 { options: 4 }, Transport::Udp, 100), &unchanged);
    alone(Spec::new(Network::V6 { extensions: vec![(0, 8)] }, Transport::Udp, 100), &unchanged);
    // Padding behind the packet; a wrong header checksum; a first fragment; UDP without a checksum.
    alone(Spec::udp4(10), &|frame| frame.extend([0; 8]));
    alone(Spec::udp4(100), &|frame| frame[24] ^= 1);
    alone(Spec::udp4(100), &|frame| frame[20] = 0x20);
    alone(Spec::udp4(100), &|frame| frame[40..42].fill(0));
    alone(Spec::udp4(20_000), &unchanged);
}

#[test]
fn a_receiver_that_does_not_cut_gets_frames_alone() {
    for (spec, needed) in [
        (Spec::udp4(100), Offloads { csum: true, uso4: true, ..Offloads::NONE }),
        (Spec::udp6(100), Offloads { csum: true, uso6: true, ..Offloads::NONE }),
        (Spec::tcp4(ACK, 100), Offloads { csum: true, tso4: true, ..Offloads::NONE }),
        (Spec::tcp6(ACK, 100), Offloads { csum: true, tso6: true, ..Offloads::NONE }),
    ] {
        let frame = spec.build(Checksum::Complete);
        with_body(&frame, &Place::WHOLE, |head, body| {
            let packet = Packet { header: NetHeader::PLAIN, head, body };
            for bits in 0..1 << 7 {
                let can = Offloads::from_bits(bits);
                let enough = bits & needed.bits() == needed.bits();
                assert_eq!(Headers::of(&packet, can).is_some(), enough, "{spec:?} {can:?}");
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_of_many_flows_leave_in_order_and_unchanged(
        tags in 0..=2_usize,
        kinds in proptest::collection::vec((0..4_u8, 1..9000_usize, 40..2000_u16), 1..6),
        swaps in proptest::collection::vec((0..64_usize, 0..64_usize), 0..4),
        head in 14..=200_usize,
        ranges in proptest::collection::vec(0..700_usize, 0..5),
    ) {
        let mut frames: Vec<Out> = Vec::new();
        for (kind, payload, segment) in kinds {
            let spec = match kind {
                0 => Spec::udp4(payload),
                1 => Spec::udp6(payload),
                2 => Spec::tcp4(ACK | 8, payload),
                _ => Spec::tcp6(ACK, payload),
            };
            frames.extend(flow(&Spec { tags, ..spec }, segment));
        }
        let count = frames.len();
        for (a, b) in swaps {
            frames.swap(a % count, b % count);
        }
        let left = join(&frames, &Place { head, ranges });
        prop_assert_eq!(left.iter().map(|left| left.frames).sum::<usize>(), count);
        let cut: Vec<_> = left.iter().flat_map(|left| finished(&left.out)).collect();
        prop_assert_eq!(cut.len(), count);
        for (cut, before) in cut.iter().zip(&frames) {
            prop_assert_eq!(without_identification(cut, tags), without_identification(&before.frame, tags));
        }
    }
}

/// IPv4 packets that may not be fragmented are numbered anew.
fn without_identification(frame: &[u8], tags: usize) -> Vec<u8> {
    let (mut frame, l3) = (frame.to_vec(), 14 + 4 * tags);
    if frame[l3] >> 4 == 4 {
        frame[l3 + 4..l3 + 6].fill(0);
        frame[l3 + 10..l3 + 12].fill(0);
    }
    frame
}
