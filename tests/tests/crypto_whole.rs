//! The stock Linux driver on whole devices of vhostd-crypto, which the newest QEMU only carries: RSA as well as ciphers.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::crypto::afalg::{self, Load};
use e2e::crypto::device::Crypto;
use e2e::crypto::rsa;
use e2e::daemon::Daemon;
use e2e::guest::Guest;

const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn the_driver_passes_all_its_self_tests_and_ciphers_are_right() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let device = Crypto::whole(&Daemon::crypto_of(dir.path(), 0));
    let mut guest = Guest::builder().crypto(device).boot()?;
    afalg::selftest_passed(&mut guest, afalg::CBC)?;
    afalg::selftest_passed(&mut guest, afalg::RSA)?;
    afalg::run(&mut guest, "check rounds=2", PATIENCE)?;
    afalg::run(&mut guest, "sessions count=1000 kept=200 jobs=2", PATIENCE)?;
    let load = Load::start(&mut guest, 4, "jobs=2")?;
    std::thread::sleep(Duration::from_secs(3));
    for rates in load.stop(&mut guest)? {
        ensure!(rates.requests > 0, "a process made no progress: {rates:?}");
    }
    guest.reboot()?;
    afalg::selftest_passed(&mut guest, afalg::CBC)?;
    afalg::selftest_passed(&mut guest, afalg::RSA)
}

#[test]
fn rsa_in_one_guest_agrees_with_openssl_while_another_ciphers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 2, &[])?;
    let guest = |index| Guest::builder().crypto(Crypto::whole(&Daemon::crypto_of(dir.path(), index)));
    let (mut one, mut other) = guest(0).boot_with(guest(1))?;
    let loads = [Load::start(&mut one, 1, "")?, Load::start(&mut other, 2, "jobs=2")?];
    for bits in [2048, 4096] {
        rsa::agrees_with_the_host(&mut one, dir.path(), bits)?;
    }
    for (load, guest) in loads.into_iter().zip([&mut one, &mut other]) {
        for rates in load.stop(guest)? {
            ensure!(rates.requests > 0, "a process made no progress: {rates:?}");
        }
    }
    Ok(())
}
