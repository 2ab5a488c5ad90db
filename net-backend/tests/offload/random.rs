//! Random frames, in any layout.

use net_backend::frame::{Gso, NetHeader, Offloads};
use proptest::prelude::*;

use crate::frames::{Checksum, Network, Place, Spec, Transport, bytes, run};
use crate::verdict::check;

fn network() -> impl Strategy<Value = Network> {
    // Fragment and authentication headers aside, in any order; those that do not occur are skipped by receivers too.
    let extension = (prop_oneof![Just(0_u8), Just(43), Just(60)], (1..6_usize).prop_map(|units| units * 8));
    prop_oneof![
        (0..=10_usize).prop_map(|words| Network::V4 { options: words * 4 }),
        proptest::collection::vec(extension, 0..5).prop_map(|extensions| Network::V6 { extensions }),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    let tcp =
        (0..=10_usize, any::<u8>()).prop_map(|(words, flags)| Transport::Tcp { options: words * 4, flags });
    prop_oneof![tcp, Just(Transport::Udp)]
}

fn spec() -> impl Strategy<Value = Spec> {
    (0..=2_usize, network(), transport(), 0..3000_usize).prop_map(|(tags, network, transport, len)| Spec {
        tags,
        network,
        transport,
        payload: bytes(len),
    })
}

fn place() -> impl Strategy<Value = Place> {
    let ranges = proptest::collection::vec(prop_oneof![0..20_usize, 0..1500_usize], 0..8);
    (14..=256_usize, ranges).prop_map(|(head, ranges)| Place { head, ranges })
}

/// What this frame can be sent with.
fn gso(spec: &Spec, ecn: bool, fragments: bool) -> Gso {
    match spec.transport {
        Transport::Tcp { .. } if spec.v6() => Gso::TcpV6 { ecn },
        Transport::Tcp { .. } => Gso::TcpV4 { ecn },
        Transport::Udp if fragments => Gso::Udp,
        Transport::Udp => Gso::UdpL4,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_frame_in_any_layout_arrives(
        spec in spec(),
        place in place(),
        bits in 0_u8..128,
        (ecn, fragments, partial) in any::<(bool, bool, bool)>(),
        gso_size in prop_oneof![2..64_u16, 64..3000_u16],
    ) {
        let can = Offloads::from_bits(bits);
        let gso = gso(&spec, ecn, fragments);
        let (checksum, header) = match partial {
            true => (Checksum::Partial, spec.segmented(gso, gso_size)),
            false => (Checksum::Complete, NetHeader { gso, gso_size, ..NetHeader::PLAIN }),
        };
        let (result, outs) = run(&spec.build(checksum), header, can, &place, usize::MAX);
        check(&spec, &header, can, result, &outs);
    }

    #[test]
    fn any_partial_checksum_in_any_layout_is_completed(spec in spec(), place in place(), bits in 0_u8..128) {
        let can = Offloads::from_bits(bits);
        let header = spec.needs_csum();
        let (result, outs) = run(&spec.build(Checksum::Partial), header, can, &place, usize::MAX);
        check(&spec, &header, can, result, &outs);
    }
}
