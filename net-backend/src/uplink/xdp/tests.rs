//! What is on an interface before the uplink: programs of others, and those that killed processes left behind.

#![expect(unsafe_code, reason = "network namespaces")]

use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use super::attach::Means;
use super::bpf;
use super::filter::FilterMaps;
use super::netlink::{ATTACH_GENERIC, ATTACH_NATIVE, Netlink};
use super::open::open_by;
use super::program;
use super::{OpenError, Spec, open};

/// Gives this thread a network namespace of its own with a veth pair, `v0` and `v1`. False, with a note, where that is
/// forbidden; never on a machine of the continuous integration.
fn bed(test: &str) -> bool {
    // SAFETY: no pointers; concerns this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        let why = io::Error::last_os_error();
        assert!(std::env::var_os("CI").is_none(), "no namespace: {why}");
        let _ = writeln!(io::stderr(), "SKIPPED: {test}: needs root ({why})");
        return false;
    }
    for arguments in ["link add v0 type veth peer name v1", "link set v0 up", "link set v1 up"] {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
        assert!(status.success(), "ip {arguments}");
    }
    true
}

fn index() -> u32 {
    link().index
}

fn link() -> super::netlink::Link {
    Netlink::route().and_then(|mut netlink| netlink.link("v0")).expect("an answer").expect("v0 is there")
}

/// Other tests fork, and their children have our descriptors until they start a program.
fn wait_until_gone() {
    let end = Instant::now() + Duration::from_secs(10);
    while link().program.is_some() {
        assert!(Instant::now() < end, "the program stays");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A program under this name.
fn load(name: &str) -> OwnedFd {
    let maps = FilterMaps::create(1).expect("maps");
    bpf::load(name, &program::assemble(maps.for_program()), true).expect("the verifier accepts it")
}

/// Leaves a program on the interface, as a process does that is killed without a link.
fn leave(name: &str, mode: u32) {
    let program = load(name);
    let mut netlink = Netlink::route().expect("a netlink socket");
    netlink.attach(index(), program.as_raw_fd(), mode).expect("attached");
}

#[test]
fn the_program_of_a_killed_process_is_taken_away() {
    if !bed("stale program") {
        return;
    }
    for mode in [ATTACH_NATIVE, ATTACH_GENERIC] {
        leave(bpf::PROGRAM_NAME, mode);
        let (stale, found) = link().program.expect("it stays");
        assert_eq!(found, mode);
        let opened = open(&Spec::new("v0"), 1).expect("open");
        assert_ne!(link().program.expect("ours").0, stale);
        drop(opened);
        wait_until_gone();
    }
}

#[test]
fn the_program_of_somebody_else_is_left_alone_and_named() {
    if !bed("foreign program") {
        return;
    }
    let check = |id: u32| {
        let error = open(&Spec::new("v0"), 1).map(|_| ()).expect_err("refused");
        let sentence = error.to_string();
        assert!(matches!(&error, OpenError::ForeignProgram { name, .. } if name == "firewall"), "{sentence}");
        assert!(sentence.contains(&format!("id {id}")) && sentence.contains("xdp off"), "{sentence}");
        assert_eq!(link().program.map(|(id, _)| id), Some(id));
    };
    leave("firewall", ATTACH_GENERIC);
    check(link().program.expect("it stays").0);
    Netlink::route().expect("a netlink socket").detach(index(), ATTACH_GENERIC).expect("detached");
    let _link = bpf::attach(load("firewall").as_fd(), index(), ATTACH_NATIVE).expect("attached");
    check(link().program.expect("it stays").0);
}

#[test]
fn without_links_the_program_goes_with_its_owner_and_stays_while_it_lives() {
    if !bed("no links") {
        return;
    }
    let opened = open_by(&Spec::new("v0"), 1, Means::Netlink).expect("open");
    assert!(!opened.report.ends_with_process);
    let ours = link().program.expect("attached");
    // Another start finds a program of ours, and a socket that is in use.
    let error = open(&Spec::new("v0"), 1).map(|_| ()).expect_err("refused");
    assert!(matches!(error, OpenError::QueueBusy { .. }), "{error}");
    assert_eq!(link().program, Some(ours));
    drop(opened);
    wait_until_gone();
}

#[test]
fn an_older_kernel_s_program_without_frags_is_accepted_too() {
    if !bed("no frags") {
        return;
    }
    let maps = FilterMaps::create(1).expect("maps");
    let code = program::assemble(maps.for_program());
    let loaded = bpf::load(bpf::PROGRAM_NAME, &code, false).expect("the verifier accepts it");
    let link = bpf::attach(loaded.as_fd(), index(), ATTACH_NATIVE).expect("attached");
    let (id, mode) = self::link().program.expect("attached");
    assert_eq!(mode, ATTACH_NATIVE);
    assert_eq!(bpf::program_name(id).expect("a name"), bpf::PROGRAM_NAME);
    drop(link);
    wait_until_gone();
}
