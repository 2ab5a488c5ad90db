//! `vhostd-guest` in stock guests of stock QEMUs, on devices of vhostd-compress: through both doors.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::compress::{Door, QUEUES, corpus, is_given_back, tool};
use e2e::daemon::Daemon;
use e2e::guest::Guest;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(180);

/// Requests that the daemon has done.
fn served(daemon: &Daemon) -> Result<u64> {
    let stats = daemon.control()?.call("stats", json!({}))?.to_string();
    // Whatever the counters are nested in, this one is the device's.
    let (_, rest) = stats.split_once("\"requests\":").with_context(|| stats.clone())?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// A program of this machine reads what the guest has made.
fn read_outside(program: &str, packed: &[u8], expected: &[u8], dir: &Path) -> Result<()> {
    let path = dir.join("packed");
    std::fs::write(&path, packed)?;
    let output =
        Command::new(program).arg("-dc").stdin(std::fs::File::open(&path)?).stderr(Stdio::piped()).output();
    let output = output.with_context(|| format!("{program} is needed; run: cargo xtask testbed"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.stdout == expected, "{program} reads something else");
    Ok(())
}

fn every_format_works(door: Door) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Daemon::compress(dir.path(), QUEUES, &[])?;
    let mut guest = door.boot(&Daemon::compress_of(dir.path()))?;
    let info = tool(&mut guest, "info --require-device 2>&1")?;
    ensure!(info.contains("tried           works"), "the device does not work:\n{info}");
    ensure!(info.contains("locked pages of 4 KiB"), "the guest has no huge pages yet:\n{info}");
    is_given_back(&mut guest)?;
    guest.sh("echo 16 >/proc/sys/vm/nr_hugepages")?;
    let info = tool(&mut guest, "info --require-device 2>&1")?;
    ensure!(info.contains("tried           works"), "the device does not work on huge pages:\n{info}");
    ensure!(info.contains("huge pages of 2048 KiB"), "huge pages are not used:\n{info}");
    guest.sh("echo 0 >/proc/sys/vm/nr_hugepages")?;
    corpus(&mut guest, "/tmp/x", 3)?;
    guest.sh("head -c 200000 /tmp/x >/tmp/small; cp /tmp/x /tmp/keep")?;
    let small = guest.read("/tmp/small")?;
    for (format, suffix, program) in [("gzip", "gz", "gzip"), ("zstd", "zst", "zstd"), ("lz4", "lz4", "lz4")]
    {
        let options = format!("--require-device --queues 2 --format {format}");
        let said = tool(&mut guest, &format!("compress {options} /tmp/x 2>&1"))?;
        ensure!(said.is_empty(), "compressing to {format} says: {said}");
        tool(&mut guest, &format!("decompress --require-device /tmp/x.{suffix} 2>&1"))?;
        guest.sh("cmp /tmp/x /tmp/keep")?;
        tool(&mut guest, &format!("compress -k {options} --chunk 32K --split /tmp/small"))?;
        let packed = guest.read(&format!("/tmp/small.{suffix}"))?;
        read_outside(program, &packed, &small, dir.path())?;
    }
    // What other programs make, as a stream of the device.
    guest.sh("busybox gzip -c /tmp/x >/tmp/theirs.gz")?;
    tool(&mut guest, "decompress --require-device -c /tmp/theirs.gz | cmp - /tmp/keep")?;
    ensure!(served(&daemon)? > 50, "the daemon has had {} requests", served(&daemon)?);
    is_given_back(&mut guest)
}

#[test]
fn every_format_works_on_a_device_of_its_own() -> Result<()> {
    every_format_works(Door::Whole)
}

#[test]
fn every_format_works_on_a_device_that_an_old_qemu_carries() -> Result<()> {
    every_format_works(Door::Carrier)
}

/// Files that are being compressed when something happens are right in the end.
fn survives(guest: &mut Guest, what: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    guest.sh("rm -f /tmp/x.gz /tmp/done; (vhostd-guest compress -9 -k --chunk 32K /tmp/x >/tmp/said 2>&1; echo $? >/tmp/done) &")?;
    guest.sh("until [ -s /tmp/x.gz ]; do sleep 0.1; done")?;
    what(guest)?;
    guest.sh_for("until [ -s /tmp/done ]; do sleep 0.2; done", PATIENCE)?;
    let code = guest.sh("cat /tmp/done /tmp/said")?;
    ensure!(code.starts_with('0'), "the tool fails: {code}");
    guest.sh_for("busybox gzip -dc /tmp/x.gz | cmp - /tmp/x", PATIENCE)?;
    Ok(())
}

#[test]
fn the_daemons_death_costs_no_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut daemon = Daemon::compress(dir.path(), QUEUES, &[])?;
    let mut guest = Door::Whole.boot(&Daemon::compress_of(dir.path()))?;
    corpus(&mut guest, "/tmp/x", 12)?;
    survives(&mut guest, |_| daemon.process().kill())?;
    let said = guest.sh("cat /tmp/said")?;
    ensure!(said.contains("Working in software"), "nothing is said of it: {said}");
    Ok(())
}

