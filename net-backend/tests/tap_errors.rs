//! What cannot be opened as a TAP uplink is refused in one sentence that says what to do.

#![expect(unsafe_code, reason = "gives up capabilities, and opens TAP queues as a manager would")]

mod tap_support;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::process::Command;

use net_backend::frame::{HEAD, NetHeader, Offloads};
use net_backend::uplink::UplinkQueue;
use net_backend::uplink::tap::{self, OpenError, Queue, Source, Spec};
use tap_support::*;

/// Opens what must be refused, and checks that the sentence is one and has these words in it.
#[track_caller]
fn refused(spec: &Spec, workers: u16, words: &[&str]) -> OpenError {
    let error = tap::open(spec, workers).map(|_| ()).expect_err("refused");
    let sentence = error.to_string();
    assert!(!sentence.contains('\n') && !sentence.ends_with('.'), "{sentence}");
    for word in words {
        assert!(sentence.contains(word), "'{word}' is not in: {sentence}");
    }
    error
}

#[test]
fn names_that_linux_does_not_take() {
    in_namespace!();
    let error = refused(&spec("sixteen-bytes-xx"), 1, &["sixteen-bytes-xx", "15 bytes", "shorter"]);
    assert!(matches!(error, OpenError::NameTooLong(_)));
    std::mem::drop(open_one(&spec("fifteen-bytes-x")));
    for name in ["", ".", "..", "a/b", "a:b", "a b"] {
        assert!(
            matches!(refused(&spec(name), 1, &["cannot be the name"]), OpenError::InvalidName(_)),
            "{name}"
        );
    }
}

#[test]
fn an_interface_to_attach_to_must_exist() {
    in_namespace!();
    let existing = Spec::new(Source::Existing("t0".into()));
    assert!(matches!(refused(&existing, 1, &["no interface t0", "ip tuntap add t0"]), OpenError::Unknown(_)));
    assert!(!exists("t0"), "it was not made");
    ip("tuntap add t0 mode tap");
    open_one(&existing);
}

#[test]
fn other_kinds_of_interfaces_are_not_taken() {
    in_namespace!();
    ip("link add d0 type bridge");
    ip("tuntap add n0 mode tun");
    for name in ["d0", "n0", "lo"] {
        let error = refused(&spec(name), 1, &[name, "not a TAP", "another name"]);
        assert!(matches!(error, OpenError::NotTap(_)), "{error:?}");
    }
}

#[test]
fn an_interface_with_one_queue_serves_one_worker_of_one_process() {
    in_namespace!();
    ip("tuntap add t0 mode tap");
    let error = refused(&spec("t0"), 2, &["one queue", "2 are needed", "multi_queue", "queues=1"]);
    assert!(matches!(error, OpenError::NotMultiQueue { queues: 2, .. }));
    let _first = open_one(&Spec { queues: Some(1), ..spec("t0") });
    assert!(matches!(refused(&spec("t0"), 1, &["in use", "stop"]), OpenError::Busy(_)));
}

#[test]
fn more_queues_than_the_kernel_has() {
    in_namespace!();
    let error = refused(&Spec { queues: Some(257), ..spec("t0") }, 1, &["257 queues", "fewer"]);
    assert!(matches!(error, OpenError::TooManyQueues { queues: 257, .. }));
    wait_for("nothing is left behind", || !exists("t0"));
    refused(&Spec { queues: Some(0), ..spec("t0") }, 1, &["at least one"]);
}

#[test]
fn an_mtu_out_of_range() {
    in_namespace!();
    for mtu in [0, 67, 65_522, u32::MAX] {
        let error = refused(&Spec { mtu: Some(mtu), ..spec("t0") }, 1, &[&mtu.to_string(), "68 to 65521"]);
        assert!(matches!(error, OpenError::Mtu { .. }));
    }
    for mtu in [68, 1500, 65_521] {
        assert_eq!(open_one(&Spec { mtu: Some(mtu), ..spec("t0") }).info().mtu, mtu);
    }
}

#[test]
fn bridges_that_are_none_or_not_ours() {
    in_namespace!();
    let with = |bridge: &str| Spec { bridge: Some(bridge.into()), ..spec("t0") };
    let error = refused(&with("br0"), 1, &["no bridge br0", "ip link add br0 type bridge"]);
    assert!(matches!(error, OpenError::NoBridge(_)));
    refused(&with("a-name-that-is-too-long"), 1, &["no bridge"]);
    assert!(matches!(refused(&with("lo"), 1, &["lo is not a bridge"]), OpenError::NotBridge(_)));
    ip("link add br0 type bridge");
    ip("link add br1 type bridge");
    ip("tuntap add t0 mode tap");
    ip("link set t0 master br1");
    let error = refused(&with("br0"), 1, &["another bridge", "ip link set t0 nomaster"]);
    assert!(matches!(error, OpenError::OtherBridge { .. }));
    open_one(&with("br1"));
}

