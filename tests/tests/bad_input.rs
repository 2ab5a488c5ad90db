//! A command line that cannot work ends in one sentence on standard error and exit code 2, and leaves nothing behind.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::process::{Process, wait_until};
use e2e::{bed, image, refusal};

fn run(dir: &Path, args: &[&str]) -> Result<Output> {
    refusal::run(Command::new(bed::binary("vhostd-blk")?).args(args).current_dir(dir))
}

/// Exit code 2, one sentence on one line that contains all of `words`, and the directory as it was.
fn is_refused(dir: &Path, args: &[&str], words: &[&str]) -> Result<()> {
    refusal::is_refused(Command::new(bed::binary("vhostd-blk")?).args(args), dir, 2, words)
}

/// A directory with a usable image, one of 1000 bytes and a directory where a file is expected.
fn playground() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    image::sparse(dir.path(), "disk.img", 1)?;
    File::create(dir.path().join("odd.img"))?.set_len(1000)?;
    File::create(dir.path().join("empty.img"))?;
    fs::create_dir(dir.path().join("folder"))?;
    Ok(dir)
}

#[test]
fn unknown_and_contradictory_options_are_refused() -> Result<()> {
    let dir = playground()?;
    let ok = ["--socket-path", "s", "--blk-file", "disk.img"];
    let with = |extra: &[&'static str]| [&ok[..], extra].concat();
    is_refused(dir.path(), &with(&["--no-such-flag"]), &["--no-such-flag"])?;
    is_refused(dir.path(), &with(&["--num-queues", "0"]), &["num-queues"])?;
    is_refused(dir.path(), &with(&["--num-queues", "many"]), &["num-queues"])?;
    is_refused(dir.path(), &with(&["--queue-size", "3"]), &["queue-size", "power of two"])?;
    is_refused(dir.path(), &with(&["--iops", "0:0"]), &["--iops", "0:0"])?;
    is_refused(dir.path(), &with(&["--poll", "sometimes"]), &["--poll"])?;
    is_refused(dir.path(), &with(&["--fd", "3"]), &["--fd"])?;
    is_refused(dir.path(), &["--socket-path", "s"], &[])?;
    is_refused(dir.path(), &["--blk-file", "disk.img"], &[])
}

#[test]
fn unusable_files_are_refused() -> Result<()> {
    let dir = playground()?;
    let with = |file: &'static str| ["--socket-path", "s", "--blk-file", file];
    is_refused(dir.path(), &with("missing.img"), &["missing.img"])?;
    is_refused(dir.path(), &with("folder"), &["folder"])?;
    is_refused(dir.path(), &with("odd.img"), &["512"])?;
    is_refused(dir.path(), &with("empty.img"), &["empty"])?;
    is_refused(dir.path(), &with("mem:1000"), &["512"])?;
    is_refused(dir.path(), &with("mem:lots"), &["lots"])
}

#[test]
fn an_unreadable_file_is_refused() -> Result<()> {
    let dir = playground()?;
    let mode = |mode| fs::set_permissions(dir.path().join("disk.img"), fs::Permissions::from_mode(mode));
    for (bits, extra) in [(0, None), (0o444, None), (0o222, Some("--read-only"))] {
        mode(bits)?;
        let args = ["--socket-path", "s", "--blk-file", "disk.img"].into_iter().chain(extra);
        refusal::is_refused(powerless()?.args(args), dir.path(), 2, &["disk.img", "Permission denied"])?;
    }
    let _socket = UnixListener::bind(dir.path().join("socket"))?;
    is_refused(dir.path(), &["--socket-path", "s", "--blk-file", "socket"], &["socket"])
}

/// The daemon without the capabilities for which a superuser may read and write whatever the mode of a file says.
fn powerless() -> Result<Command> {
    let daemon = bed::binary("vhostd-blk")?;
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(Command::new(daemon));
    }
    let mut command = Command::new(bed::program("setpriv")?);
    command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(daemon);
    Ok(command)
}

#[test]
fn unusable_socket_paths_are_refused() -> Result<()> {
    let dir = playground()?;
    let long = "x".repeat(120);
    is_refused(dir.path(), &["--socket-path", &long, "--blk-file", "disk.img"], &["107"])?;
    is_refused(dir.path(), &["--socket-path", "nowhere/s", "--blk-file", "disk.img"], &["nowhere"])?;
    is_refused(dir.path(), &["--socket-path", "odd.img", "--blk-file", "disk.img"], &["odd.img"])?;
    let _live = UnixListener::bind(dir.path().join("live"))?;
    is_refused(dir.path(), &["--socket-path", "live", "--blk-file", "disk.img"], &["live"])
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused() -> Result<()> {
    let dir = playground()?;
    fs::write(dir.path().join("key.toml"), "[daemon]\npoll = \"off\"\nspeed = \"ludicrous\"\n")?;
    is_refused(dir.path(), &["--config", "key.toml"], &["key.toml", "speed"])?;
    fs::write(dir.path().join("syntax.toml"), "[daemon\n")?;
    is_refused(dir.path(), &["--config", "syntax.toml"], &["syntax.toml"])?;
    is_refused(dir.path(), &["--config", "missing.toml"], &["missing.toml"])
}

#[test]
fn a_dead_socket_is_replaced_and_the_own_one_removed_at_the_end() -> Result<()> {
    let dir = playground()?;
    let socket = dir.path().join("s");
    drop(UnixListener::bind(&socket)?);
    let mut command = Command::new(bed::binary("vhostd-blk")?);
    command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(dir.path().join("disk.img"));
    let mut daemon = Process::start(command, &dir.path().join("log"))?;
    let connected = wait_until(Duration::from_secs(10), || {
        daemon.must_run()?;
        Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
    })?;
    assert!(connected, "the daemon does not listen: {}", daemon.output());
    let (status, took) = daemon.terminate(Duration::from_secs(5))?;
    assert!(status.success(), "SIGTERM: {status}");
    assert!(took < Duration::from_secs(1), "SIGTERM took {took:?}");
    assert!(!socket.exists(), "the socket is left behind");
    Ok(())
}

#[test]
fn discovery_prints_capabilities_and_starts_nothing() -> Result<()> {
    let dir = playground()?;
    let output = run(dir.path(), &["--print-capabilities"])?;
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(value["type"], "block");
    let features: Vec<_> = value["features"].as_array().context("No features")?.iter().collect();
    assert!(features.contains(&&"blk-file".into()) && features.contains(&&"read-only".into()), "{value}");
    Ok(())
}
