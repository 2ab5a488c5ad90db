//! Every combination once, and the corners.

use net_backend::frame::{BadOffload, Gso, MAX_SEGMENTS, NetHeader, Offloads, Work, flag};

use crate::frames::{Checksum, Network, Place, Spec, Transport, run};
use crate::reference::dissect;
use crate::verdict::check;

const FIN_PSH_ACK: u8 = 0x19;
const CWR: u8 = 0x80;

/// Every receiver there can be; one that completes no checksums can do nothing else, whatever it says.
fn receivers() -> impl Iterator<Item = Offloads> {
    let all = (0..1 << 7).map(Offloads::from_bits);
    let silent = Offloads { csum: false, ..Offloads::ALL };
    all.filter(move |can| can.csum || *can == Offloads::NONE || *can == silent)
}

/// What a sender can leave undone, with a frame to do it to.
fn senders() -> Vec<(Spec, Gso)> {
    let ecn = |ecn| (Gso::TcpV4 { ecn }, Gso::TcpV6 { ecn });
    let ((tso4, tso6), (tso4_ecn, tso6_ecn)) = (ecn(false), ecn(true));
    let len = 1501;
    vec![
        (Spec::tcp4(FIN_PSH_ACK, len), tso4),
        (Spec::tcp4(FIN_PSH_ACK | CWR, len), tso4),
        (Spec::tcp4(FIN_PSH_ACK, len), tso4_ecn),
        (Spec::tcp4(FIN_PSH_ACK | CWR, len), tso4_ecn),
        (Spec::tcp6(FIN_PSH_ACK, len), tso6),
        (Spec::tcp6(FIN_PSH_ACK, len), tso6_ecn),
        (Spec::tcp6(FIN_PSH_ACK | CWR, len), tso6_ecn),
        (Spec::udp4(len), Gso::Udp),
        (Spec::udp6(len), Gso::Udp),
        (Spec::udp4(len), Gso::UdpL4),
        (Spec::udp6(len), Gso::UdpL4),
    ]
}

fn try_one(spec: &Spec, header: NetHeader, checksum: Checksum, can: Offloads) {
    let (result, outs) = run(&spec.build(checksum), header, can, &Place::WHOLE, usize::MAX);
    check(spec, &header, can, result, &outs);
}

#[test]
fn every_receiver_gets_what_every_sender_sent() {
    for (spec, gso) in senders() {
        for tags in 0..=2 {
            let spec = Spec { tags, ..spec.clone() };
            let verified = NetHeader { flags: flag::DATA_VALID, ..NetHeader::PLAIN };
            let complete = NetHeader { gso, gso_size: 600, ..NetHeader::PLAIN };
            for can in receivers() {
                try_one(&spec, NetHeader::PLAIN, Checksum::Complete, can);
                try_one(&spec, verified, Checksum::Complete, can);
                try_one(&spec, spec.needs_csum(), Checksum::Partial, can);
                try_one(&spec, spec.segmented(gso, 600), Checksum::Partial, can);
                try_one(&spec, spec.segmented(gso, 6000), Checksum::Partial, can);
                // A kernel that joined segments whose checksums it had verified.
                try_one(&spec, complete, Checksum::Complete, can);
                try_one(&spec, NetHeader { flags: flag::DATA_VALID, ..complete }, Checksum::Complete, can);
            }
        }
    }
}

#[test]
fn a_verified_checksum_is_told_to_those_who_asked_for_it_only() {
    let spec = Spec::tcp4(0x10, 100);
    let verified = NetHeader { flags: flag::DATA_VALID, ..NetHeader::PLAIN };
    for can in receivers() {
        let (_, outs) = run(&spec.build(Checksum::Complete), verified, can, &Place::WHOLE, usize::MAX);
        assert_eq!(outs[0].header.flags, if can.csum { flag::DATA_VALID } else { 0 });
    }
}

