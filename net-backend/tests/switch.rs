//! What the switch decides, seen from outside: frames in, verdicts and tag edits out.

use net_backend::frame::{Head, MacAddr, Meta, parse};
use net_backend::switch::{
    AdoptError, CaptureOptions, Direction, Drop, Fabric, Mirror, MirrorPolicy, MirrorTarget, Policy, PortId,
    PortPolicy, PortSet, Rate, RatePair, ReceiveFilter, StormLimits, Switch, SwitchOptions, TagEdit, To,
    Verdict, VlanMode, VlanSet,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const C: PortId = PortId(200);
const UPLINK: PortId = PortId(255);
const SECOND: u64 = 1_000_000_000;

fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, n])
}

/// A frame with these tags, innermost last, and a UDP datagram's worth of zeros.
fn frame(dst: MacAddr, src: MacAddr, tags: &[u16]) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    tags.iter().for_each(|tci| bytes.extend([[0x81, 0], tci.to_be_bytes()].concat()));
    bytes.extend([0x08, 0x00]);
    bytes.resize(64, 0);
    bytes
}

struct Bench {
    fabric: Arc<Fabric>,
    switch: Switch,
    now: u64,
}

impl Bench {
    fn new(ports: impl IntoIterator<Item = (PortId, PortPolicy)>) -> Self {
        let policy =
            Policy::new(SwitchOptions::default(), ports.into_iter().collect()).expect("a good policy");
        let fabric = Arc::new(Fabric::new(1));
        fabric.adopt(&policy).expect("room for the static addresses");
        let switch = Switch::new(fabric.clone(), Arc::new(policy));
        Self { fabric, switch, now: 1000 * SECOND }
    }

    fn plain(ports: &[PortId]) -> Self {
        Self::new(ports.iter().map(|port| (*port, PortPolicy::default())))
    }

    fn change(&mut self, change: impl FnOnce(&Policy) -> Policy) {
        let policy = change(self.switch.policy());
        self.fabric.adopt(&policy).expect("room for the static addresses");
        self.switch.set_policy(Arc::new(policy));
    }

    fn bytes_in(&mut self, port: PortId, bytes: &[u8]) -> Result<Verdict, Drop> {
        let head = Head::from_slice(bytes);
        let meta = parse::l2(&head).expect("an Ethernet header");
        self.switch.ingress(port, &meta, &head, bytes.len(), self.now)
    }

    fn tagged(&mut self, port: PortId, dst: MacAddr, src: MacAddr, tags: &[u16]) -> Result<Verdict, Drop> {
        self.bytes_in(port, &frame(dst, src, tags))
    }

    fn send(&mut self, port: PortId, dst: MacAddr, src: MacAddr) -> Result<To, Drop> {
        self.tagged(port, dst, src, &[]).map(|verdict| verdict.to)
    }

    /// What leaves at each port that the frame gets to.
    fn forward(&mut self, port: PortId, bytes: &[u8]) -> BTreeMap<PortId, Result<TagEdit, Drop>> {
        let Ok(verdict) = self.bytes_in(port, bytes) else { return BTreeMap::new() };
        let ports = match verdict.to {
            To::Port(port) => [port].into_iter().collect(),
            To::Flood(ports) => ports,
            To::None(_) => PortSet::EMPTY,
        };
        ports.iter().map(|to| (to, self.leave(to, &verdict, bytes))).collect()
    }

    fn leave(&mut self, port: PortId, verdict: &Verdict, bytes: &[u8]) -> Result<TagEdit, Drop> {
        let head = Head::from_slice(bytes);
        let meta = parse::l2(&head).expect("an Ethernet header");
        self.switch.egress(port, verdict, &meta, &head, bytes.len(), self.now)
    }
}

fn flood(ports: &[PortId]) -> Result<To, Drop> {
    Ok(To::Flood(ports.iter().copied().collect()))
}

fn port(edit: impl FnOnce(&mut PortPolicy)) -> PortPolicy {
    let mut policy = PortPolicy::default();
    edit(&mut policy);
    policy
}

fn access(vlan: u16) -> PortPolicy {
    port(|port| port.vlan = VlanMode::Access(vlan))
}

fn trunk(allowed: &str, native: Option<u16>) -> PortPolicy {
    let allowed = allowed.parse().expect("VLANs");
    port(|port| port.vlan = VlanMode::Trunk { allowed, native })
}

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

