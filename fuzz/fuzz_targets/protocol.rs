//! A front-end that sends anything: it ends with refused messages or a closed connection, never with a panic, a hang, a
//! descriptor left open or a device left half connected.

#![no_main]

use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vhost_user::{Endpoint, Notifier, Options, serve};
use vhostd_fuzz::dummy::Dummy;
use vhostd_fuzz::input::Input;
use vhostd_fuzz::peer::{Descriptors, check_replies, ignore_broken_pipes, speak};

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| {
    memory::sigbus::install().expect("handler");
    ignore_broken_pipes();
    Descriptors::new().expect("descriptors")
});

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let descriptors = &*DESCRIPTORS;
    let options = input.u8();
    let front = usize::from(input.u8()) * 4;
    descriptors.refill(input.take(front)).expect("memory files");

    let open = open_descriptors();
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    speak(&ours, descriptors, &mut input).expect("a socket that can be closed");
    let mut device = Dummy::new((options & 1 != 0).then_some(&descriptors.fragile));
    let (notifier, handle) = Notifier::new().expect("eventfds");
    if options & 2 != 0 {
        notifier.config_changed();
    }
    let transport = Endpoint::Fd(theirs.into()).open(0).expect("a connection");
    let patience = Options { patience: Duration::from_millis(50), ..Options::default() };
    serve(transport, &mut device, handle, &patience).expect("the connection ends");

    assert!(device.is_idle(), "the device does not know that its front-end is gone");
    check_replies(&ours);
    drop((ours, notifier, device));
    assert_eq!(open_descriptors(), open, "the session left a descriptor open");
});
