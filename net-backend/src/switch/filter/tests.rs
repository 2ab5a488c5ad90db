use super::*;
use crate::frame::parse;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An Ethernet frame around `payload`, with tags.
fn frame(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
    tags.iter().for_each(|tci| bytes.extend([[0x81, 0], tci.to_be_bytes()].concat()));
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 168, 7, 9];
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 40, next, 64];
    packet.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("fe80::9".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

/// Ports 1234 to 53, and room enough for a TCP header.
const PORTS: [u8; 24] = [4, 210, 0, 53, 0, 8, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const TCP: u8 = 6;
const UDP: u8 = 17;

fn allows(rules: &[&str], bytes: &[u8]) -> bool {
    let rules: Vec<_> = rules.iter().map(|text| rule(text)).collect();
    let head = crate::frame::Head::from_slice(bytes);
    let meta = parse::l2(&head).unwrap();
    let vlan = meta.tag.map_or(0, |tag| tag.vid());
    Filter::new(&rules, None).allows(Direction::In, &meta, &head, vlan)
}

fn denied(text: &str, bytes: &[u8]) -> bool {
    !allows(&[&format!("in deny {text}")], bytes)
}

fn permitted(text: &str, bytes: &[u8]) -> bool {
    allows(&[&format!("in allow {text}"), "in deny"], bytes)
}

#[test]
fn every_part_of_a_rule_has_to_match() {
    let bytes = frame(&[7], 0x800, &ipv4(UDP, 0, &PORTS));
    let yes = [
        "",
        "ip4",
        "ip4 udp",
        "vlan 7",
        "vlan 1-7",
        "src-mac 52:54:00:00:00:01",
        "dst-mac 52:54:00:00:00:00/ff:ff:ff:00:00:00",
        "src 10.0.0.0/8",
        "src 10.0.0.1 dst 192.168.0.0/16 udp sport 1234 dport 53",
        "src 0.0.0.0/0",
        "dport 50-60",
        "sport 1-65535",
        "proto 17",
        "ethertype 0x800",
    ];
    let no = [
        "ip6",
        "arp",
        "tcp",
        "vlan 8",
        "src-mac 52:54:00:00:00:02",
        "src 11.0.0.0/8",
        "dst 192.168.7.8",
        "dport 54",
        "sport 1235-65535",
        "ip4 udp dport 54",
        "src ::/0",
        "ethertype 0x88cc",
    ];
    for text in yes {
        assert!(denied(text, &bytes) && permitted(text, &bytes), "'{text}' matches");
    }
    for text in no {
        assert!(!denied(text, &bytes) && !permitted(text, &bytes), "'{text}' does not match");
    }
}

#[test]
fn rules_look_into_ipv6_behind_extension_headers() {
    let plain = frame(&[], 0x86dd, &ipv6(TCP, &PORTS));
    let hop_by_hop = frame(&[], 0x86dd, &ipv6(0, &[&[TCP, 0, 0, 0, 0, 0, 0, 0], PORTS.as_slice()].concat()));
    for bytes in [plain, hop_by_hop] {
        assert!(denied("ip6 src 2001:db8::/32 dst fe80::/10 tcp dport 53", &bytes));
        assert!(!denied("ip6 udp", &bytes) && !denied("src 10.0.0.0/8", &bytes));
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let bytes = frame(&[], 0x800, &ipv4(UDP, 0, &PORTS));
    assert!(allows(&["in allow udp", "in deny"], &bytes));
    assert!(!allows(&["in deny udp", "in allow"], &bytes));
    assert!(allows(&["in deny tcp"], &bytes), "without a match it passes");
    assert!(allows(&["out deny"], &bytes), "the other direction is none of its business");
}

#[test]
fn a_second_tag_hides_nothing_from_rules_about_ip() {
    let bytes = frame(&[0, 7], 0x800, &ipv4(UDP, 0, &PORTS));
    assert!(denied("ip4 udp dport 53", &bytes) && denied("ip4", &bytes));
}

#[test]
fn what_cannot_be_read_is_denied_by_rules_it_may_match_and_allowed_by_none() {
    let options = |n| ipv6(0, &[60, n].into_iter().chain([0; 250]).collect::<Vec<_>>());
    let unreadable = [
        ("a chain of headers longer than the head", frame(&[], 0x86dd, &options(15)), "tcp dport 22"),
        ("no transport header", frame(&[], 0x800, &ipv4(TCP, 0, &[])), "tcp dport 22"),
        ("no network header", frame(&[], 0x800, &[]), "src 10.0.0.0/8"),
        ("not even a version", frame(&[], 0x86dd, &[0; 10]), "ip6"),
        ("a header length of zero", frame(&[], 0x800, &[0x40; 60]), "udp"),
    ];
    for (what, bytes, text) in unreadable {
        assert!(denied(text, &bytes), "{what}");
        assert!(!permitted(text, &bytes), "{what}");
    }
    let tcp = frame(&[], 0x800, &ipv4(TCP, 0, &[]));
    assert!(!denied("udp", &tcp), "its protocol can be read");
    assert!(!denied("dst 10.0.0.0/8", &tcp), "and so can its addresses");
}

#[test]
fn later_fragments_have_no_ports() {
    let later = frame(&[], 0x800, &ipv4(UDP, 0x2005, &PORTS));
    assert!(!denied("udp dport 53", &later) && !permitted("udp dport 53", &later));
    assert!(denied("udp", &later));
    let first = frame(&[], 0x800, &ipv4(UDP, 0x2000, &PORTS));
    assert!(denied("udp dport 53", &first));
}

#[test]
fn what_is_wrong_with_a_rule_is_said() {
    let cases = [
        ("", "begins with"),
        ("sideways deny", "begins with"),
        ("in drop", "begins with"),
        ("in deny upd", "'upd' is no part"),
        ("in deny dport", "'dport' needs a value"),
        ("in deny dport 70000", "dport: '70000' is not a number or a range"),
        ("in deny dport 9-3", "dport: '9-3'"),
        ("in deny src 10.0.0.1/8", "src: '10.0.0.1/8'"),
        ("in deny src 10.0.0.0/33", "src: "),
        ("in deny src-mac 52:54:00:00:00:01/ff:ff:ff:00:00:00", "src-mac: "),
        ("in deny ethertype 5", "ethertype: '5'"),
        ("in deny proto 256", "proto: '256'"),
        ("in deny tcp udp", "'udp' says again"),
        ("in deny ip4 src ::1", "both IPv4 and IPv6"),
        ("in deny src 10.0.0.0/8 dst ::/0", "both IPv4 and IPv6"),
        ("in deny arp dport 5", "those of IPv4 and IPv6"),
        ("in deny icmp dport 5", "only TCP and UDP"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_rule_is_a_text_or_a_table_in_a_configuration() {
    #[derive(Debug, serde::Deserialize)]
    struct Port {
        filter: Vec<Rule>,
    }
    let text = "filter = ['in deny ip4 src 10.0.0.0/8 udp dport 53', { direction = 'in', action = 'deny', \
                ethertype = 'ip4', src = '10.0.0.0/8', proto = 17, dport = 53 }]";
    let port: Port = toml::from_str(text).unwrap();
    assert_eq!(port.filter[0], port.filter[1]);
    for (wrong, expected) in [
        ("filter = ['in deny upd']", "rule 'in deny upd': 'upd' is no part"),
        ("filter = [{ direction = 'in' }]", "action"),
        ("filter = [{ direction = 'in', action = 'deny', port = 5 }]", "port"),
        ("filter = [{ direction = 'in', action = 'deny', dport = 'x' }]", "'x'"),
        ("filter = [{ direction = 'in', action = 'deny', proto = 'upd' }]", "proto: 'upd'"),
        ("filter = [5]", "a rule such as"),
    ] {
        let error = toml::from_str::<Port>(wrong).unwrap_err().to_string();
        assert!(error.contains(expected), "{wrong}: {error}");
    }
}

fn range() -> impl Strategy<Value = Option<Range>> {
    prop::option::of(
        (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Range { first: a.min(b), last: a.max(b) }),
    )
}

fn mac_mask() -> impl Strategy<Value = Option<MacMask>> {
    let masked = |(mac, mask): (u64, u64)| MacMask {
        mac: MacAddr::from_u64(mac & mask),
        mask: MacAddr::from_u64(mask),
    };
    prop::option::of(any::<(u64, u64)>().prop_map(masked))
}

fn prefix() -> impl Strategy<Value = Option<Prefix>> {
    prop::option::of((any::<u32>(), 0u8..=32).prop_map(|(bits, len)| {
        let bits = bits & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        Prefix { address: Ipv4Addr::from(bits).into(), len }
    }))
}

prop_compose! {
    fn any_rule()(
        actions in any::<[bool; 2]>(),
        ethertype in prop::option::of(prop_oneof![Just(0x800u16), Just(0x800)]),
        (vlan, sport, dport) in (range(), range(), range()),
        (src_mac, dst_mac) in (mac_mask(), mac_mask()),
        (src, dst) in (prefix(), prefix()),
        protocol in prop::option::of(prop_oneof![Just(TCP), Just(UDP)]),
    ) -> Rule {
        let direction = if actions[0] { Direction::In } else { Direction::Out };
        let action = if actions[1] { Action::Allow } else { Action::Deny };
        Rule { direction, action, ethertype, vlan, src_mac, dst_mac, src, dst, protocol, sport, dport }
    }
}

proptest! {
    #[test]
    fn a_rule_written_down_is_read_again(written in any_rule()) {
        let text = written.to_string();
        prop_assert!(!text.contains([',', '+']));
        prop_assert_eq!(text.parse(), Ok(written));
        prop_assert_eq!(serde_json::from_str::<Rule>(&serde_json::to_string(&written).unwrap()).unwrap(), written);
    }

    #[test]
    fn prefixes_contain_what_shares_their_bits(bits: u128, other: u128, len in 0u8..=128) {
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        let prefix = Prefix { address: Ipv6Addr::from(bits & mask).into(), len };
        prop_assert!(prefix.contains(Ipv6Addr::from(bits).into()));
        prop_assert_eq!(prefix.contains(Ipv6Addr::from(other).into()), (bits ^ other) & mask == 0);
        prop_assert!(!prefix.contains(Ipv4Addr::UNSPECIFIED.into()));
    }

    /// Whatever a guest sends, it is decided.
    #[test]
    fn no_frame_upsets_a_filter(rules in prop::collection::vec(any_rule(), 0..6), mut bytes in prop::collection::vec(any::<u8>(), 14..200), kind in 0usize..4) {
        let kinds = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x08, 0x06]];
        bytes[12..14].copy_from_slice(&kinds[kind]);
        let head = crate::frame::Head::from_slice(&bytes[..bytes.len().min(crate::frame::HEAD)]);
        if let Ok(meta) = parse::l2(&head) {
            let filter = Filter::new(&rules, None);
            let all = Filter::new(&[Rule::every(Direction::In, Action::Deny)], None);
            filter.allows(Direction::In, &meta, &head, 0);
            prop_assert!(!all.allows(Direction::In, &meta, &head, 0));
        }
    }
}
