//! Whether what came out is what the sender sent, as this receiver may see it.

use net_backend::frame::{BadOffload, Gso, NetHeader, Offloads, Work, flag};

use crate::frames::{Checksum, IDENTIFICATION, Out, SEQUENCE, Spec, Transport};
use crate::reference::{Packet, be16, be32, check_transport, dissect, finish, reassemble};

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// What a receiver takes, spelled out once more.
pub fn takes(can: Offloads, gso: Gso, spec: &Spec) -> bool {
    let cwr = matches!(spec.transport, Transport::Tcp { flags, .. } if flags & CWR != 0);
    let able = match gso {
        Gso::None => true,
        Gso::TcpV4 { ecn } => can.tso4 && (can.ecn || !ecn || !cwr),
        Gso::TcpV6 { ecn } => can.tso6 && (can.ecn || !ecn || !cwr),
        Gso::Udp => can.ufo,
        Gso::UdpL4 => {
            if spec.v6() {
                can.uso6
            } else {
                can.uso4
            }
        }
    };
    can.csum && able
}

/// Checks everything about the way of `spec`, sent with `header`, to a receiver that takes `can`.
pub fn check(spec: &Spec, header: &NetHeader, can: Offloads, result: Result<Work, BadOffload>, outs: &[Out]) {
    // Offsets of fragments count by eight bytes.
    let least = if header.gso == Gso::Udp { 8 } else { 1 };
    let gso_size = usize::from(header.gso_size).max(least);
    let cut = if header.gso == Gso::Udp { spec.l4() } else { spec.headers() };
    let to_cut = spec.headers() + spec.payload.len() - cut;
    if header.gso == Gso::None || to_cut <= gso_size {
        let finished = header.flags & flag::NEEDS_CSUM == 0 || can.csum;
        assert_eq!(result, Ok(if finished { Work::Passed } else { Work::Checksummed }));
        return check_one(spec, can, outs);
    }
    if takes(can, header.gso, spec) {
        assert_eq!(result, Ok(Work::Passed));
        return check_passed(spec, header, outs);
    }
    assert_eq!(result, Ok(Work::Segmented(outs.len())));
    match header.gso {
        Gso::Udp => check_fragments(spec, gso_size, can, outs),
        _ => check_segments(spec, gso_size, can, outs),
    }
}

/// One frame, whole.
fn check_one(spec: &Spec, can: Offloads, outs: &[Out]) {
    let [out] = outs else { panic!("{} frames out of one", outs.len()) };
    assert_same_frame(&finish(out, can), &spec.build(Checksum::Complete));
    check_transport(&dissect(&finish(out, can)));
}

/// Frames are the same, but a checksum of 0 may be written as 0xffff.
fn assert_same_frame(a: &[u8], b: &[u8]) {
    let ends = |frame: &[u8]| (frame.len(), frame[..14].to_vec());
    assert_eq!(ends(a), ends(b));
    let (a, b) = (dissect(a), dissect(b));
    assert_eq!((a.ethernet, a.network), (b.ethernet, b.network));
    let field = if a.protocol == 6 { 16 } else { 6 };
    let without_checksum = |rest: &[u8]| [&rest[..field], &rest[field + 2..]].concat();
    assert_eq!(without_checksum(&a.rest), without_checksum(&b.rest));
}

/// The frame as it was, with a header that is right in every field.
fn check_passed(spec: &Spec, header: &NetHeader, outs: &[Out]) {
    let [out] = outs else { panic!("{} frames out of one", outs.len()) };
    let gso = match (header.gso, spec.transport) {
        (Gso::TcpV4 { .. }, Transport::Tcp { flags, .. }) if flags & CWR == 0 => Gso::TcpV4 { ecn: false },
        (Gso::TcpV6 { .. }, Transport::Tcp { flags, .. }) if flags & CWR == 0 => Gso::TcpV6 { ecn: false },
        (gso, _) => gso,
    };
    let expected =
        NetHeader { gso, gso_size: header.gso_size, hdr_len: spec.headers() as u16, ..spec.needs_csum() };
    assert_eq!(out.header, expected);
    assert_eq!(out.frame, spec.build(Checksum::Partial));
}

/// The payload of `out`, whose headers are those of the frame but for what differs between segments.
fn payload_of(spec: &Spec, packet: &Packet, index: usize) -> Vec<u8> {
    let whole = dissect(&spec.build(Checksum::Complete));
    assert_eq!(packet.ethernet, whole.ethernet);
    let mut network = packet.network.clone();
    if spec.v6() {
        network[4..6].copy_from_slice(&whole.network[4..6]);
    } else {
        assert_eq!(be16(&network, 4), IDENTIFICATION.wrapping_add(index as u16));
        for field in [2, 4, 10] {
            network[field..field + 2].copy_from_slice(&whole.network[field..field + 2]);
        }
    }
    assert_eq!(network, whole.network);
    let header = spec.headers() - spec.l4();
    let (mut transport, payload) = (packet.rest[..header].to_vec(), packet.rest[header..].to_vec());
    let vary = match spec.transport {
        Transport::Tcp { .. } => vec![4, 5, 6, 7, 13, 16, 17],
        Transport::Udp => vec![4, 5, 6, 7],
    };
    for at in vary {
        transport[at] = whole.rest[at];
    }
    assert_eq!(transport, whole.rest[..header]);
    payload
}

/// Packets of their own, whose payload is that of the frame.
fn check_segments(spec: &Spec, gso_size: usize, can: Offloads, outs: &[Out]) {
    let mut payload = Vec::new();
    for (index, out) in outs.iter().enumerate() {
        assert_eq!(
            out.header.flags,
            if can.csum { flag::NEEDS_CSUM } else { 0 },
            "checksums are left to who can"
        );
        let packet = dissect(&finish(out, can));
        assert!(packet.fragment.is_none());
        check_transport(&packet);
        let (first, last) = (index == 0, index + 1 == outs.len());
        if let Transport::Tcp { flags, .. } = spec.transport {
            assert_eq!(be32(&packet.rest, 4), SEQUENCE.wrapping_add(payload.len() as u32), "sequence number");
            let not_here = if last { 0 } else { FIN_PSH } | if first { 0 } else { CWR };
            assert_eq!(packet.rest[13], flags & !not_here, "TCP flags of segment {index}");
        }
        let piece = payload_of(spec, &packet, index);
        assert!(piece.len() == gso_size || (last && piece.len() <= gso_size && !piece.is_empty()));
        payload.extend(piece);
    }
    assert_eq!(payload, spec.payload);
}

/// Fragments of the one datagram.
fn check_fragments(spec: &Spec, gso_size: usize, can: Offloads, outs: &[Out]) {
    let mut fragments = Vec::new();
    for out in outs {
        assert_eq!(
            out.header,
            NetHeader::PLAIN,
            "the checksum of a fragment is not the receiver's to complete"
        );
        let packet = dissect(&finish(out, can));
        assert!(packet.rest.len() <= gso_size, "a fragment of {} bytes", packet.rest.len());
        fragments.push(packet);
    }
    let whole = reassemble(&fragments);
    check_transport(&dissect(&whole));
    let mut expected = spec.build(Checksum::Complete);
    if !spec.v6() {
        // A fragment cannot forbid fragmentation.
        let l3 = spec.l3();
        expected[l3 + 6] = 0;
        expected[l3 + 10..l3 + 12].copy_from_slice(&whole[l3 + 10..l3 + 12]);
    }
    assert_same_frame(&whole, &expected);
}
