//! `cargo xtask demo --qemu`: a Linux guest in stock QEMU on a vhostd disk, step by step.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::daemon::Daemon;
use e2e::guest::{Disk, Guest};
use e2e::load::{self, Load};
use e2e::{image, process};

/// The rows of the closing table.
struct Steps(Vec<(&'static str, Duration, String)>);

impl Steps {
    fn run(&mut self, name: &'static str, body: impl FnOnce() -> Result<String>) -> Result<()> {
        println!("-> {name} ...");
        let started = Instant::now();
        let result = body()?;
        println!("   {result}");
        self.0.push((name, started.elapsed(), result));
        Ok(())
    }

    fn print(&self) {
        println!();
        for (name, time, result) in &self.0 {
            println!("{name:<44} {:>6.1} s   {result}", time.as_secs_f64());
        }
    }
}

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 128)?;
    let socket = dir.path().join("disk.sock");
    let mut steps = Steps(Vec::new());

    let mut daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    println!("vhostd-blk runs as process {} and listens on {}", daemon.process().pid(), socket.display());
    let mut booted = None;
    steps.run("Boot Debian's kernel in QEMU", || {
        let disk = Disk::new(&socket).queues(2).packed(true);
        let mut guest = Guest::builder().disk(disk).boot()?;
        let size = guest.sh("blockdev --getsize64 /dev/vda")?;
        booted = Some(guest);
        Ok(format!("/dev/vda has {} MiB, 2 packed queues", size.trim().parse::<u64>()? >> 20))
    })?;
    let Some(mut guest) = booted else { return Ok(()) };

    steps.run("Partition, mkfs.ext4, fio --verify, fstrim", || {
        load::full_cycle(&mut guest, "/dev/vda")?;
        let kept = image::allocated(&file)?;
        Ok(format!("verified; after fstrim the image occupies {} KiB", kept >> 10))
    })?;
    steps.run("kill -9 the daemon five times under load", || {
        guest.sh("blkdiscard -f /dev/vda")?;
        let load = Load::start(&mut guest, "/dev/vda")?;
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(1500));
            daemon.kill_and_restart()?;
        }
        std::thread::sleep(Duration::from_secs(2));
        let passes = load.stop(&mut guest, "/dev/vda")?;
        Ok(format!("{} verified passes, no I/O error, nothing lost", passes.fio))
    })?;
    steps.run("Leave the guest idle for five seconds", || {
        std::thread::sleep(Duration::from_secs(1));
        let before = daemon.process().cpu_ticks()?;
        std::thread::sleep(Duration::from_secs(5));
        let ticks = daemon.process().cpu_ticks()? - before;
        let resident = daemon.process().own_kib()?;
        Ok(format!("the daemon used {} ms of CPU time; {resident} KiB resident of its own", ticks * 10))
    })?;
    drop(guest);
    steps.run("SIGTERM", || {
        let (status, took) = daemon.process().terminate(Duration::from_secs(5))?;
        Ok(format!("{status} after {} ms", took.as_millis()))
    })?;
    steps.print();
    let output = daemon.process().output();
    println!("\nThe daemon's last words:\n{}", process::tail(&output, 3));
    Ok(())
}