#[test]
fn segment_sizes_at_the_edges_cut_rightly() {
    for (spec, gso) in senders() {
        let spec = Spec { payload: crate::frames::bytes(1999), ..spec };
        let sizes =
            [1, 2, 7, 8, 9, 15, 16, 100, 127, 999, 1000, 1991, 1998, 1999, 2000, 2006, 2007, 2008, 65_535];
        for gso_size in sizes {
            for can in [Offloads::NONE, Offloads { csum: true, ..Offloads::NONE }, Offloads::ALL] {
                try_one(&spec, spec.segmented(gso, gso_size), Checksum::Partial, can);
            }
        }
    }
}

#[test]
fn the_longest_packets_are_cut_and_longer_ones_refused() {
    for (spec, gso) in senders() {
        let most = 65_535 - (spec.headers() - spec.l3()) + if spec.v6() { 40 } else { 0 };
        for gso_size in [536, 1448, 65_000, 65_480, 65_495] {
            let longest = Spec { payload: crate::frames::bytes(most), tags: 1, ..spec.clone() };
            try_one(&longest, longest.segmented(gso, gso_size), Checksum::Partial, Offloads::NONE);
            try_one(&longest, longest.segmented(gso, gso_size), Checksum::Partial, Offloads::ALL);
        }
        let longer = Spec { payload: crate::frames::bytes(most + 1), ..spec };
        for can in [Offloads::NONE, Offloads::ALL] {
            let header = longer.segmented(gso, 1448);
            let (result, outs) =
                run(&longer.build(Checksum::Partial), header, can, &Place::WHOLE, usize::MAX);
            assert_eq!((result, outs), (Err(BadOffload::TooLong), Vec::new()));
        }
    }
}

#[test]
fn a_frame_of_too_many_segments_is_refused_before_the_first() {
    for (spec, gso) in senders() {
        let limit = |len| Spec { payload: crate::frames::bytes(len), ..spec.clone() };
        // Fragments count the UDP header, and are never below eight bytes.
        let (size, header) = if gso == Gso::Udp { (8, 8) } else { (4, 0) };
        let spec = limit(MAX_SEGMENTS * size - header);
        try_one(&spec, spec.segmented(gso, size as u16), Checksum::Partial, Offloads::NONE);
        let spec = limit(MAX_SEGMENTS * size - header + 1);
        let frame = spec.build(Checksum::Partial);
        let (result, outs) =
            run(&frame, spec.segmented(gso, size as u16), Offloads::NONE, &Place::WHOLE, usize::MAX);
        assert_eq!((result, outs), (Err(BadOffload::TooManySegments), Vec::new()));
    }
}

#[test]
fn nothing_is_offered_after_the_receiver_ran_out_of_room() {
    for (spec, gso) in senders() {
        let header = spec.segmented(gso, 100);
        let (_, all) = run(&spec.build(Checksum::Partial), header, Offloads::NONE, &Place::WHOLE, usize::MAX);
        let (result, some) = run(&spec.build(Checksum::Partial), header, Offloads::NONE, &Place::WHOLE, 3);
        assert_eq!(result, Ok(Work::Segmented(all.len())));
        // Fragment identifications differ from datagram to datagram.
        let lens = |outs: &[crate::frames::Out]| outs.iter().map(|out| out.frame.len()).collect::<Vec<_>>();
        assert_eq!(lens(&some), lens(&all[..3]));
    }
}

#[test]
fn options_and_extension_headers_go_with_every_segment() {
    let v4 = Network::V4 { options: 40 };
    let v6 = Network::V6 { extensions: vec![(0, 8), (60, 16), (43, 24), (51, 24), (60, 8)] };
    let tcp = Transport::Tcp { options: 40, flags: FIN_PSH_ACK };
    let cases = [
        (Spec::new(v4.clone(), tcp, 4000), Gso::TcpV4 { ecn: false }),
        (Spec::new(v4.clone(), Transport::Udp, 4000), Gso::UdpL4),
        (Spec::new(v4, Transport::Udp, 4000), Gso::Udp),
        (Spec::new(v6.clone(), tcp, 4000), Gso::TcpV6 { ecn: false }),
        (Spec::new(v6.clone(), Transport::Udp, 4000), Gso::UdpL4),
        (Spec::new(v6, Transport::Udp, 4000), Gso::Udp),
    ];
    for (spec, gso) in cases {
        for tags in 0..=2 {
            let spec = Spec { tags, ..spec.clone() };
            for can in receivers() {
                try_one(&spec, spec.segmented(gso, 700), Checksum::Partial, can);
                try_one(&spec, spec.needs_csum(), Checksum::Partial, can);
            }
        }
    }
}

