//! Nothing is left behind: descriptors are counted in a process of its own.
#![expect(unsafe_code, reason = "the support module polls an eventfd")]

mod support;

use std::fs;

use runtime::io::IoKind;
use runtime::policy::PollPolicy;
use support::*;
use virtqueue::Format;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn neither_connections_nor_workers_leave_descriptors_or_threads() {
    let workers = [IoKind::Uring, IoKind::Threads].map(|kind| worker("leak", kind, PollPolicy::Off, None));
    let once = |device: u32| {
        for worker in &workers {
            let mut device = attach(worker, device, 2);
            let mut guest = Guest::new(Format::Split, 16);
            guest.start(&mut device);
            guest.round_trip();
            device.set_call(0, Some(event_fd())).unwrap();
            device.disconnected().unwrap();
        }
        let short = worker("short", IoKind::Auto, PollPolicy::Off, None);
        short.join().unwrap();
    };
    once(0);
    let before = (descriptors(), threads());
    for device in 0..200 {
        once(device % 7);
    }
    // The kernel closes a ring's files a little after its process has.
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!((descriptors(), threads()), before);
}
