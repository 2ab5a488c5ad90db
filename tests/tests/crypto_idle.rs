//! Idle means idle: no CPU time, supervised or not.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::crypto::driver::CryptoDriver;
use e2e::daemon::Daemon;

#[test]
fn twenty_idle_devices_and_their_supervisor_take_no_cpu_time_in_ten_seconds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let other = tempfile::tempdir()?;
    let mut plain = Daemon::crypto(dir.path(), 20, &[])?;
    let mut supervised = Daemon::crypto(other.path(), 20, &["--supervise"])?;
    let attach = |dir: &std::path::Path| {
        (0..20).map(|index| CryptoDriver::attach(&Daemon::crypto_of(dir, index))).collect::<Result<Vec<_>>>()
    };
    let mut drivers = attach(dir.path())?;
    drivers.extend(attach(other.path())?);
    drivers.iter_mut().try_for_each(CryptoDriver::works)?;
    // The last request's polling window closes.
    sleep(Duration::from_millis(500));
    let before = [supervised.process().tree_ticks()?, plain.process().tree_ticks()?];
    sleep(Duration::from_secs(10));
    let after = [supervised.process().tree_ticks()?, plain.process().tree_ticks()?];
    ensure!(before == after, "ticks of CPU time in ten idle seconds: {before:?} before, {after:?} after");
    drivers.iter_mut().try_for_each(CryptoDriver::works)
}
