//! Live migration from QEMU to QEMU, there and back, under verified load.
//!
//! One at a time: QEMU 7.2's emulator decides in one step whether a page is clean and notes in another that it may be written
//! unseen. When its threads are held up between the two, for want of processors, a migrated guest can lack writes of its own.
//! No vhost is needed for that: with QEMU's own virtio-blk-pci on the same file, one run in seven of this test at a load of
//! eight on two processors ended in a guest kernel with broken memory.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Builder, Disk, Guest, Qemu};
use e2e::image;
use e2e::load::Load;
use e2e::process::wait_until;

/// The same machine at both ends, each with a daemon of its own on the same file.
fn machine(qemu: Qemu, socket: &Path, packed: bool) -> Builder {
    Guest::builder().qemu(qemu).memory_mib(448).disk(Disk::new(socket).queues(2).packed(packed))
}

static ALONE: Mutex<()> = Mutex::new(());

fn there_and_back(qemu: Qemu, packed: bool) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 64)?;
    let [here, there] = ["here.sock", "there.sock"].map(|name| dir.path().join(name));
    let options = ["--num-queues", "2", "--share-rw"];
    let _here = Daemon::blk(&here, &file, &options)?;
    let _there = Daemon::blk(&there, &file, &options)?;

    let mut guest = machine(qemu, &here, packed).boot()?;
    let load = Load::start(&mut guest, "/dev/vda")?;
    for socket in [&there, &here] {
        let target = machine(qemu, socket, packed).await_migration()?;
        guest = guest.migrate_to(target)?;
        load.check(&mut guest)?;
        wait_for_progress(&mut guest)?;
    }
    let passes = load.stop(&mut guest, "/dev/vda")?;
    ensure!(passes.fio > 0 && passes.reader > 0, "the load made no progress: {passes:?}");
    Ok(())
}

/// The load goes on at the new place: another pass over the known file ends there.
fn wait_for_progress(guest: &mut Guest) -> Result<()> {
    let before = guest.sh("cat /tmp/reads 2>/dev/null; true")?;
    let went_on = wait_until(std::time::Duration::from_secs(60), || {
        Ok(guest.sh("sleep 0.2; cat /tmp/reads 2>/dev/null; true")? != before)
    })?;
    ensure!(went_on, "the load stands still after the migration");
    Ok(())
}

#[test]
fn a_guest_on_split_rings_migrates_there_and_back_under_load() -> Result<()> {
    there_and_back(Qemu::Release, false)
}

#[test]
fn a_guest_on_packed_rings_migrates_there_and_back_under_load() -> Result<()> {
    there_and_back(Qemu::Release, true)
}

#[test]
fn a_guest_in_the_newest_qemu_migrates_there_and_back_under_load() -> Result<()> {
    there_and_back(Qemu::Newest, true)
}
