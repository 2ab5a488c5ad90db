//! Idle means idle: no CPU time, little memory.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::daemon::Daemon;
use e2e::driver::Driver;
use e2e::image;

#[test]
fn fifty_idle_disks_take_no_cpu_time_in_ten_seconds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::blk_disks(dir.path(), 50, 1, &[])?;
    let mut drivers = (0..50)
        .map(|index| Driver::attach(&Daemon::socket_of(dir.path(), index), index % 2 == 1, 128))
        .collect::<Result<Vec<_>>>()?;
    for (index, driver) in drivers.iter_mut().enumerate() {
        driver.works(index as u64, index as u8)?;
    }
    // The last request's polling window closes.
    sleep(Duration::from_millis(500));
    let before = daemon.process().cpu_ticks()?;
    sleep(Duration::from_secs(10));
    let ticks = daemon.process().cpu_ticks()? - before;
    ensure!(ticks == 0, "{ticks} ticks of CPU time in ten idle seconds");
    for (index, driver) in drivers.iter_mut().enumerate() {
        driver.works(index as u64, !(index as u8))?;
    }
    Ok(())
}

#[test]
fn an_idle_daemon_is_smaller_than_ten_mebibytes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 64)?;
    let socket = dir.path().join("disk.sock");
    let mut daemon = Daemon::blk(&socket, &file, &[])?;
    let fresh = daemon.process().resident_kib()?;
    let mut driver = Driver::attach(&socket, false, 256)?;
    for sector in 0..64 {
        driver.works(sector, sector as u8)?;
    }
    let used = daemon.process().resident_kib()?;
    ensure!(fresh < 10 << 10 && used < 10 << 10, "{fresh} KiB fresh, {used} KiB with a frontend");
    Ok(())
}
