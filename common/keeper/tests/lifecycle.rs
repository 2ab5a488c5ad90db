//! How a keeper comes up, goes down, and what it costs.

mod bed;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bed::{Attach, Driver, Keeper, wait_for};
use vhost_user::frontend::driver::{Session, USEFUL_PROTOCOL_FEATURES};
use vhost_user::message::features;

const SPLIT: Attach = Attach { packed: false, size: 64, depth: 16 };

fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

#[test]
fn sigterm_under_load_ends_both_processes_with_zero_in_under_a_second() {
    let mut keeper = Keeper::start(&[], &[]);
    let mut driver = Driver::attach(&keeper.socket(), &SPLIT);
    driver.progress(100);
    driver.submit();
    let (worker, begin) = (keeper.worker().unwrap(), Instant::now());
    keeper.signal("TERM");
    let status = keeper.wait();
    assert_eq!(status.code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(!keeper.socket().exists() && !runs(worker));
    driver.drain();
    driver.check_disk(&keeper.dir.path().join("disk"));
}

#[test]
fn a_worker_that_dies_as_soon_as_it_starts_is_given_up_with_a_reason() {
    let mut keeper = Keeper::start(&[], &[("KEPT_BLK_ABORT", "1")]);
    let status = keeper.wait();
    assert_eq!(status.code(), Some(1));
    let log = keeper.log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("kept_blk: The worker has died 8 times in a row"), "{last}");
    assert!(last.contains("SIGABRT") && last.contains("above"), "{last}");
    assert!(!keeper.socket().exists());
}

#[test]
fn what_the_worker_cannot_be_asked_to_do_ends_the_keeper_with_its_exit_code() {
    let mut keeper = Keeper::start(&["--no-such-option"], &[]);
    assert_eq!(keeper.wait().code(), Some(2));
    assert_eq!(keeper.log().matches("no-such-option").count(), 1, "{}", keeper.log());
}

#[test]
fn a_worker_that_was_told_to_end_takes_the_keeper_with_it() {
    let mut keeper = Keeper::start(&[], &[]);
    let mut driver = Driver::attach(&keeper.socket(), &SPLIT);
    driver.progress(10);
    bed::send(keeper.worker().unwrap(), "TERM");
    assert_eq!(keeper.wait().code(), Some(0));
}

#[test]
fn a_keeper_that_is_killed_leaves_no_worker_behind() {
    let mut keeper = Keeper::start(&[], &[]);
    wait_for("a worker", || keeper.log().contains("is ready"));
    let worker = keeper.worker().unwrap();
    keeper.signal("KILL");
    keeper.wait();
    wait_for("the end of the worker", || !runs(worker));
}

#[test]
fn an_idle_keeper_takes_no_time() {
    let keeper = Keeper::start(&[], &[]);
    let mut driver = Driver::attach(&keeper.socket(), &SPLIT);
    driver.progress(100);
    driver.drain();
    keeper.kill_worker();
    driver.progress(100);
    driver.drain();
    std::thread::sleep(Duration::from_millis(300));
    let pids = [keeper.pid(), keeper.worker().unwrap()];
    let before = pids.map(ticks);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(pids.map(ticks), before);
}

#[test]
fn the_service_manager_hears_of_readiness_from_the_keeper() {
    let name = format!("keeper-test-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    manager.set_read_timeout(Some(bed::PATIENCE)).unwrap();
    let mut keeper = Keeper::start(&[], &[("NOTIFY_SOCKET", &format!("@{name}"))]);
    let hear = |word: &str| {
        let mut text = [0; 256];
        loop {
            let len = manager.recv(&mut text).expect(word);
            if String::from_utf8_lossy(&text[..len]).contains(word) {
                return;
            }
        }
    };
    hear("READY=1");
    keeper.kill_worker();
    hear("started again");
    hear("READY=1");
    keeper.signal("TERM");
    hear("STOPPING=1");
    assert_eq!(keeper.wait().code(), Some(0));
}

#[test]
fn a_worker_that_hangs_is_replaced_before_the_service_manager_loses_patience() {
    let name = format!("keeper-hang-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let socket = format!("@{name}");
    let keeper = Keeper::start(&[], &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "2000000")]);
    let mut driver = Driver::attach(&keeper.socket(), &SPLIT);
    driver.progress(50);
    let worker = keeper.worker().unwrap();
    bed::send(worker, "STOP");
    driver.submit();
    wait_for("another worker", || keeper.worker().is_some_and(|new| new != worker));
    driver.progress(50);
    assert!(keeper.log().contains("no sign of life"));
    drop(manager);
}

#[test]
fn one_frontend_after_another_is_served_whatever_becomes_of_the_worker() {
    let keeper = Keeper::start(&[], &[]);
    for round in 0..6 {
        let mut driver = Driver::attach(&keeper.socket(), &Attach { packed: round % 2 == 0, ..SPLIT });
        driver.progress(50);
        if round % 3 == 0 {
            keeper.kill_worker();
            driver.progress(50);
        }
        // In the middle of its requests.
        driver.submit();
        drop(driver);
        if round % 3 == 1 {
            keeper.kill_worker();
        }
        std::thread::sleep(Duration::from_millis(120));
    }
}

#[test]
fn a_frontend_that_listens_is_connected_to_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let keeper = Keeper::start_in(dir, "connect:", &[], &[]);
    for _ in 0..3 {
        let mut driver = Driver::attach_to(listener.accept().unwrap().0, &SPLIT);
        driver.progress(50);
        keeper.kill_worker();
        driver.progress(50);
    }
}

#[test]
fn a_handshake_gets_through_while_workers_are_killed() {
    let keeper = Keeper::start(&[], &[]);
    let socket = keeper.socket();
    let handshakes = std::thread::spawn(move || {
        for _ in 0..150 {
            let stream = UnixStream::connect(&socket).unwrap();
            let mut session =
                Session::negotiate(stream, features::VERSION_1, USEFUL_PROTOCOL_FEATURES).unwrap();
            let mut config = [0; 8];
            session.get_config(0, &mut config).unwrap();
            assert_eq!(u64::from_le_bytes(config), bed::DISK / 512);
        }
    });
    while !handshakes.is_finished() {
        std::thread::sleep(Duration::from_millis(130));
        keeper.kill_worker();
    }
    handshakes.join().unwrap();
}

#[test]
fn the_workers_memory_is_there_for_the_next_one() {
    let keeper = Keeper::start(&[], &[]);
    let inode = |pid: u32| {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let path = links.flatten().map(|link| link.path()).find(|path| {
            std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:example"))
        });
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path.expect("the memory")).unwrap())
    };
    wait_for("a worker", || keeper.log().contains("is ready"));
    let first = inode(keeper.worker().unwrap());
    let second = keeper.kill_worker();
    wait_for("another", || keeper.log().matches("is ready").count() == 2);
    assert_eq!(inode(second), first);
}
