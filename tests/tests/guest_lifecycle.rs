//! The disk through the life of a guest: reboot, driver unbound and bound again, resize while running.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Disk, Guest, Qemu};
use e2e::process::wait_until;
use e2e::{bed, image, load};

fn survives_reboots(qemu: Qemu) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 32)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    for packed in [false, true] {
        let disk = Disk::new(&socket).queues(2).packed(packed);
        let mut guest = Guest::builder().qemu(qemu).disk(disk).boot()?;
        guest.sh("mkfs.ext4 -qF /dev/vda && mount /dev/vda /mnt && echo kept > /mnt/file && sync")?;
        // Requests are in flight when the machine resets.
        guest.sh("dd if=/dev/vda of=/dev/null bs=4k iflag=direct >/dev/null 2>&1 & true")?;
        guest.reboot()?;
        assert_eq!(guest.sh("mount /dev/vda /mnt && cat /mnt/file && umount /mnt")?.trim(), "kept");
        load::no_io_errors(&mut guest)?;
    }
    Ok(())
}

#[test]
fn the_disk_survives_a_reboot_of_the_guest() -> Result<()> {
    survives_reboots(Qemu::Release)
}

#[test]
fn the_disk_survives_a_reboot_of_the_guest_in_the_newest_qemu() -> Result<()> {
    survives_reboots(Qemu::Newest)
}

#[test]
fn the_disk_comes_back_when_its_driver_is_bound_again() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 32)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    let mut guest = Guest::builder().disk(Disk::new(&socket).queues(2)).boot()?;

    guest.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>&1 && dd if=/tmp/data of=/dev/vda bs=1M conv=fsync 2>&1")?;
    for _ in 0..5 {
        guest.sh(
            "cd /sys/bus/virtio/drivers/virtio_blk && device=$(ls | grep ^virtio) && echo $device > unbind \
             && test ! -e /dev/vda && echo $device > bind && test -b /dev/vda",
        )?;
        guest.sh("dd if=/dev/vda bs=1M count=4 iflag=direct 2>/dev/null | cmp - /tmp/data")?;
    }
    load::no_io_errors(&mut guest)
}

#[test]
fn a_file_that_grows_is_seen_by_the_running_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 32)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &[])?;
    let mut guest = Guest::builder().disk(Disk::new(&socket)).boot()?;
    guest.sh("mkfs.ext4 -q /dev/vda")?;

    File::options().write(true).open(&file)?.set_len(48 << 20)?;
    wait_for_size(&mut guest, 48 << 20)?;
    guest
        .sh("dd if=/dev/urandom of=/dev/vda bs=1M seek=47 count=1 conv=fsync 2>&1 && e2fsck -fn /dev/vda")?;
    load::no_io_errors(&mut guest)
}

fn resize_is_seen(qemu: Qemu) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 32)?;
    let [socket, control] = ["disk.sock", "control.sock"].map(|name| dir.path().join(name));
    let control = control.to_str().context("The path is not UTF-8")?;
    let _daemon = Daemon::blk(&socket, &file, &["--num-queues", "2", "--control-socket", control])?;
    let mut guest = Guest::builder().qemu(qemu).disk(Disk::new(&socket).queues(2)).boot()?;
    // The guest works while it is told.
    guest.sh("(while [ ! -e /tmp/stop ]; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null; done) & true")?;

    for mib in [64, 80] {
        let size = (mib << 20).to_string();
        let output = Command::new(bed::binary("vhostctl")?)
            .args(["--socket", control, "resize", "disk0", &size])
            .output()
            .context("Cannot run vhostctl")?;
        ensure!(output.status.success(), "vhostctl: {}", String::from_utf8_lossy(&output.stderr));
        wait_for_size(&mut guest, mib << 20)?;
    }
    guest.sh("touch /tmp/stop; dd if=/dev/urandom of=/dev/vda bs=1M seek=79 count=1 conv=fsync 2>&1")?;
    guest.sh("dd if=/dev/zero of=/dev/vda bs=1M seek=80 count=1 conv=fsync 2>/dev/null && exit 1 || true")?;
    Ok(())
}

#[test]
fn a_resize_over_the_control_socket_is_seen_by_the_running_guest() -> Result<()> {
    resize_is_seen(Qemu::Release)
}

#[test]
fn a_resize_over_the_control_socket_is_seen_by_the_running_guest_in_the_newest_qemu() -> Result<()> {
    resize_is_seen(Qemu::Newest)
}

fn wait_for_size(guest: &mut Guest, bytes: u64) -> Result<()> {
    let mut seen = String::new();
    let grown = wait_until(Duration::from_secs(30), || {
        seen = guest.sh("blockdev --getsize64 /dev/vda")?;
        Ok(seen.trim() == bytes.to_string())
    })?;
    ensure!(grown, "the guest sees {} bytes, not {bytes}", seen.trim());
    Ok(())
}
