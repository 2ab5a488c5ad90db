//! One frontend after another on the same device, and the end of the process.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::driver::Driver;
use e2e::process::wait_until;
use e2e::{bed, image, rounds};

#[test]
fn two_hundred_reconnects_leak_no_descriptor() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 1)?;
    let socket = dir.path().join("disk.sock");
    let mut daemon = Daemon::blk(&socket, &file, &[])?;
    let mut steady = None;
    for round in 0..rounds(200, 10_000) {
        let mut driver = Driver::attach(&socket, round % 2 == 1, 64)?;
        driver.works(u64::from(round) % 64, round as u8)?;
        let open = daemon.process().open_fds()?;
        // While attached, from the tenth connection on: lazily opened things are there by then.
        if round == 10 {
            steady = Some(open);
        }
        if let Some(steady) = steady {
            ensure!(open <= steady, "{open} descriptors in round {round}, {steady} in round 10");
        }
    }
    Ok(())
}

#[test]
fn memory_does_not_grow_over_reconnects() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 1)?;
    let socket = dir.path().join("disk.sock");
    let mut daemon = Daemon::blk(&socket, &file, &[])?;
    let mut connect = |rounds: u32| -> Result<u64> {
        for round in 0..rounds {
            Driver::attach(&socket, false, 256)?.works(0, round as u8)?;
        }
        daemon.process().resident_kib()
    };
    let early = connect(50)?;
    let late = connect(rounds(300, 20_000))?;
    ensure!(late < early + 512, "{early} KiB resident after 50 connections, {late} KiB later");
    Ok(())
}

/// Verified load from `vhostd-bench` on two queues; killed when dropped.
struct Bench(Child);

impl Bench {
    fn start(socket: &Path, extra: &[&str]) -> Result<Self> {
        let mut command = Command::new(bed::binary("vhostd-bench")?);
        command
            .args(["blk", "--rw", "randrw", "--verify", "--json", "--numjobs", "2", "--socket"])
            .arg(socket);
        command.args(extra).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(command.spawn()?))
    }

    /// Waits for the end and returns the report of a run without a fault.
    fn finish(mut self) -> Result<serde_json::Value> {
        let child = std::mem::replace(&mut self.0, Command::new("true").spawn()?);
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "vhostd-bench ended with {}:\n{stderr}\n{stdout}", output.status);
        serde_json::from_str(&stdout).with_context(|| format!("Not JSON: {stdout}"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // It has ended, or must.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn survives_kills(extra: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 32)?;
    let socket = dir.path().join("disk.sock");
    let mut daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    let seconds = rounds(20, 600);
    let runtime = format!("{seconds}s");
    let bench = Bench::start(&socket, &[extra, &["--reconnect", "--runtime", &runtime]].concat())?;

    // Only a driver that is attached can reconnect.
    let attached = wait_until(Duration::from_secs(10), || Ok(image::allocated(&file)? > 0))?;
    ensure!(attached, "the load does not start");

    let end = Instant::now() + Duration::from_secs(u64::from(seconds) - 2);
    let mut kills = 0;
    while Instant::now() < end {
        // Short enough to hit the resubmission of the requests that the kill before interrupted.
        sleep(Duration::from_millis(5 + kills * 13 % 60));
        daemon.kill_and_restart()?;
        kills += 1;
    }
    let report = bench.finish()?;
    ensure!(kills >= 50, "only {kills} kills in {seconds} s");
    ensure!(report["verified_blocks"].as_u64() > Some(1000), "hardly anything was verified: {report}");
    Ok(())
}

#[test]
fn hundreds_of_kills_lose_and_repeat_nothing_on_split_rings() -> Result<()> {
    survives_kills(&[])
}

#[test]
fn hundreds_of_kills_lose_and_repeat_nothing_on_packed_rings() -> Result<()> {
    survives_kills(&["--packed"])
}

#[test]
fn sigterm_under_load_ends_the_process_with_success_within_a_second() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 32)?;
    let socket = dir.path().join("disk.sock");
    let mut daemon = Daemon::blk(&socket, &file, &["--num-queues", "2"])?;
    for _ in 0..5 {
        let _load = Bench::start(&socket, &["--runtime", "60s"])?;
        sleep(Duration::from_millis(500));
        let (status, took) = daemon.process().terminate(Duration::from_secs(10))?;
        ensure!(status.success(), "ended with {status}: {}", daemon.process().output());
        ensure!(took < Duration::from_secs(1), "took {took:?}");
        ensure!(!socket.exists(), "left its socket behind");
        daemon.restart()?;
    }
    Ok(())
}
