//! Where frames go: addresses, VLANs, isolation, flooding.

use crate::bench::*;

#[test]
fn the_switch_learns_where_addresses_are() {
    let mut bench = Bench::plain(&[A, B, C]);
    assert_eq!(bench.send(A, mac(2), mac(1)), flood(&[B, C]));
    assert_eq!(bench.send(B, mac(1), mac(2)), Ok(To::Port(A)));
    assert_eq!(bench.send(A, mac(2), mac(1)), Ok(To::Port(B)));
    assert_eq!(bench.send(C, MacAddr::BROADCAST, mac(3)), flood(&[A, B]));
}

#[test]
fn an_address_that_ages_is_flooded_again() {
    let mut bench = Bench::plain(&[A, B, C]);
    bench.send(B, mac(1), mac(2)).unwrap();
    bench.now += 299 * SECOND;
    assert_eq!(bench.send(A, mac(2), mac(1)), Ok(To::Port(B)));
    bench.now += 10 * SECOND;
    assert_eq!(bench.send(A, mac(2), mac(1)), flood(&[B, C]));
}

#[test]
fn a_frame_never_goes_back_to_where_it_came_from() {
    let mut bench = Bench::plain(&[A, B]);
    bench.send(A, mac(9), mac(1)).unwrap();
    assert_eq!(bench.send(A, mac(1), mac(2)), Ok(To::None(Drop::SamePort)));
    let mut alone = Bench::plain(&[A]);
    assert_eq!(alone.send(A, mac(2), mac(1)), Ok(To::None(Drop::NoRoute)));
}

#[test]
fn a_loopback_port_gets_all_its_frames_back_and_nobody_else_does() {
    let mut bench = Bench::new([(A, port(|port| port.loopback = true)), (B, PortPolicy::default())]);
    for dst in [mac(1), mac(2), MacAddr::BROADCAST] {
        let bytes = frame(dst, mac(1), &[]);
        assert_eq!(bench.forward(A, &bytes), BTreeMap::from([(A, Ok(TagEdit::None))]));
    }
    assert!(bench.fabric.entries(bench.now).is_empty());
}

#[test]
fn impossible_sources_are_refused_and_not_learned() {
    let mut bench = Bench::plain(&[A, B]);
    for src in [MacAddr::ZERO, MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 0, 0, 1])] {
        assert_eq!(bench.send(A, mac(2), src), Err(Drop::Malformed));
    }
    assert!(bench.fabric.entries(bench.now).is_empty());
}

#[test]
fn a_port_that_is_not_there_sends_and_receives_nothing() {
    let mut bench = Bench::plain(&[A, B]);
    for absent in [C, PortId(256), PortId(u16::MAX)] {
        assert_eq!(bench.send(absent, mac(2), mac(1)), Err(Drop::NoRoute));
        let verdict = bench.tagged(A, mac(2), mac(1), &[]).unwrap();
        assert_eq!(bench.leave(absent, &verdict, &frame(mac(2), mac(1), &[])), Err(Drop::NoRoute));
        assert_eq!(bench.switch.admit(absent, 64, bench.now), Ok(()));
        assert!(bench.switch.mirror(absent, Direction::In).is_none());
    }
}

#[test]
fn group_addresses_of_bridges_stop_here_unless_allowed() {
    let mut bench = Bench::new([(A, PortPolicy::default()), (B, port(|port| port.forward_reserved = true))]);
    for last in 0..16 {
        let group = MacAddr([1, 0x80, 0xc2, 0, 0, last]);
        assert_eq!(bench.send(A, group, mac(1)), Err(Drop::Reserved));
        assert_eq!(bench.send(B, group, mac(2)), flood(&[A]));
    }
    assert_eq!(bench.send(A, MacAddr([1, 0x80, 0xc2, 0, 0, 16]), mac(1)), flood(&[B]));
}

