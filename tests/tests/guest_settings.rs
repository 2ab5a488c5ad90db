//! What a guest is told about its disks and what it may change: serial numbers, limits, the cache mode; disks that come and
//! go while it runs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::daemon::Daemon;
use e2e::guest::{Disk, Guest};
use e2e::process::wait_until;
use e2e::{bed, image, load};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `vhostctl` on this control socket; its answer as JSON.
fn vhostctl(control: &Path, args: &[&str]) -> Result<Value> {
    let mut command = Command::new(bed::binary("vhostctl")?);
    let output = command.arg("--socket").arg(control).arg("--json").args(args).output()?;
    ensure!(output.status.success(), "vhostctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What `status` says of the first disk.
fn disk_status(control: &Path) -> Result<Value> {
    Ok(vhostctl(control, &["status"])?["details"]["disks"][0].clone())
}

fn read(guest: &mut Guest, file: &str) -> Result<String> {
    Ok(guest.sh(&format!("cat /sys/block/{file}"))?.trim().to_owned())
}

#[test]
fn disks_of_one_daemon_are_told_apart_and_have_what_their_options_say() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sockets = ["root.sock", "data.sock"].map(|name| dir.path().join(name));
    let files = [image::sparse(dir.path(), "root.img", 16)?, image::sparse(dir.path(), "data.img", 16)?];
    let [root, data] = [0, 1].map(|i| format!("path={},socket={}", files[i].display(), sockets[i].display()));
    let root = format!("id=root,serial=ROOT-1,{root}");
    let data = format!("id=data,no-discard,block-size=4096,{data}");
    let _daemon = Daemon::blk_with(&["--disk", &root, "--disk", &data], &sockets)?;
    let disks = sockets.clone().map(|socket| Disk::new(&socket).queues(2));
    let mut guest = Guest::builder().disk(disks[0].clone()).disk(disks[1].clone()).boot()?;

    assert_eq!(read(&mut guest, "vda/serial")?, "ROOT-1");
    assert_eq!(read(&mut guest, "vdb/serial")?, "data");
    assert_ne!(read(&mut guest, "vda/queue/discard_max_bytes")?, "0");
    assert_ne!(read(&mut guest, "vda/queue/write_zeroes_max_bytes")?, "0");
    assert_eq!(read(&mut guest, "vdb/queue/discard_max_bytes")?, "0");
    assert_eq!(read(&mut guest, "vda/queue/logical_block_size")?, "512");
    assert_eq!(read(&mut guest, "vdb/queue/logical_block_size")?, "4096");

    guest.sh("for d in a b; do yes vd$d | dd of=/dev/vd$d bs=64k count=4 iflag=fullblock conv=fsync 2>/dev/null; done")?;
    for (file, name) in files.iter().zip(["vda\n", "vdb\n"]) {
        let written = std::fs::read(file)?;
        assert!(written[..256 << 10].chunks(4).all(|word| word == name.as_bytes()), "{}", file.display());
    }
    load::no_io_errors(&mut guest)
}

#[test]
fn a_guest_that_turns_its_write_cache_off_has_stable_writes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 16)?;
    let [socket, control] = ["disk.sock", "control.sock"].map(|name| dir.path().join(name));
    let path = control.to_str().context("The path is not UTF-8")?;
    let _daemon = Daemon::blk(&socket, &file, &["--control-socket", path])?;
    let mut guest = Guest::builder().disk(Disk::new(&socket)).boot()?;

    for (mode, writeback) in [("write through", false), ("write back", true), ("write through", false)] {
        guest.sh(&format!("echo '{mode}' > /sys/block/vda/cache_type"))?;
        assert_eq!(read(&mut guest, "vda/cache_type")?, mode);
        let status = disk_status(&control)?;
        assert_eq!(
            (&status["writeback"], &status["durable_writes"]),
            (&json!(writeback), &json!(!writeback))
        );
        guest.sh("dd if=/dev/zero of=/dev/vda bs=4k count=16 oflag=direct 2>/dev/null")?;
    }
    // QEMU stops and starts the device, and does not repeat what the guest chose.
    guest.qmp().execute("stop", json!({}))?;
    guest.qmp().execute("cont", json!({}))?;
    guest.sh("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null")?;
    assert_eq!(disk_status(&control)?["durable_writes"], true);
    load::no_io_errors(&mut guest)
}