#[test]
fn storms_are_cut_by_kind_and_only_where_they_come_from() {
    let rate = Rate { rate: 10, burst: 5 };
    let limited = StormLimits { unknown: rate, broadcast: rate, multicast: rate };
    let mut bench = Bench::new([(A, port(|port| port.storm = limited)), (B, PortPolicy::default())]);
    let multicast = MacAddr([1, 0, 0x5e, 0, 0, 5]);
    let kinds = [
        (mac(9), Drop::StormUnknown),
        (MacAddr::BROADCAST, Drop::StormBroadcast),
        (multicast, Drop::StormMulticast),
    ];
    bench.send(B, mac(1), mac(2)).unwrap();
    for (dst, reason) in kinds {
        let sent: Vec<_> = (0..100).map(|_| bench.send(A, dst, mac(1))).collect();
        assert_eq!(sent.iter().filter(|to| to.is_ok()).count(), 6, "the burst and one on credit");
        assert!(sent.iter().skip(6).all(|to| *to == Err(reason)));
        assert!((0..100).all(|_| bench.send(B, dst, mac(2)).is_ok()));
        assert!((0..100).all(|_| bench.send(A, mac(2), mac(1)).is_ok()), "known unicast is no storm");
    }
    bench.now += SECOND;
    assert!(bench.send(A, MacAddr::BROADCAST, mac(1)).is_ok());
}

#[test]
fn a_guest_over_its_limit_is_told_when_to_come_back() {
    let packets = Rate { rate: 1000, burst: 1 };
    let mut bench = Bench::new([
        (A, port(|port| port.limits.ingress = RatePair { packets, bits: Rate::UNLIMITED })),
        (B, PortPolicy::default()),
    ]);
    assert!(bench.switch.has_admission(A) && !bench.switch.has_admission(B));
    let mut passed = 0;
    let start = bench.now;
    while bench.now < start + SECOND {
        match bench.switch.admit(A, 64, bench.now) {
            Ok(()) => passed += 1,
            Err(until) => {
                assert!(until > bench.now, "no busy loop");
                bench.now = until;
            }
        }
    }
    assert!((1000..=1002).contains(&passed), "{passed}");
    assert!((0..100).all(|_| bench.switch.admit(B, 64, bench.now).is_ok()));
}

#[test]
fn frames_from_the_uplink_over_its_limit_are_dropped() {
    let bits = Rate { rate: 8 * 1500 * 100, burst: 8 * 1500 };
    let limited = port(|port| {
        port.uplink = true;
        port.limits.ingress = RatePair { packets: Rate::UNLIMITED, bits };
    });
    let mut bench = Bench::new([(UPLINK, limited), (A, PortPolicy::default())]);
    assert!(!bench.switch.has_admission(UPLINK), "nobody holds the wire back");
    let bytes = [frame(mac(1), mac(4), &[]), vec![0; 1436]].concat();
    let sent: Vec<_> = (0..10).map(|_| bench.bytes_in(UPLINK, &bytes)).collect();
    assert_eq!(sent.iter().filter(|to| to.is_ok()).count(), 2);
    assert_eq!(sent[9], Err(Drop::RateLimited));
}

#[test]
fn frames_to_a_port_over_its_limit_are_dropped() {
    let packets = Rate { rate: 10, burst: 4 };
    let mut bench = Bench::new([
        (A, PortPolicy::default()),
        (B, port(|port| port.limits.egress = RatePair { packets, bits: Rate::UNLIMITED })),
    ]);
    let bytes = frame(mac(2), mac(1), &[]);
    let left: Vec<_> = (0..10).flat_map(|_| bench.forward(A, &bytes).into_values()).collect();
    assert_eq!(left.iter().filter(|edit| edit.is_ok()).count(), 5);
    assert_eq!(left[9], Err(Drop::RateLimited));
}