#[test]
fn access_ports_of_different_vlans_do_not_hear_each_other() {
    let mut bench = Bench::new([(A, access(10)), (B, access(10)), (C, access(20))]);
    assert_eq!(bench.send(A, MacAddr::BROADCAST, mac(1)), flood(&[B]));
    assert_eq!(bench.send(C, mac(1), mac(3)), Ok(To::None(Drop::NoRoute)), "not known in VLAN 20");
    assert_eq!(bench.tagged(A, mac(2), mac(1), &[10]), Err(Drop::VlanNotAllowed), "a guest may not tag");
}

#[test]
fn tags_are_put_on_and_taken_off_between_access_and_trunk() {
    let mut bench = Bench::new([(A, access(10)), (B, trunk("10-20", Some(5))), (C, trunk("10,30", None))]);
    let up = frame(MacAddr::BROADCAST, mac(1), &[]);
    assert_eq!(
        bench.forward(A, &up),
        BTreeMap::from([(B, Ok(TagEdit::Push(10))), (C, Ok(TagEdit::Push(10)))])
    );
    let down = frame(MacAddr::BROADCAST, mac(2), &[0xa00a]);
    assert_eq!(bench.forward(B, &down), BTreeMap::from([(A, Ok(TagEdit::Pop)), (C, Ok(TagEdit::None))]));
    let priority = frame(MacAddr::BROADCAST, mac(1), &[0xa000]);
    let edits = BTreeMap::from([(B, Ok(TagEdit::Set(0xa00a))), (C, Ok(TagEdit::Set(0xa00a)))]);
    assert_eq!(bench.forward(A, &priority), edits, "the priority of the guest is kept");
    assert_eq!(bench.tagged(C, mac(2), mac(3), &[]), Err(Drop::VlanNotAllowed), "no native VLAN");
    assert_eq!(bench.tagged(C, mac(2), mac(3), &[20]), Err(Drop::VlanNotAllowed), "not on its list");
    assert_eq!(bench.tagged(B, mac(2), mac(3), &[4095]), Err(Drop::VlanNotAllowed));
}

#[test]
fn the_native_vlan_leaves_untagged() {
    let mut bench = Bench::new([(A, access(5)), (B, trunk("10", Some(5))), (C, trunk("5,10", None))]);
    let bytes = frame(MacAddr::BROADCAST, mac(1), &[]);
    assert_eq!(bench.forward(A, &bytes), BTreeMap::from([(B, Ok(TagEdit::None)), (C, Ok(TagEdit::Push(5)))]));
    assert_eq!(bench.tagged(B, mac(2), mac(2), &[]).map(|verdict| verdict.vlan), Ok(5));
    assert_eq!(bench.tagged(B, mac(2), mac(2), &[5]).map(|verdict| verdict.vlan), Ok(5));
    let tagged = frame(MacAddr::BROADCAST, mac(3), &[5]);
    assert_eq!(bench.forward(C, &tagged), BTreeMap::from([(A, Ok(TagEdit::Pop)), (B, Ok(TagEdit::Pop))]));
}

#[test]
fn a_second_tag_does_not_lead_into_another_vlan() {
    let mut bench = Bench::new([(A, trunk("5", None)), (B, trunk("20", Some(5)))]);
    let double = frame(MacAddr::BROADCAST, mac(1), &[0x6005, 20]);
    let kept = BTreeMap::from([(B, Ok(TagEdit::Set(0x6000)))]);
    assert_eq!(bench.forward(A, &double), kept, "the tag for 20 stays behind another one");
}

#[test]
fn open_ports_pass_tags_as_they_are_and_learn_by_vlan() {
    let mut bench = Bench::plain(&[A, B, C]);
    let tagged = frame(mac(2), mac(1), &[7]);
    assert_eq!(bench.forward(A, &tagged), BTreeMap::from([(B, Ok(TagEdit::None)), (C, Ok(TagEdit::None))]));
    assert_eq!(bench.tagged(B, mac(1), mac(2), &[7]).map(|v| v.to), Ok(To::Port(A)));
    assert_eq!(bench.send(B, mac(1), mac(2)), flood(&[A, C]), "nobody has that address without a tag");
    let priority = frame(mac(1), mac(2), &[0xe000]);
    assert!(bench.forward(B, &priority).values().all(|edit| *edit == Ok(TagEdit::None)));
}