/// Gives up all of this thread's capabilities.
fn drop_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// _LINUX_CAPABILITY_VERSION_3
    const VERSION: u32 = 0x2008_0522;
    let header = Header { version: VERSION, pid: 0 };
    let none = [0_u32; 6];
    // SAFETY: a header and two sets of three words, as this version has them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn without_the_capability_one_sentence_says_which() {
    in_namespace!();
    ip("tuntap add mine mode tap user 0");
    ip("link set mine up");
    ip("tuntap add other mode tap user 12345");
    ip("tuntap add down mode tap user 0");
    drop_capabilities();
    let needs = |error: OpenError| assert!(matches!(error, OpenError::MissingCapability { .. }), "{error:?}");
    needs(refused(&spec("t0"), 1, &["Making", "t0", "CAP_NET_ADMIN", "ip tuntap add t0 mode tap user"]));
    needs(refused(&spec("other"), 1, &["Attaching", "other", "CAP_NET_ADMIN", "owner"]));
    needs(refused(&spec("down"), 1, &["down up", "CAP_NET_ADMIN", "ip link set down up"]));
    needs(refused(&Spec { mtu: Some(9000), ..spec("mine") }, 1, &["MTU of mine", "CAP_NET_ADMIN"]));
    // What is prepared needs no privilege.
    let mut queue = open_one(&Spec { mtu: Some(1500), ..spec("mine") });
    send(&mut queue, NetHeader::PLAIN, &frame(60, 1), HEAD, 60).expect("sent");
}

/// Mounts something that only this thread sees.
fn mount(arguments: &str) {
    // SAFETY: no pointers; this thread gets its own mounts, and leaves nothing to the others.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) }, 0);
    for arguments in ["--make-rprivate /", arguments] {
        assert!(Command::new("mount").args(arguments.split(' ')).status().expect("mount").success());
    }
}

#[test]
fn without_the_driver_one_sentence_says_so() {
    in_namespace!();
    mount("-t tmpfs none /dev/net");
    assert!(matches!(refused(&spec("t0"), 1, &["/dev/net/tun", "module tun"]), OpenError::NoDriver));
}

/// A queue as a manager opens it to pass it on, with these flags and those of a TAP.
fn manager_opens(name: &str, flags: i32) -> RawFd {
    let file = File::options().read(true).write(true).open("/dev/net/tun").expect("the driver");
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
    // SAFETY: a `struct ifreq` of 40 bytes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    file.into_raw_fd()
}

fn inherited(numbers: &[RawFd]) -> Spec {
    Spec::new(Source::Descriptors(numbers.to_vec()))
}

fn passes_frames(queue: &mut Queue, host: &Host) {
    send(queue, NetHeader::PLAIN, &frame(3000, 1), HEAD, 1000).expect("sent");
    assert!(host.receive().1 == frame(3000, 1));
}

#[test]
fn open_queues_are_taken_as_they_are() {
    in_namespace!();
    let tap = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    let numbers = [0; 2].map(|_| manager_opens("t0", tap | libc::IFF_VNET_HDR));
    ip("link set t0 up");
    let host = Host::new("t0", ETHERTYPE);
    let mut queues = tap::open(&inherited(&numbers), 1).expect("opens");
    assert_eq!(queues.len(), 2);
    let info = queues[0].info();
    assert_eq!((info.name.as_str(), info.created, info.header, info.queues), ("t0", false, true, 2));
    assert!(info.from_kernel.tso4);
    queues.iter_mut().for_each(|queue| passes_frames(queue, &host));
    host.send(NetHeader::PLAIN, &frame(200, 4));
    let mut arrived = None;
    wait_for("the frame, on one of the queues", || {
        arrived = queues.iter_mut().find_map(|queue| {
            let (_, range) = queue.receive_one()?;
            Some(bytes_of(queue.view(), &[range]))
        });
        arrived.is_some()
    });
    assert_eq!(arrived, Some(frame(200, 4)));
}

#[test]
fn open_queues_without_a_virtio_net_header_pass_finished_frames() {
    in_namespace!();
    let number = manager_opens("t0", libc::IFF_TAP | libc::IFF_NO_PI);
    ip("link set t0 up");
    let host = Host::new("t0", ETHERTYPE);
    let mut queue = open_one(&inherited(&[number]));
    assert_eq!(queue.offloads(), Offloads::NONE);
    passes_frames(&mut queue, &host);
    send(&mut queue, NetHeader::PLAIN, &frame(60, 2), HEAD, 60).expect("sent");
    assert_eq!(host.receive().1, frame(60, 2));
    host.send(NetHeader::PLAIN, &frame(100, 3));
    assert_eq!(receive(&mut queue), (NetHeader::PLAIN, frame(100, 3)));
}

#[test]
fn descriptors_that_are_no_queues() {
    in_namespace!();
    let error = refused(&inherited(&[987_654]), 1, &["987654 is not open"]);
    assert!(matches!(error, OpenError::NotOpen(_)));
    let null = File::open("/dev/null").expect("opens");
    refused(&inherited(&[null.as_raw_fd()]), 1, &["not a queue of a TAP"]);
    let driver = File::options().read(true).write(true).open("/dev/net/tun").expect("opens");
    refused(&inherited(&[driver.as_raw_fd()]), 1, &["not a queue of a TAP"]);
    let tun = manager_opens("n0", libc::IFF_TUN | libc::IFF_NO_PI);
    refused(&inherited(&[tun]), 1, &["not a queue of a TAP"]);
    // Which is seen in the file system of this namespace only.
    mount("-t sysfs none /sys");
    let with_information = manager_opens("t0", libc::IFF_TAP);
    refused(&inherited(&[with_information]), 1, &["IFF_NO_PI"]);
    let [one, two] = ["t1", "t2"].map(|name| manager_opens(name, libc::IFF_TAP | libc::IFF_NO_PI));
    refused(&inherited(&[one, two]), 1, &["two interfaces, t1 and t2"]);
    refused(&inherited(&[]), 1, &["at least one queue"]);
}
