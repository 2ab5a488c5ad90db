//! What `vhostd-guest` stands on: the library, on daemons over their sockets, and on virtio-crypto devices of guests.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bed;
use e2e::crypto::device::Crypto;
use e2e::daemon::Daemon;
use e2e::guest::Guest;

const PATIENCE: Duration = Duration::from_secs(60);

/// The tool on this machine, on the device behind a socket.
fn native(socket: &Path, args: &[&str]) -> Result<Output> {
    let mut tool = Command::new(bed::binary("vhostd-guest")?);
    Ok(tool.args(args).arg("--device").arg(socket).output()?)
}

fn succeeds(socket: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let output = native(socket, args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{args:?}: {}, {said}", output.status);
    Ok(output.stdout)
}

#[test]
fn the_tool_works_over_a_socket_as_it_does_in_a_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::compress(dir.path(), 2, &[])?;
    let socket = Daemon::compress_of(dir.path());
    let info = String::from_utf8(succeeds(&socket, &["info", "--require-device"])?)?;
    ensure!(info.contains("tried           works"), "{info}");
    // A program of this machine, as an example of one.
    let data = std::fs::read(bed::binary("vhostd-guest")?)?;
    let path = dir.path().join("x");
    std::fs::write(&path, &data)?;
    let path = path.to_str().context("The path is not UTF-8")?;
    for format in ["gzip", "zlib", "zstd", "lz4"] {
        for ring in [&[][..], &["--split", "--chunk", "4M"]] {
            let options = ["--require-device", "--format", format, "--queues", "2"];
            let packed = succeeds(&socket, &[&["compress", "-c", path], &options[..], ring].concat())?;
            ensure!(packed.len() < data.len() * 9 / 10, "{format} makes {} of {}", packed.len(), data.len());
            let file = dir.path().join(format!("x.{format}"));
            std::fs::write(&file, packed)?;
            let file = file.to_str().context("The path is not UTF-8")?;
            let restored = succeeds(&socket, &["decompress", "-c", "--require-device", file])?;
            ensure!(restored == data, "{format} restores something else");
        }
    }
    // One long member: a stream of the device.
    let gzip = Command::new("gzip").args(["-c", path]).output()?;
    let theirs = dir.path().join("theirs.gz");
    std::fs::write(&theirs, gzip.stdout)?;
    let theirs = theirs.to_str().context("The path is not UTF-8")?;
    ensure!(succeeds(&socket, &["decompress", "-c", "--require-device", theirs])? == data);
    Ok(())
}

#[test]
fn something_that_is_no_compression_device_is_not_taken_for_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let output = native(&Daemon::crypto_of(dir.path(), 0), &["info", "--require-device"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "it is taken: {said}");
    Ok(())
}

#[test]
fn ciphers_are_right_over_the_socket_of_a_whole_crypto_device() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let shown = String::from_utf8(succeeds(&Daemon::crypto_of(dir.path(), 0), &["info", "--crypto"])?)?;
    ensure!(shown.lines().filter(|line| line.ends_with("works")).count() == 4, "{shown}");
    Ok(())
}

/// A device is no compression device because its number was given for one's: the kernel keeps it.
fn is_left_alone(guest: &mut Guest) -> Result<()> {
    // A device that was bound anew is another directory.
    let bound = "ls -diL /sys/bus/virtio/devices/*";
    let before = guest.sh(bound)?;
    let refused = guest.try_sh("vhostd-guest info --require-device --virtio-id 20 2>&1", PATIENCE)?;
    ensure!(refused.code == 1, "it is taken: {}", refused.text);
    ensure!(guest.sh(bound)? == before, "the kernel has lost its device for a while");
    Ok(())
}

fn ciphers_in_guest(device: Crypto, named: &[&str]) -> Result<()> {
    let mut guest = Guest::builder().crypto(device).boot()?;
    let refused = guest.try_sh("vhostd-guest info --crypto 2>&1", PATIENCE)?;
    ensure!(
        refused.code == 1 && refused.text.contains("belongs to the driver virtio_crypto"),
        "{}",
        refused.text
    );
    is_left_alone(&mut guest)?;
    let shown = guest.sh("vhostd-guest info --crypto --take 2>&1")?;
    for cipher in named {
        let works = shown.lines().any(|line| line.starts_with(cipher) && line.ends_with("works"));
        ensure!(works, "{cipher} does not work:\n{shown}");
    }
    // The kernel has its device again.
    guest.sh("grep -q virtio_crypto /proc/crypto")?;
    Ok(())
}

#[test]
fn a_guest_drives_a_whole_crypto_device_from_user_space() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let device = Crypto::whole(&Daemon::crypto_of(dir.path(), 0));
    ciphers_in_guest(device, &["AES-ECB", "AES-CBC", "AES-CTR", "AES-XTS"])
}

#[test]
fn a_guest_drives_a_device_of_cryptodev_from_user_space() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemon = Daemon::crypto(dir.path(), 1, &[])?;
    let device = Crypto::cryptodev(&Daemon::crypto_of(dir.path(), 0));
    ciphers_in_guest(device, &["AES-CBC"])
}