#[test]
fn a_guest_that_filters_gets_only_what_it_wants() {
    let mut bench = Bench::plain(&[A, B]);
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    let closed = ReceiveFilter { promisc: false, mac: Some(mac(2)), ..ReceiveFilter::default() };
    let wants = |bench: &mut Bench, filter: &ReceiveFilter, dst, tags: &[u16]| {
        bench.fabric.set_receive_filter(B, filter.clone());
        bench.forward(A, &frame(dst, mac(1), tags))[&B]
    };
    let mut got = |filter: &ReceiveFilter, dst, tags: &[u16]| wants(&mut bench, filter, dst, tags);
    assert_eq!(got(&closed, mac(2), &[]), Ok(TagEdit::None));
    assert_eq!(got(&closed, MacAddr::BROADCAST, &[]), Ok(TagEdit::None));
    assert_eq!(got(&closed, mac(9), &[]), Err(Drop::ReceiveFilter));
    assert_eq!(got(&closed, group, &[]), Err(Drop::ReceiveFilter));
    assert_eq!(
        got(&ReceiveFilter { multicast: vec![group], ..closed.clone() }, group, &[]),
        Ok(TagEdit::None)
    );
    assert_eq!(got(&ReceiveFilter { allmulti: true, ..closed.clone() }, group, &[]), Ok(TagEdit::None));
    let none = ReceiveFilter { allmulti: true, nomulti: true, ..closed.clone() };
    assert_eq!(got(&none, group, &[]), Err(Drop::ReceiveFilter));
    assert_eq!(
        got(&ReceiveFilter { unicast: vec![mac(9)], ..closed.clone() }, mac(9), &[]),
        Ok(TagEdit::None)
    );
    assert_eq!(got(&ReceiveFilter { alluni: true, ..closed.clone() }, mac(9), &[]), Ok(TagEdit::None));
    assert_eq!(got(&ReceiveFilter { nouni: true, ..closed.clone() }, mac(2), &[]), Err(Drop::ReceiveFilter));
    let quiet = ReceiveFilter { nobcast: true, ..closed.clone() };
    assert_eq!(got(&quiet, MacAddr::BROADCAST, &[]), Err(Drop::ReceiveFilter));
    let vlans = ReceiveFilter { vlans: Some("7".parse().unwrap()), ..closed };
    assert_eq!(got(&vlans, mac(2), &[7]), Ok(TagEdit::None));
    assert_eq!(got(&vlans, mac(2), &[8]), Err(Drop::ReceiveFilter));
    assert_eq!(got(&vlans, mac(2), &[]), Ok(TagEdit::None));
    assert_eq!(got(&ReceiveFilter { promisc: true, ..vlans }, mac(9), &[8]), Ok(TagEdit::None));
    assert_eq!(got(&ReceiveFilter::default(), mac(9), &[]), Ok(TagEdit::None));
}

#[test]
fn a_guests_filter_sees_frames_as_the_guest_does() {
    let mut bench = Bench::new([(A, trunk("7", None)), (B, access(7)), (C, trunk("7", None))]);
    let filter =
        ReceiveFilter { promisc: false, vlans: Some("8".parse().unwrap()), ..ReceiveFilter::default() };
    [B, C].iter().for_each(|port| bench.fabric.set_receive_filter(*port, filter.clone()));
    let left = bench.forward(A, &frame(MacAddr::BROADCAST, mac(1), &[7]));
    assert_eq!(left, BTreeMap::from([(B, Ok(TagEdit::Pop)), (C, Err(Drop::ReceiveFilter))]));
}

#[test]
fn rules_filter_both_ways_and_count() {
    let rules =
        ["in deny arp", "out deny dst-mac 52:54:00:00:00:09", "out allow vlan 3", "out deny vlan 1-100"];
    let filter = rules.map(|rule| rule.parse().expect("a rule")).to_vec();
    let mut bench = Bench::new([(A, port(|port| port.filter = filter)), (B, PortPolicy::default())]);
    assert_eq!(bench.send(A, mac(9), mac(1)), Err(Drop::Filtered));
    assert!(bench.send(A, mac(2), mac(1)).is_ok());
    assert!(bench.tagged(A, mac(2), mac(1), &[3]).is_ok());
    assert_eq!(bench.tagged(A, mac(2), mac(1), &[4]), Err(Drop::Filtered));
    let mut arp = frame(mac(1), mac(2), &[]);
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(bench.forward(B, &arp)[&A], Err(Drop::Filtered));
    assert_eq!(bench.forward(B, &frame(mac(1), mac(2), &[]))[&A], Ok(TagEdit::None));
    let hits =
        |bench: &Bench| bench.switch.policy().rule_hits(A).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    assert_eq!(hits(&bench), [1, 1, 1, 1]);
    bench.change(|policy| {
        let mut changed = policy.port(A).expect("a port").clone();
        changed.filter.insert(0, "in allow udp".parse().expect("a rule"));
        policy.with_port(A, changed).expect("a good policy")
    });
    assert_eq!(hits(&bench), [0, 1, 1, 1, 1], "rules that stay go on counting");
}

