//! The daemon on a real block device: a loop device, so that what reaches the device can be read in the file behind it.
//!
//! Loop devices take root. Where there is none, a test says so and passes; under CI it fails.

#[path = "support/process.rs"]
mod process;

use blk_backend::config::SECTOR;
use blk_backend::request::*;
use daemon::testing::refuses;
use process::{Daemon, Guest, PROGRAM};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use zerocopy::IntoBytes;

const MIB: u64 = 1 << 20;
const OK: u8 = Status::Ok as u8;
const IOERR: u8 = Status::IoErr as u8;

/// A loop device on a file of its own; detached when dropped.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    /// `None`, after saying so, where there is no loop device.
    fn set_up(dir: &Path, bytes: u64, options: &[&str]) -> Option<Self> {
        let file = dir.join("backing");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).args(options).arg(&file).output();
        let why = match made {
            Ok(made) if made.status.success() => {
                let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
                return Some(Self { device, file });
            }
            Ok(made) => String::from_utf8_lossy(&made.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "no loop device: {why}");
        eprintln!("SKIPPED: no loop device: {why}");
        None
    }

    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        std::fs::read(&self.file).unwrap()[offset as usize..][..len].to_vec()
    }

    /// Bytes of the file that the filesystem has allocated.
    fn allocated(&self) -> u64 {
        File::open(&self.file).unwrap().sync_all().unwrap();
        std::fs::metadata(&self.file).unwrap().blocks() * 512
    }

    /// The file and then the device get a new size.
    fn grow(&self, bytes: u64) {
        File::options().write(true).open(&self.file).unwrap().set_len(bytes).unwrap();
        assert!(Command::new("losetup").args(["--set-capacity", &self.device]).status().unwrap().success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // If it fails, the device stays, and the next test takes another one.
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |i: u64| (seed.wrapping_mul(31).wrapping_add(i) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len.div_ceil(8) as u64).flat_map(|i| word(i).to_le_bytes()).take(len).collect()
}

/// A discard or write-zeroes request of one range.
fn range(guest: &mut Guest, kind: u32, sector: u64, sectors: u64, flags: u32) -> u8 {
    let range =
        WireRange { sector: sector.into(), num_sectors: (sectors as u32).into(), flags: flags.into() };
    guest.request(kind, 0, range.as_bytes(), 0).0
}

/// Every way a block device is driven.
const WAYS: [&[&str]; 4] =
    [&[], &["--direct"], &["--io", "threads"], &["--direct", "--io", "threads", "--block-size", "4096"]];

#[test]
fn what_is_written_is_in_the_device_and_what_is_in_the_device_is_read() {
    for (way, extra) in WAYS.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let Some(device) = Loop::set_up(dir.path(), 16 * MIB, &[]) else { return };
        let args = [&["--blk-file", device.device.as_str()], *extra].concat();
        let daemon = Daemon::start(dir.path(), &args);
        let status = daemon.call("disk.list", json!({}))[0].clone();
        assert_eq!(
            (&status["backend"], &status["bytes"]),
            (&json!("block-device"), &json!(16 * MIB)),
            "{extra:?}"
        );
        assert_eq!(status["direct"], extra.contains(&"--direct"));
        let mut guest = Guest::start(daemon.connect(), way % 2 == 1);
        // Small ones, large ones, and the last block.
        let places = [(0, 4096), (8, 512 << 10), (4096, 2 << 20), (16 * MIB / SECTOR - 8, 4096)];
        for (seed, (sector, len)) in places.into_iter().enumerate() {
            let data = pattern(seed as u64, len);
            assert_eq!(guest.request(VIRTIO_BLK_T_OUT, sector, &data, 0).0, OK, "{extra:?}, {sector}");
            assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK, "{extra:?}");
            assert!(device.bytes(sector * SECTOR, len) == data, "{extra:?}: {sector} is not in the file");
            let (read, found) = guest.request(VIRTIO_BLK_T_IN, sector, &[], len);
            assert!(read == OK && found == data, "{extra:?}: {sector} reads back as something else");
        }
        assert_eq!(guest.request(VIRTIO_BLK_T_IN, 16 * MIB / SECTOR, &[], 4096).0, IOERR, "beyond the end");
        drop((guest, daemon));
        // What somebody else has written since.
        let elsewhere = pattern(99, 4096);
        std::os::unix::fs::FileExt::write_all_at(
            &File::options().write(true).open(&device.device).unwrap(),
            &elsewhere,
            8192,
        )
        .unwrap();
        let daemon = Daemon::start(dir.path(), &args);
        let mut guest = Guest::start(daemon.connect(), false);
        let (read, found) = guest.request(VIRTIO_BLK_T_IN, 16, &[], 4096);
        assert!(read == OK && found == elsewhere, "{extra:?}");
    }
}

