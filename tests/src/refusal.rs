//! A daemon that says no: one sentence, an exit code, and nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::signal;

/// Runs a command to its end, which must come by itself.
///
/// # Errors
/// When it cannot be started, or goes on running.
pub fn run(command: &mut Command) -> Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = done.send(());
        output
    });
    if ended.recv_timeout(Duration::from_secs(10)).is_err() {
        signal(pid, libc::SIGKILL)?;
        bail!("{command:?} goes on running");
    }
    Ok(waiter.join().ok().context("The waiting thread failed")??)
}

/// Runs a command in `dir`. It must end with `code` and one sentence on one line that contains all of `words`, and leave
/// the directory as it was.
///
/// # Errors
/// When it cannot be started, or goes on running.
///
/// # Panics
/// When it does anything else.
pub fn is_refused(command: &mut Command, dir: &Path, code: i32, words: &[&str]) -> Result<()> {
    let before = listing(dir)?;
    let output = run(command.current_dir(dir))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{command:?} prints more than a sentence: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{command:?}: no `{word}` in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{command:?} prints to standard output");
    assert_eq!(listing(dir)?, before, "{command:?} leaves something behind");
    Ok(())
}

/// Names in `dir`, sorted.
fn listing(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