#[test]
fn a_mirror_target_receives_copies_and_takes_part_in_nothing() {
    let mirror = Some(MirrorPolicy { to: MirrorTarget::Port(C), direction: Some(Direction::Out) });
    let mut bench = Bench::new([
        (A, port(|port| port.mirror = mirror)),
        (B, PortPolicy::default()),
        (C, port(|port| port.macs = vec![mac(3)])),
    ]);
    assert!(bench.switch.mirror(A, Direction::Out).is_some());
    assert!(bench.switch.mirror(A, Direction::In).is_none());
    assert!(bench.switch.mirror(B, Direction::Out).is_none());
    assert_eq!(bench.send(A, MacAddr::BROADCAST, mac(1)), flood(&[B]));
    assert_eq!(bench.send(A, mac(3), mac(1)), Err(Drop::MirrorPort));
    assert_eq!(bench.send(C, mac(1), mac(3)), Err(Drop::MirrorPort));
    assert!(!bench.switch.is_steady(A) && bench.switch.is_steady(B));
    bench.change(|policy| policy.with_port(A, PortPolicy::default()).expect("a good policy"));
    assert_eq!(bench.send(A, mac(3), mac(1)), Ok(To::Port(C)), "it is an ordinary port again");
}

#[test]
fn a_new_policy_keeps_what_was_learned_and_a_port_that_goes_takes_its_own_along() {
    let mut bench = Bench::plain(&[A, B, C]);
    [(A, 1), (B, 2), (C, 3)].into_iter().for_each(|(port, n)| _ = bench.send(port, mac(9), mac(n)));
    bench.change(|policy| policy.with_port(A, port(|port| port.isolated = true)).expect("a good policy"));
    assert_eq!(bench.send(A, mac(2), mac(1)), Ok(To::Port(B)));
    bench.change(|policy| policy.without_port(B).expect("a good policy"));
    assert_eq!(bench.send(A, mac(2), mac(1)), flood(&[C]));
    assert_eq!(bench.send(A, mac(3), mac(1)), Ok(To::Port(C)));
    assert_eq!(bench.fabric.census(B).learned, 0);
}

#[test]
fn static_addresses_follow_the_policy() {
    let mut bench =
        Bench::new([(A, port(|port| port.macs = vec![mac(1), mac(2)])), (B, PortPolicy::default())]);
    bench.change(|policy| {
        let moved = policy.with_port(A, port(|port| port.macs = vec![mac(1)])).expect("a good policy");
        moved.with_port(B, port(|port| port.macs = vec![mac(2)])).expect("a good policy")
    });
    let statics: Vec<_> = bench.fabric.entries(bench.now).iter().map(|e| (e.mac, e.port, e.fixed)).collect();
    assert_eq!(statics, [(mac(1), A, true), (mac(2), B, true)]);
}

#[test]
fn a_policy_that_does_not_fit_leaves_everything_as_it_was() {
    let bench = Bench::new([(A, port(|port| port.macs = vec![mac(1)])), (B, PortPolicy::default())]);
    bench.fabric.add_static(0, mac(5), B, bench.now).unwrap();
    let greedy = port(|port| (port.name, port.macs) = ("web".to_owned(), vec![mac(4), mac(5)]));
    let policy = bench.switch.policy().with_port(A, greedy).expect("nothing wrong in itself");
    let error = bench.fabric.adopt(&policy).unwrap_err();
    assert!(matches!(error, AdoptError::Taken { .. }));
    assert_eq!(
        error.to_string(),
        "Port 'web': mac: 52:54:00:00:00:05 is a static address of port 1 in VLAN 0"
    );
    let statics: Vec<_> = bench.fabric.entries(bench.now).iter().map(|e| (e.mac, e.port)).collect();
    assert_eq!(statics, [(mac(1), A), (mac(5), B)]);
}

#[test]
fn plain_egress_is_what_egress_says() {
    let mut bench = Bench::new([(A, access(10)), (B, access(10)), (C, trunk("10", None))]);
    let bytes = frame(MacAddr::BROADCAST, mac(1), &[]);
    let verdict = bench.bytes_in(A, &bytes).unwrap();
    assert!(bench.switch.is_plain_egress(B, &verdict) && !bench.switch.is_plain_egress(C, &verdict));
    bench.fabric.set_receive_filter(B, ReceiveFilter { promisc: false, ..ReceiveFilter::default() });
    assert!(!bench.switch.is_plain_egress(B, &verdict));
}

