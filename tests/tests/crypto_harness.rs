//! The harness of the crypto tests, against QEMU's own device: if these fail, look here before you look at vhostd-crypto.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::crypto::afalg::{self, Load};
use e2e::crypto::device::Crypto;
use e2e::guest::{Guest, Qemu};

const PATIENCE: Duration = Duration::from_secs(120);

fn ciphers_are_right(guest: &mut Guest) -> Result<()> {
    // RSA of the release's QEMU fails its test, for it has no raw padding; nobody here uses it.
    guest.sh("dmesg -c > /dev/null")?;
    afalg::selftest_passed(guest, afalg::CBC)?;
    afalg::run(guest, "check", PATIENCE)?;
    afalg::run(guest, "sessions count=300", PATIENCE)?;
    let load = Load::start(guest, 2, "jobs=2")?;
    std::thread::sleep(Duration::from_secs(2));
    load.check(guest)?;
    for rates in load.stop(guest)? {
        ensure!(rates.requests > 100, "the load made no progress: {rates:?}");
    }
    Ok(())
}

#[test]
fn the_release_of_qemu_has_a_device_of_its_own() -> Result<()> {
    let mut guest = Guest::builder().crypto(Crypto::builtin()).boot()?;
    ciphers_are_right(&mut guest)
}

#[test]
fn the_newest_qemu_has_a_device_of_its_own() -> Result<()> {
    let mut guest = Guest::builder().crypto(Crypto::builtin()).qemu(Qemu::Newest).boot()?;
    ciphers_are_right(&mut guest)
}
