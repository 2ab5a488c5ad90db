//! Frames that are not what their header claims.

use net_backend::frame::{BadHeader, BadOffload, Gso, NetHeader, Offloads, flag};
use proptest::prelude::*;

use crate::frames::{Checksum, Network, Place, Spec, Transport, bytes, run};

const TSO4: Gso = Gso::TcpV4 { ecn: false };
const TSO6: Gso = Gso::TcpV6 { ecn: false };

/// Refused whatever the receiver takes, so that no guest sees another's lies.
fn refused(frame: &[u8], header: NetHeader) -> BadOffload {
    let mut why = None;
    for bits in 0..1 << 7 {
        let (result, outs) = run(frame, header, Offloads::from_bits(bits), &Place::WHOLE, usize::MAX);
        let bad = result.expect_err("a lie");
        assert!(outs.is_empty());
        assert_eq!(*why.get_or_insert(bad), bad);
    }
    why.expect("a reason")
}

#[test]
fn segments_of_another_protocol_are_refused() {
    let specs = [Spec::tcp4(0x10, 3000), Spec::tcp6(0x10, 3000), Spec::udp4(3000), Spec::udp6(3000)];
    let fits = [[true, false, false, false], [false, true, false, false], [false, false, true, true]];
    for (spec, at) in specs.iter().zip(0..) {
        for (gso, fits) in [TSO4, TSO6, Gso::Udp, Gso::UdpL4].iter().zip([fits[0], fits[1], fits[2], fits[2]])
        {
            if !fits[at] {
                let frame = spec.build(Checksum::Partial);
                assert_eq!(refused(&frame, spec.segmented(*gso, 1000)), BadOffload::Protocol);
            }
        }
    }
    let mut arp = bytes(3000);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(refused(&arp, NetHeader { gso: TSO4, gso_size: 1, ..NetHeader::PLAIN }), BadOffload::Protocol);
}

#[test]
fn fragments_are_not_segmented() {
    let spec = Spec::tcp4(0x10, 3000);
    for offset in [[0x20, 0], [0, 1], [0x20, 1]] {
        let mut frame = spec.build(Checksum::Partial);
        frame[20..22].copy_from_slice(&offset);
        assert_eq!(refused(&frame, spec.segmented(TSO4, 1000)), BadOffload::Protocol);
    }
    let v6 = Network::V6 { extensions: vec![(44, 8)] };
    let spec = Spec::new(v6, Transport::Udp, 3000);
    let mut frame = spec.build(Checksum::Partial);
    frame[57] = 1;
    assert_eq!(refused(&frame, spec.segmented(Gso::UdpL4, 1000)), BadOffload::Protocol);
}

#[test]
fn headers_that_are_cut_off_are_refused() {
    for (spec, gso) in [(Spec::tcp4(0x10, 0), TSO4), (Spec::tcp6(0x10, 0), TSO6), (Spec::udp4(0), Gso::Udp)] {
        let frame = spec.build(Checksum::Partial);
        for len in 14..spec.headers() {
            let header = NetHeader { flags: 0, ..spec.segmented(gso, 1) };
            assert_eq!(refused(&frame[..len], header), BadOffload::Headers, "{len} bytes of {spec:?}");
        }
    }
}

#[test]
fn header_lengths_that_are_lies_are_refused() {
    let spec = Spec::tcp4(0x10, 3000);
    for (at, value, why) in [
        (14, 0x44, BadOffload::Protocol),
        (14, 0x65, BadOffload::Protocol),
        (spec.l4() + 12, 0x40, BadOffload::Protocol),
        (23, 17, BadOffload::Protocol),
    ] {
        let mut frame = spec.build(Checksum::Partial);
        frame[at] = value;
        assert_eq!(refused(&frame, spec.segmented(TSO4, 1000)), why, "{value:#x} at {at}");
    }
}

#[test]
fn headers_without_an_end_are_refused() {
    let extensions = vec![(60, 64); 9];
    let spec = Spec::new(Network::V6 { extensions }, Transport::Tcp { options: 0, flags: 0x10 }, 3000);
    assert_eq!(refused(&spec.build(Checksum::Partial), spec.segmented(TSO6, 1000)), BadOffload::Headers);
}

#[test]
fn a_checksum_elsewhere_than_in_the_transport_header_is_refused() {
    let spec = Spec::tcp4(0x10, 3000);
    let frame = spec.build(Checksum::Partial);
    let right = spec.segmented(TSO4, 1000);
    for (start, offset) in [(0, 16), (33, 16), (34, 6), (34, 15), (35, 15), (34, 65_535), (65_535, 65_535)] {
        let header = NetHeader { csum_start: start, csum_offset: offset, ..right };
        assert_eq!(refused(&frame, header), BadOffload::Checksum);
    }
}

#[test]
fn a_checksum_too_far_behind_is_refused_by_those_who_would_complete_it() {
    let frame = bytes(5000);
    let header = NetHeader { flags: flag::NEEDS_CSUM, csum_start: 2000, csum_offset: 6, ..NetHeader::PLAIN };
    let (result, _) = run(&frame, header, Offloads::NONE, &Place::WHOLE, usize::MAX);
    assert_eq!(result, Err(BadOffload::Checksum));
    let behind = NetHeader { csum_start: 4996, csum_offset: 3, ..header };
    assert_eq!(behind.check(5000), Err(BadHeader::Checksum { start: 4996, offset: 3, len: 5000 }));
    let (result, _) = run(&frame, behind, Offloads::NONE, &Place::WHOLE, usize::MAX);
    assert_eq!(result, Err(BadOffload::Checksum));
}

fn any_header() -> impl Strategy<Value = NetHeader> {
    let gso = prop_oneof![
        Just(Gso::None),
        any::<bool>().prop_map(|ecn| Gso::TcpV4 { ecn }),
        any::<bool>().prop_map(|ecn| Gso::TcpV6 { ecn }),
        Just(Gso::Udp),
        Just(Gso::UdpL4),
    ];
    let place = prop_oneof![0_u16..200, any::<u16>()];
    (0_u8..4, gso, place.clone(), place, prop_oneof![1_u16..100, 1..=u16::MAX]).prop_map(
        |(flags, gso, csum_start, csum_offset, gso_size)| NetHeader {
            flags,
            gso,
            csum_start,
            csum_offset,
            gso_size,
            hdr_len: 1,
            ..NetHeader::PLAIN
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_noise_gets_more_out_than_was_put_in(
        header in any_header(),
        bits in 0_u8..128,
        start in 0..4_usize,
        noise in proptest::collection::vec((0..400_usize, any::<u8>()), 0..6),
        len in 14..700_usize,
        head in 0..=256_usize,
        ranges in proptest::collection::vec(0..200_usize, 0..5),
    ) {
        let spec = [Spec::tcp4(0x19, 600), Spec::tcp6(0x19, 600), Spec::udp4(600), Spec::udp6(600)][start].clone();
        let mut frame = spec.build(Checksum::Partial);
        for (at, value) in noise {
            frame[at] = value;
        }
        frame.truncate(len);
        let can = Offloads::from_bits(bits);
        let (result, outs) = run(&frame, header, can, &Place { head, ranges }, usize::MAX);
        prop_assert_eq!(result.is_err(), outs.is_empty());
        let payload: usize = outs.iter().map(|out| out.frame.len()).sum();
        prop_assert!(payload <= frame.len() + outs.len() * (256 + 8));
        for out in outs {
            prop_assert!(out.header.flags == 0 || can.csum);
            prop_assert!(out.header.gso == Gso::None || can.csum);
        }
    }
}
