//! The stock Linux driver on devices of vhostd-crypto, behind QEMU's `cryptodev-vhost-user`: right results, whatever the load.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::crypto::afalg::{self, Load};
use e2e::crypto::device::Crypto;
use e2e::daemon::Daemon;
use e2e::guest::{Builder, Guest, Qemu};
use e2e::process::wait_until;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(180);

fn guest_on(dir: &Path, index: usize) -> Builder {
    Guest::builder().crypto(Crypto::cryptodev(&Daemon::crypto_of(dir, index)))
}

/// Sessions that are open, as the daemon counts them.
fn sessions(daemon: &Daemon) -> Result<u64> {
    let devices = daemon.control()?.call("device.list", json!({}))?;
    let devices = devices.as_array().context("Not a list")?;
    let open = devices.iter().map(|device| device["sessions"]["open"].as_u64().context("No sessions"));
    open.sum()
}

#[test]
fn the_driver_passes_its_self_test_and_every_length_is_right() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let mut guest = guest_on(dir.path(), 0).boot()?;
    afalg::selftest_passed(&mut guest, afalg::CBC)?;
    ensure!(!afalg::is_registered(&mut guest, afalg::RSA)?, "QEMU offers RSA that it does not have");
    afalg::run(&mut guest, "check rounds=2", PATIENCE)?;
    // More than QEMU's own device would take.
    afalg::run(&mut guest, "check sizes=131072,196608 jobs=2", PATIENCE)?;
    afalg::no_complaints(&mut guest)
}

#[test]
fn another_program_gets_the_same_from_the_device_as_from_software() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let mut guest = guest_on(dir.path(), 0).boot()?;
    guest.sh("dd if=/dev/urandom of=/tmp/plain bs=1000 count=300 2>/dev/null")?;
    for (direction, from, to) in [("-e", "plain", "secret"), ("-d", "secret", "back")] {
        for (driver, name) in [(afalg::CBC, "device"), ("cbc(aes-generic)", "software")] {
            // A password makes the key; salt and IV must be the same for both.
            guest.sh_for(
                &format!(
                    "printf secret | kcapi-enc {direction} -c '{driver}' --pbkdfiter 1000 --pbkdfmac 'hmac(sha256)' \
                     --salt 000102030405060708090a0b0c0d0e0f --iv 0f0e0d0c0b0a09080706050403020100 --passwdfd 0 \
                     -i /tmp/{from} -o /tmp/{to}.{name}"
                ),
                PATIENCE,
            )?;
        }
        guest.sh(&format!("cmp /tmp/{to}.device /tmp/{to}.software && cp /tmp/{to}.device /tmp/{to}"))?;
    }
    guest.sh("cmp /tmp/plain /tmp/back && ! cmp -s /tmp/plain /tmp/secret")?;
    afalg::no_complaints(&mut guest)
}

#[test]
fn many_processes_and_many_keys_work_at_the_same_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Daemon::crypto(dir.path(), 2, &["--workers", "2"])?;
    // The driver gives each new key to the device that has fewer.
    let second = Crypto::cryptodev(&Daemon::crypto_of(dir.path(), 1));
    let mut guest = guest_on(dir.path(), 0).crypto(second).boot()?;
    let small = Load::start(&mut guest, 8, "size=512")?;
    // Each process in the background has its own keys while a thousand come and go.
    afalg::run(&mut guest, "sessions count=1000 kept=200 jobs=2", PATIENCE)?;
    small.check(&mut guest)?;
    for rates in small.stop(&mut guest)? {
        ensure!(rates.requests > 0, "a process made no progress: {rates:?}");
    }
    let large = Load::start(&mut guest, 4, "size=65536 key=32 jobs=2")?;
    sleep(Duration::from_secs(3));
    for rates in large.stop(&mut guest)? {
        ensure!(rates.requests > 0, "a process made no progress: {rates:?}");
    }
    // The processes are gone, and their keys with them as soon as the daemon has read QEMU's messages.
    let closed = wait_until(Duration::from_secs(10), || Ok(sessions(&daemon)? == 0))?;
    ensure!(closed, "{} sessions are left open", sessions(&daemon)?);
    Ok(())
}

#[test]
fn the_mode_changes_while_requests_are_in_flight() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Daemon::crypto(dir.path(), 1, &["--mode", "interrupt"])?;
    let mut control = daemon.control()?;
    let mut guest = guest_on(dir.path(), 0).boot()?;
    let load = Load::start(&mut guest, 2, "jobs=2")?;
    for mode in ["timer=100us", "busy", "timer=20ms", "heuristic", "interrupt"] {
        control.call("mode.set", json!({"mode": mode}))?;
        afalg::run(&mut guest, "check sizes=16,4096,65536 jobs=2", PATIENCE)
            .with_context(|| format!("In mode {mode}"))?;
        load.check(&mut guest)?;
    }
    for engine in ["library", "multibuffer"] {
        let engines = control.call("engine.list", json!({}))?;
        ensure!(engines.to_string().contains(engine), "{engine} is not listed: {engines}");
    }
    for rates in load.stop(&mut guest)? {
        ensure!(rates.longest < Duration::from_secs(5), "a request waited for the next mode: {rates:?}");
    }
    Ok(())
}

#[test]
fn two_guests_have_keys_of_their_own() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 2, &["--workers", "2"])?;
    // One with QEMU's longer messages.
    let (mut one, mut other) =
        guest_on(dir.path(), 0).boot_with(guest_on(dir.path(), 1).qemu(Qemu::Newest))?;
    let loads = [Load::start(&mut one, 2, "jobs=2")?, Load::start(&mut other, 2, "jobs=2 key=24")?];
    // A guest that restarts leaves its sessions behind; the other one's go on.
    loads[0].check(&mut one)?;
    one.reboot()?;
    afalg::selftest_passed(&mut one, afalg::CBC)?;
    afalg::run(&mut one, "check key=16", PATIENCE)?;
    let [_, load] = loads;
    load.check(&mut other)?;
    for rates in load.stop(&mut other)? {
        ensure!(rates.requests > 0, "the other guest made no progress: {rates:?}");
    }
    // A guest that is gone does not hold up one that works.
    drop(one);
    afalg::run(&mut other, "check key=32", PATIENCE)?;
    afalg::no_complaints(&mut other)
}