fn vlan_mode() -> impl Strategy<Value = VlanMode> {
    let vlans = prop::collection::vec(1u16..6, 0..4);
    prop_oneof![
        Just(VlanMode::Open),
        (1u16..6).prop_map(VlanMode::Access),
        (vlans, prop::option::of(1u16..6)).prop_filter_map("not an empty trunk", |(allowed, native)| {
            let trunk = VlanMode::Trunk { allowed: allowed.iter().copied().collect(), native };
            (!allowed.is_empty() || native.is_some()).then_some(trunk)
        }),
    ]
}

fn any_port() -> impl Strategy<Value = PortPolicy> {
    (vlan_mode(), any::<[bool; 3]>(), prop::option::of(0u32..4)).prop_map(
        |(vlan, [isolated, uplink, unknown], limit)| {
            let uplink = uplink && !isolated;
            PortPolicy {
                vlan,
                isolated,
                uplink,
                flood_unknown: unknown,
                learn_limit: limit,
                ..PortPolicy::default()
            }
        },
    )
}

fn edited(meta: &Meta, edit: TagEdit) -> Option<u16> {
    match edit {
        TagEdit::None => meta.tag.map(|tag| tag.vid()),
        TagEdit::Push(tci) | TagEdit::Set(tci) => Some(tci & 0xfff),
        TagEdit::Pop => None,
    }
}

proptest! {
    /// Whatever the ports are and whatever is sent: nothing comes back, isolation and VLANs hold, and a frame that leaves would be
    /// in the same VLAN again if it came in where it left.
    #[test]
    fn no_frame_gets_where_it_must_not(
        ports in prop::collection::vec(any_port(), 2..8),
        frames in prop::collection::vec((0usize..8, 0u8..6, 1u8..6, prop::collection::vec(0u16..6, 0..3)), 1..60),
    ) {
        let ids = (0..).step_by(37).map(PortId);
        let ports: Vec<(PortId, PortPolicy)> = ids.zip(ports).collect();
        let mut bench = Bench::new(ports.clone());
        for (from, dst, src, tags) in frames {
            let (from, policy) = &ports[from % ports.len()];
            let dst = if dst == 0 { MacAddr::BROADCAST } else { mac(dst) };
            let bytes = frame(dst, mac(src), &tags);
            let head = Head::from_slice(&bytes);
            let meta = parse::l2(&head).unwrap();
            let vlan = policy.vlan.classify(meta.tag);
            prop_assert_eq!(bench.bytes_in(*from, &bytes).is_err_and(|r| r == Drop::VlanNotAllowed), vlan.is_none());
            for (to, edit) in bench.forward(*from, &bytes) {
                let (_, target) = ports.iter().find(|(id, _)| *id == to).unwrap();
                let vlan = vlan.unwrap();
                prop_assert!(to != *from);
                prop_assert!(!(policy.isolated && target.isolated));
                prop_assert!(target.vlan.is_member(vlan));
                let seen = edited(&meta, edit.unwrap()).filter(|vid| *vid != 0);
                match target.vlan {
                    VlanMode::Access(_) => prop_assert_eq!(seen, None),
                    _ => prop_assert_eq!(seen.or(target.vlan.untagged()), Some(vlan)),
                }
            }
        }
        for (id, policy) in &ports {
            prop_assert!(bench.fabric.census(*id).learned <= policy.learn_limit());
        }
    }
}

#[test]
fn a_mirror_to_a_file_goes_on_over_changes_and_ends_with_its_policy() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a.pcapng");
    let to = MirrorTarget::File(CaptureOptions::to(&path));
    let mirrored = port(|port| port.mirror = Some(MirrorPolicy { to: to.clone(), direction: None }));
    let mut bench = Bench::new([(A, mirrored), (B, PortPolicy::default())]);
    let first = bench.fabric.captures();
    bench.change(|policy| policy.with_port(C, PortPolicy::default()).expect("a good policy"));
    for direction in [Direction::In, Direction::Out] {
        assert!(
            matches!(bench.switch.mirror(A, direction), Some(Mirror::File(file)) if file.options() == first[0].options())
        );
    }
    assert!(!first[0].counters().stopped);
    bench.change(|policy| policy.with_port(A, PortPolicy::default()).expect("a good policy"));
    assert!(bench.fabric.captures().is_empty() && bench.switch.mirror(A, Direction::In).is_none());
    let missing = CaptureOptions::to(directory.path().join("none/a.pcapng"));
    let policy = port(|port| {
        port.mirror = Some(MirrorPolicy { to: MirrorTarget::File(missing), direction: None });
    });
    let policy = bench.switch.policy().with_port(A, policy).expect("nothing wrong in itself");
    let error = bench.fabric.adopt(&policy).expect_err("no such directory").to_string();
    assert!(error.contains("none/a.pcapng cannot be written"), "{error}");
}

