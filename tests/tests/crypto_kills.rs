//! `kill -9` of vhostd-crypto under load. A supervisor keeps everything that the guest relies on; without one, QEMU does not set
//! its device up again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::crypto::afalg::{self, Load};
use e2e::crypto::device::Crypto;
use e2e::crypto::rsa;
use e2e::daemon::Daemon;
use e2e::guest::Guest;
use e2e::process::{Process, signal, wait_until};
use e2e::rounds;

const PATIENCE: Duration = Duration::from_secs(60);

/// The process that works for a supervisor.
fn worker_of(supervisor: &Process) -> Result<u32> {
    let mut worker = None;
    wait_until(PATIENCE, || {
        worker = supervisor.children()?.first().copied();
        Ok(worker.is_some())
    })?;
    worker.context("The supervisor has no child")
}

/// Kills the worker again and again under load, and sees that the guest does not notice.
fn survives_kills(door: fn(&Path) -> Crypto, count: u32) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::crypto(dir.path(), 1, &["--supervise"])?;
    let mut guest = Guest::builder().crypto(door(&Daemon::crypto_of(dir.path(), 0))).boot()?;
    let load = Load::start(&mut guest, 4, "jobs=2 size=8192")?;
    for round in 0..count {
        sleep(Duration::from_millis(400 + u64::from(round * 37 % 9) * 100));
        let worker = worker_of(daemon.process())?;
        signal(worker, libc::SIGKILL)?;
        let replaced = wait_until(PATIENCE, || Ok(worker_of(daemon.process())? != worker))?;
        ensure!(replaced, "the supervisor does not replace its worker");
        load.check(&mut guest)?;
    }
    // New keys as well as those from before.
    afalg::run(&mut guest, "check key=16", PATIENCE)?;
    for rates in load.stop(&mut guest)? {
        ensure!(rates.requests > 0, "a process made no progress: {rates:?}");
        ensure!(rates.longest < Duration::from_secs(10), "a request took too long: {rates:?}");
    }
    afalg::selftest_passed(&mut guest, afalg::CBC)?;
    daemon.process().must_run()
}

#[test]
fn a_guest_behind_cryptodev_does_not_notice_that_the_worker_is_killed() -> Result<()> {
    survives_kills(Crypto::cryptodev, rounds(12, 300))
}

#[test]
fn a_guest_on_a_whole_device_does_not_notice_that_the_worker_is_killed() -> Result<()> {
    survives_kills(Crypto::whole, rounds(8, 300))
}

#[test]
fn a_guest_boots_while_workers_are_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::crypto(dir.path(), 2, &["--supervise"])?;
    let guest = |door: fn(&Path) -> Crypto, index| {
        Guest::builder().crypto(door(&Daemon::crypto_of(dir.path(), index)))
    };
    let (mut one, mut other) = guest(Crypto::cryptodev, 0).boot_with(guest(Crypto::whole, 1))?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let killer = scope.spawn(|| -> Result<u32> {
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(600));
                signal(worker_of(daemon.process())?, libc::SIGKILL)?;
                kills += 1;
            }
            Ok(kills)
        });
        let rebooted = [&mut one, &mut other].into_iter().try_for_each(Guest::reboot);
        done.store(true, Ordering::Relaxed);
        let kills = killer.join().expect("the killing thread does not panic")?;
        ensure!(kills > 3, "only {kills} kills while two guests boot");
        rebooted
    })?;
    for guest in [&mut one, &mut other] {
        afalg::selftest_passed(guest, afalg::CBC)?;
        afalg::run(guest, "check key=16", PATIENCE)?;
    }
    daemon.process().must_run()
}

#[test]
fn keys_of_rsa_outlive_the_worker() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::crypto(dir.path(), 1, &["--supervise"])?;
    let device = Crypto::whole(&Daemon::crypto_of(dir.path(), 0));
    let mut guest = Guest::builder().crypto(device).boot()?;
    rsa::agrees_with_the_host(&mut guest, dir.path(), 2048)?;
    signal(worker_of(daemon.process())?, libc::SIGKILL)?;
    rsa::agrees_with_the_host(&mut guest, dir.path(), 2048)
}

#[test]
fn a_supervisor_ends_with_its_worker_when_it_is_told_to() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::crypto(dir.path(), 1, &["--supervise"])?;
    let worker = worker_of(daemon.process())?;
    let (status, took) = daemon.process().terminate(Duration::from_secs(10))?;
    ensure!(status.success(), "SIGTERM: {status}");
    ensure!(took < Duration::from_secs(2), "SIGTERM took {took:?}");
    ensure!(!Path::new(&format!("/proc/{worker}")).exists(), "the worker is left behind");
    ensure!(!Daemon::crypto_of(dir.path(), 0).exists(), "the socket is left behind");
    Ok(())
}

/// What the documentation says of a daemon without a supervisor.
#[test]
fn without_a_supervisor_a_guest_loses_its_device_and_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let device = Crypto::cryptodev(&Daemon::crypto_of(dir.path(), 0));
    let mut guest = Guest::builder().crypto(device.clone()).boot()?;
    let _load = Load::start(&mut guest, 2, "")?;
    sleep(Duration::from_secs(1));
    daemon.kill_and_restart()?;
    sleep(Duration::from_secs(1));
    guest.reboot()?;
    ensure!(!afalg::is_registered(&mut guest, afalg::CBC)?, "QEMU has set the device up again");
    // The next QEMU has it.
    let mut next = Guest::builder().crypto(device).boot()?;
    afalg::selftest_passed(&mut next, afalg::CBC)?;
    afalg::run(&mut next, "check sizes=4096", PATIENCE)?;
    guest.qemu().must_run()
}