#[test]
fn a_fragment_header_goes_before_what_only_the_receiver_reads() {
    let fragment_at = |extensions: &[(u8, usize)]| {
        let network = Network::V6 { extensions: extensions.to_vec() };
        let spec = Spec::new(network, Transport::Udp, 2000);
        let header = spec.segmented(Gso::Udp, 512);
        let (_, outs) =
            run(&spec.build(Checksum::Partial), header, Offloads::NONE, &Place::WHOLE, usize::MAX);
        dissect(&outs[0].frame).fragment.expect("a fragment").at
    };
    assert_eq!(fragment_at(&[]), 40);
    assert_eq!(fragment_at(&[(60, 8)]), 40);
    assert_eq!(fragment_at(&[(0, 16)]), 56);
    assert_eq!(fragment_at(&[(0, 8), (60, 8), (43, 24), (60, 16)]), 80);
}

#[test]
fn a_checksum_of_zero_is_written_as_ones() {
    for spec in [Spec::udp4(16), Spec::udp6(16), Spec::udp4(700), Spec::tcp4(0x10, 16)] {
        // The last word makes the sum come out as 0xffff, the checksum as 0.
        let mut spec = spec;
        let end = spec.payload.len();
        spec.payload[end - 2..].fill(0);
        let built = spec.build(Checksum::Complete);
        let field = spec.l4() + spec.field();
        spec.payload[end - 2..].copy_from_slice(&built[field..field + 2]);
        let frame = spec.build(Checksum::Partial);
        let (_, outs) = run(&frame, spec.needs_csum(), Offloads::NONE, &Place::WHOLE, usize::MAX);
        assert_eq!(outs[0].frame[field..field + 2], [0xff, 0xff]);
        try_one(&spec, spec.needs_csum(), Checksum::Partial, Offloads::NONE);
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let spec = Spec::udp4(3000);
    let mut frame = spec.build(Checksum::Complete);
    let field = spec.l4() + spec.field();
    frame[field..field + 2].fill(0);
    let header = NetHeader { gso: Gso::UdpL4, gso_size: 1000, ..NetHeader::PLAIN };
    for can in [Offloads::NONE, Offloads { csum: true, ..Offloads::NONE }] {
        let (result, outs) = run(&frame, header, can, &Place::WHOLE, usize::MAX);
        assert_eq!(result, Ok(Work::Segmented(3)));
        assert!(
            outs.iter().all(|out| out.header == NetHeader::PLAIN && out.frame[field..field + 2] == [0, 0])
        );
    }
}

#[test]
fn a_checksum_far_behind_the_head_is_completed() {
    // No protocol: just a field, wherever the sender says it is.
    let frame = crate::frames::bytes(3000);
    for (start, offset) in [(14, 0), (14, 1), (15, 700), (200, 50), (201, 51), (500, 400), (1000, 22)] {
        let header =
            NetHeader { flags: flag::NEEDS_CSUM, csum_start: start, csum_offset: offset, ..NetHeader::PLAIN };
        let (result, outs) = run(&frame, header, Offloads::NONE, &Place::WHOLE, usize::MAX);
        assert_eq!(result, Ok(Work::Checksummed));
        let (start, field) = (usize::from(start), usize::from(start + offset));
        let mut expected = frame.clone();
        let sum = !crate::reference::ones_sum(0, &expected[start..]);
        expected[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(outs[0].frame, expected);
    }
}
