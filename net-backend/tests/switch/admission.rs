//! Whether frames may pass: storms, rates, the receiver's own filter, rules; and who gets copies of them.

use crate::bench::*;

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
