//! Policies that change, that do not fit, and that make no sense.

use crate::bench::*;

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
