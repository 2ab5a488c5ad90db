//! What vhostd-crypto cannot do ends in one sentence that says what to do about it, exit code 2, and nothing left behind.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use e2e::{bed, refusal};

fn is_refused(dir: &Path, args: &[&str], words: &[&str]) -> Result<()> {
    refusal::is_refused(Command::new(bed::binary("vhostd-crypto")?).args(args), dir, 2, words)
}

#[test]
fn values_out_of_range_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (option, value, word) in [
        ("--queues", "0", "queues"),
        ("--queues", "256", "queues"),
        ("--queue-size", "65536", "queue-size"),
        ("--sessions", "0", "sessions"),
        ("--sessions", "1000000", "sessions"),
        ("--max-size", "1", "max-size"),
        ("--max-size", "1T", "max-size"),
        ("--mode", "sometimes", "sometimes"),
        ("--mode", "timer=never", "never"),
        ("--batch", "0", "batch"),
        ("--deadline-us", "0", "deadline-us"),
        ("--engine", "steam", "steam"),
        ("--asym-threads", "many", "asym-threads"),
        ("--workers", "0", "workers"),
    ] {
        is_refused(dir.path(), &["--socket-path", "s", option, value], &[word])
            .with_context(|| format!("{option} {value}"))?;
    }
    Ok(())
}

#[test]
fn devices_that_contradict_each_other_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    is_refused(dir.path(), &[], &["socket"])?;
    let one = ["--device", "id=a,socket=a.sock"];
    is_refused(dir.path(), &[&one[..], &["--device", "id=b,socket=a.sock"]].concat(), &["a.sock"])?;
    is_refused(dir.path(), &[&one[..], &["--device", "id=a,socket=b.sock"]].concat(), &["a"])?;
    is_refused(dir.path(), &["--device", "id=a,sockt=a.sock"], &["sockt"])?;
    is_refused(dir.path(), &["--device", "id=a,socket=a.sock,queues=none"], &["none"])?;
    is_refused(dir.path(), &["--socket-path", "s", "--no-such-flag"], &["--no-such-flag"])
}

#[test]
fn unusable_socket_paths_are_refused_supervised_or_not() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let long = "x".repeat(120);
    let _live = UnixListener::bind(dir.path().join("live"))?;
    for extra in [&[][..], &["--supervise"]] {
        for (socket, word) in [(&*long, "107"), ("nowhere/s", "nowhere"), ("live", "live")] {
            let args = [&["--socket-path", socket], extra].concat();
            is_refused(dir.path(), &args, &[word]).with_context(|| format!("{args:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let device = "[[device]]\nid = \"a\"\nsocket = \"a.sock\"\n";
    fs::write(dir.path().join("key.toml"), format!("{device}speed = \"ludicrous\"\n"))?;
    is_refused(dir.path(), &["--config", "key.toml"], &["key.toml", "speed"])?;
    fs::write(dir.path().join("mode.toml"), format!("{device}[scheduling]\nmode = \"sometimes\"\n"))?;
    is_refused(dir.path(), &["--config", "mode.toml"], &["mode.toml", "sometimes"])?;
    is_refused(dir.path(), &["--config", "missing.toml"], &["missing.toml"])
}

#[test]
fn discovery_prints_capabilities_and_starts_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(bed::binary("vhostd-crypto")?);
    let output = refusal::run(command.arg("--print-capabilities").current_dir(dir.path()))?;
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(value["type"], "crypto");
    Ok(())
}
