//! `kill -9` under load: the guest waits a moment and notices nothing else.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Disk, Guest, Qemu};
use e2e::load::Load;
use e2e::{image, rounds};

fn survives_kills(qemu: Qemu, packed: bool, kills: u32) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 64)?;
    let socket = dir.path().join("disk.sock");
    let mut daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    let mut guest = Guest::builder().qemu(qemu).disk(Disk::new(&socket).queues(2).packed(packed)).boot()?;
    let load = Load::start(&mut guest, "/dev/vda")?;

    for round in 0..kills {
        // QEMU takes up to a second to connect again; spread the kills over that and the busy time after it.
        sleep(Duration::from_millis(700 + u64::from(round * 37 % 9) * 100));
        daemon.kill_and_restart()?;
        load.check(&mut guest)?;
    }
    sleep(Duration::from_millis(1500));
    let passes = load.stop(&mut guest, "/dev/vda")?;
    ensure!(passes.fio > 0 && passes.reader > 0, "the load made no progress: {passes:?}");
    Ok(())
}

#[test]
fn a_guest_on_split_rings_survives_twenty_kills_of_the_daemon() -> Result<()> {
    survives_kills(Qemu::Release, false, rounds(20, 500))
}

#[test]
fn a_guest_on_packed_rings_survives_twenty_kills_of_the_daemon() -> Result<()> {
    survives_kills(Qemu::Release, true, rounds(20, 500))
}

#[test]
fn a_guest_on_split_rings_in_the_newest_qemu_survives_kills_of_the_daemon() -> Result<()> {
    survives_kills(Qemu::Newest, false, rounds(8, 500))
}

#[test]
fn a_guest_on_packed_rings_in_the_newest_qemu_survives_kills_of_the_daemon() -> Result<()> {
    survives_kills(Qemu::Newest, true, rounds(8, 500))
}
