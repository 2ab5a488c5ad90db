//! What holds for all ports and frames.

use proptest::prelude::*;

use crate::bench::*;

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
