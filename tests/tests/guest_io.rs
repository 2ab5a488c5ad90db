//! A stock Linux guest in stock QEMU uses the disk as any other: partitions, file systems, verified load, discard,
//! flush; with one queue and with four, split and packed; in the release's QEMU and in the newest.

use anyhow::Result;
use e2e::daemon::Daemon;
use e2e::guest::{Disk, Guest, Qemu};
use e2e::{image, load};

fn full_cycle(qemu: Qemu, queues: u16, packed: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 128)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &["--num-queues", &queues.to_string()])?;
    let disk = Disk::new(&socket).queues(queues).packed(packed);
    // The driver uses no more queues than there are processors.
    let mut guest = Guest::builder().qemu(qemu).vcpus(queues.into()).disk(disk).boot()?;
    load::full_cycle(&mut guest, "/dev/vda")
}

#[test]
fn a_guest_uses_one_split_queue() -> Result<()> {
    full_cycle(Qemu::Release, 1, false)
}

#[test]
fn a_guest_uses_one_packed_queue() -> Result<()> {
    full_cycle(Qemu::Release, 1, true)
}

#[test]
fn a_guest_uses_four_split_queues() -> Result<()> {
    full_cycle(Qemu::Release, 4, false)
}

#[test]
fn a_guest_uses_four_packed_queues() -> Result<()> {
    full_cycle(Qemu::Release, 4, true)
}

#[test]
fn a_guest_in_the_newest_qemu_uses_four_split_queues() -> Result<()> {
    full_cycle(Qemu::Newest, 4, false)
}

#[test]
fn a_guest_in_the_newest_qemu_uses_four_packed_queues() -> Result<()> {
    full_cycle(Qemu::Newest, 4, true)
}

#[test]
fn discard_frees_space_in_the_file_and_write_zeroes_reads_as_zeroes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 64)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &[])?;
    let mut guest = Guest::builder().vcpus(1).disk(Disk::new(&socket)).boot()?;

    guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>&1")?;
    let full = image::allocated(&file)?;
    assert!(full >= 32 << 20, "{full} bytes are allocated after 32 MiB were written");

    guest.sh("blkdiscard -o 0 -l 16M /dev/vda")?;
    let discarded = image::allocated(&file)?;
    assert!(discarded <= full - (15 << 20), "discarding 16 MiB left {discarded} of {full} bytes allocated");

    guest.sh("blkdiscard -z -o 16M -l 8M /dev/vda && sync && echo 3 > /proc/sys/vm/drop_caches")?;
    guest.sh("dd if=/dev/vda bs=1M skip=16 count=8 2>/dev/null | cmp -n 8388608 - /dev/zero")?;
    // What was not discarded is still there.
    guest
        .sh("dd if=/dev/vda bs=1M skip=24 count=8 2>/dev/null | cmp -n 4096 - /dev/zero && exit 1 || true")?;
    load::no_io_errors(&mut guest)
}

#[test]
fn a_guest_cannot_write_to_a_read_only_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 16)?;
    let before = std::fs::read(&file)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &["--read-only"])?;
    let mut guest = Guest::builder().vcpus(1).disk(Disk::new(&socket)).boot()?;

    assert_eq!(guest.sh("blockdev --getro /dev/vda")?.trim(), "1");
    guest.sh("dd if=/dev/vda of=/dev/null bs=1M count=16 2>&1")?;
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null && exit 1 || true")?;
    guest.sh("blkdiscard /dev/vda 2>/dev/null && exit 1 || true")?;
    assert!(std::fs::read(&file)? == before, "the file of a read-only disk has changed");
    Ok(())
}
