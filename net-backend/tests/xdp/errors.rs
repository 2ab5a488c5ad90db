//! What cannot be opened is refused in one sentence that says what to do.

use std::process::Command;

use net_backend::uplink::xdp::{self, ModeChoice, OpenError, Spec};

use crate::bed;
use crate::support::*;

/// Opens what must be refused, and checks that the sentence is one and has these words in it.
#[track_caller]
fn refused(spec: &Spec, words: &[&str]) -> OpenError {
    let error = xdp::open(spec, 1).map(|_| ()).expect_err("refused");
    let sentence = error.to_string();
    assert!(!sentence.contains('\n') && !sentence.ends_with('.'), "{sentence}");
    for word in words {
        assert!(sentence.contains(word), "'{word}' is not in: {sentence}");
    }
    error
}

#[test]
fn an_interface_that_is_not_there() {
    let _far = bed!();
    let error = refused(&Spec::new("nobody0"), &["no network interface nobody0", "ip link"]);
    assert!(matches!(error, OpenError::UnknownInterface(_)));
    let error = refused(&Spec::new("sixteen-letters-"), &["sixteen-letters-", "15 characters"]);
    assert!(matches!(error, OpenError::BadName(_)));
}

#[test]
fn no_privilege() {
    let _far = bed!();
    drop_capabilities();
    let error = refused(&Spec::new("v0"), &["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "root"]);
    assert!(matches!(error, OpenError::Privilege { .. }));
}

#[test]
fn a_queue_that_another_uplink_has() {
    let far = bed!();
    for mode in MODES {
        let mut opened = open(&spec(mode));
        let error = refused(&Spec::new("v0"), &["v0", "another AF_XDP socket"]);
        assert!(matches!(error, OpenError::QueueBusy { .. }), "{error:?}");
        let wire = far.run(|| Wire::new("v1", ETHERTYPE));
        wire.send(&frame(60, 1));
        assert!(receive_one(&mut opened.queues[0]).1 == frame(60, 1), "the first one is not disturbed");
    }
}

#[test]
fn a_mode_that_the_driver_does_not_have() {
    let _far = bed!();
    let error = refused(&spec(ModeChoice::ZeroCopy), &["v0", "No zero-copy mode", "its driver has none"]);
    assert!(matches!(error, OpenError::NoMode { .. }));
    ip("link add d0 type bridge");
    refused(
        &Spec { mode: ModeChoice::Copy, ..Spec::new("d0") },
        &["d0", "No copy mode", "its driver has no XDP"],
    );
    let opened = xdp::open(&Spec::new("d0"), 1).expect("generic mode works with anything");
    assert_eq!((opened.report.mode, opened.report.not_better.len()), (xdp::Mode::Generic, 2));
}

#[test]
fn options_out_of_range() {
    refused(&Spec { ring: Some(100), ..Spec::new("v0") }, &["ring=100", "power of two"]);
    refused(&Spec { vlans: Some(vec![5000]), ..Spec::new("v0") }, &["vlans=5000", "4094"]);
}

#[test]
fn buffers_that_may_not_be_locked() {
    let _far = bed!();
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vhostd-net"));
    daemon.arg("--socket-path").arg(folder.path().join("port.sock"));
    daemon.args(["--uplink", "af_xdp:v0,ring=4096"]);
    limit_locked_memory(&mut daemon, 1 << 20);
    let output = daemon.output().expect("the daemon starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("16384 KiB") && said.contains("RLIMIT_MEMLOCK"), "{said}");
}