#[test]
fn a_spoofed_source_is_dropped_and_teaches_nothing() {
    let guarded = port(|port| (port.macs, port.anti_spoof) = (vec![mac(1), mac(11)], true));
    let mut bench = Bench::new([(A, guarded), (B, PortPolicy::default()), (C, PortPolicy::default())]);
    assert_eq!(bench.send(A, mac(9), mac(2)), Err(Drop::SpoofedMac));
    assert_eq!(bench.send(B, mac(2), mac(3)), flood(&[A, C]), "nobody learned it");
    assert_eq!(bench.send(A, mac(3), mac(1)), Ok(To::Port(B)));
    assert_eq!(bench.send(A, mac(3), mac(11)), Ok(To::Port(B)));
    assert_eq!(bench.tagged(A, mac(3), mac(2), &[7]), Err(Drop::SpoofedMac));
}

#[test]
fn static_addresses_are_known_from_the_start_and_cannot_be_stolen() {
    let mut bench =
        Bench::new([(A, port(|port| port.macs = vec![mac(1)])), (B, access(10)), (C, PortPolicy::default())]);
    assert_eq!(bench.send(C, mac(1), mac(1)), Ok(To::Port(A)));
    assert_eq!(bench.send(C, mac(1), mac(3)), Ok(To::Port(A)));
    assert_eq!(bench.fabric.census(C).refused, 1);
}

#[test]
fn isolated_ports_talk_to_the_others_only() {
    let isolated = port(|port| port.isolated = true);
    let mut bench = Bench::new([
        (A, isolated.clone()),
        (B, isolated),
        (C, PortPolicy::default()),
        (UPLINK, port(|port| port.uplink = true)),
    ]);
    assert_eq!(bench.send(A, MacAddr::BROADCAST, mac(1)), flood(&[C, UPLINK]));
    assert_eq!(bench.send(B, mac(1), mac(2)), Err(Drop::Isolated));
    assert_eq!(bench.send(UPLINK, mac(1), mac(4)), Ok(To::Port(A)));
    assert_eq!(bench.send(A, mac(4), mac(1)), Ok(To::Port(UPLINK)));
    assert_eq!(bench.send(C, MacAddr::BROADCAST, mac(3)), flood(&[A, B, UPLINK]));
}

#[test]
fn a_port_without_unknown_flooding_gets_broadcasts_and_what_is_its_own() {
    let mut bench = Bench::new([
        (A, PortPolicy::default()),
        (B, port(|port| (port.flood_unknown, port.macs) = (false, vec![mac(2)]))),
        (C, PortPolicy::default()),
    ]);
    assert_eq!(bench.send(A, mac(9), mac(1)), flood(&[C]));
    assert_eq!(bench.send(A, MacAddr::BROADCAST, mac(1)), flood(&[B, C]));
    assert_eq!(bench.send(A, mac(2), mac(1)), Ok(To::Port(B)));
}

#[test]
fn a_flood_of_source_addresses_is_bounded_and_harms_no_other_port() {
    let mut bench = Bench::new([(A, port(|port| port.learn_limit = Some(16))), (B, PortPolicy::default())]);
    bench.send(B, mac(9), mac(2)).unwrap();
    for n in 0..50_000u64 {
        let src = MacAddr::from_u64(0x0200_0000_0000 + n * 7919);
        assert!(bench.send(A, mac(2), src) == Ok(To::Port(B)), "its frames still pass");
    }
    assert_eq!((bench.fabric.census(A).learned, bench.fabric.census(B).learned), (16, 1));
}