#[test]
fn a_policy_that_makes_no_sense_names_the_port_and_the_option() {
    let named = |edit: fn(&mut PortPolicy)| {
        port(|port| {
            port.name = "web".to_owned();
            edit(port);
        })
    };
    let mirror = |to| Some(MirrorPolicy { to, direction: None });
    let mut to_self = named(|_| ());
    to_self.mirror = mirror(MirrorTarget::Port(A));
    let mut to_nobody = named(|_| ());
    to_nobody.mirror = mirror(MirrorTarget::Port(C));
    let mut to_uplink = named(|_| ());
    to_uplink.mirror = mirror(MirrorTarget::Port(UPLINK));
    let mut no_file = named(|_| ());
    no_file.mirror = mirror(MirrorTarget::File(CaptureOptions::default()));
    let cases = [
        (named(|port| port.vlan = VlanMode::Access(4095)), "Port 'web': vlan: 4095 is not from 1 to 4094"),
        (
            named(|port| port.vlan = VlanMode::Trunk { allowed: VlanSet::none(), native: None }),
            "Port 'web': trunk: ",
        ),
        (named(|port| port.anti_spoof = true), "Port 'web': anti-spoof needs"),
        (named(|port| port.macs = vec![MacAddr::BROADCAST]), "Port 'web': mac: ff:ff:ff:ff:ff:ff is not"),
        (named(|port| (port.uplink, port.isolated) = (true, true)), "Port 'web': isolated: "),
        (named(|port| port.macs = vec![mac(2)]), "already an address of port"),
        (to_self, "Port 'web': mirror: port 'web' is the mirrored one itself"),
        (to_nobody, "Port 'web': mirror: port 200 is not there"),
        (to_uplink, "which cannot be taken out of the switch"),
        (no_file, "Port 'web': mirror: the file has no name (path)"),
    ];
    for (wrong, expected) in cases {
        let owner = port(|port| port.macs = vec![mac(2)]);
        let ports = [(A, wrong), (B, owner), (UPLINK, port(|port| port.uplink = true))];
        let error = Policy::new(SwitchOptions::default(), ports.into()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Policy::new(SwitchOptions::default(), [(PortId(256), PortPolicy::default())].into());
    assert_eq!(error.expect_err("too many").to_string(), "Port 256: a switch has at most 256 ports");
}

#[test]
fn a_port_is_read_from_a_configuration_and_unknown_keys_are_named() {
    let text = "
        macs = ['52:54:00:00:00:01']
        anti-spoof = true
        addresses = ['10.0.0.5', '2001:db8::/64']
        vlan = { access = 7 }
        limits = { ingress = { packets = { rate = 1000, burst = 10 } } }
        storm = { broadcast = { rate = 100 } }
        filter = ['in deny udp dport 53']
        mirror = { to = { file = { path = '/tmp/x', max-bytes = 1000000, files = 3 } }, direction = 'out' }
    ";
    let port: PortPolicy = toml::from_str(text).expect("a port");
    assert!(port.learning && port.flood_unknown && port.limits.ingress.packets.rate == 1000);
    let again: PortPolicy = toml::from_str(&toml::to_string(&port).expect("text")).expect("the same port");
    assert_eq!(again, port);
    for (wrong, expected) in [
        ("antispoof = true", "antispoof"),
        ("storm = { unicast = {} }", "unicast"),
        ("limits = { ingress = { pps = 1 } }", "pps"),
        ("addresses = ['10.0.0.5/8']", "10.0.0.5/8"),
        ("macs = ['52:54']", "52:54"),
        ("mirror = { to = { disk = 1 } }", "disk"),
    ] {
        let error = toml::from_str::<PortPolicy>(wrong).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