#[test]
fn a_killed_tool_leaves_a_device_that_works_and_a_guest_that_lives() -> Result<()> {
    for door in [Door::Whole, Door::Carrier] {
        let dir = tempfile::tempdir()?;
        let _daemon = Daemon::compress(dir.path(), QUEUES, &[])?;
        let mut guest = door.boot(&Daemon::compress_of(dir.path()))?;
        corpus(&mut guest, "/tmp/x", 8)?;
        for _ in 0..3 {
            guest.sh("rm -f /tmp/x.gz; vhostd-guest compress -9 -k --require-device /tmp/x & until [ -s /tmp/x.gz ]; do sleep 0.1; done; kill -9 $!; wait $! || true")?;
            // Pages that were the device's are other programs' now.
            guest.sh("rm -f /tmp/x.gz; head -c 30000000 /dev/zero >/tmp/zeros; head -c 30000000 /dev/zero | cmp - /tmp/zeros; rm /tmp/zeros")?;
            let info = tool(&mut guest, "info --require-device 2>&1")?;
            ensure!(info.contains("tried           works"), "{door:?} does not work:\n{info}");
        }
        is_given_back(&mut guest).with_context(|| format!("{door:?}"))?;
    }
    Ok(())
}

#[test]
fn one_process_at_a_time_has_the_device_and_others_do_without() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::compress(dir.path(), QUEUES, &[])?;
    let mut guest = Door::Carrier.boot(&Daemon::compress_of(dir.path()))?;
    // The first one has the device and waits for input.
    guest.sh("mkfifo /tmp/input; (vhostd-guest compress --require-device </tmp/input >/tmp/first.gz; echo $? >/tmp/done) & sleep 600 >/tmp/input & echo $! >/tmp/writer")?;
    guest.sh("while readlink /sys/bus/pci/devices/*/driver | grep -q virtio-pci; do sleep 0.1; done")?;
    let said = guest.sh("head -c 100000 /bin/busybox | vhostd-guest compress 2>&1 >/tmp/other.gz; busybox gzip -t /tmp/other.gz")?;
    ensure!(said.contains("in use by another process") && said.contains("in software"), "{said}");
    guest.sh("echo input >/tmp/input; kill $(cat /tmp/writer); until [ -s /tmp/done ]; do sleep 0.1; done; [ $(cat /tmp/done) = 0 ]")?;
    ensure!(guest.sh("busybox gzip -dc /tmp/first.gz")? == "input\n");
    is_given_back(&mut guest)
}

#[test]
fn without_a_device_the_tool_works_and_says_so() -> Result<()> {
    let mut guest = Guest::builder().boot()?;
    let said = guest.sh("head -c 300000 /bin/busybox >/tmp/x; vhostd-guest compress -k /tmp/x 2>&1; busybox gzip -dc /tmp/x.gz | cmp - /tmp/x")?;
    ensure!(said == "vhostd-guest: There is no such device; working in software\n", "{said}");
    guest.sh("! vhostd-guest compress --require-device -c /tmp/x >/dev/null 2>&1")?;
    Ok(())
}