#[test]
fn discard_frees_the_device_and_write_zeroes_zeroes_it_and_nothing_beside_it() {
    for extra in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let Some(device) = Loop::set_up(dir.path(), 8 * MIB, &[]) else { return };
        let daemon = Daemon::start(dir.path(), &[&["--blk-file", device.device.as_str()], extra].concat());
        let mut guest = Guest::start(daemon.connect(), false);
        let data = pattern(1, 8 * MIB as usize);
        for (sector, piece) in (0..).step_by(2048).zip(data.chunks(MIB as usize)) {
            assert_eq!(guest.request(VIRTIO_BLK_T_OUT, sector, piece, 0).0, OK);
        }
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
        let full = device.allocated();
        assert!(full >= 8 * MIB, "{extra:?}: {full} bytes are allocated");

        assert_eq!(range(&mut guest, VIRTIO_BLK_T_DISCARD, 0, 4 * MIB / SECTOR, 0), OK, "{extra:?}");
        let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        for (first, flags) in [(4, 0), (5, unmap)] {
            let sector = first * MIB / SECTOR + 8;
            let zeroed = range(&mut guest, VIRTIO_BLK_T_WRITE_ZEROES, sector, 1024, flags);
            assert_eq!(zeroed, OK, "{extra:?}, {flags}");
        }
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);

        let left = device.allocated();
        assert!(
            left <= full - 4 * MIB,
            "{extra:?}: {left} of {full} bytes are left after 4 MiB were discarded"
        );
        assert!(device.bytes(0, 4 * MIB as usize).iter().all(|byte| *byte == 0), "{extra:?}");
        for first in [4, 5] {
            let start = first * MIB;
            let mut expected = data[start as usize..][..MIB as usize].to_vec();
            expected[4096..4096 + 1024 * 512].fill(0);
            assert!(device.bytes(start, MIB as usize) == expected, "{extra:?}: MiB {first}");
            let (read, found) = guest.request(VIRTIO_BLK_T_IN, start / SECTOR, &[], MIB as usize);
            assert!(read == OK && found == expected, "{extra:?}: MiB {first} as read");
        }
        assert!(
            device.bytes(6 * MIB, 2 * MIB as usize) == data[6 * MIB as usize..],
            "{extra:?}: what was left alone"
        );
        let stats = daemon.stats("disk0");
        assert_eq!(stats.extra["discards_ignored"], 0, "{extra:?}");
    }
}

#[test]
fn a_read_only_device_is_refused_for_writing_and_served_for_reading() {
    let dir = tempfile::tempdir().unwrap();
    let Some(device) = Loop::set_up(dir.path(), 4 * MIB, &["--read-only"]) else { return };
    let data = pattern(5, 4096);
    let file = File::options().write(true).open(&device.file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &data, 0).unwrap();
    refuses(PROGRAM, dir.path(), &["--blk-file", &device.device, "--socket-path", "s"], "is read-only");

    let daemon = Daemon::start(dir.path(), &["--blk-file", &device.device, "--read-only"]);
    let mut guest = Guest::start(daemon.connect(), false);
    let (read, found) = guest.request(VIRTIO_BLK_T_IN, 0, &[], 4096);
    assert!(read == OK && found == data);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 0, &pattern(6, 4096), 0).0, IOERR);
    assert!(device.bytes(0, 4096) == data);
}

#[test]
fn a_device_that_has_grown_is_announced_by_itself_and_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let Some(device) = Loop::set_up(dir.path(), 4 * MIB, &[]) else { return };
    let daemon = Daemon::start(dir.path(), &["--blk-file", &device.device]);
    let mut guest = Guest::start(daemon.connect(), false);
    let mut back = guest.session.frontend.open_back_channel().unwrap();
    let capacity = |guest: &mut Guest| {
        let mut bytes = [0; 8];
        guest.session.get_config(0, &mut bytes).unwrap();
        u64::from_le_bytes(bytes) * SECTOR
    };
    let last_block_works = |guest: &mut Guest, bytes: u64| {
        let data = pattern(bytes, 4096);
        assert_eq!(guest.request(VIRTIO_BLK_T_OUT, bytes / SECTOR - 8, &data, 0).0, OK);
        assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
        assert!(device.bytes(bytes - 4096, 4096) == data);
    };
    // A device cannot be made larger from here.
    let refusal = daemon.refused("disk.resize", json!({"disk": "disk0", "size": "8M"}));
    assert!(refusal.contains("the block device has only"), "{refusal}");

    device.grow(6 * MIB);
    assert_eq!(daemon.call("disk.resize", json!({"disk": "disk0"}))["bytes"], 6 * MIB);
    let message = back.receive(Duration::from_secs(5)).unwrap().expect("the frontend is told");
    back.acknowledge(message.message.header, 0).unwrap();
    assert_eq!(capacity(&mut guest), 6 * MIB);
    last_block_works(&mut guest, 6 * MIB);

    device.grow(8 * MIB);
    let message = back.receive(Duration::from_secs(20)).unwrap().expect("growth is noticed");
    back.acknowledge(message.message.header, 0).unwrap();
    assert_eq!(capacity(&mut guest), 8 * MIB);
    last_block_works(&mut guest, 8 * MIB);
}