#[test]
fn disks_are_added_and_removed_under_a_running_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 16)?;
    image::sparse(dir.path(), "later.img", 48)?;
    let [socket, later, control] = ["s", "later", "control"].map(|name| dir.path().join(name));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("The path is not UTF-8");
    let (folder, control_path) = (text(dir.path())?, text(&control)?);
    let _daemon = Daemon::blk(&socket, &file, &["--control-socket", &control_path, "--allow-path", &folder])?;
    let mut guest = Guest::builder().disk(Disk::new(&socket)).hot_plug_slot().boot()?;

    for _ in 0..2 {
        let added =
            ["id=later".into(), format!("path={folder}/later.img"), format!("socket={}", text(&later)?)];
        vhostctl(&control, &["add", &added[0], &added[1], &added[2]])?;
        guest.plug(&Disk::new(&later).queues(2), "plugged")?;
        wait_for(&mut guest, "test -b /dev/vdb")?;
        assert_eq!(guest.sh("blockdev --getsize64 /dev/vdb")?.trim(), (48_u64 << 20).to_string());
        load::full_cycle(&mut guest, "/dev/vdb")?;
        guest.unplug("plugged")?;
        wait_for(&mut guest, "! test -e /dev/vdb")?;
        vhostctl(&control, &["remove", "later"])?;
        ensure!(!later.exists(), "the socket of a disk that was removed is left behind");
    }
    guest.sh("dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null")?;
    load::no_io_errors(&mut guest)
}

#[test]
fn a_limit_set_while_the_guest_works_holds_for_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 16)?;
    let [socket, control] = ["disk.sock", "control.sock"].map(|name| dir.path().join(name));
    let path = control.to_str().context("The path is not UTF-8")?;
    let _daemon = Daemon::blk(&socket, &file, &["--control-socket", path])?;
    let mut guest = Guest::builder().disk(Disk::new(&socket)).boot()?;

    let limits = vhostctl(&control, &["limit", "disk0", "iops=50:1"])?;
    assert_eq!(limits["iops"], json!({"rate": 50, "burst": 1}));
    let started = Instant::now();
    guest.sh("fio --name=limited --filename=/dev/vda --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=8 \
              --number_ios=100 --output=/tmp/fio.log")?;
    // No lower bound on the machine's speed, but one on the time that a hundred requests at fifty a second take.
    ensure!(started.elapsed() > Duration::from_millis(1900), "100 requests took {:?}", started.elapsed());
    assert_eq!(disk_status(&control)?["limits"], json!({"iops": {"rate": 50, "burst": 1}}));
    vhostctl(&control, &["limit", "disk0", "iops=0"])?;
    assert_eq!(disk_status(&control)?["limits"], json!({}));
    guest.sh("dd if=/dev/vda of=/dev/null bs=4k count=4096 iflag=direct 2>/dev/null")?;
    load::no_io_errors(&mut guest)
}

#[test]
fn a_guest_of_four_processors_needs_no_options() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = image::sparse(dir.path(), "disk.img", 48)?;
    let socket = dir.path().join("disk.sock");
    let _daemon = Daemon::blk(&socket, &file, &[])?;
    // As many queues as QEMU takes by itself.
    let mut guest = Guest::builder().vcpus(4).disk(Disk::new(&socket).queues(4)).boot()?;
    load::full_cycle(&mut guest, "/dev/vda")?;
    load::no_io_errors(&mut guest)
}

fn wait_for(guest: &mut Guest, condition: &str) -> Result<()> {
    let script = format!("if {condition}; then echo yes; fi");
    let came = wait_until(PATIENCE, || Ok(guest.sh(&script)?.trim() == "yes"))?;
    ensure!(came, "In the guest, this never became true: {condition}");
    Ok(())
}
