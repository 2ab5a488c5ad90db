//! The harness itself, against a backend nobody here wrote: if these fail, look here before you look at vhostd.

use std::time::Duration;

use anyhow::Result;
use e2e::daemon::Daemon;
use e2e::guest::{Disk, Guest};
use e2e::image;

#[test]
fn a_guest_on_qemu_storage_daemon_formats_writes_and_verifies() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 64)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::storage_daemon(&socket, &file, 2)?;
    let mut guest = Guest::builder().disk(Disk::new(&socket).queues(2)).boot()?;

    assert_eq!(guest.sh("blockdev --getsize64 /dev/vda")?.trim(), (64 << 20).to_string());
    guest.sh("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && echo kept > /mnt/file && umount /mnt")?;
    guest.sh(
        "mount /dev/vda /mnt && fio --name=load --directory=/mnt --size=8M --rw=randwrite --bs=4k --ioengine=libaio \
         --iodepth=8 --direct=1 --verify=crc32c",
    )?;
    assert_eq!(guest.sh("cat /mnt/file && umount /mnt")?.trim(), "kept");
    Ok(())
}

#[test]
fn a_failing_script_reports_its_code_and_its_output() -> Result<()> {
    let mut guest = Guest::builder().memory_mib(448).vcpus(1).boot()?;
    let output = guest.try_sh("echo out; echo err >&2; exit 7", Duration::from_secs(20))?;
    assert_eq!((output.code, output.text.as_str()), (7, "out\nerr\n"));
    let error = guest.sh("ls /nowhere").expect_err("the script fails").to_string();
    assert!(error.contains("Console of the guest"), "{error}");
    assert!(guest.try_sh("sleep 60", Duration::from_millis(200)).is_err());
    Ok(())
}

#[test]
fn a_guest_comes_back_from_a_reboot() -> Result<()> {
    let mut guest = Guest::builder().memory_mib(448).vcpus(1).boot()?;
    guest.sh("touch /tmp/gone-after-reboot")?;
    guest.reboot()?;
    guest.sh("test ! -e /tmp/gone-after-reboot")?;
    Ok(())
}

#[test]
fn a_guest_migrates_with_its_shell_and_its_memory() -> Result<()> {
    let mut guest = Guest::builder().memory_mib(448).vcpus(1).boot()?;
    guest.sh("echo here > /tmp/kept")?;
    let target = Guest::builder().memory_mib(448).vcpus(1).await_migration()?;
    let mut guest = guest.migrate_to(target)?;
    assert_eq!(guest.sh("cat /tmp/kept")?.trim(), "here");
    Ok(())
}
