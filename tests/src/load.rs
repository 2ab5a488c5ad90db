//! Verified load in the guest.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::guest::Guest;

/// One pass of the load: writes of mixed sizes at random places of a file with a checksum in every block, fsync in
/// between, then every block is read back and checked. `SEED` makes passes differ.
const FIO: &str = "fio --name=load --directory=/mnt --filename=load --size=SIZE --rw=randwrite --bsrange=4k-64k \
                   --ioengine=libaio --iodepth=16 --direct=1 --fsync=64 --verify=crc32c \
                   --randseed=SEED --numjobs=1 --output=/tmp/fio.log";

/// Passes of fio until told to stop, on the file system mounted at `/mnt`.
///
/// Beside it runs a reader: it fills the guest's page cache from a file of known contents and checks it, then checks
/// the cached pages once more without reading them again. After a migration that catches a page the device wrote
/// without telling the dirty log.
pub struct Load;

/// What a stopped load had done.
#[derive(Debug)]
pub struct Passes {
    /// Complete fio passes, each verified.
    pub fio: u32,
    /// Complete checks of the known file.
    pub reader: u32,
}

impl Load {
    /// Makes a file system with a file of known contents on `device` and starts the load.
    ///
    /// # Errors
    /// Those of the guest.
    pub fn start(guest: &mut Guest, device: &str) -> Result<Self> {
        guest.sh(&format!("mkfs.ext4 -q {device} && mount {device} /mnt"))?;
        guest.sh("dd if=/dev/urandom of=/mnt/known bs=1M count=8 2>&1 && sync && md5sum /mnt/known > /tmp/known.md5")?;
        let pass = FIO.replace("SIZE", "8M").replace("SEED", "$pass");
        let fio = format!(
            "cat > /tmp/load.sh <<'END'\npass=0\n\
             while [ ! -e /tmp/stop ]; do\n\
             pass=$((pass + 1))\n\
             {pass} > /tmp/fio.err 2>&1 || {{ echo \"pass $pass: exit code $?\" > /tmp/failed;\n\
             cat /tmp/fio.err /tmp/fio.log >> /tmp/failed; exit 1; }}\n\
             echo $pass > /tmp/passes\ndone\nEND"
        );
        let reader = "cat > /tmp/reader.sh <<'END'\nreads=0\n\
             while [ ! -e /tmp/stop ]; do\n\
             echo 1 > /proc/sys/vm/drop_caches\n\
             md5sum -cs /tmp/known.md5 || { echo 'known file differs as read' > /tmp/failed; exit 1; }\n\
             md5sum -cs /tmp/known.md5 || { echo 'known file differs in the cache' > /tmp/failed; exit 1; }\n\
             reads=$((reads + 1)); echo $reads > /tmp/reads\ndone\nEND";
        guest.sh(&fio)?;
        guest.sh(reader)?;
        guest.sh("sh /tmp/load.sh >/dev/null 2>&1 & echo $! > /tmp/load.pid")?;
        guest.sh("sh /tmp/reader.sh >/dev/null 2>&1 & echo $! > /tmp/reader.pid")?;
        Ok(Self)
    }

    /// An error if anything has gone wrong so far.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self, guest: &mut Guest) -> Result<()> {
        let failure = guest.sh("cat /tmp/failed 2>/dev/null; true")?;
        ensure!(failure.is_empty(), "The load failed: {failure}");
        no_io_errors(guest)
    }

    /// Lets the running passes end, then checks everything once more: each pass, the kernel's log, the known file as it
    /// is on the disk, and the file system.
    ///
    /// # Errors
    /// When anything was lost, changed or reported.
    pub fn stop(self, guest: &mut Guest, device: &str) -> Result<Passes> {
        let wait = "touch /tmp/stop; for pid in $(cat /tmp/load.pid /tmp/reader.pid); do \
                    while kill -0 $pid 2>/dev/null; do sleep 0.2; done; done";
        guest.sh_for(wait, Duration::from_secs(180))?;
        self.check(guest)?;
        guest.sh(&format!(
            "umount /mnt && e2fsck -fn {device} && mount {device} /mnt && md5sum -cs /tmp/known.md5 && umount /mnt"
        ))?;
        no_io_errors(guest)?;
        let number = |text: String| text.trim().parse::<u32>().unwrap_or(0);
        let fio = number(guest.sh("cat /tmp/passes 2>/dev/null; true")?);
        let reader = number(guest.sh("cat /tmp/reads 2>/dev/null; true")?);
        Ok(Passes { fio, reader })
    }
}

/// An error if the guest's kernel reported one for a disk or a file system.
///
/// # Errors
/// That one.
pub fn no_io_errors(guest: &mut Guest) -> Result<()> {
    let log = guest.sh(
        "dmesg | grep -iE 'i/o error|ext4-fs error|ext4-fs warning|remounting|hung|blocked for' ; true",
    )?;
    if !log.trim().is_empty() {
        bail!("The guest's kernel reports: {log}");
    }
    Ok(())
}

/// Partitions a disk, makes a file system, mounts it, writes and verifies, unmounts, mounts again and verifies again;
/// with discard and flush on the way.
///
/// # Errors
/// When any step fails in the guest.
pub fn full_cycle(guest: &mut Guest, disk: &str) -> Result<()> {
    let partition = format!("{disk}1");
    guest.sh(&format!("echo '2048,,L' | sfdisk -q {disk} && partprobe {disk} && test -b {partition}"))?;
    guest.sh(&format!("mkfs.ext4 -q {partition} && mount -o discard {partition} /mnt"))?;
    let fio = FIO.replace("SIZE", "16M").replace("SEED", "7");
    guest.sh_for(&fio, Duration::from_secs(180))?;
    // A second job, mixed: reads beside writes and trims, through the page cache.
    guest.sh_for(
        "fio --name=mixed --directory=/mnt --size=8M --rw=randrw --bs=4k --ioengine=psync --numjobs=2 --fdatasync=16 \
         --verify=crc32c --output=/tmp/fio.log",
        Duration::from_secs(180),
    )?;
    guest.sh("rm /mnt/mixed.* && sync && fstrim -v /mnt && umount /mnt")?;
    guest.sh(&format!("e2fsck -fn {partition} && mount {partition} /mnt"))?;
    guest.sh_for(&format!("{fio} --verify_only"), Duration::from_secs(180))?;
    guest.sh("umount /mnt")?;
    no_io_errors(guest)
}
